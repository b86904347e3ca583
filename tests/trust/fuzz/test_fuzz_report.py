"""Run folders that attack their readers: reports, comparisons, audits."""

from __future__ import annotations

import json
import math
import random
import shutil
import tempfile
from collections.abc import Callable, Iterator
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import yaml
from hypothesis import example, given
from hypothesis import strategies as st

from tests.trust.fuzz.broken_files import Edit, damaged
from tests.trust.fuzz.cases import check, examples, nothing_left
from tests.trust.fuzz.test_fuzz_media import EDITS
from tests.trust.fuzz.test_fuzz_rows import TEXTS
from tests.trust.fuzz.test_fuzz_sources import VALUES, spoil
from tests.unit.reporting.conftest import make_decisions, make_summary
from twn_lightning.audit import audit
from twn_lightning.reporting import load_runs, write_summary
from twn_lightning.reporting.compare import metrics_table, settings_table, training_curve
from twn_lightning.reporting.html import render_report
from twn_lightning.reporting.read import ReportData
from twn_lightning.reporting.rollouts import load_rollouts, rollouts_table
from twn_lightning.run import RunFolder
from twn_lightning.settings import Settings

HOSTILE = '</pre></script><script>alert(1)</script><img src=x onerror=alert(1)>"\' onload="alert(2)'
ROLLOUTS = {"step": 1, "query_key": "q", "task": "t", "query_text": "x", "positive": "y", "reward": 0.5, "tokens": 3,
            "reward_format": 1.0, "reward_rank": 0.2, "reward_gap": 0.1, "closed": True, "completion": "z"}  # fmt: skip


@pytest.fixture(scope="module", autouse=True)
def _nothing_left() -> Iterator[None]:
    with nothing_left("report"):
        yield


def write_run(folder: Path) -> Path:
    """A finished, evaluated run with its manifest."""
    run = RunFolder(folder).create(Settings())
    run.log(1, {"train/loss": 0.5})
    run.log(2, {"train/loss": 0.25})
    table = make_decisions(40, images=1)
    pq.write_table(table, run.gate_decisions)
    write_summary(make_summary(table), run.path / "summary.json")
    pq.write_table(pa.Table.from_pylist([ROLLOUTS, ROLLOUTS | {"reward": 0.1}]), run.rollouts)
    run.finish({"hit@1": 0.5})
    return run.path


@pytest.fixture(scope="module")
def whole_run() -> Iterator[Path]:
    with tempfile.TemporaryDirectory() as name:
        yield write_run(Path(name) / "whole")


@pytest.fixture
def run(whole_run: Path) -> Iterator[Callable[[], Path]]:
    """Makes fresh copies of the run folder."""
    copies: list[Path] = []

    def copy() -> Path:
        shutil.rmtree(copies.pop(), ignore_errors=True) if copies else None
        copies.append(whole_run.with_name("attacked"))
        shutil.copytree(whole_run, copies[-1])
        return copies[-1]

    yield copy
    for path in copies:
        shutil.rmtree(path, ignore_errors=True)


READERS: dict[str, Callable[[Path], Any]] = {
    "report": lambda folder: load_runs([folder]),
    "settings": lambda folder: settings_table([folder, folder.with_name("whole")]),
    "metrics": lambda folder: metrics_table([folder, folder.with_name("whole")]),
    "curve": lambda folder: training_curve(folder, "train/loss"),
    "rollouts": lambda folder: rollouts_table(load_rollouts(folder)),
}
READ_BY = {
    "env.json": ["report"],
    "status.json": ["report"],
    "summary.json": ["report"],
    "gate_decisions.parquet": ["report"],
    "config.yaml": ["settings"],
    "metrics.json": ["metrics"],
    "metrics.jsonl": ["curve"],
    "rollouts.parquet": ["rollouts"],
    "manifest.json": [],
    "overrides.txt": [],
}


def attack(folder: Path, name: str) -> None:
    """Each reader of a changed file ends in a named error or in something; the audit sees the change."""
    for reader in READ_BY[name]:
        check("report", f"{reader} of {name}", lambda reader=reader: READERS[reader](folder), lambda _: None, names="")

    def seen(problems: list[Any]) -> None:
        assert problems, f"the audit did not see that {name} has changed"

    check("audit", name, lambda: audit(folder), seen)


def test_a_whole_run_is_read(run: Callable[[], Path]) -> None:
    folder = run()
    for name, reader in READERS.items():
        assert check("report", name, lambda reader=reader: reader(folder), lambda _: None) is not None
    assert check("audit", "whole", lambda: audit(folder), lambda problems: None) == []


@examples(40, 400)
@given(name=st.sampled_from(sorted(READ_BY)), edits=EDITS)
def test_damaged_files(run: Callable[[], Path], whole_run: Path, name: str, edits: list[Edit]) -> None:
    folder = run()
    whole = (folder / name).read_bytes()
    content = damaged(whole, edits)
    (folder / name).write_bytes(content)
    if content != whole and name not in ("status.json", "manifest.json"):
        attack(folder, name)


@examples(40, 400)
@given(
    name=st.sampled_from(["env.json", "status.json", "summary.json", "metrics.json", "config.yaml", "metrics.jsonl"]),
    value=VALUES | st.just("take it away"),
    seed=st.integers(0, 9999),
    is_whole=st.integers(0, 4),
)
def test_files_that_say_something_else(
    run: Callable[[], Path], name: str, value: Any, seed: int, is_whole: int
) -> None:
    folder = run()
    path = folder / name
    content = json.loads(path.read_text()) if path.suffix == ".json" else {"step": 1, "train/loss": 0.1}
    if name == "config.yaml":
        content = yaml.safe_load(path.read_text())
    if is_whole == 0:
        content = value
    else:
        spoil(content, value, random.Random(seed))
    path.write_text(json.dumps(content) + "\n")
    for reader in READ_BY[name]:
        check("report", f"{reader} of {name}: {value!r:.80} {seed}", lambda reader=reader: READERS[reader](folder),
              lambda _: None)  # fmt: skip
    check("audit", name, lambda: audit(folder), lambda _: None)


DEEP = "[" * 5000 + "]" * 5000


@pytest.mark.parametrize(
    "content", [DEEP, "null", "[]", '"x"', "3", "", "\ufeff{}", "{" * 9, '{"a": ' + "9" * 5000 + "}"]
)
@pytest.mark.parametrize(
    "name", ["env.json", "status.json", "summary.json", "metrics.json", "config.yaml", "metrics.jsonl"]
)
def test_files_that_hold_no_object(run: Callable[[], Path], name: str, content: str) -> None:
    folder = run()
    (folder / name).write_text(content)
    for reader in READ_BY[name]:
        check(
            "report", f"{reader}, {name}: {content:.20}", lambda reader=reader: READERS[reader](folder), lambda _: None
        )
    check("audit", name, lambda: audit(folder), lambda _: None)


YAML_BOMB = "a: &a [x, x, x, x, x, x, x, x, x]\n" + "".join(
    f"{name}: &{name} [{', '.join([f'*{before}'] * 9)}]\n" for before, name in zip("abcdefgh", "bcdefghi", strict=True)
)


def test_settings_that_grow_when_they_are_read(run: Callable[[], Path]) -> None:
    folder = run()
    (folder / "config.yaml").write_text(YAML_BOMB)
    check("report", "YAML aliases", lambda: READERS["settings"](folder), None, names="unknown key")


COLUMN_VALUES = [
    None,
    HOSTILE,
    "",
    3,
    -1.5,
    math.nan,
    math.inf,
    10**12,
    True,
    b"\x89PNG\r\n\x1a\nbroken",
    [1],
    {"a": 1},
]


@examples(60, 300)
@given(
    column=st.sampled_from([field.name for field in make_decisions(2, images=1).schema]),
    value=st.sampled_from(COLUMN_VALUES),
    one=st.booleans(),
)
def test_decisions_of_other_types(run: Callable[[], Path], column: str, value: Any, one: bool) -> None:
    """A column of another type, or one row of it: numbers stay numbers, and what is not one is named."""
    folder = run()
    table = pq.read_table(folder / "gate_decisions.parquet")
    values = table.column(column).to_pylist()
    changed = [value, *values[1:]] if one else [value] * len(values)
    try:
        array = pa.array(changed)
    except (pa.ArrowInvalid, pa.ArrowTypeError):  # no column can hold both
        array = pa.array([value] * len(values))
    table = table.set_column(table.column_names.index(column), column, array)
    pq.write_table(table, folder / "gate_decisions.parquet")

    def right(data: Any) -> None:
        decisions = data.decisions
        for name in ("probability_N", "hit_discriminative_N", "hit_generative_N", "gain_N", "tokens_N"):
            assert np.isfinite(getattr(decisions, name)).all(), name
        assert ((decisions.probability_N >= 0) & (decisions.probability_N <= 1)).all()
        assert (decisions.tokens_N >= 0).all()

    check("report", f"{column} {value!r} {one}", lambda: load_runs([folder]), right)


class Tags(HTMLParser):
    """The tags and event handlers of a page."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.tags: list[str] = []
        self.handlers: list[str] = []
        self.feed(text)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append(tag)
        self.handlers += [name for name, _ in attrs if name.startswith("on")]


def page_with(folder: Path, text: str) -> str:
    """The page of a report all of whose texts are this one."""
    table = pq.read_table(folder / "gate_decisions.parquet")
    for name in ("query_key", "task", "query_text", "cot", "positive", "top1_discriminative", "top1_generative"):
        column = pa.array([text] * table.num_rows)
        table = table.set_column(table.column_names.index(name), name, column)
    pq.write_table(table, folder / "gate_decisions.parquet")
    data = load_runs([folder])
    assert isinstance(data, ReportData)
    return render_report(data, folder)


@pytest.fixture(scope="module")
def harmless(whole_run: Path) -> Tags:
    """The tags of a report with plain texts."""
    folder = shutil.copytree(whole_run, whole_run.with_name("harmless"))
    return Tags(page_with(folder, "plain"))


@examples(2, 25)
@given(text=TEXTS)
@example(text=HOSTILE)
def test_texts_stay_texts(run: Callable[[], Path], harmless: Tags, text: str) -> None:
    """A report's page has the same tags, scripts and handlers whatever its texts are."""

    def right(page: str) -> None:
        found = Tags(page)
        assert found.handlers == harmless.handlers
        assert found.tags.count("script") == harmless.tags.count("script")
        assert set(found.tags) <= set(harmless.tags)

    check("report", f"texts {text!r}", lambda: page_with(run(), text), right)
