"""`twn search`: build an index of embeddings, add documents to it, query it with text or an image."""

from __future__ import annotations

import argparse
import json
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table
from rich.text import Text

from twn_lightning.backbone.media import load_image
from twn_lightning.commands import parser
from twn_lightning.commands.embed import add_input_flags, files_of
from twn_lightning.commands.encoder_flags import (
    add_encoder_flags,
    known_mode,
    load_encoder,
    progress_bar,
)
from twn_lightning.errors import ConfigError
from twn_lightning.evaluation.embed import EmbedSettings
from twn_lightning.evaluation.embedding_files import StoredEmbeddings, is_embeddings, read_embeddings
from twn_lightning.evaluation.encoders import Encoder, default_mode
from twn_lightning.evaluation.index import SearchIndex
from twn_lightning.evaluation.search import (
    Answer,
    add_stored,
    discard_work,
    embed_documents,
    encoder_record,
    search_items,
    stored_record,
)
from twn_lightning.messages import visible
from twn_lightning.types import EmbeddingMode, Item, Media, Side


def main(arguments: list[str]) -> None:
    """Run one of build, add and query."""
    options = parser(
        "search",
        "A search index of embeddings: build it, add documents later, query it with text or an image. The query thinks "
        "where the gate says so.",
        """twn search build photos.index photos
        twn search build photos.index photo_embeddings --kind hnsw
        twn search add photos.index more_photos --replace
        twn search query photos.index --text "start a1 follow 2" --image scene.png --k 5
        twn search query photos.index --text "blue 3" --mode discriminative --json""",
    )
    actions = options.add_subparsers(dest="action", required=True, metavar="build|add|query")
    build = actions.add_parser("build", help="an index of a folder, a file of rows or what `twn embed` wrote")
    add = actions.add_parser("add", help="further documents, by the encoder of the index")
    query = actions.add_parser("query", help="the best documents for a text, an image or both")
    for action in (build, add, query):
        action.add_argument("index", help="the folder of the index")
    for action in (build, add):
        action.add_argument("input", help="a folder of files, a file of rows, or a folder that `twn embed` wrote")
        add_input_flags(action)
    build.add_argument("--kind", default="flat", help="flat: exact (default); hnsw: approximate, for 100,000 and more")
    build.add_argument("--mode", help="how documents are embedded (default discriminative)")
    build.add_argument("--overwrite", action="store_true", help="replace the index that is there")
    add.add_argument("--replace", action="store_true", help="a document takes the place of the one with its key")
    query.add_argument("--text", default="", help="the query's text")
    query.add_argument("--image", help="the query's image")
    query.add_argument("--instruction", default="", help="what is wanted, before the text")
    query.add_argument("--k", type=int, default=10, help="documents to show (default 10)")
    query.add_argument("--mode", help="how the query is embedded (default: adaptive where there is a gate)")
    query.add_argument("--json", action="store_true", help="print JSON")
    for action in (build, add, query):
        add_encoder_flags(action)
    chosen = options.parse_args(arguments)
    {"build": _build, "add": _add, "query": _query}[chosen.action](chosen, Path(chosen.index).expanduser())


def _build(chosen: argparse.Namespace, folder: Path) -> None:
    if (folder / "index.json").exists() and not chosen.overwrite:
        raise ConfigError(f"{folder} holds an index: add to it with `twn search add`, or pass --overwrite")
    mode = known_mode(chosen.mode)
    if is_embeddings(Path(chosen.input).expanduser()):
        stored = read_embeddings(Path(chosen.input).expanduser())
    else:
        encoder, loaded_with = load_encoder(chosen)
        mode = mode or default_mode(encoder, Side.CANDIDATE)
        stored = _embed(chosen, folder, encoder, loaded_with, Side.CANDIDATE, mode)
    index = SearchIndex.create(stored.embedding_ND.shape[1], stored_record(stored), chosen.kind)
    add_stored(index, stored)
    index.save(folder, overwrite=chosen.overwrite)
    discard_work(folder)
    print(f"{folder}: {len(index)} documents, {index.kind}")


def _add(chosen: argparse.Namespace, folder: Path) -> None:
    index = SearchIndex.load(folder)
    if is_embeddings(Path(chosen.input).expanduser()):
        stored = read_embeddings(Path(chosen.input).expanduser())
    else:
        encoder, loaded_with = load_encoder(chosen, index.encoder["loaded_with"])
        side, mode = Side(index.encoder["side"]), EmbeddingMode(index.encoder["mode"])
        index.require_encoder(encoder_record(encoder, side, mode), "the encoder")
        stored = _embed(chosen, folder, encoder, loaded_with, side, mode)
    replaced = add_stored(index, stored, chosen.replace)
    index.save(folder)
    discard_work(folder)
    print(f"{folder}: {len(stored.rows) - replaced} documents added, {replaced} replaced, {len(index)} in all")


def _embed(
    chosen: argparse.Namespace,
    folder: Path,
    encoder: Encoder,
    loaded_with: dict[str, Any],
    side: Side,
    mode: EmbeddingMode,
) -> StoredEmbeddings:
    inputs = files_of(chosen)
    settings = EmbedSettings(side, mode, loaded_with["batch_size"], on_error=chosen.on_error)
    with progress_bar() as progress:
        bar = progress.add_task("documents", total=len(inputs))
        stored, _ = embed_documents(
            encoder,
            inputs,
            folder,
            settings,
            loaded_with=loaded_with,
            progress=lambda done: progress.advance(bar, done),
        )
    for entry in stored.record["skipped"]:
        Console(highlight=False, soft_wrap=True).print(
            visible(f"skipped {entry['key']}: {entry['reason']}"), markup=False
        )
    return stored


def _query(chosen: argparse.Namespace, folder: Path) -> None:
    if not chosen.text and not chosen.image:
        raise ConfigError("a query needs --text, --image or both")
    mode = known_mode(chosen.mode)
    media: tuple[Media, ...] = ()
    if chosen.image:
        image = Media("image", Path(chosen.image).expanduser())
        media = (Media("image", load_image(image, "query")),)
    index = SearchIndex.load(folder)
    encoder, _ = load_encoder(chosen, index.encoder["loaded_with"])
    item = Item("query", chosen.instruction, chosen.text, media)
    answer = search_items(index, encoder, [item], mode or default_mode(encoder, Side.QUERY), chosen.k)[0]
    if chosen.json:
        print(json.dumps(_plain(answer), indent=2, ensure_ascii=False))
    else:
        _show(answer)


def _plain(answer: Answer) -> dict[str, Any]:
    results = [
        {
            "rank": rank,
            "score": hit.score,
            "key": hit.document.key,
            "path": hit.document.path,
            "text": hit.document.text,
        }
        for rank, hit in enumerate(answer.hits, start=1)
    ]
    return {"think": answer.think, "probability": answer.probability, "cot": answer.cot, "results": results}


def _show(answer: Answer) -> None:
    console = Console(highlight=False, soft_wrap=True)
    probability = "" if answer.probability is None else f" (gate {answer.probability:.3f})"
    console.print(f"the query {'thought' if answer.think else 'did not think'}{probability}", markup=False)
    if answer.cot:
        console.print(visible(answer.cot), markup=False)
    table = Table()
    for header, justify in (("rank", "right"), ("score", "right"), ("key", "left"), ("path", "left"), ("text", "left")):
        table.add_column(header, justify=justify)  # type: ignore[arg-type]  # rich's Literal of the same words
    for rank, hit in enumerate(answer.hits, start=1):
        document = hit.document
        named = (document.key, document.path or "", document.text[:80])
        table.add_row(str(rank), f"{hit.score:.4f}", *(Text(visible(part)) for part in named))
    console.print(table)
