"""Rollout engines: what both promise, what vLLM is asked for, and what happens when one samples from another policy."""

from __future__ import annotations

import sys
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch

from tests.stage_runs import InterruptAfter, tiny_settings
from tests.support import fake_vllm
from twn_lightning.backbone.dual_lora import DualLoRABackbone
from twn_lightning.backbone.loading import load_backbone
from twn_lightning.backbone.tiny import build_tiny
from twn_lightning.data.datamodule import TWNDataModule
from twn_lightning.errors import ConfigError, RolloutError
from twn_lightning.objectives import token_log_probs
from twn_lightning.run import RunFolder
from twn_lightning.settings import ModelSettings, RLSettings, Settings
from twn_lightning.stages import vllm_engine
from twn_lightning.stages.embedding_guided_rl import EmbeddingGuidedRL
from twn_lightning.stages.rollout_engine import Completions, RolloutEngine, build_rollout_engine, check_log_probs
from twn_lightning.stages.trainer import build_trainer, fit
from twn_lightning.stages.vllm_engine import VLLMEngine
from twn_lightning.types import Item, Media

ENGINES = ("builtin", "vllm")
COMPLETIONS = 3


@pytest.fixture(scope="module")
def saved_model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The random `tiny` in Hugging Face's layout: what both sides load."""
    folder = tmp_path_factory.mktemp("model")
    model, processor = build_tiny()
    model.save_pretrained(folder)
    processor.save(folder)
    return folder


@pytest.fixture(autouse=True)
def _fake(monkeypatch: pytest.MonkeyPatch) -> None:
    fake_vllm.install(monkeypatch)


def settings_of(model: Path, run: Path, engine: str, max_new_tokens: int = 6, **stage: Any) -> Settings:
    """Four prompts with three completions a step."""
    small: dict[str, Any] = {
        "prompts_per_step": 4,
        "completions_per_prompt": COMPLETIONS,
        "max_steps": 3,
        "chunk_size": 5,
        "learning_rate": 1e-2,
        "pool_size": 8,
    }
    rl = RLSettings(rollout_engine=engine, **{**small, **stage})  # type: ignore[arg-type]
    trainer = {"val_every_steps": 10, "checkpoint_every_steps": 2}
    settings = tiny_settings(rl, run, data={"max_new_tokens": max_new_tokens}, trainer=trainer)
    return replace(settings, model=ModelSettings(name="saved", path=str(model)))


def backbone_of(settings: Settings) -> DualLoRABackbone:
    """A backbone whose LoRA is not zero, the same one each time."""
    torch.manual_seed(0)
    backbone = load_backbone(settings.model, settings.adapters, settings.interface)
    move(backbone)
    return backbone


@torch.no_grad()
def move(backbone: DualLoRABackbone) -> None:
    for parameter in (*backbone.adapters.parameters("reasoning"), backbone.queries):
        parameter.copy_(torch.randn_like(parameter) * 0.3)


def items_of() -> list[Item]:
    """No image, one, and two of different sizes that the processor has to resize."""
    random = np.random.default_rng(0)
    images = [Media("image", random.integers(0, 256, size, dtype=np.uint8)) for size in ((16, 24, 3), (21, 35, 3))]
    return [Item("none", "Say", "it"), Item("one", "Name", "it", (images[0],)), Item("two", "Tell", "", tuple(images))]


class Case:
    """An engine with weights, on a backbone, and prompts."""

    def __init__(self, settings: Settings) -> None:
        self.backbone = backbone_of(settings)
        self.engine: RolloutEngine = build_rollout_engine(settings, self.backbone)
        self.engine.take_weights(0)
        self.items = items_of()
        self.prompts = self.backbone.processor(self.items)

    def sample(self, seed: int = 0) -> Completions:
        return self.engine.generate(self.prompts, self.items, torch.Generator().manual_seed(seed))

    @torch.no_grad()
    def gap(self, found: Completions) -> float:
        """Largest difference from what the backbone says of the completions."""
        state = self.backbone.reason(self.prompts, found.cots, want_logits=True, completions=COMPLETIONS)
        assert state.cot_logits_BTV is not None
        read_BT = token_log_probs(state.cot_logits_BTV[:, :-1], found.cots.ids_BT, temperature=1.0)
        return float((read_BT - found.log_probs_BT).abs()[found.cots.mask_BT.bool()].max())


@pytest.fixture(params=ENGINES)
def case(request: pytest.FixtureRequest, saved_model: Path, tmp_path: Path) -> Case:
    return Case(settings_of(saved_model, tmp_path, request.param))


def test_log_probs_are_the_teacher_forced_ones(case: Case) -> None:
    found = case.sample()
    assert len(found.cots) == len(case.items) * COMPLETIONS
    assert case.gap(found) < 1e-5
    assert found.log_probs_BT.dtype == torch.float32
    assert not found.log_probs_BT[~found.cots.mask_BT.bool()].any()


def test_equal_seeds_give_equal_completions(case: Case) -> None:
    first, again, other = case.sample(1), case.sample(1), case.sample(2)
    assert torch.equal(first.cots.ids_BT, again.cots.ids_BT)
    assert torch.equal(first.log_probs_BT, again.log_probs_BT)
    assert not torch.equal(first.cots.ids_BT, other.cots.ids_BT)
    rows = {tuple(row) for row in first.cots.ids_BT.tolist()}
    assert len(rows) == len(first.cots)


def test_completions_follow_the_weights(case: Case) -> None:
    before = case.sample()
    move(case.backbone)
    case.engine.take_weights(1)
    after = case.sample()
    assert not torch.equal(before.cots.ids_BT, after.cots.ids_BT)
    assert case.gap(after) < 1e-5
    assert case.gap(before) > 1e-2


def test_visual_tokens_are_never_sampled(saved_model: Path, tmp_path: Path) -> None:
    """They are 2 of 273 about equally likely tokens: without the ban some 14 of these would be visual."""
    case = Case(settings_of(saved_model, tmp_path, "builtin", max_new_tokens=64, completions_per_prompt=12))
    found = case.sample()
    assert int(found.cots.mask_BT.sum()) > 1500
    visual = torch.tensor([case.backbone.processor.image_id, case.backbone.processor.video_id])
    assert not torch.isin(found.cots.ids_BT, visual).any()


def test_what_vllm_is_asked_for(saved_model: Path, tmp_path: Path) -> None:
    case = Case(settings_of(saved_model, tmp_path, "vllm"))
    assert isinstance(case.engine, VLLMEngine)
    case.sample(seed=7)
    llm, processor = case.engine.llm, case.backbone.processor
    assert llm.arguments["model"] == str(saved_model)
    assert llm.arguments["max_lora_rank"] == 8  # the least it takes for a rank of 4
    assert llm.arguments["logprobs_mode"] == "raw_logprobs"
    (prompts, sampling, adapter) = llm.calls[0]
    for item, prompt in zip(case.items, prompts, strict=True):
        assert prompt["prompt_token_ids"].count(processor.image_id) == len(item.media)
        sizes = [image.size for image in prompt.get("multi_modal_data", {}).get("image", [])]
        assert len(sizes) == len(item.media)
        assert all(side % processor.patches.factor == 0 for size in sizes for side in size)
    assert [wanted.seed for wanted in sampling] == [7, 7 + COMPLETIONS, 7 + 2 * COMPLETIONS]
    assert {(wanted.n, wanted.temperature, wanted.logprobs) for wanted in sampling} == {(COMPLETIONS, 1.0, 0)}
    assert sampling[0].bad_words == ["<|image_pad|>", "<|video_pad|>"]
    assert sampling[0].stop_token_ids == [processor.eot_id]
    assert (adapter.lora_name, adapter.lora_int_id) == ("reasoning-v0", 1)


def test_every_version_has_an_id_and_a_folder_of_its_own(saved_model: Path, tmp_path: Path) -> None:
    case = Case(settings_of(saved_model, tmp_path, "vllm"))
    assert isinstance(case.engine, VLLMEngine)
    case.sample()
    case.engine.take_weights(4)
    case.sample()
    requests = [request for _, _, request in case.engine.llm.calls]
    assert [request.lora_int_id for request in requests] == [1, 5]
    assert [Path(request.lora_path).is_dir() for request in requests] == [False, True]
    assert {file.name for file in Path(requests[1].lora_path).iterdir()} == {
        "adapter_config.json",
        "adapter_model.safetensors",
    }


def test_completions_end_where_the_decoder_would_end_them(saved_model: Path, tmp_path: Path) -> None:
    case = Case(settings_of(saved_model, tmp_path, "vllm"))
    assert isinstance(case.engine, VLLMEngine)
    processor = case.backbone.processor

    def read(ids: list[int]) -> tuple[list[int], int, bool]:
        entries = [{token: SimpleNamespace(logprob=-1.0)} for token in ids]
        kept, log_probs, closed = case.engine.completion_of(SimpleNamespace(token_ids=ids, logprobs=entries))
        return kept.tolist(), len(log_probs), closed

    text = processor.tokenizer("<answer>a</answer>", add_special_tokens=False)["input_ids"]
    more = processor.tokenizer(" and", add_special_tokens=False)["input_ids"]
    assert read([*text, *more]) == (text, len(text), True)
    assert read([*more, processor.eot_id]) == (more, len(more), True)
    assert read([processor.eot_id]) == ([], 0, True)
    assert read(more) == (more, len(more), False)


def test_a_prompt_that_vllm_expands_differently_is_refused(
    saved_model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    case = Case(settings_of(saved_model, tmp_path, "vllm"))
    expanded = fake_vllm.LLM._expanded

    def twice(self: Any, backbone: Any, prompt: dict[str, Any]) -> Any:
        ids = [token for token in prompt["prompt_token_ids"] for _ in range(1 + (token == backbone.processor.eot_id))]
        return expanded(self, backbone, {**prompt, "prompt_token_ids": ids})

    monkeypatch.setattr(fake_vllm.LLM, "_expanded", twice)
    with pytest.raises(RolloutError, match=r"another prompt for item 'none'.*of which the first \d+ agree"):
        case.sample()


def test_videos_and_long_prompts_are_refused(
    saved_model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    case = Case(settings_of(saved_model, tmp_path, "vllm"))
    monkeypatch.setattr(vllm_engine, "LONGEST_PROMPT", 10)
    with pytest.raises(RolloutError, match=r"item 'none' is \d+ tokens long.*at most 10"):
        case.sample()
    case.items = [Item("clip", "", "", (Media("video", np.zeros((2, 16, 16, 3), np.uint8)),))]
    case.prompts = case.backbone.processor(case.items)
    with pytest.raises(RolloutError, match="item 'clip' has a video"):
        case.sample()


def test_without_vllm_the_message_says_how_to_get_it(
    saved_model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "vllm", None)
    settings = settings_of(saved_model, tmp_path, "vllm")
    with pytest.raises(ConfigError, match=r"pip install -e '\.\[vllm\]'"):
        build_rollout_engine(settings, backbone_of(settings))


# --- the stage -----------------------------------------------------------------------------------------------------


@pytest.fixture
def rewarded(monkeypatch: pytest.MonkeyPatch) -> None:
    """Count every completion as well formed, so that rewards differ within groups."""
    monkeypatch.setattr(
        "twn_lightning.stages.rewards.format_reward", lambda cots, closed_B: torch.ones(len(cots), dtype=torch.float)
    )


class Shifted:
    """An engine that reports other log-probabilities than those it samples with."""

    def __init__(self, engine: RolloutEngine, by: float) -> None:
        self.engine, self.by = engine, by

    def take_weights(self, version: int) -> None:
        self.engine.take_weights(version)

    def generate(self, *arguments: Any) -> Completions:
        found = self.engine.generate(*arguments)
        return replace(found, log_probs_BT=found.log_probs_BT + self.by * found.cots.mask_BT)


class Stateless:
    """An engine without a state to embed, as those outside this process are."""

    def __init__(self, engine: RolloutEngine) -> None:
        self.engine = engine

    def take_weights(self, version: int) -> None:
        self.engine.take_weights(version)

    def generate(self, *arguments: Any) -> Completions:
        return replace(self.engine.generate(*arguments), state=None)


def stage_of(settings: Settings) -> EmbeddingGuidedRL:
    backbone = backbone_of(settings)
    folder = RunFolder(settings.paths.run_dir or "")
    return EmbeddingGuidedRL(settings, backbone, folder, TWNDataModule(settings, backbone.processor))


@pytest.mark.usefixtures("rewarded")
def test_completions_are_worth_the_same_when_they_are_read_again(saved_model: Path, tmp_path: Path) -> None:
    rewards = []
    for forgets in (False, True):
        stage = stage_of(settings_of(saved_model, tmp_path, "builtin"))
        if forgets:
            stage.engine = Stateless(stage.engine)
        rewards.append(stage.roll_out(next(iter(stage.train_dataloader())), 0).terms.reward)
    torch.testing.assert_close(*rewards, atol=1e-5, rtol=1e-5)
    assert rewards[0].std() > 0


def test_wrong_log_probs_end_the_run_at_once_and_after_a_resume(saved_model: Path, tmp_path: Path) -> None:
    settings = settings_of(saved_model, tmp_path, "builtin")
    stage = stage_of(settings)
    stage.engine = Shifted(stage.engine, 0.1)
    with pytest.raises(RolloutError, match=r"'builtin' does not sample from the policy.*by 0\.1 on average.*0\.001"):
        fit(build_trainer(settings, stage.run_folder), stage)
    stage = stage_of(settings)
    with pytest.raises(KeyboardInterrupt):
        fit(build_trainer(settings, stage.run_folder, [InterruptAfter(2)]), stage)
    resumed = stage_of(settings)
    resumed.engine = Shifted(resumed.engine, 0.1)
    with pytest.raises(RolloutError, match="does not sample from the policy"):
        fit(build_trainer(settings, resumed.run_folder), resumed, stage.run_folder.last_checkpoint)


@pytest.mark.usefixtures("rewarded")
def test_a_resumed_run_with_vllm_equals_a_straight_one(saved_model: Path, tmp_path: Path) -> None:
    stages = []
    for name, interrupts in (("straight", []), ("resumed", [InterruptAfter(2)])):
        settings = settings_of(saved_model, tmp_path / name, "vllm")
        stage, checkpoint = stage_of(settings), None
        if interrupts:
            with pytest.raises(KeyboardInterrupt):
                fit(build_trainer(settings, stage.run_folder, interrupts), stage)
            stage, checkpoint = stage_of(settings), stage.run_folder.last_checkpoint
        fit(build_trainer(settings, stage.run_folder), stage, checkpoint)
        stages.append(stage.backbone.trainable_state())
    straight, resumed = stages
    assert all(torch.equal(value, resumed[name]) for name, value in straight.items())
    start = backbone_of(settings).trainable_state()
    assert any(not torch.equal(value, start[name]) for name, value in straight.items() if name in start)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_the_tolerance_depends_on_the_precision(dtype: torch.dtype) -> None:
    read_BT, mask_BT = torch.full((2, 3), -2.0), torch.tensor([[1, 1, 0], [1, 1, 1]])
    padded_BT = torch.where(mask_BT.bool(), read_BT + 0.01, torch.tensor(9.0))
    if dtype == torch.bfloat16:
        check_log_probs(padded_BT, read_BT, mask_BT, dtype, "vllm")
        padded_BT = padded_BT + 0.05
    with pytest.raises(RolloutError, match="over 5 tokens"):
        check_log_probs(padded_BT, read_BT, mask_BT, dtype, "vllm")
    with pytest.raises(RolloutError, match="nan on average"):
        check_log_probs(padded_BT * torch.nan, read_BT, mask_BT, dtype, "vllm")
