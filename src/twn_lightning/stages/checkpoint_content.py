"""What a checkpoint says of itself, what an export keeps of its run, and the random states."""

from __future__ import annotations

import random
from typing import Any

import numpy as np
import torch

from twn_lightning.backbone.dual_lora import DualLoRABackbone
from twn_lightning.backbone.layout import read_config
from twn_lightning.backbone.loading import adapters_folder
from twn_lightning.errors import CheckpointError
from twn_lightning.settings import Settings, SFTSettings

CHECKPOINT_VERSION = 2
"""1 had no digest of its content; it still loads."""
CHECKPOINT_KEY = "twn"
"""Where a checkpoint says what it is."""


def check_checkpoint(checkpoint: dict[str, Any], stage: str, backbone: DualLoRABackbone) -> dict[str, Any]:
    """What a checkpoint says of itself, if it fits.

    Raises:
        CheckpointError: it does not; says what to do instead.
    """
    found: dict[str, Any] | None = checkpoint.get(CHECKPOINT_KEY)
    if found is None or found.get("version") not in range(1, CHECKPOINT_VERSION + 1):
        version = None if found is None else found.get("version")
        raise CheckpointError(
            f"this is not a checkpoint that this package can resume: its version is {version}, this release reads 1 "
            f"to {CHECKPOINT_VERSION}. Resume it with the release that wrote it (the run's env.json has its version), "
            "or set trainer.resume to a run folder or to one of its checkpoints/*.ckpt"
        )
    if found["stage"] != stage:
        raise CheckpointError(
            f"the checkpoint belongs to stage '{found['stage']}', this run is stage '{stage}'. To continue that run "
            f"set stage={found['stage']}; to start '{stage}' from its result set adapters.init_from to that run's "
            "adapters folder and trainer.resume=null"
        )
    if found["backbone"]["digest"] != backbone.digest:
        raise CheckpointError(
            f"the checkpoint was trained on backbone '{found['backbone']['name']}' (digest "
            f"{found['backbone']['digest'][:12]}), this one is '{backbone.name}' (digest {backbone.digest[:12]}). Set "
            f"model.name={found['backbone']['name']} with the weights of that run, or trainer.resume=null"
        )
    return found


def exported_settings(settings: Settings) -> dict[str, Any]:
    """What `twn_config.json` keeps of a run besides the adapters' own settings.

    Returns:
        `stage`; `model`, how the backbone was loaded; `matryoshka_dims`, the widths that stage 1 trained, which later
        stages hand on.
    """
    start = settings.adapters.init_from
    if isinstance(settings.stage, SFTSettings):
        dims = list(settings.stage.matryoshka_dims)
    else:
        dims = read_config(adapters_folder(start)).get("matryoshka_dims", []) if start else []
    kept = ("revision", "dtype", "min_pixels", "max_pixels", "max_frames")
    model = {name: getattr(settings.model, name) for name in kept}
    return {"stage": settings.stage.name, "model": model, "matryoshka_dims": dims}


def random_state() -> dict[str, Any]:
    """The state of every global generator, in types that a weights-only load accepts."""
    algorithm, keys, position, has_gauss, cached = np.random.get_state(legacy=True)
    return {
        "python": random.getstate(),
        "numpy": [algorithm, torch.from_numpy(np.asarray(keys, dtype=np.int64)), position, has_gauss, cached],
        "torch": torch.get_rng_state(),
        "cuda": torch.cuda.get_rng_state_all() if torch.cuda.is_available() else [],
    }


def restore_random_state(state: dict[str, Any]) -> None:
    """Put back what `random_state` returned; CUDA states only where the devices are as many."""
    random.setstate(state["python"])
    algorithm, keys, *rest = state["numpy"]
    np.random.set_state((algorithm, keys.numpy().astype(np.uint32), *rest))
    torch.set_rng_state(state["torch"].cpu())
    if state["cuda"] and len(state["cuda"]) == torch.cuda.device_count():
        torch.cuda.set_rng_state_all([s.cpu() for s in state["cuda"]])
