"""Every `twn` line of README and docs: its flags and overrides exist; those that are cheap are run.

Run for real: `RUN_AS_WRITTEN`, and the stages of docs/ten_minutes.md with `debug=limit`. Composed and checked against
the rules, without running: the overrides of every line. Checked against the help of the verb: every flag.
"""

from __future__ import annotations

import re
import shlex
from pathlib import Path

import pytest

from twn_lightning.cli import VERBS, main
from twn_lightning.commands.completion import verb_words
from twn_lightning.config import load_settings

ROOT = Path(__file__).parents[2]
PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").rglob("*.md"))]
FENCE = re.compile(r"^```[a-z]*\n(.*?)^```", re.MULTILINE | re.DOTALL)
OVERRIDE = re.compile(r"[a-z][\w./]*=")

RUN_AS_WRITTEN = ["twn tasks", "twn doctor", "twn train experiment=nano_sft debug=limit"]
OWN_FLAGS = ("bench", "search")
"""Verbs whose flags belong to a benchmark, or to a verb within."""
SHORTHAND = ("gpus", "batch")
"""What `twn plan` takes besides keys."""


def lines_of(page: Path) -> list[str]:
    """The `twn` lines of the fenced blocks, without comments and pipes, continued lines joined."""
    blocks = [block.replace("\\\n", " ") for block in FENCE.findall(page.read_text(encoding="utf-8"))]
    found = [line for block in blocks for line in re.findall(r"^(?:\$ )?(twn .*)$", block, re.MULTILINE)]
    return [shlex.join(shlex.split(line.split(" > ")[0], comments=True)) for line in found]


COMMANDS = sorted({line for page in PAGES for line in lines_of(page)})


def first_value(override: str) -> str:
    """One value of a sweep such as `seed=0,1,2`; lists and functions keep their commas."""
    key, value = override.split("=", 1)
    return override if value.startswith(("[", "{", "tag(")) else f"{key}={value.split(',')[0]}"


@pytest.mark.parametrize("command", COMMANDS)
def test_flags_and_overrides_exist(command: str) -> None:
    _, verb, *words = shlex.split(command)
    assert verb in VERBS or verb.startswith("-")
    if verb in OWN_FLAGS or verb.startswith("-"):
        return
    known = verb_words(verb)
    flags = [word.split("=")[0] for word in words if word.startswith("--")]
    assert set(flags) <= {*known.flags, "--help"}, f"twn {verb} has no {sorted(set(flags) - set(known.flags))}"
    if known.overrides and "--config" not in flags and "--resume" not in flags:
        chosen = [first_value(word) for word in words if OVERRIDE.match(word) and "..." not in word]
        load_settings([o for o in chosen if o.split("=")[0] not in SHORTHAND and "tag(" not in o])


@pytest.mark.parametrize("command", RUN_AS_WRITTEN)
def test_cheap_commands_run(command: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert command in COMMANDS, f"no page has `{command}` any more"
    monkeypatch.chdir(tmp_path)
    assert main(shlex.split(command)[1:]) == 0


def test_ten_minutes_by_hand_in_small(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The stages, the evaluation and the report follow on each other, RUN being the latest folder of its kind."""
    monkeypatch.chdir(tmp_path)
    lines = [line for line in lines_of(ROOT / "docs" / "ten_minutes.md") if "debug=limit" not in line]
    verbs = [shlex.split(line)[1] for line in lines]
    assert verbs[:4] == ["train", "train", "evaluate", "report"]
    for line in lines[:4]:
        words = [re.sub(r"outputs/(\w+)/\w+/RUN", _latest, word) for word in shlex.split(line)[1:]]
        assert main([*words, *(["debug=limit"] if words[0] in ("train", "evaluate") else [])]) == 0
    assert len(list(tmp_path.rglob("report.html"))) == 1


def _latest(place: re.Match[str]) -> str:
    return max(Path("outputs", place.group(1)).glob("*/*")).as_posix()
