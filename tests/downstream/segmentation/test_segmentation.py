from __future__ import annotations

import csv
import json
from pathlib import Path

import numpy as np
import pytest
import torch
import yaml
from PIL import Image
from safetensors import safe_open
from safetensors.torch import load_file, save_file

import tiny_encoders  # noqa: F401 (registers them)
from frepa.cli import main
from frepa.downstream.segmentation.model import load_segmenter
from frepa.downstream.trained import load_head
from frepa.encoders.reference import open_encoder, weights_hash
from frepa.errors import InputError
from frepa.verbs.segment import segment

ENCODER = "random:tiny_for_tests"
QUICK = {"batch_size": 4, "max_steps": 60, "lr": 1e-2, "crop_size": 32, "quiet": True, "val_every": 20}


def discs(size: tuple[int, ...], seed: int) -> tuple[np.ndarray, np.ndarray]:
    """Noisy bright balls and their exact mask."""
    rng = np.random.default_rng(seed)
    grid = np.stack(np.meshgrid(*map(np.arange, size), indexing="ij"))
    mask = np.zeros(size, dtype=bool)
    for _ in range(3):
        centre = np.array([rng.uniform(0, n) for n in size]).reshape(-1, *[1] * len(size))
        mask |= ((grid - centre) ** 2).sum(0) < (min(size) / 5) ** 2
    image = 60 + 120 * mask + rng.normal(0, 12, size)
    return np.clip(image, 0, 255).astype(np.uint8), mask


def make_set(root: Path, count: int = 8, size: tuple[int, ...] = (40, 44), fov: bool = False) -> Path:
    for folder in ("images", "masks", "fov")[: 3 if fov else 2]:
        (root / folder).mkdir(parents=True)
    for i in range(count):
        image, mask = discs(size, i)
        Image.fromarray(image).save(root / "images" / f"{i}.png")
        Image.fromarray(mask.astype(np.uint8) * 255).save(root / "masks" / f"{i}.png")
        if fov:
            inside = np.zeros(size, dtype=np.uint8)
            inside[4:-4, 4:-4] = 255
            Image.fromarray(inside).save(root / "fov" / f"{i}.png")
    return root


def dsc(a: np.ndarray, b: np.ndarray) -> float:
    return 2 * float((a & b).sum()) / float(a.sum() + b.sum())


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """One run on two sets, through the verb."""
    root = tmp_path_factory.mktemp("segment")
    sources = [str(make_set(root / "balls", 10, fov=True)), str(make_set(root / "small", 12, (24, 24)))]
    return segment(sources, encoder=ENCODER, out=str(root / "run"), cldice=True, **QUICK)


def test_the_head_learns(run: Path) -> None:
    results = json.loads((run / "results.json").read_text())
    # All background scores 0, all foreground 2 p / (1 + p) with p the share of foreground, about 0.4.
    for item in results["sets"].values():
        assert item["test"]["dsc"]["mean"] > 0.85
    lines = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    losses = [line["loss"] for line in lines if "loss" in line]
    assert len(losses) == 60
    assert np.mean(losses[-10:]) < 0.5 * np.mean(losses[:10])
    scores = {line["step"]: line["val_dsc"] for line in lines if "val_dsc" in line}
    assert sorted(scores) == [0, 20, 40, 60]  # 0 is the closed form
    best = max(scores.values())
    assert results["training"][0]["best_val_dsc"] == best
    assert results["training"][0]["best_step"] == min(step for step, value in scores.items() if value == best)


def test_scores_match_a_recomputation_from_the_saved_masks(run: Path) -> None:
    with open(run / "cases.csv", newline="") as file:
        rows = list(csv.DictReader(file))
    results = json.loads((run / "results.json").read_text())
    assert {row["set"] for row in rows} == {"balls", "small"}
    for name in ("balls", "small"):
        scores = []
        for row in [row for row in rows if row["set"] == name]:
            found = np.asarray(Image.open(run / "predictions" / name / f"{row['case']}.png"))
            truth = np.asarray(Image.open(run.parent / name / "masks" / f"{row['case']}.png"))
            assert set(np.unique(found)) <= {0, 255}
            scores.append(dsc(found > 0, truth > 0))
            assert float(row["dsc"]) == pytest.approx(scores[-1], abs=1e-6)
            if name == "balls":
                inner = (slice(4, -4), slice(4, -4))
                assert float(row["dsc_fov"]) == pytest.approx(dsc(found[inner] > 0, truth[inner] > 0), abs=1e-6)
            else:
                assert row["dsc_fov"] == ""
        summary = results["sets"][name]["test"]["dsc"]
        assert summary["mean"] == pytest.approx(np.mean(scores))
        assert summary["std"] == pytest.approx(np.std(scores, ddof=1))
        assert (summary["cases"], summary["skipped"]) == (results["sets"][name]["cases"]["test"], 0)
    assert "dsc_fov" not in results["sets"]["small"]["test"]
    assert results["sets"]["balls"]["test"]["cldice"]["mean"] > 0.7


def test_the_guide_is_named_wherever_results_are(run: Path) -> None:
    results = json.loads((run / "results.json").read_text())
    assert results["guide"] == results["encoder"]["guide"] == "frangi"
    assert json.loads((run / "head.json").read_text())["encoder"]["guide"] == "frangi"
    page = (run / "report.html").read_text()
    assert "Guide channel" in page
    assert page.count("frangi") >= 3


def test_the_folder_explains_itself(run: Path) -> None:
    config = yaml.safe_load((run / "config.yaml").read_text())
    assert config["crop_size"] == 32
    assert config["encoder"] == ENCODER
    names = {path.name for path in (run / "overlays").iterdir()}
    assert {"balls-best.png", "balls-worst.png", "small-best.png"} <= names
    page = (run / "report.html").read_text()
    assert "http://" not in page
    assert "https://" not in page


def test_a_head_of_before_answers_as_it_was_trained(run: Path, tmp_path: Path) -> None:
    """Heads of older versions saw maps grown to multiples of 16, and their files do not say so."""
    path = run / "head.safetensors"
    with safe_open(path, framework="pt") as file:
        text = json.loads(file.metadata()["frepa"])
    assert load_segmenter(run).head.multiple == text["head"].pop("multiple") == 1
    save_file(load_file(path), tmp_path / "head.safetensors", {"frepa": json.dumps(text)})
    assert load_segmenter(tmp_path).head.multiple == 16


def test_the_encoder_stays_frozen_and_only_the_head_is_saved(run: Path) -> None:
    encoder, reference = open_encoder(ENCODER)
    description = json.loads((run / "head.json").read_text())
    assert description["encoder"]["weights"] == reference.weights
    segmenter = load_segmenter(run)
    assert weights_hash(segmenter.encoder) == reference.weights
    with safe_open(run / "head.safetensors", framework="pt") as file:
        assert set(file.keys()) == set(segmenter.head.state_dict())
    assert (run / "head.safetensors").stat().st_mode == (run / "head.json").stat().st_mode  # as the umask says
    assert not any(parameter.requires_grad for parameter in segmenter.encoder.parameters())
    segmenter.train()
    assert segmenter.head.training
    assert not segmenter.encoder.training
    # One changed number is noticed.
    with torch.no_grad():
        next(encoder.parameters()).view(-1)[0] += 1e-3
    assert weights_hash(encoder) != reference.weights


def test_a_saved_segmenter_predicts_what_the_run_did(run: Path) -> None:
    head = load_head(run)
    with open(run / "cases.csv", newline="") as file:
        row = next(csv.DictReader(file))
    found = head.predict(run.parent / row["set"] / "images" / f"{row['case']}.png")
    saved = np.asarray(Image.open(run / "predictions" / row["set"] / f"{row['case']}.png"))
    np.testing.assert_array_equal(found.mask, saved)
    np.testing.assert_allclose(found.probabilities.sum(0), 1, atol=1e-5)


def test_another_encoder_is_refused(run: Path) -> None:
    with pytest.raises(InputError, match="not the encoder that the head was trained on"):
        load_segmenter(run, encoder=f"{ENCODER},seed=7")
    with pytest.raises(InputError, match=r"no head\.safetensors"):
        load_segmenter(run / "overlays")


def test_equal_seeds_give_equal_runs_whatever_the_number_of_threads(tmp_path: Path) -> None:
    source = [str(make_set(tmp_path / "set", 6))]
    quick = QUICK | {"max_steps": 8, "val_every": 4}
    runs = [
        segment(source, encoder=ENCODER, out=str(tmp_path / f"r{i}"), num_workers=workers, seed=seed, **quick)
        for i, (workers, seed) in enumerate([(0, 1), (3, 1), (0, 2)])
    ]
    first, same, other = [(folder / "metrics.jsonl").read_bytes() for folder in runs]
    assert first == same
    assert first != other
    assert (runs[0] / "cases.csv").read_bytes() == (runs[1] / "cases.csv").read_bytes()
    heads = [load_segmenter(folder).head for folder in runs[:2]]
    assert weights_hash(heads[0]) == weights_hash(heads[1])


def test_resized_images_are_scored_at_their_own_size(tmp_path: Path) -> None:
    source = make_set(tmp_path / "set", 6)
    folder = segment([str(source)], encoder=ENCODER, out=str(tmp_path / "run"), image_size=22, **QUICK)
    found = next((folder / "predictions" / "set").iterdir())
    assert Image.open(found).size == (44, 40)
    assert json.loads((folder / "results.json").read_text())["sets"]["set"]["test"]["dsc"]["mean"] > 0.7
    assert load_segmenter(folder).working_size((40, 44)) == (20, 22)


def test_volumes_with_several_classes(tmp_path: Path) -> None:
    for folder in ("imagesTr", "labelsTr"):
        (tmp_path / "set" / folder).mkdir(parents=True)
    for i in range(8):
        image, mask = discs((14, 18, 20), i)
        classes = mask.astype(np.uint8)
        classes[:, :, 10:] *= 2
        image = image + 90.0 * (classes == 2)  # the classes differ in brightness
        np.save(tmp_path / "set" / "imagesTr" / f"v{i}.npy", image.astype(np.float32))
        np.save(tmp_path / "set" / "labelsTr" / f"v{i}.npy", classes)
    folder = segment(
        [str(tmp_path / "set")],
        encoder="random:tiny3d_for_tests,guide=none",
        out=str(tmp_path / "run"),
        augment=False,
        loss="dice_ce",
        **(QUICK | {"max_steps": 30}),
    )
    results = json.loads((folder / "results.json").read_text())
    assert (results["classes"], results["guide"]) == (3, "none")
    assert results["sets"]["set"]["test"]["dsc"]["mean"] > 0.5
    import nibabel

    with open(folder / "cases.csv", newline="") as file:
        row = next(csv.DictReader(file))
    found = np.asarray(nibabel.load(folder / "predictions" / "set" / f"{row['case']}.nii.gz").dataobj).T  # z, y, x
    truth = np.load(tmp_path / "set" / "labelsTr" / f"{row['case']}.npy")
    for k in (1, 2):
        if row[f"dsc_{k}"]:
            assert float(row[f"dsc_{k}"]) == pytest.approx(dsc(found == k, truth == k), abs=1e-6)


def test_an_existing_run_is_never_touched_unasked(tmp_path: Path, run: Path) -> None:
    before = {path: path.stat().st_mtime_ns for path in run.rglob("*")}
    source = str(run.parent / "small")
    with pytest.raises(InputError, match="--overwrite"):
        segment([source], encoder=ENCODER, out=str(run), **QUICK)
    assert {path: path.stat().st_mtime_ns for path in run.rglob("*")} == before
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "thesis.txt").write_text("all of it")
    with pytest.raises(InputError, match="not a run of this program"):
        segment([source], encoder=ENCODER, out=str(tmp_path / "mine"), overwrite=True, **QUICK)
    assert (tmp_path / "mine" / "thesis.txt").read_text() == "all of it"


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"encoder": "random:resnet_9000"}, "resnet_9000"),
        ({"encoder": "random:tiny3d_for_tests"}, "holds 2D images, and the encoder takes volumes. Give a 2D encoder"),
        ({"encoder": "/nowhere/run"}, "/nowhere/run was not found"),
        ({"batch_size": 0}, "--batch-size 0: expected 1 or more"),
        ({"overlap": 1.0}, "--overlap 1.0"),
        ({"window": "liver"}, "Unknown window 'liver'"),
    ],
)
def test_wrong_options_are_explained_and_leave_nothing_behind(
    tmp_path: Path, run: Path, options: dict[str, object], message: str
) -> None:
    given = {"encoder": ENCODER, "out": str(tmp_path / "out"), **QUICK} | options
    with pytest.raises(InputError, match=message):
        segment([str(run.parent / "small")], **given)  # type: ignore[arg-type]
    assert not (tmp_path / "out").exists()


def test_the_command_line(tmp_path: Path, run: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out = str(tmp_path / "cli")
    words = ["segment", str(run.parent / "small"), "--encoder", ENCODER, "--out", out, "--max-steps", "2"]
    assert main([*words, "--batch-size", "2", "--quiet"]) == 0
    captured = capsys.readouterr()
    assert captured.out.splitlines()[-1] == out
    assert "guide channel: frangi" in captured.err
    assert "two classes" in captured.err
    assert main([*words, "--quiet"]) == 2
    assert "--overwrite" in capsys.readouterr().err
    assert main(["segment", str(tmp_path / "none"), "--encoder", ENCODER, "--out", str(tmp_path / "x")]) == 2
    assert "none does not exist" in capsys.readouterr().err
