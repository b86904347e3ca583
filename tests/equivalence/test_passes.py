"""Pass E on the cache against a full recomputation, batching, padding, and what must not change."""

from __future__ import annotations

from contextlib import contextmanager
from dataclasses import replace

import pytest
import torch
from torch.nn import functional as F

from twn_lightning.backbone.interface import ReasonerState
from twn_lightning.types import CotBatch

CLOSE = {"atol": 2e-5, "rtol": 1e-4}


@contextmanager
def _segment_adapters(backbone, segments):
    """Replace every LoRA linear by its formula, with the adapter chosen per column: [(adapter or None, end), ...]."""
    replaced = []
    for layer in backbone.adapters._layers.values():

        def forward(x, layer=layer):
            out, start = layer.base_layer(x), 0
            for name, end in segments:
                if name is not None:
                    part = x[:, start:end] @ layer.lora_A[name].weight.T @ layer.lora_B[name].weight.T
                    delta = F.pad(part * layer.scaling[name], (0, 0, start, x.shape[1] - min(end, x.shape[1])))
                    out = out + delta
                start = end
            return out

        replaced.append((layer, layer.forward))
        layer.forward = forward
    try:
        yield
    finally:
        for layer, original in replaced:
            layer.forward = original


def _recompute(backbone, prompts, ids_T, mode, segments_of):
    """One row, unbatched, through Hugging Face's own forward: prompt, CoT and queries in one causal sequence."""
    count, length = backbone.settings.num_queries, prompts.input_ids_BL.shape[1]
    readable = torch.cat([prompts.input_ids_BL[0], ids_T if mode == "generative" else ids_T[:0]])
    types = F.pad(prompts.mm_token_type_ids_BL, (0, len(readable) - length))
    model = backbone.model.model
    positions, _ = model.get_rope_index(
        readable[None], types, prompts.image_grid_thw, prompts.video_grid_thw, torch.ones_like(types)
    )
    after = positions.max() + 1 + torch.arange(count).expand(3, 1, -1)
    ids = torch.cat([readable, readable.new_zeros(count)])[None]

    def append_queries(module, args, output):
        return torch.cat([output[:, :-count], backbone.queries[None]], dim=1)

    hook = model.language_model.embed_tokens.register_forward_hook(append_queries)
    try:
        with _segment_adapters(backbone, segments_of(length, len(readable))):
            hidden = model(
                input_ids=ids,
                position_ids=torch.cat([positions, after], dim=-1),
                attention_mask=torch.ones_like(ids),
                pixel_values=prompts.pixel_values,
                image_grid_thw=prompts.image_grid_thw,
                pixel_values_videos=prompts.pixel_values_videos,
                video_grid_thw=prompts.video_grid_thw,
                mm_token_type_ids=F.pad(types, (0, count)),
            ).last_hidden_state
    finally:
        hook.remove()
    return F.normalize(hidden[0, -count:].mean(0), dim=-1)


SEGMENTS = {
    ("kv_detached", "reasoning"): lambda prompt, end: [("reasoning", end), ("embedding", 10**6)],
    ("kv_detached", "none"): lambda prompt, end: [(None, prompt), ("reasoning", end), ("embedding", 10**6)],
    ("kv_detached", "embedding"): lambda prompt, end: [
        ("embedding", prompt),
        ("reasoning", end),
        ("embedding", 10**6),
    ],
    ("reencode", "reasoning"): lambda prompt, end: [("embedding", 10**6)],
}


@torch.no_grad()
@pytest.mark.parametrize(("interface", "prefix"), SEGMENTS)
def test_cached_batch_equals_unbatched_recomputation_with_segment_adapters(build, items, batch, interface, prefix):
    backbone = build(interface, prefix=prefix)
    prompts, cots = batch
    out = backbone.embed(backbone.reason(prompts, cots))
    for row, item in enumerate(items):
        ids = cots.ids_BT[row][cots.mask_BT[row].bool()]
        for mode, found in (("discriminative", out.discriminative_BD), ("generative", out.generative_BD)):
            alone = backbone.processor([item])
            expected = _recompute(backbone, alone, ids, mode, SEGMENTS[interface, prefix])
            torch.testing.assert_close(found[row], expected, **CLOSE)


@torch.no_grad()
@pytest.mark.parametrize("interface", ["kv_detached", "kv_joint", "reencode"])
@pytest.mark.parametrize("query_attention", ["causal", "bidirectional"])
@pytest.mark.parametrize("pooling", ["mean", "last"])
def test_both_modes_in_one_pass_equal_two_passes(build, batch, interface, query_attention, pooling):
    backbone = build(interface, query_attention=query_attention, pooling=pooling)
    state = backbone.reason(*batch)
    both = backbone.embed(state)
    d = backbone.embed(state, ["discriminative"]).discriminative_BD
    g = backbone.embed(state, ["generative"]).generative_BD
    torch.testing.assert_close(both.discriminative_BD, d, **CLOSE)
    torch.testing.assert_close(both.generative_BD, g, **CLOSE)
    assert (d - g).abs().max() > 1e-3


@torch.no_grad()
@pytest.mark.parametrize("prefix", ["reasoning", "none", "embedding"])
def test_discriminative_embedding_is_independent_of_the_cot(build, batch, prefix):
    backbone = build(prefix=prefix)
    prompts, cots = batch
    other = CotBatch(cots.ids_BT.roll(1, 0), cots.mask_BT.roll(1, 0), cots.closed_B)
    out, changed = backbone.embed(backbone.reason(prompts, cots)), backbone.embed(backbone.reason(prompts, other))
    none = backbone.embed(backbone.reason(prompts), ["discriminative"])
    torch.testing.assert_close(out.discriminative_BD, changed.discriminative_BD, **CLOSE)
    torch.testing.assert_close(out.discriminative_BD, none.discriminative_BD, **CLOSE)
    assert (out.generative_BD - changed.generative_BD).abs().max() > 1e-3


@torch.no_grad()
def test_pass_e_leaves_the_cache_as_it_was(build, batch):
    backbone = build()
    state = backbone.reason(*batch)
    before = [(k.clone(), v.clone()) for k, v in state.layers]
    first = backbone.embed(state)
    second = backbone.embed(state)
    for (k, v), (old_k, old_v) in zip(state.layers, before, strict=True):
        assert k.shape == old_k.shape
        assert torch.equal(k, old_k)
        assert torch.equal(v, old_v)
    assert torch.equal(first.generative_BD, second.generative_BD)


@torch.no_grad()
def test_selected_and_joined_states_embed_as_the_whole_batch(build, batch):
    backbone = build()
    prompts, cots = batch
    whole = backbone.embed(backbone.reason(prompts, cots))
    state = backbone.reason(prompts, cots)
    parts = ReasonerState.concat([state.select([3, 1]), state.select([0, 4, 2])])
    torch.testing.assert_close(backbone.embed(parts).generative_BD, whole.generative_BD[[3, 1, 0, 4, 2]], **CLOSE)


@torch.no_grad()
@pytest.mark.parametrize("interface", ["kv_detached", "reencode"])
def test_states_of_other_lengths_join(build, items, interface):
    backbone = build(interface)
    processor = backbone.processor
    texts = ["<answer>a</answer>", "<think>much longer than it</think><answer>b</answer>"]
    states = [backbone.reason(processor([items[i]]), processor.encode_cots([texts[i]])) for i in range(2)]
    alone = torch.cat([backbone.embed(s).generative_BD for s in states])
    torch.testing.assert_close(backbone.embed(ReasonerState.concat(states)).generative_BD, alone, **CLOSE)
    e_d = torch.cat([backbone.embed(s).discriminative_BD for s in states])
    torch.testing.assert_close(backbone.embed(ReasonerState.concat(states)).discriminative_BD, e_d, **CLOSE)


def test_embedding_depends_on_the_image_in_train_mode_with_checkpointing(build, items):
    backbone = build(checkpointing=True).train()
    prompts = backbone.processor(items[:2])
    seen = backbone.embed(backbone.reason(prompts), ["discriminative"]).discriminative_BD
    prompts.images = replace(prompts.images, bytes_PC=prompts.images.bytes_PC.flip(0))
    other = backbone.embed(backbone.reason(prompts), ["discriminative"]).discriminative_BD
    assert (seen - other).abs().max() > 1e-3


@pytest.mark.parametrize("prefix", ["reasoning", "none", "embedding"])
@pytest.mark.parametrize("checkpointing", [False, True])
def test_completions_that_share_a_prompt_read_what_they_would_read_alone(build, batch, prefix, checkpointing):
    prompts, cots = batch
    backbone = build(prefix=prefix, checkpointing=checkpointing).train()
    backbone.train_only("reasoning")
    pairs = [row for row in range(len(prompts)) for _ in range(2)]
    cots = cots.select([*pairs[1:], pairs[0]])  # every prompt with two different CoTs
    found = []
    for shared in (True, False):
        if shared:
            state = backbone.reason(prompts, cots, want_logits=True, completions=2)
        else:
            state = backbone.reason(prompts.select(pairs), cots, want_logits=True)
        valid = torch.cat([torch.ones_like(cots.mask_BT[:, :1]), cots.mask_BT], dim=1).bool()
        log_probs = state.cot_logits_BTV.log_softmax(-1)[valid]
        (log_probs[:, 7].sum() + log_probs[:, 11].square().sum()).backward()
        gradients = [p.grad / p.grad.abs().max() for p in backbone.group_parameters("reasoning")]
        backbone.zero_grad()
        with torch.no_grad():
            embedded = backbone.embed(state)
        found.append((log_probs.detach(), embedded.discriminative_BD, embedded.generative_BD, gradients))
    for one, other in zip(*found, strict=True):
        torch.testing.assert_close(one, other, **CLOSE)
