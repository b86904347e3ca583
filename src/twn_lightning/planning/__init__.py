"""A cost model of the three stages and of MMEB-V2: memory, tokens a second and hours, from shapes and measured rates.

`work` counts what one device computes, `memory` what it holds, `constants` says how fast devices are and how long items
are, `plan` puts them together. Nothing is loaded and nothing runs.
"""

from __future__ import annotations

from twn_lightning.planning.constants import Device, Items, device_named, items_of, usual_device
from twn_lightning.planning.memory import memory_parts
from twn_lightning.planning.plan import StagePlan, plan_stage, what_fits
from twn_lightning.planning.shapes import ModelShape, model_shape
from twn_lightning.planning.suite import SuitePlan, plan_suite

__all__ = [
    "Device",
    "Items",
    "ModelShape",
    "StagePlan",
    "SuitePlan",
    "device_named",
    "items_of",
    "memory_parts",
    "model_shape",
    "plan_stage",
    "plan_suite",
    "usual_device",
    "what_fits",
]
