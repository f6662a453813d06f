from __future__ import annotations

import numpy as np

from frepa.images.sampling import SampleStream
from frepa.pretraining.held_out import WithoutHeldOut, held_out_indices


def test_every_epoch_visits_every_kept_image_once_and_no_held_out_one():
    for length, count in ((11, 3), (100, 8), (5, 1)):
        held_out = held_out_indices(length, count, seed=1)
        assert len(set(held_out.tolist())) == count
        stream = WithoutHeldOut(SampleStream(length - count, seed=2), held_out)
        kept = sorted(set(range(length)) - set(held_out.tolist()))
        for epoch in range(3):
            positions = np.arange(len(kept)) + epoch * len(kept)
            assert sorted(stream.at(positions).tolist()) == kept


def test_asking_for_more_than_there_are_gives_all():
    assert held_out_indices(3, 8, seed=0).tolist() == [0, 1, 2]
