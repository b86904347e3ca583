"""Stage 1 on cut CoTs: the draw, its gradients, and that share 0 leaves training as it was."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from twn_lightning.settings import SFTSettings
from twn_lightning.stages import dual_lora_sft
from twn_lightning.stages.contrast import batch_chunks, cut_some_cots


def gradients(run: Any) -> dict[str, torch.Tensor]:
    """Of one joint step, before any optimizer step."""
    run.stage.manual_backward = torch.Tensor.backward
    run.stage.eval()
    batch = next(iter(run.stage.data.train_dataloader()))
    torch.manual_seed(5)
    run.stage.joint_step(batch)
    return {name: p.grad.clone() for name, p in run.stage.named_parameters() if p.grad is not None}


def test_the_draw_covers_all_lengths_and_the_share_of_rows(build: Any) -> None:
    run = build(SFTSettings(batch_size=16))
    batch = next(iter(run.stage.data.train_dataloader()))
    cut, lengths = [], []
    for _ in range(60):
        chunks = batch_chunks(batch, 16)
        cut_some_cots(chunks, 0.5)
        assert chunks[1].read_B is None, "candidates have no CoT here"
        cut.append(chunks[0].read_B)
        lengths.append(chunks[0].cots.lengths_B)
    read, whole = torch.cat(cut), torch.cat(lengths)
    assert ((read >= 0) & (read <= whole)).all()
    assert float((read < whole).float().mean()) == pytest.approx(0.5, abs=0.08)
    assert float((read[read < whole] / whole[read < whole]).mean()) == pytest.approx(0.5, abs=0.08)


def test_without_a_share_nothing_is_drawn(build: Any) -> None:
    run = build(SFTSettings(batch_size=4))
    chunks = batch_chunks(next(iter(run.stage.data.train_dataloader())), 4)
    before = torch.get_rng_state()
    cut_some_cots(chunks, 0.0)
    assert torch.equal(torch.get_rng_state(), before)
    assert all(chunk.read_B is None for chunk in chunks)


@pytest.mark.parametrize("interface", ["kv_detached", "kv_joint", "reencode"])
def test_chunks_give_the_gradients_of_the_whole_batch(interface: str, build: Any) -> None:
    whole, chunked, plain = (
        gradients(build(SFTSettings(batch_size=8, chunk_size=size, cut_cot_share=share), interface=interface))
        for size, share in ((8, 0.9), (3, 0.9), (8, 0.0))
    )
    for name, gradient in whole.items():
        torch.testing.assert_close(chunked[name], gradient, rtol=1e-4, atol=1e-6)
    assert max(float((whole[name] - plain[name]).abs().max()) for name in whole) > 1e-5


def test_the_reasoner_learns_from_whole_cots(build: Any) -> None:
    cut, plain = (gradients(build(SFTSettings(batch_size=8, chunk_size=8, cut_cot_share=s))) for s in (0.9, 0.0))
    run = build(SFTSettings(batch_size=8))
    reasoner = {id(p) for p in run.backbone.group_parameters("reasoning")}
    names = [name for name, p in run.stage.named_parameters() if id(p) in reasoner]
    assert names
    assert all(torch.equal(cut[name], plain[name]) for name in names)


def test_the_second_phase_reads_cut_cots_too(build: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    read = []
    cut_cots = dual_lora_sft.cut_cots
    monkeypatch.setattr(
        dual_lora_sft, "cut_cots", lambda state, lengths: read.append(lengths) or cut_cots(state, lengths)
    )
    build(
        SFTSettings(
            schedule="two_phase", batch_size=4, max_steps=1, embedding_steps=2, embedding_batch_size=4,
            stored_pairs=12, cut_cot_share=0.5,
        )
    ).fit()  # fmt: skip
    assert [len(lengths) for lengths in read] == [4, 4]
