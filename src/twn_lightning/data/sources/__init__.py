"""Training corpora: one file per source, behind one protocol."""

from __future__ import annotations

import importlib
from collections.abc import Sequence
from dataclasses import replace
from typing import Literal, Protocol, get_args

from twn_lightning.errors import ConfigError, DataError, unknown_name
from twn_lightning.settings import DataSettings
from twn_lightning.types import Item, Pair

Split = Literal["train", "rl", "gate", "calibration", "val", "test"]
SPLITS: tuple[str, ...] = get_args(Split)

_MIXTURE = "twn_lightning.data.mixture:Mixture"
_MODULES = {
    "mmeb_nano": "twn_lightning.data.sources.mmeb_nano:MMEBNanoSource",
    "nano": "twn_lightning.data.sources.nano:NanoSource",
    **dict.fromkeys(("colpali", "llava_hound", "mixture", "mmeb_train", "pairs", "twn", "ume_r1", "visrag"), _MIXTURE),
}
"""A corpus alone is a mixture of one."""


class PairSource(Protocol):
    """A corpus of query-positive pairs. Everything it returns is deterministic."""

    @property
    def name(self) -> str:
        """The source's name in the registry."""

    @property
    def tasks(self) -> list[str]:
        """Names of its tasks; `Pair.source` is one of them."""

    def pairs(self, split: Split, count: int) -> Sequence[Pair]:
        """The first `count` pairs of a split, or all where there are fewer.

        Pairs may be built only when indexed. A sequence that also has `columns() -> PairColumns` (data/corpus.py)
        spares the sampler and the filters from building every pair.
        """

    def candidates(self, split: Split, task: str) -> list[Item]:
        """A task's whole candidate corpus, with unique keys.

        Every pair's `positive.key` is in it, except in `train`, where a target may come in further renderings.
        """


def source_names() -> list[str]:
    """The sources there are."""
    return sorted(_MODULES)


def get_source(name: str, settings: DataSettings) -> PairSource:
    """The source of that name; its module is imported only now.

    Raises:
        ConfigError: unknown name; lists what exists with the nearest match.
    """
    if name not in _MODULES:
        raise ConfigError(f"data.source: {unknown_name('source', name, _MODULES)}")
    module, _, attribute = _MODULES[name].partition(":")
    source: PairSource = getattr(importlib.import_module(module), attribute)(replace(settings, source=name))
    return source


def require_split(source: str, split: str) -> None:
    """Refuse a split that does not exist.

    Raises:
        DataError: unknown split; lists what exists with the nearest match.
    """
    if split not in SPLITS:
        raise DataError(f"source '{source}': {unknown_name('split', split, SPLITS)}")
