"""What a head says of its encoder is believed only where its maker is who opens it."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest

from frepa.encoders.files import save_encoder
from frepa.encoders.reference import open_encoder, reopen_encoder
from frepa.encoders.registry import build_encoder
from frepa.errors import InputError

TINY = "random:convnext_atto"


@pytest.fixture
def run(tmp_path: Path) -> Path:
    save_encoder(tmp_path, build_encoder("convnext_atto"), {})
    return tmp_path


def test_ones_own_head_finds_its_encoder(run: Path) -> None:
    _, reference = open_encoder(str(run))
    assert len(reference.seal) == 16
    assert reopen_encoder(reference).name == "convnext_atto"


def test_a_head_of_somebody_else_opens_no_file_on_its_word(run: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    _, reference = open_encoder(str(run))
    monkeypatch.setenv("FREPA_SECRET", "somebody else's")
    with pytest.raises(InputError, match="Name the encoder yourself"):
        reopen_encoder(reference)
    assert reopen_encoder(reference, str(run)).name == "convnext_atto"


@pytest.mark.parametrize("change", [{"source": "/etc"}, {"weights": "0" * 32}, {"seal": ""}])
def test_a_head_that_was_changed_is_somebody_elses(run: Path, change: dict[str, str]) -> None:
    _, reference = open_encoder(str(run))
    with pytest.raises(InputError, match="Name the encoder yourself"):
        reopen_encoder(replace(reference, **change))


def test_an_untrained_encoder_is_no_file_and_needs_no_seal() -> None:
    _, reference = open_encoder(TINY)
    assert reopen_encoder(replace(reference, seal="")).name == "convnext_atto"


@pytest.mark.parametrize("source", ["timm:resnet18,download=true", "slices:timm:resnet18,download=true,width=64"])
def test_nothing_is_fetched_that_only_the_head_asks_for(source: str, monkeypatch: pytest.MonkeyPatch) -> None:
    def fetched(*arguments: object, **options: object) -> None:
        raise AssertionError("the network was asked")

    monkeypatch.setattr("frepa.encoders.timm_weights._download", fetched)
    _, reference = open_encoder(TINY)
    with pytest.raises(InputError, match="never does that"):
        reopen_encoder(replace(reference, source=source))
