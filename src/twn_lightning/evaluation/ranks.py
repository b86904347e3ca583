"""What an evaluation over several processes needs: joining them, failing together, collecting on the first."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from datetime import timedelta
from typing import Any, TypeVar

import torch.distributed as dist

from twn_lightning.errors import TWNError
from twn_lightning.launch import started_together
from twn_lightning.strategy import gather_objects, naming_lost_ranks, rank, world_size

T = TypeVar("T")

_PATIENCE = timedelta(days=2)
"""Ranks wait for the one with the longest CoTs; gloo's own half hour would end such an evaluation."""


@contextmanager
def joined_processes() -> Iterator[None]:
    """Join the processes that torchrun or srun started, over gloo: only arrays on the CPU travel. Alone: nothing."""
    if not started_together() or dist.is_initialized():
        yield
        return
    dist.init_process_group("gloo", timeout=_PATIENCE)
    try:
        with naming_lost_ranks():
            yield
    finally:
        dist.destroy_process_group()


@contextmanager
def failing_together() -> Iterator[None]:
    """Work on every rank that ends well on all of them or raises on all: none is left waiting for another.

    No rank may wait for another inside.

    Raises:
        TWNError: this rank's own, else the first rank's that has one.
    """
    failure: TWNError | None = None
    try:
        yield
    except TWNError as error:
        failure = error
    failures = [found for found in gather_objects(failure) if found is not None]
    if failure is not None:
        raise failure
    if failures:
        raise failures[0]


def gather_on_first(value: T) -> list[T]:
    """A value from every rank, in rank order, on the first rank; nothing on the others."""
    if world_size() == 1:
        return [value]
    received: list[Any] | None = [None] * world_size() if rank() == 0 else None
    dist.gather_object(value, received)
    return received or []


def from_first(value: T) -> T:
    """The first rank's value on every rank."""
    if world_size() == 1:
        return value
    values = [value]
    dist.broadcast_object_list(values)
    return values[0]
