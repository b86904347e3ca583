"""What `data` may not say about its sources: read from plain values, every problem at once."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from twn_lightning.errors import ConfigError
from twn_lightning.settings import SourceSettings
from twn_lightning.validation import settings_from_dict, settings_to_dict


def problems_of(on_this_machine: bool = False, **data: Any) -> list[str]:
    with pytest.raises(ConfigError) as raised:
        settings_from_dict({"data": data}, on_this_machine=on_this_machine)
    return raised.value.problems


def test_entries_are_read_and_written() -> None:
    entry = {"source": "mmeb_train", "subset": "NIGHTS", "weight": 2}
    settings = settings_from_dict({"data": {"source": "mixture", "sources": [entry]}})
    assert settings.data.sources == [SourceSettings("mmeb_train", "NIGHTS", weight=2.0)]
    assert settings_from_dict(settings_to_dict(settings)) == settings


def test_all_problems_of_all_entries_at_once() -> None:
    entries = [
        {"source": "mmeb-train", "weight": 1.0},
        {"source": "twn", "subsets": "ChartQA", "weight": -1},
        {"source": "visrag", "cap": 0},
        "colpali",
        {"source": "mixture", "cap": "all"},
    ]
    found = problems_of(source="mixture", sources=entries, media_roots=["mmeb_train", "mmeb=/x"], num_frames=0)
    expected = [
        "data.sources[0].source: unknown source 'mmeb-train': did you mean 'mmeb_train'?",
        "unknown key 'data.sources[1].subsets': did you mean 'data.sources[1].subset'?",
        "data.sources[1].weight must be greater than 0, not -1",
        "data.sources[2].cap must be greater than 0, not 0",
        "data.sources[3] must be a mapping of keys, not 'colpali'",
        "data.sources[4].source: unknown source 'mixture'",
        "data.sources[4].cap must be a whole number or null, not 'all'",
        "data.sources: 2 of 5 have a weight: weigh all of them or none",
        "data.media_roots: 'mmeb_train' is not scheme=folder",
        "data.media_roots: unknown scheme 'mmeb': did you mean 'mmeb_train'?",
        "data.num_frames must be at least 1, not 0",
    ]
    for problem in expected:
        assert any(problem in line for line in found), problem
    assert len(found) == len(expected)


def test_contradictions() -> None:
    assert "unknown source 'mmeb': did you mean" in problems_of(source="mmeb")[0]
    assert "data.sources lists, which is empty" in problems_of(source="mixture")[0]
    assert "must be a list of mappings, not 'twn'" in problems_of(source="mixture", sources="twn")[0]
    (problem,) = problems_of(hard_negatives=0, hard_negatives_path="mined.parquet")
    assert "is not read while data.hard_negatives is 0" in problem


def test_folders_must_be_on_this_machine(tmp_path: Path) -> None:
    gone = str(tmp_path / "gone")
    keys = {
        "annotations_root": gone,
        "media_root": gone,
        "media_roots": [f"ume_r1={gone}"],
        "hard_negatives_path": gone,
    }
    found = problems_of(True, source="twn", **keys)
    assert [problem.split("=")[0] for problem in found] == [f"data.{key}" for key in keys]
    settings_from_dict({"data": {"source": "twn", "annotations_root": str(tmp_path)}}, on_this_machine=True)
