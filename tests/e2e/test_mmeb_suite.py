"""All 78 tasks of MMEB-V2, in their exact schemas, load and score offline in one command; interrupted, it goes on."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import pytest

from tests.support.mmeb_fixtures import MirrorPaths, build_mirror
from tests.support.tiny_adapters import save_undecided_adapters
from twn_lightning import cli
from twn_lightning.benchmark.registry import all_tasks
from twn_lightning.evaluation.encoders.protocol import EncodedItems
from twn_lightning.evaluation.encoders.twn import AdaptiveEncoder
from twn_lightning.evaluation.task_scores import BENCHMARK_KEYS
from twn_lightning.run import RunFolder
from twn_lightning.settings import Settings


@pytest.fixture(scope="module")
def adapters(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Random adapters of the `tiny` backbone, with a gate that thinks about most queries."""
    return save_undecided_adapters(tmp_path_factory.mktemp("adapters"))


@pytest.fixture(scope="module")
def mirror(tmp_path_factory: pytest.TempPathFactory) -> MirrorPaths:
    return build_mirror(tmp_path_factory.mktemp("mirror"), queries=2)


def arguments(mirror: MirrorPaths, folder: Path, adapters: Path, *more: str) -> list[str]:
    return [
        "evaluate",
        "model=tiny",
        f"adapters.init_from={adapters}",
        f"task.annotations_root={mirror.annotations_root}",
        f"task.media_root={mirror.media_root}",
        f"task.cache_root={folder / 'cache'}",
        f"paths.run_dir={folder / 'run'}",
        "task.strict_counts=false",
        "data.max_new_tokens=8",
        "evaluation.bootstrap_samples=20",
        *more,
    ]


def test_all_tasks_load_and_score_in_one_command(
    mirror: MirrorPaths, adapters: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    small = ["task.num_frames=2", "task.min_pixels=784", "task.max_pixels=784"]
    assert cli.main(arguments(mirror, tmp_path, adapters, "task=mmeb_v2/all", *small)) == 0
    printed = capsys.readouterr().out
    assert "complete: image" in printed
    (file,) = (tmp_path / "run").glob("eval/mmeb_v2/*/mmeb_v2.json")
    document = json.loads(file.read_text())
    assert re.fullmatch("tiny\\+[0-9a-f]{8}", document["metadata"]["model_name"])
    metrics = document["metrics"]
    for task in all_tasks():
        assert set(metrics[task.modality][task.name]) == set(BENCHMARK_KEYS)
        scores = json.loads((file.parent / task.name / "scores.json").read_text())
        assert scores["num_pred"] == scores["num_data"] > 0
        assert scores["protocol"]["num_frames"] == 2
        assert scores["skipped"] == []
        lines = (file.parent / task.name / "predictions.jsonl").read_text().splitlines()
        assert len(lines) == scores["num_pred"]
    run = RunFolder(tmp_path / "run")
    assert run.read_status()["status"] == "COMPLETED"
    assert run.metrics()["status"] == "complete"
    written = [json.loads(path.read_text()) for path in file.parent.glob("*/scores.json")]
    assert sum(scores["think_rate"] for scores in written) > 0
    assert sum(scores["candidate_think_rate"] for scores in written) == 0
    assert 0 <= run.metrics()["all"] <= 1
    assert cli.main(["aggregate", str(file), "--json"]) == 0
    assert json.loads(capsys.readouterr().out)[str(file)]["all"] == pytest.approx(run.metrics()["all"])


FEW = ("task.suite=mmeb_v2", "task.names=[N24News,HatefulMemes,ViDoRe_tabfquad]", "task.candidate_mode=discriminative")


def test_an_interrupted_evaluation_goes_on_in_its_folder(
    mirror: MirrorPaths,
    adapters: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    encode, calls = AdaptiveEncoder.encode, [0]

    def interrupted(self: AdaptiveEncoder, *arguments: Any, **options: Any) -> EncodedItems:
        calls[0] += 1
        if calls[0] == 4:
            raise KeyboardInterrupt
        return encode(self, *arguments, **options)

    assert cli.main(arguments(mirror, tmp_path / "straight", adapters, "name=mine", *FEW)) == 0
    (file,) = tmp_path.glob("straight/run/eval/mmeb_v2/*/mmeb_v2.json")
    assert json.loads(file.read_text())["metadata"]["model_name"] == "mine"
    monkeypatch.setattr(AdaptiveEncoder, "encode", interrupted)
    assert cli.main(arguments(mirror, tmp_path / "cut", adapters, *FEW)) == 130
    assert "continue with: the same command" in capsys.readouterr().err
    status = RunFolder(tmp_path / "cut" / "run").read_status()
    assert status["status"] == "INTERRUPTED"
    assert f"paths.run_dir={tmp_path / 'cut' / 'run'}" in status["error"]
    assert cli.main(arguments(mirror, tmp_path / "cut", adapters, *FEW)) == 0
    # The three sides that were encoded before are not encoded again; one call is the comparison of stale_cache.
    assert calls[0] == 4 + 6 - 3 + 1
    assert "N24News" in capsys.readouterr().out.split("(unchanged)")[0]
    assert RunFolder(tmp_path / "cut" / "run").read_status()["status"] == "COMPLETED"
    found = [scores_of(tmp_path / name / "run") for name in ("straight", "cut")]
    assert found[0] == found[1]
    assert list(found[0]) == ["HatefulMemes", "N24News", "ViDoRe_tabfquad"]


def scores_of(run: Path) -> dict[str, Any]:
    files = sorted(run.glob("eval/mmeb_v2/*/*/scores.json"))
    found = {path.parent.name: json.loads(path.read_text()) for path in files}
    return {n: {k: v for k, v in s.items() if k not in ("seconds", "from_cache", "repeat")} for n, s in found.items()}


def test_a_folder_of_another_run_is_refused(
    mirror: MirrorPaths, adapters: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    RunFolder(tmp_path / "run").create(Settings())
    assert cli.main(arguments(mirror, tmp_path, adapters, "task=mmeb_v2/N24News")) == 2
    assert "holds an earlier run" in capsys.readouterr().err


def test_missing_media_say_what_to_set(
    mirror: MirrorPaths, adapters: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert cli.main(arguments(mirror, tmp_path, adapters, "task=mmeb_v2/N24News", "task.media_root=null")) == 2
    assert "task.media_root" in capsys.readouterr().err
    assert cli.main(arguments(mirror, tmp_path / "b", adapters, "task=mmeb_v2/N24News", "task.strict_counts=true")) == 2
    assert "strict_counts" in capsys.readouterr().err
