"""Synthetic items, pairs and a source with two tasks."""

from __future__ import annotations

import zlib
from collections.abc import Sequence
from typing import Any

import numpy as np

from twn_lightning.settings import DataSettings
from twn_lightning.types import Item, Media, Pair


def make_cot(target: int) -> str:
    return f"<think> up down path a1 b1 </think><answer> blue {target % 10} </answer>"


def make_item(key: str, text: str = "at a1", *, image: bool = True, cot: str | None = None) -> Item:
    pixels = np.random.default_rng(zlib.crc32(text.encode())).integers(0, 255, (16, 16, 3), dtype=np.uint8)
    return Item(key, "Find the cell.", text, (Media("image", pixels),) if image else (), cot)


def make_target(target: int, cot: str | None = None) -> Item:
    return make_item(f"target{target}", f"blue {target}", image=False, cot=cot)


def make_pair(i: int, target: int, source: str = "made/read", **changes: Any) -> Pair:
    positive = make_target(target)
    values: dict[str, Any] = {
        "query": make_item(f"query{i}", cot=make_cot(target)),
        "positive": positive,
        "source": source,
        "target_hash": positive.content_hash(),
    }
    return Pair(**{**values, **changes})


class MadeSource:
    """`count` pairs of seven targets a split, a third of them of the second task."""

    name = "made"
    tasks = ("made/read", "made/follow")

    def __init__(self, settings: DataSettings) -> None:
        self.settings = settings

    def pairs(self, split: str, count: int) -> Sequence[Pair]:
        return [make_pair(i, i % 7, self.tasks[i % 3 == 0]) for i in range(count)]

    def candidates(self, split: str, task: str) -> list[Item]:
        return [make_target(t) for t in range(7)]
