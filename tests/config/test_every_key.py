"""Every key and every group, one by one: a wrong name or value is named, with what exists and what comes nearest."""

from __future__ import annotations

import dataclasses
import math
import types
from collections.abc import Iterable, Iterator
from typing import Any, Literal, Union, get_args, get_origin, get_type_hints

import pytest
import yaml
from hydra.core.override_parser.overrides_parser import OverridesParser

from tests.support.tiny_adapters import random_backbone
from twn_lightning import rules, stage_rules, task_rules
from twn_lightning.backbone.dual_lora import DualLoRABackbone
from twn_lightning.benchmark.protocol import PROTOCOLS
from twn_lightning.config import conf_dir, groups, load_settings
from twn_lightning.errors import ConfigError
from twn_lightning.evaluation.encoders import ENCODERS, OWN_BACKBONES
from twn_lightning.evaluation.encoders.discriminative import DiscriminativeEncoder
from twn_lightning.evaluation.encoders.ume_r1 import UMER1Encoder
from twn_lightning.foreign_keys import FOREIGN_KEYS
from twn_lightning.settings import AdapterSettings, InterfaceSettings, Settings
from twn_lightning.validation import STAGES, flatten, settings_from_dict, settings_to_dict


def hints(cls: type, prefix: str = "") -> Iterator[tuple[str, Any]]:
    """Every leaf of a settings class by its dotted key, with its type."""
    found = get_type_hints(cls)
    for field in dataclasses.fields(cls):
        if dataclasses.is_dataclass(found[field.name]):
            yield from hints(found[field.name], f"{prefix}{field.name}.")
        elif field.name != "stage" or prefix:
            yield f"{prefix}{field.name}", found[field.name]


LEAVES = {name: {**dict(hints(Settings)), **dict(hints(cls, "stage."))} for name, cls in STAGES.items()}


def alternatives(hint: Any) -> tuple[Any, ...]:
    """The types of a union; of anything else itself."""
    return get_args(hint) if get_origin(hint) in (Union, types.UnionType) else (hint,)


def wrong_value(hint: Any) -> Any:
    """A value that a key of this type cannot have."""
    kinds = alternatives(hint)
    if any(get_origin(kind) is list for kind in kinds):
        return 3
    return 3 if str in kinds else "no such value"


def problems_of(*overrides: str) -> list[str]:
    with pytest.raises(ConfigError) as raised:
        load_settings(overrides)
    return raised.value.problems


def about(problems: list[str], key: str) -> str:
    """The one problem that opens with a key."""
    (found,) = (problem for problem in problems if problem.startswith(f"{key} must be"))
    return found


def test_the_walk_finds_every_leaf() -> None:
    for name, stage in STAGES.items():
        assert set(LEAVES[name]) == set(flatten(settings_to_dict(Settings(stage=stage()))))


@pytest.mark.parametrize("stage", STAGES)
def test_a_wrong_type_is_named_at_every_key(stage: str) -> None:
    wrong = {key: wrong_value(hint) for key, hint in LEAVES[stage].items() if key != "stage.name"}
    problems = problems_of(
        f"stage={stage}",
        *(f"{key}='{value}'" if isinstance(value, str) else f"{key}={value}" for key, value in wrong.items()),
    )
    assert len(problems) == len(wrong)
    for key, value in wrong.items():
        problem = about(problems, key)
        assert f"not {value!r}" in problem
        for kind in alternatives(LEAVES[stage][key]):
            if get_origin(kind) is Literal:
                assert "one of " + ", ".join(map(str, get_args(kind))) in problem


@pytest.mark.parametrize("stage", STAGES)
def test_null_is_refused_where_a_value_is_needed(stage: str) -> None:
    needed = [
        key for key, hint in LEAVES[stage].items() if type(None) not in alternatives(hint) and key != "stage.name"
    ]
    assert len(needed) > 60
    problems = problems_of(f"stage={stage}", *(f"{key}=null" for key in needed))
    assert len(problems) == len(needed)
    for key in needed:
        assert "not None" in about(problems, key)


def with_value(stage: str, keys: Iterable[str], value: Any) -> dict[str, Any]:
    """The defaults of a stage with one value at several keys."""
    values = settings_to_dict(Settings(stage=STAGES[stage]()))
    for key in keys:
        *sections, name = key.split(".")
        section = values
        for part in sections:
            section = section[part]
        section[name] = value
    return values


@pytest.mark.parametrize("number", [math.nan, math.inf, -math.inf, ".nan", "1e999"])
@pytest.mark.parametrize("stage", STAGES)
def test_a_number_must_be_finite(stage: str, number: Any) -> None:
    floats = [key for key, hint in LEAVES[stage].items() if float in alternatives(hint)]
    assert len(floats) > 10
    with pytest.raises(ConfigError) as raised:
        settings_from_dict(with_value(stage, floats, number))
    assert len(raised.value.problems) == len(floats)
    for key in floats:
        assert "a number" in about(raised.value.problems, key)


@pytest.mark.parametrize("stage", STAGES)
def test_every_number_has_a_range(stage: str) -> None:
    ranges = rules._RANGES.keys() | {f"stage.{key}" for key in rules._STAGE_RANGES[STAGES[stage]]}
    numbers = {key for key, hint in LEAVES[stage].items() if {int, float}.intersection(alternatives(hint))}
    assert numbers == ranges
    with pytest.raises(ConfigError) as raised:
        settings_from_dict(with_value(stage, numbers, -1_000_000))
    for key in numbers:
        assert "not -1000000" in about(raised.value.problems, key)


@pytest.mark.parametrize("stage", STAGES)
def test_a_misspelt_key_is_named_with_the_right_one(stage: str) -> None:
    keys = list(LEAVES[stage])
    problems = problems_of(f"stage={stage}", *(f"{key}x=1" for key in keys))
    assert len(problems) == len(keys)
    for key, problem in zip(keys, problems, strict=True):
        assert problem.startswith(f"unknown key '{key}x': did you mean '{key}'?")
        assert key.rsplit(".", 1)[-1] in problem.partition("?")[2], "what exists is listed"


@pytest.mark.parametrize("stage", STAGES)
def test_a_resolved_file_is_read_as_strictly(stage: str) -> None:
    values = settings_to_dict(Settings(stage=STAGES[stage]()))
    misspelt = {f"{name}x": value for name, value in values.items()}
    with pytest.raises(ConfigError) as raised:
        settings_from_dict(misspelt)
    for name, problem in zip(values, raised.value.problems, strict=True):
        assert problem.startswith(f"unknown key '{name}x': did you mean '{name}'?")


@pytest.mark.parametrize("group", [group for group, options in groups().items() if options])
def test_a_misspelt_option_or_group_is_named_with_the_nearest(group: str) -> None:
    options = groups()[group]
    *problems, of_group = problems_of(*(f"{group}={option}x" for option in options), f"{group}s={options[0]}")
    for option, problem in zip(options, problems, strict=True):
        assert problem.startswith(f"unknown option of {group} '{option}x': did you mean '")
        assert problem.split("did you mean '")[1].split("'")[0] in options
        assert problem.endswith("There are: " + ", ".join(sorted(options)))
    assert of_group.startswith(f"unknown key '{group}s': did you mean '")
    assert group in of_group.partition("?")[2]


def test_keys_of_other_trainers_are_translated() -> None:
    for start in ("trainer", "+trainer"):
        problems = problems_of(*(f"{start}.{key}=1" for key in FOREIGN_KEYS))
        for (key, ours), problem in zip(FOREIGN_KEYS.items(), problems, strict=True):
            assert problem.startswith(f"unknown key 'trainer.{key}'")
            assert problem.endswith(f"Other trainers' key; here it is {ours}")


def test_translations_name_keys_that_exist() -> None:
    known = {key for leaves in LEAVES.values() for key in leaves}
    for foreign, ours in FOREIGN_KEYS.items():
        named = {
            word.strip(",.:;")
            for word in ours.split()
            if word.split(".")[0] in ("stage", "trainer", "interface", "paths")
        }
        assert named
        assert named <= known, foreign
        assert foreign not in {key.rsplit(".", 1)[-1] for key in known}, foreign


@pytest.mark.parametrize("sweep", groups()["sweep"])
def test_the_ends_of_every_sweep_compose(sweep: str) -> None:
    preset = conf_dir() / "sweep" / f"{sweep}.yaml"
    (command,) = (line for line in preset.read_text().splitlines() if line.startswith("#   twn train "))
    fixed = [word for word in command.split()[3:] if not word.startswith("sweep=")]
    first, last = list(fixed), list(fixed)
    for key, values in yaml.safe_load(preset.read_text())["hydra"]["sweeper"]["params"].items():
        axis = OverridesParser.create().parse_override(f"{key}={values}")
        interval = axis.value()
        ends = [interval.start, interval.end] if axis.is_interval_sweep() else list(axis.sweep_string_iterator())
        first.append(f"{key}={ends[0]}")
        last.append(f"{key}={ends[-1]}")
    assert load_settings(first) != load_settings(last)


@pytest.mark.parametrize(
    ("debug", "stage"),
    [(debug, stage) for debug in groups()["debug"] for stage in (["sft"] if debug == "overfit" else STAGES)],
)
def test_every_debug_option_composes(debug: str, stage: str) -> None:
    """`overfit` is for stage 1 alone."""
    assert load_settings([f"stage={stage}", f"debug={debug}"]) != load_settings([f"stage={stage}"])


CONTRADICTIONS = {
    "interface=kv_joint model=qwen3vl_2b": "stage.chunk_size=128 puts 128 of a device's 128 rows into one",
    "interface=kv_joint model=qwen3vl_4b stage.batch_size=1024 stage.chunk_size=512": "at most 64",
    "stage.cross_candidate_generative=.25": "candidates have no CoT",
    "task=mmeb_v2/all task.encoder=vlm2vec": (
        "task.query_mode=adaptive by the protocol, but task.encoder=vlm2vec has only: discriminative"
    ),
    "task=mmeb_v2/all task.encoder=vlm2vec task.query_mode=discriminative task.candidate_mode=generative": (
        "task.candidate_mode=generative, but task.encoder=vlm2vec has only"
    ),
    "task=mmeb_v2/all task.encoder=ume_r1 task.query_mode=adaptive": "has only: discriminative, generative",
    "task.encoder=ume_r1": "task.suite=nano compares the routers of TWN",
    "trainer.accumulate_grad_batches=8": "has only each batch's own negatives",
    "+model.gradient_checkpointing=true": "Hugging Face's own drops the KV cache that the embedder reads",
    "name=..": "name must be a folder name",
    "stage.stored_pairs=1": "stage.stored_pairs must be at least 2, not 1",
}


@pytest.mark.parametrize(("overrides", "expected"), CONTRADICTIONS.items())
def test_contradictions_are_found_before_anything_loads(overrides: str, expected: str) -> None:
    (problem,) = problems_of(*overrides.split())
    assert expected in problem


@pytest.mark.parametrize(
    "overrides",
    [
        "interface=kv_joint",
        "interface=kv_joint model=qwen3vl_4b stage.chunk_size=8",
        "interface=kv_joint model=qwen3vl_4b stage.batch_size=64",
        "interface=kv_detached model=qwen3vl_4b",
        "task=mmeb_v2/all task.encoder=ume_r1 task.query_mode=generative",
        "task=mmeb_v2/all task.encoder=vlm2vec task.query_mode=discriminative",
    ],
)
def test_what_is_no_contradiction_composes(overrides: str) -> None:
    load_settings(overrides.split())


def test_a_model_with_hugging_faces_checkpointing_is_refused() -> None:
    built = random_backbone(0.1)
    for module in built.model.modules():
        if hasattr(module, "gradient_checkpointing"):
            module.gradient_checkpointing = True
    with pytest.raises(ConfigError, match=r"drops the KV cache .*interface\.activation_checkpointing=true"):
        DualLoRABackbone(built.model, built.processor, AdapterSettings(), InterfaceSettings())


def test_rules_know_what_the_layers_above_them_offer() -> None:
    assert set(stage_rules.SMALL_BACKBONES) == set(OWN_BACKBONES)
    assert task_rules.ENCODER_MODES.keys() == ENCODERS.keys() - {"twn"}
    modes = {"vlm2vec": DiscriminativeEncoder, "qwen3vl_embedding": DiscriminativeEncoder, "ume_r1": UMER1Encoder}
    for name, encoder in modes.items():
        assert task_rules.ENCODER_MODES[name] == tuple(mode.value for mode in encoder.modes)
    for protocol in PROTOCOLS.values():
        assert {key: getattr(protocol, key) for key in task_rules.PROTOCOL_MODES} == task_rules.PROTOCOL_MODES
