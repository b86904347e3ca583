"""Bad overrides: each is named with what exists and what comes near, and all of them together."""

from __future__ import annotations

import pytest

from twn_lightning.config import load_settings
from twn_lightning.errors import ConfigError


def problems_of(*overrides: str) -> list[str]:
    with pytest.raises(ConfigError) as raised:
        load_settings(overrides)
    return raised.value.problems


def test_unknown_option_lists_options_and_the_nearest() -> None:
    (problem,) = problems_of("experiment=nano_sf")
    assert "'nano_sf'" in problem
    assert "did you mean 'nano_sft'" in problem
    assert "nano_rl" in problem


def test_unknown_group() -> None:
    (problem,) = problems_of("experimnt=nano_sft")
    assert "did you mean 'experiment'" in problem


def test_unknown_key_names_its_neighbours() -> None:
    (problem,) = problems_of("stage.chunk_sizes=2")
    assert "did you mean 'stage.chunk_size'" in problem
    assert "learning_rate" in problem


def test_key_without_its_section() -> None:
    (problem,) = problems_of("learning_rate=2")
    assert "did you mean 'stage.learning_rate'" in problem


def test_key_of_another_stage() -> None:
    (problem,) = problems_of("stage=rl", "stage.warmup_ratio=.1")
    assert "unknown key 'stage.warmup_ratio'" in problem
    assert "clip_high" in problem


def test_added_key_is_unknown_too() -> None:
    (problem,) = problems_of("+stage.momentum=.9")
    assert "unknown key 'stage.momentum'" in problem


def test_wrong_type_says_which_is_right() -> None:
    assert problems_of("stage.batch_size=many") == ["stage.batch_size must be a whole number, not 'many'"]


def test_unreadable_override() -> None:
    (problem,) = problems_of("stage")
    assert "'stage'" in problem
    assert "key=value" in problem


def test_grid_without_multirun() -> None:
    (problem,) = problems_of("stage.batch_size=32,64")
    assert "--multirun" in problem


def test_all_problems_come_together() -> None:
    problems = problems_of(
        "model=qwen3vl_5b", "stage.lr=1", "a b", "stage.chunk_size=x", "adapters.dropout=2", "gate.label=medium"
    )
    assert len(problems) == 6
    text = str(ConfigError(problems))
    assert text.startswith("6 problems in the configuration:")
    for part in ("qwen3vl_5b", "stage.lr", "'a b'", "stage.chunk_size", "adapters.dropout", "gate.label"):
        assert part in text


@pytest.mark.parametrize("override", ["+model.gradient_checkpointing=true", "trainer.accumulate_grad_batches=8"])
def test_what_would_spoil_a_cache_or_a_contrastive_loss_is_no_key(override: str) -> None:
    """Ours are interface.activation_checkpointing and stage.chunk_size."""
    (problem,) = problems_of(override)
    assert f"unknown key '{override.lstrip('+').partition('=')[0]}'" in problem
