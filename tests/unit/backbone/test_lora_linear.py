"""The LoRA update added in place equals PEFT's forward, which still runs where the update does not apply."""

from __future__ import annotations

import copy

import pytest
import torch
from peft import LoraConfig, inject_adapter_in_model
from peft.tuners import lora
from torch import Tensor, nn

from twn_lightning.backbone.lora_linear import LoraLinear, fuse

pytestmark = pytest.mark.filterwarnings("ignore:Already found a `peft_config`")


class Quantised(nn.Linear):
    """Stands for a library's own linear."""


def make(fused: bool, *, dropout: float = 0.0, bias: bool = True, variant: bool = False, **config) -> nn.Module:
    """A model of one linear with two adapters that change it, `one` being active."""
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(12, 7, bias=bias).requires_grad_(False))
    for name, rank in (("one", 3), ("two", 5)):
        inject_adapter_in_model(
            LoraConfig(r=rank, lora_alpha=2.5, target_modules=["0"], lora_dropout=dropout, use_dora=variant, **config),
            model,
            name,
        )
        nn.init.normal_(model[0].lora_B[name].weight)
    model[0].set_adapter("one")
    if fused:
        fuse(model[0])
    return model


def outputs(model: nn.Module, x: Tensor, *, autocast: bool = False) -> list[Tensor]:
    """Output and gradients, after the same random numbers."""
    torch.manual_seed(1)
    x = x.clone().requires_grad_(x.is_floating_point())
    with torch.autocast("cpu", torch.bfloat16, enabled=autocast):
        found = model(x)
    found.float().square().sum().backward()
    linear = model[0]
    return [found.detach(), x.grad, linear.lora_A["one"].weight.grad, linear.lora_B["one"].weight.grad]


def ran_fused(model: nn.Module, x: Tensor, monkeypatch) -> bool:
    """Whether PEFT's forward was not needed."""
    asked = []
    monkeypatch.setattr(lora.Linear, "forward", lambda self, x, *a, **k: asked.append(1) or self.base_layer(x))
    model(x)
    monkeypatch.undo()
    return not asked


@pytest.mark.parametrize("shape", [(12,), (4, 12), (2, 5, 12), (2, 3, 4, 12), (0, 12)])
@pytest.mark.parametrize("options", [{}, {"dropout": 0.4}, {"bias": False}], ids=["plain", "dropout", "no_bias"])
def test_outputs_and_gradients_equal_pefts(shape, options):
    x = torch.randn(shape)
    expected, found = outputs(make(False, **options).train(), x), outputs(make(True, **options).train(), x)
    for own, theirs in zip(found, expected, strict=True):
        torch.testing.assert_close(own, theirs, rtol=1e-5, atol=1e-5)
    assert x.dim() < 2 or found[0].shape == (*shape[:-1], 7)


def test_a_transposed_input_is_read_in_its_order():
    x = torch.randn(5, 2, 12).transpose(0, 1)
    with torch.no_grad():
        torch.testing.assert_close(make(True)(x), make(False)(x), rtol=1e-5, atol=1e-5)


def test_under_autocast_the_sum_is_rounded_once():
    """PEFT rounds product, scaled product and sum to bf16; the in-place sum only itself, so it is closer to float32."""
    x = torch.randn(64, 12)
    exact = outputs(make(False), x)
    theirs, own = outputs(make(False), x, autocast=True), outputs(make(True), x, autocast=True)
    assert own[0].dtype == theirs[0].dtype == torch.bfloat16
    error, their_error = (
        [(a - c).norm() / c.norm() for a, c in zip(found, exact, strict=True)] for found in (own, theirs)
    )
    assert error[0] < their_error[0]
    assert max(error) < 0.01


def _relative_errors(found: list[Tensor], exact: list[Tensor]) -> list[float]:
    return [float((a - b).norm() / b.norm()) for a, b in zip(found, exact, strict=True)]


def test_it_runs_for_one_plain_adapter_and_leaves_everything_else_to_peft(monkeypatch):
    x, model = torch.randn(4, 12), make(True)
    assert ran_fused(model, x, monkeypatch)
    model[0].set_adapter("two")
    assert ran_fused(model, x, monkeypatch)
    for change in (
        lambda m: setattr(m[0], "fused", False),
        lambda m: m[0].set_adapter(["one", "two"]),
        lambda m: m[0].set_adapter("absent"),
        lambda m: m[0].enable_adapters(False),
        lambda m: m[0].merge(),
        lambda m: m[0].base_layer.bfloat16(),
        lambda m: setattr(m[0], "base_layer", Quantised(12, 7)),
    ):
        other = copy.deepcopy(model)
        change(other)
        reads = x.bfloat16() if other[0].base_layer.weight.dtype == torch.bfloat16 else x
        assert not ran_fused(other, reads, monkeypatch)
    assert not ran_fused(make(True, variant=True), x, monkeypatch)
    assert not ran_fused(make(True, lora_bias=True), x, monkeypatch)


def test_only_inference_rounds_an_adapter(monkeypatch):
    x, model = torch.randn(4, 12).bfloat16(), make(True)
    model[0].base_layer.bfloat16()
    with torch.no_grad():
        assert not ran_fused(model, x, monkeypatch)
        model[0].rounds_adapter = True
        assert ran_fused(model, x, monkeypatch)
        assert model(x).dtype == torch.bfloat16
    assert not ran_fused(model, x, monkeypatch)


@torch.no_grad()
def test_rounded_adapters_are_as_close_to_float32_as_pefts(tiny_backbone, mixed_items):
    """Activations in bf16 move an embedding by 1e-5 (1 - cosine); an adapter in bf16 moves it by little more."""
    exact, backbone = tiny_backbone(), tiny_backbone()
    for one, other in zip(exact.model.parameters(), backbone.model.parameters(), strict=True):
        if not one.requires_grad:
            other.data = one.data.bfloat16()
            one.data = other.data.float()
    prompts = exact.processor(mixed_items)
    wanted = exact.embed(exact.reason(prompts), ["discriminative"]).discriminative_BD
    distances = {}
    for fused in (True, False):
        backbone.adapters.fuse_linears(fused)
        found = backbone.embed(backbone.reason(prompts), ["discriminative"]).discriminative_BD
        distances[fused] = float((1 - (found * wanted).sum(-1)).mean())
    assert 0 < distances[False] < 1e-4
    assert distances[True] < 2 * distances[False]


def test_a_layer_of_another_kind_is_left_alone():
    model = nn.Sequential(nn.Embedding(3, 12))
    inject_adapter_in_model(LoraConfig(r=3, target_modules=["0"]), model, "one")
    fuse(model[0])
    assert type(model[0]) is lora.Embedding


def test_a_backbone_has_them_from_the_start_and_can_go_without(tiny_backbone, mixed_items):
    backbone = tiny_backbone()
    layers = [m for m in backbone.modules() if isinstance(m, lora.LoraLayer)]
    assert layers
    assert all(type(layer) is LoraLinear and layer.fused for layer in layers)
    prompts = backbone.processor(mixed_items)
    states = []
    for fused in (True, False):
        backbone.adapters.fuse_linears(fused)
        assert all(layer.fused is fused for layer in layers)
        states.append(backbone.reason(prompts, want_logits=True))
    torch.testing.assert_close(states[0].cot_logits_BTV, states[1].cot_logits_BTV, rtol=1e-5, atol=1e-5)
