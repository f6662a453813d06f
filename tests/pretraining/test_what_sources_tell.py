"""What a run takes from a source beside its images: classes for the contrast, parts of an npz file, fields of view."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

import frepa
from frepa.datasets.derived import training_images
from frepa.datasets.opening import open_source
from frepa.datasets.reading import field_of_view
from frepa.errors import InputError
from frepa.images.loading import Preparation
from frepa.images.scan import UnreadableScan
from frepa.pretraining.columns import classes_of

TINY = {"encoder": "timm:test_convnext", "image_size": 32, "batch_size": 4, "num_workers": 0, "quiet": True,
        "val_images": 2, "max_steps": 2, "watch_every": 0}  # fmt: skip


def drawn(seed: int, size: tuple[int, ...] = (40, 40)) -> np.ndarray:
    return np.random.default_rng(seed).integers(1, 255, size, np.uint8)


def parts_of_a_set(path: Path, size: tuple[int, ...] = (20, 20)) -> str:
    """Six training, two validation and three test images, as MedMNIST has them."""
    arrays = {}
    for part, count in (("train", 6), ("val", 2), ("test", 3)):
        arrays[f"{part}_images"] = np.stack([drawn(10 * count + i, size) for i in range(count)])
        arrays[f"{part}_labels"] = (np.arange(count) % 2)[:, None]
    np.savez(path, **arrays)
    return str(path)


def test_folders_are_classes_for_the_contrast_as_a_column_of_a_manifest_is(tmp_path):
    rows = ["path,label"]
    for seed in range(8):
        name = f"{('cyst', 'mass')[seed // 4]}/{seed}.png"
        (tmp_path / "set" / name).parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(drawn(seed)).save(tmp_path / "set" / name)
        rows.append(f"set/{name},{name.partition('/')[0]}")
    (tmp_path / "list.csv").write_text("\n".join(rows) + "\n")
    runs = [
        frepa.pretrain(str(tmp_path / source), out=str(tmp_path / out), method="clip", **TINY)
        for source, out in (("set", "a"), ("list.csv", "b"))
    ]
    one, other = ((run / "metrics.jsonl").read_bytes() for run in runs)
    assert one == other
    assert "accuracy" in json.loads(one.splitlines()[0])
    # A method that asks for no classes is told none by folders, which may be patients
    source = open_source(str(tmp_path / "set"))
    assert classes_of(source).names == ()
    assert classes_of(source, "clip", ("labels",)).names == ("cyst", "mass")
    with pytest.raises(InputError, match=r"--method clip needs the class of each image.*holds 4 images.*a folder per"):
        frepa.pretrain(str(tmp_path / "set/cyst"), out=str(tmp_path / "c"), method="clip", **TINY)


def test_images_of_several_classes_are_called_by_all_of_them(tmp_path):
    for seed in range(3):
        Image.fromarray(drawn(seed)).save(tmp_path / f"{seed}.png")
    (tmp_path / "list.csv").write_text("path,label\n0.png,effusion|mass\n1.png,mass\n2.png,\n")
    found = classes_of(open_source(str(tmp_path / "list.csv")), "clip", ("labels",))
    assert found.names == ("effusion and mass", "mass")
    assert found.codes.tolist() == [0, 1, -1]


@pytest.mark.parametrize("dims", [2, 3])
def test_of_an_npz_file_the_training_part_is_trained_on(tmp_path, dims):
    text = parts_of_a_set(tmp_path / "x.npz", (20,) * dims)
    source = open_source(text, dims=dims)
    assert source.annotations is not None
    assert source.annotations["split"].to_pylist() == ["train"] * 6 + ["val"] * 2 + ["test"] * 3
    assert source.annotations["label"].to_pylist() == [*"010101", *"01", *"010"]
    kept = training_images(source)
    assert [kept.name(i) for i in range(len(kept))] == [f"x.npz#train_images[{i}]" for i in range(6)]
    assert "6 images of its training part are used; the other 5 are kept out" in kept.aside
    named = open_source(f"{text}#test_images", dims=dims)
    assert len(training_images(named)) == 3
    if dims == 2:
        run = frepa.pretrain(text, out=str(tmp_path / "run"), method="clip", **TINY)
        assert "on 6 images" in (run / "report.html").read_text()
        assert len(np.load(run / "source.npz")["records"].shape) == 0
        assert int(np.load(run / "source.npz")["records"]) == 6


def test_labels_that_do_not_fit_their_images_are_refused(tmp_path):
    np.savez(tmp_path / "x.npz", train_images=np.zeros((4, 8, 8), np.uint8), train_labels=np.zeros(3))
    with pytest.raises(InputError, match="holds 4 train images and 3 labels"):
        open_source(str(tmp_path / "x.npz"))


def test_images_of_a_test_part_are_named(tmp_path):
    for seed in range(4):
        Image.fromarray(drawn(seed)).save(tmp_path / f"{seed}.png")
    parts = ("train", "train", "val", "Testing")
    rows = [f"{seed}.png,{part}" for seed, part in enumerate(parts)]
    (tmp_path / "list.csv").write_text("\n".join(["path,split", *rows]) + "\n")
    source = training_images(open_source(str(tmp_path / "list.csv")))
    assert len(source) == 4
    assert "1 of 4 images are of the test part" in source.warnings[-1]


def with_fields(root: Path) -> str:
    """Three images, two of them with a field of view: a disc, beside ``images`` and ``masks`` as retinal sets have."""
    y, x = np.ogrid[:40, :48]
    for seed in range(3):
        disc = (y - 18 - seed) ** 2 + (x - 22) ** 2 < 15**2
        for folder, array in (("images", drawn(seed, (40, 48))), ("masks", disc[::-1]), ("fov", disc)):
            if folder == "fov" and seed == 2:
                continue
            (root / folder).mkdir(parents=True, exist_ok=True)
            array = array if array.dtype == np.uint8 else 255 * array.astype(np.uint8)
            Image.fromarray(array).save(root / folder / f"{seed}.png")
    return str(root)


def test_fields_of_view_are_those_of_the_source(tmp_path):
    text = with_fields(tmp_path / "set")
    Image.fromarray(drawn(7, (40, 48))).save(tmp_path / "set/fov/2.png")  # a folder gives all or none
    store = frepa.prepare(text, out=str(tmp_path / "store"), num_workers=0, quiet=True)
    for name in (text, str(store)):
        source = open_source(name)
        for mode in ("resize", "crop"):
            made = Preparation(source, (40, 48), mode=mode, inside=True, field=field_of_view, seed=3)
            batch = made.batch([0, 1], [5, 6])
            assert batch["inside"] is not None
            assert batch["told"] is not None
            assert batch["told"].all()
            for row, index in enumerate((0, 1)):
                disc = np.asarray(Image.open(tmp_path / f"set/fov/{index}.png")) > 127
                assert np.array_equal(batch["inside"][row, 0].numpy(), disc)
        # A crop has the piece of the field that it is the piece of the image of
        image, _, inside, _ = Preparation(source, 16, mode="crop", inside=True, field=field_of_view, seed=3).one(0, 9)
        whole = Preparation(source, (40, 48), mode="crop").one(0, 0)[0][0]
        windows = np.lib.stride_tricks.sliding_window_view(whole, (16, 16))
        (first,) = np.argwhere((windows == image[0]).all((2, 3))).tolist()
        disc = np.asarray(Image.open(tmp_path / "set/fov/0.png")) > 127
        assert inside is not None
        assert np.array_equal(inside[0], disc[first[0] : first[0] + 16, first[1] : first[1] + 16])


def test_a_dark_surround_is_estimated_only_where_no_field_of_view_is_given(tmp_path):
    """One image of two has a field of view; the other's dark left half is found."""
    images = np.full((2, 32, 32), 200, np.uint8)
    images[:, :, :12] = 0
    field = np.zeros((32, 32), np.uint8)
    field[4:28] = 255
    for name, array in (("0", images[0]), ("1", images[1]), ("field", field)):
        Image.fromarray(array).save(tmp_path / f"{name}.png")
    (tmp_path / "list.csv").write_text("path,fov\n0.png,field.png\n1.png,\n")
    source = open_source(str(tmp_path / "list.csv"))
    batch = Preparation(source, 32, inside=True, field=field_of_view).batch([0, 1], [0, 1])
    assert batch["told"] is not None
    assert batch["told"].tolist() == [True, False]
    from frepa.encoders.registry import build_encoder
    from frepa.pretraining.methods.contract import Batch, Setting
    from frepa.pretraining.methods.frepa import Frepa, FrepaMethod

    encoder = build_encoder("timm:test_convnext", dims=2, guide="none", image_size=32)
    setting = Setting(encoder=encoder, channels=1, image_size=32, fit="resize", seed=0)
    method = FrepaMethod(Frepa(augment=False, fov="lit"), setting)
    given = Batch(batch["image"], batch["grey"], [0, 1], inside=batch["inside"], told=batch["told"])
    found = method._field(batch["image"], given)
    assert found is not None
    assert torch.equal(found[0, 0], torch.from_numpy(field > 127))
    assert torch.equal(found[1, 0], batch["image"][1, 0] > 0)


def test_a_field_of_view_of_another_size_is_told_as_unreadable(tmp_path):
    Image.fromarray(drawn(0)).save(tmp_path / "0.png")
    Image.fromarray(drawn(1, (9, 9))).save(tmp_path / "field.png")
    (tmp_path / "list.csv").write_text("path,fov\n0.png,field.png\n")
    with pytest.raises(UnreadableScan, match="field of view has another size"):
        field_of_view(open_source(str(tmp_path / "list.csv")), 0)
