"""The notebooks run from top to bottom on small runs, and are committed without outputs.

Their code cells are executed in this process, so that the tests do not need Jupyter.
"""

from __future__ import annotations

import ast
import json
from pathlib import Path
from typing import Any

import pytest
from matplotlib import pyplot as plt

from tests.stage_runs import StageRun, tiny_settings
from twn_lightning.backbone.packaged import PACKAGED
from twn_lightning.evaluate import evaluate
from twn_lightning.run import RunFolder
from twn_lightning.settings import DataSettings, EvaluationSettings, GateSettings, RLSettings, Settings

NOTEBOOKS = Path(__file__).parents[2] / "notebooks"
QUICKSTART, INSPECT, ROLLOUTS, COMPARE = (
    NOTEBOOKS / f"{name}.ipynb" for name in ("01_quickstart", "02_inspect_gate", "03_read_rollouts", "04_compare_runs")
)
MAX_CELLS = 15
QUERIES = 48


def cells_of(path: Path) -> list[dict[str, Any]]:
    cells: list[dict[str, Any]] = json.loads(path.read_text(encoding="utf-8"))["cells"]
    return cells


def code_of(path: Path) -> list[tuple[dict[str, Any], str]]:
    return [(cell, "".join(cell["source"])) for cell in cells_of(path) if cell["cell_type"] == "code"]


def execute(path: Path, **parameters: Any) -> dict[str, Any]:
    """Run the code cells in order; `parameters` replace the values of the cell with that tag. Returns the names."""
    names: dict[str, Any] = {"__name__": "__main__"}
    for number, (cell, source) in enumerate(code_of(path), 1):
        exec(compile(source, f"{path.name}, code cell {number}", "exec"), names)
        if "parameters" in cell["metadata"].get("tags", []):
            unknown = parameters.keys() - names.keys()
            assert not unknown, f"{path.name} has no parameter {unknown}"
            names.update(parameters)
    plt.close("all")
    return names


def evaluation(folder: Path, queries: int, price: float = GateSettings.price) -> RunFolder:
    """A run folder of the packaged adapters on a few queries."""
    settings = Settings(
        data=DataSettings(test_pairs=queries),
        evaluation=EvaluationSettings(bootstrap_samples=50),
        gate=GateSettings(price=price),
    )
    run = RunFolder(folder).create(settings)
    evaluate(settings, run)
    return run


@pytest.fixture(scope="module")
def evaluated(tmp_path_factory: pytest.TempPathFactory) -> RunFolder:
    return evaluation(tmp_path_factory.mktemp("evaluate"), QUERIES)


@pytest.fixture(scope="module")
def reinforced(tmp_path_factory: pytest.TempPathFactory) -> RunFolder:
    """A run folder of stage 3, two steps long, on the random backbone."""
    stage = RLSettings(
        prompts_per_step=4, completions_per_prompt=3, max_steps=2, min_live_groups=1, chunk_size=12, pool_size=8
    )
    return StageRun(tiny_settings(stage, tmp_path_factory.mktemp("rl"))).fit().run_folder


def test_the_adapters_that_the_notebooks_load_are_packaged() -> None:
    needed = ("reasoning", "embedding", "queries.pt", "gate_mlp.pt", "twn_config.json")
    adapters = PACKAGED["nano"] / "adapters"
    missing = [name for name in needed if not (adapters / name).exists()]
    assert not missing, f"{adapters} lacks {missing}: the package ships trained adapters, and notebook 01 needs them"


def test_quickstart_shows_a_cot_and_candidates(capsys: pytest.CaptureFixture[str]) -> None:
    names = execute(QUICKSTART)
    printed = capsys.readouterr().out
    assert set(names["encoded"]) == {"discriminative", "generative", "adaptive"}
    assert names["encoded"]["generative"].tokens[0] > 0
    assert names["encoded"]["discriminative"].tokens[0] == 0
    for expected in ("written CoT: <think>", "p(think) = ", "positive: "):
        assert expected in printed
    assert len(names["adaptive"]) == len(names["pairs"])


@pytest.mark.parametrize("verdict", ["helped", "skipped"])
def test_inspect_gate_reads_a_run(evaluated: RunFolder, verdict: str, capsys: pytest.CaptureFixture[str]) -> None:
    names = execute(INSPECT, RUN=evaluated.path, VERDICT=verdict)
    curve, modes = names["curve"], names["data"].summary["modes"]
    assert len(names["decisions"]) == QUERIES
    assert curve.quality[0] == pytest.approx(modes["never"]["hit@1"])
    assert curve.quality[-1] == pytest.approx(modes["always"]["hit@1"])
    own = names["points"][len(names["THRESHOLDS"])]
    assert (own.quality, own.think_rate) == pytest.approx((modes["adaptive"]["hit@1"], modes["adaptive"]["think_rate"]))
    assert names["examples"]
    assert all(example.row["image_png"] for example in names["examples"])
    for mode, neighbours in names["answer"]["neighbours"].items():  # the last example, read again
        assert (neighbours[0]["text"] or neighbours[0]["key"]) == names["row"][f"top1_{mode}"]
    assert f"decisions {verdict}" in capsys.readouterr().out


def test_read_rollouts_reads_a_run(reinforced: RunFolder, capsys: pytest.CaptureFixture[str]) -> None:
    names = execute(ROLLOUTS, RUN=reinforced.path)
    printed = capsys.readouterr().out
    assert len(names["groups"]) == len({(group.step, group.query_text) for group in names["groups"]}) > 1
    assert all(len(group.completions) == 3 for group in names["groups"])
    assert len(names["tokens_C"]) == 3 * len(names["groups"])
    assert printed.count("best  ") == min(names["GROUPS"], len(names["groups"]))
    assert "Greedy CoTs of 4 validation queries" in printed


def test_compare_runs_pairs_the_shared_queries(
    evaluated: RunFolder, reinforced: RunFolder, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    dear = evaluation(tmp_path / "dear", QUERIES, price=2.0)
    names = execute(COMPARE, RUNS=[evaluated.path, reinforced.path, dear.path])
    printed = capsys.readouterr().out
    assert "gate.price" in printed
    assert len(names["rows"]) == QUERIES
    assert (names["first"].gain_N > names["last"].gain_N).all()  # of the price alone
    assert f"0 of {QUERIES} queries better, 0 worse, under adaptive" in printed
    assert "agree on 100.0% of them" in printed


def test_compare_runs_says_when_one_run_is_evaluated(
    evaluated: RunFolder, reinforced: RunFolder, capsys: pytest.CaptureFixture[str]
) -> None:
    execute(COMPARE, RUNS=[reinforced.path, evaluated.path])
    assert "1 of these runs is evaluated" in capsys.readouterr().out


@pytest.mark.parametrize("path", sorted(NOTEBOOKS.glob("*.ipynb")), ids=lambda path: path.stem)
def test_notebooks_are_short_and_stripped(path: Path) -> None:
    assert len(cells_of(path)) < MAX_CELLS
    for cell, source in code_of(path):
        assert cell["outputs"] == [], f"{path.name} has outputs: clear them before committing"
        assert cell["execution_count"] is None
        defined = [node for node in ast.walk(ast.parse(source)) if isinstance(node, (ast.FunctionDef, ast.ClassDef))]
        assert not defined, f"{path.name} defines {defined[0].name}: what is worth a name belongs in the package"
