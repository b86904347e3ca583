"""Score files to the scoreboard: the published file, incomplete files, and files with mistakes."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from twn_lightning.benchmark import all_tasks
from twn_lightning.benchmark.aggregate import aggregate, published_scores
from twn_lightning.benchmark.registry import meta_tasks
from twn_lightning.benchmark.score_file import SPLITS, read_score_file
from twn_lightning.errors import ConfigError, DataError

GOLDEN = Path(__file__).parents[2] / "golden" / "vlm2vec-v2-2b.v2.0.0.json"
GOLDEN_META_TASKS = {
    "I-CLS": 62.90, "I-QA": 56.29, "I-RET": 69.47, "I-VG": 77.30,
    "V-CLS": 39.30, "V-QA": 34.33, "V-RET": 28.77, "V-MRET": 36.82,
    "ViDoRe-V1": 75.52, "ViDoRe-V2": 44.86, "VisRAG": 79.38, "VD-OOD": 39.43,
}  # fmt: skip


def document(score: float = 0.5, **metadata: Any) -> dict[str, Any]:
    """A complete score file in which every task has the same score."""
    metrics: dict[str, dict[str, Any]] = {"image": {}, "video": {}, "visdoc": {}}
    for task in all_tasks():
        metrics[task.modality][task.name] = {"hit@1": 0.0, "ndcg_linear@5": 0.0} | {task.metric: score}
    return {"metadata": metadata, "metrics": metrics}


def written(folder: Path, content: dict[str, Any] | str, name: str = "scores_of_m.json") -> Path:
    path = folder / name
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(content if isinstance(content, str) else json.dumps(content), encoding="utf-8")
    return path


def test_the_published_file_gives_the_published_means() -> None:
    found = read_score_file(GOLDEN)
    result = aggregate(found.scores)
    assert result.status == "complete"
    means = {name: round(100 * getattr(result, name), 2) for name in ("image", "video", "visdoc", "all")}
    assert means == {"image": 64.85, "video": 34.58, "visdoc": 65.36, "all": 58.02}
    assert {name: round(100 * mean, 2) for name, mean in result.meta_tasks.items()} == GOLDEN_META_TASKS
    assert found.model == "VLM2Vec-V2.0-Qwen2VL-2B"
    assert found.split == "old"  # reported before the data was re-issued
    assert found.warnings == []


def test_all_is_the_mean_over_tasks_not_over_modalities() -> None:
    result = aggregate({task.name: float(task.modality == "image") for task in all_tasks()})
    assert (result.image, result.video, result.visdoc) == (1, 0, 0)
    assert result.all == pytest.approx(36 / 78)


def test_a_group_with_a_missing_task_has_no_mean() -> None:
    scores = {task.name: 0.5 for task in all_tasks() if task.name not in ("K700", "VisRAG_PlotQA")}
    result = aggregate(scores)
    assert result.status == "incomplete: 76/78"
    assert result.missing == ["K700", "VisRAG_PlotQA"]
    assert (result.image, result.video, result.visdoc, result.all) == (0.5, None, None, None)
    assert [name for name, mean in result.meta_tasks.items() if mean is None] == ["V-CLS", "VisRAG"]
    assert list(result.as_dict()) == ["status", "image", "video", "visdoc", "all", "meta_tasks", "missing"]
    assert list(result.meta_tasks) == list(meta_tasks())


def test_aggregate_refuses_names_that_are_no_task() -> None:
    with pytest.raises(ConfigError, match="did you mean 'DocVQA'"):
        aggregate({"DocVqa": 0.5})


@pytest.mark.parametrize("marker", ["FILE_N/A", "DIR_N/A", "JSON_ERROR", "READ_ERROR", None])
def test_markers_in_the_place_of_scores_count_as_missing(tmp_path: Path, marker: str | None) -> None:
    content = document()
    content["metrics"]["image"]["OVEN"] = marker
    content["metrics"]["video"] = marker
    found = read_score_file(written(tmp_path, content))
    assert len(found.scores) == 78 - 19
    assert aggregate(found.scores).missing[0] == "OVEN"
    assert found.warnings == []


def test_fixed_names_are_the_tasks_and_say_the_split(tmp_path: Path) -> None:
    content = document()
    visdoc = content["metrics"]["visdoc"]
    visdoc["ViDoSeek-page-fixed"] = {"ndcg_linear@5": 0.75}
    visdoc["ViDoSeek-page"] = "FILE_N/A"
    visdoc["MMLongBench-page-fixed"] = visdoc.pop("MMLongBench-page")
    found = read_score_file(written(tmp_path, content))
    assert found.scores["ViDoSeek-page"] == 0.75
    assert found.split == "fixed"
    assert aggregate(found.scores).status == "complete"
    visdoc["MMLongBench-page"] = visdoc.pop("MMLongBench-page-fixed")
    mixed = read_score_file(written(tmp_path, content))
    assert mixed.split == "unspecified"
    assert "'ViDoSeek-page-fixed' is fixed, task 'MMLongBench-page' may be old" in mixed.warnings[0]


@pytest.mark.parametrize(
    ("metadata", "split"),
    [
        ({}, "unspecified"),
        ({"protocol": {"version": "2.1", "num_frames": 8}}, "fixed"),
        ({"protocol": {"version": "2.0.1"}}, "old"),
        ({"benchmark_version": "v2.0.0"}, "old"),
        ({"report_generated_date": "2025-08-15T21:47:53"}, "old"),
        ({"report_generated_date": "2025-12-29T09:27:50"}, "unspecified"),
        ({"report_generated_date": "2025-08-15", "benchmark_version": "2.1"}, "fixed"),
    ],
)
def test_the_split_follows_from_version_or_date(tmp_path: Path, metadata: dict[str, Any], split: str) -> None:
    assert read_score_file(written(tmp_path, document(**metadata))).split == split


def test_a_version_that_contradicts_fixed_names_is_reported(tmp_path: Path) -> None:
    content = document(benchmark_version="2.0.1")
    content["metrics"]["visdoc"]["ViDoSeek-page-fixed"] = content["metrics"]["visdoc"].pop("ViDoSeek-page")
    found = read_score_file(written(tmp_path, content))
    assert found.split == "old"
    assert "before the fixed split, but has task 'ViDoSeek-page-fixed'" in found.warnings[0]


def test_what_is_not_on_the_scoreboard_is_left_out_and_listed(tmp_path: Path) -> None:
    content = document()
    content["metrics"]["video"]["MomentSeeker_1k8"] = {"hit@1": 0.9}
    content["metrics"]["audio"] = {"Clotho": {"hit@1": 0.9}}
    content["metrics"]["image"]["DocVQA"] = {"hit@5": 0.9}
    path = written(tmp_path, content)
    found = read_score_file(path)
    assert aggregate(found.scores).missing == ["DocVQA"]
    assert found.warnings == [
        f"{path}: modality 'audio' is not part of MMEB-V2, left out",
        f"task 'DocVQA' in {path} lacks hit@1: counted as missing",
        f"task 'MomentSeeker_1k8' in {path} is not one of the 78 (nearest: 'MomentSeeker'): left out",
    ]


@pytest.mark.parametrize(
    ("modality", "name", "scores", "message"),
    [
        ("visdoc", "ViDoSeek-page-fixed", {"ndcg_linear@5": 0.8}, "second score of task 'ViDoSeek-page' in .*keep one"),
        ("visdoc", "DocVQA", {"hit@1": 0.8}, "task 'DocVQA' .* is a second score of task 'DocVQA'"),
        ("image", "GQA", {"hit@1": 64.9}, r"task 'GQA' in .*hit@1 is 64.9, not a fraction .*percent\?"),
        ("image", "GQA", {"hit@1": -0.1}, r"hit@1 is -0.1, not a fraction from 0 to 1$"),
        ("image", "GQA", {"hit@1": float("nan")}, "hit@1 is nan, not a fraction"),
        ("image", "GQA", {"hit@1": float("inf")}, "hit@1 is inf, not a fraction"),
        ("image", "GQA", {"hit@1": "0.5"}, "hit@1 is '0.5', not a number"),
        ("image", "GQA", {"hit@1": True}, "hit@1 is True, not a number"),
        ("image", "GQA", 0.5, "task 'GQA' in .* has no scores but 0.5"),
        ("image", "GQA", "OOM", "task 'GQA' in .* has no scores but 'OOM'"),
    ],
)
def test_mistakes_name_file_and_task(tmp_path: Path, modality: str, name: str, scores: Any, message: str) -> None:
    content = document()
    content["metrics"][modality][name] = scores
    path = written(tmp_path, content)
    with pytest.raises(DataError, match=message) as raised:
        read_score_file(path)
    assert str(path) in str(raised.value)


def test_a_task_under_another_modality_and_all_problems_together(tmp_path: Path) -> None:
    content = document()
    content["metrics"]["video"]["GQA"] = content["metrics"]["image"].pop("GQA")
    content["metrics"]["image"]["OVEN"]["hit@1"] = 2
    with pytest.raises(DataError) as raised:
        read_score_file(written(tmp_path, content))
    assert "is listed under video, it belongs to image" in str(raised.value)
    assert "task 'OVEN'" in str(raised.value)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("{", "is not JSON"),
        ("[]", "holds a list"),
        ('{"model": 1}', "is no score file"),
        ('{"metrics": {"image": 3}}', "'metrics.image' must map tasks to scores, it is 3"),
        ('{"metrics": {"image": {"GQA": {}, "GQA": {}}}}', "'GQA' is there twice"),
        (b"\xff\xfe", "is not JSON"),
    ],
)
def test_files_that_cannot_be_read(tmp_path: Path, text: str | bytes, message: str) -> None:
    path = tmp_path / "bad.json"
    path.write_bytes(text if isinstance(text, bytes) else text.encode())
    with pytest.raises(DataError, match=message) as raised:
        read_score_file(path)
    assert str(path) in str(raised.value)


def test_a_missing_file_and_an_empty_folder(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"none\.json cannot be read: No such file"):
        read_score_file(tmp_path / "none.json")
    with pytest.raises(DataError, match=r"holds no scores\.json"):
        read_score_file(tmp_path)


def test_a_folder_of_tasks_scores_like_their_suite_file(tmp_path: Path) -> None:
    for task in all_tasks():
        scores = {"task": task.name, "modality": task.modality, task.metric: 0.25, "encoder": {"name": "ours"}}
        scores["protocol"] = {"version": "2.1", "num_frames": 8}
        written(tmp_path, scores, f"key/{task.name}/scores.json")
    found = read_score_file(tmp_path / "key")
    assert (found.model, found.split, found.frames) == ("ours", "fixed", 8)
    assert aggregate(found.scores).all == 0.25
    assert read_score_file(tmp_path / "key" / "GQA" / "scores.json").scores == {"GQA": 0.25}
    scores = {"task": "GQA", "modality": "image", "hit@1": 0.5, "protocol": {"version": "2.0.0"}}
    written(tmp_path, scores, "other/GQA/scores.json")
    with pytest.raises(DataError, match=r"other.GQA.scores\.json is a second score of task 'GQA' in .*key.GQA"):
        read_score_file(tmp_path)
    (tmp_path / "key" / "GQA" / "scores.json").unlink()
    mixed = read_score_file(tmp_path)
    assert mixed.split == "unspecified"
    assert "its files are of fixed, old" in mixed.warnings[0]


def test_published_rows_are_whole_and_agree_with_their_parts() -> None:
    rows = published_scores()
    assert len(rows) == 37
    sizes = {name: len(tasks) for name, tasks in meta_tasks().items()}
    for row in rows:
        assert row.source
        assert row.ood_split in SPLITS
        assert list(row.meta_tasks) in ([], list(sizes))
        if row.meta_tasks:
            total = sum(row.meta_tasks[name] * size for name, size in sizes.items()) / 78
            assert row.all == pytest.approx(total, abs=0.2), row.model


def test_a_mean_over_two_protocols_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name, frames in (("K700", 8), ("HMDB51", 8), ("Breakfast", 16)):
        entry = {"task": name, "modality": "video", "hit@1": 0.5, "protocol": {"num_frames": frames, "ties": "first"}}
        written(tmp_path, entry, f"{name}/scores.json")
    with pytest.raises(DataError, match=r"Breakfast.*K700.*num_frames is 16 there and 8 here|HMDB51.*num_frames"):
        read_score_file(tmp_path)
    monkeypatch.setenv("TWN_CHECKS", "-mixed_protocols")
    assert len(read_score_file(tmp_path).scores) == 3
