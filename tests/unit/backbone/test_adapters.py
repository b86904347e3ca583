"""Switching adapters, and PEFT's private switches that it relies on."""

from __future__ import annotations

import pytest
import torch
from peft.tuners.lora import LoraLayer

from twn_lightning.backbone.adapters import AdapterSet
from twn_lightning.backbone.tiny import build_tiny
from twn_lightning.errors import AdapterError, ConfigError
from twn_lightning.settings import AdapterSettings


def _linear(backbone) -> LoraLayer:
    return backbone.model.model.language_model.layers[0].self_attn.q_proj


def _flags(backbone) -> dict[str, bool]:
    return {name: p.requires_grad for name, p in backbone.named_parameters()}


def test_pin_switches_what_a_linear_computes(tiny_backbone):
    backbone = tiny_backbone()
    layer, x = _linear(backbone), torch.randn(2, 64)
    for name in ("reasoning", "embedding"):
        with backbone.adapters.pin(name):
            delta = x @ layer.lora_A[name].weight.T @ layer.lora_B[name].weight.T * layer.scaling[name]
            torch.testing.assert_close(layer(x), layer.base_layer(x) + delta)
    with backbone.adapters.pin(None):
        torch.testing.assert_close(layer(x), layer.base_layer(x))


def test_peft_still_has_the_switches_that_pin_sets(tiny_backbone):
    """If this fails, PEFT has renamed them: `AdapterSet._switch` would silently run the wrong adapter."""
    backbone = tiny_backbone()
    layer = _linear(backbone)
    with backbone.adapters.pin("embedding"):
        assert layer.active_adapters == ["embedding"]
        assert layer.disable_adapters is False
    with backbone.adapters.pin(None):
        assert layer.disable_adapters is True


def test_pin_nests_and_survives_errors(tiny_backbone):
    adapters = tiny_backbone().adapters

    def fail() -> None:
        with adapters.pin("embedding"), adapters.pin(None):
            assert adapters.pinned is None
            raise RuntimeError

    with pytest.raises(RuntimeError):
        fail()
    assert adapters.pinned == "reasoning"


def test_pin_and_the_passes_do_not_touch_requires_grad(tiny_backbone, mixed_items):
    backbone = tiny_backbone()
    backbone.train_only("reasoning", "queries")
    before = _flags(backbone)
    with backbone.adapters.pin("embedding"), backbone.adapters.pin(None):
        assert _flags(backbone) == before
    backbone.embed(backbone.reason(backbone.processor(mixed_items)), ["discriminative"])
    assert _flags(backbone) == before


def test_train_only_leaves_exactly_the_asked_groups_trainable(tiny_backbone):
    backbone = tiny_backbone()
    backbone.train_only("embedding", "queries")
    wanted = {id(p) for g in ("embedding", "queries") for p in backbone.group_parameters(g)}
    assert {id(p) for p in backbone.parameters() if p.requires_grad} == wanted
    backbone.train_only()
    assert not any(_flags(backbone).values())
    with pytest.raises(ConfigError, match="did you mean 'queries'"):
        backbone.train_only("query")


def test_adapters_are_fp32_on_the_language_model_only(tiny_backbone):
    backbone = tiny_backbone()
    assert backbone.adapters.modules_per_tower == {"language": 2 * 7, "vision": 0}
    assert {p.dtype for p in backbone.adapters.parameters("reasoning")} == {torch.float32}
    assert not any(isinstance(m, LoraLayer) for m in backbone.model.model.visual.modules())


def test_no_matching_linear_is_an_error():
    with pytest.raises((AdapterError, ValueError), match="language_model"):
        AdapterSet(torch.nn.Sequential(torch.nn.Linear(2, 2)), AdapterSettings())


def test_reference_is_a_frozen_copy_that_pin_puts_in_the_reasoners_place(tiny_backbone, mixed_items):
    backbone = tiny_backbone()
    backbone.train_only("reasoning")
    before = _flags(backbone)
    prompts = backbone.processor(mixed_items)
    with torch.no_grad():
        policy = backbone.reason(prompts).last_hidden_BD
        backbone.add_reference()
        assert {k: v for k, v in _flags(backbone).items() if "reference" not in k} == before
        assert not any(p.requires_grad for p in backbone.adapters.parameters("reasoning_reference"))
        for parameter in backbone.group_parameters("reasoning"):
            parameter.mul_(2)
        moved = backbone.reason(prompts).last_hidden_BD
        with backbone.pin("reasoning_reference"):
            reference = backbone.reason(prompts).last_hidden_BD
    torch.testing.assert_close(reference, policy)
    assert (moved - policy).abs().max() > 1e-3


def test_train_mode_reaches_lora_dropout_only(tiny_backbone):
    backbone = tiny_backbone(dropout=0.5).train()
    training = {type(m).__name__ for m in backbone.model.modules() if m.training}
    assert training <= {"Dropout", "ModuleDict"}
    x = torch.randn(4, 64)
    with backbone.adapters.pin("reasoning"):
        assert not torch.equal(_linear(backbone)(x), _linear(backbone)(x))
        backbone.eval()
        assert torch.equal(_linear(backbone)(x), _linear(backbone)(x))


@torch.no_grad()
def test_uncast_inputs_change_nothing_under_autocast(tiny_backbone, mixed_items):
    backbone = tiny_backbone()
    backbone.adapters.fuse_linears(False)
    prompts = backbone.processor(mixed_items[:2])
    seen = []
    linear = backbone.language_model.layers[0].self_attn.o_proj  # reads what attention left in bf16
    linear.lora_A["reasoning"].register_forward_pre_hook(lambda module, args: seen.append(args[0].dtype))
    with torch.autocast("cpu", torch.bfloat16):
        uncast = backbone.reason(prompts).last_hidden_BD
        backbone.adapters.cast_inputs = lambda wanted: type(backbone.adapters).cast_inputs(backbone.adapters, True)
        cast = backbone.reason(prompts).last_hidden_BD
    assert seen == [torch.bfloat16, torch.float32]
    assert torch.equal(uncast, cast)


@pytest.mark.parametrize(
    ("pattern", "found"),
    [
        (r".*\bvisual\.blocks\.\d+\.attn\.qkv", "0 language and"),
        (r".*\blanguage_model\.layers\.\d+\.self_attn\.(?:q|k)_proj", "4 language and 0 vision"),
    ],
)
def test_lora_on_unexpected_modules_is_refused(pattern, found, monkeypatch):
    monkeypatch.setattr("twn_lightning.backbone.adapters.TARGET_REGEX", pattern)
    model, _ = build_tiny()
    with pytest.raises(AdapterError, match=rf"'reasoning' was put on {found}.*expected 14"):
        AdapterSet(model, AdapterSettings())
    monkeypatch.setenv("TWN_CHECKS", "-lora_targets")
    assert AdapterSet(build_tiny()[0], AdapterSettings()).names == ["reasoning", "embedding"]
