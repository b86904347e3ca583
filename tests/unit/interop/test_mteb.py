"""TWN inside mteb: its own tasks run offline on the nano world, and score what our metrics score."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import mteb
import numpy as np
import pytest
import torch
from datasets import Dataset, DatasetDict
from mteb.abstasks.retrieval import AbsTaskRetrieval
from mteb.abstasks.retrieval_dataset_loaders import RetrievalSplitData
from mteb.abstasks.sts import AbsTaskSTS
from mteb.abstasks.task_metadata import TaskMetadata
from mteb.models import EncoderProtocol
from mteb.types import PromptType
from PIL import Image
from scipy.stats import spearmanr

from twn_lightning.data.sources import get_source
from twn_lightning.encoder import TWNEncoder
from twn_lightning.errors import ConfigError
from twn_lightning.interop.mteb import MTEBEncoder
from twn_lightning.metrics.ranking import hit_at_k, ndcg_linear_at_k
from twn_lightning.settings import DataSettings
from twn_lightning.types import Pair

COMMON: dict[str, Any] = {
    "description": "Cells of the nano world",
    "reference": None,
    "dataset": {"path": "local", "revision": "1"},
    "eval_splits": ["test"],
    "eval_langs": ["eng-Latn"],
    "date": ("2026-01-01", "2026-01-01"),
    "dialect": [],
    "domains": [],
    "task_subtypes": [],
    "license": "cc-by-4.0",
    "annotations_creators": "derived",
    "sample_creation": "created",
    "bibtex_citation": "",
}
INSTRUCTION = "Find the cell."


def find_pairs() -> list[Pair]:
    """Pairs of the task whose queries are a picture with a question and whose targets are texts."""
    pairs = get_source("nano", DataSettings()).pairs("test", 60)
    return [pair for pair in pairs if pair.query.instruction == INSTRUCTION and not pair.positive.media]


class FindCell(AbsTaskRetrieval):
    """A picture and a question to the text of a cell."""

    metadata = TaskMetadata(
        name="FindCell",
        type="Any2AnyRetrieval",
        category="it2t",
        modalities=["image", "text"],
        main_score="ndcg_at_10",
        prompt={"query": INSTRUCTION},
        **COMMON,
    )

    def load_data(self, num_proc: int | None = None, **kwargs: Any) -> None:
        pairs = find_pairs()
        texts = sorted({pair.positive.text for pair in pairs})
        queries = {
            "id": [f"q{row}" for row in range(len(pairs))],
            "text": [pair.query.text for pair in pairs],
            "image": [picture(pair) for pair in pairs],
        }
        corpus = {"id": [f"d{row}" for row in range(len(texts))], "text": texts}
        relevant = {f"q{row}": {f"d{texts.index(pair.positive.text)}": 1} for row, pair in enumerate(pairs)}
        split = RetrievalSplitData(
            corpus=Dataset.from_dict(corpus),
            queries=Dataset.from_dict(queries),
            relevant_docs=relevant,
            top_ranked=None,
        )
        self.dataset = {"default": {"test": split}}
        self.data_loaded = True


class SameCell(AbsTaskSTS):
    """Two texts of cells: 1.5 where they are equal, .5 where their colours are."""

    metadata = TaskMetadata(
        name="SameCell",
        type="STS",
        category="t2t",
        modalities=["text"],
        main_score="cosine_spearman",
        **COMMON,
    )

    def load_data(self, num_proc: int | None = None, **kwargs: Any) -> None:
        first, second, scores = self.columns()
        rows = Dataset.from_dict({"sentence1": first, "sentence2": second, "score": scores})
        self.dataset = {"default": DatasetDict({"test": rows})}
        self.data_loaded = True

    @staticmethod
    def columns() -> tuple[list[str], list[str], list[float]]:
        first = [pair.positive.text for pair in find_pairs()]
        second = [first[row // 2] for row in range(len(first))]
        scores = [float(a == b) + 0.5 * (a.split()[0] == b.split()[0]) for a, b in zip(first, second, strict=True)]
        return first, second, scores


def picture(pair: Pair) -> Image.Image:
    return Image.fromarray(pair.query.media[0].content)


@pytest.fixture(scope="module")
def encoder() -> TWNEncoder:
    return TWNEncoder.from_pretrained("nano", device="cpu")


def scores_of(model: MTEBEncoder, task: Any) -> dict[str, Any]:
    result = mteb.evaluate(model, task, cache=None, show_progress_bar=False, co2_tracker=False)
    found: dict[str, Any] = result.task_results[0].scores["test"][0]
    return found


@pytest.mark.parametrize("mode", ["discriminative", "adaptive"])
def test_retrieval_by_picture_and_question_scores_as_our_metrics(encoder: TWNEncoder, mode: str) -> None:
    scores = scores_of(MTEBEncoder(encoder, mode=mode), FindCell())
    pairs = find_pairs()
    texts = sorted({pair.positive.text for pair in pairs})
    inputs = [{"text": pair.query.text, "image": picture(pair)} for pair in pairs]
    queries = encoder.encode(inputs, mode=mode, instruction=INSTRUCTION).embeddings
    documents = encoder.encode(texts, side="candidate").embeddings
    scores_QC = queries @ documents.T
    relevance_QC = np.array([[text == pair.positive.text for text in texts] for pair in pairs])
    assert scores["ndcg_at_10"] == pytest.approx(ndcg_linear_at_k(scores_QC, relevance_QC, 10).mean(), abs=1e-5)
    hits = hit_at_k(scores_QC, relevance_QC).mean()
    assert scores["hit_rate_at_1"] == pytest.approx(hits, abs=1e-5)
    assert (hits > 0.9) == (mode == "adaptive")


def test_similarity_of_texts_scores_as_the_cosine_of_ours(encoder: TWNEncoder) -> None:
    model = MTEBEncoder(encoder)
    assert isinstance(model, EncoderProtocol)
    task = SameCell()
    scores = scores_of(model, task)
    *texts, truth = task.columns()
    first, second = (encoder.encode(column, instruction=task.abstask_prompt).embeddings for column in texts)
    assert scores["cosine_spearman"] == pytest.approx(spearmanr((first * second).sum(1), truth).statistic, abs=1e-5)


def test_instructions_go_to_queries_and_to_documents_that_have_one(encoder: TWNEncoder) -> None:
    model = MTEBEncoder(encoder)
    batch = [{"text": ["at c3 Only blue."], "query": ["at c3"], "instruction": ["Only blue."]}]
    described = SimpleNamespace(name="x", type="Retrieval", prompt={"query": INSTRUCTION, "document": "A cell."})

    def embed(batches: list[dict[str, Any]], side: PromptType) -> np.ndarray:
        return model.encode(batches, task_metadata=described, hf_split="test", hf_subset="d", prompt_type=side)

    own = encoder.encode([{"text": "at c3", "instruction": "Only blue."}]).embeddings
    np.testing.assert_allclose(embed(batch, PromptType.query), own, atol=1e-6)
    plain = [{"text": ["blue 3"]}]
    document = encoder.encode(["blue 3"], side="candidate", instruction="A cell.").embeddings
    np.testing.assert_allclose(embed(plain, PromptType.document), document, atol=1e-6)
    described.prompt = INSTRUCTION
    document = encoder.encode(["blue 3"], side="candidate").embeddings
    np.testing.assert_allclose(embed(plain, PromptType.document), document, atol=1e-6)


def test_decoded_videos_are_sampled(encoder: TWNEncoder) -> None:
    frames = torch.randint(0, 255, (20, 3, 96, 96), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
    decoder = SimpleNamespace(
        metadata=SimpleNamespace(num_frames=20), get_frames_at=lambda rows: SimpleNamespace(data=frames[rows])
    )
    task = SimpleNamespace(name="x", type="VideoRetrieval", prompt="Find it.")
    found = MTEBEncoder(encoder).encode(
        [{"video": [decoder]}], task_metadata=task, hf_split="test", hf_subset="d", prompt_type=PromptType.document
    )
    expected = encoder.encode([frames[[0, 2, 5, 8, 10, 13, 16, 19]]], side="candidate").embeddings
    np.testing.assert_allclose(found, expected, atol=1e-6)


def test_unknown_modes_are_refused(encoder: TWNEncoder) -> None:
    with pytest.raises(ConfigError, match="unknown mode 'adaptiv': did you mean 'adaptive'"):
        MTEBEncoder(encoder, mode="adaptiv")
