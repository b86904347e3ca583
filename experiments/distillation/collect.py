"""Distillation: does a discriminative embedding that learns from the generative one need fewer CoTs?

    python -m experiments.distillation.collect --plain RUN RUN RUN --distilled RUN RUN RUN

Each RUN is a run folder of `twn evaluate` or `twn nano-suite`, one per training seed, in the same order on both sides,
all on the same queries. Writes results.json and the table of README.md.

Shape letters: S training seeds, N queries.
"""

from __future__ import annotations

import argparse
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from experiments.studies.runs import SeedEvaluation, read_seeds
from experiments.studies.study import Claim, as_dict, judged, markdown_table, show, write_study
from twn_lightning.errors import DataError
from twn_lightning.metrics import bootstrap_over_seeds, paired_bootstrap_over_seeds, think_at_equal_tokens

FOLDER = Path(__file__).parent
MODES = ("never", "always", "adaptive")
ABOVE = 1e-9
"""A difference of exactly 0, such as that of two equal choices, is not above."""

FloatArray = NDArray[np.float64]


class Routed(NamedTuple):
    """Quality and tokens of every query of every seed, (S, N) each."""

    quality_SN: FloatArray
    tokens_SN: FloatArray


def routed(seeds: Sequence[SeedEvaluation], mode: str) -> Routed:
    """All queries without a CoT, with one, or as the gate has it."""
    think_SN = np.stack([_thinks(seed, mode) for seed in seeds])
    return _under(seeds, think_SN)


def _thinks(seed: SeedEvaluation, mode: str) -> NDArray[np.bool_]:
    if mode == "adaptive":
        return seed.outcomes.probability > seed.threshold
    return np.full(len(seed.outcomes), mode == "always")


def _under(seeds: Sequence[SeedEvaluation], think_SN: NDArray[np.bool_]) -> Routed:
    outcomes = [seed.outcomes for seed in seeds]
    quality = [np.where(t, o.hit_generative, o.hit_discriminative) for t, o in zip(think_SN, outcomes, strict=True)]
    tokens = [(t * o.tokens).astype(np.float64) for t, o in zip(think_SN, outcomes, strict=True)]
    return Routed(np.stack(quality), np.stack(tokens))


def at_equal_tokens(seeds: Sequence[SeedEvaluation], tokens_SN: FloatArray) -> Routed:
    """The gate of each seed at the threshold that spends as many tokens."""
    think = [
        think_at_equal_tokens(seed.outcomes.probability, seed.outcomes.tokens, float(tokens_N.mean()))
        for seed, tokens_N in zip(seeds, tokens_SN, strict=True)
    ]
    return _under(seeds, np.stack(think))


def collect(plain_folders: Sequence[Path], distilled_folders: Sequence[Path]) -> tuple[dict[str, Any], list[Claim]]:
    """The numbers and the claims of the study."""
    plain, distilled = read_seeds(plain_folders), read_seeds(distilled_folders)
    if len(plain) != len(distilled) or not np.array_equal(plain[0].key_N, distilled[0].key_N):
        raise DataError(
            f"{len(plain)} plain and {len(distilled)} distilled evaluations must pair up, on the same queries"
        )
    without, with_ = ({mode: routed(seeds, mode) for mode in MODES} for seeds in (plain, distilled))
    equal = at_equal_tokens(plain, with_["adaptive"].tokens_SN)
    kinds = [kind for kind in ("direct", "lookalike", "steps") if (plain[0].kind_N == kind).any()]
    numbers = {
        "n_seeds": len(plain),
        "n_queries": len(plain[0].outcomes),
        "modes": {mode: _compared(without[mode], with_[mode]) for mode in MODES},
        "adaptive_at_equal_tokens": _compared(equal, with_["adaptive"]),
        "never_by_kind": {
            kind: _compared(*(Routed(*(v[:, plain[0].kind_N == kind] for v in m["never"])) for m in (without, with_)))
            for kind in kinds
        },
    }
    return numbers, claims_of(without, with_, equal)


def _compared(plain: Routed, distilled: Routed) -> dict[str, Any]:
    return {
        "plain": as_dict(bootstrap_over_seeds(np.asarray, plain.quality_SN)),
        "distilled": as_dict(bootstrap_over_seeds(np.asarray, distilled.quality_SN)),
        "difference": as_dict(paired_bootstrap_over_seeds(distilled.quality_SN, plain.quality_SN)),
        "tokens_plain": as_dict(bootstrap_over_seeds(np.asarray, plain.tokens_SN)),
        "tokens_distilled": as_dict(bootstrap_over_seeds(np.asarray, distilled.tokens_SN)),
    }


def claims_of(without: Mapping[str, Routed], with_: Mapping[str, Routed], equal: Routed) -> list[Claim]:
    """What the study decides; the bars are those that were set before it ran."""

    def difference(first: Routed, second: Routed) -> Any:
        return paired_bootstrap_over_seeds(first.quality_SN, second.quality_SN)

    n_seeds, n_queries = equal.quality_SN.shape
    cases = [
        (
            "never_rises",
            "Distillation raises quality without a CoT",
            difference(with_["never"], without["never"]),
            ABOVE,
        ),
        (
            "always_keeps",
            "Distillation costs at most half a point of quality with a CoT",
            difference(with_["always"], without["always"]),
            -0.005,
        ),
        (
            "adaptive_at_equal_tokens",
            "The gate on distilled embeddings is above the gate on plain ones at equal tokens",
            difference(with_["adaptive"], equal),
            ABOVE,
        ),
    ]
    return [
        judged(id, text, interval, at_least=bar, n_seeds=n_seeds, n_queries=n_queries)
        for id, text, interval, bar in cases
    ]


def table(results: Mapping[str, Any]) -> str:
    """Mode by mode, from results.json."""
    named = {
        **results["modes"],
        "adaptive, plain at equal tokens": results["adaptive_at_equal_tokens"],
        **{f"never, {kind}": row for kind, row in results["never_by_kind"].items()},
    }
    rows = [
        [
            name,
            show(row["plain"]),
            show(row["distilled"]),
            show(row["difference"], sign="+"),
            f"{row['tokens_plain']['mean']:.1f}",
            f"{row['tokens_distilled']['mean']:.1f}",
        ]
        for name, row in named.items()
    ]
    header = ["mode", "plain", "distilled", "difference", "tokens, plain", "tokens, distilled"]
    return "\n\n".join(
        [
            f"{results['n_seeds']} seeds x {results['n_queries']:,} queries; 95 % intervals over seeds and queries; "
            "quality (hit@1, NDCG@5 of pages) in per cent.",
            markdown_table(header, rows),
        ]
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--plain", nargs="+", type=Path, required=True)
    parser.add_argument("--distilled", nargs="+", type=Path, required=True)
    chosen = parser.parse_args()
    numbers, claims = collect(chosen.plain, chosen.distilled)
    write_study(FOLDER, numbers, claims, table)


if __name__ == "__main__":
    main()
