"""Our decoder against Hugging Face's, and the state it grows against a teacher-forced one."""

from __future__ import annotations

import pytest
import torch

from twn_lightning.backbone.decoding import decode_cots
from twn_lightning.backbone.decoding_rows import TokenRules
from twn_lightning.backbone.encoding import encode

CLOSE = {"atol": 2e-5, "rtol": 1e-4}


@torch.no_grad()
def test_greedy_equals_hugging_face_generate(build, items):
    backbone = build()
    prompts = backbone.processor(items)
    decoded = decode_cots(backbone, backbone.reason(prompts), max_new_tokens=12)
    with backbone.adapters.pin("reasoning"):
        generated = backbone.model.generate(
            input_ids=prompts.input_ids_BL,
            attention_mask=prompts.attention_mask_BL,
            mm_token_type_ids=prompts.mm_token_type_ids_BL,
            pixel_values=prompts.pixel_values,
            image_grid_thw=prompts.image_grid_thw,
            pixel_values_videos=prompts.pixel_values_videos,
            video_grid_thw=prompts.video_grid_thw,
            do_sample=False,
            max_new_tokens=12,
            eos_token_id=backbone.processor.eot_id,
            pad_token_id=backbone.processor.pad_id,
            suppress_tokens=[backbone.processor.image_id, backbone.processor.video_id],
        )[:, prompts.input_ids_BL.shape[1] :]
    for row in range(len(items)):
        count = int(decoded.cots.lengths_B[row])
        assert decoded.cots.ids_BT[row, :count].tolist() == generated[row, :count].tolist()
    assert len({tuple(row.tolist()) for row in decoded.cots.ids_BT}) > 1


@torch.no_grad()
@pytest.mark.parametrize("prefix", ["reasoning", "none", "embedding"])
@pytest.mark.parametrize("temperature", [0.0, 1.0])
def test_grown_state_equals_teacher_forced(build, items, prefix, temperature):
    backbone = build(prefix=prefix)
    prompts = backbone.processor(items)
    decoded = decode_cots(
        backbone,
        backbone.reason(prompts),
        max_new_tokens=10,
        temperature=temperature,
        completions=3,
        generator=torch.Generator().manual_seed(0),
    )
    rows = [r for r in range(len(items)) for _ in range(3)]
    forced = backbone.reason(prompts.select(rows), decoded.cots, want_logits=True)
    grown, expected = backbone.embed(decoded.state), backbone.embed(forced)
    torch.testing.assert_close(grown.generative_BD, expected.generative_BD, **CLOSE)
    torch.testing.assert_close(grown.discriminative_BD, expected.discriminative_BD, **CLOSE)
    log_probs = forced.cot_logits_BTV[:, :-1].float().log_softmax(-1)
    log_probs = log_probs.gather(-1, decoded.cots.ids_BT[..., None])[..., 0] * decoded.cots.mask_BT
    torch.testing.assert_close(decoded.log_probs_BT, log_probs, atol=1e-4, rtol=1e-4)


@torch.no_grad()
def test_rows_that_end_at_different_steps_leave_the_batch_and_come_back_in_order(build, items, monkeypatch):
    backbone = build()
    processor = backbone.processor
    texts = [
        "<answer>a</answer>",
        "<answer>abc</answer>",
        None,
        "<think></think></answer>",
        "<answer>abcdefgh</answer>",
    ]
    scripts = [processor.tokenizer(t)["input_ids"] if t else [processor.eot_id] for t in texts]
    expected = [s if t else [] for s, t in zip(scripts, texts, strict=True)]
    prompts = processor(items)
    state = backbone.reason(prompts)
    _script_choices(monkeypatch, scripts)
    decoded = decode_cots(backbone, state, max_new_tokens=40)
    found = [row[mask.bool()].tolist() for row, mask in zip(decoded.cots.ids_BT, decoded.cots.mask_BT, strict=True)]
    assert found == expected
    assert decoded.cots.closed_B.all()
    monkeypatch.undo()
    grown = backbone.embed(decoded.state).generative_BD
    torch.testing.assert_close(grown, backbone.embed(backbone.reason(prompts, decoded.cots)).generative_BD, **CLOSE)


def _script_choices(monkeypatch, scripts):
    """Make each row say what its script says next, keeping everything else real."""

    def choose(self, logits_AV, rows, noise_BV):
        positions = zip(rows.numbers_A.tolist(), rows.lengths_A.tolist(), strict=True)
        ids = torch.tensor([(scripts[row] + [0])[length] for row, length in positions])
        return ids, torch.zeros(len(ids))

    monkeypatch.setattr(TokenRules, "choose", choose)


@torch.no_grad()
@pytest.mark.parametrize("mode", ["discriminative", "generative"])
def test_batch_composition_does_not_matter(build, items, mode):
    backbone = build()
    whole = encode(backbone, items, mode, max_new_tokens=8, batch_size=len(items))
    for batch_size in (1, 2):
        parts = encode(backbone, items, mode, max_new_tokens=8, batch_size=batch_size)
        torch.testing.assert_close(parts.embedding_ND, whole.embedding_ND, **CLOSE)
        assert parts.cot_texts == whole.cot_texts
