"""Encoders of volumes as MONAI bundles and as nnU-Net's checkpoints."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch

import frepa
from frepa.encoders.files import load_encoder, save_encoder
from frepa.encoders.registry import build_encoder
from frepa.errors import InputError

VIT = "random:vit3d_tiny,image_size=16,patch_size=8,depth=1"
RESENC = "random:resenc_tiny"


def _volume(channels: int, *size: int) -> torch.Tensor:
    torch.manual_seed(5)
    return torch.rand(1, channels, *size)


@pytest.mark.parametrize(
    ("name", "channels", "side"),
    [
        ("random:mednext_tiny,guide=none", 1, 32),
        (VIT, 2, 24),
        pytest.param("random:swinunetr_tiny", 2, 64, marks=pytest.mark.slow),
    ],
)
@torch.no_grad()
def test_monai_builds_the_network_of_a_bundle(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str, channels: int, side: int
) -> None:
    """From within the bundle's folder, as MONAI's commands are called."""
    from monai.bundle import ConfigParser, verify_net_in_out

    packed = name == VIT  # for another size than its own
    written = frepa.export(name, to="monai", out=str(tmp_path / "out"), image_size=side, quiet=True)
    monkeypatch.chdir(written)
    parser = ConfigParser()
    parser.read_config("configs/inference.json")
    network = parser.get_parsed_content("network").cpu()
    encoder = load_encoder(name)
    x = _volume(channels, *(side,) * 3 if packed else (side, side // 2, side // 2))
    whole = x if encoder.guide != "none" else encoder.prepare_input(x)
    found = network(x)
    if packed:
        found = found[0].transpose(1, 2).unflatten(2, (3, 3, 3))
    else:
        files = {"meta_file": "configs/metadata.json", "config_file": "configs/inference.json"}
        verify_net_in_out("network", **files, device="cpu")
    torch.testing.assert_close(found, encoder(whole).dense, rtol=0, atol=1e-5)
    said = json.loads((written / "configs/metadata.json").read_text())
    image = said["network_data_format"]["inputs"]["image"]
    assert image["num_channels"] == channels
    assert ("frangi guide of the clean image" in image["channel_def"].values()) == (channels == 2)
    assert {"version", "monai_version", "task", "description", "authors", "copyright", "schema"} <= said.keys()


# The fields of nnssl's dataclasses, whose constructors take these and no others
ADAPTATION = {
    "architecture_plans", "pretrain_plan", "pretrain_num_input_channels", "recommended_downstream_patchsize",
    "key_to_encoder", "key_to_stem", "keys_to_in_proj", "key_to_lpe",
}  # fmt: skip
ARCHITECTURE = {"arch_class_name", "arch_kwargs", "arch_kwargs_requiring_import"}
LAYERS = {
    "n_stages", "features_per_stage", "conv_op", "kernel_sizes", "strides", "n_blocks_per_stage",
    "n_conv_per_stage_decoder", "conv_bias", "norm_op", "norm_op_kwargs", "dropout_op", "dropout_op_kwargs", "nonlin",
    "nonlin_kwargs",
}  # fmt: skip
PRETRAINING = {
    "dataset_name", "plans_name", "original_median_spacing_after_transp", "image_reader_writer", "transpose_forward",
    "transpose_backward", "experiment_planner_used", "configurations",
}  # fmt: skip
CONFIGURATION = {
    "data_identifier", "preprocessor_name", "spacing_style", "normalization_schemes", "use_mask_for_norm",
    "resampling_fn_data", "resampling_fn_data_kwargs", "resampling_fn_mask", "resampling_fn_mask_kwargs", "spacing",
    "patch_size",
}  # fmt: skip


def _check_fields(plan: dict) -> None:
    """Every field of nnssl's plan and no other, and one value per channel and axis."""
    assert plan.keys() == ADAPTATION
    assert plan["architecture_plans"].keys() == ARCHITECTURE
    assert plan["pretrain_plan"].keys() == PRETRAINING
    ((style, configuration),) = plan["pretrain_plan"]["configurations"].items()
    assert configuration.keys() == CONFIGURATION
    assert configuration["spacing_style"] == style
    assert configuration["data_identifier"].endswith(f"_{style}")
    channels = plan["pretrain_num_input_channels"]
    assert len(configuration["normalization_schemes"]) == len(configuration["use_mask_for_norm"]) == channels
    options = plan["architecture_plans"]["arch_kwargs"]
    if options is not None:
        assert options.keys() == LAYERS
        per_stage = ("features_per_stage", "kernel_sizes", "strides", "n_blocks_per_stage")
        assert {len(options[name]) for name in per_stage} == {options["n_stages"]}
        assert len(options["n_conv_per_stage_decoder"]) == options["n_stages"] - 1
        assert {len(step) for name in ("kernel_sizes", "strides") for step in options[name]} == {3}
        named = [key for key in LAYERS if isinstance(options[key], str)]
        assert sorted(plan["architecture_plans"]["arch_kwargs_requiring_import"]) == sorted(named)


def _take(network, checkpoint: dict, channels: int) -> None:
    """Stem and stages of a checkpoint into nnU-Net's network, by nnssl's rules.

    What lies under a key of the plan goes to the network's own place for it, all of it; for more channels than the
    pretraining had, the first layer's weights are repeated and divided by their number, under each name it goes by.
    """
    plan, weights = checkpoint["nnssl_adaptation_plan"], dict(checkpoint["network_weights"])
    known = plan["pretrain_num_input_channels"]
    if channels > known:
        for key in plan["keys_to_in_proj"]:
            weights[f"{key}.weight"] = weights[f"{key}.weight"].repeat(1, channels, 1, 1, 1) / channels
    for key, own in ((plan["key_to_encoder"], network.key_to_encoder), (plan["key_to_stem"], network.key_to_stem)):
        part = {name[len(key) + 1 :]: value for name, value in weights.items() if name.startswith(key)}
        network.get_submodule(own).load_state_dict(part, strict=True)


@pytest.mark.parametrize("guide", ["none", "frangi"])
@torch.no_grad()
def test_nnunets_network_takes_stem_and_stages(tmp_path: Path, guide: str) -> None:
    from pydoc import locate

    from dynamic_network_architectures.architectures.unet import ResidualEncoderUNet
    from dynamic_network_architectures.building_blocks.helper import convert_dim_to_conv_op

    save_encoder(tmp_path / "encoder", load_encoder(f"{RESENC},guide={guide}"), {"spacing": 1.0})
    source = str(tmp_path / "encoder")
    written = frepa.export(source, to="nnunet", out=str(tmp_path / "out"), image_size=16, quiet=True)
    checkpoint = torch.load(written / "checkpoint_final.pth", weights_only=True)
    plan = checkpoint["nnssl_adaptation_plan"]
    assert json.loads((written / "adaptation_plan.json").read_text()) == {**plan, "trainer_name": "frepa"}
    _check_fields(plan)
    (configuration,) = plan["pretrain_plan"]["configurations"].values()
    assert configuration["spacing"] == [1.0, 1.0, 1.0]
    assert configuration["patch_size"] == plan["recommended_downstream_patchsize"] == [16, 16, 16]
    about = plan["architecture_plans"]
    assert about["arch_class_name"] == "ResidualEncoderUNet"
    options = about["arch_kwargs"]
    options |= {key: locate(options[key]) for key in about["arch_kwargs_requiring_import"]}
    assert options["conv_op"] is convert_dim_to_conv_op(3)

    encoder = load_encoder(source)
    channels = plan["pretrain_num_input_channels"]
    assert channels == (1 if guide == "none" else 2)
    x = _volume(channels, 16, 24, 16)
    wanted = encoder(encoder.prepare_input(x[:, :1], x[:, 1:] if channels == 2 else None)).embedding
    network = ResidualEncoderUNet(input_channels=channels, num_classes=3, **options)
    _take(network, checkpoint, channels)
    torch.testing.assert_close(network.encoder(x)[-1], wanted, rtol=0, atol=1e-5)
    assert network(x).shape == (1, 3, 16, 24, 16)
    if guide == "none":  # three channels that hold the same
        network = ResidualEncoderUNet(input_channels=3, num_classes=3, **options)
        _take(network, checkpoint, 3)
        torch.testing.assert_close(network.encoder(x.expand(-1, 3, -1, -1, -1))[-1], wanted, rtol=0, atol=1e-4)


def test_the_large_one_is_nnunets_preset() -> None:
    from dynamic_network_architectures.architectures.unet import ResidualEncoderUNet

    from frepa.exporting.nnunet_plan import adaptation_plan

    with torch.device("meta"):
        encoder = build_encoder("resenc_large", guide="none")
    plan = adaptation_plan(encoder, (160, 160, 160))  # type: ignore[arg-type]
    _check_fields(plan)
    assert plan["architecture_plans"] == {
        "arch_class_name": "ResEncL", "arch_kwargs": None, "arch_kwargs_requiring_import": None,
    }  # fmt: skip
    assert list(plan["pretrain_plan"]["configurations"]) == ["noresample"]
    names = encoder.trunk.state_dict()
    for key in plan["keys_to_in_proj"]:
        assert names[f"{key}.weight"].shape == (32, plan["pretrain_num_input_channels"], 3, 3, 3)
    # The preset as nnU-Net builds it, whose encoder has 448 tensors in the checkpoints that were published of it
    with torch.device("meta"):
        preset = ResidualEncoderUNet(
            plan["pretrain_num_input_channels"], 6, (32, 64, 128, 256, 320, 320), torch.nn.Conv3d, 3,
            (1, 2, 2, 2, 2, 2), (1, 3, 4, 6, 6, 6), 2, (1, 1, 1, 1, 1), True, torch.nn.InstanceNorm3d,
            {"eps": 1e-5, "affine": True}, None, None, torch.nn.LeakyReLU, {"inplace": True},
        )  # fmt: skip
    theirs = {key: value.shape for key, value in preset.state_dict().items() if key.startswith("encoder.")}
    assert len(theirs) == 448
    assert {key: value.shape for key, value in names.items() if key.startswith("encoder.")} == theirs


@pytest.mark.parametrize(("to", "name", "words"), [
    ("monai", RESENC, "a bundle names a network of MONAI"),
    ("monai", "random:timm:test_vit,image_size=32", "a bundle names a network of MONAI"),
    ("nnunet", VIT, "nnU-Net fine-tunes its own networks"),
    ("huggingface", VIT, "2D networks of timm and of transformers"),
])  # fmt: skip
def test_what_a_kind_cannot_express_is_refused(tmp_path: Path, to, name: str, words: str) -> None:
    with pytest.raises(InputError, match=f"--to {to}: .*{words}.*--to onnx or --to torch"):
        frepa.export(name, to=to, out=str(tmp_path / "out"))
    assert not (tmp_path / "out").exists()
