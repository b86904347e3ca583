"""The report in a real browser: scripts run under its content policy, filters work, nothing lands on the console."""

from __future__ import annotations

import io
import re
import subprocess
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
from PIL import Image

from tests.support.browser import CHROMIUM, needs_browser
from twn_lightning.reporting import ReportData, build_summary, write_report

pytestmark = needs_browser

COUNT = 120


def decisions() -> pa.Table:
    """Every verdict at 0 to 3 steps, with hostile text and a picture each."""
    rows = np.arange(COUNT)
    hit_d, hit_g, think = rows % 2 == 0, rows % 3 > 0, rows % 5 < 3
    picture = io.BytesIO()
    Image.fromarray(np.arange(192, dtype=np.uint8).reshape(8, 8, 3)).save(picture, format="PNG")
    hostile = "<script>document.title = 'broken'</script><img src=x onerror=\"document.title='broken'\">"
    text = {name: [hostile] * COUNT for name in ("cot", "positive", "top1_discriminative", "top1_generative")}
    numbers = ("loss_discriminative", "loss_generative", "margin")
    whole = ("prompt_tokens", "query_length")
    return pa.table(
        {
            "query_key": [f"q{row}" for row in rows],
            "task": [("nano/follow", "nano/read", "nano/follow", "nano/sum", "nano/exit")[row % 5] for row in rows],
            "side": ["query"] * COUNT,
            "steps": (rows % 4).tolist(),
            "probability": np.where(think, 0.9, 0.1),
            "think": think,
            "hit_discriminative": hit_d.astype(float),
            "hit_generative": hit_g.astype(float),
            "gain": hit_g.astype(float) - hit_d - 0.1,
            "tokens": (10 + rows % 4).tolist(),
            "malformed": [False] * COUNT,
            "query_text": [f"query {row} {hostile}" for row in rows],
            "image_png": pa.array([picture.getvalue()] * COUNT, pa.binary()),
            **{name: [0.5] * COUNT for name in numbers},
            **{name: [5] * COUNT for name in whole},
            **text,
        }
    )


def summary_of(table: pa.Table) -> dict[str, Any]:
    scores = {
        name: SimpleNamespace(
            hit_at_1=quality,
            tokens_per_query=5.0,
            think_rate=0.5,
            ci95=(0.4, 0.6),
            hits=np.full(table.num_rows, quality),
        )
        for name, quality in {"never": 0.45, "always": 0.55, "adaptive": 0.5, "random": 0.48, "oracle": 0.58}.items()
    }
    return build_summary(
        table,
        suite="nano",
        stages={},
        added_parameter_ratio={"nano": 0.1, "qwen3vl_4b": 0.05, "qwen3vl_8b": 0.03},
        router_scores=scores,
        gate={"auroc": 0.9, "ece": 0.1},
        seconds=1.0,
    )


@pytest.fixture(scope="module")
def report(tmp_path_factory: pytest.TempPathFactory) -> Path:
    table = decisions()
    folder = tmp_path_factory.mktemp("report")
    return write_report(ReportData.from_table(summary_of(table), table), folder / "report.html")


def browse(address: str, folder: Path, *options: str) -> subprocess.CompletedProcess[str]:
    """Open a page headlessly; fails on anything the page writes to the console."""
    assert CHROMIUM is not None
    flags = ["--headless", "--no-sandbox", "--disable-gpu", "--disable-dev-shm-usage", "--hide-scrollbars"]
    command = [CHROMIUM, *flags, "--enable-logging=stderr", f"--user-data-dir={folder / 'profile'}", *options, address]
    done = subprocess.run(command, capture_output=True, text=True, timeout=120, check=True)
    assert "CONSOLE" not in done.stderr, done.stderr
    return done


def test_hostile_text_does_not_run_and_filters_start(report: Path, tmp_path: Path) -> None:
    dom = browse(report.as_uri(), tmp_path, "--dump-dom").stdout
    assert "<title>Think when needed: nano</title>" in dom
    assert re.search(r'<output[^>]*id="shown"[^>]*>60 of 60 examples', dom)
    assert not re.search(r'<form id="filters"[^>]*hidden', dom)


def test_a_filtered_view_can_be_linked(report: Path, tmp_path: Path) -> None:
    dom = browse(f"{report.as_uri()}#verdict=hurt,missed&steps=1", tmp_path, "--dump-dom").stdout
    cards = re.findall(r'<article class="card" data-verdict="(\w+)" data-steps="(\d)"[^>]*?( hidden="")?>', dom)
    shown = [(verdict, steps) for verdict, steps, hidden in cards if not hidden]
    assert len(cards) == 60
    assert shown
    assert all(verdict in ("hurt", "missed") and steps == "1" for verdict, steps in shown)
    assert f"{len(shown)} of 60 examples" in dom


@pytest.mark.parametrize(("scheme", "background"), [(1, (246, 247, 249)), (0, (15, 20, 25))], ids=["light", "dark"])
def test_screenshot_follows_the_colour_scheme(report: Path, tmp_path: Path, scheme: int, background: tuple) -> None:
    picture = tmp_path / "page.png"
    options = (f"--blink-settings=preferredColorScheme={scheme}", "--window-size=1280,2400", f"--screenshot={picture}")
    browse(report.as_uri(), tmp_path, *options)
    pixels = np.asarray(Image.open(picture).convert("RGB"))
    assert tuple(pixels[5, 5]) == background
    # Text, tables and figures: a blank or broken page has next to no colours.
    assert len(np.unique(pixels.reshape(-1, 3), axis=0)) > 200


def test_nothing_sticks_out_sideways_on_a_phone(report: Path, tmp_path: Path) -> None:
    # Headless windows have a least width, a frame has none: what sticks out of it would be cut off here.
    frame = tmp_path / "phone.html"
    frame.write_text(
        f'<body style="margin:0;background:#f00"><iframe src="{report.as_uri()}" style="width:390px;height:2000px;'
        'border:0"></iframe></body>'
    )
    picture = tmp_path / "phone.png"
    options = ("--blink-settings=preferredColorScheme=1", "--window-size=600,2000", f"--screenshot={picture}")
    browse(frame.as_uri(), tmp_path, *options)
    pixels = np.asarray(Image.open(picture).convert("RGB"))
    assert tuple(pixels[5, 595]) == (255, 0, 0)
    right_margin = pixels[:, 380:390].reshape(-1, 3)
    assert (right_margin == (246, 247, 249)).all()
