"""Plain dictionaries to settings: round trip, types, ranges, contradictions, needs of the machine."""

from __future__ import annotations

import dataclasses
import pickle
from pathlib import Path
from typing import Any

import pytest
import torch

from twn_lightning import rules
from twn_lightning.errors import ConfigError
from twn_lightning.gate.routers import ROUTERS
from twn_lightning.settings import GateStageSettings, RLSettings, Settings, SFTSettings
from twn_lightning.validation import RETIRED_KEYS, flatten, read_settings, settings_from_dict, settings_to_dict


def changed(kind: str = "sft", /, **sections: dict[str, Any]) -> dict[str, Any]:
    """The defaults of a stage with some values changed, section by section."""
    kinds = {"sft": SFTSettings, "gate": GateStageSettings, "rl": RLSettings}
    values = settings_to_dict(Settings(stage=kinds[kind]()))
    for section, changes in sections.items():
        values[section].update(changes)
    return values


def problems_of(values: dict[str, Any], **options: bool) -> list[str]:
    with pytest.raises(ConfigError) as raised:
        settings_from_dict(values, **options)
    return raised.value.problems


@pytest.mark.parametrize("stage", ["sft", "gate", "rl"])
def test_round_trip(stage: str) -> None:
    values = changed(stage)
    assert settings_to_dict(settings_from_dict(values)) == values


def test_missing_keys_take_defaults() -> None:
    assert settings_from_dict({}) == Settings()
    assert settings_from_dict({"stage": {"name": "rl"}}).stage == RLSettings()


def test_numbers_written_as_text() -> None:
    assert settings_from_dict({"stage": {"learning_rate": "1e-4"}}).stage.learning_rate == 1e-4
    assert settings_from_dict({"stage": {"learning_rate": 1}}).stage.learning_rate == 1.0


@pytest.mark.parametrize(
    ("section", "key", "value", "expected"),
    [
        ("stage", "batch_size", 1.5, "a whole number"),
        ("stage", "batch_size", True, "a whole number"),
        ("stage", "learning_rate", "fast", "a number"),
        ("stage", "learning_rate", True, "a number"),
        ("stage", "matryoshka_dims", 64, "a list, each a whole number"),
        ("stage", "matryoshka_dims", [64, "x"], "a list, each a whole number"),
        ("stage", "margin_mask", "wide", "a number or null"),
        ("stage", "schedule", "twophase", "one of joint, two_phase"),
        ("trainer", "deterministic", "yes", "true or false"),
        ("adapters", "init_from", 3, "text or null"),
        ("adapters", "reasoning", 16, "must be a mapping"),
    ],
)
def test_wrong_types(section: str, key: str, value: Any, expected: str) -> None:
    (problem,) = problems_of(changed(**{section: {key: value}}))
    assert problem.startswith(f"{section}.{key} must be")
    assert expected in problem
    assert repr(value) in problem


def test_unknown_names() -> None:
    (problem,) = problems_of({"trainer": {"device": 2}})
    assert "did you mean 'trainer.devices'" in problem
    (problem,) = problems_of({"stage": {"name": "rlhf"}})
    assert "did you mean 'rl'" in problem
    (problem,) = problems_of({"evaluation": {"routers": ["never", "allways"]}})
    assert "did you mean 'always'" in problem


@pytest.mark.parametrize(
    ("section", "key", "value", "nearest"),
    [
        ("stage", "schedule", "twophase", "two_phase"),
        ("interface", "name", "kv_detach", "kv_detached"),
        ("trainer", "strategy", "fsdp", "fsdp2"),
        ("task", "ties", "pesimistic", "pessimistic"),
        ("model", "quantization", "nf8", "nf4"),
    ],
)
def test_the_nearest_choice_is_named(section: str, key: str, value: str, nearest: str) -> None:
    (problem,) = problems_of({section: {key: value}})
    assert f"{section}.{key} must be one of" in problem
    assert problem.endswith(f"not '{value}': did you mean '{nearest}'?")


def test_router_names_are_those_of_the_gate() -> None:
    assert set(rules.ROUTERS) == set(ROUTERS)


@pytest.mark.parametrize(
    ("stage", "section", "key", "value"),
    [
        ("sft", "stage", "learning_rate", -1.0),
        ("sft", "stage", "batch_size", 1),
        ("sft", "stage", "warmup_ratio", 1.0),
        ("sft", "stage", "margin_mask", 0.0),
        ("sft", "stage", "clip_norm", 0.0),
        ("sft", "stage", "distill_weight", -1.0),
        ("sft", "stage", "cut_cot_share", 1.0),
        ("sft", "evaluation", "exit_tolerance", 0.0),
        ("sft", "adapters", "dropout", 1.0),
        ("sft", "adapters", "num_queries", 0),
        ("sft", "data", "max_cot_tokens", 0),
        ("sft", "gate", "threshold", 1.0),
        ("sft", "trainer", "devices", 0),
        ("gate", "stage", "patience", 0),
        ("rl", "stage", "completions_per_prompt", 1),
        ("rl", "stage", "sampling_temperature", 0.0),
        ("rl", "stage", "kl", -0.1),
    ],
)
def test_out_of_range(stage: str, section: str, key: str, value: float) -> None:
    (problem,) = problems_of(changed(stage, **{section: {key: value}}))
    assert problem.startswith(f"{section}.{key} must be")
    assert str(value) in problem


def test_every_range_names_a_key() -> None:
    for kind, ranges in rules._STAGE_RANGES.items():
        keys = flatten(settings_to_dict(Settings(stage=kind())))
        assert {f"stage.{key}" for key in ranges} <= set(keys)
        assert set(rules._RANGES) <= set(keys)


CONTRADICTIONS = [
    ("gate", {"gate": {"delta": 0.1}}, "guarantees nothing"),
    (
        "gate",
        {"gate": {"calibration": "conformal_quality", "quality_tolerance": 0.005}, "data": {"calibration_pairs": 100}},
        "the least possible is 0.0196",
    ),
    (
        "gate",
        {
            "gate": {"calibration": "conformal_budget", "token_budget": 0.01, "delta": 0.1},
            "data": {"calibration_pairs": 20},
        },
        "the least possible is 0.206",
    ),
    (
        "gate",
        {"gate": {"calibration": "conformal_quality"}, "data": {"calibration_pairs": 1}},
        "with 0 queries",
    ),
    ("sft", {"model": {"min_pixels": 100, "max_pixels": 50}}, "no image size fits"),
    ("sft", {"adapters": {"arrangement": "shared", "prefix": "embedding"}}, "one adapter for both passes"),
    ("gate", {"adapters": {"dropout": 0.1}}, "only stage 1 trains with dropout"),
    ("rl", {"adapters": {"dropout": 0.1}}, "only stage 1 trains with dropout"),
    ("sft", {"stage": {"cross_candidate_generative": 0.25}}, "candidates have no CoT"),
    ("sft", {"data": {"think_sides": "candidate"}}, "queries have no CoT"),
    (
        "sft",
        {
            "data": {"think_sides": "candidate"},
            "stage": {"cross_query_generative": 0.0, "distill_weight": 1.0},
        },
        "stage.distill_weight is 1.0, but with data.think_sides=candidate",
    ),
    ("sft", {"stage": {"schedule": "two_phase"}, "interface": {"name": "kv_joint"}}, "stored caches"),
    ("sft", {"stage": {"schedule": "two_phase"}, "adapters": {"prefix": "embedding"}}, "stored caches"),
    ("sft", {"stage": {"schedule": "two_phase"}, "adapters": {"arrangement": "shared"}}, "stored caches"),
    ("rl", {"stage": {"clip_low": 0.3}}, "clip_high (0.28) is below"),
    ("rl", {"stage": {"min_live_groups": 33}}, "is above stage.prompts_per_step (32)"),
    ("rl", {"stage": {"format_weight": 0, "rank_weight": 0, "gap_weight": 0}}, "every reward weight is 0"),
    ("rl", {"interface": {"name": "kv_joint"}}, "interface=kv_detached"),
    ("rl", {"adapters": {"arrangement": "shared"}}, "adapters.arrangement=dual"),
    ("rl", {"stage": {"rollout_engine": "vllm", "sampling_temperature": 0.7}}, "set stage.sampling_temperature=1"),
    ("rl", {"stage": {"rollout_engine": "vllm"}, "trainer": {"devices": 2}}, "shares one device with the training"),
    ("rl", {"stage": {"rollout_engine": "vllm"}, "model": {"quantization": "nf4"}}, "the unquantised backbone"),
    ("rl", {"stage": {"rollout_engine": "vllm"}, "model": {"name": "tiny"}}, "model.name=tiny is built in memory"),
    ("sft", {"trainer": {"devices": 2, "strategy": "single"}}, "devices x num_nodes = 2"),
    ("sft", {"trainer": {"strategy": "fsdp2"}, "model": {"quantization": "nf4"}}, "cannot shard"),
    ("sft", {"trainer": {"devices": 3}}, "must divide among 3 devices"),
    ("sft", {"trainer": {"devices": 2}, "model": {"quantization": "nf4"}}, "trainer.strategy=auto is fsdp2 on 2"),
    ("sft", {"trainer": {"devices": 2}, "stage": {"conflict_every_steps": 5}}, "the gradients of one process"),
    ("sft", {"stage": {"cot_weight": 0.0}}, "no other loss reaches the reasoning adapter"),
    ("sft", {"stage": {"cot_weight": 0.0}, "interface": {"name": "reencode"}}, "with interface.name=reencode no other"),
    ("sft", {"stage": {"batch_size": 100}}, "is not a multiple of data.rows_per_source_global (64)"),
    ("sft", {"stage": {"schedule": "two_phase", "embedding_batch_size": 200}}, "stage.embedding_batch_size (200)"),
    (
        "sft",
        {"trainer": {"devices": 2}, "stage": {"batch_size": 66}, "data": {"rows_per_source_global": 33}},
        "data.rows_per_source_global (33) must divide among 2 devices",
    ),
]


@pytest.mark.parametrize(("stage", "changes", "expected"), CONTRADICTIONS)
def test_contradictions(stage: str, changes: dict[str, Any], expected: str) -> None:
    (problem,) = problems_of(changed(stage, **changes))
    assert expected in problem


@pytest.mark.parametrize(
    ("stage", "changes"),
    [
        ("sft", {"data": {"think_sides": "both"}, "stage": {"cross_candidate_generative": 0.25}}),
        ("sft", {"stage": {"schedule": "two_phase"}, "interface": {"name": "reencode"}}),
        ("sft", {"stage": {"schedule": "two_phase"}, "adapters": {"prefix": "none"}}),
        ("sft", {"trainer": {"strategy": "fsdp2", "devices": 1}}),
        ("sft", {"adapters": {"dropout": 0.05}}),
        ("sft", {"stage": {"cot_weight": 0.0}, "interface": {"name": "kv_joint"}}),
        ("sft", {"stage": {"cot_weight": 0.0}, "adapters": {"arrangement": "shared"}}),
        ("sft", {"stage": {"batch_size": 66}, "data": {"rows_per_source_global": 33}}),
        ("sft", {"stage": {"batch_size": 32}}),
        ("rl", {"stage": {"gap_weight": 0.0}}),
        ("rl", {"stage": {"rollout_engine": "vllm"}}),
    ],
)
def test_combinations_that_are_fine(stage: str, changes: dict[str, Any]) -> None:
    settings_from_dict(changed(stage, **changes))


def test_a_bad_value_hides_the_contradictions_that_rest_on_it() -> None:
    values = changed("gate", adapters={"dropout": "high"})
    assert problems_of(values) == ["adapters.dropout must be a number, not 'high'"]


def test_cuda_asked_for_where_there_is_none(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    values = changed(trainer={"accelerator": "cuda"}, model={"attention": "flash_attention_2"})
    settings_from_dict(values)
    problems = problems_of(values, on_this_machine=True)
    assert any("finds no CUDA device" in problem for problem in problems)
    assert any("model.attention=flash_attention_2 runs on CUDA only" in problem for problem in problems)


def test_missing_logger_package_says_how_to_get_it(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(__import__("sys").modules, "wandb", None)
    (problem,) = problems_of(changed(logger={"name": "wandb"}), on_this_machine=True)
    assert "pip install wandb" in problem


def test_missing_vllm_says_how_to_get_it(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(rules, "importable", lambda package: False)
    (problem,) = problems_of(changed("rl", stage={"rollout_engine": "vllm"}), on_this_machine=True)
    assert problem.startswith("stage.rollout_engine=vllm needs the package vllm")
    assert "pip install -e '.[vllm]'" in problem


def test_model_path_must_exist(tmp_path: Path) -> None:
    (problem,) = problems_of(changed(model={"path": str(tmp_path / "weights")}), on_this_machine=True)
    assert "there is no such folder" in problem


def test_read_settings_applies_overrides(tmp_path: Path) -> None:
    path = tmp_path / "config.yaml"
    path.write_text("stage: {name: rl, kl: 0.1}\n")
    settings = read_settings(path, ["stage.max_steps=3", "trainer.resume=null", "name=again"])
    assert (settings.stage.max_steps, settings.stage.kl, settings.name) == (3, 0.1, "again")


@pytest.mark.parametrize(
    ("content", "override", "expected"),
    [
        (None, [], "there is no such file"),
        ("a: [", [], "is not a YAML file"),
        ("- 1\n", [], "not a mapping of sections"),
        ("stage: 3\n", [], "unknown stage.name '3'"),
        ("seed: 1\n", ["stage"], "expected key=value"),
        ("seed: 1\n", ["seed.x=1"], "expected key=value"),
        ("seed: 1\n", ["seeed=1"], "did you mean 'seed'"),
    ],
)
def test_unreadable_files(tmp_path: Path, content: str | None, override: list[str], expected: str) -> None:
    path = tmp_path / "config.yaml"
    if content is not None:
        path.write_text(content)
    with pytest.raises(ConfigError, match=expected.replace("(", r"\(")):
        read_settings(path, override)


def test_config_error_survives_pickling() -> None:
    error = pickle.loads(pickle.dumps(ConfigError(["a", "b"])))
    assert error.problems == ["a", "b"]
    assert str(error) == str(ConfigError(["a", "b"]))


def test_only_stage_1_takes_candidates_that_think() -> None:
    with pytest.raises(ConfigError, match=r"data.think_sides=both trains stage sft only"):
        settings_from_dict({"stage": {"name": "gate"}, "data": {"think_sides": "both"}})


def test_a_retired_key_loads_at_its_default_and_explains_any_other_value() -> None:
    assert settings_from_dict({"stage": {"name": "rl", "weight_decay": 0.0}}).stage == RLSettings()
    assert settings_from_dict({"evaluation": {"random_draws": 20}}) == Settings()
    (problem,) = problems_of({"stage": {"name": "rl", "weight_decay": 0.01}})
    assert problem.startswith("stage.weight_decay is no longer a key: stage rl trains without weight decay")
    assert "default 0.0" in problem
    assert "0.01" in problem
    assert settings_from_dict({"stage": {"name": "sft", "weight_decay": 0.5}}).stage.weight_decay == 0.5


def test_retired_keys_are_not_keys() -> None:
    for section, name in RETIRED_KEYS:
        assert name not in {field.name for field in dataclasses.fields(section)}, name
