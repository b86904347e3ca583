"""The routing gate, its self-supervised labels, its rivals and its threshold."""

from twn_lightning.gate.calibration import calibrate_threshold
from twn_lightning.gate.labels import gate_labels, outcome_losses, thinking_gain
from twn_lightning.gate.routers import ROUTERS, Outcomes, RouterScore, evaluate_router, route
from twn_lightning.gate.routing_gate import SIDE_INDEX, RoutingGate

__all__ = [
    "ROUTERS",
    "SIDE_INDEX",
    "Outcomes",
    "RouterScore",
    "RoutingGate",
    "calibrate_threshold",
    "evaluate_router",
    "gate_labels",
    "outcome_losses",
    "route",
    "thinking_gain",
]
