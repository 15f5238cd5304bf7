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
        how = (plan.encoder, plan.precision, plan.recipe.training.batch_size)
        self._rows = HeldOut(plan.held_out, *how, needs_pictures=plan.needs_pictures)
        self._pairs = HeldOutPairs(plan.pairs, *how)

    def __call__(self, model: nn.Module, *, step: int, listener: Listener) -> HeldOutProof:
        """Measure a model, and pass on what was found at that step."""
        pictures, pairs = self._rows.measure(model), self._pairs.measure(model)
        if pictures is not None:
            listener(Evaluated(step, {"right": pictures.right, "shuffled": pictures.shuffled, "none": pictures.none}))
        if pairs is not None:
            listener(PairsEvaluated(step, pairs.won, pairs.margin, pairs.won_swapped, pairs.margin_swapped, pairs.kl))
        return HeldOutProof(pictures, pairs)
