"""What an objective is: one record per file of `qlmm/training/objectives`, whose name a recipe gives.

A file names TRL's classes by `lazily`: data checks read every objective, and TRL takes seconds to import.

Usage: ``objective("dpo").rows  # "preference"``
"""

from __future__ import annotations

import warnings
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from importlib import import_module
from operator import attrgetter
from typing import TYPE_CHECKING, Any

from qlmm.core import naming
from qlmm.core.errors import UsageError
from qlmm.data.errors import OtherKind
from qlmm.data.reading.dataset import TAKEN
from qlmm.data.sample import Example, Feedback, Kind
from qlmm.proof.records import Promise, ReferenceProof
from qlmm.recipe.schema import OBJECTIVES, TrainingSection

if TYPE_CHECKING:
    from qlmm.data.batching.collators import Collator
    from qlmm.data.batching.mixture import Mixture
    from qlmm.data.encoding.encoder import Encoder
    from qlmm.training.trainers.base import PartsTrainer

__all__ = [
    "NOT_PASSED_ON", "NO_BALANCING", "OF_LIKELIHOOD", "REFERENCE", "WHOLE_ROWS", "Objective", "collator", "exemplary",
    "in_epoch", "lazily", "objective", "objectives", "objectives_by_rows", "pair_collator", "redirected", "refused",
]  # fmt: skip

# What every objective takes in `training.extra`. qlmm sets the others itself, or they would break a promise (exact
# resume, whole rows, rotation after sealing), or they would let a shared recipe publish, load code or read files.
_NAMES = """
weight_decay adam_beta1 adam_beta2 adam_epsilon max_grad_norm lr_scheduler_kwargs label_smoothing_factor tf32
neftune_noise_alpha torch_empty_cache_steps full_determinism gradient_checkpointing_kwargs loss_type
dataloader_prefetch_factor dataloader_persistent_workers dataloader_multiprocessing_context
run_name project log_level skip_memory_metrics
"""
_PASSED_ON = frozenset(_NAMES.split())
_COMPILED = "it renames the weights, which a run compares by their names"
_LIGER = "it replaces the forward pass whose losses a run compares"
# Why settings that people ask for are not among them.
NOT_PASSED_ON: Mapping[str, str] = {
    **dict.fromkeys(("torch_compile", "torch_compile_backend", "torch_compile_mode"), _COMPILED),
    **dict.fromkeys(("use_liger_kernel", "liger_kernel_config"), _LIGER),
    "activation_offloading": "it moves activations by hooks, which were not tried beside a frozen tower",
    "optim_args": "it is not read by the optimisers of a recipe",
}

# The name that TRL gives to its frozen copy of the adapter, connector included.
REFERENCE = "ref"
# Lengths are checked when the run is planned; cutting here would cut pictures.
WHOLE_ROWS: Mapping[str, Any] = {"max_length": None}
# Routers are never trained, so that there is nothing to balance between experts.
NO_BALANCING: Mapping[str, Any] = {"router_aux_loss_coef": 0.0}
# What only the likelihood of every token has: elsewhere losses are named apart, and smoothing tokens would do nothing.
OF_LIKELIHOOD = frozenset({"loss_type", "label_smoothing_factor"})


@dataclass(frozen=True, kw_only=True)
class Objective:
    """Everything that differs between objectives.

    Attributes:
        rows: the kind of row it learns from.
        config: gives TRL's class of settings.
        trainer: gives the class that trains: one of ours before a trainer of TRL.
        collator: makes the collator from the rows, their encoder and TRL's settings.
        lacks: why another objective's loss is not one of its own, as the end of a sentence.
        through_head: whether log-probabilities come from TRL's fused head, which not every class has.
        names: what `training.extra` may have besides what every objective takes.
        withheld: what it may not have, though every other objective takes it.
        positive: numbers of `names` that must be above 0.
        losses: what `training.losses` may name; none for an objective with one loss of its own.
        mixed: whether several losses may be added up, each with its weight.
        reference: whether a frozen copy of the start stands beside the model.
        fixed: TRL's fields that are set in every run.
        defaults: TRL's fields that are set unless the recipe sets them.
        passes: how often a step shows each of its pictures to the tower.
        separable: whether the loss of a batch is the mean of the losses of its parts, each by its rows or tokens.
        check: refuses settings that would not work together.
        taught: the rows to learn from that one row gives.
        warnings: warnings of the plan about the rows of an epoch.
        first_loss: the loss before the first step, where it follows from the settings alone.
        promises: what a run promises beside what every run promises.
    """

    rows: Kind
    config: Callable[[], type[Any]]
    trainer: Callable[[], type[PartsTrainer]]
    collator: Callable[[Sequence[Example], Encoder, Any], Collator]
    lacks: str
    through_head: bool = True
    names: frozenset[str] = frozenset()
    withheld: frozenset[str] = frozenset()
    positive: frozenset[str] = frozenset()
    losses: tuple[str, ...] = ()
    mixed: bool = False
    reference: bool = False
    fixed: Mapping[str, Any] = field(default_factory=dict)
    defaults: Mapping[str, Any] = field(default_factory=dict)
    passes: int = 1
    separable: Callable[[TrainingSection], bool] = lambda training: True
    check: Callable[[TrainingSection], None] = lambda training: None
    taught: Callable[[Example], tuple[Example, ...]] = lambda row: (row,)
    warnings: Callable[[TrainingSection, Mixture, Sequence[Example]], Iterable[str]] = lambda *_: ()
    first_loss: Callable[[TrainingSection], float | None] = lambda training: None
    promises: Callable[[ReferenceProof | None], Iterable[Promise]] = lambda reference: ()

    @property
    def passed_on(self) -> frozenset[str]:
        """Every name that `training.extra` may have."""
        return (_PASSED_ON | self.names) - self.withheld


def objective(name: str) -> Objective:
    """The objective of a name, or error N001."""
    return naming.load(OBJECTIVES, name, "OBJECTIVE", Objective)


def objectives() -> dict[str, Objective]:
    """Every objective by its name."""
    return {name: objective(name) for name in naming.names(OBJECTIVES)}


def objectives_by_rows() -> dict[Kind, tuple[str, ...]]:
    """Names of the objectives that can learn from each kind of row."""
    known = objectives()
    return {
        kind: tuple(name for name, one in known.items() if kind in TAKEN[one.rows])
        for kind in dict.fromkeys(one.rows for one in known.values())
    }


def redirected(error: OtherKind) -> OtherKind:
    """The refusal of rows of another kind, with the objectives that learn from such rows."""
    *others, last = objectives_by_rows()[error.found]
    named = f"{', '.join(others)} or {last}" if others else last
    help = f"such rows belong to training.objective: {named}"
    return error.with_problems(
        [replace(one, help=f"{help}; {one.help}" if one.help else help) for one in error.problems]
    )


def lazily(place: str) -> Callable[[], Any]:
    """A function that imports ``module:name`` when it is called: TRL takes seconds to import."""

    def load() -> Any:
        module, _, name = place.partition(":")
        # TRL warns of its experimental classes; tests check what is used of them.
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            return attrgetter(name)(import_module(module))

    return load


def collator(name: str) -> Callable[[Sequence[Example], Encoder, Any], Collator]:
    """What makes a collator of a class of `qlmm.data.batching.collators`, which is imported when it is called."""
    found = lazily(f"qlmm.data.batching.collators:{name}")
    return lambda rows, encoder, args: found()(rows, encoder)


pair_collator = collator("PairCollator")


def exemplary(row: Example) -> bool:
    """Whether a row's answer should become likelier: all but an undesirable one."""
    return not isinstance(row, Feedback) or row.desirable


def in_epoch(mixture: Mixture, value: Callable[[int], float]) -> float:
    """A value of each row, summed over an epoch; a source that is only taken in part counts with the part's share."""
    return sum(sum(value(row) for row in one.rows) / len(one.rows) * one.count for one in mixture.strata)


def refused(key: str, message: str, help: str, code: str = "T004") -> UsageError:
    """Why a key of the training section cannot work, and what to change."""
    return UsageError.one(code, message, help=help, key=f"training.{key}")
