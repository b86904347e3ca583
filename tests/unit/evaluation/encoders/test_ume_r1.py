"""UME-R1: `<disc_emb>` in the prompt, `<gen_emb>` behind the CoT, and what happens where that never comes."""

from __future__ import annotations

import logging
import shutil

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import AutoModelForImageTextToText

from twn_lightning.backbone.tiny import tiny_tokenizer
from twn_lightning.errors import ConfigError
from twn_lightning.evaluation.encoders.discriminative import DiscriminativeEncoder
from twn_lightning.evaluation.encoders.ume_r1 import UMER1Encoder
from twn_lightning.settings import ModelSettings
from twn_lightning.types import EmbeddingMode, Side

CAP = 12
PLAIN, THINK = EmbeddingMode.DISCRIMINATIVE, EmbeddingMode.GENERATIVE


@pytest.fixture
def encoder(checkpoint):
    def make(architecture="qwen2_vl", **options):
        settings = ModelSettings(path=str(checkpoint(architecture)))
        return UMER1Encoder.load(settings, max_new_tokens=CAP, **options)

    return make


def encode(encoder, items, mode):
    return encoder.encode(items, Side.CANDIDATE, mode)


def unit(vector):
    return (vector / vector.norm()).numpy()


@torch.no_grad()
def huggingface(encoder, model, item):
    """Prompt and generated ids of one item, and the last layer's hidden state at every step: [0] is the prompt's."""
    processor = encoder.embedder.processor
    inputs = processor([item], [processor.tokenise(processor.render(item))])
    prompts = inputs.prompts
    media = {
        "pixel_values": prompts.pixel_values,
        "image_grid_thw": prompts.image_grid_thw,
        "pixel_values_videos": prompts.pixel_values_videos,
        "video_grid_thw": prompts.video_grid_thw,
        "second_per_grid_ts": inputs.seconds_per_grid if processor.architecture == "qwen2_5_vl" else None,
    }
    output = model.generate(
        input_ids=prompts.input_ids_BL,
        attention_mask=prompts.attention_mask_BL,
        mm_token_type_ids=prompts.mm_token_type_ids_BL,
        **{name: value for name, value in media.items() if value is not None},
        do_sample=False,
        max_new_tokens=CAP,
        eos_token_id=sorted(encoder.stop_ids),
        return_dict_in_generate=True,
        output_hidden_states=True,
    )
    length = prompts.input_ids_BL.shape[1]
    return (
        prompts.input_ids_BL[0],
        output.sequences[0, length:].tolist(),
        [step[-1][0] for step in output.hidden_states],
    )


def set_marks(encoder, model, items):
    """Let a token that the random model does write mid-way stand for `<gen_emb>`, and a later one end the turn."""
    written = [huggingface(encoder, model, item)[1] for item in items]
    for row in written:
        for place in range(2, CAP - 4):
            later = [t for t in row[place + 2 :] if t not in row[: place + 2]]
            if later and row.index(row[place]) == place:
                encoder.gen_id, encoder.stop_ids = row[place], {later[0]}
                return
    pytest.fail("the random model writes nothing that could stand for the marks")


@pytest.mark.parametrize("architecture", ["qwen2_vl", "qwen2_5_vl"])
def test_both_embeddings_equal_hugging_face_one_by_one(architecture, encoder, checkpoint, peer_items):
    ume = encoder(architecture)
    model = AutoModelForImageTextToText.from_pretrained(checkpoint(architecture)).eval()
    set_marks(ume, model, peer_items)
    plain, found = encode(ume, peer_items, PLAIN), encode(ume, peer_items, THINK)
    for i, item in enumerate(peer_items):
        prompt, written, hidden = huggingface(ume, model, item)
        disc = unit(hidden[0][prompt.tolist().index(ume.disc_id)])
        np.testing.assert_allclose(plain.embedding_ND[i], disc, atol=2e-5)
        np.testing.assert_allclose(found.discriminative_ND[i], disc, atol=2e-5)
        assert found.tokens_N[i] == len(written)
        assert found.cots[i] == ume.embedder.processor.tokenizer.decode(written)
        consumed = [step for step, token in enumerate(written[:-1]) if token == ume.gen_id]
        step = consumed[-1] + 1 if consumed else len(written) - 1
        np.testing.assert_allclose(found.embedding_ND[i], unit(hidden[step][-1]), atol=5e-5)
        assert found.malformed_N[i] == (not consumed)
    assert not found.malformed_N.all()
    assert len(set(found.tokens_N.tolist())) > 1, "rows must end at different steps, to leave the batch one by one"
    assert found.think_N.all()
    assert plain.malformed_N is plain.tokens_N is plain.discriminative_ND is None
    np.testing.assert_allclose(np.linalg.norm(found.embedding_ND, axis=1), 1, atol=1e-6)
    assert np.abs(found.embedding_ND - found.discriminative_ND).max() > 1e-2


def test_batches_make_no_difference(encoder, checkpoint, peer_items):
    ume = encoder()
    model = AutoModelForImageTextToText.from_pretrained(checkpoint("qwen2_vl")).eval()
    set_marks(ume, model, peer_items)
    for mode in (PLAIN, THINK):
        ume.batch_size = 16
        whole = encode(ume, peer_items, mode)
        ume.batch_size = 1
        alone = encode(ume, peer_items, mode)
        np.testing.assert_allclose(alone.embedding_ND, whole.embedding_ND, atol=5e-6)
        assert alone.cots == whole.cots


def test_a_missing_mark_falls_back_and_is_counted(encoder, checkpoint, peer_items, caplog):
    ume = encoder()
    with caplog.at_level(logging.WARNING):
        found = encode(ume, peer_items, THINK)
    assert found.malformed_N.all()
    assert f"{len(peer_items)} of {len(peer_items)} CoTs never reached <gen_emb> within {CAP} tokens" in caplog.text
    model = AutoModelForImageTextToText.from_pretrained(checkpoint("qwen2_vl")).eval()
    _, _, hidden = huggingface(ume, model, peer_items[0])
    np.testing.assert_allclose(found.embedding_ND[0], unit(hidden[-1][-1]), atol=5e-5)


def test_a_mark_that_the_cap_cuts_off_was_never_consumed(encoder, checkpoint, peer_items):
    ume = encoder()
    model = AutoModelForImageTextToText.from_pretrained(checkpoint("qwen2_vl")).eval()
    set_marks(ume, model, peer_items)
    full = encode(ume, peer_items, THINK)
    row = int(np.flatnonzero(~full.malformed_N)[0])
    _, written, _ = huggingface(ume, model, peer_items[row])
    ume.max_new_tokens = written.index(ume.gen_id) + 1
    cut = encode(ume, [peer_items[row]], THINK)
    assert cut.malformed_N.all()
    ume.max_new_tokens += 1
    assert not encode(ume, [peer_items[row]], THINK).malformed_N.any()


def test_no_warning_without_a_fallback(encoder, checkpoint, peer_items, caplog):
    ume = encoder()
    model = AutoModelForImageTextToText.from_pretrained(checkpoint("qwen2_vl")).eval()
    set_marks(ume, model, peer_items)
    kept = [item for item, bad in zip(peer_items, encode(ume, peer_items, THINK).malformed_N, strict=True) if not bad]
    caplog.clear()
    encode(ume, kept, THINK)
    assert "never reached" not in caplog.text


def test_the_blank_image_is_a_choice(encoder, peer_items):
    bare, blank = encoder(), encoder(blank_image=True)
    for mode in (PLAIN, THINK):
        assert bare.identity(Side.QUERY, mode) != blank.identity(Side.QUERY, mode)
    plain, shown = (encode(ume, peer_items, PLAIN).embedding_ND for ume in (bare, blank))
    with_media = [bool(item.media) for item in peer_items]
    differs = np.abs(plain - shown).max(-1) > 1e-4
    assert differs.tolist() == [not has for has in with_media]


def test_identity_of_a_mode_holds_what_the_mode_uses(encoder):
    ume = encoder()
    plain, think = (ume.identity(Side.QUERY, mode) for mode in (PLAIN, THINK))
    ume.max_new_tokens = 99
    assert ume.identity(Side.QUERY, PLAIN) == plain
    assert ume.identity(Side.CANDIDATE, PLAIN) == plain
    assert ume.identity(Side.QUERY, THINK) != think
    with pytest.raises(ConfigError, match="encoder 'ume_r1': unknown mode 'adaptive'"):
        ume.identity(Side.QUERY, EmbeddingMode.ADAPTIVE)


def test_a_checkpoint_without_the_tokens_is_refused(checkpoint, tmp_path):
    folder = tmp_path / "copy"
    shutil.copytree(checkpoint("qwen2_vl"), folder)
    tiny_tokenizer().save_pretrained(folder)
    with pytest.raises(ConfigError, match="no token <disc_emb>, which style 'ume_r1' needs"):
        UMER1Encoder.load(ModelSettings(path=str(folder)))


def test_only_an_embedder_that_writes_nothing_may_lack_its_head(checkpoint, tmp_path):
    folder = tmp_path / "copy"
    shutil.copytree(checkpoint("qwen2_vl"), folder)
    tensors = load_file(folder / "model.safetensors")
    del tensors["lm_head.weight"]
    save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})
    settings = ModelSettings(path=str(folder))
    with pytest.raises(ConfigError, match=r"1 weights are not in the checkpoint .*: lm_head\.weight"):
        UMER1Encoder.load(settings)
    assert DiscriminativeEncoder.load("vlm2vec", settings).dimension == 64
