"""Memory: saved tensors counted on a small model, and how totals move with what settings change."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from torch import Tensor

from twn_lightning.backbone.dual_lora import DualLoRABackbone
from twn_lightning.backbone.loading import load_backbone
from twn_lightning.backbone.tiny import tiny_config, tiny_tokenizer
from twn_lightning.planning import device_named, items_of, memory_parts, model_shape
from twn_lightning.planning.memory import Activations
from twn_lightning.settings import (
    AdapterSettings,
    GateStageSettings,
    InterfaceSettings,
    LoraSettings,
    ModelSettings,
    RLSettings,
    Settings,
    SFTSettings,
    TrainerSettings,
)
from twn_lightning.types import CotBatch, PromptBatch

H100 = device_named("h100")
ROWS, PROMPT, COT = 4, 24, 16


@pytest.fixture(params=[0.0, 0.05], ids=["no dropout", "dropout"])
def dropout(request: pytest.FixtureRequest) -> float:
    return request.param


def build(dropout: float) -> DualLoRABackbone:
    lora = LoraSettings(8, 16)
    adapters = AdapterSettings(reasoning=lora, embedding=lora, dropout=dropout)
    backbone = load_backbone(ModelSettings("tiny"), adapters, InterfaceSettings(), torch.device("cpu"))
    backbone.train_only("reasoning")
    return backbone.train()


def saved_bytes(backbone: DualLoRABackbone) -> int:
    """Bytes of different tensors that pass R keeps for its backward pass, weights apart."""
    ids_BL = torch.randint(20, 200, (ROWS, PROMPT))
    prompts = PromptBatch(ids_BL, torch.ones_like(ids_BL), torch.zeros_like(ids_BL))
    ids_BT = torch.randint(20, 200, (ROWS, COT))
    cots = CotBatch(ids_BT, torch.ones_like(ids_BT), torch.ones(ROWS, dtype=torch.bool))
    weights = {tensor.untyped_storage().data_ptr() for tensor in (*backbone.parameters(), *backbone.buffers())}
    kept: dict[int, Tensor] = {}

    def pack(tensor: Tensor) -> Tensor:
        if tensor.untyped_storage().data_ptr() not in weights:
            kept.setdefault(tensor.untyped_storage().data_ptr(), tensor)
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
        backbone.reason(prompts, cots)
    return sum(tensor.untyped_storage().nbytes() for tensor in kept.values())


def test_activations_are_what_torch_saves(dropout: float) -> None:
    backbone = build(dropout)
    counted = Activations(backbone.shape, 8, 4, 4 if dropout else None)
    expected = backbone.shape.layers * counted.per_layer(ROWS * (PROMPT + COT), PROMPT + COT)
    assert saved_bytes(backbone) == pytest.approx(expected, rel=0.1)


def sft(**changes: object) -> Settings:
    adapters = AdapterSettings(reasoning=LoraSettings(32, 64), embedding=LoraSettings(64, 128), num_queries=16)
    settings = Settings(
        stage=SFTSettings(batch_size=64, chunk_size=4),
        model=ModelSettings("qwen3vl_4b", dtype="bfloat16"),
        adapters=adapters,
        trainer=TrainerSettings(accelerator="cuda", devices=8, strategy="fsdp2"),
    )
    return replace(settings, **changes)  # type: ignore[arg-type]


def size(settings: Settings) -> float:
    found = memory_parts(model_shape(settings.model), settings, H100, items_of(settings.model))
    return found.total


def test_weights_are_divided_by_fsdp2_and_whole_under_ddp() -> None:
    shape = model_shape(ModelSettings("qwen3vl_4b"))
    parts = memory_parts(shape, sft(), H100, items_of(ModelSettings("qwen3vl_4b"))).parts
    assert parts["weights"] == shape.parameters * 2 / 8
    ddp = sft(trainer=TrainerSettings(accelerator="cuda", devices=8, strategy="ddp"))
    whole = memory_parts(shape, ddp, H100, items_of(ddp.model)).parts
    assert whole["weights"] == shape.parameters * 2
    assert whole["gathered weights"] == 0
    assert whole["gradients and AdamW"] == 8 * parts["gradients and AdamW"]


def test_rl_trains_one_adapter_and_holds_a_reference() -> None:
    shape = model_shape(ModelSettings("qwen3vl_4b"))
    rl = sft(stage=RLSettings(chunk_size=8))
    parts = memory_parts(shape, rl, H100, items_of(rl.model)).parts
    reasoning = shape.language.lora_parameters(32)
    assert parts["gradients and AdamW"] == reasoning * 12 / 8
    assert parts["adapters"] == (2 * reasoning + shape.language.lora_parameters(64) + 16 * 2560) * 4 / 8


@pytest.mark.parametrize(
    ("smaller", "larger"),
    [
        (sft(), sft(stage=SFTSettings(batch_size=64, chunk_size=8))),
        (sft(), sft(stage=SFTSettings(batch_size=512, chunk_size=4))),
        (sft(), sft(trainer=TrainerSettings(accelerator="cuda", devices=8, strategy="ddp"))),
        (sft(), sft(model=ModelSettings("qwen3vl_8b", dtype="bfloat16"))),
        (sft(stage=RLSettings(chunk_size=8)), sft(stage=RLSettings(chunk_size=32))),
        (sft(stage=GateStageSettings(decode_batch_size=16)), sft(stage=GateStageSettings(decode_batch_size=64))),
    ],
    ids=["chunk", "batch", "unsharded", "model", "completions", "decoded rows"],
)
def test_more_takes_more(smaller: Settings, larger: Settings) -> None:
    assert size(smaller) < size(larger)


def test_checkpointing_keeps_the_inputs_of_layers() -> None:
    settings = sft()
    shape = model_shape(settings.model).language
    kept = Activations(shape, 32, 2, None)
    gradients = 100 * (3 * shape.intermediate + 2 * shape.hidden) * 2
    assert kept.whole(100, 10) == shape.layers * kept.per_layer(100, 10) + gradients
    inputs = shape.layers * 100 * shape.hidden * 2
    assert kept.whole(100, 10, checkpointing=True) == inputs + kept.per_layer(100, 10) + gradients
    checkpointed = replace(settings, interface=replace(settings.interface, activation_checkpointing=True))
    assert size(checkpointed) < size(settings) / 2


def test_caches_that_do_not_fit_are_read_again() -> None:
    one = sft(
        stage=SFTSettings(batch_size=1024, chunk_size=4),
        trainer=TrainerSettings(accelerator="cuda", devices=1, strategy="single"),
    )
    found = memory_parts(model_shape(one.model), one, H100, items_of(one.model))
    assert 0 < found.kept_share < 1
    assert found.fits(H100)


def test_shapes_are_those_of_the_model() -> None:
    shape = model_shape(ModelSettings("tiny"))
    config = tiny_config(tiny_tokenizer())
    assert shape.language.hidden == config.text_config.hidden_size
    assert shape.vision.depth == config.vision_config.depth
