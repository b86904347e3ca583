"""Recorded outcomes as arrays with one row per query, kept in one compressed file."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TypeVar

import numpy as np

from twn_lightning.atomic import whole_file

Recorded = TypeVar("Recorded", bound="RecordedArrays")


@dataclass
class RecordedArrays:
    """What every record of a split has; subclasses add arrays."""

    query_key: np.ndarray
    task: np.ndarray
    kind: np.ndarray
    steps: np.ndarray

    def __len__(self) -> int:
        return len(self.query_key)

    def write(self, path: Path) -> None:
        """Write all arrays, whole or not at all."""
        with whole_file(path) as temporary, temporary.open("wb") as file:
            np.savez_compressed(file, **vars(self))

    @classmethod
    def read(cls: type[Recorded], path: Path) -> Recorded:
        """What `write` wrote."""
        with np.load(path) as arrays:
            return cls(**{name: arrays[name] for name in arrays.files})
