"""The gate's decisions as a table, one row per query: what reports and notebooks read."""

from __future__ import annotations

import io
from collections.abc import Sequence
from typing import Any

import numpy as np
import pyarrow as pa
from PIL import Image

from twn_lightning.backbone.media import load_image, load_video
from twn_lightning.evaluation.outcomes import QueryOutcome
from twn_lightning.types import Item, Side

MAX_THUMBNAILS = 96
THUMBNAIL_PIXELS = 320

_SCHEMA = pa.schema(
    [
        *((name, pa.string()) for name in ("query_key", "task", "side")),
        ("kind", pa.string()),
        ("steps", pa.int64()),
        ("probability", pa.float64()),
        ("think", pa.bool_()),
        *(
            (name, pa.float64())
            for name in ("hit_discriminative", "hit_generative", "loss_discriminative", "loss_generative", "gain")
        ),
        *((name, pa.int64()) for name in ("tokens", "prompt_tokens", "query_length")),
        ("margin", pa.float64()),
        ("malformed", pa.bool_()),
        *((name, pa.string()) for name in ("query_text", "cot", "positive", "top1_discriminative", "top1_generative")),
        ("image_png", pa.binary()),
    ]
)


def decision_table(outcomes: Sequence[QueryOutcome], gain_N: np.ndarray, think_N: np.ndarray) -> pa.Table:
    """The content of gate_decisions.parquet.

    Args:
        outcomes: N queries.
        gain_N: what thinking gained, net of its price, in nats (N,).
        think_N: what the gate decided (N,).
    """
    shown = _shown(outcomes, think_N)
    rows = [_row(o, float(gain_N[i]), bool(think_N[i]), i in shown) for i, o in enumerate(outcomes)]
    return pa.Table.from_pylist(rows, schema=_SCHEMA)


def _row(o: QueryOutcome, gain: float, think: bool, with_image: bool) -> dict[str, Any]:
    query = o.pair.query
    return {
        "query_key": query.key,
        "task": o.pair.source,
        "side": Side.QUERY.value,
        "kind": o.kind,
        "steps": o.pair.steps,
        "probability": o.probability,
        "think": think,
        "hit_discriminative": o.hit_discriminative,
        "hit_generative": o.hit_generative,
        "loss_discriminative": o.loss_discriminative,
        "loss_generative": o.loss_generative,
        "gain": gain,
        "tokens": o.tokens,
        "prompt_tokens": o.prompt_tokens,
        "query_length": len(query.text),
        "margin": o.margin,
        "malformed": o.malformed,
        "query_text": f"{query.instruction} {query.text}".strip(),
        "cot": o.cot,
        "positive": _name(o.pair.positive),
        "top1_discriminative": _name(o.top1_discriminative),
        "top1_generative": _name(o.top1_generative),
        "image_png": _thumbnail(query) if with_image else None,
    }


def _name(item: Item) -> str:
    return item.text or item.key


def _shown(outcomes: Sequence[QueryOutcome], think_N: np.ndarray) -> set[int]:
    """Queries whose picture is kept: kinds of decision and numbers of steps take turns, tasks are mixed."""
    pictured = [i for i, o in enumerate(outcomes) if o.pair.query.media]
    by_kind: dict[tuple[Any, ...], list[int]] = {}
    for i in np.random.default_rng(0).permutation(pictured).astype(int).tolist():
        o = outcomes[i]
        kind = (bool(think_N[i]), np.sign(o.hit_generative - o.hit_discriminative), o.pair.steps)
        by_kind.setdefault(kind, []).append(i)
    shown: set[int] = set()
    turn = 0
    while len(shown) < min(MAX_THUMBNAILS, len(pictured)):
        for rows in by_kind.values():
            if turn < len(rows) and len(shown) < MAX_THUMBNAILS:
                shown.add(rows[turn])
        turn += 1
    return shown


def item_picture(item: Item) -> np.ndarray | None:
    """What to show of an item: its first image, or the first frame of its first video, as uint8 RGB (height, width, 3).

    Raises:
        DataError: media that cannot be read.
    """
    if not item.media:
        return None
    media = next((m for m in item.media if m.kind == "image"), item.media[0])
    return load_image(media, item.key) if media.kind == "image" else load_video(media, item.key, 1).frames[0]


def _thumbnail(item: Item) -> bytes | None:
    """The item's picture as PNG, at most THUMBNAIL_PIXELS a side."""
    pixels = item_picture(item)
    if pixels is None:
        return None
    picture = Image.fromarray(pixels)
    picture.thumbnail((THUMBNAIL_PIXELS, THUMBNAIL_PIXELS))
    buffer = io.BytesIO()
    picture.save(buffer, format="PNG")
    return buffer.getvalue()
