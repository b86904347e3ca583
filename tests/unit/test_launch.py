"""What torchrun and srun say of the processes they start, and settings that do not fit them."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from lightning.pytorch.plugins.environments import LightningEnvironment, TorchElasticEnvironment

from tests.stage_runs import tiny_settings
from twn_lightning import launch
from twn_lightning.errors import ConfigError
from twn_lightning.run import RunFolder, is_first_process
from twn_lightning.settings import SFTSettings
from twn_lightning.stages import build_trainer
from twn_lightning.train import train

SRUN_TASK = {
    "SLURM_JOB_ID": "1234",
    "SLURM_NTASKS": "16",
    "SLURM_STEP_ID": "3",
    "SLURM_STEP_NUM_TASKS": "16",
    "SLURM_STEP_NUM_NODES": "2",
    "SLURM_STEP_NODELIST": "gpu[07-08]",
    "SLURM_PROCID": "11",
    "SLURM_LOCALID": "3",
    "SLURM_NODEID": "1",
}
"""Of the second of two nodes with eight tasks each."""
BATCH_STEP = {"SLURM_JOB_ID": "1234", "SLURM_NTASKS": "16", "SLURM_PROCID": "0", "SLURM_LOCALID": "0"}
"""Of a batch script itself, outside of srun."""


def torchrun(world_size: int, per_node: int) -> dict[str, str]:
    return {"RANK": "1", "LOCAL_RANK": "1", "WORLD_SIZE": str(world_size), "LOCAL_WORLD_SIZE": str(per_node)}


def test_a_task_of_srun_gets_the_variables_of_torchrun() -> None:
    variables = dict(SRUN_TASK)
    launch.adopt_srun(variables)
    assert {name: value for name, value in variables.items() if name not in SRUN_TASK} == {
        "RANK": "11",
        "LOCAL_RANK": "3",
        "WORLD_SIZE": "16",
        "LOCAL_WORLD_SIZE": "8",
        "GROUP_RANK": "1",
        "GROUP_WORLD_SIZE": "2",
        "MASTER_ADDR": "gpu07",
        "MASTER_PORT": str(15_000 + 10 * 1234 % 10_000 + 3),
    }
    assert launch.started_together(variables)
    assert (launch.process_rank(variables), launch.local_rank(variables)) == (11, 3)


def test_an_address_that_is_set_is_kept() -> None:
    variables = SRUN_TASK | {"MASTER_ADDR": "fabric", "MASTER_PORT": "29500"}
    launch.adopt_srun(variables)
    assert (variables["MASTER_ADDR"], variables["MASTER_PORT"]) == ("fabric", "29500")


@pytest.mark.parametrize(
    "variables", [{}, BATCH_STEP, SRUN_TASK | {"SLURM_STEP_NUM_TASKS": "1"}, {"LOCAL_RANK": "1", "WORLD_SIZE": "2"}]
)
def test_processes_that_are_alone_or_started_by_lightning_stay_so(variables: dict[str, str]) -> None:
    before = dict(variables)
    launch.adopt_srun(variables)
    assert variables == before
    assert not launch.started_together(variables)
    launch.check_processes(8, 4, variables)


def test_ranks_that_lightning_starts_in_a_batch_script_know_who_is_first(monkeypatch: pytest.MonkeyPatch) -> None:
    for name, value in (BATCH_STEP | {"LOCAL_RANK": "1"}).items():
        monkeypatch.setenv(name, value)
    assert not is_first_process()


@pytest.mark.parametrize(("devices", "nodes"), [(8, 1), (4, 2), (16, 1)])
def test_other_devices_than_processes_are_refused(devices: int, nodes: int) -> None:
    with pytest.raises(ConfigError, match=r"8 processes on each of 2 nodes.*trainer\.devices=8 trainer\.num_nodes=2"):
        launch.check_processes(devices, nodes, torchrun(16, 8))
    launch.check_processes(8, 2, torchrun(16, 8))


def test_training_refuses_before_it_writes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name, value in torchrun(2, 2).items():
        monkeypatch.setenv(name, value)
    with pytest.raises(ConfigError, match=r"2 processes on each of 1 nodes, but trainer\.devices=1"):
        train(tiny_settings(SFTSettings(), tmp_path / "run"))
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize(
    ("variables", "expected"),
    [(torchrun(2, 2), TorchElasticEnvironment), (BATCH_STEP, LightningEnvironment)],
)
def test_lightning_starts_ranks_unless_something_outside_did(
    variables: dict[str, str], expected: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name, value in variables.items():
        monkeypatch.setenv(name, value)
    trainer = build_trainer(tiny_settings(SFTSettings(), tmp_path, trainer={"devices": 2}), RunFolder(tmp_path))
    assert type(trainer.strategy.cluster_environment) is expected
