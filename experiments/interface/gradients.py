"""The cosine between the CoT loss's and the contrastive loss's gradients on shared weights, while stage 1 trains.

Shape letters: S training seeds, M measurements of a run.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from matplotlib.figure import Figure

from experiments.studies.figures import COLORS, new_figure
from experiments.studies.study import Claim, as_dict, judged, markdown_table, show
from twn_lightning.errors import DataError
from twn_lightning.metrics import Interval, bootstrap_over_seeds
from twn_lightning.run import RunFolder

THIRDS = ("first third", "second third", "last third")
"""Of the measurements of a training."""


def gradient_numbers(trainings: Sequence[RunFolder]) -> dict[str, Any] | None:
    """Cosine, share of negative cosines and both norms, over the seeds of one variant.

    Args:
        trainings: one run folder per seed.

    Returns:
        None where no run measured gradients (`stage.conflict_every_steps=0`); `cosine` is None where one of the two
        gradients is zero, as the contrastive one is behind a detached cache.

    Raises:
        DataError: the runs measured at different steps, or only some of them did.
    """
    lines = [[line for line in run.history() if "conflict/norm_cot" in line] for run in trainings]
    if not any(lines):
        return None
    steps = [[int(line["step"]) for line in of_run] for of_run in lines]
    if any(found != steps[0] for found in steps):
        raise DataError(
            f"{trainings[0].path} and {len(trainings) - 1} other seeds measured gradients at different steps "
            f"({', '.join(str(len(found)) for found in steps)} measurements): train all of them with the same "
            "stage.conflict_every_steps and stage.max_steps."
        )

    def values(name: str) -> np.ndarray:
        return np.array([[line.get(name, np.nan) for line in of_run] for of_run in lines])

    norms = {loss: float(values(f"conflict/norm_{loss}").mean()) for loss in ("cot", "contrastive")}
    found: dict[str, Any] = {"steps": steps[0], "n_seeds": len(lines), "norms": norms, "cosine": None}
    cosine_SM = values("conflict/cosine")
    if not np.isfinite(cosine_SM).all():
        return found
    parts = np.array_split(np.arange(cosine_SM.shape[1]), len(THIRDS))
    return found | {
        "cosine": as_dict(bootstrap_over_seeds(np.asarray, cosine_SM)),
        "share_negative": as_dict(bootstrap_over_seeds(np.asarray, (cosine_SM < 0).astype(np.float64))),
        "thirds": [as_dict(bootstrap_over_seeds(np.asarray, cosine_SM[:, part])) for part in parts if len(part)],
        "cosine_by_step": cosine_SM.mean(0).tolist(),
    }


def gradient_claims(gradients: Mapping[str, Any]) -> list[Claim]:
    """Whether the losses conflict on average, for each variant whose losses share weights."""
    return [
        judged(
            f"conflict, {name}",
            f"{name}: on shared weights the gradients of the CoT and the contrastive loss have a negative cosine",
            Interval(found["cosine"]["mean"], *found["cosine"]["ci95"]),
            at_most=0.0,
            unit="number",
            n_seeds=found["n_seeds"],
            n_queries=len(found["steps"]),
        )
        for name, found in gradients.items()
        if found["cosine"] is not None
    ]


def gradient_table(gradients: Mapping[str, Any]) -> str:
    """One row per variant that was measured."""
    rows = []
    for name, found in gradients.items():
        cells = ["a gradient is 0", "", *[""] * len(THIRDS)]
        if found["cosine"] is not None:
            thirds = [show(third, 1, 3) for third in found["thirds"]]
            cells = [show(found["cosine"], 1, 3), show(found["share_negative"]), *thirds]
            cells += [""] * (len(THIRDS) - len(thirds))
        rows.append([name, *cells, *(f"{found['norms'][loss]:.3f}" for loss in ("cot", "contrastive"))])
    return markdown_table(
        ["shared weights of", "cosine", "negative, %", *THIRDS, "norm, CoT", "norm, contrastive"], rows
    )


def draw_cosines(gradients: Mapping[str, Any]) -> Figure:
    """The cosine over training, mean of the seeds."""
    figure, axes = new_figure(5, 3)
    axes.axhline(0, color=COLORS["never"], linewidth=0.8)
    colors = (COLORS[name] for name in ("always", "adaptive", "margin", "query_length"))
    shown = {name: found for name, found in gradients.items() if found["cosine"] is not None}
    for (name, found), color in zip(shown.items(), colors, strict=False):
        axes.plot(found["steps"], found["cosine_by_step"], label=name, linewidth=1, color=color)
    axes.set_xlabel("training step")
    axes.set_ylabel("cosine of the two gradients")
    if shown:
        figure.legend(loc="outside upper center", ncols=2)
    return figure
