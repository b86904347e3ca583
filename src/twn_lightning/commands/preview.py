"""`twn preview`: a data source as the model sees it, before anything is trained on it."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
from rich.console import Console
from rich.panel import Panel
from rich.table import Table
from rich.text import Text

from twn_lightning import config
from twn_lightning.backbone.loading import load_processor
from twn_lightning.backbone.processor import PromptProcessor
from twn_lightning.commands import parser
from twn_lightning.data.sources import SPLITS, PairSource, get_source, require_split
from twn_lightning.errors import DataError
from twn_lightning.messages import visible
from twn_lightning.types import Item, Media, Pair

HISTOGRAM_BINS = 12
BAR_WIDTH = 40


def main(arguments: list[str]) -> None:
    """Print the tasks of a split, token counts with histograms, and some rows as rendered prompts."""
    options = parser(
        "preview",
        "Rows of a data source: tasks and targets, token counts with histograms, rendered prompts and CoTs.",
        """twn preview
        twn preview --source nano --split test --rows 5 --count 2000
        twn preview --model qwen3vl_4b
        twn preview --source mmeb_train --model tiny data.annotations_root=MIRROR data.media_root=MEDIA
        twn preview --model qwen3vl_4b data=vlm2vec_v2 data.annotations_root=MIRROR data.media_root=MEDIA""",
    )
    options.add_argument("overrides", nargs="*", help="config keys, as for train: data=GROUP, data.media_root=FOLDER")
    options.add_argument("--source", help="which data source (default: the config's, nano)")
    options.add_argument("--split", default="train", help=f"one of {', '.join(SPLITS)} (default train)")
    options.add_argument("--count", type=int, default=500, help="pairs that the statistics are over (default 500)")
    options.add_argument("--rows", type=int, default=3, help="pairs to show in full (default 3)")
    options.add_argument("--model", default="nano", help="whose tokens to count: a model config (default nano)")
    chosen = options.parse_intermixed_args(arguments)
    named = [f"data.source={chosen.source}"] if chosen.source else []
    settings = config.load_settings([f"model={chosen.model}", *chosen.overrides, *named])
    require_split(settings.data.source, chosen.split)
    # Candidates cover the split's pairs: as many as are shown, not as many as a run would train on.
    data = replace(settings.data, **{f"{chosen.split}_pairs": chosen.count})
    source = get_source(data.source, data)
    pairs = list(source.pairs(chosen.split, chosen.count))
    if not pairs:
        raise DataError(f"source '{source.name}', split '{chosen.split}': no pairs to show; --count was {chosen.count}")
    processor = load_processor(settings.model)

    console = Console()
    console.print(f"source {source.name}, split {chosen.split}, {len(pairs)} pairs, tokens of {chosen.model}")
    console.print(_tasks(source, chosen.split, pairs))
    for name, lengths in _lengths(processor, pairs).items():
        console.print(_histogram(name, lengths), highlight=False)
    for pair in pairs[: chosen.rows]:
        console.print(_row(processor, pair))


def _tasks(source: PairSource, split: str, pairs: Sequence[Pair]) -> Table:
    table = Table(title="Tasks", title_justify="left")
    table.add_column("task", no_wrap=True)
    for header in ("pairs", "targets", "candidates", "with CoT"):
        table.add_column(header, justify="right")
    table.add_column("pairs by steps")
    for task in source.tasks:
        rows = [pair for pair in pairs if pair.source == task]
        steps = Counter(pair.steps for pair in rows if pair.steps is not None)
        table.add_row(
            Text(visible(task)),
            str(len(rows)),
            str(len({pair.target_hash for pair in rows})),
            str(len(source.candidates(split, task))),  # type: ignore[arg-type]  # checked by require_split
            str(sum(pair.query.cot is not None for pair in rows)),
            " ".join(f"{step}:{count}" for step, count in sorted(steps.items())),
        )
    return table


def _lengths(processor: PromptProcessor, pairs: Sequence[Pair]) -> dict[str, np.ndarray]:
    """Tokens of each part; visual tokens are in the prompts."""
    texts = [pair.query.cot for pair in pairs if pair.query.cot]
    lengths = {
        "query prompt": _prompt_lengths(processor, [pair.query for pair in pairs]),
        "candidate prompt": _prompt_lengths(processor, [pair.positive for pair in pairs]),
    }
    if texts:
        lengths["query CoT"] = np.array([processor.count_tokens(text) for text in texts])
    return lengths


def _prompt_lengths(processor: PromptProcessor, items: Sequence[Item]) -> np.ndarray:
    """In small batches, so that the pixels of all items are never in memory together."""
    batches = [processor(items[start : start + 64]).attention_mask_BL.sum(-1) for start in range(0, len(items), 64)]
    return np.concatenate([batch.numpy() for batch in batches])


def _histogram(name: str, lengths: np.ndarray) -> Text:
    low, high = int(lengths.min()), int(lengths.max())
    width = -(-(high - low + 1) // HISTOGRAM_BINS)
    counts = np.bincount((lengths - low) // width)
    p50, p95 = np.percentile(lengths, [50, 95])
    lines = [f"\n{name}: mean {lengths.mean():.1f}, median {p50:.0f}, p95 {p95:.0f}, longest {high} tokens"]
    for bin_, count in enumerate(counts):
        left = low + bin_ * width
        bar = "█" * round(BAR_WIDTH * count / counts.max())
        lines.append(f"{left:>6} - {left + width - 1:<6}{count:>6} {bar}")
    return Text("\n".join(lines))


def _row(processor: PromptProcessor, pair: Pair) -> Panel:
    prompt = processor([pair.query])
    text = Text()
    fields = [
        ("prompt", processor.render(pair.query)),
        ("media", ", ".join(_describe(medium) for medium in pair.query.media) or "none"),
        (
            "tokens",
            f"{int(prompt.attention_mask_BL.sum())}, {int((prompt.mm_token_type_ids_BL > 0).sum())} of them visual",
        ),
        ("CoT", pair.query.cot or "none"),
        ("positive", pair.positive.text or ", ".join(_describe(medium) for medium in pair.positive.media)),
        ("hard negatives", str(len(pair.hard_negatives))),
        ("steps", "unknown" if pair.steps is None else str(pair.steps)),
    ]
    for name, value in fields:
        text.append(f"{name}: ", "bold")
        text.append(f"{visible(value)}\n")
    text.rstrip()
    return Panel(text, title=Text(visible(f"{pair.source}  {pair.query.key}")), title_align="left")


def _describe(medium: Media) -> str:
    if isinstance(medium.content, Path):
        return f"{medium.kind} {medium.content}"
    if isinstance(medium.content, tuple):
        frames = medium.content
        return f"{medium.kind} of {len(frames)} frames" + (f", {frames[0]} to {frames[-1]}" if frames else "")
    if isinstance(medium.content, np.ndarray):
        return f"{medium.kind} {'x'.join(map(str, medium.content.shape))}"
    return f"{medium.kind} {medium.content.name}"
