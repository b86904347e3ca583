"""Checkpoint files that vouch for their content, and the earlier one for when the last turns out to be damaged."""

from __future__ import annotations

import hashlib
import logging
import os
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from lightning.pytorch.plugins import TorchCheckpointIO
from torch import Tensor

from twn_lightning.atomic import whole_file
from twn_lightning.errors import CheckpointError
from twn_lightning.run import RunFolder
from twn_lightning.stages.checkpoint_content import CHECKPOINT_KEY

log = logging.getLogger(__name__)

_DIGEST = "digest"


class RunCheckpointIO(TorchCheckpointIO):
    """How a Trainer writes and reads checkpoints: atomically, with a digest, and with the earlier `last.ckpt` kept.

    Args:
        run_folder: whose `last.ckpt` becomes `previous.ckpt` when a new one takes its place.
    """

    def __init__(self, run_folder: RunFolder) -> None:
        self.run_folder = run_folder

    def save_checkpoint(self, checkpoint: dict[str, Any], path: str | Path, storage_options: Any = None) -> None:
        checkpoint[CHECKPOINT_KEY][_DIGEST] = content_digest(checkpoint)
        path, run = Path(path), self.run_folder
        with whole_file(path) as temporary:
            with temporary.open("wb") as file:
                torch.save(checkpoint, file)
            if path == run.last_checkpoint and path.exists():
                _keep(path, run.previous_checkpoint)

    def load_checkpoint(self, path: str | Path, map_location: Any = None, weights_only: Any = None) -> dict[str, Any]:
        """The checkpoint, or the one before it where it is damaged. Always on the CPU, and never by running code."""
        return usable_checkpoint(Path(path))


def usable_checkpoint(path: Path) -> dict[str, Any]:
    """The content of a checkpoint; where a run's last one is damaged, of the one before, with a warning that names it.

    Raises:
        CheckpointError: it is damaged and there is none before it, or that one is damaged too.
    """
    run = RunFolder(path.parent.parent)
    try:
        return read_checkpoint(path)
    except CheckpointError as error:
        if path != run.last_checkpoint or not run.previous_checkpoint.is_file():
            raise CheckpointError(f"{error} There is no earlier checkpoint beside it: start a new run") from error
        found = read_checkpoint(run.previous_checkpoint)
        log.warning("%s Going on from %s, the one saved before it", error, run.previous_checkpoint)
        return found


def read_checkpoint(path: Path) -> dict[str, Any]:
    """The content of a checkpoint file, on the CPU.

    Raises:
        CheckpointError: it cannot be read, or its content is not what was saved.
    """
    try:
        checkpoint: dict[str, Any] = torch.load(path, map_location="cpu", weights_only=True)
        about = checkpoint.get(CHECKPOINT_KEY) or {}
    except Exception as error:  # a damaged pickle can raise anything
        raise CheckpointError(f"{path} is torn or altered: it cannot be read ({type(error).__name__}).") from error
    expected = about.pop(_DIGEST, None)
    if about.get("version", 1) > 1 and expected != content_digest(checkpoint):
        raise CheckpointError(f"{path} is torn or altered: its content has not the digest that it was saved with.")
    return checkpoint


def content_digest(content: Any) -> str:
    """SHA-256 over nested dictionaries, lists, tensors and plain values."""
    digest = hashlib.sha256()
    _add(digest, content)
    return digest.hexdigest()


def _add(digest: Any, value: Any) -> None:
    if isinstance(value, Tensor):
        digest.update(f"{value.dtype}{tuple(value.shape)}".encode())
        digest.update(value.detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy())
    elif isinstance(value, Mapping):
        digest.update(f"mapping of {len(value)}".encode())
        for key, part in value.items():
            digest.update(repr(key).encode())
            _add(digest, part)
    elif isinstance(value, (list, tuple)):
        digest.update(f"{type(value).__name__} of {len(value)}".encode())
        for part in value:
            _add(digest, part)
    else:
        digest.update(repr(value).encode())


def _keep(path: Path, name: Path) -> None:
    """Give a file a second name, so that it stays when the first is taken by another."""
    if name.exists() and name.samefile(path):  # a crash after this step; renaming one to the other would do nothing
        return
    with whole_file(name) as temporary:
        try:
            os.link(path, temporary)
        except OSError:  # a file system without hard links
            shutil.copyfile(path, temporary)
