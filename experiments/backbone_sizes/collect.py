"""Study 9: do the conclusions of studies 1, 3 and 6, drawn on nano, hold on micro, a backbone three times its size?

    python -m experiments.backbone_sizes.collect --gate RUN ... --cot RUN ... [--interface MODEL ...]

What is given was trained on micro: models as experiments.interface.collect takes them, run folders as
experiments.gate_routing.collect and experiments.cot_probe.collect take them. Nano's numbers are those studies' own.
Without models, study 1 is left out.
Writes results.json, the figure and the tables of README.md.
"""

from __future__ import annotations

import argparse
from collections.abc import Mapping, Sequence
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib.figure import Figure

from experiments.cot_probe import collect as cot_probe
from experiments.gate_routing import collect as gate_routing
from experiments.interface import collect as interface
from experiments.studies.figures import COLORS, new_figure, styled
from experiments.studies.probes import read_probes
from experiments.studies.study import (
    EXPERIMENTS,
    Claim,
    markdown_table,
    number_of,
    read_results,
    save_figure,
    show,
    write_study,
)
from experiments.studies.variants import parameters_of
from twn_lightning.errors import DataError
from twn_lightning.probe import COT_PROBE_FILE
from twn_lightning.run import RunFolder

FOLDER = Path(__file__).parent
NANO, MICRO = "nano", "micro"

HEADLINES = (
    "interface/detached_not_below",
    "interface/detached_above",
    "interface/reader_against_reencode",
    "gate_routing/above_never",
    "gate_routing/not_below_always",
    "gate_routing/half_the_tokens",
    "gate_routing/above_random",
    "cot_probe/own_minus_none",
    "cot_probe/own_minus_other",
    "cot_probe/own_minus_shuffled",
)
"""Claims that the page of all studies repeats for micro; the others are in this study's table."""


def nano_results(experiments: Path = EXPERIMENTS) -> dict[str, dict[str, Any]]:
    """What the studies found on nano: study -> content of its results.json.

    Raises:
        DataError: one of them has not been collected.
    """
    names = ("interface", "gate_routing", "cot_probe")
    missing = [name for name in names if not (experiments / name / "results.json").is_file()]
    if missing:
        raise DataError(f"{', '.join(missing)}: no results.json; collect these studies on nano first.")
    return {name: read_results(experiments / name) for name in names}


def require_micro(folders: Sequence[Path]) -> None:
    """Refuse run folders of another backbone.

    Raises:
        DataError: naming them.
    """
    found = {str(folder): RunFolder(folder).settings().model.name for folder in folders}
    other = [f"{folder} ({name})" for folder, name in found.items() if name != MICRO]
    if other:
        raise DataError(f"not made with model.name={MICRO}: {', '.join(other)}.")


def compare(nano: Mapping[str, Mapping[str, Any]], micro: Mapping[str, Sequence[Claim]]) -> list[dict[str, Any]]:
    """Every claim that both sizes decide, with both numbers.

    Args:
        nano: study -> results.json.
        micro: study -> the claims of the same code on micro's runs.

    Returns:
        One entry per claim: study, statement, both numbers and verdicts, whether both estimates are on the same side of
        the claim's bar, and whether they have the same sign.
    """
    found = []
    for study, claims in micro.items():
        of_nano = {claim["id"]: claim for claim in nano[study]["claims"]}
        for claim in claims:
            if claim.id not in of_nano:
                continue
            small, large = of_nano[claim.id], asdict(claim)
            fails = [of_one["verdict"] == "does not hold here" for of_one in (small, large)]
            found.append(
                {
                    "study": study,
                    "id": f"{study}/{claim.id}",
                    "claim": claim.claim,
                    NANO: {key: small[key] for key in ("verdict", "estimate", "ci95", "unit", "n_seeds")},
                    MICRO: {key: large[key] for key in ("verdict", "estimate", "ci95", "unit", "n_seeds")},
                    "same_side": fails[0] == fails[1],
                    "same_sign": bool(np.sign(small["estimate"]) == np.sign(large["estimate"])),
                }
            )
    return found


def headlines(micro: Mapping[str, Sequence[Claim]]) -> list[Claim]:
    """The claims of `HEADLINES`, on micro."""
    by_id = {f"{study}/{claim.id}": claim for study, claims in micro.items() for claim in claims}
    return [replace(by_id[id], id=id, claim=f"On micro: {by_id[id].claim}") for id in HEADLINES if id in by_id]


def collect(
    nano: Mapping[str, Mapping[str, Any]],
    interface_models: Sequence[Path],
    gate_runs: Sequence[Path],
    cot_runs: Sequence[Path],
) -> tuple[dict[str, Any], list[Claim]]:
    """The numbers and the claims of the study.

    Args:
        nano: as `nano_results` gives them.
        interface_models: micro's, for study 1; none leave it out.
        gate_runs: micro's evaluations, for study 3.
        cot_runs: micro's probes, for study 6.
    """
    require_micro([*(model / "sft" for model in interface_models), *gate_runs, *cot_runs])
    gate_numbers, gate_claims = gate_routing.collect(gate_runs)
    micro: dict[str, Sequence[Claim]] = {
        "gate_routing": gate_claims,
        "cot_probe": cot_probe.claims_of(read_probes(cot_runs, COT_PROBE_FILE)),
    }
    if interface_models:
        micro = {"interface": interface.collect(interface_models)[1], **micro}
    of_nano = next(iter(nano["interface"]["variants"].values()))["parameters"]
    results = {
        "compared": compare(nano, micro),
        "routers": {NANO: nano["gate_routing"]["routers"], MICRO: gate_numbers["routers"]},
        "parameters": {NANO: of_nano, MICRO: parameters_of(RunFolder(gate_runs[0]).settings())},
    }
    return results, headlines(micro)


def table(results: Mapping[str, Any]) -> str:
    """Claim by claim, then both sizes' routers, from results.json."""
    compared = results["compared"]
    rows = [
        [
            entry["claim"],
            *(part for size in (NANO, MICRO) for part in (number_of(entry[size]), entry[size]["verdict"])),
            "yes" if entry["same_side"] else "no",
            "yes" if entry["same_sign"] else "no",
        ]
        for entry in compared
    ]
    sizes = "; ".join(
        f"{size}: language model of {count['language_model']:,} parameters, {count['added']:,} added"
        for size, count in results["parameters"].items()
    )
    same = sum(entry["same_side"] for entry in compared)
    return "\n\n".join(
        [
            f"{sizes}. {same} of {len(compared)} claims have both estimates on the same side of their bar; 95 % "
            "intervals over seeds and queries.",
            markdown_table(
                ["claim", NANO, "verdict", MICRO, "verdict", "same side of the bar", "same sign"], rows, text_columns=7
            ),
            "![Both sizes, claim by claim](sizes.svg)",
            _router_table(results["routers"]),
        ]
    )


def _router_table(routers: Mapping[str, Mapping[str, Any]]) -> str:
    sizes = list(routers)
    header = ["router", *(f"{what}, {size}" for size in sizes for what in ("quality", "of always' tokens"))]
    rows = [
        [
            name.replace("_", " "),
            *(show(routers[size][name][value]) for size in sizes for value in ("quality", "token_share")),
        ]
        for name in routers[NANO]
        if all(name in routers[size] for size in sizes)
    ]
    return markdown_table(header, rows)


def draw(compared: Sequence[Mapping[str, Any]]) -> Figure:
    """The number behind every claim in points, on both sizes."""
    shown = [entry for entry in compared if entry[NANO]["unit"] == "points"]
    figure, axes = new_figure(7.2, 0.9 + 0.36 * len(shown))
    axes.axvline(0, color=COLORS["oracle"], linewidth=1)
    places = np.arange(len(shown))
    for size, color, offset in ((NANO, COLORS["adaptive"], -0.14), (MICRO, COLORS["always"], 0.14)):
        mean = 100 * np.array([entry[size]["estimate"] for entry in shown])
        ends = 100 * np.array([entry[size]["ci95"] for entry in shown]).reshape(-1, 2)
        spread = np.maximum(0, [mean - ends[:, 0], ends[:, 1] - mean])
        axes.errorbar(mean, places + offset, xerr=spread, fmt="o", markersize=4, color=color, label=size)
    axes.set_yticks(places, [entry["id"] for entry in shown])
    axes.invert_yaxis()
    axes.set_xlabel("points")
    figure.legend(loc="outside upper right", ncols=2)
    return figure


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    for name in ("--gate", "--cot"):
        parser.add_argument(name, nargs="+", type=Path, required=True)
    parser.add_argument("--interface", nargs="*", type=Path, default=[])
    given = parser.parse_args()
    results, claims = collect(nano_results(), given.interface, given.gate, given.cot)
    with styled():
        save_figure(draw(results["compared"]), FOLDER / "sizes.svg")
    write_study(FOLDER, results, claims, table)


if __name__ == "__main__":
    main()
