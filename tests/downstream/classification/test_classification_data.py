"""Where labels and parts come from, and what is wrong with a set before anything is trained."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from PIL import Image

import tiny_encoders  # noqa: F401 (registers them)
from frepa.downstream.classification.data import check_classes, open_data
from frepa.downstream.division import fold_groups
from frepa.errors import InputError
from frepa.verbs.classify import classify


def images(root: Path, *names: str) -> Path:
    for number, name in enumerate(names):
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(np.full((8, 8), number, np.uint8)).save(root / name)
    return root


def table(root: Path, *rows: str) -> str:
    (root / "table.csv").write_text("\n".join(rows) + "\n")
    return str(root / "table.csv")


def test_parts_above_the_classes(tmp_path: Path) -> None:
    names = [f"{part}/{c}/{i}.png" for part in ("train", "val", "test") for c in "ab" for i in range(2)]
    data = open_data(str(images(tmp_path, *names)), dims=2)
    assert data.classes == ("a", "b")
    assert data.sizes() == {"train": 4, "val": 4, "test": 4}
    for row, record in enumerate(data.records):
        part, name, _ = data.source.name(int(record)).split("/")
        assert (data.parts[row], data.classes[data.targets[row].argmax()]) == (part, name)


def test_groups_never_part(tmp_path: Path) -> None:
    images(tmp_path, *(f"{i}.png" for i in range(40)))
    text = table(tmp_path, "path,label,group", *(f"{i}.png,{i % 2},{i // 4}" for i in range(40)))
    for data in (open_data(text, dims=2), *open_data(text, dims=2).folds(5, 0)):
        assert data.classes == ("0", "1")
        for part in ("train", "val", "test"):
            inside = {data.groups[row] for row in data.rows(part)}
            assert not inside & {
                data.groups[row] for other in {"train", "val", "test"} - {part} for row in data.rows(other)
            }
    tested = np.concatenate([fold.rows("test") for fold in open_data(text, dims=2).folds(5, 0)])
    assert sorted(tested) == list(range(40))


def test_folds_spread_classes_evenly() -> None:
    targets = np.eye(2, dtype=np.uint8)[[0] * 90 + [1] * 10]
    folds = np.asarray(fold_groups([str(i) for i in range(100)], targets, 5, 0))
    assert [int((folds[90:] == k).sum()) for k in range(5)] == [2] * 5
    assert [int((folds[:90] == k).sum()) for k in range(5)] == [18] * 5
    again = fold_groups([str(i) for i in range(100)], targets, 5, 1)
    assert again != folds.tolist()


def test_rows_without_a_label_are_left_out_and_counted(tmp_path: Path) -> None:
    images(tmp_path, *(f"{i}.png" for i in range(12)))
    text = table(tmp_path, "path,label", *(f"{i}.png,{'ab'[i % 2] if i < 10 else ''}" for i in range(12)))
    data = open_data(text, dims=2)
    assert (len(data.records), data.unlabelled) == (10, 2)


def test_a_catalogue_dataset_by_name(shared_data: Path) -> None:
    data = open_data(f"adrenalmnist3d?size=28:{shared_data / 'MedMNIST'}", dims=3)
    assert data.classes == ("normal", "hyperplasia")
    assert data.sizes() == {"train": 1188, "val": 98, "test": 298}
    with np.load(shared_data / "MedMNIST" / "adrenalmnist3d.npz") as file:
        truth = np.concatenate([file[f"{part}_labels"][:, 0] for part in ("train", "val", "test")])
    np.testing.assert_array_equal(data.targets.argmax(1), truth)
    plain = open_data(str(shared_data / "MedMNIST" / "adrenalmnist3d.npz"), dims=3)
    np.testing.assert_array_equal(plain.targets, data.targets)
    assert plain.parts == data.parts


def test_a_class_without_test_images_is_named(tmp_path: Path) -> None:
    names = [f"{part}/{c}/{i}.png" for part in ("train", "val", "test") for c in "abc" for i in range(2)]
    source = images(tmp_path, *(name for name in names if not name.startswith("test/c")))
    (warning,) = check_classes(open_data(str(source), dims=2))
    assert warning.startswith("No test image is of c")


def _labelled_table(rows: list[str]):
    def make(root: Path) -> str:
        images(root, *(f"{i}.png" for i in range(8)))
        return table(root, *rows)

    return make


WRONG = {
    "no labels in a folder": (
        lambda root: str(images(root, "1.png", "2.png")),
        "has no classes.* nothing else is known",
    ),
    "a segmentation set": (
        lambda root: str(images(root, *(f"{folder}/{i}.png" for folder in ("images", "masks") for i in range(4)))),
        "has no classes.* masks of 4.* frepa segment learns from these",
    ),
    "no label column": (_labelled_table(["path", "0.png", "1.png"]), "no classes.* the column label of a manifest"),
    "empty labels": (_labelled_table(["path,label", "0.png,", "1.png,"]), "no classes"),
    "one class": (_labelled_table(["path,label", "0.png,a", "1.png,a"]), "every labelled image is of the class 'a'"),
    "unknown part": (_labelled_table(["path,label,split", "0.png,a,trian", "1.png,b,test"]), "split 'trian' is not"),
    "half a split": (_labelled_table(["path,label,split", "0.png,a,train", "1.png,b,"]), "1 of 2 labelled images have"),
    "too few": (_labelled_table(["path,label", "0.png,a", "1.png,b"]), "cannot be divided"),
    "only tested": (
        _labelled_table(["path,label,split", "0.png,a,test", "1.png,b,test"]),
        "no training part .only test",
    ),
}


@pytest.mark.parametrize("case", WRONG)
def test_wrong_sets_are_explained(tmp_path: Path, case: str) -> None:
    make, message = WRONG[case]
    with pytest.raises(InputError, match=message):
        classify(make(tmp_path / "set"), encoder="random:tiny_for_tests", out=str(tmp_path / "out"), quiet=True)
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"encoder": "random:vit_tinny"}, "Did you mean vit_tiny"),
        ({"encoder": "random:tiny3d_for_tests"}, "holds 2D images, and the encoder takes volumes. Give a 2D encoder"),
        ({"folds": 1}, "--folds 1: expected 2 or more"),
        ({"folds": 99}, "cannot be divided into 99 folds"),
        ({"hidden": -1}, "--hidden -1"),
        ({"feature_cache": "cache"}, "tiny_for_tests has none"),
        ({"feature_cache": "cache", "augment": True}, "--feature-cache: augmented images"),
        ({"window": "liver"}, "Unknown window 'liver'"),
    ],
)
def test_wrong_options_are_explained_and_leave_nothing_behind(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, options: dict[str, object], message: str
) -> None:
    monkeypatch.chdir(tmp_path)
    source = images(tmp_path / "set", *(f"{c}/{i}.png" for c in "ab" for i in range(6)))
    given = {"encoder": "random:tiny_for_tests", "out": str(tmp_path / "out"), "quiet": True} | options
    with pytest.raises(InputError, match=message):
        classify(str(source), **given)  # type: ignore[arg-type]
    assert not (tmp_path / "out").exists()


def test_a_class_absent_from_training_is_named(tmp_path: Path) -> None:
    source = images(tmp_path / "set", *(f"{p}/{c}/{i}.png" for p, c in ("ta", "sa", "sb") for i in range(4)))
    (source / "t").rename(source / "train")
    (source / "s").rename(source / "test")
    with pytest.raises(InputError, match="class 'b' has no readable image in the training part"):
        classify(str(source), encoder="random:tiny_for_tests", out=str(tmp_path / "out"), quiet=True)


def test_volumes_for_a_2d_encoder_suggest_slice_transfer(tmp_path: Path) -> None:
    import nibabel

    for c in "ab":
        (tmp_path / "set" / c).mkdir(parents=True)
        for i in range(5):
            volume = np.random.default_rng(i).normal(0, 1, (6, 7, 5)).astype(np.float32)
            nibabel.save(nibabel.Nifti1Image(volume, np.eye(4)), tmp_path / "set" / c / f"{i}.nii.gz")
    stacks, labels = np.zeros((4, 6, 6, 6), np.uint8), np.arange(4) % 2
    np.savez(tmp_path / "v.npz", train_images=stacks, train_labels=labels, test_images=stacks, test_labels=labels)
    (tmp_path / "folder").mkdir()
    (tmp_path / "v.npz").rename(tmp_path / "folder" / "v.npz")
    with pytest.raises(InputError, match=r"give one, such as .*v\.npz"):
        classify(str(tmp_path / "folder"), encoder="random:tiny_for_tests", out=str(tmp_path / "out"), quiet=True)
    for source in ("set", "folder/v.npz"):
        with pytest.raises(InputError, match="slices:ENCODER"):
            classify(str(tmp_path / source), encoder="random:tiny_for_tests", out=str(tmp_path / "out"), quiet=True)
