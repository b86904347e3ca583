"""The project's own files agree: Makefile, CI, contributing page, package metadata."""

from __future__ import annotations

import os
import re
import subprocess
from pathlib import Path

import pytest
import yaml

from twn_lightning import __version__

ROOT = Path(__file__).parents[2]
MAKEFILE = (ROOT / "Makefile").read_text()
TARGETS = set(re.findall(r"^([a-z-]+):.*## ", MAKEFILE, re.MULTILINE))
PROMISED = """help setup demo nano-suite test test-all trust lint types imports config train evaluate sweep report
bench notebooks docs lock audit-deps sbom reference clean"""


def test_every_target_exists_and_explains_itself() -> None:
    assert set(PROMISED.split()) == TARGETS
    phony = re.search(r"^\.PHONY: (.*)$", MAKEFILE, re.MULTILINE)
    assert phony is not None
    assert set(phony[1].split()) == TARGETS


def test_help_is_the_default() -> None:
    done = subprocess.run(["make", "-C", str(ROOT)], capture_output=True, text=True, check=True)
    assert all(re.search(rf"\b{target}\b", done.stdout) for target in TARGETS)


@pytest.mark.parametrize("name", [".ci/run", ".github/workflows/ci.yml", "CONTRIBUTING.md"])
def test_targets_named_elsewhere_exist(name: str) -> None:
    text = (ROOT / name).read_text()
    named = set(re.findall(r"(?:^|run: |`)make ([a-z-]+)", text, re.MULTILINE))
    named |= set(re.findall(r"^\| `([a-z-]+)` \|", text, re.MULTILINE))
    listed = re.search(r"for target in ([a-z -]+);", text)
    named |= set(listed[1].split()) if listed else set()
    assert named <= TARGETS


def test_contributing_says_where_every_check_runs() -> None:
    table = re.findall(r"^\| `([a-z-]+)` \|", (ROOT / "CONTRIBUTING.md").read_text(), re.MULTILINE)
    assert {"setup", "lint", "types", "imports", "test", "test-all", "demo"} <= set(table)


def test_ci_runs_the_entry_point() -> None:
    assert os.access(ROOT / ".ci" / "run", os.X_OK)
    jobs = yaml.safe_load((ROOT / ".github" / "workflows" / "ci.yml").read_text())["jobs"]
    assert {"run": ".ci/run"} in jobs["check"]["steps"]


def test_citation_and_changelog_know_the_version() -> None:
    assert yaml.safe_load((ROOT / "CITATION.cff").read_text())["version"] == __version__
    assert "## [Unreleased]" in (ROOT / "CHANGELOG.md").read_text()
