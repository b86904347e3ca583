"""`twn mine`: hard negatives for a training split from one's own embeddings."""

from __future__ import annotations

import logging
from dataclasses import replace
from pathlib import Path

from rich.console import Console

from twn_lightning import config
from twn_lightning.commands import parser
from twn_lightning.commands.encoder_flags import progress_bar
from twn_lightning.data.corpus import require_pairs
from twn_lightning.data.hard_negatives import write_hard_negatives
from twn_lightning.data.sources import SPLITS, get_source, require_split
from twn_lightning.evaluate import build_encoder, protocol_of
from twn_lightning.evaluation.embedding_cache import EmbeddingCache
from twn_lightning.evaluation.mining import mine_pairs
from twn_lightning.train import device_for

log = logging.getLogger(__name__)


def main(arguments: list[str]) -> None:
    """Embed the split, mine, write the file for `data.hard_negatives_path`, say what was found."""
    options = parser(
        "mine",
        "Hard negatives of a training split: targets of the same source that an encoder ranks high and that are not "
        "right, as far as one can tell. An interrupted run goes on from the embedding cache.",
        """twn mine data=vlm2vec_v2 data.annotations_root=MIRROR data.media_root=MEDIA --output negatives.parquet
        twn mine adapters.init_from=outputs/sft/nano_sft/RUN/adapters data.train_pairs=2000 --count 3
        twn train experiment=qwen3vl_4b_sft data.hard_negatives=3 data.hard_negatives_path=negatives.parquet""",
    )
    options.add_argument("overrides", nargs="*", help="config keys, as for train and evaluate")
    options.add_argument("--split", default="train", help=f"one of {', '.join(SPLITS)} (default train)")
    options.add_argument("--count", type=int, default=7, help="negatives of a query (default 7)")
    options.add_argument(
        "--relative-margin",
        type=float,
        default=0.95,
        help="targets that score above this share of the positive's score are left out as likely right (default .95)",
    )
    options.add_argument("--skip", type=int, default=0, help="leave out this many of the hardest as well (default 0)")
    options.add_argument("--output", type=Path, default=Path("hard_negatives.parquet"), help="the file to write")
    chosen = options.parse_intermixed_args(arguments)
    settings = config.load_settings(chosen.overrides, on_this_machine=True)
    require_split(settings.data.source, chosen.split)
    # The negatives that the file may already name are not needed to find new ones.
    source = get_source(settings.data.source, replace(settings.data, hard_negatives_path=None))
    pairs = source.pairs(chosen.split, getattr(settings.data, f"{chosen.split}_pairs"))
    require_pairs(pairs, source.name, chosen.split)
    encoder = build_encoder(settings, protocol_of(settings.task), str(device_for(settings.trainer)))
    with progress_bar() as progress:
        distinct = {(pair.source, pair.target_hash) for pair in pairs}
        bar = progress.add_task("queries and targets", total=len(pairs) + len(distinct))
        mined = mine_pairs(
            encoder,
            pairs,
            chosen.count,
            relative_margin=chosen.relative_margin,
            skip=chosen.skip,
            cache=EmbeddingCache(settings.task.cache_root, settings.task.cache),
            progress=lambda done: progress.advance(bar, done),
        )
    write_hard_negatives(chosen.output, mined)
    found = [len(hashes) for hashes in mined.negative_hashes]
    Console(highlight=False, soft_wrap=True).print(
        f"{sum(found)} negatives of {len(found)} queries, {sum(n < chosen.count for n in found)} queries with fewer "
        f"than {chosen.count}: {chosen.output}"
    )
    if not any(found):
        log.warning(
            "no target is both wrong and below %s times its positive's score: the embeddings do not tell targets "
            "apart, or the split has hardly any; raise --relative-margin or take more pairs",
            chosen.relative_margin,
        )
