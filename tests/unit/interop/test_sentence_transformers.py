"""An export in sentence-transformers: the vectors of TWNEncoder in every mode, and back."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from sentence_transformers import SentenceTransformer

from twn_lightning.backbone.packaged import packaged_backbone
from twn_lightning.data.sources import get_source
from twn_lightning.encoder import TWNEncoder
from twn_lightning.errors import ConfigError, DataError
from twn_lightning.interop.export import export_model
from twn_lightning.settings import DataSettings

PROMPT = "Find the cell."


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return export_model("nano", tmp_path_factory.mktemp("export") / "nano")


@pytest.fixture(scope="module")
def model(folder: Path) -> SentenceTransformer:
    return SentenceTransformer(str(folder), trust_remote_code=True, device="cpu")


@pytest.fixture(scope="module")
def encoder(folder: Path) -> TWNEncoder:
    return TWNEncoder.from_pretrained(folder, device="cpu")


@pytest.fixture(scope="module")
def picture() -> Image.Image:
    pair = next(iter(get_source("nano", DataSettings()).pairs("test", 1)))
    return Image.fromarray(pair.query.media[0].content)


@pytest.fixture(scope="module")
def inputs(picture: Image.Image) -> list[Any]:
    """Text, an image, both, and videos."""
    question = "start a3 follow 3"
    frames = np.stack([np.asarray(picture)] * 4)
    return [question, picture, {"text": question, "image": picture}, {"video": frames}, {"text": "x", "video": frames}]


@pytest.mark.parametrize("mode", ["discriminative", "generative", "adaptive"])
def test_vectors_are_those_of_twn_encoder(
    model: SentenceTransformer, encoder: TWNEncoder, inputs: list[Any], mode: str
) -> None:
    expected = encoder.encode(inputs, mode=mode, instruction=PROMPT)
    np.testing.assert_allclose(model.encode(inputs, prompt=PROMPT, mode=mode), expected.embeddings, atol=1e-5)
    rows = model.encode(inputs, prompt=PROMPT, mode=mode, output_value=None)
    assert [bool(row["think"]) for row in rows] == expected.think.tolist()
    assert [int(row["cot_tokens"]) for row in rows] == expected.tokens.tolist()
    if mode == "adaptive":
        assert 0 < expected.think.sum() < len(inputs)


def test_queries_and_documents_are_told_apart(
    model: SentenceTransformer, encoder: TWNEncoder, inputs: list[Any]
) -> None:
    queries, documents = model.encode_query(inputs), model.encode_document(inputs)
    np.testing.assert_allclose(queries, encoder.encode(inputs, side="query").embeddings, atol=1e-5)
    np.testing.assert_allclose(documents, encoder.encode(inputs, side="candidate").embeddings, atol=1e-5)
    assert np.abs(queries - documents).max() > 1e-3
    torch.testing.assert_close(model.similarity(queries, documents).numpy(), queries @ documents.T, atol=1e-5, rtol=0)
    assert model.get_embedding_dimension() == encoder.dimension


def test_exported_modes_decide(folder: Path, tmp_path: Path, encoder: TWNEncoder) -> None:
    other = export_model(folder, tmp_path / "other", mode="discriminative", document_mode="generative")
    model = SentenceTransformer(str(other), trust_remote_code=True, device="cpu")
    texts = ["start a3 follow 3"]
    np.testing.assert_allclose(model.encode(texts), encoder.encode(texts, mode="discriminative").embeddings, atol=1e-5)
    found = model.encode_document(texts)
    np.testing.assert_allclose(found, encoder.encode(texts, mode="generative").embeddings, atol=1e-5)
    with pytest.raises(ConfigError, match="unknown mode 'fast'"):
        model.encode(texts, mode="fast")


def test_a_saved_model_loads_back_as_twn_encoder(
    model: SentenceTransformer, encoder: TWNEncoder, inputs: list[Any], tmp_path: Path
) -> None:
    model.save(str(tmp_path))
    back = TWNEncoder.from_pretrained(tmp_path, device="cpu")
    assert back.item_encoder.threshold == encoder.item_encoder.threshold
    np.testing.assert_allclose(back.encode(inputs).embeddings, encoder.encode(inputs).embeddings, atol=1e-5)
    again = SentenceTransformer(str(tmp_path), trust_remote_code=True, device="cpu")
    np.testing.assert_allclose(again.encode(inputs), model.encode(inputs), atol=1e-5)


def test_paths_messages_and_video_dictionaries_are_read(
    model: SentenceTransformer, picture: Image.Image, tmp_path: Path
) -> None:
    picture.save(tmp_path / "picture.png")
    question = "start a3 follow 3"
    message = [
        {"role": "system", "content": PROMPT},
        {"role": "user", "content": [{"type": "image", "image": picture}, {"type": "text", "text": question}]},
    ]
    frames = np.stack([np.asarray(picture)] * 2)
    clip = {"array": frames, "video_metadata": None}
    found = model.encode([str(tmp_path / "picture.png"), clip, {"video": clip}, message])
    expected = model.encode([picture, {"video": frames}, {"video": frames}])
    np.testing.assert_allclose(found[:3], expected, atol=1e-5)
    asked = model.encode([{"text": question, "image": picture}], prompt=PROMPT)
    np.testing.assert_allclose(found[3:], asked, atol=1e-5)
    with pytest.raises(DataError, match="is an address, and nothing is downloaded"):
        model.encode("https://example.org/a.png")
    with pytest.raises(DataError, match="a message holds 'audio'"):
        model.encode([[{"role": "user", "content": [{"type": "audio", "audio": frames}]}]])


def test_other_weights_of_the_backbone_may_be_named(folder: Path, tmp_path: Path, encoder: TWNEncoder) -> None:
    options = {"path": str(packaged_backbone("nano")), "max_frames": 4}
    model = SentenceTransformer(str(folder), trust_remote_code=True, device="cpu", model_kwargs=options)
    assert model[0].encoder.item_encoder.backbone.processor.max_frames == 4
    np.testing.assert_allclose(model.encode(["at c3"]), encoder.encode(["at c3"]).embeddings, atol=1e-5)
