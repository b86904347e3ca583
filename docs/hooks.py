"""What `make docs` adds to the pages in docs/: the studies, the configuration reference, and rendered notebooks."""

from __future__ import annotations

import os
import re
from pathlib import Path
from urllib.parse import urlsplit

from mkdocs.config.defaults import MkDocsConfig
from mkdocs.structure.files import File, Files
from mkdocs.structure.pages import Page

ROOT = Path(__file__).parents[1]
NOTEBOOKS = ROOT / "build" / "notebooks"
"""Where `make docs` renders the notebooks to."""
STUDY_FILES = (".md", ".svg", ".png", ".json")

_REMOTE_SCRIPT = re.compile(r'<script[^>]*src="https?://[^"]*"[^>]*>\s*</script>')
_LINK = re.compile(r"(!?)\[([^\]]*)\]\(([^)\s]+)\)")


def on_files(files: Files, config: MkDocsConfig) -> Files:
    """Add the studies with their figures, the configuration reference, and the notebooks."""
    for path in sorted((ROOT / "experiments").rglob("*")):
        if path.suffix in STUDY_FILES:
            files.append(File.generated(config, path.relative_to(ROOT).as_posix(), abs_src_path=str(path)))
    for path in sorted(NOTEBOOKS.glob("*.html")):
        offline = _REMOTE_SCRIPT.sub("", path.read_text(encoding="utf-8"))
        files.append(File.generated(config, f"notebooks/{path.name}", content=offline))
    files.append(File.generated(config, "reference/configuration.md", content=configuration_page()))
    files.append(File.generated(config, "notebooks.md", content=notebooks_page()))
    return files


def on_page_markdown(markdown: str, page: Page, config: MkDocsConfig, files: Files) -> str:
    """Point links as they are in the repository to pages of the site; code that is not on the site is only named."""
    source = page.file.src_uri
    here = ROOT / ("" if source.startswith("experiments/") else "docs") / source

    def moved(link: re.Match[str]) -> str:
        picture, text, target = link.groups()
        address = urlsplit(target)
        if address.scheme or not address.path:
            return link.group()
        path = Path(os.path.normpath(here.parent / address.path)).relative_to(ROOT).as_posix()
        uri = path.removeprefix("docs/").replace(".ipynb", ".html")
        if files.get_file_from_path(uri) is None:
            return text
        anchor = f"#{address.fragment}" if address.fragment else ""
        return f"{picture}[{text}]({os.path.relpath(uri, Path(source).parent)}{anchor})"

    return _LINK.sub(moved, markdown)


def configuration_page() -> str:
    """A table of each section of conf/reference.yaml."""
    parts = ["# Configuration", "", "Every key with its default. `twn config --groups` lists the groups."]
    comment: list[str] = []
    opened = False
    for line in (ROOT / "conf" / "reference.yaml").read_text(encoding="utf-8").splitlines():
        if line.startswith("#"):
            comment.append(line.lstrip("# "))
        elif not line:
            comment = []
            opened = False
        else:
            if not opened:
                parts += ["", f"## {comment.pop(0)}", "", "| key | default | |", "| --- | --- | --- |"]
                opened = True
            key, _, value = line.partition(": ")
            parts.append(f"| `{key}` | `{value}` | {_cell(' '.join(comment))} |")
            comment = []
    return "\n".join(parts) + "\n"


def _cell(text: str) -> str:
    return text.replace("|", "\\|").replace("<", "&lt;")


def notebooks_page() -> str:
    """A list of the notebooks, linked where they are rendered."""
    lines = ["# Notebooks", "", "In `notebooks/`; each runs on the output of `make demo`.", ""]
    for path in sorted((ROOT / "notebooks").glob("*.ipynb")):
        rendered = (NOTEBOOKS / path.name).with_suffix(".html").exists()
        lines.append(f"- [{path.stem}](notebooks/{path.stem}.html)" if rendered else f"- {path.stem}")
    return "\n".join(lines) + "\n"
