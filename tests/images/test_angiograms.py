from __future__ import annotations

import numpy as np
import pytest

from frepa.images.angiograms import angiogram


def test_vessels_are_where_the_mask_says_and_darker():
    for seed in range(4):
        image, mask = angiogram(128, seed, noise=0.0)
        assert image.shape == mask.shape == (128, 128)
        assert image.min() >= 0
        assert image.max() <= 1
        assert 0.03 < mask.mean() < 0.5
        assert image[~mask].mean() - image[mask].mean() > 0.08
    again, _ = angiogram(128, 3, noise=0.0)
    assert np.array_equal(again, image)
    assert not np.array_equal(angiogram(128, 4)[1], mask)
    with pytest.raises(ValueError, match="at least 32"):
        angiogram(16, 0)
