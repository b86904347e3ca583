"""Progress bar, throughput and the extra loggers."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from lightning.pytorch import Callback
from torch.utils.flop_counter import FlopCounterMode, sdpa_backward_flop_count, sdpa_flop_count

from tests.stage_runs import StageRun, tiny_settings
from twn_lightning.callbacks import StageProgressBar, Throughput, build_callbacks, build_loggers
from twn_lightning.errors import ConfigError
from twn_lightning.run import RunFolder
from twn_lightning.settings import SFTSettings

STAGE = SFTSettings(batch_size=4, chunk_size=4, max_steps=2)


def attention_flops(query: Any, key: Any, value: Any, *_: Any, **__: Any) -> int:
    return int(sdpa_flop_count(query, key, value))


def attention_backward_flops(gradient: Any, query: Any, key: Any, value: Any, *_: Any, **__: Any) -> int:
    return int(sdpa_backward_flop_count(gradient, query, key, value))


class CountedSteps(Callback):
    """Counts what the operators of a step multiply; torch does not know the attention of a CPU by itself."""

    def __init__(self) -> None:
        own = {
            torch.ops.aten._scaled_dot_product_flash_attention_for_cpu: attention_flops,
            torch.ops.aten._scaled_dot_product_flash_attention_for_cpu_backward: attention_backward_flops,
        }
        self.counter = FlopCounterMode(display=False, custom_mapping=own)
        self.operations = 0.0

    def on_train_batch_start(self, *arguments: Any) -> None:
        self.counter.__enter__()

    def on_train_batch_end(self, *arguments: Any) -> None:
        self.counter.__exit__(None, None, None)
        self.operations += self.counter.get_total_flops()


def test_the_bar_shows_the_stages_numbers_and_no_others(tmp_path: Path) -> None:
    bar = StageProgressBar()
    run = StageRun(tiny_settings(STAGE, tmp_path), callbacks=(bar,)).fit()
    shown = bar.get_metrics(run.trainer, run.stage)
    assert list(shown) == ["loss_cot", "loss_nce_generative", "hit@1_generative"]


def test_throughput_counts_the_pairs_of_a_step(tmp_path: Path) -> None:
    run = StageRun(tiny_settings(STAGE, tmp_path), callbacks=(Throughput(2),)).fit()
    (line,) = [line for line in run.run_folder.history() if "throughput/rows_per_second" in line]
    assert line["step"] == 2
    rows = line["throughput/rows_per_second"] * line["throughput/seconds_per_step"]
    assert rows == pytest.approx(STAGE.batch_size)


def test_a_run_has_a_bar_unless_told_not_to(tmp_path: Path) -> None:
    settings, folder = tiny_settings(STAGE, tmp_path), RunFolder(tmp_path)
    assert any(isinstance(callback, StageProgressBar) for callback in build_callbacks(settings, folder))
    silent = build_callbacks(settings, folder, progress=False)
    assert not any(isinstance(callback, StageProgressBar) for callback in silent)


def test_flops_follow_the_operators_of_a_step(tmp_path: Path) -> None:
    """Beside torch's count of what a step runs: padding too, and one product more in the backward of attention."""
    stage = SFTSettings(batch_size=8, chunk_size=8, max_steps=2)
    throughput, counted = Throughput(2), CountedSteps()
    run = StageRun(tiny_settings(stage, tmp_path), callbacks=(throughput, counted)).fit()
    (line,) = [line for line in run.run_folder.history() if "throughput/tflops" in line]
    operations = line["throughput/tflops"] * 1e12 * line["throughput/seconds_per_step"]
    assert 0.7 < operations / (counted.operations / 2) <= 1
    assert "throughput/mfu" not in line, "a CPU has no stated peak"


def test_no_logger_and_an_unknown_one(tmp_path: Path) -> None:
    run = StageRun(tiny_settings(STAGE, tmp_path))
    assert build_loggers(run.settings, run.run_folder) == []
    name: Any = "wanbd"
    run.settings.logger.name = name
    with pytest.raises(ConfigError, match="did you mean 'wandb'"):
        build_loggers(run.settings, run.run_folder)
