"""A folder of inputs of every kind."""

from __future__ import annotations

from pathlib import Path

import pytest
from made_images import save_image


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Ten images, two texts, a folder of twelve frames, a hidden file and one of an unknown type."""
    made = tmp_path / "photos"
    for i in range(10):
        save_image(made / f"image{i}.png", 20 * i)
    (made / "hard.txt").write_text("a hard question\n", encoding="utf-8")
    (made / "unicode.txt").write_text("ein Vögelchen 鳥", encoding="utf-8")
    for i in range(12):
        save_image(made / "clip" / f"frame{i}.jpg", 20 * i)
    (made / ".hidden").write_text("x")
    (made / "notes.pdf").write_text("x")
    return made
