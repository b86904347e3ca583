"""Decisions of the gallery as one matplotlib figure, for notebooks."""

from __future__ import annotations

import io
import textwrap
from collections.abc import Sequence

from matplotlib.figure import Figure
from PIL import Image

from twn_lightning.errors import DataError
from twn_lightning.reporting.gallery import Example
from twn_lightning.reporting.page import bounded

_WIDTH, _ROW = 9.0, 1.9
"""Inches."""
_LINE = 92
"""Characters of a line beside a picture."""
_COT_LINES = 4


def example_figure(examples: Sequence[Example]) -> Figure:
    """A row for each decision: its picture, the question, what was retrieved without and with a CoT, the CoT.

    Args:
        examples: from `choose_examples`.

    Raises:
        DataError: no examples.
    """
    if not examples:
        raise DataError("there is no decision to show; choose another verdict")
    figure = Figure(figsize=(_WIDTH, _ROW * len(examples)), layout="constrained")
    cells = figure.subplots(len(examples), 2, width_ratios=[1, 4], squeeze=False)
    for (picture, words), example in zip(cells, examples, strict=True):
        picture.axis("off")
        words.axis("off")
        if example.row["image_png"]:
            picture.imshow(Image.open(io.BytesIO(example.row["image_png"])), interpolation="nearest")
        words.text(0, 1, _words(example), va="top", fontsize=8, parse_math=False, transform=words.transAxes)
    return figure


def _words(example: Example) -> str:
    row = example.row
    steps = "" if row["steps"] is None else f", steps {row['steps']}"
    cot = textwrap.wrap(bounded(row["cot"]), _LINE, max_lines=_COT_LINES, placeholder=" …")
    question = textwrap.wrap(bounded(row["query_text"]), _LINE, max_lines=2, placeholder=" …")
    lines = [
        *question,
        f"{example.verdict}: p(think) {row['probability']:.3f}{steps}, {row['tokens']} CoT tokens",
        f"positive: {_short(row['positive'])}",
        f"without a CoT: {_short(row['top1_discriminative'])}   with: {_short(row['top1_generative'])}",
        *cot,
    ]
    return "\n".join(lines)


def _short(text: str) -> str:
    return textwrap.shorten(bounded(text), 60, placeholder=" …")
