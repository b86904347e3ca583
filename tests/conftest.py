"""Shared by all tests: no network, no GUI, few threads, and an environment that no earlier test has changed."""

from __future__ import annotations

import logging
import os
import signal

os.environ.setdefault("HF_HUB_OFFLINE", "1")
os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
os.environ.setdefault("WANDB_MODE", "offline")
os.environ.setdefault("MPLBACKEND", "Agg")

import pytest
import torch

torch.set_num_threads(min(2, torch.get_num_threads()))
if (
    signal.getsignal(signal.SIGINT) is signal.SIG_IGN
):  # a shell's background job; processes that tests interrupt inherit it
    signal.signal(signal.SIGINT, signal.default_int_handler)


@pytest.fixture(autouse=True)
def _clean_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    """Variables that this package reads start unset, and what a run sets is undone."""
    for name in ("TWN_CHECKS", "TWN_DEBUG", "TWN_RUN_DIR"):
        monkeypatch.setenv(name, "")
        monkeypatch.delenv(name)
    torch.manual_seed(0)


@pytest.fixture(autouse=True)
def _audible_loggers() -> None:
    """Messages reach the tests, whatever logging configuration an earlier one has loaded.

    Some switch loggers off, some raise the root's level.
    """
    logging.disable(logging.NOTSET)
    logging.root.setLevel(logging.WARNING)
    for name, logger in logging.root.manager.loggerDict.items():
        if isinstance(logger, logging.Logger) and name.split(".")[0] == "twn_lightning":
            logger.disabled, logger.propagate = False, True
            logger.setLevel(logging.NOTSET)
