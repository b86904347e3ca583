"""Draw one item of every task and kind of MMEB-nano:  python experiments/mmeb_nano/draw.py docs/images/mmeb_nano.png"""

from __future__ import annotations

import sys
import textwrap
from pathlib import Path

import matplotlib

matplotlib.use("Agg")

import matplotlib.pyplot as plt
import numpy as np

from twn_lightning.data.nano import tasks
from twn_lightning.data.nano.tasks import KINDS, STEPS, NanoRow
from twn_lightning.types import Item

STEPS_SHOWN = 3
HEIGHT, WIDTH = 96, 260


def picture(item: Item) -> np.ndarray | None:
    """An item's image, or the moments of its video side by side, on a white strip of HEIGHT."""
    if not item.media:
        return None
    pixels = item.media[0].content
    assert isinstance(pixels, np.ndarray)
    if pixels.ndim == 4:
        gap = np.full((pixels.shape[1], 3, 3), 255, np.uint8)
        pixels = np.concatenate([part for frame in pixels[::2] for part in (frame, gap)], axis=1)
    strip = np.full((HEIGHT, pixels.shape[1], 3), 255, np.uint8)
    top = (HEIGHT - len(pixels)) // 2
    strip[top : top + len(pixels)] = pixels
    return strip


def draw(axis: plt.Axes, row: NanoRow) -> None:
    """Query, then its right candidate, with their words below."""
    parts = [part for part in (picture(row.query), picture(row.positive)) if part is not None]
    gap = np.full((HEIGHT, 24, 3), 255, np.uint8)
    strip = np.concatenate([parts[0], gap, *parts[1:]], axis=1) if parts else gap
    axis.imshow(strip)
    axis.set(xlim=(0, WIDTH), ylim=(HEIGHT + 30, 0))
    axis.axis("off")
    target = row.positive.text or ("that moment" if row.task == "NanoMR" else row.target)
    words = f"{row.query.text}  →  {target}" if row.query.text else f"→  {target}"
    axis.text(0, HEIGHT + 3, textwrap.fill(words, 44), va="top", fontsize=7)


def main(path: Path) -> None:
    figure, axes = plt.subplots(len(tasks.TASKS), len(KINDS), figsize=(9, 12))
    for line, task in zip(axes, tasks.TASKS, strict=True):
        for axis, kind in zip(line, KINDS, strict=True):
            rng = np.random.default_rng(40 + tasks.TASKS.index(task))
            draw(axis, tasks.sample_row(rng, "train", task, kind, STEPS_SHOWN if kind == STEPS else 0))
            if task == tasks.TASKS[0]:
                axis.set_title(kind if kind != STEPS else f"{STEPS_SHOWN} steps", fontsize=9, loc="left")
        line[0].text(-45, HEIGHT / 2, task.removeprefix("Nano"), fontsize=9, va="center", ha="center")
    figure.subplots_adjust(left=0.1, right=0.99, top=0.97, bottom=0.03, wspace=0.02, hspace=0.02)
    figure.savefig(path, dpi=110)


if __name__ == "__main__":
    main(Path(sys.argv[1]))
