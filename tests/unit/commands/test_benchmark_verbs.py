"""`twn tasks` and `twn aggregate`: what they print, for people and as JSON."""

from __future__ import annotations

import json
import logging
from pathlib import Path

import pytest

from twn_lightning import cli
from twn_lightning.benchmark import all_tasks

GOLDEN = str(Path(__file__).parents[2] / "golden" / "vlm2vec-v2-2b.v2.0.0.json")
KEYS = ["status", "image", "video", "visdoc", "all", "meta_tasks", "missing"]


def test_aggregate_prints_one_json_object_by_file(tmp_path: Path, capsys: pytest.CaptureFixture[str], caplog) -> None:
    part = tmp_path / "part.json"
    part.write_text(json.dumps({"metrics": {"image": {"GQA": {"hit@1": 0.5}, "Unknown": {"hit@1": 0.5}}}}))
    with caplog.at_level(logging.WARNING):
        assert cli.main(["aggregate", GOLDEN, str(part), "--json"]) == 0
    printed = json.loads(capsys.readouterr().out)
    assert list(printed) == [GOLDEN, str(part)]
    assert list(printed[GOLDEN]) == list(printed[str(part)]) == KEYS
    assert printed[GOLDEN]["status"] == "complete"
    assert printed[GOLDEN]["all"] == pytest.approx(0.5802, abs=5e-5)
    assert printed[GOLDEN]["missing"] == []
    assert printed[str(part)]["status"] == "incomplete: 1/78"
    assert printed[str(part)]["all"] is printed[str(part)]["image"] is printed[str(part)]["meta_tasks"]["I-QA"] is None
    assert len(printed[str(part)]["missing"]) == 77
    assert "task 'Unknown'" in caplog.text


def row_of(printed: str, *words: str) -> str:
    return next(line for line in printed.splitlines() if all(word in line for word in words))


def test_aggregate_puts_files_beside_published_models_with_their_splits(capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["aggregate", GOLDEN, "--meta-tasks", "--notes"]) == 0
    printed = capsys.readouterr().out
    ours = row_of(printed, "VLM2Vec-V2.0-Qwen2VL-2B").split()
    assert ours[2:6] == ["64.85", "34.58", "65.36", "58.02"]
    assert ours[6:12] == ["62.90", "56.29", "69.47", "77.30", "39.30", "34.33"]
    assert ours[12:18] == ["28.77", "36.82", "75.52", "44.86", "79.38", "39.43"]
    assert ours[18] == "old"
    rival = row_of(printed, "Qwen3-VL-Embedding", "8B")
    assert "77.8" in rival
    assert "fixed" in rival
    assert "64" in rival
    assert "UME-R1" in printed
    assert "contradicts its own parts" in printed


def test_aggregate_filters_published_models(capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["aggregate", GOLDEN, "--filter", "vlm2vec", "--split", "fixed"]) == 0
    printed = capsys.readouterr().out
    assert "59.2" in row_of(printed, "VLM2Vec-V2 ", "2B")
    assert "ColPali" not in printed
    assert "58.0 " not in printed
    assert cli.main(["aggregate", "--no-published", GOLDEN]) == 0
    assert "VLM2Vec-V1" not in capsys.readouterr().out
    assert cli.main(["aggregate", GOLDEN, "--filter", "no such model"]) == 2
    assert "There are: ColPali v1.3" in capsys.readouterr().err


def test_aggregate_says_what_is_missing(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    content = json.loads(Path(GOLDEN).read_text())
    content["metrics"]["video"]["K700"] = "FILE_N/A"
    path = tmp_path / "k.json"
    path.write_text(json.dumps(content))
    assert cli.main(["aggregate", str(path), "--no-published"]) == 0
    printed = capsys.readouterr().out
    ours = row_of(printed, "incomplete: 77/78").split()
    assert ours[2:6] == ["64.85", "–", "65.36", "–"]
    assert printed.replace("\n", "").endswith("lacks K700")


def test_aggregate_of_a_bad_file_ends_with_a_message(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = tmp_path / "bad.json"
    path.write_text("{")
    assert cli.main(["aggregate", GOLDEN, str(path), "--json"]) == 2
    captured = capsys.readouterr()
    assert captured.out == ""
    assert f"{path} is not JSON" in captured.err


def test_tasks_lists_all_78_as_json_and_as_a_table(capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["tasks", "--json"]) == 0
    rows = json.loads(capsys.readouterr().out)
    assert [row["name"] for row in rows] == [task.name for task in all_tasks()]
    assert rows[0]["modality"] == "image"
    assert (rows[0]["meta_task"], rows[0]["metric"], rows[0]["parser"]) == ("I-CLS", "hit@1", "image_cls")
    assert (rows[0]["num_queries"], rows[0]["num_candidates"], rows[0]["version"]) == (1000, 1000, "2.1")
    assert {"hf_repo", "hf_subset", "hf_split", "hf_revision"} <= set(rows[0])
    assert cli.main(["tasks"]) == 0
    printed = capsys.readouterr().out
    assert "78 tasks" in printed
    for task in all_tasks():
        assert f" {task.name} " in printed
        assert task.hf_repo in printed


def test_tasks_of_the_nano_suite(capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["tasks", "--suite", "mmeb_nano", "--json"]) == 0
    assert [row["name"] for row in json.loads(capsys.readouterr().out)] == [
        task.name for task in all_tasks("mmeb_nano")
    ]
    assert cli.main(["tasks", "--suite", "mmeb_nano", "I-RET"]) == 0
    printed = capsys.readouterr().out
    assert printed.startswith("MMEB-nano")
    assert "3 tasks, 273 queries" in printed


def test_tasks_of_a_group_at_an_older_version(capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["tasks", "V-MRET", "ViDoSeek-page", "--version", "2.0.0", "--json"]) == 0
    rows = json.loads(capsys.readouterr().out)
    assert [row["name"] for row in rows] == ["QVHighlight", "Charades-STA", "MomentSeeker", "ViDoSeek-page"]
    assert rows[2]["num_queries"] == 1800
    assert rows[3]["hf_repo"] == "VLM2Vec/ViDoSeek-page"
    assert cli.main(["tasks", "V-MRETT"]) == 2
    assert "did you mean 'V-MRET'" in capsys.readouterr().err
