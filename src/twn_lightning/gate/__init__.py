"""The routing gate, its self-supervised labels, its rivals and its threshold."""

from twn_lightning.gate.budgets import CONFORMAL, conformal_threshold
from twn_lightning.gate.calibration import calibrate_threshold
from twn_lightning.gate.coverage import Coverage, measure_coverage
from twn_lightning.gate.gate_trunk import SIDE_INDEX, GateTrunk
from twn_lightning.gate.graded_gate import GradedGate
from twn_lightning.gate.labels import gate_labels, graded_labels, outcome_losses, thinking_gain
from twn_lightning.gate.routers import ROUTERS, Outcomes, RouterScore, evaluate_router, route
from twn_lightning.gate.routing_gate import RoutingGate

__all__ = [
    "CONFORMAL",
    "ROUTERS",
    "SIDE_INDEX",
    "Coverage",
    "GateTrunk",
    "GradedGate",
    "Outcomes",
    "RouterScore",
    "RoutingGate",
    "calibrate_threshold",
    "conformal_threshold",
    "evaluate_router",
    "gate_labels",
    "graded_labels",
    "measure_coverage",
    "outcome_losses",
    "route",
    "thinking_gain",
]
