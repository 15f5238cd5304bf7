"""Kahneman-Tversky optimisation: answers judged one by one, and pairs as two of them (arXiv 2402.01306).

The reference is what the run started from. A plan warns where desirable and undesirable answers differ in weight.

Usage: ``training: {objective: kto, extra: {desirable_weight: 1.5}}`` in a recipe
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING, Any

from qlmm.data.sample import Example, Preference
from qlmm.proof.promises import kept_reference
from qlmm.recipe.schema import TrainingSection
from qlmm.training.objective import (
    NO_BALANCING,
    OF_LIKELIHOOD,
    WHOLE_ROWS,
    Objective,
    exemplary,
    in_epoch,
    lazily,
    refused,
)

if TYPE_CHECKING:
    from qlmm.data.batching.collators import Collator
    from qlmm.data.batching.mixture import Mixture
    from qlmm.data.encoding.encoder import Encoder

__all__ = ["OBJECTIVE"]

_WEIGHTS = ("desirable_weight", "undesirable_weight")
# Desirable over undesirable rows, each counted with its weight: arXiv 2402.01306, eq. 8, as TRL 1.16 has it.
_LEAST, _MOST = 1.0, 1.33


def _collator(rows: Sequence[Example], encoder: Encoder, args: Any) -> Collator:
    """Only the loss called kto compares a row with another one's answer."""
    from qlmm.data.batching.collators import FeedbackCollator

    return FeedbackCollator(rows, encoder, kl=args.loss_type == "kto")


def _weights(training: TrainingSection) -> tuple[float, float]:
    """What the loss of a desirable and of an undesirable answer is multiplied by."""
    desirable, undesirable = (float(training.extra.get(name, 1.0)) for name in _WEIGHTS)
    return desirable, undesirable


def _check(training: TrainingSection) -> None:
    if "apo_zero_unpaired" not in training.losses and training.batch_size < 2:
        raise refused(
            "batch_size",
            "objective kto sets an answer against another one of its batch, and 1 row has none",
            "set training.batch_size=2 or more, or training.losses={apo_zero_unpaired: 1.0}, which does without",
            "T006",
        )


def _taught(row: Example) -> tuple[Example, ...]:
    """A pair is two judged answers."""
    return row.judged() if isinstance(row, Preference) else (row,)


def _warnings(training: TrainingSection, mixture: Mixture, rows: Sequence[Example]) -> Iterator[str]:
    """What is amiss with the verdicts of an epoch's rows."""
    desirable = in_epoch(mixture, lambda row: exemplary(rows[row]))
    undesirable = len(mixture) - desirable
    if not desirable or not undesirable:
        yield f"every answer is {'desirable' if desirable else 'undesirable'}: what sets good from bad is not learned"
        return
    for_desirable, for_undesirable = _weights(training)
    ratio = desirable * for_desirable / (undesirable * for_undesirable)
    if not _LEAST <= round(ratio, 2) <= _MOST:
        fit = undesirable * for_undesirable / desirable
        yield (
            f"{desirable:,.0f} desirable and {undesirable:,.0f} undesirable answers are {ratio:.2f} to 1 by weight, "
            f"and {_LEAST:g} to {_MOST:g} is recommended: set training.extra.desirable_weight from {fit * _LEAST:.3g} "
            f"to {fit * _MOST:.3g}"
        )


def _first_loss(training: TrainingSection) -> float | None:
    """One half times each row's weight (eq. 7, with no divergence yet): a number where both weights are the same."""
    desirable, undesirable = _weights(training)
    return 0.5 * desirable if desirable == undesirable else None


OBJECTIVE = Objective(
    rows="feedback",
    config=lazily("trl:KTOConfig"),
    trainer=lazily("qlmm.training.trainers.reference:KtoTrainer"),
    collator=_collator,
    lacks="compares two answers, and objective kto has one a row",
    names=frozenset({"beta", *_WEIGHTS}),
    withheld=OF_LIKELIHOOD,
    positive=frozenset({"beta", *_WEIGHTS}),
    losses=("kto", "apo_zero_unpaired"),
    reference=True,
    fixed={**WHOLE_ROWS, **NO_BALANCING},
    passes=4,
    separable=lambda training: "apo_zero_unpaired" in training.losses,
    check=_check,
    taught=_taught,
    warnings=_warnings,
    first_loss=_first_loss,
    promises=kept_reference,
)
