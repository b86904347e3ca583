"""`twn probe`: from adapters to tables and a run folder, on the random `tiny` backbone."""

from __future__ import annotations

from itertools import product
from pathlib import Path

import pyarrow.parquet as pq
import pytest

from tests.support.tiny_adapters import save_fresh_adapters
from twn_lightning import cli
from twn_lightning.run import RunFolder

TINY = [
    "model=tiny",
    "data.train_pairs=48",
    "data.test_pairs=6",
    "data.max_new_tokens=3",
    "stage.batch_size=4",
    "stage.chunk_size=4",
]


@pytest.fixture
def adapters(tmp_path: Path) -> str:
    """A folder of fresh kv_detached adapters with a gate."""
    return f"adapters.init_from={save_fresh_adapters(tmp_path / 'adapters', 0.5)}"


def test_modes_are_printed_as_a_matrix_and_recorded(
    adapters: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert cli.main(["probe", "modes", *TINY, adapters, f"paths.run_dir={tmp_path / 'run'}"]) == 0
    printed = capsys.readouterr().out
    for query, candidate in product(("discriminative", "generative", "adaptive"), repeat=2):
        assert sum(line.strip().startswith(f"{query}, {candidate} ") for line in printed.splitlines()) == 1
    assert "The gate was trained on queries" in printed
    run = RunFolder(tmp_path / "run")
    assert run.read_status()["status"] == "COMPLETED"
    assert pq.read_table(run.path / "mode_matrix.parquet").num_rows == 6
    assert run.metrics()["all"]["queries"] == 6
    assert run.metrics()["threshold"] == 0.5


def test_cots_that_never_close_cannot_be_probed(
    adapters: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert cli.main(["probe", "cot", *TINY, adapters, f"paths.run_dir={tmp_path / 'run'}"]) == 2
    assert "closed within 3 tokens" in capsys.readouterr().err
    assert RunFolder(tmp_path / "run").read_status()["status"] == "FAILED"


@pytest.mark.parametrize(("interface", "said"), [("kv_joint", "layer 1"), ("kv_detached", "contrastive gradient is 0")])
def test_gradients_under_an_interface_that_was_not_trained(
    adapters: str, interface: str, said: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    words = ["probe", "gradients", *TINY, adapters, f"interface={interface}", "--batches", "2"]
    assert cli.main([*words, f"paths.run_dir={tmp_path / 'run'}"]) == 0
    assert said in capsys.readouterr().out
    found = RunFolder(tmp_path / "run").metrics()
    assert found["batches"] == 2
    assert found["interface"] == interface
    assert found["reaches_shared_weights"] is (interface == "kv_joint")


@pytest.mark.parametrize(
    ("words", "expected"),
    [
        (["gradients", "interface=reencode"], "only kv_detached and kv_joint share a forward pass"),
        (["gradients", "stage=gate"], "has no two losses to compare"),
        (["gradients", "--batches", "0"], "--batches was 0"),
    ],
)
def test_refusals(
    words: list[str], expected: str, adapters: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    overrides = ["model=tiny", "data.test_pairs=6", adapters, f"paths.run_dir={tmp_path / 'run'}"]
    assert cli.main(["probe", *words, *overrides]) == 2
    assert expected in capsys.readouterr().err
