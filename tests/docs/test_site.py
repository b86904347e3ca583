"""The documentation site builds without a warning, and holds every page and study."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
GENERATED = {"notebooks.md", "reference/configuration.md"}


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("site")
    command = [sys.executable, "-m", "mkdocs", "build", "--strict", "--quiet", "--site-dir", str(folder)]
    environment = os.environ | {"NO_MKDOCS_2_WARNING": "1"}
    done = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, timeout=300, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    return folder


def test_every_page_is_in_the_navigation() -> None:
    """Studies are listed by their own page, experiments/README.md."""
    named = re.findall(r"(\S+\.md)$", (ROOT / "mkdocs.yml").read_text(encoding="utf-8"), re.MULTILINE)
    pages = {page.relative_to(ROOT / "docs").as_posix() for page in (ROOT / "docs").rglob("*.md")}
    assert sorted(named) == sorted(pages | GENERATED | {"experiments/README.md"})


def test_links_between_pages_lead_somewhere(site: Path) -> None:
    """Those out of docs/ too: the hook points them at pages of the site, or leaves their text."""
    broken = []
    for page in site.rglob("*.html"):
        for target in re.findall(r'(?:href|src)="([^"#:?]+)[#?"]', page.read_text(encoding="utf-8")):
            if not (site / target.lstrip("/") if target.startswith("/") else page.parent / target).exists():
                broken.append(f"{page.relative_to(site)}: {target}")
    assert not broken


def test_the_reference_has_every_key(site: Path) -> None:
    page = (site / "reference" / "configuration.html").read_text(encoding="utf-8")
    lines = (ROOT / "conf" / "reference.yaml").read_text(encoding="utf-8").splitlines()
    keys = {line.partition(":")[0] for line in lines if line and not line.startswith("#")}
    assert not [key for key in keys if f"<code>{key}</code>" not in page]


def test_the_api_is_generated_from_docstrings(site: Path) -> None:
    page = (site / "reference" / "api.html").read_text(encoding="utf-8")
    for name in ("TWNEncoder.from_pretrained", "reporting.what_if.at_threshold", "dual_lora.DualLoRABackbone"):
        assert re.search(rf'id="twn_lightning\.[\w.]*{re.escape(name)}"', page)


def test_pages_ask_nobody_for_anything(site: Path) -> None:
    asking = re.compile(r'<(?:script|img|link rel="stylesheet")[^>]*(?:src|href)="https?://')
    assert not [page.name for page in site.rglob("*.html") if asking.search(page.read_text(encoding="utf-8"))]
