"""The studies and their page: every number shown comes from a results.json, every command is one that can be run."""

from __future__ import annotations

import importlib
import importlib.util
import re
import shlex
from collections import Counter
from pathlib import Path
from typing import Any

import pytest

from experiments.studies.page import PAGE, claims_table, question_of, studies_table
from experiments.studies.study import (
    RESULTS_BLOCK,
    VERDICTS,
    Claim,
    command_of,
    read_block,
    read_results,
    studies,
)
from twn_lightning.cli import VERBS
from twn_lightning.config import load_settings

EACH_STUDY = pytest.mark.parametrize("folder", studies(), ids=lambda folder: folder.name)
CLAIMS = [claim for folder in studies() for claim in read_results(folder)["claims"]]
COMMANDS = sorted({command_of(folder / "README.md") for folder in studies()} | {claim["command"] for claim in CLAIMS})


def test_the_page_shows_what_the_studies_found() -> None:
    remedy = "run `python -m experiments.studies.page`"
    assert read_block(PAGE, "claims") == claims_table() + "\n", remedy
    assert read_block(PAGE, "studies") == studies_table() + "\n", remedy


@EACH_STUDY
def test_a_readme_shows_what_its_results_say(folder: Path) -> None:
    collect = importlib.import_module(f"experiments.{folder.name}.collect")
    shown = read_block(folder / "README.md", RESULTS_BLOCK)
    assert shown == collect.table(read_results(folder)) + "\n", "run the study's collect.py again"


@EACH_STUDY
def test_a_readme_asks_and_answers(folder: Path) -> None:
    text = (folder / "README.md").read_text(encoding="utf-8")
    for part in ("Question", "Command", "Verdict"):
        assert re.search(rf"^\*\*{part}\.\*\* \w", text, re.MULTILINE), f"{folder.name} lacks its **{part}.**"
    assert question_of(folder / "README.md").endswith("?")


@EACH_STUDY
def test_figures_of_a_readme_exist(folder: Path) -> None:
    named = set(re.findall(r"!\[[^\]]*\]\(([^)]+)\)", (folder / "README.md").read_text(encoding="utf-8")))
    assert {path.name for path in folder.glob("*.svg")} | {path.name for path in folder.glob("*.png")} == named


def test_claims_are_complete() -> None:
    assert CLAIMS
    repeated = [key for key, count in Counter((c["study"], c["id"]) for c in CLAIMS).items() if count > 1]
    assert not repeated
    fields = {*Claim.__dataclass_fields__, "study", "command"}
    for claim in CLAIMS:
        assert set(claim) == fields, claim["id"]
        assert claim["verdict"] in VERDICTS
        low, high = claim["ci95"]
        assert low - 1e-9 <= claim["estimate"] <= high + 1e-9, claim["id"]
        assert claim["n_seeds"] >= 1
        assert claim["n_queries"] >= 1


@EACH_STUDY
def test_claims_name_their_study_and_its_command(folder: Path) -> None:
    for claim in read_results(folder)["claims"]:
        assert (claim["study"], claim["command"]) == (folder.name, command_of(folder / "README.md"))


@pytest.mark.parametrize("command", COMMANDS)
def test_commands_can_be_run(command: str) -> None:
    for line in command.split("&&"):
        words = shlex.split(line, comments=True)
        if words[:2] == ["python", "-m"]:
            assert importlib.util.find_spec(words[2]) is not None, f"there is no module {words[2]}"
        elif words[0] == "make":
            assert re.search(rf"^{words[1]}:", (PAGE.parents[1] / "Makefile").read_text(), re.MULTILINE)
        else:
            assert words[0] == "twn", f"{line}: neither python -m, make nor twn"
            assert words[1] in VERBS
            load_settings([single(word) for word in words[2:] if re.match(r"[\w./@+]+=", word)])


def single(override: str) -> str:
    """The first value of a sweep such as `seed=0,1,2`; lists keep their commas."""
    key, value = override.split("=", 1)
    return override if value.startswith(("[", "{")) else f"{key}={value.split(',')[0]}"


def test_a_changed_number_is_noticed(monkeypatch: pytest.MonkeyPatch) -> None:
    """The comparison of page and results is not vacuous: another estimate gives another table."""
    found = claims_table()
    import experiments.studies.page as page

    def changed(folder: Path) -> dict[str, Any]:
        results = read_results(folder)
        return {"claims": [{**claim, "estimate": claim["estimate"] + 0.01} for claim in results["claims"]]}

    monkeypatch.setattr(page, "read_results", changed)
    assert claims_table() != found
