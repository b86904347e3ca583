"""The notebooks run from top to bottom on the packaged adapters, and are committed without outputs.

Their code cells are executed in this process, so that the tests do not need Jupyter.
"""

from __future__ import annotations

import ast
import json
from pathlib import Path
from typing import Any

import pytest
from matplotlib import pyplot as plt

from twn_lightning.backbone.packaged import PACKAGED
from twn_lightning.evaluate import evaluate
from twn_lightning.run import RunFolder
from twn_lightning.settings import DataSettings, EvaluationSettings, Settings

NOTEBOOKS = Path(__file__).parents[2] / "notebooks"
QUICKSTART, INSPECT = NOTEBOOKS / "01_quickstart.ipynb", NOTEBOOKS / "02_inspect_gate.ipynb"
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


@pytest.fixture(scope="module")
def evaluated(tmp_path_factory: pytest.TempPathFactory) -> RunFolder:
    """A run folder of the packaged adapters on a few queries."""
    settings = Settings(data=DataSettings(test_pairs=QUERIES), evaluation=EvaluationSettings(bootstrap_samples=50))
    run = RunFolder(tmp_path_factory.mktemp("evaluate")).create(settings)
    evaluate(settings, run)
    return run


def test_the_adapters_that_the_notebooks_load_are_packaged() -> None:
    needed = ("reasoning", "embedding", "queries.pt", "gate_mlp.pt", "twn_config.json")
    adapters = PACKAGED["nano"] / "adapters"
    missing = [name for name in needed if not (adapters / name).exists()]
    assert not missing, f"{adapters} lacks {missing}: the package ships trained adapters, and notebook 01 needs them"


def test_quickstart_shows_a_cot_and_candidates(capsys: pytest.CaptureFixture[str]) -> None:
    names = execute(QUICKSTART)
    printed = capsys.readouterr().out
    assert set(names["encoded"]) == {"discriminative", "generative", "adaptive"}
    assert int(names["encoded"]["generative"].tokens_N[0]) > 0
    assert int(names["encoded"]["discriminative"].tokens_N[0]) == 0
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
    assert all(row["image_png"] for row in names["chosen"])
    assert f"decisions {verdict}" in capsys.readouterr().out


@pytest.mark.parametrize("path", sorted(NOTEBOOKS.glob("*.ipynb")), ids=lambda path: path.stem)
def test_notebooks_are_short_and_stripped(path: Path) -> None:
    assert len(cells_of(path)) < MAX_CELLS
    for cell, source in code_of(path):
        assert cell["outputs"] == [], f"{path.name} has outputs: clear them before committing"
        assert cell["execution_count"] is None
        defined = [node for node in ast.walk(ast.parse(source)) if isinstance(node, (ast.FunctionDef, ast.ClassDef))]
        assert not defined, f"{path.name} defines {defined[0].name}: what is worth a name belongs in the package"
