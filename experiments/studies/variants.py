"""Stage 1 trained in several ways, each with several seeds, and what every model retrieves for the same queries.

A model is a folder with two run folders in it: `sft`, of its training, and `evaluate`, of its evaluation.

Shape letters: S training seeds, N queries.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from itertools import chain
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from experiments.studies.runs import SeedEvaluation, groups_of, read_seeds
from experiments.studies.study import Claim, as_dict, judged
from twn_lightning.backbone.parameters import LanguageModelShape, added_parameters
from twn_lightning.data.nano.backbones import SHAPES, backbone_config
from twn_lightning.data.nano.vocabulary import build_tokenizer
from twn_lightning.errors import DataError
from twn_lightning.metrics import bootstrap_over_seeds, paired_bootstrap_over_seeds
from twn_lightning.run import RunFolder
from twn_lightning.settings import Settings
from twn_lightning.validation import settings_to_dict

MODES = ("discriminative", "generative")

FREE = ("name", "seed", "paths", "stage.conflict_every_steps")
"""Settings in which the trainings of one study may always differ: they do not change how a model is trained."""

FloatArray = NDArray[np.float64]


@dataclass(frozen=True)
class Variant:
    """One way of training stage 1.

    Args:
        trainings: run folders of the trainings, S of them in the order of their seeds.
        settings: of each training.
        evaluations: of each training, all over the same N queries in the same order.
    """

    trainings: list[RunFolder]
    settings: list[Settings]
    evaluations: list[SeedEvaluation]

    @property
    def size(self) -> tuple[int, int]:
        """S and N."""
        return len(self.evaluations), len(self.evaluations[0].key_N)

    def quality(self, mode: str) -> FloatArray:
        """Quality of every query of every seed, (S, N).

        Args:
            mode: discriminative or generative.
        """
        return np.stack([getattr(seed.outcomes, f"hit_{mode}") for seed in self.evaluations]).astype(np.float64)

    @cached_property
    def groups(self) -> dict[str, NDArray[np.bool_]]:
        """All queries, and those of each kind, each (N,)."""
        return {"all": np.full(self.size[1], True), **groups_of(self.evaluations[0])}

    def tokens_per_query(self) -> float:
        """CoT tokens where every query thinks."""
        return float(np.mean([seed.outcomes.tokens.mean() for seed in self.evaluations]))

    def metric(self, name: str) -> FloatArray:
        """A final value of every training's metrics.json, (S, 1).

        Raises:
            DataError: a training did not record it.
        """
        found = [run.metrics().get(name) for run in self.trainings]
        if None in found:
            raise DataError(f"{self.trainings[found.index(None)].path} has no {name} in its metrics.json.")
        return np.array(found, dtype=np.float64)[:, None]

    def late_mean(self, name: str, share: float = 0.1) -> FloatArray:
        """Mean of a logged value over the last share of every training's steps, (S, 1).

        Raises:
            DataError: a training did not log it then.
        """
        return np.array([_late_mean(run, name, share) for run in self.trainings])[:, None]


def _late_mean(run: RunFolder, name: str, share: float) -> float:
    lines = run.history()
    last = max((line["step"] for line in lines), default=0)
    values = [line[name] for line in lines if name in line and line["step"] > (1 - share) * last]
    if not values:
        raise DataError(f"{run.path} logged no {name} in the last {100 * share:.0f} % of its {last} steps.")
    return float(np.mean(values))


def read_variants(
    folders: Sequence[Path], name_of: Callable[[Settings], str], varied: Sequence[str]
) -> dict[str, Variant]:
    """Read models with their evaluations, and group them by how they were trained.

    Args:
        folders: one per model, with `sft` and `evaluate` in it.
        name_of: what the study calls a way of training.
        varied: dotted settings that the study varies; trainings may differ in nothing else that counts.

    Returns:
        Name -> variant, all with the same seeds.

    Raises:
        DataError: a folder lacks a run, evaluations differ in their queries, two models have the same name and seed, a
            variant lacks a seed of another one, or trainings differ in more than what the study varies.
    """
    evaluations = _evaluations(folders)
    found: dict[str, dict[int, tuple[RunFolder, Settings, SeedEvaluation]]] = {}
    for folder, evaluation in zip(folders, evaluations, strict=True):
        run = RunFolder(folder / "sft")
        settings = run.settings()
        by_seed = found.setdefault(name_of(settings), {})
        if settings.seed in by_seed:
            raise DataError(
                f"{folder} and {by_seed[settings.seed][0].path.parent} are both {name_of(settings)} with seed "
                f"{settings.seed}: name each model once."
            )
        by_seed[settings.seed] = (run, settings, evaluation)
    _require_same_seeds(found)
    models = chain.from_iterable(by_seed.values() for by_seed in found.values())
    _require_same_training([(run.path, settings) for run, settings, _ in models], (*FREE, *varied))
    return {name: _variant([by_seed[seed] for seed in sorted(by_seed)]) for name, by_seed in found.items()}


def _evaluations(folders: Sequence[Path]) -> list[SeedEvaluation]:
    runs = [folder / part for folder in folders for part in ("sft", "evaluate")]
    missing = [str(run) for run in runs if not (run / "config.yaml").is_file()]
    if missing:
        raise DataError(f"no run folder at {', '.join(missing)}: each model's folder holds `sft` and `evaluate`.")
    return read_seeds([folder / "evaluate" for folder in folders])


def _variant(models: Sequence[tuple[RunFolder, Settings, SeedEvaluation]]) -> Variant:
    trainings, settings, evaluations = zip(*models, strict=True)
    return Variant(list(trainings), list(settings), list(evaluations))


def _require_same_seeds(found: Mapping[str, Mapping[int, Any]]) -> None:
    seeds = {name: sorted(by_seed) for name, by_seed in found.items()}
    if len({tuple(of_one) for of_one in seeds.values()}) > 1:
        raise DataError(f"the variants have different seeds, and are compared seed by seed: {seeds}.")


def _require_same_training(models: Sequence[tuple[Path, Settings]], varied: Sequence[str]) -> None:
    first_path, first = models[0]
    expected = dict(_leaves(settings_to_dict(first)))
    for path, settings in models[1:]:
        values = dict(_leaves(settings_to_dict(settings)))
        wrong = [key for key in expected if values.get(key) != expected[key] and not _is_in(key, varied)]
        if wrong:
            shown = ", ".join(f"{key}={values.get(key)} instead of {expected[key]}" for key in wrong)
            raise DataError(
                f"{path} was trained with {shown}, unlike {first_path}; the study varies {', '.join(varied)} only."
            )


def _leaves(values: Mapping[str, Any], prefix: str = "") -> Iterable[tuple[str, Any]]:
    for key, value in values.items():
        if isinstance(value, Mapping):
            yield from _leaves(value, f"{prefix}{key}.")
        else:
            yield f"{prefix}{key}", value


def _is_in(key: str, varied: Sequence[str]) -> bool:
    return any(key == name or key.startswith(f"{name}.") for name in varied)


def variant_numbers(variants: Mapping[str, Variant], base: str) -> dict[str, Any]:
    """Size, cost and quality of every variant, by mode and kind of query, with its paired difference to one of them.

    Args:
        variants: as `read_variants` gives them.
        base: what the others are compared with.

    Raises:
        DataError: the base is not among them.
    """
    if base not in variants:
        raise DataError(f"no model is {base}, which the others are compared with; there are: {', '.join(variants)}.")
    order = [base, *(name for name in variants if name != base)]
    return {name: _numbers(variants[name], variants[base]) for name in order}


def _numbers(variant: Variant, base: Variant) -> dict[str, Any]:
    qualities = {mode: (variant.quality(mode), base.quality(mode)) for mode in MODES}
    return {
        "n_seeds": variant.size[0],
        "n_queries": variant.size[1],
        "parameters": parameters_of(variant.settings[0]),
        "tokens_per_query": variant.tokens_per_query(),
        "groups": {
            group: {
                mode: {
                    "quality": as_dict(bootstrap_over_seeds(np.asarray, own_SN[:, rows_N])),
                    "minus_base": as_dict(paired_bootstrap_over_seeds(own_SN[:, rows_N], base_SN[:, rows_N])),
                }
                for mode, (own_SN, base_SN) in qualities.items()
            }
            for group, rows_N in variant.groups.items()
        },
    }


def parameters_of(settings: Settings) -> dict[str, int]:
    """Parameters that training adds to one of the offline world's backbones: `added_parameters`.

    Raises:
        DataError: another backbone.
    """
    name = settings.model.name
    if name not in SHAPES:
        raise DataError(f"studies are made on {', '.join(SHAPES)}; this model is {name}.")
    tokenizer = build_tokenizer()
    config = backbone_config(SHAPES[name], len(tokenizer), tokenizer.get_vocab())
    return added_parameters(LanguageModelShape.from_config(config), settings.adapters)


@dataclass(frozen=True)
class Comparison:
    """A claim about two variants: the first's quality minus the second's, paired by seed and query.

    Args:
        claim: the statement, in one sentence that can be false.
        first: name of a variant.
        second: name of another one.
        mode: discriminative or generative.
        at_least: the bar.
    """

    claim: str
    first: str
    second: str
    mode: str
    at_least: float


def judge_comparisons(comparisons: Mapping[str, Comparison], variants: Mapping[str, Variant]) -> list[Claim]:
    """Claims from their ids and comparisons; those that name a variant that is not there are left out."""
    return [
        judged(
            id,
            this.claim,
            paired_bootstrap_over_seeds(
                variants[this.first].quality(this.mode), variants[this.second].quality(this.mode)
            ),
            at_least=this.at_least,
            n_seeds=variants[this.first].size[0],
            n_queries=variants[this.first].size[1],
        )
        for id, this in comparisons.items()
        if this.first in variants and this.second in variants
    ]
