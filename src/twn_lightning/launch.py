"""What was given to this process: its cores, and the processes that torchrun, SLURM's srun or the like started with it.

What these processes know of each other are torchrun's variables: RANK, LOCAL_RANK, WORLD_SIZE, LOCAL_WORLD_SIZE,
GROUP_RANK, GROUP_WORLD_SIZE, MASTER_ADDR and MASTER_PORT. `adopt_srun` sets them for the tasks of an srun.
"""

from __future__ import annotations

import os
from collections.abc import Mapping, MutableMapping

from twn_lightning.errors import ConfigError

_PORTS = range(15_000, 25_000)


def available_cores() -> int:
    """Cores that this process may use: a container or a scheduler may have given it some of the machine's only."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def adopt_srun(variables: MutableMapping[str, str] = os.environ) -> None:
    """Give a task of an srun with several tasks the variables that torchrun would have set; else change nothing.

    A process of a batch script that srun did not start is alone, however many tasks its job may start.

    Args:
        variables: the environment; MASTER_ADDR and MASTER_PORT are kept where they are set.
    """
    tasks = int(variables.get("SLURM_STEP_NUM_TASKS", "1"))
    if tasks == 1 or "RANK" in variables:
        return
    nodes = int(variables["SLURM_STEP_NUM_NODES"])
    port = _PORTS[(10 * int(variables["SLURM_JOB_ID"]) + int(variables["SLURM_STEP_ID"])) % len(_PORTS)]
    variables.update(
        RANK=variables["SLURM_PROCID"],
        LOCAL_RANK=variables["SLURM_LOCALID"],
        WORLD_SIZE=str(tasks),
        LOCAL_WORLD_SIZE=str(tasks // nodes),
        GROUP_RANK=variables["SLURM_NODEID"],
        GROUP_WORLD_SIZE=str(nodes),
    )
    variables.setdefault("MASTER_ADDR", _first_node(variables["SLURM_STEP_NODELIST"]))
    variables.setdefault("MASTER_PORT", str(port))


def _first_node(nodes: str) -> str:
    from lightning.fabric.plugins.environments import SLURMEnvironment

    address: str = SLURMEnvironment.resolve_root_node_address(nodes)
    return address


def started_together(variables: Mapping[str, str] = os.environ) -> bool:
    """Whether something outside started this process as one of several, or of one, that train or evaluate together.

    The ranks that Lightning starts itself have no RANK.
    """
    return "RANK" in variables and "WORLD_SIZE" in variables


def process_rank(variables: Mapping[str, str] = os.environ) -> int:
    """This process among those that work together, as far as it is known before they have joined."""
    return int(variables.get("RANK", variables.get("LOCAL_RANK", "0")))


def local_rank(variables: Mapping[str, str] = os.environ) -> int:
    """This process among those on its machine."""
    return int(variables.get("LOCAL_RANK", "0"))


def check_processes(devices: int, num_nodes: int, variables: Mapping[str, str] = os.environ) -> None:
    """Refuse to train on other devices than the processes that were started together, where they were.

    Args:
        devices: of each node, as the settings have it.
        num_nodes: likewise.
        variables: the environment.

    Raises:
        ConfigError: says how many there are, and what to set.
    """
    if not started_together(variables):
        return
    count = int(variables["WORLD_SIZE"])
    local = int(variables.get("LOCAL_WORLD_SIZE", count))
    nodes = count // local
    if (devices, num_nodes) != (local, nodes):
        raise ConfigError(
            f"torchrun or srun started {local} processes on each of {nodes} nodes, but trainer.devices={devices} and "
            f"trainer.num_nodes={num_nodes}: set trainer.devices={local} trainer.num_nodes={nodes} (trainer=torchrun "
            "and trainer=slurm take over what was started), or start as many processes as there are devices"
        )
