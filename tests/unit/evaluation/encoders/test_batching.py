"""Batches: every row once, like lengths together, within the budget, decoded ahead, in the order asked for."""

from __future__ import annotations

import threading
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from twn_lightning.backbone.pixels import PatchSettings
from twn_lightning.errors import NumericalError
from twn_lightning.evaluation.encoders import batching
from twn_lightning.evaluation.encoders.batching import (
    ahead,
    check_finite,
    encode_in_batches,
    plan_batches,
    visual_tokens,
)
from twn_lightning.evaluation.encoders.protocol import EncodedItems
from twn_lightning.types import Item, Media

PATCHES = PatchSettings(16, 2, 2, 32 * 32 * 4, 32 * 32 * 100, (0.5,) * 3, (0.5,) * 3)


@pytest.mark.parametrize(("batch_size", "batch_tokens"), [(1, 10**9), (7, 10**9), (100, 300), (4, 120)])
def test_plans_hold_every_row_once_within_both_limits(batch_size, batch_tokens):
    lengths = np.random.default_rng(0).integers(1, 100, 200).tolist()
    batches = plan_batches(lengths, batch_size, batch_tokens)
    assert sorted(row for batch in batches for row in batch) == list(range(200))
    for batch in batches:
        assert len(batch) <= batch_size
        assert len(batch) * max(lengths[row] for row in batch) <= batch_tokens
    widths = [max(lengths[row] for row in batch) for batch in batches]
    assert widths == sorted(widths, reverse=True)


def test_a_row_beyond_the_budget_is_a_batch_of_its_own():
    assert plan_batches([5, 900, 5], 8, 100) == [[1], [0, 2]]


def test_results_come_back_in_order():
    items = [Item(str(i), "", "") for i in range(20)]
    lengths = [(7 * i) % 20 for i in range(20)]

    def run(rows, prepared):
        assert prepared == [10 * row for row in rows]
        values = np.array(rows, dtype=np.float32)
        return EncodedItems(values[:, None], tokens_N=values.astype(np.int64), cots=[str(row) for row in rows])

    done = []
    found = encode_in_batches(
        items, lengths, lambda rows: [10 * row for row in rows], run, batch_size=3, progress=done.append
    )
    assert found.embedding_ND[:, 0].tolist() == list(range(20))
    assert found.tokens_N.tolist() == list(range(20))
    assert found.cots == [str(i) for i in range(20)]
    assert found.think_N is None
    assert done == [3] * 6 + [2]


def test_media_are_prepared_ahead_but_not_all_at_once():
    started, release = [], threading.Event()

    def prepare(batch):
        started.append(batch[0])
        if batch[0] == 1:
            release.set()
        return batch[0]

    found = ahead(prepare, [[i] for i in range(10)])
    assert next(found) == 0
    assert release.wait(5), "the next batch is prepared while the first is used"
    assert max(started) <= batching.DECODERS
    assert list(found) == list(range(1, 10))


def test_an_error_ahead_ends_the_work():
    started = []

    def prepare(batch):
        started.append(batch[0])
        raise ValueError(str(batch[0]))

    with pytest.raises(ValueError, match="0"):
        list(ahead(prepare, [[i] for i in range(50)]))
    assert len(started) <= batching.DECODERS + 1


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
def test_values_that_are_not_finite_name_their_items(value):
    values = np.zeros((6, 3))
    check_finite(values, list("abcdef"))
    values[[1, 2, 4, 5], 1] = value
    with pytest.raises(NumericalError, match=r"4 of 6 embeddings .* item 'b', 'c', 'e', \.\.\."):
        check_finite(values, list("abcdef"))


def test_visual_tokens_follow_headers(tmp_path):
    path = tmp_path / "image.png"
    Image.new("RGB", (96, 64)).save(path)
    size = (64, 96, 3)

    def count(kind, content):
        return visual_tokens(Item("q", "", "", (Media(kind, content),)), PATCHES, max_frames=8)

    class Stored:
        name = "file"

        def read(self) -> bytes:
            raise AssertionError("planning must not read pixels")

    assert count("image", np.zeros(size, np.uint8)) == 6
    assert count("image", path) == 6
    assert count("image", tmp_path / "gone.png") == count("image", Stored()) == 100
    assert count("video", np.zeros((5, *size), np.uint8)) == 18
    assert count("video", np.zeros((50, *size), np.uint8)) == 24
    assert count("video", (path,) * 20) == 60
    assert count("video", Path("clip.mp4")) == 400
    assert visual_tokens(Item("q", "", "text"), PATCHES, 8) == 0
