"""The packaged backbones, those of this installation as they are; and what is said of one that is missing."""

from __future__ import annotations

import json
import shutil
import subprocess
from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from twn_lightning.backbone import packaged
from twn_lightning.backbone.layout import read_config
from twn_lightning.backbone.loading import adapters_folder, load_backbone, load_processor
from twn_lightning.backbone.packaged import (
    ASSETS,
    PACKAGED,
    altered_files,
    default_adapters,
    packaged_adapters,
    packaged_backbone,
    write_digests,
)
from twn_lightning.data.nano import world
from twn_lightning.data.nano.backbones import SHAPES, new_backbone
from twn_lightning.doctor import assets
from twn_lightning.errors import ConfigError
from twn_lightning.evaluation.encoders.twn import load_trained
from twn_lightning.settings import AdapterSettings, InterfaceSettings, ModelSettings

INSTALLED = [name for name, folder in PACKAGED.items() if (folder / "model.safetensors").is_file()]


@pytest.fixture
def micro(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An installation in which micro has random weights and no adapters."""
    model, processor = new_backbone("micro", 0)
    model.save_pretrained(tmp_path)
    processor.save(tmp_path)
    monkeypatch.setitem(PACKAGED, "micro", tmp_path)
    return tmp_path


def test_every_shape_can_be_packaged_and_nano_is() -> None:
    assert PACKAGED.keys() == SHAPES.keys()
    assert "nano" in INSTALLED


@pytest.mark.parametrize("name", INSTALLED)
def test_an_installed_backbone_is_what_its_record_and_its_card_say(name: str) -> None:
    backbone = load_backbone(ModelSettings(name=name), AdapterSettings(), InterfaceSettings())
    text, shape = backbone.model.config.text_config, SHAPES[name]
    assert (text.num_hidden_layers, text.hidden_size) == (shape.layers, shape.hidden)
    record = json.loads((packaged_backbone(name) / "pretraining.json").read_text())
    frozen = sum(p.numel() for key, p in backbone.model.named_parameters() if "lora_" not in key)
    assert record["parameters"] == frozen
    assert f"{frozen:,} parameters" in (packaged_backbone(name) / "README.md").read_text()


@pytest.mark.parametrize("name", INSTALLED)
def test_installed_backbones_read_the_same_prompts(name: str) -> None:
    item = world.picture_candidate("red 7", "train", 0)
    own, nano = (load_processor(ModelSettings(name=each)) for each in (name, "nano"))
    assert own.render(item) == nano.render(item)
    assert own.patches == nano.patches


@pytest.mark.parametrize("name", INSTALLED)
def test_packaged_adapters_are_for_their_backbone(name: str) -> None:
    folder = PACKAGED[name] / "adapters"
    if name == "nano" or folder.exists():
        assert read_config(packaged_adapters(name))["backbone"]["name"] == name
        assert load_trained(ModelSettings(name=name))[0].name == name
    else:
        with pytest.raises(ConfigError, match=f"'{name}' has no packaged adapters"):
            packaged_adapters(name)


def test_a_backbone_loads_by_its_name(micro: Path) -> None:
    by_name, by_path = (
        load_backbone(model, AdapterSettings(), InterfaceSettings())
        for model in (ModelSettings(name="micro"), ModelSettings(name="qwen3vl_2b", path=str(micro)))
    )
    assert by_name.name == "micro"
    assert by_name.digest == by_path.digest
    prompts = by_name.processor([world.picture_candidate("red 7", "train", 0)])
    with torch.no_grad():
        assert by_name.reason(prompts).last_hidden_BD.shape == (1, SHAPES["micro"].hidden)


def test_adapters_load_by_the_name_of_their_backbone(micro: Path) -> None:
    model = ModelSettings(name="micro")
    trained = load_backbone(model, AdapterSettings(), InterfaceSettings())
    with torch.no_grad():
        trained.queries.add_(1.0)
    trained.save_adapters(micro / "adapters")
    started = load_backbone(model, AdapterSettings(init_from="micro"), InterfaceSettings())
    torch.testing.assert_close(started.queries, trained.queries)
    backbone, gate, _ = load_trained(model)
    torch.testing.assert_close(backbone.queries, trained.queries)
    assert gate is None


def test_a_backbone_without_adapters_says_how_to_get_some(micro: Path) -> None:
    with pytest.raises(ConfigError, match=r"'micro' has no packaged adapters.*there are some for nano.*model=micro"):
        load_backbone(ModelSettings(name="micro"), AdapterSettings(init_from="micro"), InterfaceSettings())
    with pytest.raises(ConfigError, match="'micro' has no packaged adapters"):
        load_trained(ModelSettings(name="micro"))


def test_a_missing_backbone_says_how_to_get_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(PACKAGED, "micro", tmp_path / "micro")
    missing = r"'micro' is missing.*pretrain --size micro"
    with pytest.raises(ConfigError, match=missing):
        load_processor(ModelSettings(name="micro"))
    with pytest.raises(ConfigError, match=missing):
        load_backbone(ModelSettings(name="micro"), AdapterSettings(), InterfaceSettings())
    found = {finding.subject: finding for finding in assets()}
    assert found["nano backbone"].good
    assert not found["micro backbone"].good
    assert "pretrain --size micro" in found["micro backbone"].remedy
    assert "model=micro" in found["micro adapters"].remedy


def test_whose_adapters_are_the_default() -> None:
    assert [default_adapters(name) for name in ("nano", "micro")] == ["nano", "micro"]
    assert [default_adapters(name) for name in (None, "tiny", "qwen3vl_4b")] == ["nano"] * 3


def test_a_folder_of_a_packaged_name_needs_a_path(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "nano").mkdir()
    assert adapters_folder("nano") == PACKAGED["nano"] / "adapters"
    assert adapters_folder("./nano").resolve() == tmp_path / "nano"


def test_every_packaged_file_has_its_recorded_digest() -> None:
    recorded = {line.split("  ", 1)[1] for line in packaged.DIGESTS.read_text().splitlines()}
    files = {path.relative_to(ASSETS).as_posix() for path in ASSETS.rglob("*") if path.is_file()}
    assert {name for name in files if not name.endswith(".md")} == recorded
    for folder in PACKAGED.values():
        assert altered_files(folder) == []


@pytest.mark.parametrize(
    ("name", "load"),
    [
        ("nano/model.safetensors", lambda: packaged_backbone("nano")),
        ("nano/tokenizer.json", lambda: load_processor(ModelSettings(name="nano"))),
        ("nano/adapters/embedding/adapter_model.safetensors", lambda: adapters_folder("nano")),
    ],
)
def test_an_altered_file_is_not_loaded(
    name: str, load: Callable[[], object], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    shutil.copytree(ASSETS, tmp_path / "assets")
    monkeypatch.setattr(packaged, "ASSETS", tmp_path / "assets")
    monkeypatch.setitem(PACKAGED, "nano", tmp_path / "assets" / "nano")
    content = bytearray((tmp_path / "assets" / name).read_bytes())
    content[-1] ^= 1
    (tmp_path / "assets" / name).write_bytes(content)
    with pytest.raises(ConfigError, match=f"1 of the packaged files.*: {name}. Install the package again"):
        load()
    found = {finding.subject: finding for finding in assets()}
    assert not found["nano backbone"].good
    assert name in found["nano backbone"].found


def test_digests_are_recorded_as_sha256sum_does(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(packaged, "DIGESTS", tmp_path / "packaged.sha256")
    write_digests()
    done = subprocess.run(
        ["sha256sum", "--check", "--quiet", packaged.DIGESTS], cwd=ASSETS, capture_output=True, text=True, check=False
    )
    assert (done.returncode, done.stdout, done.stderr) == (0, "", "")
