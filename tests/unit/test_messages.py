"""What a terminal is shown of data, models and errors commands it in no way."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

from twn_lightning import cli
from twn_lightning.commands.search import _show
from twn_lightning.errors import DataError
from twn_lightning.evaluation.index import Document, Hit
from twn_lightning.evaluation.search import Answer
from twn_lightning.messages import exit_code, visible

HOSTILE = "cat\x1b]0;owned\x07\x1b[2J\x9b31m\rdog\u202egpj"
SHOWN = r"cat\x1b]0;owned\x07\x1b[2J\x9b31m\x0ddog\u202egpj"


def is_harmless(text: str) -> bool:
    return not any(character in text for character in "\x1b\x07\x9b\r\u202e")


def test_control_characters_are_shown_not_sent() -> None:
    assert visible(HOSTILE) == SHOWN
    kept = "two\nlines, a\ttab, größer, 猫, 🐈"
    assert visible(kept) == kept


def test_errors_and_messages_command_no_terminal(capsys: pytest.CaptureFixture[str]) -> None:
    def fail() -> None:
        raise DataError(f"item {HOSTILE}: no image")

    assert exit_code(fail) == 2
    assert capsys.readouterr().err == f"twn: item {SHOWN}: no image\n"
    code = (
        "import logging, sys; from twn_lightning.messages import configure_logging; configure_logging()\n"
        "logging.getLogger('twn_lightning').warning('row %s', sys.argv[1])\n"
        "raise RuntimeError(sys.argv[1])"
    )
    done = subprocess.run([sys.executable, "-c", code, HOSTILE], capture_output=True, check=False)
    error = done.stderr.decode()
    assert f"row {SHOWN}" in error
    assert f"RuntimeError: {SHOWN}" in error
    assert is_harmless(error)


def test_search_results_command_no_terminal(capsys: pytest.CaptureFixture[str]) -> None:
    hit = Hit(0.5, Document(HOSTILE, HOSTILE, HOSTILE))
    _show(Answer("q", [hit], True, 0.9, f"<think> {HOSTILE} </think>"))
    printed = capsys.readouterr().out
    assert f"<think> {SHOWN}" in printed
    assert is_harmless(printed)


def test_previewed_rows_command_no_terminal(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    row = {"query": {"text": HOSTILE}, "positive": {"text": f"found {HOSTILE}"}, "split": "train"}
    (tmp_path / "pairs.jsonl").write_text(json.dumps(row) + "\n", encoding="utf-8")
    shown = ["--model", "tiny", "--rows", "1", f"data.annotations_root={tmp_path}"]
    assert cli.main(["preview", "--source", "pairs", *shown]) == 0
    printed = capsys.readouterr().out
    assert "owned" in printed
    assert is_harmless(printed)
