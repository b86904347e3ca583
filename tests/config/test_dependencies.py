"""The list of what CI installs fits what the package asks for, is complete, and holds no release known to be bad."""

from __future__ import annotations

import importlib.metadata
import json
import re
import subprocess
import sys
from pathlib import Path

import pytest
from packaging.requirements import Requirement
from packaging.specifiers import SpecifierSet
from packaging.utils import canonicalize_name

from twn_lightning import __version__
from twn_lightning.environment import version_of

if sys.version_info >= (3, 11):
    import tomllib
else:
    import tomli as tomllib

ROOT = Path(__file__).parents[2]
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
LINES = [line for line in (ROOT / "constraints.txt").read_text().splitlines() if not line.startswith("#")]
LOCKED = {canonicalize_name(name): version for name, _, version in (line.partition("==") for line in LINES)}
KNOWN_BAD = {"lightning": ("2.6.2", "2.6.3"), "pytorch-lightning": ("2.6.2", "2.6.3")}
"""Releases with malicious code, by name: GHSA-w37p-236h-pfx3."""

UNLISTED = ("pip", "setuptools", "wheel")
"""What a virtual environment starts with; pip does not list them."""
CUDA = ("nvidia-", "cuda-", "triton")
"""Libraries of torch's CUDA builds, which CI does not install."""


def asked_for() -> list[Requirement]:
    """What `pip install -e .[dev]` asks for on CI's machine."""
    texts = [*PROJECT["dependencies"], *PROJECT["optional-dependencies"]["dev"]]
    return [found for found in map(Requirement, texts) if found.marker is None or found.marker.evaluate()]


def test_every_line_pins_one_version_and_names_no_place() -> None:
    for line in LINES:
        assert re.fullmatch(r"[A-Za-z0-9._-]+==[A-Za-z0-9.!]+", line), f"{line}: run `make lock`"
    assert len(LOCKED) == len(LINES)


def test_the_list_has_what_the_package_asks_for() -> None:
    for wanted in asked_for():
        version = LOCKED.get(canonicalize_name(wanted.name))
        assert version is not None, f"{wanted.name} is not in constraints.txt: run `make lock`"
        assert wanted.specifier.contains(version), f"{wanted} does not allow {version}: run `make lock`"


def test_the_list_is_complete() -> None:
    """Nothing that a listed package needs is left to chance."""
    todo, seen = [*asked_for()], set()
    while todo:
        wanted = todo.pop()
        name = canonicalize_name(wanted.name)
        if (name, frozenset(wanted.extras)) in seen:
            continue
        seen.add((name, frozenset(wanted.extras)))
        if name in UNLISTED or name.startswith(CUDA):
            continue
        assert name in LOCKED, f"{name} is not in constraints.txt: run `make lock`"
        for text in importlib.metadata.requires(name) or []:
            needed = Requirement(text)
            extras = [{"extra": extra} for extra in wanted.extras] or [{"extra": ""}]
            if needed.marker is None or any(needed.marker.evaluate(extra) for extra in extras):
                todo.append(needed)


def test_the_makefile_and_the_list_mean_the_same_torch() -> None:
    assert f"TORCH ?= torch=={LOCKED['torch']}" in (ROOT / "Makefile").read_text()


def test_ci_installs_the_list() -> None:
    run = (ROOT / ".ci" / "run").read_text()
    assert run.index('export PIP_CONSTRAINT="$PWD/constraints.txt"') < run.index("for target in setup")
    assert "PIP_CONSTRAINT: constraints.txt" in (ROOT / ".github" / "workflows" / "ci.yml").read_text()
    assert "make audit-deps" in (ROOT / ".github" / "workflows" / "ci.yml").read_text()
    assert "pip-audit --strict " in (ROOT / "Makefile").read_text(), "without it, what cannot be looked up passes"


@pytest.mark.parametrize(("name", "versions"), KNOWN_BAD.items())
def test_known_bad_releases_are_excluded(name: str, versions: tuple[str, ...]) -> None:
    assert LOCKED.get(name) not in versions
    assert version_of(name) not in versions
    ranges = [wanted.specifier for wanted in asked_for() if canonicalize_name(wanted.name) == name]
    for allowed in ranges or [SpecifierSet(f"=={LOCKED[name]}")]:
        assert not any(allowed.contains(version) for version in versions)


def test_the_bill_of_materials() -> None:
    """`make sbom` lists the installed packages, with licences, and no folder of this machine."""
    written = ROOT / "build" / "sbom.json"
    subprocess.run(
        ["make", "--old-file=.venv/.ready", f"BIN={Path(sys.executable).parent}", "ARGS=--no-validate", "sbom"],
        cwd=ROOT, check=True, capture_output=True,
    )  # fmt: skip
    text = written.read_text()
    content = json.loads(text)
    assert content["bomFormat"] == "CycloneDX"
    root = content["metadata"]["component"]
    assert (root["name"], root["version"]) == ("twn_lightning", __version__)
    components = {canonicalize_name(component["name"]): component for component in content["components"]}
    for wanted in map(Requirement, PROJECT["dependencies"]):
        component = components[canonicalize_name(wanted.name)]
        assert component["version"] == importlib.metadata.version(wanted.name)
    licensed = [name for name, component in components.items() if component.get("licenses")]
    assert len(licensed) > 0.9 * len(components), "a few packages do not say theirs"
    assert str(ROOT) not in text
    assert "file://" not in text
