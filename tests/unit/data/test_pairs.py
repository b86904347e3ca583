"""The source `pairs`: what `twn annotate` wrote is trained on; roots, splits, subsets, parquet, bad rows."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from PIL import Image
from test_annotate import ROWS, ScriptedTeacher, row, run, write

from twn_lightning.data.corpus import filter_cots
from twn_lightning.data.mixture import Mixture
from twn_lightning.data.sources import SPLITS, get_source
from twn_lightning.errors import ConfigError, DataError
from twn_lightning.settings import DataSettings, SourceSettings


def source(folder: Path, **changes: Any) -> Mixture:
    found = get_source("pairs", DataSettings(annotations_root=str(folder), **changes))
    assert isinstance(found, Mixture)
    return found


def test_what_was_annotated_is_trained_on(tmp_path: Path) -> None:
    rows = [{**given, "positive": {"text": f"target {i}"}} for i, given in enumerate(ROWS)]
    run(tmp_path / "out", rows, ScriptedTeacher())
    pairs = [pair for split in SPLITS for pair in source(tmp_path / "out").pairs(split, 100)]
    assert sorted(pair.query.text for pair in pairs) == ["a", "b", "c", "d", "e"]
    assert all(pair.query.instruction == "Find." for pair in pairs)
    kept, _ = filter_cots(pairs, "query", lambda text: len(text.split()), 50)
    assert len(kept) == 5
    assert all(pair.query.cot for pair in kept)


def test_rows_may_name_their_split(tmp_path: Path) -> None:
    write(tmp_path / "pairs.jsonl", [row(f"q{i}", f"t{i}", split=("train", "val")[i % 2]) for i in range(6)])
    found = source(tmp_path)
    assert [pair.query.text for pair in found.pairs("val", 10)] == ["q1", "q3", "q5"]
    assert len(found.pairs("train", 10)) == 3
    assert len(found.pairs("test", 10)) == 0
    write(tmp_path / "pairs.jsonl", [row("q", split="validation")])
    with pytest.raises(DataError, match="line 1: unknown split 'validation'"):
        source(tmp_path).pairs("train", 1)


def test_media_are_beside_the_file_or_below_their_own_root(tmp_path: Path) -> None:
    write(tmp_path / "rows" / "pairs.jsonl", [{**row("q", split="train"), "query": {"image": "a.png"}}])
    (tmp_path / "media").mkdir()
    Image.fromarray(np.zeros((8, 8, 3), np.uint8)).save(tmp_path / "media" / "a.png")
    with pytest.raises(DataError, match=r"rows/a\.png does not exist"):
        source(tmp_path / "rows").pairs("train", 1)[0]
    roots = [f"pairs={tmp_path / 'media'}"]
    assert source(tmp_path / "rows", media_roots=roots).pairs("train", 1)[0].query.media[0].kind == "image"
    write(tmp_path / "rows" / "pairs.jsonl", [{**row("q", split="train"), "query": {"image": "../media/a.png"}}])
    with pytest.raises(DataError, match=r"'\.\./media/a\.png' leaves its root"):
        source(tmp_path / "rows").pairs("train", 1)[0]


def test_a_subset_is_another_file(tmp_path: Path) -> None:
    rows = [{"query": {"text": "q"}, "positive": {"text": "t"}, "split": "train"}]
    pq.write_table(pa.Table.from_pylist(rows), tmp_path / "other.parquet")
    entries = [SourceSettings("pairs", "other")]
    settings = DataSettings(source="mixture", sources=entries, annotations_root=str(tmp_path))
    pair = get_source("mixture", settings).pairs("train", 1)[0]
    assert (pair.source, pair.query.text, pair.positive.text) == ("pairs/other", "q", "t")


def test_hard_negatives_come_along(tmp_path: Path) -> None:
    rows = [row("q", "t", split="train", neg=[{"text": "n1"}, {"text": "t"}, {"text": "n2"}])]
    write(tmp_path / "pairs.jsonl", rows)
    pair = source(tmp_path, hard_negatives=2).pairs("train", 1)[0]
    assert [item.text for item in pair.hard_negatives] == ["n1", "n2"]


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"query": {"text": "q"}}, "line 2, positive: expected an object"),
        ({**row("q"), "neg": "n"}, "line 2: 'neg' must be a list of objects, found str"),
        ({**row("q"), "neg": ["n"]}, "line 2, neg: expected an object"),
        ({**row("q"), "query_cot": 1}, "'query_cot' must be text"),
        ({**row("q"), "positive": {"text": ["t"]}}, "line 2, positive: field 'text' must be text, found list"),
    ],
)
def test_bad_rows_name_themselves(given: dict[str, Any], message: str, tmp_path: Path) -> None:
    write(tmp_path / "pairs.jsonl", [row("fine"), given])
    with pytest.raises(DataError, match=message):
        source(tmp_path).pairs("train", 1)


def test_bad_roots(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"needs data\.annotations_root"):
        get_source("pairs", DataSettings())
    with pytest.raises(DataError, match=r"expected pairs\.jsonl or pairs\.parquet .* found neither"):
        source(tmp_path).pairs("train", 1)
    write(tmp_path / "pairs.jsonl", ROWS)
    (tmp_path / "pairs.parquet").write_bytes(b"")
    with pytest.raises(DataError, match=r"found pairs\.jsonl and pairs\.parquet"):
        source(tmp_path).pairs("train", 1)


def test_images_inside_the_file_are_refused(tmp_path: Path) -> None:
    rows = [{"query": {"text": "q", "image": {"bytes": b"x", "path": "x.png"}}, "positive": {"text": "t"}}]
    pq.write_table(pa.Table.from_pylist(rows), tmp_path / "pairs.parquet")
    with pytest.raises(DataError, match="row 0, query: field 'image' must be a path relative to the root"):
        source(tmp_path).pairs("train", 1)
