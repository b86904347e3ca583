"""Runs a function in two CPU processes, as `torchrun` would start them."""

from __future__ import annotations

import os
import socket
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
import torch.multiprocessing as mp

from twn_lightning.strategy import leave_processes


def run_on_ranks(function: Callable[..., Any], *arguments: Any, world_size: int = 2) -> None:
    """Call `function(rank, *arguments)` in `world_size` new processes and wait; a failing rank fails the test."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    mp.spawn(_start, (function, world_size, port, arguments), nprocs=world_size)


def _start(rank: int, function: Callable[..., Any], world_size: int, port: int, arguments: tuple[Any, ...]) -> None:
    os.environ.update(
        RANK=str(rank),
        LOCAL_RANK=str(rank),
        WORLD_SIZE=str(world_size),
        MASTER_ADDR="127.0.0.1",
        MASTER_PORT=str(port),
    )
    torch.set_num_threads(1)
    function(rank, *arguments)
    leave_processes()


def save_tensors(path: Path, tensors: dict[str, torch.Tensor]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    torch.save(tensors, path)
