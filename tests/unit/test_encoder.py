"""TWNEncoder: the five lines of the README, what its output is, where adapters may come from, and its files."""

from __future__ import annotations

import copy
import json
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import faiss
import huggingface_hub
import numpy as np
import pyarrow.parquet as pq
import pytest
import torch
from PIL import Image

import twn_lightning
from twn_lightning import TWNEncoder
from twn_lightning.backbone.encoding import encode
from twn_lightning.backbone.packaged import packaged_adapters
from twn_lightning.cli import main
from twn_lightning.data.sources import get_source
from twn_lightning.errors import AdapterError, ConfigError, DataError
from twn_lightning.evaluation.embedding_files import read_embeddings
from twn_lightning.settings import DataSettings
from twn_lightning.types import EmbeddingMode, Item


@pytest.fixture(scope="module")
def encoder() -> TWNEncoder:
    return TWNEncoder.from_pretrained("nano", device="cpu")


@pytest.fixture(scope="module")
def items() -> list[Item]:
    """Queries of the nano world: some need no step, some several."""
    return [pair.query for pair in get_source("nano", DataSettings()).pairs("test", 12)]


@pytest.fixture(scope="module")
def inputs(items: list[Item]) -> list[Any]:
    """The same as Python values."""
    return [
        {"text": item.text, "instruction": item.instruction}
        | ({"image": Image.fromarray(item.media[0].content)} if item.media else {})
        for item in items
    ]


@pytest.mark.parametrize("mode", list(EmbeddingMode))
def test_output_is_what_the_backbone_encodes(
    encoder: TWNEncoder, items: list[Item], inputs: list[Any], mode: EmbeddingMode
) -> None:
    out = encoder.encode(inputs, mode=mode.value)
    inner = encoder.item_encoder
    expected = encode(inner.backbone, items, mode, gate=inner.gate, threshold=inner.threshold)
    np.testing.assert_allclose(out.embeddings, expected.embedding_ND, atol=1e-5)
    assert (out.embeddings.dtype, out.embeddings.shape) == (np.float32, (12, encoder.dimension))
    np.testing.assert_array_equal(out.think, expected.think_N)
    np.testing.assert_array_equal(out.tokens, expected.tokens_N)
    np.testing.assert_array_equal(out.malformed, expected.malformed_N)
    assert out.cot == expected.cot_texts
    if mode is EmbeddingMode.ADAPTIVE:
        assert 0 < out.think.sum() < len(out)
        np.testing.assert_array_equal(out.think, out.probability > inner.threshold)
    else:
        assert out.probability is None
        assert out.think.all() == (mode is EmbeddingMode.GENERATIVE)


def test_a_copy_embeds_alike(encoder: TWNEncoder, inputs: list[Any]) -> None:
    found = copy.deepcopy(encoder).encode(inputs[:2])
    np.testing.assert_array_equal(found.embeddings, encoder.encode(inputs[:2]).embeddings)


def test_torch_output_holds_the_same_values(encoder: TWNEncoder, inputs: list[Any]) -> None:
    arrays, tensors = encoder.encode(inputs), encoder.encode(inputs, convert_to="torch", show_progress=True)
    for name in ("embeddings", "think", "probability", "tokens", "malformed"):
        assert isinstance(getattr(tensors, name), torch.Tensor)
        np.testing.assert_array_equal(getattr(tensors, name).numpy(), getattr(arrays, name))
    with pytest.raises(ConfigError, match="unknown kind of array 'jax'"):
        encoder.encode(inputs, convert_to="jax")


def test_a_video_embeds_alike_from_frames_in_memory_and_in_a_folder(encoder: TWNEncoder, tmp_path: Path) -> None:
    frames = np.random.default_rng(0).integers(0, 255, (4, 96, 96, 3), dtype=np.uint8)
    for index, frame in enumerate(frames):
        Image.fromarray(frame).save(tmp_path / f"{index}.png")
    out = encoder.encode([frames, tmp_path, {"video": list(frames)}, {"video": sorted(tmp_path.iterdir())}])
    np.testing.assert_allclose(out.embeddings, out.embeddings[[0, 0, 0, 0]], atol=1e-6)


def test_queries_think_by_default_and_candidates_do_not(encoder: TWNEncoder, inputs: list[Any]) -> None:
    assert encoder.encode(inputs).think.any()
    plain = encoder.encode(inputs, side="candidate")
    assert not plain.think.any()
    np.testing.assert_array_equal(plain.embeddings, encoder.encode(inputs, mode="discriminative").embeddings)
    for wrong, message in (({"mode": "fast"}, "unknown mode 'fast'"), ({"side": "left"}, "unknown side 'left'")):
        with pytest.raises(ConfigError, match=message):
            encoder.encode(inputs, **wrong)


def test_an_instruction_is_for_inputs_without_their_own(encoder: TWNEncoder) -> None:
    own = {"text": "at c3", "instruction": "Find the cell."}
    out = encoder.encode([own, "at c3"], instruction="Find the cell.")
    np.testing.assert_allclose(out.embeddings[0], out.embeddings[1], atol=1e-6)
    assert np.abs(encoder.encode(["at c3"]).embeddings - out.embeddings[1]).max() > 1e-3


def test_threshold_and_cap_may_be_chosen(inputs: list[Any]) -> None:
    eager = TWNEncoder.from_pretrained("nano", device="cpu", threshold=0.0, max_new_tokens=3, batch_size=5)
    out = eager.encode(inputs)
    assert out.think.all()
    assert out.tokens.max() == 3
    assert out.malformed.all()
    with pytest.raises(ConfigError, match="batch_size must be at least 1, it is 0"):
        TWNEncoder.from_pretrained("nano", batch_size=0)


def test_a_run_its_adapters_and_a_saved_folder_are_the_same_encoder(
    encoder: TWNEncoder, inputs: list[Any], tmp_path: Path
) -> None:
    shutil.copytree(packaged_adapters("nano"), tmp_path / "run" / "adapters")
    encoder.save_pretrained(tmp_path / "saved")
    expected = encoder.encode(inputs)
    for source in (tmp_path / "run", str(tmp_path / "run" / "adapters"), tmp_path / "saved"):
        again = TWNEncoder.from_pretrained(source, device="cpu")
        assert again.item_encoder.threshold == encoder.item_encoder.threshold
        np.testing.assert_array_equal(again.encode(inputs).embeddings, expected.embeddings)


def test_without_a_gate_nothing_is_adaptive(encoder: TWNEncoder, inputs: list[Any], tmp_path: Path) -> None:
    encoder.save_pretrained(tmp_path)
    (tmp_path / "gate_mlp.pt").unlink()
    ungated = TWNEncoder.from_pretrained(tmp_path, device="cpu")
    assert not ungated.encode(inputs).think.any()
    with pytest.raises(ConfigError, match="mode 'adaptive' needs adapters with a gate"):
        ungated.encode(inputs, mode="adaptive")


def test_embeddings_are_cut_to_trained_widths_only(encoder: TWNEncoder, inputs: list[Any], tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="cannot be cut to 32 dimensions: this encoder was trained for 160"):
        encoder.encode(inputs, truncate_dim=32)
    encoder.save_pretrained(tmp_path)
    config = json.loads((tmp_path / "twn_config.json").read_text())
    (tmp_path / "twn_config.json").write_text(json.dumps({**config, "matryoshka_dims": [32, 64]}))
    trained = TWNEncoder.from_pretrained(tmp_path, device="cpu")
    cut, whole = trained.encode(inputs, truncate_dim=32), encoder.encode(inputs).embeddings
    prefix = whole[:, :32] / np.linalg.norm(whole[:, :32], axis=1, keepdims=True)
    np.testing.assert_allclose(cut.embeddings, prefix, atol=1e-6)
    np.testing.assert_allclose(trained.encode(inputs, truncate_dim=160).embeddings, whole, atol=1e-6)
    trained.save_pretrained(tmp_path / "again")
    assert TWNEncoder.from_pretrained(tmp_path / "again", device="cpu").matryoshka_dims == (32, 64)
    cut.to_faiss(tmp_path / "index")
    assert faiss.read_index(str(tmp_path / "index" / "000001" / "index.faiss")).d == 32
    with pytest.raises(ConfigError, match="trained for 32, 64, 160"):
        trained.encode(inputs, truncate_dim=33)


def test_the_backbone_may_be_loaded_in_another_way(encoder: TWNEncoder, inputs: list[Any], tmp_path: Path) -> None:
    shutil.copytree(packaged_adapters("nano").parent, tmp_path / "weights", ignore=shutil.ignore_patterns("adapters"))
    moved = TWNEncoder.from_pretrained("nano", device="cpu", model={"path": str(tmp_path / "weights")})
    np.testing.assert_array_equal(moved.encode(inputs).embeddings, encoder.encode(inputs).embeddings)
    with pytest.raises(ConfigError, match="unknown setting of the backbone 'pat': did you mean 'path'"):
        TWNEncoder.from_pretrained("nano", model={"pat": "x"})
    with pytest.raises(AdapterError, match=r"trained for backbone 'nano'.*this one is 'micro'"):
        TWNEncoder.from_pretrained("nano", model="micro")


def test_a_repository_on_the_hub_is_downloaded(
    encoder: TWNEncoder, inputs: list[Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    encoder.save_pretrained(tmp_path)
    asked = []

    def download(repo_id: str, **options: Any) -> str:
        asked.append((repo_id, options["revision"]))
        return str(tmp_path)

    monkeypatch.setattr(huggingface_hub, "snapshot_download", download)
    loaded = TWNEncoder.from_pretrained("owner/name", revision="v1", device="cpu")
    assert asked == [("owner/name", "v1")]
    np.testing.assert_array_equal(loaded.encode(inputs).embeddings, encoder.encode(inputs).embeddings)


def test_what_is_not_there_is_named(tmp_path: Path) -> None:
    with pytest.raises(AdapterError, match=r"nanoo: there is no such folder; name one, .* or one of nano, micro"):
        TWNEncoder.from_pretrained("nanoo")
    with pytest.raises(ConfigError, match=r"nobody/nothing is no folder here and cannot be had from the Hub"):
        TWNEncoder.from_pretrained("nobody/nothing")  # offline in the tests
    (tmp_path / "notes.txt").write_text("x")
    with pytest.raises(AdapterError, match=r"no twn_config\.json in .*it holds notes\.txt"):
        TWNEncoder.from_pretrained(tmp_path)


def test_parquet_reads_back_and_makes_an_index(encoder: TWNEncoder, inputs: list[Any], tmp_path: Path) -> None:
    out = encoder.encode(inputs)
    path = out.to_parquet(tmp_path / "out")
    table = pq.read_table(path)
    np.testing.assert_array_equal(np.array(table["embedding"].to_pylist(), np.float32), out.embeddings)
    assert table["cot"].to_pylist() == out.cot
    assert table["think"].to_pylist() == out.think.tolist()
    assert table["cot_tokens"].to_pylist() == out.tokens.tolist()
    stored = read_embeddings(tmp_path / "out")
    assert stored.record["counts"]["thought"] == out.think.sum()
    with pytest.raises(ConfigError, match=r"holds embed\.json already"):
        out.to_parquet(tmp_path / "out")
    out.to_parquet(tmp_path / "out", overwrite=True)
    assert main(["search", "build", str(tmp_path / "index"), str(tmp_path / "out")]) == 0


def test_a_faiss_index_holds_the_vectors_and_answers_twn_search(
    encoder: TWNEncoder, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    texts = ["blue 3", "orange 4", "green 7"]
    out = encoder.encode([{"key": text, "text": text} for text in texts], side="candidate")
    index = out.to_faiss(tmp_path / "index")
    assert [hits[0].document.key for hits in index.search(out.embeddings)] == texts
    read = faiss.read_index(str(tmp_path / "index" / "000001" / "index.faiss"))
    np.testing.assert_array_equal(np.stack([read.reconstruct(row) for row in range(3)]), out.embeddings)
    capsys.readouterr()
    query = ["--text", "orange 4", "--mode", "discriminative", "--k", "1", "--json"]
    assert main(["search", "query", str(tmp_path / "index"), *query]) == 0
    (best,) = json.loads(capsys.readouterr().out)["results"]
    assert best["key"] == "orange 4"
    with pytest.raises(ConfigError, match="holds an index"):
        out.to_faiss(tmp_path / "index")


def test_a_broken_input_is_named(encoder: TWNEncoder, tmp_path: Path) -> None:
    (tmp_path / "broken.png").write_bytes(b"no image")
    with pytest.raises(DataError, match=r"item '1': image .*broken\.png cannot be decoded"):
        encoder.encode(["fine", tmp_path / "broken.png"])


def test_importing_the_package_imports_no_library() -> None:
    code = "import sys, twn_lightning; print([m for m in ('torch', 'transformers', 'numpy') if m in sys.modules])"
    assert subprocess.check_output([sys.executable, "-c", code], text=True).strip() == "[]"
    with pytest.raises(AttributeError, match="has no attribute 'Encoder'"):
        _ = twn_lightning.Encoder
