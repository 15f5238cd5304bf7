"""Everything that is measured on held-out rows, together: before training, on the way, and after it.

Usage: ``before = Measures(plan)(model, step=0, listener=listener)``
"""

from __future__ import annotations

from dataclasses import asdict

from torch import nn

from qlmm.core.errors import RunError
from qlmm.core.events import Evaluated, Listener, PairsEvaluated
from qlmm.evaluation.heldout import HeldOut
from qlmm.evaluation.pairs import HeldOutPairs
from qlmm.model.numerics.finite import is_finite
from qlmm.proof.records import HeldOutProof, PairProof, PictureProof
from qlmm.training.plan import Plan

__all__ = ["Measures"]


class Measures:
    """The held-out rows of a plan, ready to be measured as often as wanted."""

    def __init__(self, plan: Plan) -> None:
        how = (plan.encoder, plan.precision, plan.recipe.training.batch_size)
        spare = [plan.train[row] for row in plan.readable]
        self._rows = HeldOut(plan.held_out, *how, needs_pictures=plan.needs_pictures, spare=spare)
        self._pairs = HeldOutPairs(plan.pairs, *how, spare=spare)

    def __call__(self, model: nn.Module, *, step: int, listener: Listener) -> HeldOutProof:
        """Measure a model, and pass on what was found at that step.

        Raises:
            RunError: G005 when a figure is not finite, which proves nothing.
        """
        pictures, pairs = self._rows.measure(model), self._pairs.measure(model)
        _check_finite("losses", pictures, step)
        _check_finite("pairs", pairs, step)
        if pictures is not None:
            listener(Evaluated(step, {"right": pictures.right, "shuffled": pictures.shuffled, "none": pictures.none}))
        if pairs is not None:
            listener(PairsEvaluated(step, pairs.won, pairs.margin, pairs.won_swapped, pairs.margin_swapped, pairs.kl))
        return HeldOutProof(pictures, pairs)


def _check_finite(what: str, found: PictureProof | PairProof | None, step: int) -> None:
    figures = asdict(found) if found is not None else {}
    wrong = [f"{name} is {value}" for name, value in figures.items() if not is_finite(value)]
    if wrong:
        raise RunError.one(
            "G005",
            f"held-out {what} at step {step}: {', '.join(wrong)}",
            help="set training.precision=fp32, look at the held-out rows, or lower the learning rates",
        )
