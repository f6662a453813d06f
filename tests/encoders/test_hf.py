"""Encoders in Hugging Face folders give what transformers gives: each family tiny and randomly initialised."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch

from frepa.encoders.files import load_encoder, save_encoder
from frepa.encoders.reference import open_encoder
from frepa.errors import InputError

transformers = pytest.importorskip("transformers")

SHAPE = {
    "hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 4, "num_attention_heads": 4, "image_size": 64,
    "patch_size": 16,
}  # fmt: skip
TEXT = {"hidden_size": 16, "intermediate_size": 32, "num_hidden_layers": 1, "num_attention_heads": 2, "vocab_size": 50}


def clip():
    config = transformers.CLIPConfig(vision_config=SHAPE, text_config=TEXT)
    return transformers.CLIPModel(config), lambda model: model.vision_model


def siglip():
    config = transformers.SiglipConfig(vision_config=SHAPE, text_config=TEXT)
    return transformers.SiglipModel(config), lambda model: model.vision_model


def dinov2():  # RAD-DINO is one
    return transformers.Dinov2Model(transformers.Dinov2Config(**{**SHAPE, "patch_size": 8, "image_size": 32}))


def dinov2_registers():
    return transformers.Dinov2WithRegistersModel(transformers.Dinov2WithRegistersConfig(**SHAPE))


def dinov3():
    return transformers.DINOv3ViTModel(transformers.DINOv3ViTConfig(**SHAPE, num_register_tokens=3))


def internvl(**vision):
    language = transformers.Qwen2Config(**TEXT, num_key_value_heads=2)
    config = transformers.InternVLConfig(vision_config={**SHAPE, **vision}, text_config=language.to_dict())
    return transformers.InternVLForConditionalGeneration(config), lambda model: model.model.vision_tower


def internvl_6b():
    return internvl(norm_type="rms_norm", use_qk_norm=True)


def internvl_300m():
    return internvl(attention_bias=True)


def vit():
    return transformers.ViTModel(transformers.ViTConfig(**SHAPE), add_pooling_layer=False)


def sam():
    config = transformers.SamConfig(
        vision_config={
            "hidden_size": 32, "mlp_dim": 64, "num_hidden_layers": 3, "num_attention_heads": 2, "image_size": 96,
            "patch_size": 8, "output_channels": 12, "window_size": 5, "global_attn_indexes": [1],
            "num_pos_feats": 6,
        }
    )  # fmt: skip
    return transformers.SamModel(config), lambda model: model.vision_encoder


FAMILIES = (clip, siglip, dinov2, dinov2_registers, dinov3, internvl_6b, internvl_300m, vit, sam)


def make(family, folder: Path):
    """The vision part with random weights everywhere, saved with all that it is a part of."""
    torch.manual_seed(1)
    made = family()
    whole, part = made if isinstance(made, tuple) else (made, lambda model: model)
    with torch.no_grad():
        for parameter in whole.parameters():  # positions and the like begin at zero, and would hide what is wrong
            parameter.add_(0.1 * torch.randn_like(parameter))
    whole.save_pretrained(folder)
    (folder / "preprocessor_config.json").write_text(
        json.dumps({"image_mean": [0.4, 0.5, 0.6], "image_std": [0.2, 0.3, 0.25], "do_normalize": True})
    )
    return part(whole).eval()


def expected(model, image: torch.Tensor, size_of_patch: int) -> torch.Tensor:
    """What transformers makes of images in [0, 1], with the numbers of its image processor; tokens as a map."""
    mean, std = (torch.tensor(values).view(1, 3, 1, 1) for values in ([0.4, 0.5, 0.6], [0.2, 0.3, 0.25]))
    found = model(pixel_values=(image - mean) / std).last_hidden_state
    if found.ndim == 4:
        return found
    rows, columns = (n // size_of_patch for n in image.shape[2:])
    return found[:, -rows * columns :].transpose(1, 2).reshape(len(image), -1, rows, columns)


@pytest.mark.parametrize("family", FAMILIES, ids=lambda family: family.__name__)
def test_the_map_is_that_of_transformers(family, tmp_path: Path) -> None:
    model = make(family, tmp_path / "model")
    encoder = load_encoder(f"hf:{tmp_path / 'model'}")
    assert (encoder.guide, encoder.in_channels, encoder.uses_guide) == ("none", 4, False)
    side = model.config.image_size
    side = side if isinstance(side, int) else side[0]
    image = torch.rand(2, 3, side, side)
    x = encoder.prepare_input(image)
    with torch.no_grad():
        found = encoder(x).dense
        torch.testing.assert_close(found, expected(model, image, encoder.stride), atol=2e-6, rtol=1e-5)
        stages = encoder.stages(x)
        torch.testing.assert_close(stages[-1], found)
        assert [tuple(stage.shape[1:2]) for stage in stages] == [(shape.channels,) for shape in encoder.stage_shapes]
        # Any other size, on which its positions are interpolated
        other = torch.rand(1, 3, side + 2 * encoder.stride, side - 5)
        assert encoder(encoder.prepare_input(other)).dense.shape[2:] == (
            side // encoder.stride + 2,
            -(-(side - 5) // encoder.stride),
        )
    # Written into a run it needs neither the folder nor its weights any more, and is the same encoder.
    save_encoder(tmp_path / "saved", encoder)
    _, reference = open_encoder(f"hf:{tmp_path / 'model'}")
    again, own = open_encoder(str(tmp_path / "saved"))
    assert own.weights == reference.weights
    with torch.no_grad():
        assert torch.equal(again(x).dense, found)


def test_depths_of_a_plain_trunk_are_its_hidden_states(tmp_path: Path) -> None:
    model = make(dinov2, tmp_path)
    encoder = load_encoder(f"hf:{tmp_path}")
    image = torch.rand(1, 3, 32, 32)
    mean, std = (torch.tensor(values).view(1, 3, 1, 1) for values in ([0.4, 0.5, 0.6], [0.2, 0.3, 0.25]))
    with torch.no_grad():
        states = model((image - mean) / std, output_hidden_states=True).hidden_states
        stages = encoder.stages(encoder.prepare_input(image))
    for stage, state in zip(stages[:-1], states[1:4]):
        torch.testing.assert_close(stage.flatten(2), state[:, 1:].transpose(1, 2))


def test_the_same_architecture_untrained(tmp_path: Path) -> None:
    make(clip, tmp_path)
    encoder = load_encoder(f"hf:{tmp_path}")
    assert encoder.untrained == f"random:hf:{tmp_path}"
    floor = load_encoder(encoder.untrained)
    assert floor.stage_shapes == encoder.stage_shapes
    assert not torch.equal(*(next(e.trunk.parameters()) for e in (floor, encoder)))


def test_what_is_wrong_is_said(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="this folder does not exist"):
        load_encoder(f"hf:{tmp_path / 'nowhere'}")
    with pytest.raises(InputError, match=r"has no config\.json"):
        load_encoder(f"hf:{tmp_path}")
    (tmp_path / "config.json").write_text(json.dumps({"model_type": "bert"}))
    with pytest.raises(InputError, match="a model of the kind 'bert' is not known here"):
        load_encoder(f"hf:{tmp_path}")
    make(dinov2, tmp_path)
    (tmp_path / "model.safetensors").rename(tmp_path / "elsewhere")
    with pytest.raises(InputError, match="its weights cannot be read"):
        load_encoder(f"hf:{tmp_path}")
    from safetensors.torch import load_file, save_file

    state = load_file(tmp_path / "elsewhere")
    del state["layernorm.weight"]
    save_file(state, tmp_path / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(InputError, match=r"1 tensors are missing or of another shape, such as layernorm\.weight"):
        load_encoder(f"hf:{tmp_path}")


def test_weights_that_run_something_are_refused(tmp_path: Path) -> None:
    make(dinov2, tmp_path)
    (tmp_path / "model.safetensors").unlink()

    class Bomb:
        def __reduce__(self):
            return (Path(tmp_path / "exploded").touch, ())

    torch.save({"embeddings.cls_token": Bomb()}, tmp_path / "pytorch_model.bin")
    with pytest.raises(InputError, match="its weights cannot be read"):
        load_encoder(f"hf:{tmp_path}")
    assert not (tmp_path / "exploded").exists()
