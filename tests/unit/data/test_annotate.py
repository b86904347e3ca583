"""`twn annotate`: what the teacher sees, filters, counts, retries, interrupted + resumed = straight."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from twn_lightning.backbone.tiny import build_tiny
from twn_lightning.cli import main
from twn_lightning.data.annotate import AnnotateSettings, annotate
from twn_lightning.data.pair_rows import PairRows
from twn_lightning.errors import CheckpointError, ConfigError, DataError
from twn_lightning.types import Item

GOOD = "<think> it shows {} </think><answer> {} </answer>"


class ScriptedTeacher:
    """Answers by the item's text: `bad` is malformed at first, `worse` always, `long` too long, `loop` repeats."""

    def __init__(self, fail_after: int | None = None, version: int = 1) -> None:
        self.identity = {"origin": "script", "version": version}
        self.fail_after = fail_after
        self.seen: list[Item] = []
        self.calls: list[tuple[float, int]] = []

    def count_tokens(self, text: str) -> int:
        return len(text.split())

    def generate(self, items: Sequence[Item], temperature: float = 0.0, seed: int = 0) -> list[str]:
        if len(self.calls) == self.fail_after:
            raise KeyboardInterrupt
        for item in items:
            for media in item.media:
                Image.open(media.content).verify()  # type: ignore[arg-type]
        self.calls.append((temperature, seed))
        self.seen += items
        return [self._answer(item.text, temperature) for item in items]

    def _answer(self, text: str, temperature: float) -> str:
        if text.startswith("worse") or (text.startswith("bad") and temperature == 0):
            return f"<think> {text} never closed"
        if text.startswith("long"):
            return GOOD.format(" ".join(map(str, range(60))), text)
        if text.startswith("loop"):
            return GOOD.format("and so it goes on and on " * 9, text)
        return f"\n{GOOD.format(text, text)}<|im_end|>"


def write(path: Path, rows: Sequence[dict[str, Any]]) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return path


def row(text: str, target: str = "blue 3", **more: Any) -> dict[str, Any]:
    return {"query": {"instruction": "Find.", "text": text}, "positive": {"text": target}, **more}


ROWS = [row(text) for text in ("a", "bad one", "worse", "long", "loop", "b", "c", "bad two", "d", "e")]


def lines(path: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in path.read_text(encoding="utf-8").split("\n") if line]


def run(folder: Path, rows: Sequence[dict[str, Any]], teacher: ScriptedTeacher, **changes: Any) -> dict[str, Any]:
    overwrite = changes.pop("overwrite", False)
    pairs = PairRows(write(folder.parent / "in" / "pairs.jsonl", rows))
    settings = AnnotateSettings(**{"batch_size": 4, "max_cot_tokens": 50, **changes})
    return annotate(teacher, pairs, folder, settings, overwrite=overwrite)


def test_cots_are_filtered_and_counted(tmp_path: Path) -> None:
    record = run(tmp_path / "out", ROWS, ScriptedTeacher())
    kept, dropped = lines(tmp_path / "out" / "pairs.jsonl"), lines(tmp_path / "out" / "dropped.jsonl")
    assert [r["query"]["text"] for r in kept] == ["a", "b", "c", "d", "e"]
    assert kept[0] == {**ROWS[0], "query_cot": GOOD.format("a", "a")}
    assert [(r["row"], r["reason"]) for r in dropped] == [
        (1, "query format"),
        (2, "query format"),
        (3, "query length"),
        (4, "query repetition"),
        (7, "query format"),
    ]
    assert dropped[1]["written"] == "<think> worse never closed"
    assert record["dropped"] == {"query format": 3, "query length": 1, "query repetition": 1}
    assert record["counts"] == {
        "pairs dropped": 5,
        "pairs kept": 5,
        "query written": 5,
        "query written after retries": 0,
        "rows": 10,
    }


def test_retries_are_sampled_and_only_of_what_failed(tmp_path: Path) -> None:
    teacher = ScriptedTeacher()
    record = run(tmp_path / "out", ROWS, teacher, retries=2, temperature=0.9, batch_size=10)
    assert [temperature for temperature, _ in teacher.calls] == [0.0, 0.9, 0.9]
    assert len({seed for _, seed in teacher.calls}) == 3
    assert [item.text for item in teacher.seen[10:15]] == ["bad one", "worse", "long", "loop", "bad two"]
    assert len(teacher.seen) == 10 + 5 + 3
    assert record["counts"]["query written after retries"] == 2
    assert record["dropped"] == {"query format": 1, "query length": 1, "query repetition": 1}


def test_the_teacher_never_sees_the_other_side(tmp_path: Path) -> None:
    target = "a long description of a red bird on a green branch in spring"
    teacher = ScriptedTeacher()
    record = run(tmp_path / "out", [row("which bird", target), row("what", "label")], teacher, side="both")
    assert [item.text for item in teacher.seen] == ["which bird", "what", target]
    assert all(item.cot is None for item in teacher.seen)
    kept = lines(tmp_path / "out" / "pairs.jsonl")
    assert kept[0]["positive_cot"] == GOOD.format(target, target)
    assert kept[1]["positive_cot"] is None
    assert record["counts"]["positive label-like"] == 1


def test_a_cot_that_is_there_is_kept_if_it_is_fit(tmp_path: Path) -> None:
    own = GOOD.format("x", "y")
    teacher = ScriptedTeacher()
    record = run(tmp_path / "out", [row("a", query_cot=own + " tail"), row("b", query_cot="broken")], teacher)
    assert [item.text for item in teacher.seen] == ["b"]
    assert lines(tmp_path / "out" / "pairs.jsonl")[0]["query_cot"] == own
    assert record["counts"]["query kept"] == 1


@pytest.mark.parametrize("torn", [b"", b'{"query": {"instr', b"\xff\xfe\n"])
def test_interrupted_and_resumed_equals_straight(torn: bytes, tmp_path: Path) -> None:
    straight = run(tmp_path / "straight" / "out", ROWS, ScriptedTeacher(), retries=1)
    resumed = tmp_path / "resumed" / "out"
    with pytest.raises(KeyboardInterrupt):
        run(resumed, ROWS, ScriptedTeacher(fail_after=3), retries=1)
    assert json.loads((resumed / "annotate.json").read_text())["rows_done"] == 4
    for name in ("pairs.jsonl", "dropped.jsonl"):
        with (resumed / name).open("ab") as file:
            file.write(torn)
    teacher = ScriptedTeacher()
    assert run(resumed, ROWS, teacher, retries=1) == straight
    assert teacher.seen[0].text == "loop"
    for path in (tmp_path / "straight" / "out").iterdir():
        assert path.read_bytes() == (resumed / path.name).read_bytes(), path.name


def test_a_rerun_of_what_is_complete_asks_nothing(tmp_path: Path) -> None:
    first = run(tmp_path / "out", ROWS, ScriptedTeacher())
    teacher = ScriptedTeacher()
    assert run(tmp_path / "out", ROWS, teacher) == first
    assert teacher.seen == []


def test_other_teachers_settings_and_pairs_are_refused(tmp_path: Path) -> None:
    run(tmp_path / "out", ROWS, ScriptedTeacher())
    with pytest.raises(ConfigError, match=r"'version': 1.*now .*'version': 2.*--overwrite"):
        run(tmp_path / "out", ROWS, ScriptedTeacher(version=2))
    with pytest.raises(ConfigError, match="another teacher, settings or pairs; settings"):
        run(tmp_path / "out", ROWS, ScriptedTeacher(), seed=1)
    with pytest.raises(ConfigError, match="pairs; pairs"):
        run(tmp_path / "out", ROWS[:3], ScriptedTeacher())
    assert run(tmp_path / "out", ROWS[:3], ScriptedTeacher(), overwrite=True)["rows_done"] == 3
    assert len(lines(tmp_path / "out" / "pairs.jsonl")) == 1
    (tmp_path / "out" / "pairs.jsonl").write_text("")
    with pytest.raises(CheckpointError, match="has 0 bytes, expected"):
        run(tmp_path / "out", ROWS[:3], ScriptedTeacher())


def test_what_cannot_be_read_is_an_error_or_is_counted(tmp_path: Path) -> None:
    images = tmp_path / "in"
    images.mkdir()
    Image.fromarray(np.zeros((8, 8, 3), np.uint8)).save(images / "good.png")
    rows = [row("a"), row("b"), row("c"), row("d")]
    for index, name in ((0, "good.png"), (1, "missing.png"), (2, "../secret.png")):
        rows[index]["query"]["image"] = name
    with pytest.raises(DataError, match=r"line 2, query: image .*missing\.png does not exist"):
        run(tmp_path / "out", rows, ScriptedTeacher())
    record = run(tmp_path / "out", rows, ScriptedTeacher(), on_error="skip", overwrite=True)
    assert record["dropped"] == {"unreadable": 2}
    assert "leaves its root" in lines(tmp_path / "out" / "dropped.jsonl")[1]["written"]


@pytest.mark.parametrize(
    ("rows", "message"),
    [
        ([row("a", key="x"), row("b", key="x")], "line 2: key 'x' is there twice, first in .*line 1"),
        ([{"positive": {"text": "b"}}], "line 1, query: expected an object"),
        ([row("")], "line 1, query: it has no text, image or video"),
        ([row("a", query_cot=3)], "'query_cot' must be text, found int"),
        ([], "has no rows"),
    ],
)
def test_bad_rows_name_themselves(rows: list[dict[str, Any]], message: str, tmp_path: Path) -> None:
    with pytest.raises(DataError, match=message):
        run(tmp_path / "out", rows, ScriptedTeacher())


def test_bad_files_name_themselves(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"nothing\.jsonl: no such file"):
        PairRows(tmp_path / "nothing.jsonl")
    with pytest.raises(DataError, match=r"unknown row format '\.json': did you mean '\.jsonl'"):
        PairRows(tmp_path / "pairs.json")
    (tmp_path / "pairs.jsonl").write_text('{"query": {"text": "a"}}\n{"query": ')
    with pytest.raises(DataError, match="line 2: this is not JSON"):
        PairRows(tmp_path / "pairs.jsonl")
    (tmp_path / "pairs.parquet").write_bytes(b"PAR1")
    with pytest.raises(DataError, match=r"pairs\.parquet cannot be read"):
        PairRows(tmp_path / "pairs.parquet")


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"side": "queries"}, "unknown side 'queries': did you mean 'query'"),
        ({"retries": 1, "temperature": 0.0}, "retries need a temperature above 0"),
        ({"batch_size": 0}, "batch_size must be at least 1"),
    ],
)
def test_bad_settings(changes: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        AnnotateSettings(**changes)


@pytest.fixture(scope="module")
def tiny_teacher(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("teacher")
    model, processor = build_tiny()
    model.save_pretrained(folder)
    processor.save(folder)
    return folder


def test_the_command_counts_what_a_random_teacher_gets_wrong(
    tiny_teacher: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    pairs = write(tmp_path / "pairs.jsonl", ROWS[:3])
    command = ["annotate", str(pairs), "--teacher", str(tiny_teacher), "--output", str(tmp_path / "out")]
    assert main([*command, "--max-new-tokens", "4", "--retries", "1"]) == 0
    printed = " ".join(capsys.readouterr().out.split())
    assert "dropped: query format" in printed
    record = json.loads((tmp_path / "out" / "annotate.json").read_text())
    assert record["dropped"] == {"query format": 3}
    assert record["counts"]["pairs dropped"] == 3
    assert (tmp_path / "out" / "pairs.jsonl").read_bytes() == b""
    assert main([*command, "--side", "left"]) == 2
    assert "unknown side 'left'" in capsys.readouterr().err
