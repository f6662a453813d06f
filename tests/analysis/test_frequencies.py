"""What of each frequency an encoder keeps: Eq. 15 by plain NumPy, nulls at zero, and the verb from file to page."""

from __future__ import annotations

import json
import math
import xml.etree.ElementTree as ElementTree
from pathlib import Path

import numpy as np
import pytest
import torch

from frepa import cli
from frepa.analysis.decoding import train_decoder
from frepa.analysis.frequencies import Frequencies, FrequencyOptions, read_bands
from frepa.analysis.recovery import Comparison, recovery
from frepa.analysis.registry import ANALYSES
from frepa.analysis.views import open_views, parts_of, spread
from frepa.errors import InputError
from frepa.verbs.analyze import analyze
from tiny_studies import QUIET, TINY, BlockEncoder, Unshown, gaussian, study, textures, write_textures


@pytest.mark.parametrize("shape", [(16, 20), (15, 16), (8, 12, 10)])
def test_similarity_is_equation_15_by_numpy(shape: tuple[int, ...]) -> None:
    """Image and reconstruction are filtered apart, as the equation has it, on the full complex spectrum."""
    bands = read_bands("0.15,0.35")
    images = torch.from_numpy(textures(shape, 6, 1)).unflatten(0, (3, 2))  # three images of two channels
    told = images + 0.1 * torch.from_numpy(textures(shape, 6, 2)).unflatten(0, (3, 2))
    seen = Comparison(bands)
    for part in (slice(0, 2), slice(2, 3)):
        seen.add(images[part], (told - images)[part], 5, 1)
    found = seen.result(math.nan)
    axes = tuple(range(2, 2 + len(shape)))
    radius = np.sqrt(sum(np.square(f) for f in np.meshgrid(*map(np.fft.fftfreq, shape), indexing="ij")))
    for name, (low, high) in bands.items():
        inside = (radius >= low) & (radius < high)
        filtered = [
            np.fft.ifftn(np.fft.fftn(x.double().numpy(), axes=axes) * inside, axes=axes) for x in (told, images)
        ]
        assert all(np.abs(x.imag).max() < 1e-9 for x in filtered)
        off = (filtered[0] - filtered[1]).real
        rho = 1 - np.sqrt((off**2).mean((1, *axes)))
        assert found.similarity[name] == pytest.approx(rho.mean(), abs=1e-6)
        assert found.spread[name] == pytest.approx(rho.std(), abs=1e-6)
        whole = filtered[1].real - filtered[1].real.mean(axes, keepdims=True)
        off_mean = off - off.mean(axes, keepdims=True)
        assert found.bands[name] == pytest.approx(1 - (off_mean**2).sum() / (whole**2).sum(), abs=1e-5)


def analysed(tmp_path: Path, *encoders: BlockEncoder, fall: float = 1.0, **options: object) -> dict:
    side = 32 if encoders[0].dims == 2 else -12
    source = write_textures(tmp_path / "images", 40 if side > 0 else 24, side, fall)
    analysis = Frequencies(FrequencyOptions(**{"steps": 0, **options}))
    analysis.check()
    found = analysis.analyse(study(source, *encoders), Unshown())
    return json.loads(json.dumps(found.numbers))["maps"]


@pytest.mark.parametrize("dims", [2, 3])
def test_the_identity_keeps_everything_and_nothing_beyond_its_null(tmp_path: Path, dims: int) -> None:
    """A random projection to as many numbers as pixels keeps everything too."""
    maps = analysed(tmp_path, BlockEncoder(4 if dims == 2 else 2, dims))
    for share in maps["blocks 0"]["closed_form"]["bands"].values():
        assert share > 0.99
    for more in maps["blocks 0"]["beyond_null"].values():
        assert abs(more) < 0.005


def test_of_noise_another_random_projection_keeps_what_the_null_keeps(tmp_path: Path) -> None:
    maps = analysed(tmp_path, BlockEncoder(4, matrix=gaussian(16, 6, 5)), fall=0.0)
    assert maps["null"]["closed_form"]["bands"]["high"] == pytest.approx(6 / 16, abs=0.08)
    for more in maps["blocks 0"]["beyond_null"].values():
        assert abs(more) < 0.12


def test_a_trained_decoder_tells_what_the_closed_form_tells(tmp_path: Path) -> None:
    maps = analysed(tmp_path, BlockEncoder(4, matrix=gaussian(16, 6, 5)), steps=120, lr=1e-2)
    trained, closed = (maps["blocks 0"][kind]["bands"] for kind in ("trained_decoder", "closed_form"))
    assert trained["low"] > 0.9 * closed["low"]
    assert trained["low"] > trained["high"]
    assert maps["null"]["trained_decoder"]["best_step"] > 12


def test_the_decoder_is_the_same_for_the_same_seed(tmp_path: Path) -> None:
    source = write_textures(tmp_path / "images", 12, 16)
    blocks = BlockEncoder(4, matrix=gaussian(16, 4, 0))
    ours = study(source, blocks, batch_size=4)
    views = open_views(ours)
    first, again = (
        train_decoder(ours.subjects[0].dense, 4, 4, views.fit, ours, steps=6, lr=1e-2)(views.test[0]) for _ in range(2)
    )
    assert torch.equal(first, again)
    other = study(source, blocks, batch_size=4, seed=1)
    assert not torch.equal(
        first, train_decoder(ours.subjects[0].dense, 4, 4, views.fit, other, steps=6, lr=1e-2)(views.test[0])
    )


def test_parts_do_not_overlap_and_lie_evenly() -> None:
    image = np.arange(50 * 70, dtype=np.float32).reshape(1, 50, 70)
    whole = parts_of(image, (16, 16), 99)
    assert len(whole) == 3 * 4
    values = np.concatenate([part.ravel() for part in whole])
    assert len(np.unique(values)) == values.size
    (middle,) = parts_of(image, (16, 16), 1)
    assert middle[0, 0, 0] == image[0, 17, 27]
    (mirrored,) = parts_of(image[:, :5, :5], (8, 8), 4)
    assert mirrored.shape == (1, 8, 8)
    assert np.array_equal(mirrored[0, 5], mirrored[0, 4])


def test_few_of_many_are_spread_over_all() -> None:
    assert spread(list("aaaabbbb"), 2) == ["a", "b"]
    assert spread(list("abcde"), 3) == ["a", "c", "e"]
    assert spread([1, 2], None) == spread([1, 2], 5) == [1, 2]


def test_the_verb_writes_numbers_figures_and_a_page(tmp_path: Path) -> None:
    source = write_textures(tmp_path / "images")
    out = tmp_path / "out"
    words = ["analyze", "frequencies", str(source), "--encoder", f"ours={TINY}", "--encoder", f"{TINY},seed=1",
             "--crop-size=32", "--kind.steps=3", "--quiet", "--num-workers=0", "--out", str(out)]  # fmt: skip
    assert cli.main(words) == 0
    results = json.loads((out / "results.json").read_text())
    assert list(results["numbers"]["maps"]) == ["ours", "untrained tiny_for_tests, no guide", "null"]
    assert results["inputs"]["views"] == {"size": [32, 32], "fit": 8, "test": 2, "channels": 1}
    for name in results["figures"]:
        assert (out / "figures" / f"{name}.png").read_bytes()[:4] == b"\x89PNG"
        ElementTree.parse(out / "figures" / f"{name}.svg")
    page = (out / "report.html").read_text()
    assert page.count("<img") == len(results["figures"])
    # The same numbers by the parts of it, put together here
    from frepa.analysis.run import open_subjects

    subjects = open_subjects([TINY], Frequencies(FrequencyOptions()), torch.device("cpu"), None)
    views = open_views(study(source, subjects[0].encoder, crop_size=32))
    fit = torch.cat(views.fit).split(2)
    alone = recovery(subjects[0].dense, 2, fit, views.test)
    told = results["numbers"]["maps"]["ours"]["closed_form"]
    assert told["bands"]["low"] == pytest.approx(alone.bands["low"], abs=1e-6)


def test_what_was_configured_can_be_configured_again(tmp_path: Path) -> None:
    source, out = write_textures(tmp_path / "images", 6, 20), tmp_path / "out"
    words = ["analyze", "frequencies", str(source), "--encoder", f"ours={TINY}", "--encoder", f"{TINY},seed=1",
             "--kind.steps=2", "--quiet", "--num-workers=0", "--out", str(out)]  # fmt: skip
    assert cli.main(words) == 0
    results = json.loads((out / "results.json").read_text())
    assert cli.main(words) == 2  # only with a word an analysis is replaced
    assert cli.main(["analyze", "frequencies", "--config", str(out / "config.yaml"), "--overwrite", "--quiet"]) == 0
    assert json.loads((out / "results.json").read_text())["numbers"] == results["numbers"]


def test_in_python_and_with_its_scores(tmp_path: Path) -> None:
    source = write_textures(tmp_path / "volumes", 6, -12)
    run = analyze(
        {"name": "frequencies", "steps": 0}, str(source), encoder="random:tiny3d_for_tests", out=str(tmp_path / "out"),
        crop_size=8, **QUIET,
    )  # fmt: skip
    rows = {(row["of"], row["score"]): row["value"] for row in run.scores.to_pylist()}
    assert rows["null", "r2_medium"] == run.results["numbers"]["maps"]["null"]["closed_form"]["bands"]["medium"]


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["frequncies", "images", "--encoder", TINY], "Did you mean frequencies?"),
        (["frequencies", "images"], "--encoder missing: one is needed."),
        (["frequencies", "images", "--encoder=random:tiny3d_for_tests"], "images: holds 2D images, and the encoder"),
        (
            ["frequencies", "images", "--encoder", TINY, "--encoder=random:tiny3d_for_tests"],
            "this is an encoder for 3D images, and the others take 2D ones.",
        ),
        (["frequencies", "two", "--encoder", TINY], "2 patients (or single images) cannot be divided"),
        (["frequencies", "images", "--encoder", TINY, "--kind.bands=0.3,0.1"], "--kind.bands 0.3,0.1: expected two"),
        (["frequencies", "images", "--encoder", TINY, "--kind.steps=-1"], "--kind.steps -1: expected 0 or more."),
        (["frequencies", "images", "--encoder", TINY, "--images=1"], "--images 1: expected 2 or more."),
        (["frequencies", "images", "--encoder", TINY, "--encoder", TINY], "all of them are the same encoder"),
        (["frequencies", "images", "--encoder", TINY, "--steps=3"], "It belongs to the kind: --kind.steps."),
        (["frequencies", "images", "--encoder", "nowhere"], "nowhere"),
        (["frequencies", "images", "--encoder", TINY, "--window=any"], "--window any: a window is drawn"),
    ],
)
def test_wrong_input_in_plain_words(
    words: list[str], message: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture
) -> None:
    monkeypatch.chdir(tmp_path)
    write_textures(tmp_path / "images", 5, 16)
    write_textures(tmp_path / "two", 2, 16)
    assert cli.main(["analyze", *words, "--out=out", "--quiet"]) == 2
    told = capsys.readouterr().err
    assert message in told
    assert "Traceback" not in told
    assert not Path("out").exists()


def test_volumes_are_looked_at_slice_by_slice_by_a_2d_encoder(tmp_path: Path) -> None:
    source = write_textures(tmp_path / "volumes", 6, -16)
    views = open_views(study(source, BlockEncoder(4)), fit=20, test=10)
    assert views.size == (16, 16)
    with pytest.raises(InputError, match="volumes"):
        open_views(study(write_textures(tmp_path / "images", 5), BlockEncoder(2, 3)))


@pytest.mark.parametrize("kind", ANALYSES.names())
def test_every_option_of_every_kind_is_explained(kind: str, capsys: pytest.CaptureFixture) -> None:
    assert cli.main(["analyze", kind, "--help"]) == 0
    assert f"kind {kind}: " in capsys.readouterr().out
    parser = cli.build_parser("analyze", cli.load_verb("analyze"), {"kind": kind})
    own = [action for action in parser._actions if action.dest.startswith("kind__")]
    assert own
    assert all(action.help for action in own)
