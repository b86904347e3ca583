"""`twn embed`: embeddings, gate decisions and CoTs of a folder, a file of rows or a data source, as files."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

from rich.console import Console

from twn_lightning.commands import parser
from twn_lightning.commands.encoder_flags import (
    add_encoder_flags,
    known_mode,
    load_encoder,
    progress_bar,
)
from twn_lightning.errors import ConfigError, unknown_name
from twn_lightning.evaluation.embed import EmbedSettings, embed_inputs
from twn_lightning.evaluation.encoders import default_mode
from twn_lightning.evaluation.inputs import Inputs, read_inputs, read_source
from twn_lightning.messages import visible
from twn_lightning.settings import DataSettings
from twn_lightning.types import Side

SHOWN_SKIPPED = 10


def main(arguments: list[str]) -> None:
    """Embed, say how many thought and what was skipped, and where the files are."""
    options = parser(
        "embed",
        "Embeddings, gate decisions and CoTs of images, texts and videos. An interrupted run goes on when started "
        "again.",
        """twn embed photos --output photo_embeddings
        twn embed rows.jsonl --root media --side candidate --format npy
        twn embed --source nano --split test --count 200
        twn embed --source visrag --annotations-root MIRROR --media-root MEDIA --side candidate
        twn embed photos --adapters outputs/gate/RUN/adapters --mode generative --shard 0/4""",
    )
    options.add_argument(
        "input", nargs="?", help="a folder of images, .txt files, videos and frame sub-folders, or rows"
    )
    options.add_argument("--source", help="a data source instead, such as nano")
    options.add_argument("--split", default="test", help="the source's split (default test)")
    options.add_argument("--count", type=int, default=500, help="pairs of the source (default 500)")
    options.add_argument("--annotations-root", help="the source's annotations (default: the hub)")
    options.add_argument("--media-root", help="the source's media, a folder per scheme")
    options.add_argument("--output", help="the folder to write (default outputs/embed/NAME)")
    options.add_argument("--side", default="query", help="query or candidate (default query)")
    options.add_argument(
        "--mode",
        help="discriminative, generative or adaptive (default: adaptive for queries of an encoder with a gate)",
    )
    options.add_argument("--format", default="parquet", choices=["parquet", "npy"], help="of the output")
    options.add_argument("--shard", default="0/1", help="which part of how many, as in 0/4; all go to one --output")
    options.add_argument("--overwrite", action="store_true", help="replace what is there")
    add_input_flags(options)
    add_encoder_flags(options)
    chosen = options.parse_args(arguments)
    side = side_of(chosen.side)
    mode = known_mode(chosen.mode)
    shard, shards = _shard(chosen.shard)
    inputs = _inputs(chosen, side)
    encoder, loaded_with = load_encoder(chosen)
    settings = EmbedSettings(
        side,
        mode or default_mode(encoder, side),
        loaded_with["batch_size"],
        chosen.format,
        chosen.on_error,
        shard,
        shards,
    )
    output = Path(chosen.output or Path("outputs", "embed", _default_name(chosen))).expanduser()
    with progress_bar() as progress:
        bar = progress.add_task("inputs", total=-(-len(inputs) // shards))
        record = embed_inputs(
            encoder,
            inputs,
            output,
            settings,
            loaded_with=loaded_with,
            overwrite=chosen.overwrite,
            progress=lambda done: progress.advance(bar, done),
        )
    _report(record, output)


def add_input_flags(options: argparse.ArgumentParser) -> None:
    """The flags that say how inputs are read."""
    group = options.add_argument_group("inputs")
    group.add_argument("--instruction", default="", help="of every input; a row's own goes before it")
    group.add_argument("--root", help="what the paths in a file of rows are relative to (default: the file's folder)")
    group.add_argument(
        "--sub-folders",
        default="frames",
        help="a sub-folder's images are one video's frames (default), or items of their own, at any depth",
    )
    group.add_argument("--on-error", default="raise", choices=["raise", "skip"], help="skip counts and lists")


def files_of(chosen: argparse.Namespace) -> Inputs:
    """The folder or the file of rows that the flags name."""
    return read_inputs(
        Path(chosen.input).expanduser(),
        root=None if chosen.root is None else Path(chosen.root).expanduser(),
        instruction=chosen.instruction,
        num_frames=chosen.max_frames or 8,
        sub_folders=chosen.sub_folders,
        on_error=chosen.on_error,
    )


def side_of(name: str) -> Side:
    """The side of that name.

    Raises:
        ConfigError: there is none.
    """
    known = [side.value for side in Side]
    if name not in known:
        raise ConfigError(f"--side: {unknown_name('side', name, known)}")
    return Side(name)


def _inputs(chosen: argparse.Namespace, side: Side) -> Inputs:
    if (chosen.input is None) == (chosen.source is None):
        raise ConfigError("name what to embed: a folder or a file of rows, or --source, and not both")
    if chosen.source is not None:
        data = DataSettings(
            source=chosen.source, annotations_root=chosen.annotations_root, media_root=chosen.media_root
        )
        return read_source(data, chosen.split, side, chosen.count, chosen.instruction)
    return files_of(chosen)


def _default_name(chosen: argparse.Namespace) -> str:
    if chosen.source is not None:
        return f"{chosen.source}-{chosen.split}"
    path = Path(chosen.input).resolve()
    return path.name if path.is_dir() else path.stem


def _shard(text: str) -> tuple[int, int]:
    shard, _, shards = text.partition("/")
    if not (shard.isdecimal() and shards.isdecimal() and int(shard) < int(shards)):
        raise ConfigError(f"--shard {text}: expected which part of how many, counted from 0, as in 0/4")
    return int(shard), int(shards)


def _report(record: dict[str, Any], output: Path) -> None:
    console = Console(highlight=False, soft_wrap=True)
    counts = record["counts"]
    console.print(
        f"{counts['embedded']} embedded in mode {record['mode']}, {counts['thought']} of them after thinking "
        f"({counts['cot_tokens']} tokens, {counts['malformed']} malformed); {counts['skipped']} skipped",
        markup=False,
    )
    for entry in record["skipped"][:SHOWN_SKIPPED]:
        console.print(visible(f"  skipped {entry['key']}: {entry['reason']}"), markup=False)
    if len(record["skipped"]) > SHOWN_SKIPPED:
        console.print(f"  and {len(record['skipped']) - SHOWN_SKIPPED} more, listed in embed.json")
    print(f"results: {output}")
