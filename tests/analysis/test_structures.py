"""Widths of synthetic tubes, sizes of blobs, and how much of each is found."""

from __future__ import annotations

import json
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest
from PIL import Image
from scipy import ndimage

from frepa import cli
from frepa.analysis.structure_measures import attributed, components, count, placed, ranges, sizes, widths
from tiny_runs import classifying, masked_set, segmenting


@pytest.mark.parametrize("width", [1, 3, 5, 9, 2, 6])
@pytest.mark.parametrize("axis", [0, 1])
def test_the_width_of_a_tube(width: int, axis: int) -> None:
    mask = np.zeros((40, 60), bool)
    lines = [slice(None)] * 2
    lines[1 - axis] = slice(10, 10 + width)
    mask[tuple(lines)] = True
    found = widths(mask)
    assert np.all(found[~mask] == 0)
    expected = width if width % 2 else width - 1
    assert np.allclose(found[mask], expected)


def test_widths_of_tubes_beside_each_other_and_in_3d() -> None:
    mask = np.zeros((50, 40), bool)
    mask[:, 5] = True
    mask[:, 15:20] = True
    found = widths(mask)
    assert np.all(found[:, 5] == 1)
    assert np.all(found[:, 15:20] == 5)
    z, y, x = np.ogrid[:24, :21, :21]
    solid = ((y - 10) ** 2 + (x - 10) ** 2 < 4.5**2) & (z >= 0)  # nine voxels across
    along = widths(solid)[6:18][solid[6:18]]
    assert np.median(along) == pytest.approx(9, abs=1.3)
    assert not widths(np.zeros((5, 5), bool)).any()
    assert np.all(widths(np.ones((5, 7), bool)) == 5)


def test_widths_of_a_slanted_tube() -> None:
    y, x = np.mgrid[:120, :120]
    mask = np.abs((x - y) / np.sqrt(2)) < 3.5  # seven pixels across
    assert np.median(widths(mask)[30:90, 30:90][mask[30:90, 30:90]]) == pytest.approx(7, abs=1)


@pytest.mark.parametrize(
    ("axis", "across", "expected"), [(0, 3, 3 * 0.7), (1, 5, 5 * 0.3), (0, 1, 0.7), (1, 4, 3 * 0.3)]
)
def test_the_width_of_a_tube_in_millimetres(axis: int, across: int, expected: float) -> None:
    """Rows are 0.3 mm apart and columns 0.7 mm; of an even number of pixels it is one less, as in pixels."""
    mask = np.zeros((40, 60), bool)
    lines = [slice(None)] * 2
    lines[1 - axis] = slice(10, 10 + across)
    mask[tuple(lines)] = True
    found = widths(mask, (0.3, 0.7))
    assert np.allclose(found[mask], expected)
    assert not found[~mask].any()


def test_widths_of_slanted_tubes_and_of_volumes_in_millimetres() -> None:
    spacing = np.array([0.05, 0.11])
    y, x = np.mgrid[:200, :120] * spacing[:, None, None]
    for slope in (0.4, 2.5):
        mask = np.abs(y - 5 - slope * (x - 6)) / np.sqrt(1 + slope**2) < 0.8 / 2
        found = widths(mask, spacing.tolist())[60:140]
        assert np.median(found[found > 0]) == pytest.approx(0.8, abs=0.11)
    # In a volume of slices 3 mm apart: across the slices thin, along them round
    z, y, x = np.ogrid[:16, :31, :41]
    bar = np.broadcast_to((z == 8) & (abs(y - 15) < 12.5), (16, 31, 41))  # one slice
    assert np.median(widths(bar, (3.0, 0.5, 0.8))[bar]) == pytest.approx(3)
    assert np.median(widths(bar)[bar]) == 1
    pipe = np.broadcast_to(((y - 15) * 0.5) ** 2 + ((x - 20) * 0.8) ** 2 < 2.25**2, (16, 31, 41))  # 4.5 mm across
    assert np.median(widths(pipe, (3.0, 0.5, 0.8))[pipe]) == pytest.approx(4.5, abs=0.5)


def test_sizes_are_those_of_components() -> None:
    rng = np.random.default_rng(0)
    mask = ndimage.binary_opening(rng.random((40, 40)) > 0.4)
    found = sizes(mask)
    labels, number = ndimage.label(mask, np.ones((3, 3)))
    for label in range(1, number + 1):
        assert np.all(found[labels == label] == (labels == label).sum())
    assert np.all(found[~mask] == 0)
    hit = mask.copy()
    hit[:, 20:] = False
    for (size, share), label in zip(components(mask, hit), range(1, number + 1)):
        inside = labels == label
        assert size == inside.sum()
        assert share == pytest.approx((hit & inside).sum() / inside.sum())


def test_every_pixel_is_counted_once() -> None:
    truth = np.zeros((30, 30), bool)
    truth[:, 3] = True
    truth[:, 10:17] = True
    found = truth.copy()
    found[:, 3] = False
    found[20:, 25] = True
    found[:5, 0] = True
    own = count(truth, found, placed(widths(truth), (2.0, 4.0)), 3)
    assert own.true.tolist() == [30, 0, 210]
    assert own.found.tolist() == [0, 0, 210]
    assert own.predicted.tolist() == [5, 0, 220]  # false alarms beside the thin and beside the wide one
    assert not attributed(np.zeros((3, 3))).any()
    assert ranges((2.0, 4.0)) == ["below 2", "2 to 4", "from 4"]


def test_a_run_an_encoder_and_masks_on_one_page(tmp_path: Path) -> None:
    run = segmenting(tmp_path)
    words = ["analyze", "structures", str(tmp_path / "set"), "--encoder", f"head={run}", "--quiet", "--num-workers=0",
             "--encoder", "random:tiny_for_tests,guide=none", "--crop-size=32", "--out", str(tmp_path / "out"),
             "--kind.masks", f"again={run / 'predictions'}", "--kind.sizes=50,200"]  # fmt: skip
    assert cli.main(words) == 0
    results = json.loads((tmp_path / "out/results.json").read_text())
    numbers = results["numbers"]
    scored = json.loads((run / "results.json").read_text())["sets"]["set"]["test"]["dsc"]["mean"]
    assert numbers["dsc"]["head"]["mean"] == pytest.approx(scored, abs=1e-9)
    # What the head says now is what it said then, as its masks on disk have it
    assert numbers["width"]["sensitivity"]["again"] == numbers["width"]["sensitivity"]["head"]
    assert numbers["size"]["precision"]["again"] == numbers["size"]["precision"]["head"]
    assert len(numbers["dsc"]) == 3
    every = json.loads((tmp_path / "out/results.json").read_text())["numbers"]["size"]["dsc"]["head"]
    assert all(0 <= own["mean"] <= 1 for own in every.values())
    # By hand, of the masks of the set
    pooled = 0
    for path in sorted((run / "predictions/set").glob("*.png")):
        truth = np.asarray(Image.open(tmp_path / "set/masks" / path.name)) > 0
        pooled += int(truth.sum())
    assert sum(numbers["width"]["pixels"].values()) == pooled


def drawn_volumes(root: Path, spacing: tuple[float, float, float], count: int = 5) -> dict[str, float]:
    """NIfTI volumes with a thin and a wide bar and a lesion; returns voxels of each."""
    for folder in ("imagesTr", "labelsTr"):
        (root / folder).mkdir(parents=True)
    mask = np.zeros((24, 20, 12), np.uint8)  # x, y, z
    mask[:, 3:6, 6] = 1  # 3 voxels along y
    mask[:, 10:17, 3:10] = 1  # 7 along both
    for number in range(count):
        image = np.random.default_rng(number).normal(100, 5, mask.shape) + 50 * mask
        for folder, array in (("imagesTr", image.astype(np.int16)), ("labelsTr", mask)):
            nib.save(nib.Nifti1Image(array, np.diag([*spacing, 1])), root / folder / f"{number}.nii.gz")
    return {"thin": 24 * 3, "wide": 24 * 7 * 7}


def test_millimetres_where_the_scans_carry_spacing(tmp_path: Path) -> None:
    """Voxels of 0.5 x 0.4 x 3 mm: the bar of three by one is 1.2 mm thin (by 3 mm), the other 2.8 mm (by 21 mm)."""
    voxels = drawn_volumes(tmp_path / "set", (0.5, 0.4, 3.0))
    words = ["analyze", "structures", str(tmp_path / "set"), "--dims=3", "--quiet", "--num-workers=0", "--out"]
    words += [str(tmp_path / "out"), f"--kind.masks=own={tmp_path / 'set/labelsTr'}", "--kind.widths=2,5"]
    words += ["--kind.sizes=200"]
    assert cli.main([*words, "--kind.widths-mm=1.2,2.8,5", "--kind.sizes-mm=43.2,44,706"]) == 0
    results = json.loads((tmp_path / "out/results.json").read_text())
    numbers, cases = results["numbers"], results["inputs"]["test"]
    assert results["inputs"]["spacing"][0] == pytest.approx([3, 0.4, 0.5])
    assert numbers["width"]["pixels"] == {"below 2": cases * voxels["thin"], "from 5": cases * voxels["wide"]}
    assert numbers["width_mm"]["unit"] == "mm"
    assert numbers["width_mm"]["pixels"] == {"1.2 to 2.8": cases * voxels["thin"], "2.8 to 5": cases * voxels["wide"]}
    assert numbers["size"]["pixels"] == {"below 200": cases * voxels["thin"], "from 200": cases * voxels["wide"]}
    # 72 and 1176 voxels of 0.6 mm³
    assert numbers["size_mm"]["unit"] == "mm³"
    assert set(numbers["size_mm"]["pixels"]) == {"43.2 to 44", "44 to 706"}
    assert numbers["lesions_mm"]["own"]["43.2 to 44"] == {"components": cases, "half": 1.0, "any": 1.0}
    assert results["scores"]["own"]["dsc_width_mm_1.2 to 2.8"] == 1
    page = (tmp_path / "out/report.html").read_text()
    assert "say how large their voxels are (3 x 0.4 x 0.5 mm)" in page
    assert {"truth-width-mm", "dsc-size-mm", "dsc-width"} <= {p.stem for p in (tmp_path / "out/figures").iterdir()}


def test_pixels_alone_where_they_do_not(tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    drawn_volumes(tmp_path / "set", (1, 1, 1))
    for path in (tmp_path / "set").rglob("*.nii.gz"):
        np.save(path.with_name(path.name.replace("nii.gz", "npy")), np.asarray(nib.load(path).dataobj))
        path.unlink()
    words = ["analyze", "structures", str(tmp_path / "set"), "--dims=3", "--quiet", "--num-workers=0", "--out"]
    words += [str(tmp_path / "out"), f"--kind.masks=own={tmp_path / 'set/labelsTr'}", "--kind.by=width"]
    assert cli.main([*words, "--kind.widths-mm=1,2"]) == 2
    assert "test images do not say how large their voxels are" in capsys.readouterr().err
    assert cli.main(words) == 0
    results = json.loads((tmp_path / "out/results.json").read_text())
    assert set(results["numbers"]) == {"width", "dsc"}
    page = (tmp_path / "out/report.html").read_text()
    assert "The test images do not say how large their voxels are: widths and sizes are in voxels alone." in page


def test_masks_of_many_values_by_a_threshold(tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    masked_set(tmp_path / "set", 5)
    truth = {}
    for path in (tmp_path / "set/masks").glob("*.png"):
        mask = ndimage.gaussian_filter(np.asarray(Image.open(path)).astype(float), 1).astype(np.uint8)
        Image.fromarray(mask).save(path)
        truth[path.stem] = mask > 127
    words = ["analyze", "structures", str(tmp_path / "set"), f"--kind.masks=own={tmp_path / 'set/masks'}", "--quiet"]
    words += ["--num-workers=0", "--out", str(tmp_path / "out")]
    assert cli.main(words) == 2
    assert "--mask-threshold 127" in capsys.readouterr().err
    assert cli.main([*words, "--mask-threshold=127"]) == 2
    assert "It belongs to the kind: --kind.mask-threshold." in capsys.readouterr().err
    assert cli.main([*words, "--kind.mask-threshold=127", "--kind.by=size", "--kind.sizes=100000"]) == 0
    numbers = json.loads((tmp_path / "out/results.json").read_text())["numbers"]
    assert numbers["dsc"]["own"]["mean"] == 1
    assert numbers["size"]["pixels"]["below 100000"] in {int(mask.sum()) for mask in truth.values()}


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["set"], "--encoder missing"),
        (
            ["set", "--kind.by=depth", "--encoder=random:tiny_for_tests"],
            "--kind.by depth: expected width, size or both",
        ),
        (
            ["set", "--kind.widths=4,2", "--encoder=random:tiny_for_tests"],
            "--kind.widths 4,2: expected numbers above 0",
        ),
        (["set", "--kind.masks=nowhere"], "--kind.masks nowhere: there is no such folder"),
        (["set", "--kind.masks=empty"], "holds no mask for the test case"),
        (["classes", "--encoder=random:tiny_for_tests"], "has no masks"),
        (["set", "--encoder=kinds/run"], "a run of frepa classify, and here one of frepa segment is needed"),
    ],
)
def test_wrong_input_in_plain_words(
    words: list[str], message: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture
) -> None:
    monkeypatch.chdir(tmp_path)
    masked_set(tmp_path / "set", 4)
    (tmp_path / "empty").mkdir()
    if "--encoder=kinds/run" in words or "classes" in words:
        classifying(tmp_path / "kinds")
        (tmp_path / "kinds/set").rename(tmp_path / "classes")
    capsys.readouterr()
    assert cli.main(["analyze", "structures", *words, "--out=out", "--quiet", "--num-workers=0"]) == 2
    assert message in capsys.readouterr().err
    assert not Path("out").exists()
