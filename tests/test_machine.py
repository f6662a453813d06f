"""Number formats by device, and that they change what they should and nothing else."""

from __future__ import annotations

import ctypes
import os
import subprocess
import sys

import pytest
import torch

from frepa.errors import InputError
from frepa.machine import autocast_dtype, has_fast_bf16, training_precision

CPU = torch.device("cpu")


@pytest.mark.parametrize(("instructions", "expected"), [([], "fp32"), (["_is_avx512_bf16_supported"], "bf16")])
def test_auto_on_a_cpu_does_not_depend_on_the_processor(monkeypatch, instructions, expected):
    for name in ("_is_avx512_bf16_supported", "_is_amx_tile_supported"):
        monkeypatch.setattr(torch.cpu, name, lambda name=name: name in instructions, raising=False)
    assert has_fast_bf16(CPU) == (expected == "bf16")
    assert training_precision("auto", CPU) == "fp32"
    assert autocast_dtype("auto", CPU) is None
    with pytest.raises(InputError, match=f"--precision {expected}"):
        training_precision("fp16", CPU)


def test_a_torch_that_cannot_tell_gets_float32(monkeypatch):
    for name in ("_is_avx512_bf16_supported", "_is_amx_tile_supported"):
        monkeypatch.delattr(torch.cpu, name, raising=False)
    assert training_precision("auto", CPU) == "fp32"


def test_what_is_asked_for_is_kept_and_what_is_not_known_refused():
    assert [training_precision(name, CPU) for name in ("fp32", "bf16")] == ["fp32", "bf16"]
    assert training_precision("fp16", torch.device("cuda")) == "fp16"
    with pytest.raises(InputError, match="Did you mean fp32"):
        training_precision("fp23", CPU)


_STEPS = """
import resource, torch
from frepa.machine import keeping_memory
from frepa.memory import memory_in_use

def pages_cleared():
    for step in range(72):
        if step == 64:  # what lies between the first tensors keeps their places apart for up to a dozen steps
            before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
        torch.ones(2**25, dtype=torch.uint8)
    return resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before

apart, before = pages_cleared(), memory_in_use()
with keeping_memory():
    kept, held = pages_cleared(), memory_in_use()
    with keeping_memory():  # one training within another: an analysis of several encoders
        pass
print(apart, kept, held - before, memory_in_use() - before)
"""


def test_steps_use_memory_again_within_a_training_and_give_it_back_after():
    if not hasattr(ctypes.CDLL(None), "mallopt"):
        pytest.skip("this C library is not glibc")
    own = {name: value for name, value in os.environ.items() if not name.startswith("MALLOC_")}

    def answer(environment: dict[str, str]) -> list[int]:
        done = subprocess.run(
            [sys.executable, "-c", _STEPS], capture_output=True, text=True, check=True, env=environment
        )
        return [int(number) for number in done.stdout.split()]

    apart, kept, held, left = answer(own)
    assert kept < apart / 8  # fewer than the pages of one of eight
    assert held < 2**30, "what is kept does not grow from step to step"
    assert held > 2**24
    assert left < 2**23
    apart, kept, *_ = answer(own | {"MALLOC_ARENA_MAX": "2"})
    assert kept > apart / 2, "what somebody has set is left alone"
