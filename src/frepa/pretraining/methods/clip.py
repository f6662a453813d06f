"""Image-label contrast (the CLIP row of the paper's tables): images and prompts of their classes are drawn together.

Radford et al., 2021, with class names for captions. Written from the paper.
"""

from __future__ import annotations

import math
import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from frepa.draws import Draws, sample_keys
from frepa.encoders.slice_transfer import TransformerBlock
from frepa.errors import InputError
from frepa.pretraining.methods.augment import Augmentation
from frepa.pretraining.methods.contract import Batch, Method, Setting, StepResult
from frepa.pretraining.methods.reconstructing import AUGMENT
from frepa.pretraining.methods.registry import register_method

# The largest factor of the similarities, as published.
_MOST = math.log(100.0)


@dataclass(frozen=True)
class CLIP:
    """Image-label contrast: images and the prompts of their classes are drawn together.

    Args:
        augment: random flips, rotation, affine maps and histogram shifts.
        prompt: sentence for a class, with {label} where its name stands: "an ultrasound image of a {label} lesion".
        text_encoder: local Hugging Face folder of a text model or a CLIP model, which stays as it is; by default a
            small one is trained along.
        width: channels in which images and texts are compared.
        temperature: at the start; it is learnt.
    """

    augment: bool = True
    prompt: str = "a medical image of {label}"
    text_encoder: str | None = None
    width: int = 256
    temperature: float = 0.07

    def __post_init__(self) -> None:
        if "{label}" not in self.prompt:
            raise InputError(f"--method.prompt {self.prompt!r}: write {{label}} where the name of the class goes.")
        if self.width < 1 or not 0 < self.temperature < math.inf:
            raise InputError("--method.width has to be 1 or more, and --method.temperature above 0.")


@register_method("clip", CLIP)
class CLIPMethod(Method):
    """Encoder and text tower, each with a linear map into the space where they are compared."""

    needs = ("labels",)

    def __init__(self, options: CLIP, setting: Setting) -> None:
        super().__init__()
        if setting.guide_target != "none":
            raise InputError("--method clip reconstructs nothing, so the guide cannot be its target: --guide-as input.")
        if len(setting.classes) < 2:
            raise InputError(
                f"--method clip tells classes apart, and the source has {len(setting.classes) or 'none'}. Give a "
                "source with labels of two classes or more."
            )
        self.encoder = setting.encoder
        self.seed = setting.seed
        self.augmentation = Augmentation() if options.augment else None
        prompts = [options.prompt.replace("{label}", name) for name in setting.classes]
        folder = options.text_encoder
        self.text = WordTower(prompts) if folder is None else FrozenTexts(hugging_face_vectors(Path(folder), prompts))
        self.of_image = nn.Linear(self.encoder.embedding_channels, options.width, bias=False)
        self.of_text = nn.Linear(self.text.channels, options.width, bias=False)
        self.log_scale = nn.Parameter(torch.tensor(-math.log(options.temperature)))

    def forward(self, batch: Batch) -> StepResult:
        image = batch.images
        with torch.no_grad():
            if batch.augment and self.augmentation is not None:
                keys = sample_keys(self.seed, batch.positions, AUGMENT)
                image = self.augmentation(image, Draws(keys, image.device))
            inputs = self.encoder.prepare_input(image, self.encoder.make_guide(image))
        pooled = self.encoder(inputs).embedding.flatten(2).mean(2)
        images = F.normalize(self.of_image(pooled).float(), dim=1)
        labels = [] if batch.labels is None else batch.labels.tolist()  # on the CPU: nothing waits
        rows = [row for row, label in enumerate(labels) if label >= 0]
        classes = sorted({labels[row] for row in rows}) or [0]
        texts = F.normalize(self.of_text(self.text(classes)).float(), dim=1)
        scale = self.log_scale.clamp(max=_MOST).exp()
        if not rows:  # every parameter still takes part, as distributed training wants it
            nothing = (images.sum() + texts.sum() + scale) * 0
            return StepResult(nothing, {"accuracy": nothing.detach(), "temperature": (1 / scale).detach()})
        column = [classes.index(labels[row]) for row in rows]
        own = torch.tensor(column).to(image.device, non_blocking=True)
        index = torch.tensor(rows).to(image.device, non_blocking=True)
        similarity = scale * images.index_select(0, index) @ texts.T
        loss = contrast(similarity.index_select(1, own), own)
        right = (similarity.argmax(1) == own).float().mean()
        return StepResult(loss, {"accuracy": right.detach(), "temperature": (1 / scale).detach()})


def contrast(similarity: Tensor, classes: Tensor) -> Tensor:
    """Symmetric InfoNCE with several positives: 0-d float32.

    ``similarity``: ``(B, B)`` of each image with each text of the batch. ``classes``: ``(B,)``; every text of an
    image's own class is a positive, and all of them share the probability that is asked for.
    """
    positive = (classes[:, None] == classes[None, :]).to(similarity.dtype)
    wanted = positive / positive.sum(1, keepdim=True)
    both = [-(wanted * logits.log_softmax(1)).sum(1).mean() for logits in (similarity, similarity.T)]
    return (both[0] + both[1]) / 2


class WordTower(nn.Module):
    """A small transformer over the words of the prompts it is built for: ``tower(classes) -> (K, channels)``."""

    ids: Tensor
    real: Tensor

    def __init__(self, prompts: Sequence[str], *, channels: int = 128, depth: int = 2, heads: int = 4) -> None:
        super().__init__()
        self.channels = channels
        words = [re.findall(r"\w+", prompt.lower()) for prompt in prompts]
        vocabulary = {word: place for place, word in enumerate(sorted({word for text in words for word in text}))}
        longest = max(len(text) for text in words)
        ids = torch.zeros(len(words), longest, dtype=torch.int64)
        real = torch.zeros(len(words), longest, dtype=torch.bool)
        for row, text in enumerate(words):
            ids[row, : len(text)] = torch.tensor([vocabulary[word] for word in text])
            real[row, : len(text)] = True
        self.register_buffer("ids", ids, persistent=False)
        self.register_buffer("real", real, persistent=False)
        self.words = nn.Embedding(len(vocabulary), channels)
        self.places = nn.Parameter(torch.empty(longest, channels).normal_(std=0.02))
        self.blocks = nn.ModuleList(TransformerBlock(channels, heads) for _ in range(depth))
        self.norm = nn.LayerNorm(channels)

    def forward(self, classes: Sequence[int]) -> Tensor:
        """Vectors of the prompts of these classes."""
        rows = list(classes)
        real = self.real[rows]
        tokens = self.words(self.ids[rows]) + self.places
        for block in self.blocks:
            tokens = block(tokens, real[:, None, None, :])
        weight = real[..., None].to(tokens.dtype)
        return (self.norm(tokens) * weight).sum(1) / weight.sum(1)


class FrozenTexts(nn.Module):
    """Vectors of the prompts that a text model gave once."""

    vectors: Tensor

    def __init__(self, vectors: Tensor) -> None:
        super().__init__()
        self.channels = vectors.shape[1]
        self.register_buffer("vectors", vectors)

    def forward(self, classes: Sequence[int]) -> Tensor:
        """Vectors (K, channels) of the prompts of these classes."""
        return self.vectors[list(classes)]


@torch.no_grad()
def hugging_face_vectors(folder: Path, prompts: Sequence[str]) -> Tensor:
    """What the text model in a local folder makes of prompts, (K, channels) float32; nothing is fetched.

    Raises:
        InputError: transformers is not installed, or there is no model with its tokenizer in the folder.
    """
    try:
        from transformers import AutoModel, AutoTokenizer
    except ImportError:
        raise InputError(
            "--method.text-encoder needs the package transformers. Install it with: pip install 'frepa[hf]'"
        ) from None
    if not folder.is_dir():
        raise InputError(f"--method.text-encoder {folder}: no such folder. Give a local Hugging Face folder.")
    try:
        tokenizer: Any = AutoTokenizer.from_pretrained(folder, local_files_only=True)
        model: Any = AutoModel.from_pretrained(folder, local_files_only=True).eval()
    except (OSError, ValueError, KeyError) as error:
        raise InputError(f"--method.text-encoder {folder}: no text model can be opened there ({error}).") from None
    tokens = tokenizer(list(prompts), padding=True, truncation=True, return_tensors="pt")
    if hasattr(model, "get_text_features"):
        found = model.get_text_features(**tokens)
        return found if isinstance(found, Tensor) else found.pooler_output
    output = model(**tokens)
    weight = tokens["attention_mask"][..., None].float()
    return (output.last_hidden_state * weight).sum(1) / weight.sum(1)
