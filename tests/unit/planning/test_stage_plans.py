"""Plans of stages and of MMEB-V2: what moves them, and which tasks they count."""

from __future__ import annotations

from dataclasses import replace

import pytest

from twn_lightning.benchmark.protocol import get_protocol
from twn_lightning.benchmark.registry import all_tasks, select_tasks
from twn_lightning.errors import ConfigError
from twn_lightning.planning import (
    StagePlan,
    device_named,
    items_of,
    model_shape,
    plan_stage,
    plan_suite,
    usual_device,
    what_fits,
)
from twn_lightning.planning.stages import StageWork
from twn_lightning.planning.suite import MEDIA, SHARED_PAGES, num_candidates
from twn_lightning.planning.work import Work
from twn_lightning.settings import (
    GateStageSettings,
    InterfaceSettings,
    ModelSettings,
    RLSettings,
    Settings,
    SFTSettings,
    TrainerSettings,
)

MODEL = ModelSettings("qwen3vl_4b", dtype="bfloat16")
H100, SHAPE, ITEMS = device_named("h100"), model_shape(MODEL), items_of(MODEL)


def settings_of(stage: SFTSettings | GateStageSettings | RLSettings, devices: int = 8) -> Settings:
    strategy = "fsdp2" if devices > 1 else "single"
    trainer = TrainerSettings(accelerator="cuda", devices=devices, strategy=strategy)
    return Settings(stage=stage, model=MODEL, trainer=trainer)


def plan(settings: Settings) -> StagePlan:
    return plan_stage(SHAPE, settings, H100, ITEMS)


SFT = settings_of(SFTSettings(batch_size=256, chunk_size=4, max_steps=10))
RL = settings_of(RLSettings(prompts_per_step=32, chunk_size=8, max_steps=10))
GATE = settings_of(GateStageSettings(decode_batch_size=32))


def test_hours_are_steps_times_seconds() -> None:
    found = plan(SFT)
    assert found.hours == pytest.approx(10 * found.seconds_per_step / 3600)
    assert found.device_hours == pytest.approx(8 * found.hours)
    assert sum(found.seconds.values()) == pytest.approx(3600 * found.hours)


def test_tokens_a_second_count_no_padding() -> None:
    found = plan(SFT)
    pair = ITEMS.prompt_tokens + ITEMS.cot_tokens + 2 * ITEMS.candidate_tokens
    assert found.tokens_per_second * found.seconds_per_step == pytest.approx(256 * pair)


def test_eight_devices_are_faster_but_not_cheaper() -> None:
    one, eight = plan(settings_of(SFTSettings(batch_size=256, chunk_size=4, max_steps=10), 1)), plan(SFT)
    assert eight.hours < one.hours
    assert eight.device_hours <= one.device_hours * 1.01  # one device reads caches again that eight keep


def test_checkpointing_trades_memory_for_time() -> None:
    checkpointed = plan(replace(SFT, interface=InterfaceSettings(activation_checkpointing=True)))
    assert checkpointed.hours > plan(SFT).hours
    assert checkpointed.memory.total == plan(SFT).memory_otherwise.total
    assert checkpointed.memory_otherwise.total == plan(SFT).memory.total


def test_reencoding_takes_longer_than_the_detached_cache() -> None:
    assert plan(replace(SFT, interface=InterfaceSettings("reencode"))).hours > 1.3 * plan(SFT).hours


def operations(work: Work) -> dict[str, float]:
    return {kind: load.operations for kind, load in work.items()}


def test_the_detached_interface_trains_queries_and_only_reads_candidates() -> None:
    candidates = replace(ITEMS, candidate_text_tokens=10 * ITEMS.candidate_text_tokens)
    short, long = (operations(StageWork(SHAPE, SFT, H100, i).phases()[0].work) for i in (ITEMS, candidates))
    assert long["read"] > 2 * short["read"]
    assert long["train"] < 1.1 * short["train"]


def test_two_phases_are_three() -> None:
    two = settings_of(SFTSettings("sft", "two_phase", max_steps=5, embedding_steps=7, stored_pairs=64))
    cots, store, embedding = StageWork(SHAPE, two, H100, ITEMS).phases()
    assert [cots.steps, store.steps, embedding.steps] == [5, 1, 7]
    assert "read" not in cots.work
    assert "train" not in store.work
    assert "vision" not in embedding.work or embedding.work["vision"].operations == 0


def test_rl_decodes_every_completion() -> None:
    few, many = (replace(RL, stage=RLSettings(prompts_per_step=32, completions_per_prompt=g)) for g in (4, 8))
    decoded = [StageWork(SHAPE, s, H100, ITEMS).phases()[0].work["decode"].operations for s in (few, many)]
    assert decoded[1] == pytest.approx(2 * decoded[0])


def test_the_gate_trains_nothing_of_the_backbone() -> None:
    assert set(plan(GATE).seconds) == {"read", "vision", "decode", "prepare"}


@pytest.mark.parametrize("settings", [SFT, RL, GATE], ids=["sft", "rl", "gate"])
def test_longer_cots_take_longer(settings: Settings) -> None:
    longer = replace(ITEMS, cot_tokens=ITEMS.cot_tokens / 4)
    settings = replace(settings, data=replace(settings.data, max_new_tokens=512))
    assert plan_stage(SHAPE, settings, H100, longer).hours < plan_stage(SHAPE, settings, H100, ITEMS).hours


def test_what_fits_names_overrides_that_fit() -> None:
    large = settings_of(SFTSettings(batch_size=256, chunk_size=32))
    assert what_fits(SHAPE, SFT, H100, ITEMS) == []
    chunk, checkpointing = what_fits(SHAPE, large, H100, ITEMS)
    rows = int(chunk.removeprefix("stage.chunk_size="))
    assert plan(replace(large, stage=replace(large.stage, chunk_size=rows))).memory.fits(H100)
    assert not plan(replace(large, stage=replace(large.stage, chunk_size=2 * rows))).memory.fits(H100)
    assert checkpointing == "interface.activation_checkpointing=true"


def test_models_without_sizes_are_refused() -> None:
    with pytest.raises(ConfigError, match="did you mean 'qwen3vl_8b'"):
        model_shape(ModelSettings("qwen3vl_5b"))
    with pytest.raises(ConfigError, match=r"no config\.json"):
        model_shape(ModelSettings(path="/nowhere"))
    with pytest.raises(ConfigError, match="h100"):
        device_named("h1000")


def test_small_backbones_are_planned_on_a_cpu() -> None:
    assert usual_device(ModelSettings("nano")).name == "cpu"
    assert usual_device(MODEL).name == "h100"


# --- MMEB-V2 --------------------------------------------------------------------------------------------------------


def suite(think_rate: float = 0.5, names: tuple[str, ...] = ("all",)):
    protocol = get_protocol("vlm2vec")
    return plan_suite(SHAPE, GATE, H100, ITEMS, select_tasks(names), protocol, think_rate)


def test_every_task_of_the_suite_is_counted() -> None:
    tasks = all_tasks()
    assert {task.parser for task in tasks} <= set(MEDIA)
    found = suite()
    assert found.queries == sum(task.num_queries for task in tasks) == 83_530
    shared = [task for task in tasks if task.name in SHARED_PAGES]
    assert found.candidates == sum(map(num_candidates, tasks)) - sum(map(num_candidates, shared))


def test_adaptive_lies_between_never_and_always() -> None:
    hours = {router: by_modality["all"] for router, by_modality in suite().hours.items()}
    assert hours["never"] < hours["adaptive"] < hours["always"]
    assert suite(think_rate=0.0).hours["adaptive"]["all"] == pytest.approx(hours["never"])
    assert suite(think_rate=1.0).hours["adaptive"]["all"] == pytest.approx(hours["always"])


def test_a_filled_cache_leaves_the_queries() -> None:
    found = suite()
    for router in ("adaptive", "always"):
        assert 0 < found.hours_with_cache[router] < found.hours[router]["all"]
    assert found.hours_with_cache["never"] == found.hours["never"]["all"]


def test_pages_under_two_names_are_encoded_once() -> None:
    one, both = suite(names=("ViDoSeek-page",)), suite(names=("ViDoSeek-page", "ViDoSeek-doc"))
    assert both.candidates == one.candidates == 5349
    assert both.queries == 2 * one.queries


def test_modalities_add_up() -> None:
    never = suite().hours["never"]
    assert never["all"] == pytest.approx(never["image"] + never["video"] + never["visdoc"])
