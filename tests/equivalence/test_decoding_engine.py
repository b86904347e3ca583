"""Fused, merged and recorded decoding against the plain decoder, and what they leave as it was."""

from __future__ import annotations

import gc
import weakref

import pytest
import torch
from torch import nn
from torch.utils._python_dispatch import TorchDispatchMode

from twn_lightning.backbone import decoding_engine, decoding_steps, step_model
from twn_lightning.backbone.decoding import decode_cots
from twn_lightning.backbone.decoding_engine import DecodingEngine, decoding_with, engine_for, make_engine
from twn_lightning.backbone.decoding_rows import TokenRules
from twn_lightning.backbone.decoding_steps import DirectSteps, RecordedSteps
from twn_lightning.backbone.early_exit import ExitRule
from twn_lightning.backbone.loading import load_backbone
from twn_lightning.backbone.step_model import PlainModel, StepModel
from twn_lightning.errors import ConfigError
from twn_lightning.settings import AdapterSettings, InterfaceSettings, LoraSettings, ModelSettings
from twn_lightning.types import Item

CLOSE = {"atol": 1e-5, "rtol": 1e-5}


def _recording(backbone):
    """An engine that goes through all that recording takes, and replays a step by running it."""
    return DecodingEngine(StepModel(backbone, merged=False), RecordedSteps(record=lambda step: step))


def _decode(backbone, state, way, **options):
    generator = torch.Generator().manual_seed(0)
    with decoding_with(backbone, way):
        return decode_cots(backbone, state, max_new_tokens=10, generator=generator, **options)


def _assert_equal(backbone, found, expected):
    assert torch.equal(found.cots.ids_BT, expected.cots.ids_BT)
    assert torch.equal(found.cots.mask_BT, expected.cots.mask_BT)
    assert torch.equal(found.cots.closed_B, expected.cots.closed_B)
    assert torch.equal(found.exited_B, expected.exited_B)
    torch.testing.assert_close(found.log_probs_BT, expected.log_probs_BT, atol=1e-4, rtol=1e-4)
    torch.testing.assert_close(
        backbone.embed(found.state).generative_BD, backbone.embed(expected.state).generative_BD, **CLOSE
    )


@torch.no_grad()
@pytest.mark.parametrize("options", [{}, {"temperature": 1.0, "completions": 3}, {"exit_rule": ExitRule(0.6, 2)}])
@pytest.mark.parametrize(
    "made", [{"prefix": "embedding"}, {"arrangement": "shared"}, {"dropout": 0.3}, {"checkpointing": True}]
)
def test_every_way_equals_the_plain_decoder(build, items, made, options):
    backbone = build(**made)
    state = backbone.reason(backbone.processor(items))
    expected = _decode(backbone, state, "plain", **options)
    assert expected.cots.mask_BT.sum() > len(items)
    for way in ("fused", "merged", _recording(backbone)):
        _assert_equal(backbone, _decode(backbone, state, way, **options), expected)


@torch.no_grad()
def test_the_packaged_backbone_writes_the_same_tokens_in_every_way(nano, nano_items):
    state = nano.reason(nano.processor(nano_items))
    with decoding_with(nano, "plain"):
        expected = decode_cots(nano, state, max_new_tokens=40)
    assert expected.cots.closed_B.any()
    for way in ("fused", "merged", _recording(nano)):
        with decoding_with(nano, way):
            _assert_equal(nano, decode_cots(nano, state, max_new_tokens=40), expected)


@pytest.fixture(scope="module")
def nano():
    return load_backbone(ModelSettings(name="nano"), AdapterSettings(init_from="nano"), InterfaceSettings()).eval()


@pytest.fixture(scope="module")
def nano_items():
    return [Item(str(n), "Answer the question.", "north " * n) for n in range(1, 6)]


# --- recorded steps --------------------------------------------------------------------------------------------------


@torch.no_grad()
def test_recordings_serve_later_runs_of_other_sizes(build, items):
    backbone = build()
    engine = _recording(backbone)
    kept = []
    for count in (5, 3, 5, 1):
        state = backbone.reason(backbone.processor(items[:count]))
        _assert_equal(backbone, _decode(backbone, state, engine), _decode(backbone, state, "plain"))
        kept.append(engine.buffers(state, 10))
    assert all(buffers is kept[0] for buffers in kept), "room for five rows is room for fewer"
    assert {rows for rows, _, _ in engine.steps._replays} == {8, 4, 1}
    larger = backbone.reason(backbone.processor(items * 2))
    _assert_equal(backbone, _decode(backbone, larger, engine), _decode(backbone, larger, "plain"))
    assert engine.buffers(larger, 10) is not kept[0]


@torch.no_grad()
def test_rows_leave_a_recorded_batch_and_the_columns_grow(build, items, monkeypatch):
    monkeypatch.setattr(decoding_steps, "ROWS_PER_GRAPH", 2)
    monkeypatch.setattr(decoding_steps, "COLUMNS_PER_GRAPH", 4)
    monkeypatch.setattr(RecordedSteps, "check_every", 3)
    backbone = build()
    state = backbone.reason(backbone.processor(items))
    ends = torch.tensor([2, 9, 3, 3, 8])
    choose = TokenRules.choose

    def ending(self, logits_AV, rows, noise_BV):
        ids_A, log_probs_A = choose(self, logits_AV, rows, noise_BV)
        return torch.where(rows.lengths_A >= ends[rows.numbers_A], self.end_of_turn, ids_A), log_probs_A

    monkeypatch.setattr(TokenRules, "choose", ending)
    engine = _recording(backbone)
    expected = _decode(backbone, state, "plain")
    _assert_equal(backbone, _decode(backbone, state, engine), expected)
    assert expected.cots.lengths_B.tolist() == ends.tolist()
    recorded = engine.steps._replays
    assert {rows for rows, _, _ in recorded} == {6, 2}, "six rows hold five; two are left after three have ended"
    assert len({columns for _, columns, _ in recorded}) > 2


def test_rows_and_columns_are_rounded_up():
    steps = RecordedSteps(record=lambda step: step)
    assert [steps.rows(n) for n in (1, 2, 3, 9, 16, 17, 32, 33)] == [1, 2, 4, 16, 16, 32, 32, 48]
    assert [steps.columns(n) for n in (1, 128, 129)] == [128, 128, 256]
    assert not steps.worth_dropping(1, 32)
    assert steps.worth_dropping(32, 64)
    assert not steps.worth_dropping(33, 64)


@torch.no_grad()
def test_what_a_run_leaves_in_the_buffers_does_not_reach_the_next(build, items):
    backbone = build()
    state = backbone.reason(backbone.processor(items))
    engine = _recording(backbone)
    expected = _decode(backbone, state, engine)
    for pair in engine.buffers(state, 10).cache.layers:
        for tensor in pair:
            tensor.fill_(torch.nan)
    _assert_equal(backbone, _decode(backbone, state, engine), expected)


@torch.no_grad()
def test_a_recorded_step_asks_the_host_for_nothing(build, items, monkeypatch):
    """A value that Python reads would be frozen into a CUDA graph."""
    backbone = build()
    state = backbone.reason(backbone.processor(items))
    engine = _recording(backbone)
    seen = []
    run = RecordedSteps.run

    def watched(self, key, step):
        with _Operations() as operations:
            run(self, key, step)
        seen.append(operations.names)

    monkeypatch.setattr(RecordedSteps, "run", watched)
    _decode(backbone, state, engine, temperature=1.0)
    assert len(seen) == 10
    for names in seen:
        assert "aten::mm" in names
        assert not names & {"aten::_local_scalar_dense", "aten::nonzero", "aten::masked_select", "aten::is_nonzero"}


class _Operations(TorchDispatchMode):
    def __init__(self):
        super().__init__()
        self.names = set()

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        self.names.add(function.name())
        return function(*args, **(kwargs or {}))


@pytest.mark.parametrize("temperature", [0.0, 1.0])
def test_an_engine_made_in_inference_mode_serves_outside_of_it(build, items, temperature):
    backbone = build()
    engine = None
    for mode in (torch.inference_mode, torch.no_grad):
        with mode():
            state = backbone.reason(backbone.processor(items))
            engine = _recording(backbone) if engine is None else engine
            engine.model.follow(backbone.reasoner)
            found = _decode(backbone, state, engine, temperature=temperature)
            _assert_equal(backbone, found, _decode(backbone, state, "plain", temperature=temperature))


# --- adapters and weights --------------------------------------------------------------------------------------------


@torch.no_grad()
def test_a_trained_adapter_and_a_pinned_one_are_followed(build, items):
    backbone = build()
    backbone.add_reference()
    state = backbone.reason(backbone.processor(items))
    first = decode_cots(backbone, state, max_new_tokens=10)
    for parameter in backbone.group_parameters("reasoning"):
        parameter.add_(0.3 * torch.randn(parameter.shape, generator=torch.Generator().manual_seed(2)))
    second = decode_cots(backbone, state, max_new_tokens=10)
    _assert_equal(backbone, second, _decode(backbone, state, "plain"))
    with backbone.pin("reasoning_reference"):
        _assert_equal(backbone, decode_cots(backbone, state, max_new_tokens=10), first)
    assert not torch.equal(first.cots.ids_BT, second.cots.ids_BT)


@torch.no_grad()
def test_an_adapter_of_another_rank_gets_a_model_of_its_own(build, items):
    backbone = build(embedding=LoraSettings(6, 12))
    state = backbone.reason(backbone.processor(items))
    decode_cots(backbone, state, max_new_tokens=4)
    with backbone.pin("embedding"):
        _assert_equal(backbone, decode_cots(backbone, state, max_new_tokens=10), _decode(backbone, state, "plain"))


@torch.no_grad()
def test_weights_that_move_are_found_again(build, items):
    backbone = build()
    prompts = backbone.processor(items)
    engine = engine_for(backbone)
    assert engine_for(backbone) is engine
    backbone.model.double()
    state = backbone.reason(prompts)
    assert engine_for(backbone) is not engine
    _assert_equal(backbone, decode_cots(backbone, state, max_new_tokens=10), _decode(backbone, state, "plain"))


@torch.no_grad()
def test_decoding_leaves_the_backbone_as_it_was(build, items):
    backbone = build()
    before = {name: tensor.clone() for name, tensor in backbone.state_dict().items()}
    flags = {name: p.requires_grad for name, p in backbone.named_parameters()}
    modules = [name for name, _ in backbone.named_modules()]
    for way in ("fused", "merged"):
        _decode(backbone, backbone.reason(backbone.processor(items)), way)
    assert [name for name, _ in backbone.named_modules()] == modules
    assert {name: p.requires_grad for name, p in backbone.named_parameters()} == flags
    for name, tensor in backbone.state_dict().items():
        assert torch.equal(tensor, before[name]), name


def test_a_merged_copy_shares_no_linear_and_the_fused_model_shares_all(build):
    backbone = build()
    own = {p.data_ptr() for name, p in backbone.named_parameters() if name.endswith("base_layer.weight")}
    merged, fused = make_engine(backbone, "merged").model, make_engine(backbone, "fused").model
    assert own == {base.weight.data_ptr() for group in fused.groups for base in group.bases}
    assert not own & {group.weight_OI.data_ptr() for group in merged.groups}


def test_a_merged_copy_refuses_another_reasoner(build, items):
    backbone = build()
    backbone.add_reference()
    state = backbone.reason(backbone.processor(items))
    refused = pytest.raises(ConfigError, match=r"holds the adapter 'reasoning' and 'reasoning_reference'")
    with decoding_with(backbone, "merged"), backbone.pin("reasoning_reference"), refused:
        decode_cots(backbone, state, max_new_tokens=4)


def test_a_backbone_is_freed_with_its_engine(build, items):
    backbone = build()
    decode_cots(backbone, backbone.reason(backbone.processor(items)), max_new_tokens=2)
    assert backbone in decoding_engine._FUSED
    freed = weakref.ref(backbone)
    del backbone
    gc.collect()
    assert freed() is None


# --- the choice ------------------------------------------------------------------------------------------------------


def test_the_innermost_choice_holds(build):
    backbone = build()
    assert isinstance(engine_for(backbone).model, StepModel)
    assert type(engine_for(backbone).steps) is DirectSteps
    with decoding_with(backbone, "merged"):
        assert engine_for(backbone).model.merged
        with decoding_with(backbone, "plain"):
            assert isinstance(engine_for(backbone).model, PlainModel)
        assert engine_for(backbone).model.merged
    assert not engine_for(backbone).model.merged


class _NotPlain(nn.Linear):
    """As a quantised linear: a weight that one must not multiply by."""


def _replace_a_linear(backbone):
    layer = backbone.language_model.layers[1].mlp.up_proj
    layer.base_layer = _NotPlain(layer.in_features, layer.out_features, bias=False)


@pytest.mark.parametrize(
    ("spoil", "reason"),
    [
        (lambda b: b.train(), "dropout of 0.1 is on"),
        (lambda b: b.language_model.set_attn_implementation("eager"), "attention=eager"),
        (_replace_a_linear, "not plain ones"),
    ],
)
def test_what_cannot_be_fused_is_decoded_plainly(build, spoil, reason):
    backbone = build(dropout=0.1)
    spoil(backbone)
    assert isinstance(engine_for(backbone).model, PlainModel)
    with pytest.raises(ConfigError, match=reason), decoding_with(backbone, "fused"):
        pass


def test_an_unknown_way_is_named(build):
    with pytest.raises(ConfigError, match="fused"), decoding_with(build(), "fusd"):
        pass


def test_parameters_that_upstream_adds_are_not_ignored(build, monkeypatch):
    monkeypatch.setattr(step_model, "NORMS", step_model.NORMS[1:])
    with pytest.raises(ConfigError, match=r"2 parameters that it does not know.*input_layernorm"):
        make_engine(build(), "fused")


def test_attention_by_groups_is_what_the_model_calls(build, items, monkeypatch):
    """Fails where transformers takes the attention from elsewhere than the registered interface."""
    backbone = build()
    calls = []

    def counted(*args, **kwargs):
        calls.append(args[1].shape)
        return attention(*args, **kwargs)

    attention = step_model.grouped_attention
    monkeypatch.setattr(step_model, "grouped_attention", counted)
    _decode(backbone, backbone.reason(backbone.processor(items)), "fused")
    assert len(calls) == 10 * len(backbone.language_model.layers)
