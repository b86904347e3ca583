"""The page on Python: its blocks run, top to bottom, in one session."""

from __future__ import annotations

import re
import shlex
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from twn_lightning.cli import main

PAGE = Path(__file__).parents[2] / "docs" / "python.md"


def test_every_block_runs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    pixels = np.random.default_rng(0).integers(0, 255, (4, 72, 72, 3), dtype=np.uint8)
    Path("frames").mkdir()
    for index, frame in enumerate(pixels):
        Image.fromarray(frame).save(Path("frames", f"{index}.png"))
    Image.fromarray(pixels[0]).save("scene.png")
    blocks = re.findall(r"^```(python|sh)\n(.*?)^```", PAGE.read_text(encoding="utf-8"), re.MULTILINE | re.DOTALL)
    assert [kind for kind, _ in blocks] == ["python", "python", "python", "sh", "sh", "python", "python"]
    session: dict[str, object] = {}
    for kind, text in blocks:
        if kind == "python":
            exec(compile(text, str(PAGE), "exec"), session)
            continue
        for line in text.splitlines():
            twn, *arguments = shlex.split(line)
            assert twn == "twn"
            assert main(arguments) == 0
    assert session["out"].embeddings.shape == (3, 160)  # type: ignore[attr-defined]
    assert session["similarity"].shape == (3, 1)  # type: ignore[attr-defined]
