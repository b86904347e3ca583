"""Other embedders: equal to a plain Hugging Face forward pass, whatever the batch; strict about weights."""

from __future__ import annotations

import json
import shutil
from dataclasses import replace

import numpy as np
import pytest
import torch
from peft import PeftModel
from safetensors.torch import load_file, save_file
from tokenizers import processors
from transformers import AutoModelForImageTextToText

from twn_lightning.backbone.media import load_image, load_video
from twn_lightning.errors import AdapterError, ConfigError, DataError, NumericalError
from twn_lightning.evaluation.encoders.discriminative import DiscriminativeEncoder
from twn_lightning.settings import ModelSettings
from twn_lightning.types import EmbeddingMode, Item, Media, Side

ARCHITECTURES = ("qwen2_vl", "qwen2_5_vl", "qwen3_vl")
STYLES = ("vlm2vec", "qwen3vl_embedding")
PLAIN = EmbeddingMode.DISCRIMINATIVE


def encode(encoder, items):
    return encoder.encode(items, Side.QUERY, PLAIN)


def load(checkpoint, architecture="qwen2_vl", style="vlm2vec", adapter=None, **settings):
    options = {"dtype": "float32", **settings}
    return DiscriminativeEncoder.load(style, ModelSettings(path=str(checkpoint(architecture)), **options), adapter)


@torch.no_grad()
def huggingface(encoder, model, items):
    """One item at a time through an untouched model, on the same ids and pixels, with the same kind of positions."""
    processor, rows = encoder.embedder.processor, []
    for item in items:
        inputs = processor([item], [processor.tokenise(processor.render(item))])
        prompts = inputs.prompts
        text_positions = torch.arange(prompts.input_ids_BL.shape[1]).expand(3, 1, -1)
        spacing = {"second_per_grid_ts": inputs.seconds_per_grid} if processor.architecture == "qwen2_5_vl" else {}
        output = model(
            input_ids=prompts.input_ids_BL,
            attention_mask=prompts.attention_mask_BL,
            mm_token_type_ids=prompts.mm_token_type_ids_BL,
            pixel_values=prompts.pixel_values,
            image_grid_thw=prompts.image_grid_thw,
            pixel_values_videos=prompts.pixel_values_videos,
            video_grid_thw=prompts.video_grid_thw,
            position_ids=text_positions if processor.style.positions == "text" else None,
            output_hidden_states=True,
            **spacing,
        )
        hidden = output.hidden_states[-1][0, -1]
        rows.append((hidden / hidden.norm()).numpy())
    return np.stack(rows)


@pytest.mark.parametrize("architecture", ARCHITECTURES)
@pytest.mark.parametrize("style", STYLES)
def test_equals_hugging_face_one_by_one(style, architecture, checkpoint, peer_items):
    encoder = load(checkpoint, architecture, style)
    done = []
    found = encoder.encode(peer_items, Side.QUERY, PLAIN, done.append)
    model = AutoModelForImageTextToText.from_pretrained(checkpoint(architecture)).eval()
    np.testing.assert_allclose(found.embedding_ND, huggingface(encoder, model, peer_items), atol=2e-5)
    np.testing.assert_allclose(np.linalg.norm(found.embedding_ND, axis=1), 1, atol=1e-6)
    assert found.embedding_ND.shape == (len(peer_items), encoder.dimension)
    assert found.embedding_ND.dtype == np.float32
    assert sum(done) == len(peer_items)
    similar = found.embedding_ND @ found.embedding_ND.T - np.eye(len(peer_items))
    assert similar.max() < 0.9999, "inputs must be told apart, else equality proves nothing"


@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_batches_make_no_difference(architecture, checkpoint, peer_items):
    encoder = load(checkpoint, architecture, "qwen3vl_embedding")
    whole = encode(encoder, peer_items).embedding_ND
    encoder.batch_size = 1
    np.testing.assert_allclose(encode(encoder, peer_items).embedding_ND, whole, atol=2e-6)
    encoder.batch_size = 3
    reversed_ = encode(encoder, peer_items[::-1]).embedding_ND[::-1]
    np.testing.assert_allclose(reversed_, whole, atol=2e-6)


@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_padding_makes_no_difference(architecture, checkpoint, peer_items):
    encoder = load(checkpoint, architecture)
    alone = encode(encoder, [peer_items[0]]).embedding_ND[0]
    padded = encode(encoder, [peer_items[0], Item("x", "", "padding " * 40)]).embedding_ND[0]
    np.testing.assert_allclose(padded, alone, atol=2e-6)


def test_frames_and_stored_bytes_equal_their_pixels(checkpoint, peer_items):
    encoder = load(checkpoint)
    by_key = {item.key: item for item in peer_items}
    for key in ("stored", "frames", "file"):
        media = by_key[key].media[0]
        pixels = load_image(media, key) if media.kind == "image" else load_video(media, key, 8).frames
        twin = replace(by_key[key], media=(Media(media.kind, pixels),))
        np.testing.assert_array_equal(encode(encoder, [by_key[key]]).embedding_ND, encode(encoder, [twin]).embedding_ND)


def test_text_positions_are_what_sets_vlm2vec_apart(checkpoint, peer_items):
    encoder = load(checkpoint)
    item = peer_items[1]
    text = encode(encoder, [item]).embedding_ND
    style = encoder.embedder.processor.style
    encoder.embedder.processor.style = replace(style, positions="multimodal")
    assert np.abs(encode(encoder, [item]).embedding_ND - text).max() > 1e-3


def test_the_tokenizers_own_ending_is_pooled(checkpoint, peer_items):
    encoder = load(checkpoint, "qwen3_vl", "qwen3vl_embedding")
    before = encode(encoder, peer_items[:1]).embedding_ND
    tokenizer = encoder.embedder.processor.tokenizer
    ending = ("<|endoftext|>", tokenizer.convert_tokens_to_ids("<|endoftext|>"))
    tokenizer.backend_tokenizer.post_processor = processors.TemplateProcessing(
        single="$A <|endoftext|>", special_tokens=[ending]
    )
    processor = encoder.embedder.processor
    assert processor.tokenise(processor.render(peer_items[0]))[-1] == ending[1]
    assert np.abs(encode(encoder, peer_items[:1]).embedding_ND - before).max() > 1e-3


def test_a_lora_is_merged(checkpoint, adapter, peer_items):
    plain, tuned = load(checkpoint), load(checkpoint, adapter=str(adapter("qwen2_vl")))
    assert np.abs(encode(tuned, peer_items).embedding_ND - encode(plain, peer_items).embedding_ND).max() > 1e-3
    model = AutoModelForImageTextToText.from_pretrained(checkpoint("qwen2_vl"))
    unmerged = PeftModel.from_pretrained(model, adapter("qwen2_vl")).eval()
    np.testing.assert_allclose(
        encode(tuned, peer_items).embedding_ND, huggingface(tuned, unmerged, peer_items), atol=5e-5
    )


def test_identity_follows_whatever_decides(checkpoint, adapter):
    def identity(adapter_folder=None, style="vlm2vec", architecture="qwen2_vl", **settings):
        found = load(checkpoint, architecture, style, adapter_folder, **settings).identity(Side.QUERY, PLAIN)
        return json.dumps(found, sort_keys=True)

    base = str(adapter("qwen2_vl"))
    variants = [
        identity(),
        identity(base),
        identity(str(adapter("qwen2_vl", bump=1e-3))),
        identity(str(adapter("qwen2_vl", use_rslora=True))),
        identity(style="qwen3vl_embedding"),
        identity(architecture="qwen2_5_vl"),
        identity(max_pixels=4096),
        identity(max_frames=4),
        identity(dtype="bfloat16"),
        identity(attention="eager"),
    ]
    assert len(set(variants)) == len(variants)
    assert identity(base) == variants[1]
    assert json.loads(variants[0]) == load(checkpoint).identity(Side.CANDIDATE, PLAIN), (
        "plain values, whatever the side"
    )


def test_a_single_changed_weight_of_the_checkpoint_changes_the_identity(checkpoint, tmp_path):
    folder = tmp_path / "copy"
    shutil.copytree(checkpoint("qwen2_vl"), folder)
    same = load(lambda _: folder).identity(Side.QUERY, PLAIN)
    assert same == load(checkpoint).identity(Side.QUERY, PLAIN)
    tensors = load_file(folder / "model.safetensors")
    name = next(k for k in tensors if k.endswith("layers.1.mlp.up_proj.weight"))
    tensors[name][3, 5] += 1e-4
    save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})
    assert load(lambda _: folder).identity(Side.QUERY, PLAIN) != same


def test_an_adapter_saved_under_older_names_loads(checkpoint, adapter, peer_items, tmp_path):
    source = adapter("qwen2_vl")
    tensors = load_file(source / "adapter_model.safetensors")
    old = {k.replace("model.model.language_model.layers", "model.model.layers"): v for k, v in tensors.items()}
    assert old.keys() != tensors.keys()
    save_file(old, tmp_path / "adapter_model.safetensors")
    (tmp_path / "adapter_config.json").write_text((source / "adapter_config.json").read_text())
    found = encode(load(checkpoint, adapter=str(tmp_path)), peer_items).embedding_ND
    np.testing.assert_array_equal(found, encode(load(checkpoint, adapter=str(source)), peer_items).embedding_ND)


def test_adapters_that_do_not_fit_are_refused(checkpoint, adapter, tmp_path):
    source = adapter("qwen2_vl")
    tensors = load_file(source / "adapter_model.safetensors")
    (tmp_path / "adapter_config.json").write_text((source / "adapter_config.json").read_text())
    with pytest.raises(AdapterError, match=r"adapter_model\.safetensors missing"):
        load(checkpoint, adapter=str(tmp_path))
    name = sorted(tensors)[0]
    save_file({k: v for k, v in tensors.items() if k != name}, tmp_path / "adapter_model.safetensors")
    with pytest.raises(AdapterError, match=r"1 missing: .*lora_A"):
        load(checkpoint, adapter=str(tmp_path))
    extra = {"base_model.model.nothing.lora_A.weight": torch.zeros(2)}
    save_file({**tensors, **extra}, tmp_path / "adapter_model.safetensors")
    with pytest.raises(AdapterError, match=r"1 unexpected: base_model\.model\.nothing"):
        load(checkpoint, adapter=str(tmp_path))


def test_checkpoints_that_cannot_be_used_are_refused(checkpoint, tmp_path):
    with pytest.raises(ConfigError, match="cannot be loaded"):
        DiscriminativeEncoder.load("vlm2vec", ModelSettings(path=str(tmp_path)))
    with pytest.raises(ConfigError, match="unknown prompt style 'vlm2vek': did you mean 'vlm2vec'"):
        DiscriminativeEncoder.load("vlm2vek", ModelSettings(path=str(tmp_path)))
    with pytest.raises(ConfigError, match="quantization=nf4"):
        load(checkpoint, quantization="nf4")
    folder = tmp_path / "copy"
    shutil.copytree(checkpoint("qwen2_vl"), folder)
    tensors = load_file(folder / "model.safetensors")
    name = next(k for k in tensors if k.endswith("layers.1.mlp.up_proj.weight"))
    save_file({k: v for k, v in tensors.items() if k != name}, folder / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(ConfigError, match="1 weights are not in the checkpoint and would be random"):
        load(lambda _: folder)
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps({"model_type": "bert"} | {"architectures": config["architectures"]}))
    with pytest.raises(ConfigError, match="unknown architecture 'bert'"):
        load(lambda _: folder)


def test_only_discriminative_and_only_finite(checkpoint, peer_items):
    encoder = load(checkpoint)
    assert encoder.modes == (PLAIN,)
    for mode in (EmbeddingMode.GENERATIVE, EmbeddingMode.ADAPTIVE):
        with pytest.raises(ConfigError, match=f"encoder 'vlm2vec': unknown mode '{mode.value}'"):
            encoder.encode(peer_items, Side.QUERY, mode)
    with pytest.raises(DataError, match="no items"):
        encode(encoder, [])
    encoder.embedder.model.model.language_model.norm.weight.data[3] = torch.nan
    with pytest.raises(NumericalError, match="2 of 2 embeddings of a batch contain NaN or Inf: item 'file', 'pixels'"):
        encode(encoder, peer_items[:2])


def test_broken_media_name_the_item(checkpoint, peer_items, tmp_path):
    (tmp_path / "bad.png").write_bytes(b"no image")
    bad = Item("bad", "Find", "it", (Media("image", tmp_path / "bad.png"),))
    with pytest.raises(DataError, match=r"item 'bad': image .*bad\.png cannot be decoded"):
        encode(load(checkpoint), [*peer_items, bad])
