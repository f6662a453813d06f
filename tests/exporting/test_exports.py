"""Encoders in other programs' files, opened here by those programs and held against the encoder."""

from __future__ import annotations

import json
import math
import sys
import zipfile
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

import frepa
import tiny_encoders  # noqa: F401 (registers them)
from frepa.encoders.contract import Encoder, Features
from frepa.encoders.files import load_encoder, save_encoder
from frepa.errors import InputError
from frepa.exporting import timm_folder
from frepa.exporting.program import _same_padding
from frepa.exporting.unguided import without_guide

VIT = "random:timm:test_vit,image_size=32"
CONVNEXT = "random:timm:test_convnext,image_size=64"


def _input(encoder: Encoder, *size: int) -> torch.Tensor:
    """Image and guide (noise, or zeros where there is none), by another seed than the export's own."""
    torch.manual_seed(7)
    image = torch.rand(1, encoder.image_channels, *size)
    return encoder.prepare_input(image, torch.rand(1, 1, *size))


@torch.no_grad()
def test_timm_opens_what_was_written(tmp_path: Path) -> None:
    import timm

    written = frepa.export(VIT, to="timm", out=str(tmp_path / "out"), quiet=True)
    model = timm.create_model(f"local-dir:{written}", pretrained=True).eval()
    encoder = load_encoder(VIT)
    x = _input(encoder, 48, 32)
    tokens = model.forward_features(x)
    dense = tokens[:, model.num_prefix_tokens :].transpose(1, 2).unflatten(2, (3, 2))
    torch.testing.assert_close(dense, encoder(x).dense, rtol=0, atol=1e-6)
    assert model.num_classes == 0
    assert model.pretrained_cfg["input_size"] == (4, 32, 32)
    assert written.difference < 1e-6
    assert written.results["input"]["channels"] == 4
    assert "frangi guide" in written.results["input"]["holds"]
    assert sorted(path.name for path in written.iterdir() if path.name[0] != ".") == [
        "config.json", "export.json", "model.safetensors",
    ]  # fmt: skip


@torch.no_grad()
def test_without_guide_timm_gets_an_input_for_the_image_alone(tmp_path: Path) -> None:
    """The norm after pooling is the map's last one here."""
    import timm

    name = f"{CONVNEXT},guide=none"
    written = frepa.export(name, to="timm", out=str(tmp_path / "out"), quiet=True)
    model = timm.create_model(f"local-dir:{written}", pretrained=True).eval()
    encoder = load_encoder(name)
    x = _input(encoder, 64, 96)
    dense = model.head.norm(model.forward_features(x[:, :3]))
    torch.testing.assert_close(dense, encoder(x).dense, rtol=0, atol=1e-5)


@torch.no_grad()
def test_a_foreign_trunks_scaling_is_in_timms_configuration(tmp_path: Path) -> None:
    import timm

    torch.manual_seed(1)
    trunk = timm.create_model("test_vit", num_classes=0)
    torch.save(trunk.state_dict(), tmp_path / "weights.pth")
    name = f"timm:test_vit@{tmp_path / 'weights.pth'},image_size=32,mean=0.1/0.2/0.3,std=0.4/0.5/0.6"
    written = frepa.export(name, to="timm", out=str(tmp_path / "out"), quiet=True)
    model = timm.create_model(f"local-dir:{written}", pretrained=True).eval()
    config = timm.data.resolve_model_data_config(model)
    transform = timm.data.create_transform(**config)
    image = torch.rand(3, 32, 32)
    encoder = load_encoder(name)
    found = model.forward_features(transform(image)[None])[:, 1:].transpose(1, 2).unflatten(2, (2, 2))
    wanted = encoder(encoder.prepare_input(image[None])).dense
    torch.testing.assert_close(found, wanted, rtol=0, atol=1e-5)


@torch.no_grad()
def test_transformers_opens_what_was_written(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """A picture through the folder's own processor and model gives what the encoder gives for it."""
    import transformers

    name = f"{CONVNEXT},guide=none"
    written = frepa.export(name, to="huggingface", out=str(tmp_path / "out"))
    assert "before the last norm: model.head.norm (model.timm_model.head.norm)" in capsys.readouterr().out
    processor = transformers.AutoImageProcessor.from_pretrained(written)
    model = transformers.AutoModel.from_pretrained(written).eval()
    pixels = np.random.default_rng(0).integers(0, 256, (64, 64, 3), dtype=np.uint8)
    found = model.timm_model.head.norm(model(**processor(Image.fromarray(pixels))).last_hidden_state)
    encoder = load_encoder(name)
    image = torch.from_numpy(pixels).permute(2, 0, 1)[None] / 255
    torch.testing.assert_close(found, encoder(encoder.prepare_input(image)).dense, rtol=0, atol=1e-5)


@torch.no_grad()
def test_what_came_from_hugging_face_goes_back_as_its_own_class(tmp_path: Path) -> None:
    import transformers

    config = transformers.Dinov2Config(
        hidden_size=16, num_hidden_layers=2, num_attention_heads=2, image_size=28, patch_size=14
    )
    torch.manual_seed(3)
    transformers.Dinov2Model(config).save_pretrained(tmp_path / "dino")
    processor = transformers.BitImageProcessor(image_mean=[0.1, 0.2, 0.3], image_std=[0.4, 0.5, 0.6])
    processor.save_pretrained(tmp_path / "dino")
    name = f"hf:{tmp_path / 'dino'}"
    written = frepa.export(name, to="huggingface", out=str(tmp_path / "out"), quiet=True)
    model = transformers.AutoModel.from_pretrained(written).eval()
    processor = transformers.AutoImageProcessor.from_pretrained(written)
    assert type(model).__name__ == "Dinov2Model"
    pixels = np.random.default_rng(0).integers(0, 256, (28, 28, 3), dtype=np.uint8)
    tokens = model(**processor(Image.fromarray(pixels), return_tensors="pt")).last_hidden_state
    encoder = load_encoder(name)
    image = torch.from_numpy(pixels).permute(2, 0, 1)[None] / 255
    wanted = encoder(encoder.prepare_input(image)).dense.flatten(2).transpose(1, 2)
    torch.testing.assert_close(tokens[:, 1:], wanted, rtol=0, atol=1e-5)
    assert not list(Path(written).glob("*.bin"))
    with pytest.raises(InputError, match=r"--image-size 56: .* 28 pixels per side\. Leave the option out"):
        frepa.export(name, to="huggingface", out=str(tmp_path / "other"), image_size=56)


@pytest.mark.parametrize(("name", "with_guide"), [
    (VIT, False), ("random:tiny_for_tests,guide=none", False), ("random:tiny_for_tests,guide=frangi_dark:0.6", True),
    ("slices:random:tiny_for_tests,width=8,heads=2,rounds=1,chunk=3", False),
    ("random:timm:test_convnext,output_stride=8", False),  # dilated: timm pads by ceil(extent / stride)
    pytest.param("random:timm:tf_efficientnet_lite0", False, marks=pytest.mark.slow),  # strides pad so, five times
    pytest.param("random:tiny3d_for_tests", False, marks=pytest.mark.slow),
])  # fmt: skip
@torch.no_grad()
def test_torch_opens_what_was_written_at_other_sizes(tmp_path: Path, name: str, with_guide: bool) -> None:
    written = frepa.export(name, to="torch", out=str(tmp_path / "out"), with_guide=with_guide, quiet=True)
    program = torch.export.load(written / "encoder.pt2").module()
    encoder = load_encoder(name)
    x = _input(encoder, *(32, 96, 64)[-encoder.dims :])
    image = x[:, : encoder.image_channels]
    if with_guide:
        x = encoder.prepare_input(image, encoder.make_guide(image))
    given = x if encoder.guide != "none" and not with_guide else image
    torch.testing.assert_close(program(given)[0], encoder(x).dense, rtol=0, atol=1e-4 if with_guide else 1e-6)
    with zipfile.ZipFile(written / "encoder.pt2") as archive:  # a pickle begins with its protocol
        held = {item: archive.read(item)[:2] for item in archive.namelist() if "/weights/" not in item}
    assert not [item for item, begin in held.items() if begin[:1] == b"\x80" or begin == b"PK"]


def test_padding_in_whole_numbers_is_timms() -> None:
    from itertools import product

    from timm.layers.padding import get_same_padding

    for extent, kernel, stride, dilation in product(range(1, 40), (1, 2, 3, 5), (1, 2, 3, 4), (1, 2)):
        given = (extent, kernel, stride, dilation)
        assert _same_padding(*given) == get_same_padding(*given), given


@torch.no_grad()
def test_what_torch_cannot_write_for_any_size_is_written_for_one(tmp_path: Path, monkeypatch) -> None:
    """Extents may go through functions that torch traces and has no word for in its files, such as ceil."""
    encoder = load_encoder("random:tiny_for_tests,guide=none")

    def halves(self, x: torch.Tensor) -> Features:
        y = self.trunk(x)
        y = y * (math.ceil(x.shape[-1] / 3) / x.shape[-1])
        return Features(y, y)

    monkeypatch.setattr(type(encoder), "extract", halves)
    written = frepa.export("random:tiny_for_tests,guide=none", to="torch", out=str(tmp_path), image_size=32, quiet=True)
    assert "any number of images of 32 x 32" in written.results["input"]["sizes"]
    x = _input(encoder, 32, 32)
    program = torch.export.load(written / "encoder.pt2").module()
    torch.testing.assert_close(program(x[:, :3])[0], encoder(encoder.prepare_input(x[:, :3])).dense)


@torch.no_grad()
def test_attention_in_windows_makes_a_program_for_one_size(tmp_path: Path) -> None:
    name = "random:swin_torchvision,width=8,depths=[1,1],heads=[2,2],window=2"
    written = frepa.export(name, to="torch", out=str(tmp_path / "out"), image_size=32, quiet=True)
    program = torch.export.load(written / "encoder.pt2").module()
    encoder = load_encoder(name)
    x = _input(encoder, 32, 32)
    torch.testing.assert_close(program(x)[0], encoder(x).dense, rtol=0, atol=1e-6)
    assert "any number of images of 32 x 32" in written.results["input"]["sizes"]
    with pytest.raises(RuntimeError):
        program(_input(encoder, 48, 48))
    with pytest.raises(InputError, match=r"--image-size 30: .* multiples of 8 pixels\. Give 32"):
        frepa.export(name, to="torch", out=str(tmp_path / "other"), image_size=30)


@pytest.mark.parametrize("with_guide", [False, pytest.param(True, marks=pytest.mark.slow)])
@torch.no_grad()
def test_onnxruntime_opens_what_was_written_at_other_sizes(tmp_path: Path, with_guide: bool) -> None:
    """With the guide inside, the image is all that it takes."""
    import onnxruntime

    name = "random:tiny_for_tests,guide=frangi_dark:0.5-0.8" if with_guide else "random:tiny_for_tests"
    encoder = load_encoder(name)
    written = frepa.export(name, to="onnx", out=str(tmp_path / "out"), with_guide=with_guide, quiet=True)
    session = onnxruntime.InferenceSession(str(written / "encoder.onnx"), providers=["CPUExecutionProvider"])
    x = _input(encoder, 24, 32)
    if with_guide:
        x = encoder.prepare_input(x[:, :3], encoder.make_guide(x[:, :3]))
    (dense,) = session.run(["dense"], {"image": (x[:, :3] if with_guide else x).numpy()})
    torch.testing.assert_close(torch.from_numpy(dense), encoder(x).dense, rtol=0, atol=1e-4)
    assert ("made inside" in written.results["input"]["holds"]) == with_guide


def test_a_guide_that_cannot_be_made_inside(tmp_path: Path) -> None:
    def refused(name: str, to: str, words: str) -> None:
        with pytest.raises(InputError, match=f"--with-guide: .*{words}"):
            frepa.export(name, to=to, out=str(tmp_path / "out"), with_guide=True)  # type: ignore[arg-type]

    refused(VIT, "timm", "holds the network alone.*use --to onnx or --to torch")
    refused("random:tiny_for_tests,guide=none", "torch", "has no guide")
    refused(VIT.replace("vit,", "vit,guide=frangi:30,"), "torch", "looks 149 pixels to either side")
    refused("slices:random:tiny_for_tests,width=8,heads=2,rounds=1", "torch", "slice by slice")


def test_a_result_shows_its_differences(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    written = frepa.export(VIT, to="timm", out=str(tmp_path / "out"))
    said = capsys.readouterr().out
    assert "opened again by timm" in said
    assert "Largest difference: dense" in said
    assert "guide of the clean image as channel 4" in said
    rows = written.scores.to_pylist()
    assert [row["score"] for row in rows] == ["dense, largest difference", "forward_features, largest difference"]
    assert written.results == json.loads((written / "export.json").read_text())
    assert "largest difference" in written._repr_html_()


@torch.no_grad()
def test_the_channel_of_zeros_can_be_left_out() -> None:
    encoder = load_encoder("random:vit3d_tiny,guide=none,image_size=16,patch_size=8,depth=1")
    slim = without_guide(encoder)
    assert slim.trunk.patch_embedding.patch_embeddings.in_channels == 1
    x = _input(encoder, 16, 8, 24)
    torch.testing.assert_close(slim(x).dense, encoder(x).dense, rtol=0, atol=1e-5)
    guided = load_encoder("random:tiny_for_tests")
    assert without_guide(guided) is guided


REFUSED = {
    "random:vit3d_tiny,image_size=32": r"it holds 2D networks of timm, and .* is a 3D one.*Use --to onnx or --to torch",
    "random:timm:test_vit,image_size=32,neck=8": "has a neck behind its trunk",
    "random:timm:test_convnext,final_norm=false": "has no final norm",
    "random:tiny_for_tests": "is of another family",
}


@pytest.mark.parametrize("name", REFUSED)
def test_what_timm_cannot_express_is_refused(tmp_path: Path, name: str) -> None:
    with pytest.raises(InputError, match=REFUSED[name]):
        frepa.export(name, to="timm", out=str(tmp_path / "out"))
    assert not (tmp_path / "out").exists()


def test_wrong_words(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    out = str(tmp_path / "out")
    with pytest.raises(InputError, match=r"--to onx: not a kind of export. Did you mean onnx\?"):
        frepa.export(VIT, to="onx", out=out)  # type: ignore[arg-type]
    with pytest.raises(InputError, match="nowhere was not found"):
        frepa.export("nowhere", to="timm", out=out)
    monkeypatch.setitem(sys.modules, "onnxruntime", None)
    with pytest.raises(InputError, match=r"needs the package onnxruntime.*pip install 'frepa\[export\]'"):
        frepa.export(VIT, to="onnx", out=out)
    assert not Path(out).exists()


def test_an_export_that_differs_is_refused_and_the_earlier_one_stays(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    out = tmp_path / "out"
    frepa.export(VIT, to="timm", out=str(out), quiet=True)
    before = {path.name: path.read_bytes() for path in out.iterdir()}
    with pytest.raises(InputError, match="a run is there already"):
        frepa.export(VIT, to="timm", out=str(out))

    def shifted(encoder, folder, asked):
        exported = timm_folder.write(encoder, folder, asked)
        return replace(exported, run=lambda x: {name: y + 0.01 for name, y in exported.run(x).items()})

    monkeypatch.setattr(timm_folder, "TARGET", replace(timm_folder.TARGET, write=shifted))
    with pytest.raises(InputError, match=r"does not give what the encoder gives: dense differs by 0\.01"):
        frepa.export(f"{VIT},seed=1", to="timm", out=str(out), overwrite=True)
    assert {path.name: path.read_bytes() for path in out.iterdir()} == before

    def broken(encoder, folder, asked):
        return replace(timm_folder.write(encoder, folder, asked), run=lambda x: {"dense": x.reshape(1, 7)})

    monkeypatch.setattr(timm_folder, "TARGET", replace(timm_folder.TARGET, write=broken))
    with pytest.raises(InputError, match=r"does not run for an input of 2 x 4 x 32 x 32 \(.*\), and nothing was kept"):
        frepa.export(VIT, to="timm", out=str(out), overwrite=True)
    assert {path.name: path.read_bytes() for path in out.iterdir()} == before
    monkeypatch.undo()
    save_encoder(tmp_path / "encoder", load_encoder(f"{VIT},seed=1"))
    frepa.export(str(tmp_path / "encoder"), to="timm", out=str(out), overwrite=True, quiet=True)
    assert (out / "model.safetensors").read_bytes() != before["model.safetensors"]
