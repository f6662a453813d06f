"""InternViT as its authors publish it, with their own code beside it (InternVL up to 3, MedDr): in transformers' words.

Their folders say ``intern_vit_6b`` of the 6B model (RMSNorm, normalised queries and keys, no bias in the attention)
and of the 300M one (LayerNorm, biases) alike; what differs is in the configuration. transformers'
``InternVLVisionModel`` is the same network under other names, so their code is not run.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from torch import Tensor

from frepa.errors import InputError

MODEL_TYPE = "intern_vit_6b"
# Their names with transformers' own, and their default where the configuration leaves it out.
_CONFIG: dict[str, tuple[str, Any]] = {
    "num_channels": ("num_channels", 3), "patch_size": ("patch_size", 14), "image_size": ("image_size", 224),
    "qkv_bias": ("attention_bias", False), "hidden_size": ("hidden_size", 3200),
    "num_attention_heads": ("num_attention_heads", 25), "intermediate_size": ("intermediate_size", 12800),
    "qk_normalization": ("use_qk_norm", True), "num_hidden_layers": ("num_hidden_layers", 48),
    "hidden_act": ("hidden_act", "gelu"), "norm_type": ("norm_type", "rms_norm"),
    "layer_norm_eps": ("layer_norm_eps", 1e-6), "initializer_factor": ("layer_scale_init_value", 0.1),
}  # fmt: skip
_NAMES = [
    (r"^embeddings\.class_embedding$", "embeddings.cls_token"),
    (r"^embeddings\.position_embedding$", "embeddings.position_embeddings"),
    (r"^embeddings\.patch_embedding\.", "embeddings.patch_embeddings.projection."),
    (r"^encoder\.layers\.", "encoder.layer."),
    (r"\.attn\.proj\.", ".attention.projection_layer."),
    (r"\.attn\.", ".attention."),
    (r"\.norm1\.", ".layernorm_before."),
    (r"\.norm2\.", ".layernorm_after."),
    (r"\.ls([12])$", r".lambda_\1"),
]
_EPSILON = 1e-6  # of transformers' norm of queries and keys, whatever the configuration says


def in_transformers_words(config: Mapping[str, Any], folder: Path) -> dict[str, Any]:
    """The configuration of ``InternVLVisionModel`` for one of InternViT's own.

    Raises:
        InputError: a network that transformers' class is not.
    """
    said = {own: config.get(theirs, default) for theirs, (own, default) in _CONFIG.items()}
    if said["norm_type"] not in ("rms_norm", "layer_norm"):
        raise InputError(
            f"hf:{folder}: config.json names the norm {said['norm_type']!r}; InternViT has rms_norm or layer_norm."
        )
    if said["use_qk_norm"] and said["layer_norm_eps"] != _EPSILON:
        raise InputError(
            f"hf:{folder}: config.json has layer_norm_eps {said['layer_norm_eps']} with normalised queries and keys; "
            f"transformers' class adds {_EPSILON} there, as every InternViT that was published does, and its features "
            "would be others."
        )
    return {"model_type": "internvl_vision", **said, "use_mean_pooling": True}


def in_transformers_names(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The tensors of InternViT under the names of ``InternVLVisionModel``, ``qkv`` cut into its three."""
    found: dict[str, Tensor] = {}
    for key, value in state.items():
        for pattern, name in _NAMES:
            key = re.sub(pattern, name, key)
        if ".attention.qkv." in key:
            for letter, part in zip("qkv", value.chunk(3)):
                found[key.replace(".qkv.", f".{letter}_proj.")] = part
        else:
            found[key] = value
    return found
