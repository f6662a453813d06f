"""What a step takes, counted on one sample, against what it takes."""

from __future__ import annotations

import resource
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from torch import nn

from frepa import memory
from frepa.errors import InputError
from frepa.memory import StepMemory, check_room, gigabytes, measure_step, within_room


def test_what_a_linear_layer_and_a_product_keep_is_counted_once() -> None:
    """Backward of ``x @ W`` needs x, of ``h * h`` needs h: by hand, and the shared tensor once."""
    layer = nn.Linear(1000, 500, bias=False)
    x = torch.randn(1, 1000)

    def forward() -> torch.Tensor:
        h = layer(x)
        return (h * h).sum()

    found = measure_step(layer, forward)
    assert found.per_sample == 4 * (1000 + 500)
    assert found.fixed == 4 * 4 * 500 * 1000


def test_a_batch_is_so_many_samples() -> None:
    net = nn.Sequential(nn.Conv2d(1, 8, 3, padding=1), nn.GELU(), nn.Conv2d(8, 4, 3, padding=1))
    one = measure_step(net, lambda: net(torch.randn(1, 1, 64, 64)).square().mean())
    four = measure_step(net, lambda: net(torch.randn(4, 1, 64, 64)).square().mean())
    assert four.per_sample == pytest.approx(4 * one.per_sample, rel=0.02)


@pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="reads Linux's own count of a process's peak")
def test_the_forecast_is_near_the_measured_peak() -> None:
    """A step of a network in a process of its own: the peak the system saw, against what was foretold."""
    code = """
import re, torch
from torch import nn
from frepa.memory import measure_step
torch.set_num_threads(1)
net = nn.Sequential(*[layer for _ in range(6) for layer in (nn.Linear(64, 64), nn.GELU())])
optimizer = torch.optim.AdamW(net.parameters())
step = measure_step(net, lambda: net(torch.randn(1, 64)).square().mean())
def peak(): return 1024 * int(re.search(r"VmHWM:\\s+(\\d+)", open("/proc/self/status").read()).group(1))
net(torch.randn(8, 64)).square().mean().backward(); optimizer.step(); optimizer.zero_grad()
before = peak()
net(torch.randn(320000, 64)).square().mean().backward()
print(peak() - before, step.of(320000) - step.fixed)
"""
    out = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout.split()
    taken, foretold = map(int, out)
    assert 0.7 * taken < foretold < 1.5 * taken


def test_too_little_room_is_told_before_it_is_taken(monkeypatch: pytest.MonkeyPatch) -> None:
    step = StepMemory(fixed=10**9, per_sample=8 * 10**8)
    monkeypatch.setattr(memory, "free_memory", lambda device: 8 * 10**9)
    with pytest.raises(InputError) as told:
        check_room(step, batch=16, parts=1, device="cpu", remedies=["--recompute"])
    text = str(told.value)
    assert "needs about 17.0 GB" in text
    assert "7.6 GB are free" in text
    assert "--accumulate 4 " in text  # 4 at once: 1 + 4 * 1.0 = 5 GB; 8 would need 9
    assert "--batch-size 6" in text
    assert "--recompute" in text
    sentence = check_room(step, batch=16, parts=4, device="cpu")
    assert sentence == "A step takes about 5.0 GB; 7.6 GB are free."


def test_where_not_even_one_fits_no_batch_is_advised(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(memory, "free_memory", lambda device: 10**9)
    with pytest.raises(InputError) as told:
        check_room(StepMemory(2 * 10**9, 10**9), batch=4, parts=1, device="cpu")
    assert "--batch-size" not in str(told.value)
    assert "smaller encoder" in str(told.value)


def test_what_the_machine_has_and_this_process_holds() -> None:
    assert 0 < memory.free_memory() <= memory.total_memory()
    before = memory.memory_in_use()
    held = torch.ones(50_000_000)
    assert memory.memory_in_use() - before == pytest.approx(held.numel() * 4, rel=0.1)
    assert memory.memory_in_use() <= resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024 * 1.1


def test_the_limit_of_a_container_counts(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "memory.max").write_text("500000000\n")
    (tmp_path / "memory.current").write_text("300000000\n")
    (tmp_path / "memory.stat").write_text("anon 1\ninactive_file 100000000\n")
    monkeypatch.setattr(memory, "_CGROUP", tmp_path)
    assert memory.total_memory() == 500_000_000
    assert memory.free_memory() == 300_000_000


def test_sizes_for_a_person() -> None:
    assert gigabytes(3_440_000_000) == "3.4 GB"
    assert gigabytes(119_600_000) == "120 MB"


def test_times_for_a_person() -> None:
    assert [memory.duration(s) for s in (40, 119, 720, 12_000, 187_200)] == [
        "40 s", "2 min", "12 min", "3 h 20 min", "2 days 4 h",
    ]  # fmt: skip


def test_a_step_that_keeps_more_than_is_free_is_refused_before_it_is_done(monkeypatch) -> None:
    """Two layers keep 4 (1000 + 500) bytes of a row, by hand: a hundred rows, 600 kB, do not fit into 500 kB."""
    layer, x = nn.Linear(1000, 500, bias=False), torch.randn(100, 1000)

    def forward() -> torch.Tensor:
        h = layer(x)
        return (h * h).sum()

    monkeypatch.setattr(memory, "free_memory", lambda device: int(620_000 / memory._MARGIN))
    with within_room("cpu", "fewer rows"):
        inside = forward()
    assert torch.equal(inside, forward())
    monkeypatch.setattr(memory, "free_memory", lambda device: int(500_000 / memory._MARGIN))
    with pytest.raises(InputError, match="What helps: fewer rows"), within_room("cpu", "fewer rows"):
        forward()
