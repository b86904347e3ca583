"""Study 7: every query mode against every candidate mode, for models whose candidates think and models whose do not.

    python -m experiments.mode_matrix.collect RUN RUN RUN ...

Each RUN is a run folder of `twn probe modes`, all on the same queries; its `name` is that of a model (`MODELS`), its
`seed` that of the model's training. Writes results.json, the figure and the tables of README.md.

Shape letters: S training seeds, N queries.
"""

from __future__ import annotations

import argparse
from collections.abc import Mapping, Sequence
from itertools import product
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from matplotlib.figure import Figure
from numpy.typing import NDArray

from experiments.studies.figures import COLORS, new_figure, percent_axis, styled
from experiments.studies.probes import ProbedSeeds, read_probes
from experiments.studies.study import Claim, as_dict, judged, markdown_table, save_figure, show, write_study
from twn_lightning.errors import DataError
from twn_lightning.evaluation.mode_matrix import REUSES
from twn_lightning.metrics import bootstrap_over_seeds, paired_bootstrap_over_seeds
from twn_lightning.probe import MODE_MATRIX_FILE
from twn_lightning.run import RunFolder
from twn_lightning.types import EmbeddingMode

FOLDER = Path(__file__).parent
MODES = tuple(mode.value for mode in EmbeddingMode)
CELLS = tuple(f"{query}/{candidate}" for query, candidate in product(MODES, repeat=2))
UNGATED = tuple(cell for cell in CELLS if "adaptive" not in cell)
MODELS = {
    "query": "queries think",
    "both": "both sides think",
    "both_no_cross": "both sides think, no cross-mode term",
}
"""Names of the models and what tells them apart; each trained with the same seeds."""
DEPLOYED = tuple(product(("both", "query"), ("adaptive/discriminative", "adaptive/adaptive", "generative/generative")))
"""Models and cells of the table of costs."""
HALF_A_POINT = 0.005


class Comparison(NamedTuple):
    """A claim: one model's cell minus another's is at or above the bar, over queries whose candidates can think."""

    claim: str
    first: tuple[str, str]
    second: tuple[str, str]
    at_least: float = 0.0


CLAIMS = {
    "cross_query_generative": Comparison(
        "The cross-mode terms help where generative queries meet discriminative candidates",
        ("both", "generative/discriminative"),
        ("both_no_cross", "generative/discriminative"),
    ),
    "cross_candidate_generative": Comparison(
        "The cross-mode terms help where discriminative queries meet generative candidates",
        ("both", "discriminative/generative"),
        ("both_no_cross", "discriminative/generative"),
    ),
    "cross_discriminative": Comparison(
        "The cross-mode terms cost at most half a point where neither side thinks",
        ("both", "discriminative/discriminative"),
        ("both_no_cross", "discriminative/discriminative"),
        -HALF_A_POINT,
    ),
    "cross_generative": Comparison(
        "The cross-mode terms cost at most half a point where both sides think",
        ("both", "generative/generative"),
        ("both_no_cross", "generative/generative"),
        -HALF_A_POINT,
    ),
    "mixed_cell": Comparison(
        "With the cross-mode terms generative queries lose at most half a point where candidates do not think",
        ("both", "generative/discriminative"),
        ("both", "generative/generative"),
        -HALF_A_POINT,
    ),
    "candidates_that_think": Comparison(
        "Thinking queries find more among candidates that were trained to think and do",
        ("both", "generative/generative"),
        ("query", "generative/discriminative"),
    ),
    "joint_gate": Comparison(
        "Gating both sides with the gate of the queries is at or above gating the queries alone",
        ("both", "adaptive/adaptive"),
        ("both", "adaptive/discriminative"),
    ),
}
"""Id -> comparison, as they were set before the study ran."""


def read_models(folders: Sequence[Path]) -> dict[str, ProbedSeeds]:
    """The probes of every model, in the order of `MODELS`; seeds and queries in the same order for each.

    Raises:
        DataError: another name than a model's, a model is missing, or models differ in their seeds or queries; and as
            `read_probes`.
    """
    by_name: dict[str, dict[int, Path]] = {}
    for folder in folders:
        settings = RunFolder(folder).settings()
        by_name.setdefault(settings.name, {})[settings.seed] = folder
    if set(by_name) != set(MODELS):
        raise DataError(f"the probes are named {', '.join(sorted(by_name))}; the models are {', '.join(MODELS)}.")
    seeds = {name: sorted(by_seed) for name, by_seed in by_name.items()}
    if len({tuple(found) for found in seeds.values()}) > 1:
        raise DataError(f"the models are compared seed by seed, but have other seeds each: {seeds}.")
    models = {name: read_probes([by_name[name][seed] for seed in seeds[name]], MODE_MATRIX_FILE) for name in MODELS}
    keys = {name: model.columns[0]["query_key"] for name, model in models.items()}
    if any(not np.array_equal(found, keys["both"]) for found in keys.values()):
        counts = {name: len(found) for name, found in keys.items()}
        raise DataError(f"the models were probed on other queries ({counts}): use the same data.test_pairs and seed.")
    return models


def candidates_can_think(model: ProbedSeeds) -> NDArray[np.bool_]:
    """Queries whose candidates are shown (N,): the ones that are words have no CoT in any mode."""
    return (model.values("candidate_tokens/generative") > 0).all(0)


def model_numbers(model: ProbedSeeds) -> dict[str, Any]:
    """Quality and tokens of every cell, what each side thought, and the quality of each kind of query."""
    shown_N = candidates_can_think(model)
    sides = [side for metrics in model.metrics for side in metrics["candidates"].values() if side["tokens"] > 0]
    counts = [side["candidates"] for side in sides]
    return {
        "n_seeds": model.size[0],
        "n_queries": model.size[1],
        "n_queries_shown": int(shown_N.sum()),
        "gate_trained_on": model.metrics[0]["gate_trained_on"],
        "think_rate": {
            "queries": float(model.values("think").mean()),
            "candidates": float(np.average([side["think_rate"] for side in sides], weights=counts)),
        },
        "malformed_candidate_cots": float(np.average([side["malformed_cot_rate"] for side in sides], weights=counts)),
        "all": {cell: cell_numbers(model, cell, np.full_like(shown_N, True)) for cell in CELLS},
        "shown": {cell: cell_numbers(model, cell, shown_N) for cell in CELLS},
        "kinds": {
            kind: {cell: cell_numbers(model, cell, shown_N & rows_N)["hit@1"] for cell in UNGATED}
            for kind, rows_N in model.groups().items()
            if kind != "all"
        },
    }


def cell_numbers(model: ProbedSeeds, cell: str, rows_N: NDArray[np.bool_]) -> dict[str, Any]:
    """hit@1 of one pair of modes over some queries, and its CoT tokens per query and per candidate."""
    query_mode, candidate_mode = cell.split("/")
    per_query = float(model.values(f"tokens/{query_mode}")[:, rows_N].mean())
    per_candidate = float(model.values(f"candidate_tokens/{candidate_mode}")[:, rows_N].mean())
    return {
        "hit@1": as_dict(bootstrap_over_seeds(np.asarray, model.values(f"hit/{cell}")[:, rows_N])),
        "tokens_per_query": per_query,
        "tokens_per_candidate": per_candidate,
        "tokens_at_reuse": {str(reuse): per_query + per_candidate / reuse for reuse in REUSES},
    }


def claims_of(models: Mapping[str, ProbedSeeds]) -> list[Claim]:
    """The comparisons, paired by seed and query."""
    rows_N = candidates_can_think(models["both"])

    def hits(model: str, cell: str) -> NDArray[np.float64]:
        return models[model].values(f"hit/{cell}")[:, rows_N]

    return [
        judged(
            id,
            this.claim,
            paired_bootstrap_over_seeds(hits(*this.first), hits(*this.second)),
            at_least=this.at_least,
            n_seeds=models["both"].size[0],
            n_queries=int(rows_N.sum()),
        )
        for id, this in CLAIMS.items()
    ]


def table(results: Mapping[str, Any]) -> str:
    """A matrix per model, the costs of what one would deploy, and the mixed cells by kind, from results.json."""
    models = results["models"]
    first = models["both"]
    blocks = [
        f"{first['n_seeds']} seeds x {first['n_queries_shown']:,} queries whose candidates are shown (of "
        f"{first['n_queries']:,}; the others' are words, which do not think); hit@1 in per cent, 95 % intervals over "
        "seeds and queries."
    ]
    for name, words in MODELS.items():
        model = models[name]
        rows = [[mode, *(show(model["shown"][f"{mode}/{other}"]["hit@1"]) for other in MODES)] for mode in MODES]
        think_rate = model["think_rate"]
        blocks += [
            f"**{words}.** The gate, trained on {_trained_on(model)}, thinks on {100 * think_rate['queries']:.1f} % of "
            f"the queries and {100 * think_rate['candidates']:.1f} % of the candidates that are shown; of the "
            f"CoTs that these can write {100 * model['malformed_candidate_cots']:.1f} % do not close.",
            markdown_table(["query mode, candidate mode", *MODES], rows),
        ]
    costs = [[MODELS[name], cell.replace("/", ", "), *_costs(models[name]["shown"][cell])] for name, cell in DEPLOYED]
    header = ["model", "query, candidate mode", "hit@1", "tokens a query", "a candidate"]
    blocks += [
        "CoT tokens: raw, then a query's with the index's shared out, r queries for each candidate of the index.",
        markdown_table([*header, *(f"r = {reuse}" for reuse in REUSES)], costs, text_columns=2),
    ]
    by_kind = [
        [MODELS[name], kind, *(show(cells[cell]) for cell in UNGATED)]
        for name in ("both", "both_no_cross")
        for kind, cells in models[name]["kinds"].items()
    ]
    blocks.append(markdown_table(["model", "kind", *(c.replace("/", ", ") for c in UNGATED)], by_kind, text_columns=2))
    return "\n\n".join(blocks)


def _trained_on(model: Mapping[str, Any]) -> str:
    return "queries alone" if model["gate_trained_on"] == "query" else "both sides"


def _costs(cell: Mapping[str, Any]) -> list[str]:
    tokens = (cell["tokens_per_query"], cell["tokens_per_candidate"], *cell["tokens_at_reuse"].values())
    return [show(cell["hit@1"]), *(f"{value:.1f}" for value in tokens)]


def draw(results: Mapping[str, Any]) -> Figure:
    """hit@1 where the gate is left out, a bar for each model."""
    with styled():
        figure, axes = new_figure(6.2, 3.2)
        width = 0.8 / len(MODELS)
        for number, (name, color) in enumerate(zip(MODELS, ("never", "adaptive", "always"), strict=True)):
            values = [results["models"][name]["shown"][cell]["hit@1"] for cell in UNGATED]
            means, ends = np.array([value["mean"] for value in values]), np.array([value["ci95"] for value in values])
            errors = np.maximum(0, [means - ends[:, 0], ends[:, 1] - means])
            places = np.arange(len(UNGATED)) + (number - (len(MODELS) - 1) / 2) * width
            label = MODELS[name]
            axes.bar(places, means, width, yerr=errors, color=COLORS[color], label=label, error_kw={"linewidth": 0.8})
        axes.set_xticks(range(len(UNGATED)), [_in_lines(*cell.split("/")) for cell in UNGATED])
        axes.set_ylim(0, 1)
        percent_axis(axes, "hit@1")
        axes.legend(loc="upper center", bbox_to_anchor=(0.5, 1.15), ncols=len(MODELS))
    return figure


def _in_lines(query_mode: str, candidate_mode: str) -> str:
    return f"query\n{query_mode},\ncandidate\n{candidate_mode}"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("runs", type=Path, nargs="+")
    models = read_models(parser.parse_args().runs)
    results = {"models": {name: model_numbers(model) for name, model in models.items()}}
    write_study(FOLDER, results, claims_of(models), table)
    save_figure(draw(results), FOLDER / "modes.svg")


if __name__ == "__main__":
    main()
