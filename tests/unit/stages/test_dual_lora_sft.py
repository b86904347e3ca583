"""Stage 1: chunks do not change gradients, each loss reaches its own parameters, phases train their own groups."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from twn_lightning.settings import SFTSettings
from twn_lightning.stages.cache_memory import CacheMemory
from twn_lightning.stages.phases import StateStore


def accumulated(run: Any, **settings: Any) -> dict[str, torch.Tensor]:
    """Gradients of one joint step, taken before any optimizer step."""
    stage = run.stage
    stage.manual_backward = torch.Tensor.backward
    stage.eval()
    batch = next(iter(stage.data.train_dataloader()))
    stage.joint_step(batch)
    return {name: p.grad.clone() for name, p in stage.named_parameters() if p.grad is not None}


@pytest.mark.parametrize(
    ("interface", "prefix"),
    [
        ("kv_detached", "reasoning"),
        ("kv_joint", "reasoning"),
        ("kv_detached", "embedding"),
        ("kv_detached", "none"),
        ("reencode", "reasoning"),
    ],
)
def test_chunks_give_the_gradients_of_the_whole_batch(interface: str, prefix: str, build: Any) -> None:
    found = [
        accumulated(build(SFTSettings(batch_size=8, chunk_size=size), interface=interface, adapters={"prefix": prefix}))
        for size in (8, 3)
    ]
    assert found[0].keys() == found[1].keys()
    for name, gradient in found[0].items():
        torch.testing.assert_close(found[1][name], gradient, rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize("chunk_size", [8, 3])
def test_caches_that_do_not_fit_are_read_again(chunk_size: int, build: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    kept = accumulated(build(SFTSettings(batch_size=8, chunk_size=8)))
    monkeypatch.setattr(CacheMemory, "_fits", lambda self: False)
    run = build(SFTSettings(batch_size=8, chunk_size=chunk_size))
    reads = []
    reason = run.backbone.reason
    monkeypatch.setattr(run.backbone, "reason", lambda *args, **options: reads.append(1) or reason(*args, **options))
    again = accumulated(run)
    assert len(reads) == 2 * 2 * -(-8 // chunk_size), "pass R twice for every chunk of queries and of candidates"
    assert again.keys() == kept.keys()
    for name, gradient in kept.items():
        torch.testing.assert_close(again[name], gradient, rtol=1e-4, atol=1e-6)


def test_a_cache_is_read_again_with_the_same_dropout(build: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(CacheMemory, "_fits", lambda self: False)
    run = build(SFTSettings(batch_size=8, chunk_size=3), adapters={"dropout": 0.3})
    for parameter in run.backbone.parameters():
        if parameter.requires_grad:
            torch.nn.init.normal_(parameter, std=0.1)
    run.stage.manual_backward = torch.Tensor.backward
    embed_kept, found = run.stage.embed_kept, {}

    def recorded(chunk: Any) -> Any:
        embeddings = embed_kept(chunk)
        found.setdefault(id(chunk), []).append([part.detach() for part in embeddings])
        return embeddings

    monkeypatch.setattr(run.stage, "embed_kept", recorded)
    run.stage.train()
    run.stage.joint_step(next(iter(run.stage.data.train_dataloader())))
    assert len(found) == 6
    for first, second in found.values():
        for before, after in zip(first, second, strict=True):
            torch.testing.assert_close(after, before)


@pytest.mark.parametrize("sides", ["query", "candidate", "both"])
def test_every_side_may_think(sides: str, build: Any) -> None:
    weights = {"query": (1.0, 0.0), "candidate": (0.0, 1.0), "both": (0.25, 0.25)}[sides]
    stage = SFTSettings(
        batch_size=4, chunk_size=4, cross_query_generative=weights[0], cross_candidate_generative=weights[1]
    )
    run = build(stage, data={"think_sides": sides})
    batch = next(iter(with_candidate_cots(run)))
    run.stage.manual_backward = torch.Tensor.backward
    values = run.stage.joint_step(batch)
    assert all(torch.isfinite(torch.as_tensor(value)) for value in values.values())


def with_candidate_cots(run: Any) -> Any:
    """The train batches, of pairs whose targets reason as their queries do."""
    from dataclasses import replace

    pairs = [
        replace(pair, positive=replace(pair.positive, cot=pair.query.cot)) for pair in run.stage.data.pairs("train")
    ]
    run.stage.data._pairs["train"] = pairs
    return run.stage.data.train_dataloader()


def test_the_cot_loss_and_the_contrast_train_different_parameters(build: Any) -> None:
    run = build(SFTSettings(batch_size=4, chunk_size=4, cot_weight=0.0))
    gradients = accumulated(run)
    reasoning = {id(p) for p in run.backbone.group_parameters("reasoning")}
    for name, parameter in run.stage.named_parameters():
        if parameter.requires_grad and id(parameter) in reasoning:
            assert not gradients[name].any(), f"the contrastive loss reached {name}"


def test_two_phases_train_one_part_each(build: Any) -> None:
    stage = SFTSettings(
        schedule="two_phase", batch_size=4, max_steps=2, embedding_steps=2, embedding_batch_size=4, stored_pairs=12
    )
    run = build(stage).fit()
    lines = run.run_folder.history()
    first = [line for line in lines if "train/loss_cot" in line]
    second = [line for line in lines if "train/loss_nce_generative" in line]
    assert [line["step"] for line in first] == [1, 2]
    assert [line["step"] for line in second] == [3, 4]
    assert "grad_norm/embedding" not in first[0]
    assert "grad_norm/reasoning" not in second[0]


def test_stored_caches_embed_as_fresh_ones(build: Any) -> None:
    run = build(SFTSettings(schedule="two_phase", batch_size=4))
    run.backbone.eval()
    pairs = run.stage.data.pairs("train")[:10]
    collator = run.stage.data.collator
    store = StateStore.build(run.backbone, pairs, collator, chunk_size=4)
    rows = [7, 2, 5]
    batch = store.batch(rows)
    fresh = collator([pairs[row] for row in rows])
    with torch.no_grad():
        stored_e = run.backbone.embed(batch.queries)
        plain_e = run.backbone.embed(run.backbone.reason(fresh.queries, fresh.query_cots))
        targets = run.backbone.embed(batch.candidates, ["discriminative"]).discriminative_BD
        plain_t = run.backbone.embed(run.backbone.reason(fresh.candidates), ["discriminative"]).discriminative_BD
    torch.testing.assert_close(stored_e.discriminative_BD, plain_e.discriminative_BD, rtol=0, atol=1e-5)
    torch.testing.assert_close(stored_e.generative_BD, plain_e.generative_BD, rtol=0, atol=1e-5)
    torch.testing.assert_close(targets[batch.positive_Q], plain_t[fresh.positive_B], rtol=0, atol=1e-5)
    assert torch.equal(batch.query_hash_Q, fresh.target_hash_Q)
