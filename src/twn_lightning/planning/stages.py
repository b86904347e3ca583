"""What one device computes in each stage: the phases of a run, and the work of a step in each.

Left out: the optimizer, losses and rewards, waiting for data, validation and checkpoints.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from math import ceil

from twn_lightning.backbone.adapters import EMBEDDING, REASONING, lora_settings
from twn_lightning.planning.constants import Device, Items
from twn_lightning.planning.layout import Span, sides, value_bytes, weight_bytes, world_of
from twn_lightning.planning.shapes import ModelShape
from twn_lightning.planning.work import Costs, Work, times, total
from twn_lightning.settings import GateStageSettings, RLSettings, Settings, SFTSettings


@dataclass(frozen=True)
class Phase:
    """Steps of one kind."""

    steps: float
    work: Work
    """Of one device in one step."""
    tokens: float
    """Prompt and CoT tokens of one device in one step, each counted once."""
    gathers: float = 0.0
    """Times that FSDP2 collects all layers in a step."""
    items: float = 0.0
    """That one device turns into tokens and patches itself; loaders prepare batches meanwhile."""


class StageWork:
    """Counts the phases of one stage.

    Args:
        shape: of the backbone.
        settings: of the stage.
        device: for how wide values are.
        items: how long prompts and CoTs are.
        kept_share: of stage 1's caches that stay on the device; the others are read again.
    """

    def __init__(
        self, shape: ModelShape, settings: Settings, device: Device, items: Items, kept_share: float = 1.0
    ) -> None:
        self.settings, self.items, self.kept_share = settings, items, kept_share
        self.world = world_of(settings)
        loras = lora_settings(settings.adapters)
        shared = max(lora.r for lora in loras.values())
        widths = weight_bytes(settings), value_bytes(settings, device)
        self.reasoner = Costs(shape, loras[REASONING].r if REASONING in loras else shared, *widths)
        self.embedder = Costs(shape, loras[EMBEDDING].r if EMBEDDING in loras else shared, *widths)

    def phases(self) -> list[Phase]:
        """The phases of the stage, in order."""
        stage = self.settings.stage
        if isinstance(stage, SFTSettings):
            return list(self._two_phase(stage) if stage.schedule == "two_phase" else self._joint(stage))
        if isinstance(stage, RLSettings):
            return [self._rl(stage)]
        return [self._labels(stage)]

    # --- stage 1 -----------------------------------------------------------------------------------------------------

    def _joint(self, stage: SFTSettings) -> Iterator[Phase]:
        rows = stage.batch_size / self.world
        spans = sides(self.settings, self.items)
        passes = ceil(rows / stage.chunk_size)
        several = passes > 1
        works: list[Work] = []
        for span in spans:
            works.append(self._pass_r(span, rows * span.rows_per_pair, passes))
            works.append(self._pass_e(span, rows * span.rows_per_pair, passes, again=several))
        gathers = passes * len(spans) * (2 + 2 + several)
        yield Phase(stage.max_steps, total(*works), rows * _tokens(spans), gathers)

    def _pass_r(self, span: Span, rows: float, passes: int) -> Work:
        """Reading a side: with gradient where its CoTs are learned or the contrast reaches the reasoner."""
        tokens, logits = rows * span.columns, rows * (span.cot + 1) if span.cot else 0.0
        seen = self._see(rows * span.visual, passes)
        read = self.reasoner.read(tokens, span.columns, passes)
        train = self.reasoner.train(tokens, span.columns, passes, logits)
        interface, prefix = self.settings.interface.name, self.settings.adapters.prefix
        if interface == "kv_joint" or (interface == "kv_detached" and prefix == "embedding"):
            first = total(read, seen) if passes > 1 else {}  # representations without gradient come first
            return total(first, seen, train)
        again = 0.0 if interface == "reencode" else 1 - self.kept_share
        works = [seen, train if span.cot else read]
        return total(*works, *([times(again, total(read, seen))] if again else []))

    def _pass_e(self, span: Span, rows: float, passes: int, again: bool) -> Work:
        """Embedding a side in each of its modes; with representation caching once more, without gradient."""
        queries = self.settings.adapters.num_queries * (2 if span.cot else 1)
        columns, tokens = span.columns + queries, rows * queries
        seen: Work = {}
        if self.settings.interface.name == "reencode":
            tokens += rows * span.columns
            seen = self._see(rows * span.visual, passes)
        read = self.embedder.read(tokens, columns, passes)
        return total(self.embedder.train(tokens, columns, passes), seen, *([read, seen] if again else []))

    def _two_phase(self, stage: SFTSettings) -> Iterator[Phase]:
        """CoTs of one side; then caches of the stored pairs, once; then the embedder on them."""
        spans = sides(self.settings, self.items)
        rows = stage.batch_size / self.world
        passes = ceil(rows / stage.chunk_size)
        thinking = [span for span in spans if span.cot]
        cots = [self._pass_r(span, rows * span.rows_per_pair, passes) for span in thinking]
        yield Phase(stage.max_steps, total(*cots), rows * _tokens(thinking), 2 * passes * len(thinking))

        stored = float(min(stage.stored_pairs, self.settings.data.train_pairs))
        passes = ceil(stored / stage.chunk_size)
        reading = [
            total(
                self.reasoner.read(stored * span.rows_per_pair * span.columns, span.columns, passes),
                self._see(stored * span.rows_per_pair * span.visual, passes),
            )
            for span in spans
        ]
        yield Phase(1, total(*reading), stored * _tokens(spans), passes * len(spans))

        rows = stage.embedding_batch_size / self.world
        embedding = [self._pass_e(span, rows * span.rows_per_pair, 1, again=False) for span in spans]
        yield Phase(stage.embedding_steps, total(*embedding), rows * _tokens(spans), 2 * len(spans))

    # --- stages 2 and 3 ----------------------------------------------------------------------------------------------

    def _rl(self, stage: RLSettings) -> Phase:
        prompts = stage.prompts_per_step / self.world
        rows = prompts * stage.completions_per_prompt
        query, candidate = sides(self.settings, self.items)
        cap = self.settings.data.max_new_tokens
        cot, written = min(self.items.padded_cot, cap), min(self.items.cot_tokens, cap)
        columns, tokens = query.prompt + cot, prompts * query.prompt + rows * cot
        chunks = ceil(prompts / max(1, stage.chunk_size // stage.completions_per_prompt))
        logits = rows * (cot + 1)
        pool = stage.pool_size / self.world * min(1.0, self.items.sources / stage.pool_refresh_steps)
        batches = ceil(pool / self.settings.evaluation.batch_size)
        rollout = total(
            self._read_prompts(query, prompts, 1),
            self._decode(query, rows, 1),
            self.reasoner.read(tokens, columns, 2 * chunks, logits),  # by the reference, prompts and CoTs apart
            self._see(prompts * query.visual, chunks),
            self._embed(rows, columns, 1, modes=1),
            self.encode(prompts * candidate.rows_per_pair, candidate, 1),
            self.encode(pool, candidate, batches),
        )
        update = total(
            self.reasoner.train(tokens, columns, 2 * chunks, logits), self._see(prompts * query.visual, chunks)
        )
        gathers = 1 + stage.updates_per_rollout * 2 * 2 * chunks
        work = total(rollout, times(stage.updates_per_rollout, update))
        return Phase(stage.max_steps, work, prompts * query.prompt + rows * written, gathers, items=pool)

    def _labels(self, stage: GateStageSettings) -> Phase:
        """Queries in both modes, shared by the devices; candidates, which every device embeds for itself."""
        data, size = self.settings.data, stage.decode_batch_size
        pairs = data.gate_pairs + data.calibration_pairs
        candidates = pairs if self.items.corpus is None else 2 * self.items.corpus
        query, candidate = sides(self.settings, self.items)
        rows = pairs / self.world
        cot = min(self.items.cot_tokens, data.max_new_tokens)
        batches, candidate_batches = ceil(rows / size), ceil(candidates / size)
        work = total(
            self.encode(rows, query, batches, think_rate=1.0), self.encode(candidates, candidate, candidate_batches)
        )
        gathers = 2 * (batches + candidate_batches)
        return Phase(1, work, rows * (query.prompt + cot), gathers, items=rows + candidates)

    # --- parts -------------------------------------------------------------------------------------------------------

    def encode(self, rows: float, span: Span, batches: int, think_rate: float = 0.0) -> Work:
        """Items to embeddings, of which a share thinks.

        Args:
            rows: on this device.
            span: one item.
            batches: one after another; each decodes until its longest CoT has ended.
            think_rate: share of the rows.
        """
        thinking, prompt = rows * think_rate, self._read_prompts(span, rows, batches)
        plain = self._embed(rows, span.prompt, batches, modes=1)
        if not thinking:
            return total(prompt, plain)
        longest = min(self.items.padded_cot, self.settings.data.max_new_tokens)
        generative = self._embed(thinking, span.prompt + longest, batches, modes=1)
        return total(prompt, plain, self._decode(span, thinking, batches), generative)

    def _decode(self, span: Span, rows: float, batches: int) -> Work:
        """CoTs, until the longest of each batch has ended."""
        cap = self.settings.data.max_new_tokens
        cot, steps = min(self.items.cot_tokens, cap), min(self.items.padded_cot, cap)
        return self.reasoner.decode(rows, span.prompt, cot, steps, batches)

    def _see(self, visual: float, passes: float) -> Work:
        return self.reasoner.see(visual, passes, max(self.items.visual_tokens, 1.0))

    def _read_prompts(self, span: Span, rows: float, passes: int) -> Work:
        return total(self.reasoner.read(rows * span.prompt, span.prompt, passes), self._see(rows * span.visual, passes))

    def _embed(self, rows: float, columns: float, passes: int, modes: int) -> Work:
        """Pass E without gradient."""
        queries = modes * self.settings.adapters.num_queries
        return self.embedder.read(rows * queries, columns + queries, passes)


def _tokens(spans: list[Span]) -> float:
    """Of one pair."""
    return sum(span.rows_per_pair * span.tokens for span in spans)
