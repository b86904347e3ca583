"""What the calibration of the gate may not ask for. Split from `rules`, which calls it."""

from __future__ import annotations

from collections.abc import Iterator

from twn_lightning.settings import DataSettings, GateSettings

KeysAndMessage = tuple[tuple[str, ...], str]

_LEVELS = {"conformal_quality": "quality_tolerance", "conformal_budget": "token_budget"}


def contradictions(gate: GateSettings, data: DataSettings) -> Iterator[KeysAndMessage]:
    """The keys a problem rests on, and what is wrong."""
    name = _LEVELS.get(gate.calibration)
    if name is None:
        if gate.delta is not None:
            yield (
                ("gate.calibration", "gate.delta"),
                f"gate.delta is {gate.delta}, but gate.calibration={gate.calibration} guarantees nothing: set "
                "gate.delta to null, or gate.calibration to conformal_quality or conformal_budget",
            )
        return
    # The other half of the calibration split selects the gate.
    num_queries, level = data.calibration_pairs // 2, getattr(gate, name)
    least = smallest_level(num_queries, gate.delta) if num_queries else 1.0
    if level < least:
        yield (
            ("gate.calibration", f"gate.{name}", "gate.delta", "data.calibration_pairs"),
            f"gate.{name}={level} cannot be guaranteed with {num_queries} queries (half of data.calibration_pairs="
            f"{data.calibration_pairs}): the least possible is {least:.3g}. Raise data.calibration_pairs or "
            f"gate.{name}",
        )


def smallest_level(num_queries: int, delta: float | None = None) -> float:
    """The tightest tolerance or budget that `gate.budgets` can guarantee.

    A threshold at which no calibration query loses anything reaches it; for a budget every CoT must be as long as the
    cap, too.

    Args:
        num_queries: Calibration queries, at least 1.
        delta: Probability that the guarantee may fail; None: it holds in expectation.
    """
    return 1 / (num_queries + 1) if delta is None else 1 - delta ** (1 / num_queries)
