"""Study 7: every query mode against every candidate mode, for models that were trained in different ways.

    python -m experiments.mode_matrix.collect RUN RUN RUN ...

Each RUN is a run folder of `twn probe modes`. Runs of one `name` are training seeds of one model; all are on the same
queries. Writes results.json and the table of README.md.

Shape letters: S training seeds, N queries.
"""

from __future__ import annotations

import argparse
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from experiments.studies.probes import ProbedSeeds, read_probes
from experiments.studies.study import Claim, as_dict, judged, markdown_table, show, write_study
from twn_lightning.metrics import bootstrap_over_seeds, paired_bootstrap_over_seeds
from twn_lightning.probe import MODE_MATRIX_FILE
from twn_lightning.run import RunFolder
from twn_lightning.types import EmbeddingMode

FOLDER = Path(__file__).parent
MODES = tuple(mode.value for mode in EmbeddingMode)
HALF_A_POINT = 0.005


def model_numbers(seeds: ProbedSeeds) -> dict[str, Any]:
    """hit@1 of every cell by kind of query, and what the candidates thought."""
    cells = [(query, candidate) for query in MODES for candidate in MODES]
    candidates = [side for metrics in seeds.metrics for side in metrics["candidates"].values()]
    weights = [side["candidates"] for side in candidates]
    return {
        "n_seeds": seeds.size[0],
        "n_queries": seeds.size[1],
        "groups": {
            name: {
                f"{query}/{candidate}": as_dict(
                    bootstrap_over_seeds(np.asarray, seeds.values(f"hit/{query}/{candidate}")[:, rows_N])
                )
                for query, candidate in cells
            }
            for name, rows_N in seeds.groups().items()
        },
        "queries": {"think_rate": float(seeds.values("think").mean()), "tokens": float(seeds.values("tokens").mean())},
        "candidates": {
            value: float(np.average([side[value] for side in candidates], weights=weights))
            for value in ("tokens", "malformed_cot_rate", "think_rate")
        },
    }


def claims_of(name: str, seeds: ProbedSeeds) -> list[Claim]:
    """Whether a gated query may meet a candidate of either mode."""
    alike_SN = seeds.values("hit/generative/generative")
    crossed_SN = seeds.values("hit/generative/discriminative")
    n_seeds, n_queries = seeds.size
    return [
        judged(
            f"{name}_generative_meets_discriminative",
            f"{name}: generative queries lose at most half a point where candidates do not think",
            paired_bootstrap_over_seeds(crossed_SN, alike_SN),
            at_least=-HALF_A_POINT,
            n_seeds=n_seeds,
            n_queries=n_queries,
        ),
        judged(
            f"{name}_thinking_candidates",
            f"{name}: candidates that think are worth something to gated queries",
            paired_bootstrap_over_seeds(
                seeds.values("hit/adaptive/generative"), seeds.values("hit/adaptive/discriminative")
            ),
            at_least=0.0,
            n_seeds=n_seeds,
            n_queries=n_queries,
        ),
    ]


def table(results: Mapping[str, Any]) -> str:
    """A matrix per model, from results.json."""
    blocks = []
    for name, model in results["models"].items():
        cells = model["groups"]["all"]
        rows = [[query, *(show(cells[f"{query}/{candidate}"]) for candidate in MODES)] for query in MODES]
        blocks += [
            f"**{name}**, {model['n_seeds']} seeds x {model['n_queries']:,} queries, hit@1 in per cent. The gate "
            f"thinks on {100 * model['queries']['think_rate']:.1f} % of the queries and "
            f"{100 * model['candidates']['think_rate']:.1f} % of the candidates; of the candidates' CoTs "
            f"{100 * model['candidates']['malformed_cot_rate']:.1f} % do not close.",
            markdown_table(["query mode, candidate mode", *MODES], rows),
        ]
    return "\n\n".join(blocks)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("runs", type=Path, nargs="+")
    by_name: dict[str, list[Path]] = {}
    for folder in parser.parse_args().runs:
        by_name.setdefault(RunFolder(folder).settings().name, []).append(folder)
    models = {name: read_probes(folders, MODE_MATRIX_FILE) for name, folders in by_name.items()}
    claims = [claim for name, seeds in models.items() for claim in claims_of(name, seeds)]
    write_study(FOLDER, {"models": {name: model_numbers(seeds) for name, seeds in models.items()}}, claims, table)


if __name__ == "__main__":
    main()
