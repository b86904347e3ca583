"""Saved adapters: they come back as they were, PEFT reads them, and whatever does not fit is named."""

from __future__ import annotations

import json
import shutil

import pytest
import torch
from peft import PeftModel
from safetensors.torch import load_file, save_file

from twn_lightning.backbone import layout
from twn_lightning.backbone.tiny import build_tiny
from twn_lightning.errors import AdapterError
from twn_lightning.settings import LoraSettings


@pytest.fixture
def saved(tiny_backbone, tmp_path):
    backbone = tiny_backbone()
    backbone.save_adapters(tmp_path / "adapters", {"outer.weight": torch.ones(1, 4)}, {"threshold": 0.4})
    return backbone, tmp_path / "adapters"


@torch.no_grad()
def test_saved_and_loaded_embed_the_same(saved, tiny_backbone, mixed_items):
    backbone, folder = saved
    assert sorted(p.name for p in folder.iterdir()) == [
        "embedding",
        "gate_mlp.pt",
        "queries.pt",
        "reasoning",
        "twn_config.json",
    ]
    other = tiny_backbone(seed=2)
    gate = other.load_adapters(folder)
    assert torch.equal(gate["outer.weight"], torch.ones(1, 4))
    prompts = backbone.processor(mixed_items)
    cots = backbone.processor.encode_cots(["<answer>a</answer>"] * len(mixed_items))
    first, second = (b.embed(b.reason(prompts, cots)) for b in (backbone, other))
    assert torch.equal(first.discriminative_BD, second.discriminative_BD)
    assert torch.equal(first.generative_BD, second.generative_BD)
    assert layout.read_config(folder)["threshold"] == 0.4
    adapters, interface = layout.settings_of(folder)
    assert (adapters, interface.name) == (backbone.settings, "kv_detached")


@torch.no_grad()
def test_peft_loads_the_folders(saved, mixed_items):
    backbone, folder = saved
    model, processor = build_tiny()
    prompts = processor([mixed_items[-1]])
    loaded = PeftModel.from_pretrained(model, str(folder / "reasoning"))
    logits = loaded(input_ids=prompts.input_ids_BL, attention_mask=prompts.attention_mask_BL).logits[:, -1]
    torch.testing.assert_close(backbone.reason(prompts, want_logits=True).cot_logits_BTV[:, 0], logits)


def test_trainable_state_round_trip(tiny_backbone):
    first, second = tiny_backbone(), tiny_backbone(seed=2)
    first.add_reference()
    state = first.trainable_state()
    second.load_trainable_state(state)
    assert "reasoning_reference" in second.adapters.names
    assert all(torch.equal(v, second.trainable_state()[k]) for k, v in state.items())
    state["queries"] = state["queries"][:1]
    state["extra"] = torch.zeros(1)
    with pytest.raises(
        AdapterError, match=r"wrong shape: queries: found \(1, 64\), expected \(3, 64\); 1 unexpected: ext"
    ):
        second.load_trainable_state(state)


def test_the_reference_is_never_exported(tiny_backbone, tmp_path):
    backbone = tiny_backbone()
    backbone.add_reference()
    backbone.save_adapters(tmp_path)
    assert not (tmp_path / "reasoning_reference").exists()


@pytest.mark.parametrize("change", ["missing", "unexpected", "shape"])
def test_tensors_that_do_not_fit_are_named(saved, tiny_backbone, change):
    _, folder = saved
    path = folder / "embedding" / "adapter_model.safetensors"
    tensors = load_file(path)
    key = sorted(tensors)[0]
    if change == "missing":
        del tensors[key]
    elif change == "unexpected":
        key = "base_model.model.other"
        tensors[key] = torch.zeros(1)
    else:
        tensors[key] = tensors[key][:, :1].contiguous()
    save_file(tensors, path)
    fresh = tiny_backbone(seed=2)
    before = fresh.trainable_state()
    with pytest.raises(AdapterError, match=key.replace(".", r"\.")):
        fresh.load_adapters(folder)
    assert all(torch.equal(v, before[k]) for k, v in fresh.trainable_state().items()), "nothing is loaded by halves"


def test_unknown_folder_says_what_is_there(tiny_backbone, tmp_path):
    (tmp_path / "notes.txt").write_text("x")
    with pytest.raises(AdapterError, match=r"queries\.pt, reasoning.* missing; it holds notes\.txt"):
        tiny_backbone().load_adapters(tmp_path)
    with pytest.raises(AdapterError, match="there is no such folder"):
        tiny_backbone().load_adapters(tmp_path / "nowhere")


def test_adapters_of_another_backbone_are_refused(saved, tiny_backbone):
    _, folder = saved
    config = json.loads((folder / "twn_config.json").read_text())
    config["backbone"] = {"name": "nano", "digest": "0" * 64}
    (folder / "twn_config.json").write_text(json.dumps(config))
    with pytest.raises(AdapterError, match=r"trained for backbone 'nano'.*Set model\.name to 'nano'"):
        tiny_backbone().load_adapters(folder)


def test_other_settings_are_refused_by_name(saved, tiny_backbone):
    _, folder = saved
    with pytest.raises(AdapterError, match="pooling is mean there and last here"):
        tiny_backbone(pooling="last").load_adapters(folder)
    with pytest.raises(AdapterError, match=r"reasoning is .*'alpha': 8.* there"):
        tiny_backbone(reasoning=LoraSettings(4, 16)).load_adapters(folder)


@pytest.mark.parametrize("content", ["bare", "wrapped", "batched"])
def test_queries_of_other_known_layouts_load(saved, tiny_backbone, content):
    backbone, folder = saved
    queries = backbone.queries.detach()
    made = {"bare": queries, "wrapped": {"query_embeddings": queries}, "batched": {"queries": queries[None]}}
    torch.save(made[content], folder / "queries.pt")
    (folder / "twn_config.json").unlink()
    fresh = tiny_backbone(seed=2)
    with pytest.warns(UserWarning, match="only names and shapes"):
        fresh.load_adapters(folder)
    assert torch.equal(fresh.queries, queries)


def test_unknown_pt_layouts_say_what_they_found(saved, tiny_backbone):
    _, folder = saved
    torch.save({"q": torch.zeros(2, 2)}, folder / "queries.pt")
    with pytest.raises(AdapterError, match=r"unknown layout: found a dictionary \{q: \(2, 2\)\}; known keys: queries"):
        tiny_backbone().load_adapters(folder)
    shutil.copy(folder / "twn_config.json", folder / "queries.pt")
    with pytest.raises(AdapterError, match="cannot be read as plain tensors"):
        tiny_backbone().load_adapters(folder)


def test_digest_is_the_same_for_another_dtype_and_not_for_other_weights():
    model, _ = build_tiny()
    digest = layout.backbone_digest(model)
    assert layout.backbone_digest(build_tiny()[0].to(torch.bfloat16)) == digest
    with torch.no_grad():
        model.model.language_model.embed_tokens.weight.add_(0.1)
    assert layout.backbone_digest(model) != digest


def test_without_its_check_missing_keys_keep_their_values(saved, tiny_backbone, monkeypatch):
    backbone, folder = saved
    path = folder / "reasoning" / "adapter_model.safetensors"
    tensors = load_file(path)
    lost = sorted(tensors)[0]
    save_file({key: value for key, value in tensors.items() if key != lost}, path, {"format": "pt"})
    other = tiny_backbone(seed=2)
    with pytest.raises(AdapterError, match=r"1 missing: .* \[check adapter_keys;"):
        other.load_adapters(folder)
    monkeypatch.setenv("TWN_CHECKS", "-adapter_keys")
    name = lost.removeprefix(layout.PEFT_PREFIX)
    before = other.adapters.named_parameters("reasoning")[name].clone()
    other.load_adapters(folder)
    for key, value in other.adapters.named_parameters("reasoning").items():
        theirs = before if key == name else backbone.adapters.named_parameters("reasoning")[key]
        assert torch.equal(value, theirs)


def test_an_adapter_that_changes_nothing_is_reported(saved, tiny_backbone, caplog):
    backbone, folder = saved
    tiny_backbone().load_adapters(folder)
    assert "changes nothing" not in caplog.text
    with torch.no_grad():
        for name, parameter in backbone.adapters.named_parameters("embedding").items():
            parameter.mul_(0.0 if "lora_B" in name else 1.0)
    backbone.save_adapters(folder)
    tiny_backbone().load_adapters(folder)
    (message,) = caplog.messages
    assert f"{folder / 'embedding'} changes nothing: all 14 of its lora_B matrices are zero" in message
