"""The reference config: every key of the train config with its default and its comment, written from conf/."""

from __future__ import annotations

import re
from collections.abc import Sequence
from pathlib import Path

import yaml

from twn_lightning.config import ROOT_CONFIG, compose, conf_dir
from twn_lightning.validation import STAGES, flatten

REFERENCE_FILE = "reference.yaml"


def reference_text() -> str:
    """Every key of the train config with its default and its comment, flat: what conf/reference.yaml holds."""
    lines = [
        "# Every key of the train config with its default: key, value, and what it means.",
        "# Generated from conf/ by `make reference`; a test compares. To change one: twn train stage.batch_size=64",
    ]
    shared = _reference_section([], exclude="stage")
    lines += ["", "# every stage", *shared]
    for stage in STAGES:
        lines += ["", f"# stage={stage}", *_reference_section([f"stage={stage}"], only="stage")]
    return "\n".join(lines) + "\n"


def write_reference() -> Path:
    """Write conf/reference.yaml again."""
    path = conf_dir() / REFERENCE_FILE
    path.write_text(reference_text(), encoding="utf-8")
    return path


def _reference_section(overrides: list[str], *, only: str | None = None, exclude: str | None = None) -> list[str]:
    composed = compose(overrides)
    comments = key_comments(conf_dir() / f"{ROOT_CONFIG}.yaml")
    for group, option in _default_options(overrides).items():
        found = key_comments(conf_dir() / group / f"{option}.yaml")
        comments.update({f"{group}.{key}": text for key, text in found.items()})
    lines = []
    for key, value in flatten(composed).items():
        section = key.split(".")[0]
        if section != exclude and (only is None or section == only):
            written = yaml.safe_dump(value, default_flow_style=True, width=1000).splitlines()[0]
            lines += [f"# {comments.get(key, '')}".rstrip(), f"{key}: {written}"]
    return lines


def _default_options(overrides: Sequence[str]) -> dict[str, str]:
    """The option of each group that the defaults list chooses, and the overrides change."""
    defaults = yaml.safe_load((conf_dir() / f"{ROOT_CONFIG}.yaml").read_text(encoding="utf-8"))["defaults"]
    chosen = {group: option for entry in defaults if isinstance(entry, dict) for group, option in entry.items()}
    chosen.update(dict(override.split("=", 1) for override in overrides))
    return {group: option for group, option in chosen.items() if option is not None and " " not in group}


def key_comments(path: Path) -> dict[str, str]:
    """The comment directly above each key of a YAML file, by dotted key; empty where there is none."""
    comments: dict[str, str] = {}
    pending: list[str] = []
    parents: list[tuple[int, str]] = []
    for line in path.read_text(encoding="utf-8").splitlines():
        stripped = line.strip()
        if stripped.startswith("#"):
            pending.append(stripped.lstrip("# "))
        elif key := re.match(r"( *)(\w+):", line):
            indent = len(key[1])
            parents = [(i, k) for i, k in parents if i < indent] + [(indent, key[2])]
            comments[".".join(k for _, k in parents)] = " ".join(pending)
            pending = []
        else:
            pending = []
    return comments
