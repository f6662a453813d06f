"""InternViT as its authors publish it: names, options and features, against a few lines of torch.

"How Far Are We to GPT-4V?" and "InternVL" (Chen et al. 2024): a ViT with a class token, RMSNorm or LayerNorm before
attention and MLP, layer scale after both, and in the 6B model queries and keys normalised over all heads at once.
"""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from safetensors.torch import save_file
from torch import Tensor

from frepa.encoders.files import load_encoder
from frepa.errors import InputError

pytest.importorskip("transformers")

WIDTH, DEPTH, HEADS, PATCH, GRID = 32, 4, 4, 8, 6
SIX_B = {
    "model_type": "intern_vit_6b", "hidden_size": WIDTH, "intermediate_size": 48, "num_hidden_layers": DEPTH,
    "num_attention_heads": HEADS, "image_size": PATCH * GRID, "patch_size": PATCH, "use_flash_attn": True,
}  # fmt: skip
SMALL = {**SIX_B, "norm_type": "layer_norm", "qk_normalization": False, "qkv_bias": True}
MEAN, STD = [0.4, 0.5, 0.6], [0.2, 0.3, 0.25]


def weights(config: dict) -> dict[str, Tensor]:
    """Random tensors under the names of the published files."""
    torch.manual_seed(3)
    inner, layer_norm, bias = (
        config["intermediate_size"],
        config.get("norm_type") == "layer_norm",
        config.get("qkv_bias"),
    )
    shapes = {
        "embeddings.class_embedding": (1, 1, WIDTH), "embeddings.position_embedding": (1, GRID**2 + 1, WIDTH),
        "embeddings.patch_embedding.weight": (WIDTH, 3, PATCH, PATCH), "embeddings.patch_embedding.bias": (WIDTH,),
    }  # fmt: skip
    for i in range(DEPTH):
        block = {
            "ls1": (WIDTH,), "ls2": (WIDTH,), "norm1.weight": (WIDTH,), "norm2.weight": (WIDTH,),
            "attn.qkv.weight": (3 * WIDTH, WIDTH), "attn.proj.weight": (WIDTH, WIDTH), "attn.proj.bias": (WIDTH,),
            "mlp.fc1.weight": (inner, WIDTH), "mlp.fc1.bias": (inner,), "mlp.fc2.weight": (WIDTH, inner),
            "mlp.fc2.bias": (WIDTH,),
        }  # fmt: skip
        if layer_norm:
            block |= {"norm1.bias": (WIDTH,), "norm2.bias": (WIDTH,)}
        if bias:
            block["attn.qkv.bias"] = (3 * WIDTH,)
        if config.get("qk_normalization", True):
            block |= {"attn.q_norm.weight": (WIDTH,), "attn.k_norm.weight": (WIDTH,)}
        shapes |= {f"encoder.layers.{i}.{key}": shape for key, shape in block.items()}
    return {key: torch.randn(shape) * (0.3 if len(shape) > 1 else 1.0) for key, shape in shapes.items()}


def by_hand(state: dict[str, Tensor], image: Tensor, *, layer_norm: bool) -> list[Tensor]:
    """Tokens of the patches (B, C, h, w) after each block."""

    def rms(x: Tensor, weight: Tensor) -> Tensor:
        return weight * x / (x.square().mean(-1, keepdim=True) + 1e-6).sqrt()

    x = F.conv2d(image, state["embeddings.patch_embedding.weight"], state["embeddings.patch_embedding.bias"], PATCH)
    grid, positions = x.shape[2:], state["embeddings.position_embedding"]
    plane = positions[:, 1:].transpose(1, 2).reshape(1, WIDTH, GRID, GRID)
    if grid != plane.shape[2:]:
        plane = F.interpolate(plane, grid, mode="bicubic", align_corners=False)
    first = (state["embeddings.class_embedding"] + positions[:, :1]).expand(len(x), 1, WIDTH)
    x = torch.cat([first, (x + plane).flatten(2).transpose(1, 2)], 1)
    maps = []
    for i in range(DEPTH):
        own = {key.removeprefix(f"encoder.layers.{i}."): value for key, value in state.items() if f".{i}." in key}

        def norm(x: Tensor, name: str, own: dict[str, Tensor] = own) -> Tensor:
            if layer_norm:
                return F.layer_norm(x, (WIDTH,), own[f"{name}.weight"], own[f"{name}.bias"], 1e-6)
            return rms(x, own[f"{name}.weight"])

        q, k, v = F.linear(norm(x, "norm1"), own["attn.qkv.weight"], own.get("attn.qkv.bias")).chunk(3, -1)
        if "attn.q_norm.weight" in own:
            q, k = rms(q, own["attn.q_norm.weight"]), rms(k, own["attn.k_norm.weight"])
        q, k, v = (part.unflatten(-1, (HEADS, -1)).transpose(1, 2) for part in (q, k, v))
        weight = (q @ k.transpose(-1, -2) * (WIDTH // HEADS) ** -0.5).softmax(-1)
        mixed = F.linear((weight @ v).transpose(1, 2).flatten(2), own["attn.proj.weight"], own["attn.proj.bias"])
        x = x + own["ls1"] * mixed
        inner = F.gelu(F.linear(norm(x, "norm2"), own["mlp.fc1.weight"], own["mlp.fc1.bias"]))
        x = x + own["ls2"] * F.linear(inner, own["mlp.fc2.weight"], own["mlp.fc2.bias"])
        maps.append(x[:, 1:].transpose(1, 2).unflatten(2, grid))
    return maps


def publish(folder: Path, config: dict, state: dict[str, Tensor], *, chat: bool) -> str:
    """A folder as it is published: alone, or in two files of a larger model with its language model."""
    folder.mkdir()
    scaling = {"do_normalize": True, "image_mean": MEAN, "image_std": STD}
    (folder / "preprocessor_config.json").write_text(json.dumps(scaling))
    if not chat:
        (folder / "config.json").write_text(json.dumps(config))
        save_file(state, folder / "model.safetensors", metadata={"format": "pt"})
        return f"hf:{folder}"
    outer = {"model_type": "internvl_chat", "vision_config": config, "llm_config": {"model_type": "llama"}}
    (folder / "config.json").write_text(json.dumps(outer))
    named = {f"vision_model.{key}": value for key, value in state.items()}
    named |= {"mlp1.0.weight": torch.ones(4), "language_model.model.embed_tokens.weight": torch.ones(5, 4)}
    for part in range(2):
        shard = {key: value for number, (key, value) in enumerate(named.items()) if number % 2 == part}
        save_file(shard, folder / f"model-0000{part + 1}-of-00002.safetensors", metadata={"format": "pt"})
    return f"hf:{folder}"


@pytest.mark.parametrize("config", [SIX_B, SMALL], ids=["6B", "300M"])
@pytest.mark.parametrize("chat", [False, True], ids=["alone", "in a chat model"])
def test_published_folders_give_what_the_network_gives(tmp_path: Path, config: dict, chat: bool) -> None:
    state = weights(config)
    encoder = load_encoder(publish(tmp_path / "model", config, state, chat=chat))
    assert (encoder.channels, encoder.stride, encoder.guide) == (WIDTH, PATCH, "none")
    mean, std = (torch.tensor(values).view(1, 3, 1, 1) for values in (MEAN, STD))
    for size in ((PATCH * GRID,) * 2, (PATCH * 5, PATCH * 9)):
        image = torch.rand(2, 3, *size)
        maps = by_hand(state, (image - mean) / std, layer_norm=config.get("norm_type") == "layer_norm")
        with torch.no_grad():
            x = encoder.prepare_input(image)
            torch.testing.assert_close(encoder(x).dense, maps[-1], atol=2e-4, rtol=1e-4)
            for found, expected in zip(encoder.stages(x), maps, strict=True):
                torch.testing.assert_close(found, expected, atol=2e-4, rtol=1e-4)


def test_weights_of_another_network_are_refused(tmp_path: Path) -> None:
    state = weights(SIX_B)
    for name, config, words in (
        ("plain", {**SIX_B, "qk_normalization": False}, r"8 tensors have no place in it, such as .*k_norm\.weight"),
        ("deep", {**SIX_B, "num_hidden_layers": DEPTH + 1}, r"tensors are missing .* encoder\.layer\.4\."),
        ("norm", {**SIX_B, "norm_type": "group_norm"}, "InternViT has rms_norm or layer_norm"),
        ("epsilon", {**SIX_B, "layer_norm_eps": 1e-5}, "its features would be others"),
    ):
        with pytest.raises(InputError, match=words):
            load_encoder(publish(tmp_path / name, config, state, chat=False))
