"""Loaders of every stage, and a data position that is exact mid-epoch, with workers and through Lightning."""

from __future__ import annotations

from dataclasses import replace
from itertools import islice

import pytest
import torch
from lightning.pytorch import LightningModule, Trainer

from twn_lightning.data.datamodule import TWNDataModule, naming_lost_workers, worker_context
from twn_lightning.errors import ConfigError, DataError, LostProcessError
from twn_lightning.settings import DataSettings, GateStageSettings, RLSettings, Settings


def keys(batch) -> list[str]:
    return [pair.query.key for pair in batch.pairs]


def test_trains_on_same_source_sub_batches(settings, processor):
    batch = next(iter(TWNDataModule(settings, processor).train_dataloader()))
    assert len(batch.queries) == 8
    assert [len({p.source for p in batch.pairs[i : i + 4]}) for i in (0, 4)] == [1, 1]
    assert batch.query_cots is not None


@pytest.mark.parametrize("workers", [0, 2])
def test_resumes_after_the_batches_training_took(settings, processor, workers):
    settings.data.num_workers = workers
    straight = [keys(b) for b in TWNDataModule(settings, processor).train_dataloader()]
    first = TWNDataModule(settings, processor)
    first.setup()
    taken = [keys(b) for b in islice(first.train_dataloader(), 7)]  # workers have prefetched further
    resumed = TWNDataModule(settings, processor)
    resumed.setup()
    resumed.load_state_dict(first.state_dict())
    assert taken + [keys(b) for b in resumed.train_dataloader()] == straight
    assert len(straight) == 20


class Recorder(LightningModule):
    """Notes which rows each training step saw; can be interrupted in the middle of one."""

    def __init__(self, interrupt_at: int | None = None) -> None:
        super().__init__()
        self.weight = torch.nn.Parameter(torch.zeros(()))
        self.automatic_optimization = False
        self.seen: list[list[str]] = []
        self.interrupt_at = interrupt_at
        self.state_when_interrupted: dict[str, object] | None = None

    def training_step(self, batch, batch_idx):
        if len(self.seen) == self.interrupt_at:
            self.state_when_interrupted = self.trainer.datamodule.state_dict()
            raise KeyboardInterrupt
        self.seen.append(keys(batch))
        self.optimizers().step()

    def validation_step(self, batch, batch_idx):
        pass

    def configure_optimizers(self):
        return torch.optim.SGD(self.parameters(), lr=0.1)


def trainer(**changes) -> Trainer:
    values = {"max_steps": 20, "accelerator": "cpu", "devices": 1, "logger": False, "enable_checkpointing": False}
    values |= {"enable_progress_bar": False, "enable_model_summary": False, "num_sanity_val_steps": 1}
    return Trainer(**{**values, "val_check_interval": 5, **changes})


@pytest.mark.parametrize("workers", [0, 1])
def test_lightning_resumes_mid_epoch(settings, processor, workers, tmp_path):
    settings.data.num_workers = workers
    straight = Recorder()
    trainer().fit(straight, TWNDataModule(settings, processor))
    stopped, checkpoint = Recorder(), tmp_path / "mid.ckpt"
    first = trainer(max_steps=7)
    first.fit(stopped, TWNDataModule(settings, processor))
    first.save_checkpoint(checkpoint)
    resumed = Recorder()
    trainer().fit(resumed, TWNDataModule(settings, processor), ckpt_path=checkpoint)
    assert len(straight.seen) == 20
    assert stopped.seen + resumed.seen == straight.seen


def test_a_step_cut_short_is_repeated_after_resume(settings, processor):
    module = Recorder(interrupt_at=4)
    with pytest.raises((KeyboardInterrupt, SystemExit)):
        trainer().fit(module, TWNDataModule(settings, processor))
    assert module.state_when_interrupted["step"] == 4


def test_rl_steps_have_one_source_and_no_cots(settings, processor):
    settings.stage = RLSettings(prompts_per_step=6, max_steps=5)
    batches = list(TWNDataModule(settings, processor).train_dataloader())
    assert len(batches) == 5
    assert all(len({p.source for p in b.pairs}) == 1 for b in batches)
    assert all(b.query_cots is None for b in batches)


def test_the_gate_has_no_train_batches(settings, processor):
    settings.stage = GateStageSettings()
    data = TWNDataModule(settings, processor)
    data.setup()
    assert data.state_dict() == {}
    with pytest.raises(ConfigError, match="cached features"):
        data.train_dataloader()


def test_validation_covers_every_row_once_grouped_by_source(settings, processor):
    settings.data.val_pairs = 19
    batches = list(TWNDataModule(settings, processor).val_dataloader())
    seen = [p for b in batches for p in b.pairs]
    assert sorted(p.query.key for p in seen) == sorted(f"query{i}" for i in range(19))
    assert [p.source for p in seen] == sorted(p.source for p in seen)


def test_validation_gives_every_rank_equally_many_rows(settings, processor, monkeypatch):
    settings.data.val_pairs = 19
    seen = []
    for rank in range(2):
        monkeypatch.setattr(TWNDataModule, "_rank", rank)
        monkeypatch.setattr(TWNDataModule, "_world_size", 2)
        seen.append([keys(b) for b in TWNDataModule(settings, processor).val_dataloader()])
    assert [len(k) for k in seen[0]] == [len(k) for k in seen[1]] == [4, 4, 2]
    assert {k for rank in seen for batch in rank for k in batch} == {f"query{i}" for i in range(19)}


@pytest.mark.parametrize("split", ["train", "val"])
def test_empty_data_names_source_and_split(settings, processor, split):
    setattr(settings.data, f"{split}_pairs", 0)
    with pytest.raises(DataError, match=f"source 'made', split '{split}' has 0 pairs"):
        TWNDataModule(settings, processor).setup()


def test_too_long_cots_are_dropped_with_counts(settings, processor, caplog):
    settings.data.max_cot_tokens = 3
    with pytest.raises(DataError, match="kept 0 of 50 pairs; dropped: 50 query length"):
        TWNDataModule(settings, processor).setup()


def test_an_unknown_source_is_refused_at_once(processor):
    with pytest.raises(ConfigError, match="did you mean 'nano'"):
        TWNDataModule(Settings(data=replace(DataSettings(), source="nono")), processor)


@pytest.mark.parametrize(("usual", "chosen"), [("fork", None), ("spawn", None), ("forkserver", "fork")])
def test_workers_are_children_of_the_training_process(usual, chosen, monkeypatch):
    monkeypatch.setattr("multiprocessing.get_start_method", lambda: usual)
    assert worker_context(2) == chosen
    assert worker_context(0) is None


def test_what_torch_says_of_dead_workers_becomes_an_error_for_people():
    with (
        pytest.raises(LostProcessError, match=r"one of the 2 .* \(pid 7\) is killed .* lower data.num_workers"),
        naming_lost_workers(2),
    ):
        raise RuntimeError("DataLoader worker (pid 7) is killed by signal: Killed. ")
    raised_in_one = "Caught RuntimeError in DataLoader worker process 0.\nOriginal Traceback"
    for other in ("other", raised_in_one):
        with pytest.raises(RuntimeError, match=other.partition(".")[0]), naming_lost_workers(2):
            raise RuntimeError(other)
