"""The study of the packaged backbones' pretraining: logs by size and curriculum, their table and figures."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from experiments.nano_backbone.collect import draw_losses, read_logs, store, table
from twn_lightning.data.nano.pretrain import LOG, SETTINGS
from twn_lightning.errors import DataError


def made_work(folder: Path, size: str, curriculum: str, cot: float) -> Path:
    folder.mkdir()
    (folder / SETTINGS).write_text(json.dumps({"size": size, "curriculum": curriculum}))
    lines = [
        {"step": 25, "caption": 3.0, "cot": 3.0, "picture": 2.0, "seconds": 1.0},
        {"step": 50, "caption": 0.5, "cot": 0.0, "picture": 0.2, "cot_3": cot, "seconds": 2.5},
    ]
    (folder / LOG).write_text("".join(json.dumps(line) + "\n" for line in lines))
    return folder


@pytest.fixture
def study(tmp_path: Path) -> Path:
    """A study's folder with three logs: micro has only met the grids."""
    folder = tmp_path / "study"
    folder.mkdir()
    for size, curriculum, cot in (("nano", "grids", 0.75), ("nano", "mmeb_nano", 0.5), ("micro", "grids", 0.25)):
        store(made_work(tmp_path / f"{size}-{curriculum}", size, curriculum, cot), folder)
    return folder


def test_logs_are_stored_by_size_and_curriculum(study: Path) -> None:
    assert sorted(path.name for path in study.iterdir()) == [
        "micro_grids.jsonl",
        "nano_grids.jsonl",
        "nano_mmeb_nano.jsonl",
    ]
    logs = read_logs(study)
    assert {curriculum: list(sizes) for curriculum, sizes in logs.items()} == {
        "grids": ["nano", "micro"],
        "mmeb_nano": ["nano"],
    }
    assert [line["step"] for line in logs["grids"]["micro"]] == [25, 50]


def test_the_table_has_a_column_for_each_run(study: Path) -> None:
    logs = read_logs(study)
    final = {curriculum: {size: log[-1] for size, log in sizes.items()} for curriculum, sizes in logs.items()}
    lines = table({"final": final}).splitlines()
    assert lines[0] == "| measured | nano, grids | nano, mmeb_nano | micro, grids |"
    assert "| cot 3 | 0.75 | 0.5 | 0.25 |" in lines
    assert "| seconds | 2.5 | 2.5 | 2.5 |" in lines


def test_a_figure_tells_the_sizes_apart(study: Path, tmp_path: Path) -> None:
    draw_losses(read_logs(study)["grids"], tmp_path / "grids.svg")
    drawn = (tmp_path / "grids.svg").read_text()
    assert drawn.count("stroke-dasharray") >= 3
    assert "cot, nano" in drawn
    assert "cot, micro" in drawn


def test_steps_that_a_resumed_run_repeats_are_stored_once(tmp_path: Path) -> None:
    work = made_work(tmp_path / "work", "micro", "grids", 0.25)
    with (work / LOG).open("a") as log:
        log.write(json.dumps({"step": 50, "caption": 0.1}) + "\n")
    stored = store(work, tmp_path).read_text().splitlines()
    assert [json.loads(line)["step"] for line in stored] == [25, 50]
    assert json.loads(stored[-1]) == {"step": 50, "caption": 0.1}


def test_a_folder_that_is_no_run_is_refused(tmp_path: Path) -> None:
    (tmp_path / SETTINGS).write_text("{}")
    with pytest.raises(DataError, match=r"it has no log\.jsonl"):
        store(tmp_path, tmp_path)
