"""MMEB-V2: the 78 tasks, their loaders, protocols, versions and published scores; and MMEB-nano, the same small."""

from twn_lightning.benchmark.eval_task import EvalTask
from twn_lightning.benchmark.loading import load_task
from twn_lightning.benchmark.protocol import Protocol, get_protocol
from twn_lightning.benchmark.registry import BenchmarkTask, all_tasks, get_task, select_tasks

__all__ = [
    "BenchmarkTask",
    "EvalTask",
    "Protocol",
    "all_tasks",
    "get_protocol",
    "get_task",
    "load_task",
    "select_tasks",
]
