"""Mining on synthetic vectors, and the file that carries what was mined."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from twn_lightning.data.hard_negatives import (
    Embedded,
    embedded_of,
    mine_hard_negatives,
    read_hard_negatives,
    write_hard_negatives,
)
from twn_lightning.errors import ConfigError, DataError, NumericalError
from twn_lightning.types import Item, Pair, Side


def embedded(vectors: Any, hashes: str, source: str = "s") -> Embedded:
    rows = np.asarray(vectors, dtype=np.float64)
    rows = rows / np.linalg.norm(rows, axis=1, keepdims=True)
    return Embedded(rows, [source] * len(rows), list(hashes), [f"{source}/{i}" for i in range(len(rows))])


def angle(degrees: float) -> list[float]:
    return [np.cos(np.radians(degrees)), np.sin(np.radians(degrees))]


QUERY = embedded([angle(0)], "p")
TARGETS = embedded([angle(a) for a in (20, 25, 40, 30, 80, 10, 20)], "pabcdex"[:7])


def test_takes_the_hardest_below_the_margin() -> None:
    """Positive at 20 degrees (.940): with .95 the limit is .893, about 26.8 degrees."""
    mined = mine_hard_negatives(QUERY, TARGETS, 2)
    assert mined.negative_hashes == [["c", "b"]]
    assert mined.scores[0] == pytest.approx([np.cos(np.radians(30)), np.cos(np.radians(40))], abs=1e-6)
    assert mined.query_keys == ["s/0"]


def test_a_margin_of_one_allows_all_up_to_the_positive() -> None:
    found = mine_hard_negatives(QUERY, TARGETS, 9, relative_margin=1.0).negative_hashes[0]
    assert found == ["x", "a", "c", "b", "d"], "e scores above the positive, x exactly as it"


def test_skips_the_very_hardest() -> None:
    assert mine_hard_negatives(QUERY, TARGETS, 2, skip=1).negative_hashes == [["b", "d"]]


def test_a_negative_positive_score_still_lowers_the_limit() -> None:
    targets = embedded([angle(120), angle(119), angle(121), angle(170)], "pabc")
    assert mine_hard_negatives(QUERY, targets, 3, relative_margin=0.9).negative_hashes == [["c"]]


def test_sources_do_not_mix_and_equal_hashes_count_once() -> None:
    queries = embedded([angle(0)], "p", "one")
    other = embedded([angle(5), angle(50)], "pz", "two")
    mine = embedded([angle(0), angle(45), angle(46), angle(0)], "pyyp", "one")
    both = Embedded(
        np.concatenate([other.embeddings, mine.embeddings]),
        [*other.sources, *mine.sources],
        [*other.hashes, *mine.hashes],
        [*other.keys, *mine.keys],
    )
    assert mine_hard_negatives(queries, both, 5).negative_hashes == [["y"]]


@pytest.mark.parametrize("seed", range(3))
def test_equals_a_plain_loop(seed: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("twn_lightning.data.hard_negatives._BLOCK", 7)
    rng = np.random.default_rng(seed)
    targets = embedded(rng.normal(size=(26, 6)), "abcdefghijklmnopqrstuvwxyz")
    queries = embedded(rng.normal(size=(40, 6)), "".join(rng.choice(list(targets.hashes), 40)))
    mined = mine_hard_negatives(queries, targets, 4, relative_margin=0.8)
    for row in range(40):
        scores = {
            h: float(queries.embeddings[row] @ t) for h, t in zip(targets.hashes, targets.embeddings, strict=True)
        }
        positive = scores.pop(queries.hashes[row])
        allowed = {h: s for h, s in scores.items() if s <= positive - 0.2 * abs(positive)}
        assert mined.negative_hashes[row] == sorted(allowed, key=lambda h: -allowed[h])[:4]


def test_reads_back_what_it_wrote(tmp_path: Path) -> None:
    mined = mine_hard_negatives(QUERY, TARGETS, 2)
    write_hard_negatives(tmp_path / "new" / "mined.parquet", mined)
    assert read_hard_negatives(tmp_path / "new" / "mined.parquet") == {"s/0": ["c", "b"]}


def pair(row: int, target: str) -> Pair:
    return Pair(Item(f"s/{row}", "", "q"), Item(f"s/{target}", "", target), "s", target)


def test_mines_from_what_embed_wrote(tmp_path: Path) -> None:
    vectors = {"q": [("s/0", 0), ("s/1", 40), ("s/9", 3)], "c": [("s/b", 30), ("s/p", 0), ("s/a", 45), ("t/z", 5)]}
    for name, rows in vectors.items():
        columns = {"key": [key for key, _ in rows], "embedding": [angle(a) for _, a in rows]}
        pq.write_table(pa.table(columns), tmp_path / f"{name}.parquet")
    pairs = [pair(0, "p"), pair(1, "a"), pair(2, "b")]
    queries = embedded_of(Side.QUERY, pairs, tmp_path / "q.parquet")
    targets = embedded_of(Side.CANDIDATE, pairs, tmp_path / "c.parquet")
    assert (queries.keys, queries.hashes) == (["s/0", "s/1"], ["p", "a"])
    assert targets.hashes == ["b", "p", "a"]
    assert mine_hard_negatives(queries, targets, 1, relative_margin=0.99).negative_hashes == [["b"], ["b"]]
    with pytest.raises(DataError, match=r"none of its 3 rows \(the first is 's/0'\) is a query of the 1 pairs"):
        embedded_of(Side.QUERY, [pair(7, "p")], tmp_path / "q.parquet")


def test_bad_files(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="cannot be read"):
        read_hard_negatives(tmp_path / "none.parquet")
    pq.write_table(pa.table({"query_key": ["a"]}), tmp_path / "other.parquet")
    with pytest.raises(DataError, match="lacks negative_hashes; it has query_key"):
        read_hard_negatives(tmp_path / "other.parquet")


def test_bad_input() -> None:
    with pytest.raises(ConfigError, match="count >= 1"):
        mine_hard_negatives(QUERY, TARGETS, 0)
    with pytest.raises(ConfigError, match="relative_margin"):
        mine_hard_negatives(QUERY, TARGETS, 1, relative_margin=1.5)
    with pytest.raises(DataError, match="query 's/0' of source 's': its positive q is not among the 7 targets"):
        mine_hard_negatives(embedded([angle(0)], "q"), TARGETS, 1)
    with pytest.raises(DataError, match="need as many sources, hashes and keys"):
        mine_hard_negatives(QUERY, Embedded(TARGETS.embeddings, ["s"], ["p"], ["k"]), 1)
    broken = TARGETS.embeddings.copy()
    broken[3, 0] = np.nan
    with pytest.raises(NumericalError, match="targets: 1 of 7 embeddings contain NaN or Inf, first 's/3'"):
        mine_hard_negatives(QUERY, Embedded(broken, TARGETS.sources, TARGETS.hashes, TARGETS.keys), 1)
