"""`twn export`: the released layout with a card, loaded back as the same encoder; pushing; what is refused."""

from __future__ import annotations

import inspect
import json
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import huggingface_hub
import numpy as np
import pytest
import torch
import yaml
from safetensors.torch import load_file

from twn_lightning.backbone.loading import model_of
from twn_lightning.cli import main
from twn_lightning.encoder import TWNEncoder
from twn_lightning.errors import AdapterError, ConfigError, DataError
from twn_lightning.interop.export import export_model, push_to_hub

REAL_API = huggingface_hub.HfApi
TEXTS = ["blue 3", "at c3", "start a3 follow 3"]


def test_an_export_is_the_same_encoder(gate_run: Path, tmp_path: Path) -> None:
    folder = export_model(gate_run, tmp_path / "out")
    assert sorted(path.name for path in folder.iterdir()) == [
        "README.md",
        "config_sentence_transformers.json",
        "embedding",
        "gate_mlp.pt",
        "modules.json",
        "queries.pt",
        "reasoning",
        "twn_config.json",
        "twn_module.json",
    ]
    before, after = (TWNEncoder.from_pretrained(source, device="cpu") for source in (gate_run, folder))
    np.testing.assert_array_equal(before.encode(TEXTS).embeddings, after.encode(TEXTS).embeddings)
    assert after.item_encoder.threshold == before.item_encoder.threshold
    for name in ("reasoning", "embedding"):
        ours, theirs = (f / name / "adapter_model.safetensors" for f in (gate_run / "adapters", folder))
        assert ours.read_bytes() == theirs.read_bytes()


def test_the_card_gives_data_numbers_commands_and_licence(gate_run: Path, evaluation: Path, tmp_path: Path) -> None:
    folder = export_model(gate_run, tmp_path / "mine", evaluation=evaluation, licence="mit")
    card = (folder / "README.md").read_text(encoding="utf-8")
    _, header, body = card.split("---\n", 2)
    assert yaml.safe_load(header)["license"] == "mit"
    assert "base_model" not in yaml.safe_load(header), "nano is on no Hub"
    for part in (
        "# mine",
        'TWNEncoder.from_pretrained("mine")',
        "4,000 held-out queries of nano",
        "| adaptive | 93.6 | 93.2 to 94.0 | 9.6 | 40 % |",
        "| never | 68.2 | 93.2 to 94.0 | 9.6 | 0 % |",
        "-0.2 points (-0.4 to +0.0)",
        "| sft | nano, 24,000 pairs | val/hit@1_generative 0.010 -> 0.950 |",
        "| gate | nano, 2,000 pairs | gate/auroc 0.500 -> 0.970 |",
        "twn train experiment=nano_sft\n",
        "twn train stage=gate adapters.init_from=PATH gate.price=.3\n",
        "| added parameters | 46.5 % of the language model |",
        "| LoRA `reasoning` | r 16, alpha 32 |",
    ):
        assert part in body
    written = "".join(path.read_text(encoding="utf-8") for path in folder.rglob("*") if path.suffix in (".md", ".json"))
    assert str(tmp_path) not in written, "an export says nothing of the machine it was made on"


def test_without_runs_the_card_says_so(tmp_path: Path) -> None:
    card = (export_model("nano", tmp_path / "out") / "README.md").read_text(encoding="utf-8")
    assert "Not evaluated." in card
    assert "run folders of the training were not at hand" in card


def test_adapters_of_a_hub_backbone_name_it(gate_run: Path, tmp_path: Path) -> None:
    path = gate_run / "adapters" / "twn_config.json"
    config = json.loads(path.read_text())
    config["backbone"]["name"] = "qwen3vl_4b"
    path.write_text(json.dumps(config))
    folder = export_model(gate_run, tmp_path / "out")
    header = (folder / "README.md").read_text(encoding="utf-8").split("---\n")[1]
    assert yaml.safe_load(header)["base_model"] == "Qwen/Qwen3-VL-4B-Instruct"
    for name in ("reasoning", "embedding"):
        peft = json.loads((folder / name / "adapter_config.json").read_text())
        assert peft["base_model_name_or_path"] == "Qwen/Qwen3-VL-4B-Instruct"


def test_what_is_in_the_way_stays(gate_run: Path, tmp_path: Path) -> None:
    folder = export_model(gate_run, tmp_path / "out", mode="generative")
    with pytest.raises(ConfigError, match="holds an earlier export"):
        export_model(gate_run, folder)
    export_model(gate_run, folder, overwrite=True)
    assert json.loads((folder / "twn_module.json").read_text())["mode"] is None
    (tmp_path / "notes").mkdir()
    (tmp_path / "notes" / "a.txt").write_text("x")
    with pytest.raises(ConfigError, match="is not empty and no earlier export"):
        export_model(gate_run, tmp_path / "notes", overwrite=True)
    with pytest.raises(ConfigError, match="holds the adapters that are to be exported"):
        export_model(gate_run, gate_run / "adapters", overwrite=True)
    assert (gate_run / "adapters" / "queries.pt").is_file()


def test_what_does_not_fit_is_refused(gate_run: Path, evaluation: Path, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="unknown mode 'adaptiv'"):
        export_model(gate_run, tmp_path / "out", mode="adaptiv")
    with pytest.raises(DataError, match=r"holds no summary\.json: name a run of `twn evaluate`"):
        export_model(gate_run, tmp_path / "out", evaluation=tmp_path)
    summary = json.loads((evaluation / "summary.json").read_text())
    (evaluation / "summary.json").write_text(json.dumps(summary | {"threshold": 0.9}))
    with pytest.raises(DataError, match=r"of other adapters: its gate's threshold is 0\.9000"):
        export_model(gate_run, tmp_path / "out", evaluation=evaluation)
    (gate_run / "adapters" / "gate_mlp.pt").unlink()
    with pytest.raises(ConfigError, match="mode 'adaptive' needs a gate"):
        export_model(gate_run, tmp_path / "out", mode="adaptive")
    (gate_run / "adapters" / "embedding" / "adapter_model.safetensors").unlink()
    with pytest.raises(AdapterError, match=r"embedding/adapter_model\.safetensors missing"):
        export_model(gate_run, tmp_path / "out")
    assert not (tmp_path / "out").exists()


class FakeHub:
    """The two calls of `HfApi` that a push makes, held to the real one's signatures."""

    calls: list[tuple[str, dict[str, Any]]]
    refuses: bool = False

    def create_repo(self, repo_id: str, **options: Any) -> None:
        if self.refuses:
            raise OSError("401 Unauthorized: invalid credentials\nmore")
        self._record("create_repo", {"repo_id": repo_id, **options})

    def upload_folder(self, **options: Any) -> SimpleNamespace:
        self._record("upload_folder", options)
        return SimpleNamespace(commit_url=f"https://hub/{options['repo_id']}/commit/1")

    def _record(self, name: str, options: dict[str, Any]) -> None:
        inspect.signature(getattr(REAL_API, name)).bind(self, **options)
        self.calls.append((name, options))


@pytest.fixture
def hub(monkeypatch: pytest.MonkeyPatch) -> FakeHub:
    made = FakeHub()
    made.calls = []
    monkeypatch.setattr(huggingface_hub, "HfApi", lambda: made)
    return made


def test_a_push_makes_the_repository_and_uploads(
    hub: FakeHub, gate_run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = tmp_path / "out"
    assert main(["export", str(gate_run), "--to", str(folder), "--push", "owner/name", "--private"]) == 0
    assert "https://hub/owner/name/commit/1" in capsys.readouterr().out
    (made, first), (uploaded, second) = hub.calls
    assert (made, first) == ("create_repo", {"repo_id": "owner/name", "private": True, "exist_ok": True})
    assert (uploaded, second["repo_id"], second["folder_path"]) == ("upload_folder", "owner/name", folder)
    assert 'from_pretrained("owner/name")' in (folder / "README.md").read_text(encoding="utf-8")


def test_offline_a_push_says_what_is_written(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"is written, but owner/name cannot be pushed to: .*offline"):
        push_to_hub(tmp_path, "owner/name")


def test_a_refused_push_says_how_to_go_on(hub: FakeHub, tmp_path: Path) -> None:
    hub.refuses = True
    with pytest.raises(ConfigError, match=r"owner/name cannot be pushed to: 401.*credentials\. Log in with `hf auth"):
        push_to_hub(tmp_path, "owner/name")


@pytest.fixture
def released(gate_run: Path) -> Path:
    """A folder as the authors release theirs: without our settings, and PEFT names the backbone."""
    folder = gate_run / "adapters"
    (folder / "twn_config.json").unlink()
    for name in ("reasoning", "embedding"):
        path = folder / name / "adapter_config.json"
        config = json.loads(path.read_text())
        path.write_text(json.dumps(config | {"base_model_name_or_path": "Qwen/Qwen3-VL-4B-Instruct"}))
    return folder


def test_a_released_folder_loads_without_our_settings(released: Path, tmp_path: Path) -> None:
    found = model_of(released)
    assert (found.name, found.dtype) == ("qwen3vl_4b", "bfloat16")
    with pytest.warns(UserWarning, match="only names and shapes can be checked"):
        loaded = TWNEncoder.from_pretrained(released, model="nano", device="cpu", threshold=0.3265317231416702)
    expected = TWNEncoder.from_pretrained("nano", device="cpu").encode(TEXTS)
    np.testing.assert_array_equal(loaded.encode(TEXTS).embeddings, expected.embeddings)
    folder = export_model(released, tmp_path / "out")
    assert load_file(folder / "reasoning" / "adapter_model.safetensors").keys()
    assert not (folder / "twn_config.json").exists()


@pytest.mark.filterwarnings("ignore:.*only names and shapes")
def test_unknown_inner_layouts_are_described(released: Path) -> None:
    torch.save({"net.0.weight": torch.zeros(8, 320), "net.0.bias": torch.zeros(8)}, released / "gate_mlp.pt")
    with pytest.raises(AdapterError, match=r"found net\.0\.weight \(8, 320\), net\.0\.bias \(8,\)"):
        TWNEncoder.from_pretrained(released, model="nano", device="cpu")
    torch.save({"query": torch.zeros(8, 160)}, released / "queries.pt")
    with pytest.raises(AdapterError, match=r"unknown layout: found a dictionary \{query: \(8, 160\)\}"):
        TWNEncoder.from_pretrained(released, model="nano", device="cpu")
