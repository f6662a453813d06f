"""Training states on disk: the same back, and nothing trusted that was changed."""

from __future__ import annotations

import hashlib
import os
import stat

import pytest
import torch

from frepa.checkpoints import Checkpoints
from frepa.states import DamagedFile, hash_path, load_tree, save_tree


def test_tree_comes_back_bit_for_bit(tmp_path):
    torch.manual_seed(0)
    model = torch.nn.Linear(3, 2)
    optimizer = torch.optim.Adam(model.parameters(), lr=0.1, betas=(0.8, 0.9))
    model(torch.ones(1, 3)).sum().backward()
    optimizer.step()
    tree = {"optimizer": optimizer.state_dict(), "half": torch.rand(3).bfloat16(), "list": [1, None, True, 0.1, "é"]}
    save_tree(tmp_path / "state.safetensors", tree)
    back = load_tree(tmp_path / "state.safetensors")

    assert back["list"] == tree["list"]
    assert back["optimizer"]["param_groups"] == tree["optimizer"]["param_groups"]
    assert back["optimizer"]["param_groups"][0]["betas"] == (0.8, 0.9)
    assert list(back["optimizer"]["state"]) == [0, 1]  # integer keys stay integers
    assert torch.equal(back["optimizer"]["state"][0]["exp_avg"], tree["optimizer"]["state"][0]["exp_avg"])
    assert back["half"].dtype == torch.bfloat16
    assert torch.equal(back["half"], tree["half"])


def test_tensors_that_share_memory_are_stored(tmp_path):
    whole = torch.arange(6.0)
    save_tree(tmp_path / "a.safetensors", {"whole": whole, "part": whole[::2], "same": whole})
    back = load_tree(tmp_path / "a.safetensors")
    assert back["part"].tolist() == [0, 2, 4]
    assert back["same"].tolist() == whole.tolist()


def test_an_object_is_refused_and_leaves_no_file(tmp_path):
    with pytest.raises(TypeError, match="object"):
        save_tree(tmp_path / "a.safetensors", {"x": object()})
    assert list(tmp_path.iterdir()) == []


def test_hash_is_that_of_sha256sum_and_umask_is_kept(tmp_path):
    before = os.umask(0o027)
    try:
        save_tree(tmp_path / "a.safetensors", {"x": torch.ones(2)})
    finally:
        os.umask(before)
    path = tmp_path / "a.safetensors"
    expected = hashlib.sha256(path.read_bytes()).hexdigest()
    assert hash_path(path).read_text() == f"{expected}  a.safetensors\n"
    assert stat.S_IMODE(path.stat().st_mode) == 0o640
    assert sorted(p.name for p in tmp_path.iterdir()) == ["a.safetensors", "a.safetensors.sha256"]


@pytest.mark.parametrize("damage", ["cut", "flip", "empty", "no hash"])
def test_damage_is_noticed_and_the_previous_one_is_used(tmp_path, damage):
    checkpoints = Checkpoints(tmp_path)
    for step in (10, 20):
        checkpoints.save(step, {"step": step, "w": torch.full((100,), float(step))})
    newest = checkpoints.path(20)
    content = bytearray(newest.read_bytes())
    if damage == "cut":
        newest.write_bytes(content[: len(content) // 2])
    elif damage == "flip":
        content[-5] ^= 1
        newest.write_bytes(content)
    elif damage == "empty":
        newest.write_bytes(b"")
    else:
        hash_path(newest).unlink()
    told: list[str] = []
    step, state = checkpoints.load_newest(told.append)
    assert (step, state["step"]) == (10, 10)
    assert len(told) == 1
    assert newest.name in told[0]


def test_all_damaged_is_an_error_and_none_is_none(tmp_path):
    checkpoints = Checkpoints(tmp_path)
    assert checkpoints.load_newest(print) is None
    checkpoints.save(1, {"x": torch.ones(1)})
    checkpoints.path(1).write_bytes(b"gone")
    with pytest.raises(DamagedFile, match="every checkpoint is damaged"):
        checkpoints.load_newest(lambda _: None)


def test_only_the_two_newest_are_kept(tmp_path):
    checkpoints = Checkpoints(tmp_path)
    for step in (1, 2, 3, 4):
        checkpoints.save(step, {"step": step})
    assert checkpoints.steps() == [3, 4]
    assert len(list(tmp_path.iterdir())) == 4  # two files and their hashes


def test_a_failing_disk_keeps_the_earlier_checkpoint(tmp_path, monkeypatch):
    checkpoints = Checkpoints(tmp_path)
    checkpoints.save(1, {"step": 1})

    def full(*args, **kwargs):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("safetensors.torch.save_file", full)
    with pytest.raises(OSError, match="No space left"):
        checkpoints.save(2, {"step": 2})
    assert checkpoints.load_newest(lambda _: None)[0] == 1
    assert len(list(tmp_path.iterdir())) == 2
