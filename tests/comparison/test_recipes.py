"""Every recipe of the paper's tables and figures, instantiated: its words are known, its sources open on tiny trees."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import nibabel
import numpy as np
import pytest
import yaml
from PIL import Image

import catalogue_cases_chest
import catalogue_cases_eye
import catalogue_cases_other
import catalogue_cases_volumes
from catalogue_trees import Case
from frepa import cli
from frepa.comparison.ablations import read_ablation, with_encoders
from frepa.comparison.study import read_study
from frepa.datasets.opening import open_source
from frepa.datasets.stacks import Dividing
from frepa.downstream.classification.data import open_data
from frepa.downstream.detection.data import open_boxes
from frepa.downstream.segmentation.data import open_sets
from frepa.encoders.files import load_encoder
from frepa.encoders.options import split_name
from frepa.encoders.registry import encoder_names
from frepa.errors import InputError
from frepa.options import groups
from frepa.pretraining.options import resolved
from frepa.verbs._comparing import BASELINES, VERBS
from frepa.verbs.pretrain import pretrain

ROOT = Path(__file__).resolve().parents[2]
RECIPES = sorted((ROOT / "recipes").rglob("*.yaml"))
_MODULES = (catalogue_cases_chest, catalogue_cases_eye, catalogue_cases_other, catalogue_cases_volumes)
TREES: dict[str, Case] = {name: case for module in _MODULES for name, case in module.CASES.items()}


def command(recipe: Path) -> list[str]:
    """The command in its second line."""
    line = recipe.read_text().splitlines()[1]
    assert line.startswith("# frepa ")
    return line.removeprefix("# frepa ").split()


def named(verb: str) -> list[Path]:
    return [recipe for recipe in RECIPES if command(recipe)[0] == verb]


def ids(recipes: list[Path]) -> list[str]:
    return [recipe.relative_to(ROOT / "recipes").with_suffix("").as_posix() for recipe in recipes]


def build(text: str) -> None:
    """The tiny tree of a source, below the folder that tests run in."""
    found = re.fullmatch(r"([a-z0-9-]+)(\?[^:]*)?:(data/.+)", text)
    if found is not None:
        if not Path(found[3]).exists():
            TREES[found[1]].build(Path(found[3]))
        return
    Path(text).mkdir(parents=True, exist_ok=True)
    rng = np.random.default_rng(0)
    Image.fromarray(rng.integers(0, 255, (8, 8), dtype=np.uint8)).save(Path(text) / "one.png")
    nibabel.save(nibabel.Nifti1Image(rng.normal(size=(6, 6, 6)).astype(np.float32), np.eye(4)), Path(text) / "v.nii")


def check_encoder(spec: str, small: bool) -> int | None:
    """Axes of what a specification names, None where it is a file or run that is made first."""
    if spec.startswith("slices:"):
        check_encoder(spec.removeprefix("slices:"), small)
        return 3
    if spec.startswith("random:"):
        name = split_name(spec.removeprefix("random:"))[0]
        dims = next(dims for dims in (2, 3) if name in encoder_names(dims))
        if small:
            load_encoder(spec)
        return dims
    return None


def made_by() -> dict[str, int]:
    """Every run that a recipe of pretraining writes, and its axes."""
    contents = [yaml.safe_load(recipe.read_text()) for recipe in named("pretrain")]
    return {content["out"]: content.get("dims", 2) for content in contents}


def test_every_table_and_figure_has_its_recipe_at_both_scales():
    for place in ("paper", "small"):
        names = {recipe.stem for recipe in RECIPES if recipe.parent.name == place}
        for number in range(1, 10):
            assert any(re.match(rf"table{number}\b", name) for name in names), (place, number)
        assert {"fig1a", "fig3", "fig4", "fig5", "fig6", "fig7"} <= names


def test_every_recipe_has_its_command_in_the_documentation():
    text = (ROOT / "docs/recipes.md").read_text()
    for recipe in RECIPES:
        words = " ".join(["frepa", *command(recipe)])
        assert words in text
        assert recipe.relative_to(ROOT).as_posix() in words


@pytest.mark.parametrize("recipe", named("compare") + named("ablate"), ids=ids(named("compare") + named("ablate")))
def test_a_study_is_understood_and_its_sources_open(recipe, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    content: dict[str, Any] = yaml.safe_load(recipe.read_text())
    runs = made_by()
    if command(recipe)[0] == "ablate":
        known = {o.name: o for group in groups(pretrain) for o in group.options if "." not in o.name}
        planned = read_ablation(content, recipe.name, known)
        build(planned[0].source)
        assert len(open_source(planned[0].source)) >= 1
        runs |= {one.folder: one.options.get("dims", 2) for one in planned}
        content = with_encoders(content, planned, str)
    study = read_study(content, recipe.name, VERBS, {name: one.options for name, one in BASELINES.items()})
    axes = set()
    for row in study.rows:
        for spec in row.encoders:
            found = runs.get(spec) or check_encoder(spec, recipe.parent.name == "small")
            assert found or spec.startswith(("hf:", "medsam:")), spec
            inner = spec.removeprefix("slices:")
            assert not inner.startswith("runs/") or inner in runs, f"{spec}: no recipe makes it"
            axes |= {found} - {None}
    assert len(axes) == 1
    (dims,) = axes
    for task in study.tasks:
        for text in [task.source] if isinstance(task.source, str) else task.source:
            build(text)
            if task.verb == "segment":
                assert open_sets([text], dims=dims, how=Dividing(complete=False))[0].cases
            elif task.verb == "classify":
                assert len(open_data(text, dims=dims, how=Dividing(complete=False)).records)
            else:
                assert len(open_boxes(text, dims=dims, how=Dividing(complete=False)).records)


@pytest.mark.parametrize("recipe", named("pretrain"), ids=ids(named("pretrain")))
def test_a_pretraining_is_understood(recipe, tmp_path, monkeypatch):
    """Its options are those of the verb, agree with each other, and its encoder is one."""
    monkeypatch.chdir(tmp_path)
    seen = []
    monkeypatch.setattr("frepa.pretraining.run.run_pretraining", lambda settings, tools: seen.append(settings) or "out")
    given = cli.read_words("pretrain", pretrain, ["--config", str(recipe)])
    assert given is not None
    pretrain(**given)
    settings = resolved(seen[0])
    assert settings.out == f"runs/{recipe.parent.name}/{recipe.stem}"
    dims = settings.data.dims
    assert split_name(str(settings.encoder))[0] in encoder_names(dims)
    if recipe.parent.name == "small":
        load_encoder(f"random:{settings.encoder}")
    build(settings.source)
    assert len(open_source(settings.source, dims=dims)) >= 1


@pytest.mark.parametrize("recipe", named("analyze"), ids=ids(named("analyze")))
def test_an_analysis_is_understood(recipe, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    from frepa.analysis.registry import ANALYSES

    given = cli.read_words("analyze", cli.load_verb("analyze"), ["--config", str(recipe)])
    assert given is not None
    ANALYSES.build(given["kind"])
    assert given["out"] == f"runs/{recipe.parent.name}/{recipe.stem}"
    for text in given.get("encoder", []):
        spec = text.partition("=")[2]
        assert spec in made_by() or check_encoder(spec, recipe.parent.name == "small") == 2
    build(given["source"])
    assert len(open_source(given["source"])) >= 1


def test_a_recipe_with_a_wrong_word_would_be_seen(tmp_path):
    (tmp_path / "x.yaml").write_text("source: a\nout: b\nencodr: vit_tiny\n")
    with pytest.raises(InputError, match="encodr"):
        cli.read_words("pretrain", pretrain, ["--config", str(tmp_path / "x.yaml")])
