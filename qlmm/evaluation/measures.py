"""Everything that is measured on held-out rows, together: before training, on the way, and after it.

Usage: ``before = Measures(plan)(model, step=0, listener=listener)``
"""

from __future__ import annotations

from torch import nn

from qlmm.core.events import Evaluated, Listener, PairsEvaluated
from qlmm.evaluation.heldout import HeldOut
from qlmm.evaluation.pairs import HeldOutPairs
from qlmm.proof.records import HeldOutProof
from qlmm.training.plan import Plan

__all__ = ["Measures"]


class Measures:
    """The held-out rows of a plan, ready to be measured as often as wanted."""

    def __init__(self, plan: Plan) -> None:
        size, asked = plan.recipe.training.batch_size, plan.objective.measures
        rows, pairs = (plan.held_out if "pictures" in asked else ()), (plan.pairs if "pairs" in asked else ())
        self._rows = HeldOut(rows, plan.encoder, plan.precision, size, needs_pictures=plan.needs_pictures)
        self._pairs = HeldOutPairs(pairs, plan.encoder, plan.precision, size)

    def __call__(self, model: nn.Module, *, step: int, listener: Listener) -> HeldOutProof:
        """Measure a model and tell the listener what was found at that step."""
        pictures = self._rows.measure(model)
        if pictures is not None:
            losses = {"right": pictures.right, "shuffled": pictures.shuffled, "none": pictures.none}
            listener(Evaluated(step, losses))
        pairs = self._pairs.measure(model)
        if pairs is not None:
            listener(
                PairsEvaluated(
                    step,
                    won=pairs.won,
                    margin=pairs.margin,
                    won_swapped=pairs.won_swapped,
                    margin_swapped=pairs.margin_swapped,
                    kl=pairs.kl,
                )
            )
        return HeldOutProof(pictures, pairs)
