"""Compiled decoder layers give the values and gradients of plain ones, in both passes and at any length."""

from __future__ import annotations

import pytest
import torch
from torch._dynamo import config as dynamo_config
from torch._dynamo.utils import counters

from twn_lightning.backbone.checkpointing import checkpoint_layers
from twn_lightning.backbone.compiling import compile_layers


def run(backbone, prompts, cots):
    """Values and gradients of both losses of stage 1, with one side read without gradient."""
    backbone.train_only("reasoning", "embedding", "queries")
    state = backbone.reason(prompts, cots, want_logits=True)
    state.cot_logits_BTV.float().logsumexp(-1).mean().backward()
    with torch.no_grad():
        other = backbone.reason(prompts)
    queries = backbone.embed(state.detach())
    candidates = backbone.embed(other, ["discriminative"])
    (queries.generative_BD * candidates.discriminative_BD.roll(1, 0)).sum().backward()
    parameters = [p for group in ("reasoning", "embedding", "queries") for p in backbone.group_parameters(group)]
    return [state.cot_logits_BTV.detach(), queries.generative_BD.detach(), *(p.grad for p in parameters)]


@pytest.mark.slow
@pytest.mark.parametrize("checkpointing", [False, True])
def test_compiled_equals_plain(build, batch, checkpointing):
    prompts, cots = batch
    plain, compiled = build().train(), build().train()
    torch.compiler.reset()
    counters.clear()
    compile_layers(compiled.language_model.layers, backend="aot_eager")
    if checkpointing:
        checkpoint_layers(compiled.language_model.layers, compiled.adapters)
    for rows in ([0, 1, 2, 3, 4], [1, 2, 4], [3, 0, 1, 2]):
        part = prompts.select(rows), cots.select(rows)
        for expected, found in zip(run(plain, *part), run(compiled, *part), strict=True):
            torch.testing.assert_close(found, expected, atol=1e-5, rtol=1e-5)
        plain.zero_grad()
        compiled.zero_grad()
    assert not counters["graph_break"], dict(counters["graph_break"])
    assert checkpointing or counters["stats"]["unique_graphs"] <= 6, "compiled again for other layers or lengths"


def test_dynamo_still_has_the_switches_that_compiling_sets():
    assert hasattr(dynamo_config, "allow_unspec_int_on_nn_module")
    assert hasattr(dynamo_config, "recompile_limit")
