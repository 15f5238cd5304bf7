"""Direct preference optimisation and its relatives: which of two answers is better (arXiv 2305.18290).

The reference is what the run started from. For a fresh adapter that is the base itself.

Usage: ``training: {objective: dpo, losses: {sigmoid: 0.8, sft: 1.0}}`` in a recipe
"""

from __future__ import annotations

import math

from qlmm.proof.promises import kept_reference
from qlmm.recipe.schema import TrainingSection
from qlmm.training.objective import NO_BALANCING, OF_LIKELIHOOD, WHOLE_ROWS, Objective, lazily, pair_collator, refused

__all__ = ["LOSSES", "OBJECTIVE"]

# TRL 1.16's losses over pairs; a test compares the list with TRL.
LOSSES = (
    "sigmoid", "hinge", "ipo", "exo_pair", "nca_pair", "robust", "bco_pair", "sppo_hard", "aot", "aot_unpaired",
    "apo_zero", "apo_down", "discopop", "sft", "sigmoid_norm",
)  # fmt: skip
_NAMES = "beta label_smoothing ld_alpha f_divergence_type f_alpha_divergence_coef use_weighting discopop_tau"
# Parameters that only some losses read, and what goes with another divergence than the usual one (TRL 1.16).
_READ_BY = {"label_smoothing": {"exo_pair", "robust", "aot", "aot_unpaired"}, "discopop_tau": {"discopop"}}
_DIVERGENCES = ("reverse_kl", "forward_kl", "js_divergence", "alpha_divergence")
_OF_DIVERGENCE = {"sigmoid", "sigmoid_norm", "hinge", "ipo", "exo_pair", "robust", "discopop", "sft"}

# What sorts a batch, keeps a mean over batches, or means over the tokens of one (TRL 1.16).
_OVER_A_BATCH = {"aot", "aot_unpaired", "bco_pair", "sft"}


def _check(training: TrainingSection) -> None:
    """Refuse parameters that TRL's losses do not read, or cannot take."""
    losses, extra = set(training.losses or {"sigmoid": 1.0}), training.extra
    if "exo_pair" in losses and not extra.get("label_smoothing", 0.0):
        raise refused("losses", "exo_pair needs label_smoothing", "set training.extra.label_smoothing=0.001")
    for name, readers in _READ_BY.items():
        if name in extra and not losses & readers:
            message = f"no loss of {', '.join(sorted(losses))} reads {name}"
            raise refused("extra", message, f"leave it out; it belongs to {', '.join(sorted(readers))}")
    divergence = extra.get("f_divergence_type", "reverse_kl")
    if divergence not in _DIVERGENCES:
        message = f"TRL has no f_divergence_type `{divergence}`"
        raise refused("extra", message, f"those there are: {', '.join(_DIVERGENCES)}")
    together = {
        f"f_divergence_type {divergence}": set() if divergence == "reverse_kl" else losses - _OF_DIVERGENCE,
        "use_weighting": losses & {"aot", "aot_unpaired", "sft"} if extra.get("use_weighting") else set(),
        "label_smoothing 0.5": losses & {"robust"} if extra.get("label_smoothing") == 0.5 else set(),
    }
    for what, which in together.items():
        if which:
            raise refused("extra", f"{what} does not go with {', '.join(sorted(which))}", "drop one of the two")


def _first_loss(training: TrainingSection) -> float | None:
    """The sigmoid of no difference is one half; other losses depend on more than that difference."""
    only_sigmoid = set(training.losses or {"sigmoid": 1.0}) == {"sigmoid"}
    if not only_sigmoid or training.extra.get("use_weighting", False):
        return None
    return training.losses.get("sigmoid", 1.0) * math.log(2)


OBJECTIVE = Objective(
    rows="preference",
    config=lazily("trl:DPOConfig"),
    trainer=lazily("qlmm.training.trainers.reference:DpoTrainer"),
    collator=pair_collator,
    lacks="judges one answer, and objective dpo compares two",
    names=frozenset(_NAMES.split()),
    withheld=OF_LIKELIHOOD,
    positive=frozenset({"beta"}),
    losses=LOSSES,
    mixed=True,
    reference=True,
    fixed={**WHOLE_ROWS, **NO_BALANCING},
    passes=2,
    separable=lambda training: training.losses.keys().isdisjoint(_OVER_A_BATCH),
    check=_check,
    first_loss=_first_loss,
    promises=kept_reference,
)
