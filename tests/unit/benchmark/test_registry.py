"""The table of 78 tasks: complete, consistent, and selected by name."""

from __future__ import annotations

from collections import Counter
from dataclasses import fields

import pytest

from twn_lightning.benchmark.parsers import PARSERS, get_parser
from twn_lightning.benchmark.registry import (
    VERSIONS,
    BenchmarkTask,
    all_tasks,
    get_task,
    meta_tasks,
    select_tasks,
    selections,
)
from twn_lightning.errors import ConfigError

META_TASK_SIZES = {
    "I-CLS": 10,
    "I-QA": 10,
    "I-RET": 12,
    "I-VG": 4,
    "V-CLS": 5,
    "V-QA": 5,
    "V-RET": 5,
    "V-MRET": 3,
    "ViDoRe-V1": 10,
    "ViDoRe-V2": 4,
    "VisRAG": 6,
    "VD-OOD": 4,
}


def test_78_tasks_in_scoreboard_order() -> None:
    names = [task.name for task in all_tasks()]
    assert len(set(names)) == 78
    assert {name: len(tasks) for name, tasks in meta_tasks().items()} == META_TASK_SIZES
    assert list(meta_tasks()) == list(META_TASK_SIZES)
    assert Counter(task.modality for task in all_tasks()) == {"image": 36, "video": 18, "visdoc": 24}
    assert (names[0], names[36], names[54], names[77]) == ("ImageNet-1K", "K700", "ViDoRe_arxivqa", "MMLongBench-doc")


def test_metric_follows_the_modality() -> None:
    assert {(task.modality, task.metric) for task in all_tasks()} == {
        ("image", "hit@1"),
        ("video", "hit@1"),
        ("visdoc", "ndcg_linear@5"),
    }


def test_every_parser_is_used_and_exists() -> None:
    assert {task.parser for task in all_tasks()} == set(PARSERS)
    assert len(PARSERS) == 21
    assert all(get_parser(name).__name__ == name for name in PARSERS)


def test_unknown_parser_lists_what_exists() -> None:
    with pytest.raises(ConfigError, match="did you mean 'vidore'"):
        get_parser("vidor")


def test_local_tasks_and_their_lists() -> None:
    """Image tasks, video QA and moment retrieval rank a query's own list; the rest the whole corpus."""
    for task in all_tasks():
        own_list = task.modality == "image" or task.meta_task in ("V-QA", "V-MRET") or task.name == "SmthSmthV2"
        assert task.eval_type == ("local" if own_list else "global"), task.name
        assert task.num_queries > 0
        assert task.num_candidates or task.candidates_note, task.name


def test_graded_tasks() -> None:
    assert [task.name for task in all_tasks() if task.graded] == [
        "ViDoRe_esg_reports_human_labeled_v2",
        "ViDoSeek-doc",
        "MMLongBench-doc",
    ]


def test_versions_change_what_they_should() -> None:
    assert get_task("ViDoSeek-page").at_version("2.0.1").hf_repo == "VLM2Vec/ViDoSeek-page"
    assert get_task("ViDoSeek-page").at_version("2.1").hf_repo == "VLM2Vec/ViDoSeek-page-fixed"
    assert [get_task("MomentSeeker").at_version(v).num_queries for v in VERSIONS] == [1800, 1602, 1602]
    known = {field.name for field in fields(BenchmarkTask)}
    for task in all_tasks():
        assert all(set(changes) <= known for changes in task.versions.values())


def test_unknown_version() -> None:
    with pytest.raises(ConfigError, match=r"unknown benchmark version '3\.0'.*2\.0\.0, 2\.0\.1, 2\.1"):
        get_task("GQA").at_version("3.0")


def test_selection_is_in_scoreboard_order_and_without_repeats() -> None:
    chosen = [task.name for task in select_tasks(["VD-OOD", "GQA", "ViDoSeek-doc"])]
    assert chosen == ["GQA", "ViDoSeek-page", "ViDoSeek-doc", "MMLongBench-page", "MMLongBench-doc"]
    assert len(select_tasks(["all"])) == 78
    assert selections()["video"] == [task.name for task in all_tasks() if task.modality == "video"]


def test_unknown_names_are_reported_together() -> None:
    with pytest.raises(ConfigError) as error:
        select_tasks(["VidoRe-V1", "GQA", "MSRVTT"])
    assert "did you mean 'ViDoRe-V1'" in str(error.value)
    assert "did you mean 'MSR-VTT'" in str(error.value)
    with pytest.raises(ConfigError, match="did you mean 'Video-MME'"):
        get_task("VideoMME")
