from __future__ import annotations

import json
from pathlib import Path

import pytest
import timm
import torch
from safetensors.torch import load_file, save_file

from frepa.corruption.guide import hessian_guide
from frepa.encoders.contract import Encoder
from frepa.encoders.files import describe, load_encoder, read_description, save_encoder
from frepa.encoders.options import join_options, split_options
from frepa.encoders.registry import build_encoder
from frepa.errors import InputError


@pytest.fixture(scope="module")
def encoder() -> Encoder:
    torch.manual_seed(3)
    return build_encoder("convnext_atto", output_stride=16, guide="hessian", image_channels=1).eval()


@pytest.fixture(scope="module")
def folder(encoder: Encoder, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("run")
    save_encoder(folder, encoder, {"method": "frepa"})
    return folder


def test_roundtrip_is_bit_exact(encoder: Encoder, folder: Path) -> None:
    x = torch.rand(1, 2, 50, 33)
    for source in (folder, folder / "encoder.safetensors", str(folder)):
        loaded = load_encoder(source)
        assert not loaded.training
        assert describe(loaded) == describe(encoder)
        assert loaded.config == encoder.config
        with torch.no_grad():
            assert torch.equal(loaded(x).dense, encoder(x).dense)


def test_the_file_alone_is_enough_and_is_not_pickle(folder: Path, tmp_path: Path) -> None:
    path = tmp_path / "renamed.safetensors"
    path.write_bytes((folder / "encoder.safetensors").read_bytes())
    assert load_encoder(path).guide == "hessian"
    # A safetensors file is the length of a JSON header, the header, and raw numbers: nothing that can be run.
    content = path.read_bytes()
    length = int.from_bytes(content[:8], "little")
    header = json.loads(content[8 : 8 + length])
    sizes = [entry["data_offsets"][1] for key, entry in header.items() if key != "__metadata__"]
    assert 8 + length + max(sizes) == len(content)


@pytest.mark.parametrize("guide", ["frangi_dark", "hessian_bright", "frangi_dark:1-2", "none"])
def test_polarity_and_scales_of_the_guide_are_in_the_file_and_fed_downstream(guide: str, tmp_path: Path) -> None:
    save_encoder(tmp_path, load_encoder(f"random:timm:test_convnext,guide={guide}"), {})
    loaded = load_encoder(tmp_path)
    assert loaded.guide == json.loads((tmp_path / "encoder.json").read_text())["contract"]["guide"] == guide
    x = torch.rand(1, 3, 24, 20)
    kind, _, scales = guide.partition(":")
    sigmas = [float(scale) for scale in scales.split("-")] if scales else None
    assert torch.equal(loaded.make_guide(x), hessian_guide(x, kind=kind, sigmas=sigmas))
    assert (guide == "none") == (float(loaded.make_guide(x).max()) == 0)


def test_json_beside_it_says_the_same(encoder: Encoder, folder: Path) -> None:
    written = json.loads((folder / "encoder.json").read_text())
    assert written == read_description(folder / "encoder.safetensors")
    assert written["extra"] == {"method": "frepa"}
    assert written["contract"]["stride"] == 16
    assert written["contract"]["parameters"] == sum(p.numel() for p in encoder.parameters())


def test_files_keep_the_umask_and_leave_nothing_behind(folder: Path) -> None:
    (folder / "plain").touch()
    mode = (folder / "plain").stat().st_mode
    (folder / "plain").unlink()
    assert sorted(path.name for path in folder.iterdir()) == ["encoder.json", "encoder.safetensors"]
    assert {path.stat().st_mode for path in folder.iterdir()} == {mode}


def test_loading_leaves_the_random_stream_alone(folder: Path) -> None:
    torch.manual_seed(1)
    expected = torch.rand(3)
    torch.manual_seed(1)
    load_encoder(folder)
    load_encoder("random:convnext_atto")
    assert torch.equal(torch.rand(3), expected)


def test_random_specifications() -> None:
    first = load_encoder("random:convnext_atto,guide=none,output_stride=8")
    again = load_encoder("random:convnext_atto,guide=none,output_stride=8")
    other = load_encoder("random:convnext_atto,guide=none,output_stride=8,seed=1")
    assert (first.guide, first.stride, first.training) == ("none", 8, False)
    weights = [encoder.state_dict()["trunk.stem.0.weight"] for encoder in (first, again, other)]
    assert torch.equal(weights[0], weights[1])
    assert not torch.equal(weights[0], weights[2])


def test_options_of_a_specification_survive_the_round_trip() -> None:
    options = {"output_stride": 8, "guide": "none", "download": True, "mean": [0.5, 0.25], "rate": 0.1}
    assert split_options(join_options("convnext_atto", options)) == ("convnext_atto", options)
    assert split_options("convnext_atto") == ("convnext_atto", {})
    assert split_options("timm:x@a,b/c.pt,mean=[1,2],std=0.5/0.25") == (
        "timm:x@a,b/c.pt",
        {"mean": [1, 2], "std": [0.5, 0.25]},
    )


def test_the_spelling_that_shells_touch_is_refused_with_the_new_one() -> None:
    with pytest.raises(InputError, match=r"convnext_atto,output_stride=8,guide=none$"):
        load_encoder("random:convnext_atto?output_stride=8&guide=none")


def test_half_an_encoder_is_refused(folder: Path, tmp_path: Path) -> None:
    content = (folder / "encoder.safetensors").read_bytes()
    (tmp_path / "encoder.safetensors").write_bytes(content[: len(content) // 2])
    with pytest.raises(InputError, match="cut short"):
        load_encoder(tmp_path)


def test_newer_format_is_refused(folder: Path, tmp_path: Path) -> None:
    description = {**read_description(folder / "encoder.safetensors"), "format": 99}
    path = tmp_path / "encoder.safetensors"
    save_file(load_file(folder / "encoder.safetensors"), path, metadata={"frepa": json.dumps(description)})
    with pytest.raises(InputError, match=r"format 99.*newer frepa"):
        load_encoder(path)


@pytest.mark.parametrize("found", [-1, 0, True, None])
def test_a_format_that_there_never_was_is_refused(folder: Path, tmp_path: Path, found: object) -> None:
    description = {**read_description(folder / "encoder.safetensors"), "format": found}
    if found is None:
        del description["format"]
    path = tmp_path / "encoder.safetensors"
    save_file(load_file(folder / "encoder.safetensors"), path, metadata={"frepa": json.dumps(description)})
    with pytest.raises(InputError, match=r"damaged.*Save the encoder again") as caught:
        load_encoder(path)
    assert str(path) in str(caught.value)


def test_weights_of_another_size_are_refused(folder: Path, tmp_path: Path) -> None:
    description = read_description(folder / "encoder.safetensors")
    description["encoder"]["image_channels"] = 3
    path = tmp_path / "encoder.safetensors"
    save_file(load_file(folder / "encoder.safetensors"), path, metadata={"frepa": json.dumps(description)})
    with pytest.raises(InputError, match=r"do not fit.*stem"):
        load_encoder(path)


def test_wrong_sources_are_named(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="was not found"):
        load_encoder(tmp_path / "missing")
    with pytest.raises(InputError, match=r"has no encoder\.safetensors"):
        load_encoder(tmp_path)
    text = tmp_path / "notes.txt"
    text.write_text("not an encoder")
    with pytest.raises(InputError, match="not a safetensors file"):
        load_encoder(text)
    foreign = tmp_path / "weights.safetensors"
    save_file({"a": torch.zeros(1)}, foreign)
    with pytest.raises(InputError, match="timm:NAME@"):
        load_encoder(foreign)
    with pytest.raises(InputError, match="Did you mean convnext_atto"):
        load_encoder("random:convnext_ato")
    with pytest.raises(InputError, match="Did you mean output_stride"):
        load_encoder("random:convnext_atto,outputstride=8")


def test_a_vit_of_fewer_blocks_is_the_first_blocks_of_the_whole_one():
    """Against timm's own model of that depth; kept in its file and asked for by --encoder alike."""
    encoder = build_encoder("vit_tiny", depth=2, guide="none", uses_guide=False, image_size=32).eval()
    own = timm.create_model("vit_tiny_patch16_224", depth=2, num_classes=0, img_size=32).eval()
    own.load_state_dict(encoder.trunk.state_dict())
    image = torch.rand(1, 4, 32, 32)  # the guide's channel is dropped
    with torch.no_grad():
        expected = own.forward_features(image[:, :3])[:, 1:]
        torch.testing.assert_close(encoder(image).dense.flatten(2).mT, expected)
    assert encoder.options["depth"] == 2
    with pytest.raises(InputError, match="has no option 'depth'"):
        build_encoder("convnext_atto", depth=2)
