"""What the documentation names exists: files, headings, targets, verbs, configuration keys, commands, sections."""

from __future__ import annotations

import re
import shlex
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml

from twn_lightning.benchmark.registry import TASK_FILES
from twn_lightning.cli import VERBS
from twn_lightning.config import load_settings
from twn_lightning.settings import Settings
from twn_lightning.validation import STAGES, settings_to_dict

ROOT = Path(__file__).parents[2]
METHOD = ROOT / "docs" / "method.md"
PAGES = [
    *sorted(ROOT.glob("*.md")),
    *sorted((ROOT / "docs").rglob("*.md")),
    *sorted((ROOT / "experiments").rglob("*.md")),
]
SOURCES = [
    *(path for folder in ("src", "tests") for path in sorted((ROOT / folder).rglob("*.py")) if path != Path(__file__)),
    *sorted((ROOT / "conf").rglob("*.yaml")),
]
EACH_PAGE = pytest.mark.parametrize("page", PAGES, ids=lambda page: page.relative_to(ROOT).as_posix())

FENCE = re.compile(r"^```.*?\n(.*?)^```", re.MULTILINE | re.DOTALL)
SPAN = re.compile(r"`([^`]+)`")
LINK = re.compile(r"!?\[[^\]]*\]\(([^)\s]+)\)")
GROUPS = "model|adapters|interface|gate|data|stage|trainer|logger|evaluation|paths"
KEY = re.compile(rf"(?<![\w./-])((?:{GROUPS})(?:\.[a-z_]\w*)+)(?![\w/(])")
DEFAULT = re.compile(r"`([a-z_]+(?:\.\w+)+)` = ([\d.,]*\d)")


def prose_of(page: Path) -> str:
    """The text without its code blocks."""
    return FENCE.sub("", page.read_text(encoding="utf-8"))


def code_of(page: Path) -> list[str]:
    """Code blocks, with continued lines joined, and code spans."""
    blocks = [block.replace("\\\n", " ") for block in FENCE.findall(page.read_text(encoding="utf-8"))]
    return [*blocks, *(" ".join(span.split()) for span in SPAN.findall(prose_of(page)))]


def anchors_of(page: Path) -> set[str]:
    """Headings as links name them."""
    headings = re.findall(r"^#+ (.+)$", prose_of(page), re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-") for heading in headings}


def flat(values: dict[str, Any], above: str = "") -> Iterator[tuple[str, Any]]:
    """Every dotted key, of sections too, with its value."""
    for name, value in values.items():
        yield f"{above}{name}", value
        if isinstance(value, dict):
            yield from flat(value, f"{above}{name}.")


def defaults() -> dict[str, list[Any]]:
    """Every settings key with its default, of each stage that has it."""
    found: dict[str, list[Any]] = {}
    for stage in STAGES.values():
        for key, value in flat(settings_to_dict(Settings(stage=stage()))):
            found.setdefault(key, []).append(value)
    return found


@EACH_PAGE
def test_links_resolve(page: Path) -> None:
    broken = []
    for target in LINK.findall(prose_of(page)):
        if target.startswith(("http://", "https://", "mailto:")):
            continue
        name, _, anchor = target.partition("#")
        linked = (page.parent / name).resolve() if name else page
        if not linked.exists() or (anchor and anchor not in anchors_of(linked)):
            broken.append(target)
    assert not broken, f"{page.name} links to {broken}, which do not exist"


@EACH_PAGE
def test_no_placeholder_is_left(page: Path) -> None:
    assert not re.findall(r"\{\{.*?\}\}", page.read_text(encoding="utf-8")), "fill in the measured numbers"


@EACH_PAGE
def test_make_targets_exist(page: Path) -> None:
    targets = set(re.findall(r"^([a-z-]+):", (ROOT / "Makefile").read_text(encoding="utf-8"), re.MULTILINE))
    named = {name for code in code_of(page) for name in re.findall(r"(?:^|[\s;&])make ([a-z][a-z-]*)", code)}
    assert named <= targets, f"{page.name} names targets that the Makefile does not have: {sorted(named - targets)}"


@EACH_PAGE
def test_verbs_exist(page: Path) -> None:
    named = {name for code in code_of(page) for name in re.findall(r"(?:^|[\s/;&])twn ([a-z]+)", code)}
    assert named <= set(VERBS), f"{page.name} names verbs that twn does not have: {sorted(named - set(VERBS))}"


@EACH_PAGE
def test_configuration_keys_exist(page: Path) -> None:
    named = {key for code in code_of(page) for key in KEY.findall(code) if not key.endswith((".py", ".json", ".yaml"))}
    unknown = sorted(named - defaults().keys())
    assert not unknown, f"{page.name} names configuration keys that do not exist: {unknown}"


@EACH_PAGE
def test_commands_compose(page: Path) -> None:
    """Every train, evaluate, config and doctor line with overrides is one that Hydra and the rules accept."""
    for code in code_of(page):
        for line in re.findall(r"^(?:\$ )?twn (?:train|evaluate|config|doctor) .*=.*$", code, re.MULTILINE):
            words = shlex.split(line.split(">")[0], comments=True)
            overrides = [word for word in words if re.match(r"[\w.]+=", word) and "..." not in word]
            if overrides and not {"--multirun", "-m", "--config"} & set(words):
                load_settings(overrides)


def test_stated_defaults_are_the_defaults() -> None:
    """Where the method page says "`key` = number", that is the default."""
    stated = DEFAULT.findall(METHOD.read_text(encoding="utf-8"))
    assert len(stated) > 10
    for key, number in stated:
        assert float(number.replace(",", "")) in defaults()[key], f"{key} is {defaults()[key]}, docs say {number}"


def test_sections_cited_by_the_code_exist() -> None:
    """`section 4` and `docs/method.md, Formats` in code and configuration lead somewhere."""
    headings = re.findall(r"^#+ (?:(\d+)\. )?(.+)$", METHOD.read_text(encoding="utf-8"), re.MULTILINE)
    numbers, titles = {number for number, _ in headings if number}, {title for _, title in headings}
    cited = 0
    for path in SOURCES:
        text = path.read_text(encoding="utf-8")
        for number in re.findall(r"\bsections? (\d+)\b", text):
            cited += 1
            assert number in numbers, f"{path.relative_to(ROOT)} cites section {number}, which docs/method.md lacks"
        for title in re.findall(r"docs/method\.md, ([A-Z]\w+)", text):
            cited += 1
            assert title in titles, f"{path.relative_to(ROOT)} cites {title!r}, which docs/method.md lacks"
        for page in re.findall(r"\b(docs/[\w/]+\.md)", text):
            assert (ROOT / page).is_file(), f"{path.relative_to(ROOT)} names {page}, which does not exist"
    assert cited > 5


def test_the_method_page_keeps_its_sections() -> None:
    """The code cites these by number, so a new section goes to the end."""
    topics = ["known", "forward pass", "chain of thought", "stage 1", "stage 2", "stage 3", "inference"]
    headings = dict(re.findall(r"^## (\d+)\. (.+)$", METHOD.read_text(encoding="utf-8"), re.MULTILINE))
    for number, topic in enumerate(topics, 1):
        assert topic in headings[str(number)].lower()


def test_the_tree_of_the_architecture_page_exists() -> None:
    block = FENCE.findall((ROOT / "docs" / "architecture.md").read_text(encoding="utf-8"))[0]
    parents: list[tuple[int, Path]] = []
    for line in block.splitlines():
        indent, name = len(line) - len(line.lstrip()), line.split()[0]
        parents = [(depth, path) for depth, path in parents if depth < indent]
        path = (parents[-1][1] if parents else ROOT) / name
        assert path.exists(), f"docs/architecture.md shows {path.relative_to(ROOT)}, which does not exist"
        parents.append((indent, path))


def test_every_experiment_page_is_in_the_index() -> None:
    index = (ROOT / "experiments" / "README.md").read_text(encoding="utf-8")
    studies = [page.parent for page in sorted((ROOT / "experiments").glob("*/README.md"))]
    missing = [study.name for study in studies if f"({study.name}/README.md)" not in index]
    assert not missing, f"experiments/README.md does not list {missing}"


def test_conf_names_of_the_docs_exist() -> None:
    """`experiment=`, `model=` and other choices in conf/ comments and pages are files."""
    defaults_list = yaml.safe_load((ROOT / "conf" / "train.yaml").read_text(encoding="utf-8"))["defaults"]
    groups = {group for entry in defaults_list if isinstance(entry, dict) for group in entry if " " not in group}
    choice = re.compile(rf"(?<![\w./-])({'|'.join(sorted(groups))})=(\w+)(/?)")
    texts = {path: path.read_text(encoding="utf-8") for path in (ROOT / "conf").rglob("*.yaml")}
    texts |= {page: "\n".join(code_of(page)) for page in PAGES}
    for path, text in texts.items():
        for group, option, slash in choice.findall(text):
            if option.isupper() or (slash and group != "task"):  # `twn report sweep=FOLDER`
                continue
            # The tasks of a suite are composed from its registry: tests/config/test_task_groups.py.
            generated = group == "task" and option in TASK_FILES
            known = generated or (ROOT / "conf" / group / f"{option}.yaml").is_file()
            assert known or option == "null", f"{path.relative_to(ROOT)}: there is no conf/{group}/{option}.yaml"
