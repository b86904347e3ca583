"""Items in batches: like lengths together, sized by tokens, media decoded ahead, order restored, values checked."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import fields
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
from PIL import Image

from twn_lightning.backbone.pixels import PatchSettings, image_size
from twn_lightning.errors import DataError, NumericalError
from twn_lightning.evaluation.encoders.protocol import EncodedItems
from twn_lightning.types import Item, Media

Prepared = TypeVar("Prepared")

BATCH_TOKENS = 65_536
"""Most tokens of one batch, padding included: 9 GiB of keys and values in a Qwen3-VL-4B."""
DECODERS = 2
"""Threads that decode media while the model runs; also how many batches may wait, decoded."""


def encode_in_batches(
    items: Sequence[Item],
    lengths: Sequence[int],
    prepare: Callable[[list[int]], Prepared],
    run: Callable[[list[int], Prepared], EncodedItems],
    *,
    batch_size: int,
    batch_tokens: int = BATCH_TOKENS,
    progress: Callable[[int], None] | None = None,
) -> EncodedItems:
    """Run a model over items, those of like length together.

    Args:
        items: what to embed.
        lengths: prompt tokens of each, at least roughly.
        prepare: rows -> what the model reads; called in a thread, ahead of the model.
        run: rows and what was prepared for them -> their embeddings.
        batch_size: most rows of a batch.
        batch_tokens: most tokens of a batch, padding included; a single row may have more.
        progress: called with the number of items done, after each batch.

    Returns:
        The embeddings, in the order of `items`.

    Raises:
        DataError: no items, or what `prepare` raises.
        NumericalError: an embedding that is not finite; names the item.
    """
    if not items:
        raise DataError("no items to encode: the list is empty")
    batches = plan_batches(lengths, batch_size, batch_tokens)
    parts = []
    for rows, prepared in zip(batches, ahead(prepare, batches), strict=True):
        part = run(rows, prepared)
        check_finite(part.embedding_ND, [items[row].key for row in rows])
        parts.append(part)
        if progress is not None:
            progress(len(rows))
    return _reordered(EncodedItems.join(parts), np.argsort(np.concatenate(batches), kind="stable"))


def plan_batches(lengths: Sequence[int], batch_size: int, batch_tokens: int) -> list[list[int]]:
    """Rows of each batch, longest first: what does not fit in memory shows at once, not after hours."""
    batches: list[list[int]] = []
    for row in sorted(range(len(lengths)), key=lambda row: -lengths[row]):
        width = lengths[batches[-1][0]] if batches else 0
        full = not batches or len(batches[-1]) == batch_size or (len(batches[-1]) + 1) * width > batch_tokens
        if full:
            batches.append([])
        batches[-1].append(row)
    return batches


def ahead(function: Callable[[list[int]], Prepared], batches: Sequence[list[int]]) -> Iterator[Prepared]:
    """`map(function, batches)`, computed in threads a few batches ahead of its consumer."""
    pool = ThreadPoolExecutor(DECODERS)
    waiting: deque[Future[Prepared]] = deque()
    try:
        for batch in batches:
            waiting.append(pool.submit(function, batch))
            if len(waiting) > DECODERS:
                yield waiting.popleft().result()
        while waiting:
            yield waiting.popleft().result()
    finally:
        pool.shutdown(cancel_futures=True)


def check_finite(embedding_ND: np.ndarray, keys: Sequence[str]) -> None:
    """Refuse NaN and Inf, which would rank anywhere.

    Raises:
        NumericalError: names the first such items.
    """
    bad = [key for key, row in zip(keys, embedding_ND, strict=True) if not np.isfinite(row).all()]
    if bad:
        named = ", ".join(f"'{key}'" for key in bad[:3]) + (", ..." if len(bad) > 3 else "")
        raise NumericalError(
            f"{len(bad)} of {len(keys)} embeddings of a batch contain NaN or Inf: item {named}. Try "
            "model.dtype=float32; if it stays, the weights or the adapters are broken"
        )


def _reordered(encoded: EncodedItems, order: np.ndarray) -> EncodedItems:
    values: dict[str, Any] = {}
    for field in fields(EncodedItems):
        value = getattr(encoded, field.name)
        if field.name == "cots":
            values["cots"] = [value[row] for row in order] if value else []
        else:
            values[field.name] = None if value is None else value[order]
    return EncodedItems(**values)


def visual_tokens(item: Item, patches: PatchSettings, max_frames: int) -> int:
    """Tokens that an item's media take, from headers alone: for planning batches, so nothing is decoded.

    Media whose size is not known count as the largest.
    """
    total = 0
    for media in item.media:
        frames, size = _frames_and_size(media, max_frames)
        height, width = image_size(*size, patches) if size else (patches.max_pixels, 1)
        temporal = -(-frames // patches.temporal_patch_size)
        total += temporal * height * width // patches.factor**2
    return total


def _frames_and_size(media: Media, max_frames: int) -> tuple[int, tuple[int, int] | None]:
    """Number of frames and (height, width), where the header gives it."""
    content = media.content
    if isinstance(content, np.ndarray):
        frames = min(len(content), max_frames) if media.kind == "video" else 1
        return frames, (content.shape[-3], content.shape[-2]) if content.ndim >= 3 and content.size else None
    if isinstance(content, tuple):
        return len(content), _header_size(content[0]) if content else None
    if isinstance(content, Path) and media.kind == "image":
        return 1, _header_size(content)
    return (max_frames if media.kind == "video" else 1), None


def _header_size(path: Path) -> tuple[int, int] | None:
    """Size in an image's header; None where there is no reading it, which decoding will report with the item."""
    try:
        with Image.open(path) as image:
            return image.height, image.width
    except (OSError, SyntaxError, ValueError, Image.DecompressionBombError):
        return None
