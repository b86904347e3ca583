"""Loaders for the stages, and a data position that survives a checkpoint at any step."""

from __future__ import annotations

import logging
import multiprocessing
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

from lightning.pytorch import LightningDataModule
from torch.utils.data import DataLoader

from twn_lightning.backbone.processor import PromptProcessor
from twn_lightning.data.collate import ContrastiveCollator
from twn_lightning.data.corpus import columns_of, filter_cots, require_pairs
from twn_lightning.data.sampler import SameSourceSampler
from twn_lightning.data.sources import PairSource, Split, get_source
from twn_lightning.errors import ConfigError, LostProcessError
from twn_lightning.settings import DataSettings, GateStageSettings, RLSettings, Settings, SFTSettings
from twn_lightning.types import ContrastiveBatch, Pair

logger = logging.getLogger(__name__)


class ResumableLoader:
    """Batches of a `SameSourceSampler`; counts what training took, not what workers prefetched.

    Args:
        pairs: rows, indexed in the workers.
        sampler: which rows, step by step.
        collate: rows to a batch.
        num_workers: worker processes; 0 collates in this one.
    """

    def __init__(
        self,
        pairs: Sequence[Pair],
        sampler: SameSourceSampler,
        collate: Callable[[Sequence[Pair]], ContrastiveBatch],
        num_workers: int = 0,
    ) -> None:
        self.sampler = sampler
        self._loader: DataLoader[Any] = DataLoader(
            pairs,  # type: ignore[arg-type]  # a Sequence is all that a map-style dataset needs to be
            batch_sampler=sampler,
            collate_fn=collate,
            num_workers=num_workers,
            multiprocessing_context=worker_context(num_workers),
        )

    def __len__(self) -> int:
        """Batches of the whole run, consumed ones included: Lightning adds its own progress after a resume."""
        return len(self.sampler)

    def __iter__(self) -> Iterator[ContrastiveBatch]:
        for batch in self._loader:
            self.sampler.step += 1
            yield batch

    def state_dict(self) -> dict[str, Any]:
        return self.sampler.state_dict()

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self.sampler.load_state_dict(state)


def worker_context(num_workers: int) -> str | None:
    """How worker processes start: as Python has it, but never by a fork server, its default from 3.14 on.

    The system tells this process of the death of its own children only, not of a fork server's. Without that signal
    torch waits forever for the rest of a batch that a killed worker had half sent.
    """
    return "fork" if num_workers and multiprocessing.get_start_method() == "forkserver" else None


@contextmanager
def naming_lost_workers(num_workers: int) -> Iterator[None]:
    """Turn what torch says, at any line of the training process, when a worker has died into an error for people.

    Args:
        num_workers: how many there are.

    Raises:
        LostProcessError: says what to do.
    """
    try:
        yield
    except RuntimeError as error:
        if "DataLoader worker (pid" not in str(error):  # an error raised in a worker has no process id
            raise
        raise LostProcessError(
            f"one of the {num_workers} processes that read data is gone: {str(error).strip()} Out of memory is the "
            "usual reason: lower data.num_workers (0 reads in the training process), then continue with "
            "`twn train --resume RUN`"
        ) from error


class TWNDataModule(LightningDataModule):
    """Train and validation batches of one stage.

    SFT trains on the `train` split with teacher CoTs; RL on the `rl` split without CoTs, one source a step. The gate
    trains on features cached by its stage, which reads `pairs("gate")` itself. Validation always uses `val`.
    `data.seed` decides which pairs there are, the run's `seed` their order.

    Args:
        settings: the run; `data` and `stage` are read.
        processor: the backbone's processor.
    """

    def __init__(self, settings: Settings, processor: PromptProcessor) -> None:
        super().__init__()
        self.settings = settings
        self.processor = processor
        self.stage = settings.stage.name
        self.source: PairSource = get_source(settings.data.source, settings.data)
        self._pairs: dict[Split, Sequence[Pair]] = {}
        self._train_loader: ResumableLoader | None = None

    @property
    def data(self) -> DataSettings:
        return self.settings.data

    def pairs(self, split: Split) -> Sequence[Pair]:
        """The pairs of a split, read once; where CoTs are trained on, without those that the filters drop.

        Raises:
            DataError: the split is empty; names source and split.
        """
        if split not in self._pairs:
            pairs = self.source.pairs(split, getattr(self.data, f"{split}_pairs"))
            require_pairs(pairs, self.source.name, split)
            if self._teaches_cots and split in ("train", "val"):
                pairs, report = filter_cots(
                    pairs, self.data.think_sides, self.processor.count_tokens, self.data.max_cot_tokens
                )
                if report.dropped:
                    logger.warning("source '%s', split '%s': %s", self.source.name, split, report)
                require_pairs(pairs, self.source.name, split, report)
            self._pairs[split] = pairs
        return self._pairs[split]

    @property
    def _teaches_cots(self) -> bool:
        return self.stage == "sft"

    @property
    def collator(self) -> ContrastiveCollator:
        """The stage's collator."""
        return ContrastiveCollator(self.processor, self.data.think_sides if self._teaches_cots else None)

    def setup(self, stage: str | None = None) -> None:
        """Read the splits and build the train loader, so that empty data fails before the model runs."""
        if self._train_loader is None and self.stage != "gate":
            self._train_loader = self._build_train_loader()
        self.pairs("val")

    def _build_train_loader(self) -> ResumableLoader:
        split: Split = "train" if self.stage == "sft" else "rl"
        pairs = self.pairs(split)
        columns = columns_of(pairs)
        batch_size, rows_per_source, max_steps = self._batch_shape()
        sampler = SameSourceSampler(
            columns.sources,
            columns.target_hashes,
            batch_size=batch_size,
            rows_per_source=rows_per_source,
            max_steps=max_steps,
            weights=columns.weights,
            seed=self.settings.seed,
            rank=self._rank,
            world_size=self._world_size,
        )
        return ResumableLoader(pairs, sampler, self.collator, self.data.num_workers)

    def _batch_shape(self) -> tuple[int, int, int]:
        """Global batch size, rows of a same-source sub-batch, batches in all."""
        stage = self.settings.stage
        if isinstance(stage, SFTSettings):
            return stage.batch_size, self.data.rows_per_source_global, stage.max_steps
        if isinstance(stage, RLSettings):
            return stage.prompts_per_step, stage.prompts_per_step, stage.max_steps
        raise ConfigError(f"stage '{stage.name}' has no train batches of pairs: it trains on cached features")

    def train_dataloader(self) -> ResumableLoader:
        """Batches up to the stage's `max_steps`, from the restored position on.

        Raises:
            ConfigError: the stage is the gate, which trains on cached features.
        """
        if self._train_loader is None:
            self._train_loader = self._build_train_loader()
        return self._train_loader

    def val_dataloader(self) -> DataLoader[Any]:
        """One pass over `val`, grouped by source; a batch that does not divide among ranks repeats its first rows."""
        pairs = self.pairs("val")
        sources = columns_of(pairs).sources
        rows = sorted(range(len(pairs)), key=lambda row: sources[row])
        size = self._validation_batch_size
        batches = [self._rank_slice(rows[i : i + size]) for i in range(0, len(rows), size)]
        return DataLoader(
            pairs,  # type: ignore[arg-type]
            batch_sampler=batches,
            collate_fn=self.collator,
            num_workers=self.data.num_workers,
            multiprocessing_context=worker_context(self.data.num_workers),
        )

    @property
    def _validation_batch_size(self) -> int:
        stage = self.settings.stage
        if isinstance(stage, (SFTSettings, GateStageSettings)):
            return stage.batch_size
        return stage.prompts_per_step

    def _rank_slice(self, rows: list[int]) -> list[int]:
        """This rank's rows; every rank gets equally many, because collectives must match."""
        missing = -len(rows) % self._world_size
        return [*rows, *(rows[i % len(rows)] for i in range(missing))][self._rank :: self._world_size]

    @property
    def _rank(self) -> int:
        return self.trainer.global_rank if self.trainer else 0

    @property
    def _world_size(self) -> int:
        return self.trainer.world_size if self.trainer else 1

    def state_dict(self) -> dict[str, Any]:
        """The data position: the batches whose training step is complete."""
        if self._train_loader is None:
            return {}
        state = self._train_loader.state_dict()
        return {**state, "step": state["step"] - self._unfinished_steps()}

    def _unfinished_steps(self) -> int:
        """1 while a training step is under way (an interrupt in its middle saves a checkpoint), else 0."""
        if not self.trainer:
            return 0
        progress = self.trainer.fit_loop.epoch_loop.batch_progress.current
        return int(progress.ready - progress.processed)

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Continue after the batches that a checkpoint had consumed.

        Raises:
            CheckpointError: the checkpoint's data, seed or batch sizes are others.
        """
        if state_dict:
            self.train_dataloader().load_state_dict(state_dict)
