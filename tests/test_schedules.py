from __future__ import annotations

import math

import numpy as np
import pytest

from frepa.errors import InputError
from frepa.schedules import learning_rates


def test_closed_forms():
    cosine = learning_rates("cosine", peak=2.0, steps=110, warmup_steps=10)
    assert cosine[:10] == pytest.approx([0.2 * (i + 1) for i in range(10)])
    assert cosine[10] == pytest.approx(2.0)
    assert cosine[60] == pytest.approx(1.0)
    assert cosine[109] == pytest.approx(1 + math.cos(math.pi * 0.99))
    step = learning_rates("step", peak=1.0, steps=100)
    assert step[[0, 59, 60, 84, 85, 99]] == pytest.approx([1, 1, 0.1, 0.1, 0.01, 0.01])
    assert np.all(learning_rates("constant", peak=1e-4, steps=7) == 1e-4)


def test_wrong_input_is_named():
    with pytest.raises(InputError, match="cosine"):
        learning_rates("cosin", peak=1, steps=2)
    with pytest.raises(InputError, match="0 to 5"):
        learning_rates("constant", peak=1, steps=5, warmup_steps=6)
