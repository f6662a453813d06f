"""Promise: encoders, checkpoints, states, runs and stores that hold anything at all are refused in one sentence."""

from __future__ import annotations

import json
import shutil
import struct
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file, save_file

from faults_helpers import command
from frepa.cli import main
from frepa.encoders.files import load_encoder, save_encoder
from frepa.errors import InputError
from frepa.states import DamagedFile, load_tree, save_tree


def test_descriptions_of_encoders_that_describe_none(tmp_path):
    from frepa.encoders.registry import build_encoder

    folder = tmp_path / "encoder"
    save_encoder(folder, build_encoder("timm:test_convnext", dims=2))
    with safe_open(folder / "encoder.safetensors", framework="pt") as file:
        whole = json.loads(file.metadata()["frepa"])
    weights = load_file(folder / "encoder.safetensors")
    texts = ["[]", "3", '"x"', "null", "{", "{}", "[" * 5000, '{"encoder": 5}', '{"encoder": {}}']
    others: tuple[Any, ...] = (None, -1, 1e300, "x", [], {}, {"a": 1}, [1, 2])
    texts += [json.dumps({**whole, key: other}) for key in whole for other in others]
    texts += [
        json.dumps({**whole, "encoder": {**whole["encoder"], key: other}})
        for key in whole["encoder"]
        for other in others
    ]
    refused = []
    for text in texts:
        save_file(weights, tmp_path / "e.safetensors", metadata={"frepa": text})
        try:
            load_encoder(tmp_path / "e.safetensors")
        except InputError as error:
            refused.append(str(error))
    assert all(str(tmp_path / "e.safetensors") in text for text in refused)
    assert len(refused) >= 9 + 6
    for header in (b"[]", b"{", b"", b'"x"', b"{}"):
        (tmp_path / "raw.safetensors").write_bytes(struct.pack("<Q", len(header)) + header)
        with pytest.raises(InputError):
            load_encoder(tmp_path / "raw.safetensors")
    (tmp_path / "raw.safetensors").write_bytes(struct.pack("<Q", 2**62) + b"{}")
    with pytest.raises(InputError, match="not a safetensors file"):
        load_encoder(tmp_path / "raw.safetensors")


@pytest.mark.parametrize(
    "content",
    [[torch.zeros(3)], torch.zeros(3), 5, None, {}, {"a": 1}, {1: torch.zeros(2)}, {"state_dict": [1]},
     {"patch_embed.proj.weight": torch.zeros(2)}, {"model": {"x": torch.zeros(3)}}],
)  # fmt: skip
def test_checkpoints_that_hold_no_weights(tmp_path, content):
    torch.save(content, tmp_path / "x.pth")
    with pytest.raises(InputError):
        load_encoder(f"timm:test_vit@{tmp_path / 'x.pth'}")
    with pytest.raises(InputError, match="not a safetensors file"):
        load_encoder(tmp_path / "x.pth")


def test_states_that_are_bytes(tmp_path):
    junk = bytes(range(256)) * 9
    save_tree(tmp_path / "state", {"a": torch.ones(3)})
    (tmp_path / "state.sha256").write_bytes(junk)
    with pytest.raises(DamagedFile, match="no hash"):
        load_tree(tmp_path / "state")
    (tmp_path / "state").write_bytes(junk)
    with pytest.raises(DamagedFile):
        load_tree(tmp_path / "state")


@pytest.fixture(scope="module")
def run(sets, tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("run") / "run"
    words = [*command("pretrain", sets), "--checkpoint-every=1"]
    assert main([*words, f"--out={folder}", "--max-steps=2"]) == 0
    return folder


@pytest.mark.parametrize(
    ("name", "code"),
    [("metrics.jsonl", 0), ("speed.jsonl", 0), ("skipped.csv", 0), ("config.yaml", 2), ("source.npz", 2),
     (".frepa-run.jsonl", 2), ("checkpoints/step-000000002.safetensors.sha256", 0),
     ("checkpoints/step-000000002.safetensors", 0)],
)  # fmt: skip
def test_files_of_a_run_that_are_bytes(sets, run, tmp_path, said, name, code):
    again = tmp_path / "run"
    shutil.copytree(run, again)
    (again / name).write_bytes(bytes(range(256)) * 9)
    words = [*command("pretrain", sets), f"--out={again}", "--resume", "--max-steps=3"]
    found = said(*words, code=code)
    if "step-" in name:
        assert "Checkpoint damaged, using the one before it" in found
    if code:
        assert name.rpartition("/")[2] in found
    else:
        assert (again / "report.html").read_text("utf-8")


def test_a_store_that_says_what_none_can_be(sets, tmp_path, said):
    store = tmp_path / "store"
    assert main([*command("prepare", sets), f"--out={store}"]) == 0
    facts = json.loads((store / "store.json").read_text())
    wrong: dict[str, tuple[Any, ...]] = {
        "dims": (4, -1, "x", None, True, 10**30), "records": (-1, 10**30, 13, 0, 1.5, "x", None, [1]),
        "channels": (0, 2, None), "affine": (0, "x", None), "modalities": (["CT"], {"CT": -1}, None),
        "files": ([], {"a": 1}, {"index/records.bin": {"bytes": -1}}, None, {}), "labels": (5, [[1]]),
        "fingerprint": (5, None), "options": ([], None),
    }  # fmt: skip
    for name, values in wrong.items():
        for value in values:
            (store / "store.json").write_text(json.dumps({**facts, name: value}))
            assert "damaged" in said(*command("check", sets, store)), (name, value)
    for text in ("[" * 5000, "[]", "3", "null"):
        (store / "store.json").write_text(text)
        assert "damaged: it holds no names and values in JSON" in said(*command("check", sets, store))
