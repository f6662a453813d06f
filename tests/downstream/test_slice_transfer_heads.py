"""Segmentation with a 2D encoder carried to volumes: what trains, what is saved, what is cached."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file

import tiny_encoders  # noqa: F401 (registers them)
from frepa.downstream.segmentation.model import load_segmenter
from frepa.downstream.trained import load_head
from frepa.encoders.feature_cache import FeatureCache
from frepa.encoders.files import absolute, load_encoder, method_of, save_encoder
from frepa.encoders.reference import open_encoder, trained_names, weights_hash
from frepa.encoders.slice_transfer import SliceTransfer
from frepa.errors import InputError
from frepa.verbs.segment import segment

OPTIONS = "rounds=1,width=8,heads=2,chunk=3"
ENCODER = f"slices:random:tiny_for_tests,{OPTIONS}"
QUICK = {"batch_size": 2, "max_steps": 12, "lr": 1e-2, "quiet": True, "val_every": 6, "loss": "dice_ce"}


@pytest.fixture(scope="module")
def volumes(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Six volumes of several depths with a bright box, in the layout of the decathlon."""
    root = tmp_path_factory.mktemp("volumes") / "set"
    for folder in ("imagesTr", "labelsTr"):
        (root / folder).mkdir(parents=True)
    rng = np.random.default_rng(0)
    for i in range(6):
        mask = np.zeros((4 + i % 3, 12, 14), np.uint8)
        mask[1:-1, 3 : 8 + i % 2, 4:10] = 1
        np.save(root / "imagesTr" / f"v{i}.npy", (100.0 * mask + rng.normal(0, 5, mask.shape)).astype(np.float32))
        np.save(root / "labelsTr" / f"v{i}.npy", mask)
    return root


@pytest.fixture(scope="module")
def run(volumes: Path) -> Path:
    return segment([str(volumes)], encoder=ENCODER, out=str(volumes.parent / "run"), **QUICK)


def test_blocks_train_and_the_2d_encoder_does_not(run: Path) -> None:
    fresh, reference = open_encoder(ENCODER)
    trained = load_segmenter(run).encoder
    names = trained_names(trained)
    assert names
    assert not [name for name in names if name.startswith("encoder2d.")]
    before, after = fresh.state_dict(), trained.state_dict()
    for name in before:
        assert torch.equal(before[name], after[name]) == (name not in names), name
    assert (
        weights_hash(trained) == reference.weights == json.loads((run / "head.json").read_text())["encoder"]["weights"]
    )
    assert reference.trained == sum(before[name].numel() for name in names)
    saved = {name.removeprefix("encoder.") for name in load_file(run / "head.safetensors") if "encoder." in name}
    assert saved == names


def test_no_gradient_is_kept_for_the_2d_encoder(run: Path) -> None:
    segmenter = load_segmenter(run)
    segmenter.train()
    segmenter(torch.rand(1, 2, 3, 12, 14)).square().mean().backward()
    encoder = segmenter.encoder
    assert isinstance(encoder, SliceTransfer)
    assert all(parameter.grad is None for parameter in encoder.encoder2d.parameters())
    assert not encoder.encoder2d.training
    assert all(parameter.grad is not None for parameter in segmenter.trained_parameters())
    everything = {id(parameter) for parameter in encoder.encoder2d.parameters()}
    assert not everything & {id(parameter) for parameter in segmenter.trained_parameters()}


def test_slices_pass_the_2d_encoder_in_chunks(run: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    segmenter = load_segmenter(run)
    assert isinstance(segmenter.encoder, SliceTransfer)
    seen: list[int] = []
    segmenter.encoder.encoder2d.register_forward_pre_hook(lambda _, inputs: seen.append(len(inputs[0])))
    segmenter.predict(np.random.default_rng(0).random((1, 7, 12, 14), dtype=np.float32))
    assert sum(seen) >= 7
    assert max(seen) == 3


def test_a_saved_transfer_predicts_what_the_run_did(run: Path, volumes: Path) -> None:
    import nibabel

    path = next((run / "predictions" / "set").iterdir())
    name = path.name.removesuffix(".nii.gz")
    found = load_head(run).predict(volumes / "imagesTr" / f"{name}.npy")
    saved = np.asarray(nibabel.load(path).dataobj).T  # z, y, x
    np.testing.assert_array_equal(found.mask, saved)


def test_a_small_volume_is_predicted_where_training_laid_it(run: Path) -> None:
    """Blocks know positions: zeros follow a volume that is smaller than the window, in training and prediction."""
    segmenter = load_segmenter(run)
    assert segmenter.settings.crop == (6, 12, 14)
    volume = torch.rand(1, 4, 11, 12)
    guide = segmenter.guide(volume)
    padded = [torch.nn.functional.pad(x, (0, 2, 0, 1, 0, 2)) for x in (volume, guide)]
    with torch.no_grad():
        inputs = segmenter.encoder.prepare_input(padded[0][None], padded[1][None])
        expected = segmenter(inputs).softmax(1)[0, :, :4, :11, :12]
    torch.testing.assert_close(segmenter.window_probabilities(volume, guide), expected)


def test_other_blocks_are_refused(run: Path) -> None:
    with pytest.raises(InputError, match="trained blocks in the head file do not fit"):
        load_segmenter(run, encoder=ENCODER.replace("width=8", "width=16"))
    with pytest.raises(InputError, match="not the encoder that the head was trained on"):
        load_segmenter(run, encoder=f"{ENCODER},seed=1")


def test_the_guide_is_filtered_slice_by_slice(run: Path) -> None:
    segmenter = load_segmenter(run)
    image = torch.rand(1, 3, 12, 14)
    alone = [segmenter.encoder.encoder2d.make_guide(image[None, :, i])[0] for i in range(3)]  # type: ignore[union-attr]
    torch.testing.assert_close(segmenter.guide(image), torch.stack(alone, dim=1))


def test_features_are_computed_once_and_read_afterwards(volumes: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    cache, root = volumes.parent / "cache", volumes.parent
    computed: list[int] = []
    encode = SliceTransfer.encode_slices

    def counted(self: SliceTransfer, volume: torch.Tensor) -> torch.Tensor:
        computed.append(len(volume))
        return encode(self, volume)

    plain = segment([str(volumes)], encoder=ENCODER, out=str(root / "plain"), augment=False, **QUICK)
    monkeypatch.setattr(SliceTransfer, "encode_slices", counted)
    options = QUICK | {"augment": False, "feature_cache": str(cache)}
    first = segment([str(volumes)], encoder=ENCODER, out=str(root / "first"), **options)
    # 24 crops were drawn, and there are 6 volumes; training, validation and test lay them into the window alike.
    files = {path.name: path.stat().st_mtime_ns for path in cache.iterdir()}
    assert sum(computed) == len(files) == 6
    computed.clear()
    second = segment([str(volumes)], encoder=ENCODER, out=str(root / "second"), **options)
    assert not computed
    assert {path.name: path.stat().st_mtime_ns for path in cache.iterdir()} == files
    for other in (first, second):
        assert (other / "cases.csv").read_bytes() == (plain / "cases.csv").read_bytes()
        assert (other / "metrics.jsonl").read_bytes() == (plain / "metrics.jsonl").read_bytes()
    segment([str(volumes)], encoder=f"{ENCODER},seed=3", out=str(root / "third"), **options)
    assert sum(computed) == len(files)  # another 2D encoder never meets an old file
    assert len(list(cache.iterdir())) == 2 * len(files)


def test_precision_is_part_of_the_key(tmp_path: Path) -> None:
    transfer = load_encoder(ENCODER)
    assert isinstance(transfer, SliceTransfer)
    cache, volume = FeatureCache(tmp_path, transfer), torch.rand(2, 3, 8, 8)
    plain = cache.path(volume)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert cache.path(volume) != plain


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"encoder": ENCODER, "crop_size": 8}, r"--feature-cache: crops of 6 x 8 x 8 .*Give --crop-size 14 or more"),
        ({"encoder": ENCODER, "augment": True}, "Add --no-augment"),
        ({"encoder": "random:tiny3d_for_tests"}, "tiny3d_for_tests has none"),
        ({"encoder": "random:tiny_for_tests", "feature_cache": None}, r'holds many slices.*"slices:ENCODER"'),
    ],
)
def test_wrong_requests_are_explained(tmp_path: Path, volumes: Path, options: dict, message: str) -> None:
    given = {"augment": False, "feature_cache": str(tmp_path / "cache"), **QUICK} | options
    with pytest.raises(InputError, match=message):
        segment([str(volumes)], out=str(tmp_path / "out"), **given)
    assert not (tmp_path / "out").exists()


def test_references_are_absolute_and_say_how_the_inner_encoder_was_made(tmp_path: Path, monkeypatch) -> None:
    monkeypatch.chdir(tmp_path)
    save_encoder("inner", load_encoder("random:tiny_for_tests"), {"method": "frepa"})
    assert absolute(f"slices:inner,{OPTIONS}") == f"slices:{tmp_path / 'inner'},{OPTIONS}"
    assert absolute("slices:timm:resnet18@w.pth,width=8") == f"slices:timm:resnet18@{tmp_path / 'w.pth'},width=8"
    assert absolute("inner") == str(tmp_path / "inner")
    assert absolute(ENCODER) == ENCODER
    assert method_of(f"slices:inner,{OPTIONS}") == "frepa"
    assert method_of(ENCODER) == "random"
    _, reference = open_encoder(f"slices:inner,{OPTIONS}")
    assert reference.name == "slice_transfer of tiny_for_tests"
    floor, _ = open_encoder(reference.untrained)
    assert {key: value.shape for key, value in floor.state_dict().items()} == {
        key: value.shape for key, value in load_encoder(f"slices:inner,{OPTIONS}").state_dict().items()
    }
