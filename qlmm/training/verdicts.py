"""What a plan does with judged answers: pairs become two rows each, praise is held out, and verdicts are counted.

Usage: ``rows = [one for row in loaded.samples for one in taught_by(row, "kto")]``
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import replace

from qlmm.data.batching.mixture import Mixture
from qlmm.data.errors import OtherKind
from qlmm.data.reading.dataset import TAKEN
from qlmm.data.sample import Example, Feedback, Kind, Preference
from qlmm.recipe.schema import TrainingSection
from qlmm.training.trl_settings import verdict_weights

__all__ = ["KIND_OF", "exemplary", "redirected", "taught_by", "warnings"]

# What each objective learns from.
KIND_OF: dict[str, Kind] = {
    "sft": "conversation",
    "dpo": "preference",
    "orpo": "preference",
    "simpo": "preference",
    "kto": "feedback",
}

# Desirable over undesirable rows, each counted with its weight: arXiv 2402.01306, eq. 8, as TRL 1.16 has it.
LEAST, MOST = 1.0, 1.33


def redirected(error: OtherKind) -> OtherKind:
    """The refusal of rows of another kind, with the objectives that learn from them."""
    *others, last = [objective for objective, kind in KIND_OF.items() if error.found in TAKEN[kind]]
    named = f"{', '.join(others)} or {last}" if others else last
    help = f"such rows belong to training.objective: {named}"
    return error.with_problems([replace(problem, help=help) for problem in error.problems])


def taught_by(row: Example, objective: str) -> tuple[Example, ...]:
    """The rows to learn from that a row gives: a pair is two judged answers where the objective takes these."""
    return row.judged() if isinstance(row, Preference) and KIND_OF[objective] == "feedback" else (row,)


def exemplary(row: Example) -> bool:
    """Whether a held-out row's answer is one to become likelier: an undesirable answer measures nothing."""
    return not isinstance(row, Feedback) or row.desirable


def warnings(training: TrainingSection, mixture: Mixture, rows: Sequence[Example]) -> Iterator[str]:
    """What is amiss with the verdicts of an epoch's rows."""
    if KIND_OF[training.objective] != "feedback":
        return
    desirable, undesirable = _counts(mixture, rows)
    if not desirable or not undesirable:
        yield f"every answer is {'desirable' if desirable else 'undesirable'}: what sets good from bad is not learned"
        return
    for_desirable, for_undesirable = verdict_weights(training)
    ratio = desirable * for_desirable / (undesirable * for_undesirable)
    if not LEAST <= round(ratio, 2) <= MOST:
        fit = undesirable * for_undesirable / desirable
        yield (
            f"{desirable:,.0f} desirable and {undesirable:,.0f} undesirable answers are {ratio:.2f} to 1 by weight, "
            f"and {LEAST:g} to {MOST:g} is recommended: set training.extra.desirable_weight from {fit * LEAST:.3g} "
            f"to {fit * MOST:.3g}"
        )


def _counts(mixture: Mixture, rows: Sequence[Example]) -> tuple[float, float]:
    """Desirable and undesirable rows of an epoch; where it has only part of a source, the part's share of them."""
    shares = [
        sum(exemplary(rows[row]) for row in stratum.rows) / len(stratum.rows) * stratum.count
        for stratum in mixture.strata
    ]
    return sum(shares), len(mixture) - sum(shares)
