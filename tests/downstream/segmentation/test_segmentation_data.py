from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from frepa.datasets.reading import read_case, read_mask
from frepa.datasets.stacks import Dividing
from frepa.downstream.segmentation.data import SegmentationData, check_sets, open_sets
from frepa.errors import InputError


def picture(path: Path, array: np.ndarray) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(array).save(path)


def small_set(root: Path, count: int = 10, values: tuple[int, ...] = (0, 255)) -> Path:
    rng = np.random.default_rng(0)
    for i in range(count):
        picture(root / "images" / f"c{i}.png", rng.integers(0, 256, (12, 10), dtype=np.uint8))
        picture(root / "masks" / f"c{i}.png", rng.choice(np.array(values, dtype=np.uint8), (12, 10)))
    return root


def test_official_splits_are_completed_from_training_only(shared_data: Path) -> None:
    drive, chase, octa = open_sets([str(shared_data / n) for n in ("DRIVE", "CHASE_DB1", "OCTA500_3M")], dims=2)
    assert {c.name for c in drive.part("test")} == {f"{n:02d}_test" for n in range(1, 21)}
    assert {int(c.name[:2]) for part in ("train", "val") for c in drive.part(part)} == set(range(21, 41))
    assert 2 <= len(drive.part("val")) <= 3
    # Both eyes of a child stay together.
    assert len(chase.part("test")) == 8
    assert not {c.group for c in chase.part("train")} & {c.group for c in chase.part("val")}
    # This copy has no test part: its validation part is tested on, and not used to choose the head.
    assert {c.image.parent.parent.name for c in octa.part("test")} == {"val"}
    assert {c.image.parent.parent.name for c in octa.part("val")} == {"train"}
    assert "used for testing" in octa.split_note


def test_masks_are_read_with_their_values(shared_data: Path) -> None:
    data = check_sets(open_sets([str(shared_data / n) for n in ("DRIVE", "CHASE_DB1")], dims=2), dims=2)
    assert data.classes == 2
    for item in (data.part("test")[0], data.part("test")[-1]):
        labelled = read_case(item.case, item.labels, 2)
        assert labelled.image.shape[1:] == labelled.classes.shape == data.sizes[item.case.image]
        assert labelled.inside is not None
        expected = np.asarray(Image.open(item.case.mask).convert("L")) > 127
        np.testing.assert_array_equal(labelled.classes, expected)
        assert 0.5 < labelled.inside.mean() < 0.8
        assert not labelled.classes[~labelled.inside].mean() > 0.01


def test_a_random_split_is_seven_one_two(tmp_path: Path) -> None:
    (item,) = open_sets([str(small_set(tmp_path / "set", 20))], dims=2)
    assert [len(item.part(p)) for p in ("train", "val", "test")] == [14, 2, 4]
    assert "random, 7:1:2" in item.split_note


def test_random_replaces_the_official_split(shared_data: Path) -> None:
    (item,) = open_sets([str(shared_data / "DRIVE")], dims=2, seed=4, how=Dividing(rule="random"))
    assert [len(item.part(p)) for p in ("train", "val", "test")] == [28, 4, 8]


def test_sets_of_equal_name_stay_apart(tmp_path: Path) -> None:
    sets = open_sets([str(small_set(tmp_path / n / "set")) for n in "ab"], dims=2)
    assert [item.name for item in sets] == ["set", "set-2"]


def test_a_mask_that_does_not_fit_is_named_with_both_sizes(tmp_path: Path) -> None:
    root = small_set(tmp_path / "set")
    picture(root / "masks" / "c3.png", np.zeros((10, 12), dtype=np.uint8))
    with pytest.raises(InputError, match=r"c3\.png is 12 x 10, .*c3\.png is 10 x 12\. The axes look exchanged"):
        check_sets(open_sets([str(root)], dims=2), dims=2)


def test_damaged_files_are_named(tmp_path: Path) -> None:
    root = small_set(tmp_path / "set")
    (root / "masks" / "c4.png").write_bytes(b"not an image")
    with pytest.raises(InputError, match=r"c4\.png.*Repair the file"):
        check_sets(open_sets([str(root)], dims=2), dims=2)


def test_missing_masks_are_counted_and_too_many_are_refused(tmp_path: Path) -> None:
    root = small_set(tmp_path / "set")
    (root / "masks" / "c0.png").unlink()
    assert open_sets([str(root)], dims=2)[0].unpaired == ("images/c0.png",)
    for i in range(1, 7):
        (root / "masks" / f"c{i}.png").unlink()
    with pytest.raises(InputError, match=r"7 of 10 images have no mask of a matching name \(c0\.png"):
        open_sets([str(root)], dims=2)


def test_empty_folders_and_empty_lists_are_refused(tmp_path: Path) -> None:
    (tmp_path / "images").mkdir()
    (tmp_path / "masks").mkdir()
    with pytest.raises(InputError, match="No 2D image found"):
        open_sets([str(tmp_path)], dims=2)
    with pytest.raises(InputError, match="No source"):
        open_sets([], dims=2)
    with pytest.raises(InputError, match="expected official or random"):
        open_sets(["x"], dims=2, how=Dividing(rule="half"))


def test_a_set_that_is_only_tested_on_opens_and_is_not_trained_on(tmp_path: Path) -> None:
    root = small_set(tmp_path / "set", 4)
    rows = "".join(f"images/c{i}.png,masks/c{i}.png,{'test' if i else ''}\n" for i in range(4))
    (root / "set.csv").write_text("image,mask,split\n" + rows)
    (item,) = open_sets([str(root / "set.csv")], dims=2, how=Dividing(complete=False))
    assert [case.split for case in item.cases] == ["test"] * 4
    (root / "set.csv").write_text(("image,mask,split\n" + rows).replace("png,\n", "png,test\n"))
    with pytest.raises(InputError, match=r"no training part \(only test\)\. Train on a set that has one"):
        open_sets([str(root / "set.csv")], dims=2)


def test_a_training_part_alone_is_divided(tmp_path: Path) -> None:
    root = small_set(tmp_path / "set", 10)
    rows = "".join(
        f"images/c{i}.png,{f'masks/c{i}.png' if i < 8 else ''},{'train' if i < 8 else 'test'}\n" for i in range(10)
    )
    (root / "set.csv").write_text("image,mask,split\n" + rows)
    (item,) = open_sets([str(root / "set.csv")], dims=2)
    assert sorted(len(item.part(part)) for part in ("train", "val", "test")) == [1, 2, 5]
    assert item.split_note.endswith("all that is labelled is its training part")
    assert item.unpaired == ("images/c8.png", "images/c9.png")


def test_a_sources_own_folds(shared_data: Path) -> None:
    """The hippocampus set comes with nnU-Net's five."""
    folder = shared_data / "Task04_Hippocampus"
    truth = [set(fold["val"]) for fold in json.loads((folder / "splits_final.json").read_text())]
    for text in (str(folder), f"msd:{folder}"):
        sets = open_sets([text], dims=3)
        data = SegmentationData(tuple(sets), {}, {})
        divided = data.folds(5, seed=0)
        assert [{case.name for case in one.sets[0].part("test")} for one in divided] == truth
        assert divided[0].sets[0].split_note.startswith("the source's own 5 folds")
        assert data.folds(4, seed=0)[0].sets[0].split_note.startswith("4 folds by group")
        other = SegmentationData(tuple(open_sets([text], dims=3, how=Dividing(rule="random"))), {}, {})
        assert other.folds(5, seed=0)[0].sets[0].split_note.startswith("5 folds by group")


def test_sets_with_few_cases_say_how_many_are_needed(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="set: 2 patients"):
        open_sets([str(small_set(tmp_path / "set", 2))], dims=2)


def test_several_classes_are_told_apart_and_mixed_sets_refused(tmp_path: Path) -> None:
    cells = small_set(tmp_path / "cells", values=(0, 128, 255))
    data = check_sets(open_sets([str(cells)], dims=2), dims=2)
    assert data.classes == 3
    two = small_set(tmp_path / "two")
    with pytest.raises(InputError, match="Train them apart"):
        check_sets(open_sets([str(cells), str(two)], dims=2), dims=2)
    assert check_sets(open_sets([str(cells), str(two)], dims=2), dims=2, threshold=100).classes == 2


def test_palette_masks_give_positions_and_colour_masks_are_refused(tmp_path: Path) -> None:
    positions = np.array([[0, 1], [2, 1]], dtype=np.uint8)
    image = Image.fromarray(positions, mode="P")
    image.putpalette([0, 0, 0, 255, 0, 0, 0, 255, 0] + [0] * 759)
    image.save(tmp_path / "p.png")
    np.testing.assert_array_equal(read_mask(tmp_path / "p.png", 2).array[0], positions)
    picture(tmp_path / "rgb.png", np.random.default_rng(0).integers(0, 255, (4, 4, 3), dtype=np.uint8))
    with pytest.raises(InputError, match=r"rgb\.png: this mask is a colour picture"):
        read_mask(tmp_path / "rgb.png", 2)
