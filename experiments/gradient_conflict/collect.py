"""Study 1, gradients: the cosine between the CoT's and the contrastive loss's gradients on shared weights.

    python -m experiments.gradient_conflict.collect RUN RUN RUN ...

Each RUN is a training run of stage 1 with `stage.conflict_every_steps` above 0; runs of the same interface and the same
arrangement of adapters are training seeds of one model. Writes results.json, the figure and the table of README.md.

Shape letters: S training seeds, M measurements of a run.
"""

from __future__ import annotations

import argparse
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib.figure import Figure

from experiments.studies.study import Claim, as_dict, judged, markdown_table, save_figure, show, write_study
from twn_lightning.errors import DataError
from twn_lightning.metrics import Interval, bootstrap_over_seeds
from twn_lightning.run import RunFolder

FOLDER = Path(__file__).parent
PHASES = ("first third", "second third", "last third")


def measurements(run: RunFolder) -> list[dict[str, float]]:
    """The lines of metrics.jsonl with a measurement, in order.

    Raises:
        DataError: there are none.
    """
    found = [line for line in run.history() if "conflict/norm_cot" in line]
    if not found:
        raise DataError(f"{run.path} measured no gradients: train with stage.conflict_every_steps above 0.")
    return found


def model_numbers(runs: Sequence[RunFolder]) -> dict[str, Any]:
    """What the runs of one model measured; cosines only where both gradients are there."""
    lines = [measurements(run) for run in runs]
    steps = [[int(line["step"]) for line in of_run] for of_run in lines]
    if any(found != steps[0] for found in steps):
        raise DataError(f"the runs measured at different steps: {[len(found) for found in steps]} measurements.")

    def values(name: str) -> np.ndarray:
        return np.array([[line.get(name, np.nan) for line in of_run] for of_run in lines])

    norms = {loss: float(values(f"conflict/norm_{loss}").mean()) for loss in ("cot", "contrastive")}
    found: dict[str, Any] = {"n_seeds": len(runs), "steps": steps[0], "norms": norms}
    cosine_SM = values("conflict/cosine")
    if not np.isfinite(cosine_SM).all():
        return found | {"cosine": None}
    thirds = np.array_split(np.arange(cosine_SM.shape[1]), len(PHASES))
    layers = sorted(name for name in lines[0][0] if name.startswith("conflict/cosine_layer_"))
    return found | {
        "cosine": as_dict(bootstrap_over_seeds(np.asarray, cosine_SM)),
        "share_negative": as_dict(bootstrap_over_seeds(np.asarray, (cosine_SM < 0).astype(np.float64))),
        "phases": {
            phase: as_dict(bootstrap_over_seeds(np.asarray, cosine_SM[:, part]))
            for phase, part in zip(PHASES, thirds, strict=True)
            if len(part)
        },
        "layers": {
            name.removeprefix("conflict/cosine_"): as_dict(bootstrap_over_seeds(np.asarray, values(name)))
            for name in layers
        },
        "cosine_by_step": cosine_SM.mean(0).tolist(),
    }


def claims_of(models: Mapping[str, Any]) -> list[Claim]:
    """Whether the losses conflict on average, for each model whose losses share weights."""
    claims = []
    for name, model in models.items():
        if model["cosine"] is not None:
            interval = Interval(model["cosine"]["mean"], *model["cosine"]["ci95"])
            text = f"{name}: on shared weights the gradients of the CoT and the contrastive loss have a negative cosine"
            claims.append(
                judged(
                    f"conflict_{name.replace(', ', '_')}",
                    text,
                    interval,
                    at_most=0.0,
                    unit="number",
                    n_seeds=model["n_seeds"],
                    n_queries=len(model["steps"]),
                )
            )
    return claims


def table(results: Mapping[str, Any]) -> str:
    """One row per model, from results.json."""
    rows = []
    for name, model in results["models"].items():
        norms = [f"{model['norms'][loss]:.3f}" for loss in ("cot", "contrastive")]
        if model["cosine"] is None:
            rows.append([name, "none: a gradient is 0", "", *[""] * len(PHASES), *norms])
            continue
        phases = [show(model["phases"][phase], 1, 3) if phase in model["phases"] else "" for phase in PHASES]
        rows.append([name, show(model["cosine"], 1, 3), show(model["share_negative"]), *phases, *norms])
    sizes = {name: f"{m['n_seeds']} seeds x {len(m['steps'])} measurements" for name, m in results["models"].items()}
    header = ["shared weights", "cosine", "negative, %", *PHASES, "norm, CoT", "norm, contrastive"]
    return "\n\n".join(
        ["; ".join(f"{name}: {size}" for name, size in sizes.items()) + ".", markdown_table(header, rows)]
    )


def draw(results: Mapping[str, Any]) -> Figure:
    """The cosine over training, mean of the seeds."""
    figure = Figure(figsize=(5, 3), layout="constrained")
    axes = figure.subplots()
    for name, model in results["models"].items():
        if model["cosine"] is not None:
            axes.plot(model["steps"], model["cosine_by_step"], label=name, linewidth=1)
    axes.axhline(0, color="grey", linewidth=0.8)
    axes.set_xlabel("training step")
    axes.set_ylabel("cosine of the two gradients")
    axes.legend(frameon=False)
    return figure


def model_of(run: RunFolder) -> str:
    """What is shared: the interface and the arrangement of the adapters."""
    settings = run.settings()
    return f"{settings.interface.name}, {settings.adapters.arrangement}"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("runs", type=Path, nargs="+")
    by_model: dict[str, list[RunFolder]] = {}
    for folder in parser.parse_args().runs:
        by_model.setdefault(model_of(RunFolder(folder)), []).append(RunFolder(folder))
    models = {name: model_numbers(runs) for name, runs in by_model.items()}
    results = {"models": models}
    write_study(FOLDER, results, claims_of(models), table)
    save_figure(draw(results), FOLDER / "cosine.svg")


if __name__ == "__main__":
    main()
