"""Patches are bytes until a model reads them: normalised by the formula, picked and joined as media."""

from __future__ import annotations

import pickle

import numpy as np
import pytest
import torch

from twn_lightning.patches import Patches, concat_patches

MEAN, DEVIATION = (0.5, 0.4, 0.3), (0.5, 0.6, 0.7)
GRIDS = [(1, 2, 2), (1, 1, 3), (1, 2, 1)]


@pytest.fixture
def patches() -> Patches:
    """Three images of 4, 3 and 2 patches of 3 x 5 bytes."""
    pixels = torch.randint(0, 256, (9, 15), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
    return Patches(pixels, torch.tensor(GRIDS), MEAN, DEVIATION, repeats=2)


def test_values_are_the_normalised_pixels_with_each_frame_repeated(patches):
    values = patches.values()
    assert values.dtype == torch.float32
    assert values.shape == (9, 30)
    seen = values.numpy().reshape(9, 3, 2, 5)
    for channel in range(3):
        pixels = patches.bytes_PC.numpy().reshape(9, 3, 5)[:, channel].astype(np.float64)
        expected = (pixels / 255 - MEAN[channel]) / DEVIATION[channel]
        for frame in range(2):
            np.testing.assert_allclose(seen[:, channel, frame], expected, atol=1e-6)


def test_normalised_values_are_refused(patches):
    with pytest.raises(TypeError, match=r"kept as bytes and normalised by values\(\), these are torch.float32"):
        Patches(patches.values(), patches.grid_thw, MEAN, DEVIATION)


def test_media_are_picked_in_the_order_given(patches):
    picked = patches.select([2, 0])
    assert picked.grid_thw.tolist() == [list(GRIDS[2]), list(GRIDS[0])]
    assert torch.equal(picked.values(), patches.values()[[7, 8, 0, 1, 2, 3]])


def test_joined_media_keep_their_values(patches):
    joined = concat_patches([patches.select([0]), patches.select([1, 2])])
    assert torch.equal(joined.grid_thw, patches.grid_thw)
    assert torch.equal(joined.values(), patches.values())


def test_a_worker_sends_an_eighth_of_what_a_model_reads(patches):
    sent = pickle.loads(pickle.dumps(patches))
    assert torch.equal(sent.values(), patches.values())
    assert 8 * patches.bytes_PC.nbytes == patches.values().nbytes
