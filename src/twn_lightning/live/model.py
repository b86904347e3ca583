"""A run's model behind one question at a time: what the gate says, the CoT, and the neighbours without and with it."""

from __future__ import annotations

import time
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from twn_lightning.backbone.loading import adapters_folder
from twn_lightning.errors import ConfigError
from twn_lightning.evaluation.decisions import item_picture
from twn_lightning.evaluation.embedding_cache import EmbeddingCache
from twn_lightning.evaluation.encoders import get_encoder
from twn_lightning.evaluation.encoders.twn import AdaptiveEncoder
from twn_lightning.live.corpus import Corpus, Neighbour, encode_corpus, run_candidates
from twn_lightning.live.limits import Limits
from twn_lightning.live.question import Question, item_of
from twn_lightning.reporting.page import bounded
from twn_lightning.reporting.thumbnails import picture_address
from twn_lightning.run import RunFolder
from twn_lightning.settings import Settings
from twn_lightning.types import EmbeddingMode, Side

NEIGHBOURS = 8
PICTURE_SIDE = 96


@dataclass(frozen=True)
class RunModel:
    """A run's encoder and its candidates.

    Args:
        encoder: with the run's adapters; without a gate there is no decision to show.
        corpus: the candidates.
        limits: of questions.
    """

    encoder: AdaptiveEncoder
    corpus: Corpus
    limits: Limits = field(default_factory=Limits)

    def answer(self, question: Question) -> dict[str, Any]:
        """What the model makes of a question, as plain values.

        The question is read twice, without and with a CoT, whatever the gate decides: both sides can be compared, and
        each is timed.

        Args:
            question: from `read_question`.

        Returns:
            probability, threshold and think (None without a gate), cot, malformed, tokens of prompt and CoT, seconds
            and neighbours of both modes.

        Raises:
            DataError: media that cannot be read, or a text that holds a special token.
        """
        encoder, gated = self.encoder, self.encoder.gate is not None
        with item_of(question, encoder.backbone.processor.max_frames, self.limits) as item:
            started = time.perf_counter()
            plain = (
                encoder.decide([item], Side.QUERY)
                if gated
                else encoder.encode([item], Side.QUERY, EmbeddingMode.DISCRIMINATIVE)
            )
            decided = time.perf_counter()
            thought = encoder.encode([item], Side.QUERY, EmbeddingMode.GENERATIVE)
            done = time.perf_counter()
            prompt_tokens = int(encoder.backbone.processor([item]).attention_mask_BL.sum())
        # Compared in float32, as the encoder does.
        think_above = np.float32(encoder.threshold).item()
        probability = None if plain.probability_N is None else float(plain.probability_N[0])
        assert thought.tokens_N is not None
        assert thought.malformed_N is not None
        return {
            "probability": probability,
            "threshold": encoder.threshold if gated else None,
            "think": None if probability is None else probability > think_above,
            "cot": bounded(thought.cots[0] or ""),
            "malformed": bool(thought.malformed_N[0]),
            "tokens": {"prompt": prompt_tokens, "cot": int(thought.tokens_N[0])},
            "seconds": {"discriminative": decided - started, "generative": done - decided},
            "neighbours": {
                "discriminative": self._neighbours(plain.embedding_ND[0], question.task),
                "generative": self._neighbours(thought.embedding_ND[0], question.task),
            },
        }

    def _neighbours(self, query_D: np.ndarray, task: str | None) -> list[dict[str, Any]]:
        return [_plain(neighbour) for neighbour in self.corpus.nearest(query_D, task, NEIGHBOURS)]


def _plain(neighbour: Neighbour) -> dict[str, Any]:
    item = neighbour.item
    pixels = item_picture(item)
    return {
        "key": item.key,
        "text": bounded(item.text),
        "score": neighbour.score,
        "picture": None if pixels is None else picture_address(pixels, PICTURE_SIDE),
    }


def load_run_model(folder: Path, device: str, *, limit: int, limits: Limits) -> RunModel:
    """The model of a run folder with its candidates encoded.

    Args:
        folder: of a training, whose own adapters are used, or of an evaluation, whose adapters it names.
        device: where the backbone goes.
        limit: candidates, at most.
        limits: of questions.

    Raises:
        CheckpointError: not a run folder.
        ConfigError: a run of another encoder than TWN, or one without candidates.
        AdapterError: its adapters are gone or incomplete.
    """
    run = RunFolder(folder)
    settings = run.settings()
    if settings.task.encoder != "twn":
        raise ConfigError(
            f"{folder} evaluated the encoder '{settings.task.encoder}', which has no gate and no CoT to inspect; name "
            "a run of `twn train`, or of `twn evaluate` with task.encoder=twn"
        )
    encoder = get_encoder(
        "twn",
        model=settings.model,
        adapters_path=_adapters_of(run, settings),
        device=device,
        max_new_tokens=settings.data.max_new_tokens,
        batch_size=settings.evaluation.batch_size,
        threshold=settings.gate.threshold,
        exit_tolerance=settings.evaluation.exit_tolerance,
    )
    assert isinstance(encoder, AdaptiveEncoder)
    candidates, mode = run_candidates(settings)
    cache = EmbeddingCache(settings.task.cache_root, settings.task.cache)
    return RunModel(encoder, encode_corpus(encoder, candidates, mode, limit=limit, cache=cache), limits)


def _adapters_of(run: RunFolder, settings: Settings) -> str | None:
    """The run's own adapters, else those that it names.

    A relative path counts from where the run was started. That may be another folder than this process is in, but one
    of those above the run.
    """
    named = settings.adapters.init_from
    if run.adapters.is_dir():
        return str(run.adapters)
    if named is None or adapters_folder(named).is_dir():
        return named
    above = (folder / named for folder in run.path.resolve().parents)
    return next((str(path) for path in above if path.is_dir()), named)
