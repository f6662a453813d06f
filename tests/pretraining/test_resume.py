"""A run that was killed, stopped or spread over processes ends as one that was left alone."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from functools import cache, partial
from pathlib import Path
from typing import Any

import nibabel
import numpy as np
import pytest
import torch
from PIL import Image

import frepa
from frepa.checkpoints import Checkpoints
from frepa.encoders.files import find_weights, load_encoder, read_description
from frepa.errors import InputError
from frepa.images.angiograms import angiogram
from frepa.pretraining.journal import Journal
from processes import Command

_OPTIONS = [
    "--image-size=32", "--batch-size=4", "--max-steps=12", "--method.spectrum-patch=4",
    "--method.image-patch=8", "--checkpoint-every=4", "--ema-decay=0.9", "--schedule=cosine", "--warmup-steps=2",
    "--val-images=2", "--seed=3", "--quiet",
]  # fmt: skip
_OF_DIMS = {
    2: ["--encoder=timm:test_convnext"],
    # With all that is drawn for each crop
    3: ["--dims=3", "--encoder=vit3d_tiny,image_size=16,depth=1", "--image-size=16", "--batch-size=2", "--spacing=1.5",
        "--foreground=0.5"],
}  # fmt: skip


def dies(where: str, count: int) -> None:
    """Let this process kill itself, as the scheduler of a failing machine would: no handler runs, nothing is flushed.

    At step ``count``, or while state ``count`` is being written.
    """
    from frepa import files
    from frepa.pretraining.journal import Journal

    def die() -> None:
        os.kill(os.getpid(), signal.SIGKILL)

    step, rename, seen = Journal.step, os.replace, []

    def after(self: Journal, number: int, *args: Any, **kwargs: Any) -> None:
        step(self, number, *args, **kwargs)
        if number == count:
            die()

    def replace(source: str, target: str) -> None:
        if str(target).endswith(".safetensors"):
            seen.append(target)
            if len(seen) == count:
                die()
        rename(source, target)

    if where == "step":
        Journal.step = after  # type: ignore[method-assign]
    else:
        files.os.replace = replace


@pytest.fixture(scope="module")
def sources(tmp_path_factory) -> dict[int, Path]:
    """A folder of images and one of volumes."""
    folders = {dims: tmp_path_factory.mktemp(f"scans{dims}d") for dims in (2, 3)}
    for seed in range(26):  # two epochs, since every one is drawn as a picture
        image, _ = angiogram(48, seed)
        Image.fromarray((image * 255).astype(np.uint8)).save(folders[2] / f"{seed}.png")
    for seed in range(10):
        volume = np.random.default_rng(seed).normal(100, 20, (30, 24, 20)).astype(np.float32)
        nibabel.save(nibabel.Nifti1Image(volume, np.diag([1, 1.2, 2.5, 1])), folders[3] / f"{seed}.nii")
    return folders


@pytest.fixture(scope="module")
def images(sources) -> Path:
    return sources[2]


def _command(source: Path, run: Path, *more: str, dims: int = 2) -> list[str]:
    return ["pretrain", str(source), f"--out={run}", *_OPTIONS, *_OF_DIMS[dims], *more]


def _without_threads_of_the_test(run: Path) -> tuple[bytes, list[str]]:
    return (run / "encoder.safetensors").read_bytes(), (run / "metrics.jsonl").read_text().splitlines()


@pytest.fixture(scope="module")
def whole_runs(sources, tmp_path_factory) -> Callable[[int], Path]:
    """The run of either number of axes that nothing happened to, made when it is asked for."""

    @cache
    def made(dims: int) -> Path:
        run = tmp_path_factory.mktemp("run") / f"untouched{dims}d"
        code, out, err = Command(_command(sources[dims], run, "--num-workers=0", dims=dims)).finish()
        assert code == 0, err
        assert out.strip().splitlines()[-1] == str(run)
        return run

    return made


@pytest.fixture
def untouched(whole_runs) -> Path:
    return whole_runs(2)


# Before the first checkpoint; while the second one is being written; between two.
_KILLS = (("step", 3), ("checkpoint", 2), ("step", 10))


@pytest.mark.timeout(1200)  # four starts and ends of a program in turn
@pytest.mark.parametrize(
    ("dims", "workers", "kills"),
    [
        (2, 2, _KILLS),
        pytest.param(2, 0, _KILLS, marks=pytest.mark.slow),
        # Of volumes the fast tests break a run off within their own process (verbs/test_pretrain_volumes.py)
        pytest.param(3, 2, _KILLS, marks=pytest.mark.slow),
        pytest.param(3, 0, _KILLS[1:2], marks=pytest.mark.slow),
    ],
)
def test_killed_and_resumed_is_bit_identical(sources, whole_runs, tmp_path, dims, workers, kills):
    run = tmp_path / "run"
    words = _command(sources[dims], run, f"--num-workers={workers}", dims=dims)
    for where, count in kills:
        code, _, err = Command([*words, "--resume"], partial(dies, where, count)).finish()
        assert code == -signal.SIGKILL, err
    code, _, err = Command([*words, "--resume"]).finish()
    assert code == 0, err
    assert "Continuing" in err
    weights, metrics = _without_threads_of_the_test(run)
    expected_weights, expected_metrics = _without_threads_of_the_test(whole_runs(dims))
    assert metrics == expected_metrics
    assert weights == expected_weights


def test_sigterm_saves_and_ends_cleanly(images, untouched, tmp_path):
    run = tmp_path / "run"
    words = _command(images, run, "--num-workers=0", "--checkpoint-every=1000")
    process = Command(words)
    end = time.monotonic() + 200
    while not (run / "metrics.jsonl").is_file() and not (run / "reconstructions").is_dir():
        assert time.monotonic() < end
        assert process.poll() is None, process.finish()
        time.sleep(0.02)
    process.send_signal(signal.SIGTERM)
    code, out, err = process.finish()
    if code != 0:  # stopped in the middle, as meant; a very fast machine may have finished
        assert code == 3, err
        assert "Continue with the same command and --resume" in err
        assert out == ""
        assert not (run / "encoder.safetensors").exists()
        _check_encoder_of_newest_checkpoint(run)
        code, _, err = Command([*words, "--resume"]).finish()
        assert code == 0, err
    assert _without_threads_of_the_test(run) == _without_threads_of_the_test(untouched)


def _check_encoder_of_newest_checkpoint(run: Path) -> None:
    """An unfinished run's encoder can be tried: it is the newest state's, averaged since the run averages."""
    with pytest.raises(InputError, match="checkpoints holds the encoder"):
        load_encoder(run)
    step, state = Checkpoints(run / "checkpoints").load_newest(print) or (0, {})
    assert read_description(find_weights(run / "checkpoints"))["extra"]["pretraining"]["steps"] == step
    average = state["states"]["ema"]
    for name, value in load_encoder(run / "checkpoints").named_parameters():
        assert torch.equal(value, average[f"module.encoder.{name}"]), name


def test_two_processes_see_the_same_samples_and_agree(images, untouched, tmp_path):
    run = tmp_path / "run"
    # Not forked: several devices start the command line again
    words = [sys.executable, "-m", "frepa.cli", *_command(images, run, "--num-workers=0", "--devices=2", "--overwrite")]
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    done = subprocess.run(words, env=environment, capture_output=True, text=True, timeout=240)
    assert done.returncode == 0, done.stderr
    alone = [json.loads(line) for line in (untouched / "metrics.jsonl").read_text().splitlines()]
    together = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    assert [row["step"] for row in alone] == [row["step"] for row in together]
    # The same samples with the same corruption: the mean over two halves of a batch is the mean over the batch.
    for a, b in zip(alone[:4], together[:4]):
        for name in ("rmse", "gradient", "hfl", "consistency"):
            if name in a:
                assert b[name] == pytest.approx(a[name], rel=2e-3), (a["step"], name)


_VIT, _CONVNEXT = "timm:test_vit,image_size=32", "timm:test_convnext"
_TEACHER = {"name": "frepa", "teacher": True, "consistency_weight": 0.5, "fov": "lit", "adaptive": True}
_VIT3D = "vit3d_tiny,image_size=16,depth=1,patch_size=8"


@pytest.mark.parametrize(
    ("dims", "method", "encoder"),
    [
        (2, _TEACHER, _CONVNEXT), (2, "mae", _VIT), (2, "simmim", _CONVNEXT), (2, "mfm", _CONVNEXT), (2, "clip", _VIT),
        (3, _TEACHER, _VIT3D), (3, "mae", _VIT3D), (3, "simmim", _VIT3D), (3, "mfm", _VIT3D),
    ],
)  # fmt: skip
def test_every_method_goes_on_as_if_it_had_not_been_broken_off(sources, tmp_path, monkeypatch, dims, method, encoder):
    """Within this process, for time; what a kill leaves is told above."""
    rows = [f"{path},{'ab'[place % 2]}" for place, path in enumerate(sorted(sources[dims].iterdir()))]
    (tmp_path / "list.csv").write_text("\n".join(["path,label", *rows]) + "\n")
    options = {
        "dims": dims, "method": method, "encoder": encoder, "image_size": 32 if dims == 2 else 16, "batch_size": 2,
        "max_steps": 3, "checkpoint_every": 2, "val_images": 0, "num_workers": 0, "quiet": True,
    }  # fmt: skip
    whole = frepa.pretrain(str(tmp_path / "list.csv"), out=str(tmp_path / "whole"), **options)
    step = Journal.step

    def broken(self, number, *args, **kwargs):
        if number == 3:
            raise KeyboardInterrupt
        step(self, number, *args, **kwargs)

    monkeypatch.setattr(Journal, "step", broken)
    with pytest.raises(KeyboardInterrupt):
        frepa.pretrain(str(tmp_path / "list.csv"), out=str(tmp_path / "run"), **options)
    monkeypatch.undo()
    run = frepa.pretrain(str(tmp_path / "list.csv"), out=str(tmp_path / "run"), resume=True, **options)
    for name in ("encoder.safetensors", "metrics.jsonl"):
        assert (run / name).read_bytes() == (whole / name).read_bytes()
