"""A recipe's training section as TRL's settings, one class per objective, and the escape hatch `training.extra`.

Usage: ``args = trainer_config(recipe.training, recipe.output, precision, steps=260)``
"""

from __future__ import annotations

import math
import warnings
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from difflib import get_close_matches
from importlib import import_module
from pathlib import Path
from typing import Any, get_type_hints

from pydantic import TypeAdapter, ValidationError
from trl import DPOConfig, KTOConfig, SFTConfig

from qlmm.core.errors import UsageError
from qlmm.model.numerics.precision import Precision
from qlmm.recipe.schema import OutputSection, TrainingSection

__all__ = ["LOSSES", "OBJECTIVES", "Objective", "expected_first_loss", "trainer_config", "verdict_weights"]

# What a recipe may pass on. The others are set by qlmm, would break a promise (exact resume, whole rows, rotation
# after sealing), or would let a shared recipe publish, load code or read files.
_NAMES = """
weight_decay adam_beta1 adam_beta2 adam_epsilon max_grad_norm optim_args lr_scheduler_kwargs label_smoothing_factor tf32
torch_compile torch_compile_backend torch_compile_mode use_liger_kernel liger_kernel_config neftune_noise_alpha
torch_empty_cache_steps full_determinism gradient_checkpointing_kwargs activation_offloading loss_type
dataloader_prefetch_factor dataloader_persistent_workers dataloader_multiprocessing_context
ddp_find_unused_parameters ddp_bucket_cap_mb ddp_broadcast_buffers ddp_static_graph ddp_backend ddp_timeout
average_tokens_across_devices router_aux_loss_coef run_name project log_level skip_memory_metrics
"""
_PASSED_ON = frozenset(_NAMES.split())
_DPO_NAMES = "beta label_smoothing ld_alpha f_divergence_type f_alpha_divergence_coef use_weighting discopop_tau"
# TRL 1.16's losses over pairs; a test holds the list against TRL.
_LOSS_NAMES = """
sigmoid hinge ipo exo_pair nca_pair robust bco_pair sppo_hard aot aot_unpaired apo_zero apo_down discopop sft
sigmoid_norm
"""
LOSSES = tuple(_LOSS_NAMES.split())
_OPTIMIZERS = {"adamw": "adamw_torch", "adamw_8bit": "adamw_8bit", "paged_adamw_8bit": "paged_adamw_8bit"}


@dataclass(frozen=True, slots=True)
class Objective:
    """What an objective is to TRL; the rows it learns from are in `qlmm.data.reading.dataset.KIND_OF`.

    Attributes:
        config: gives TRL's class of settings.
        names: what `training.extra` may hold besides what every objective takes.
        withheld: what it may not hold, though every other objective takes it.
        losses: what `training.losses` may name; none for an objective with one loss of its own.
        mixed: whether several losses may be added up, each with its weight.
        reference: whether a frozen copy of the start stands beside the model.
        fixed: TRL's fields that are set in every run.
        defaults: TRL's fields that are set unless the recipe says otherwise.
    """

    config: Callable[[], type[Any]]
    names: frozenset[str] = frozenset()
    withheld: frozenset[str] = frozenset()
    losses: tuple[str, ...] = ()
    mixed: bool = False
    reference: bool = False
    fixed: Mapping[str, Any] = field(default_factory=dict)
    defaults: Mapping[str, Any] = field(default_factory=dict)

    @property
    def passed_on(self) -> frozenset[str]:
        """Every name that `training.extra` may hold."""
        return (_PASSED_ON | self.names) - self.withheld


def _experimental(module: str, name: str) -> Callable[[], type[Any]]:
    """A class that TRL calls experimental, without TRL's warning: tests hold what is used of it."""

    def load() -> type[Any]:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            found: type[Any] = vars(import_module(f"trl.experimental.{module}"))[name]
            return found

    return load


# Lengths are checked when the run is planned; cutting here would cut pictures.
_WHOLE_ROWS = {"max_length": None}
# Routers are never trained, so that there is nothing to balance between experts.
_NO_BALANCING = {"router_aux_loss_coef": 0.0}
# What only the likelihood of every token has: elsewhere losses are named apart, and smoothing tokens would do nothing.
_OF_LIKELIHOOD = frozenset({"loss_type", "label_smoothing_factor"})
# Liger replaces the forward pass through which log-probabilities are taken; TRL guards its other trainers against it.
_LIGER = frozenset({"use_liger_kernel", "liger_kernel_config"})

OBJECTIVES: dict[str, Objective] = {
    "sft": Objective(
        config=lambda: SFTConfig,
        fixed={**_WHOLE_ROWS, "dataset_kwargs": {"skip_prepare_dataset": True}},
        defaults=_NO_BALANCING,
    ),
    "dpo": Objective(
        config=lambda: DPOConfig,
        names=frozenset(_DPO_NAMES.split()),
        withheld=_OF_LIKELIHOOD,
        losses=LOSSES,
        mixed=True,
        reference=True,
        fixed=_WHOLE_ROWS,
        defaults=_NO_BALANCING,
    ),
    "kto": Objective(
        config=lambda: KTOConfig,
        names=frozenset({"beta", "desirable_weight", "undesirable_weight"}),
        withheld=_OF_LIKELIHOOD,
        losses=("kto", "apo_zero_unpaired"),
        reference=True,
        fixed=_WHOLE_ROWS,
        defaults=_NO_BALANCING,
    ),
    "orpo": Objective(
        config=_experimental("orpo", "ORPOConfig"),
        names=frozenset({"beta"}),
        withheld=_OF_LIKELIHOOD | _LIGER,
    ),
    "simpo": Objective(
        config=_experimental("cpo", "CPOConfig"),
        names=frozenset({"beta", "simpo_gamma", "label_smoothing"}),
        withheld=_OF_LIKELIHOOD | _LIGER,
        # SimPO is CPO without its likelihood term, on means over tokens.
        fixed={"loss_type": "simpo", "cpo_alpha": 0.0},
        # CPO's own 0.1 belongs to sums over tokens; the paper's lie from 2.0 to 10.
        defaults={"beta": 2.0, "simpo_gamma": 0.5},
    ),
}
# Parameters that only some of DPO's losses read, and what goes with another divergence than the usual one (TRL 1.16).
_READ_BY = {
    "label_smoothing": {"exo_pair", "robust", "aot", "aot_unpaired"},
    "discopop_tau": {"discopop"},
}
_DIVERGENCES = ("reverse_kl", "forward_kl", "js_divergence", "alpha_divergence")
_OF_DIVERGENCE = {"sigmoid", "sigmoid_norm", "hinge", "ipo", "exo_pair", "robust", "discopop", "sft"}
_VERDICTS = ("desirable_weight", "undesirable_weight")


def trainer_config(training: TrainingSection, output: OutputSection, precision: Precision, *, steps: int) -> Any:
    """TRL's settings for a run of `steps` optimiser steps, of the class that belongs to the objective.

    Raises:
        UsageError: T001 for a name in `training.extra` that TRL's class lacks or that is not passed on, or for a value
            of another kind; T002 when TRL refuses the settings together; T004 for losses that are not of the objective
            or lack what they need, or a parameter of them that is not above 0; T006 for batches of one row where the
            loss compares rows of a batch.
    """
    objective = OBJECTIVES[training.objective]
    kind = objective.config()
    ours = _ours(training, output, precision, steps) | dict(objective.fixed) | _losses(training, objective)
    _check_numbers(training)
    for name, value in training.extra.items():
        _check_extra(name, value, ours, kind, objective.passed_on)
    try:
        return kind(**ours, **{**objective.defaults, **training.extra})
    except (ValueError, TypeError, ImportError) as error:
        said = str(error).splitlines()[0]
        raise UsageError.one("T002", f"TRL refuses the training section: {said}", help="change or drop it") from error


def expected_first_loss(training: TrainingSection) -> float | None:
    """The loss before the first step, where policy and reference are the same and the loss depends on nothing else.

    The sigmoid of no difference is one half. KTO's loss is that half times the weight of each row's verdict
    (arXiv 2402.01306, eq. 7, with no divergence yet), which is a number only where both weights are the same.
    """
    weighted = training.extra.get("use_weighting", False)
    if training.objective == "dpo" and set(training.losses or {"sigmoid": 1.0}) == {"sigmoid"} and not weighted:
        return training.losses.get("sigmoid", 1.0) * math.log(2)
    if training.objective == "kto":
        desirable, undesirable = verdict_weights(training)
        return 0.5 * desirable if desirable == undesirable else None
    return None


def verdict_weights(training: TrainingSection) -> tuple[float, float]:
    """What KTO's loss of a desirable and of an undesirable answer is multiplied by."""
    desirable, undesirable = (float(training.extra.get(name, 1.0)) for name in _VERDICTS)
    return desirable, undesirable


def _losses(training: TrainingSection, objective: Objective) -> dict[str, Any]:
    """TRL's fields for the losses of an objective."""
    if not objective.losses:
        if training.losses:
            raise _not_of(training.objective, next(iter(training.losses)))
        return {}
    losses = training.losses or {objective.losses[0]: 1.0}
    for name in losses:
        if name not in objective.losses:
            raise _not_of(training.objective, name)
    if objective.mixed:
        return {"loss_type": list(losses), "loss_weights": list(losses.values())}
    (name, weight), *more = losses.items()
    if more or weight != 1:
        raise UsageError.one(
            "T004",
            f"training.losses: objective {training.objective} takes one loss, with weight 1",
            help=f"leave one of {', '.join(losses)}: 1.0; verdicts are weighed by training.extra.desirable_weight "
            "and undesirable_weight",
        )
    return {"loss_type": name}


def _not_of(objective: str, loss: str) -> UsageError:
    """Why an objective does not have a loss, and where it is."""
    own = OBJECTIVES[objective].losses
    owner = next((name for name, other in OBJECTIVES.items() if loss in other.losses), None)
    if owner is None and own:
        close = get_close_matches(loss, own, n=1)
        help = f"did you mean `{close[0]}`?" if close else f"losses there are: {', '.join(own)}"
        return UsageError.one("T004", f"training.losses: TRL has no loss `{loss}`", help=help)
    if owner is None:
        message = f"training.losses: objective {objective} has one loss of its own"
        return UsageError.one("T004", message, help="leave training.losses out")
    why = {
        "sft": "belongs to preferences, and objective sft has one loss",
        "dpo": "judges one answer, and objective dpo compares two",
        "kto": "compares two answers, and objective kto has one a row",
    }.get(objective, f"needs a reference, and objective {objective} has none")
    # The one loss of DPO's that is no comparison is the likelihood itself.
    why = f"is no loss of objective {objective}" if loss == "sft" else why
    return UsageError.one("T004", f"training.losses: {loss} {why}", help=f"use objective {owner}")


def _check_numbers(training: TrainingSection) -> None:
    """Refuse numbers with which a loss would be constant, turned round or not there."""
    for name in ("beta", *_VERDICTS):
        value = training.extra.get(name, 1.0)
        if not isinstance(value, float | int) or value <= 0:
            raise UsageError.one(
                "T004", f"training.extra: {name} {value} must be above 0", help="leave it out for the default"
            )
    if "exo_pair" in training.losses and not training.extra.get("label_smoothing", 0.0):
        raise UsageError.one(
            "T004", "training.losses: exo_pair needs label_smoothing", help="set training.extra.label_smoothing=0.001"
        )
    if training.objective == "dpo":
        _check_together(set(training.losses or {"sigmoid": 1.0}), training.extra)
    if training.objective == "kto" and "apo_zero_unpaired" not in training.losses and training.batch_size < 2:
        raise UsageError.one(
            "T006",
            "training.batch_size: objective kto sets an answer against another one of its batch, and 1 row has none",
            help="set training.batch_size=2 or more, or training.losses={apo_zero_unpaired: 1.0}, which does without",
        )


def _check_together(losses: set[str], extra: Mapping[str, Any]) -> None:
    """Refuse parameters that TRL's losses do not read, or cannot take, before anything is loaded."""
    for name, readers in _READ_BY.items():
        if name in extra and not losses & readers:
            message = f"training.extra: no loss of {', '.join(sorted(losses))} reads {name}"
            raise UsageError.one("T004", message, help=f"leave it out; it belongs to {', '.join(sorted(readers))}")
    divergence = extra.get("f_divergence_type", "reverse_kl")
    if divergence not in _DIVERGENCES:
        message = f"training.extra: TRL has no f_divergence_type `{divergence}`"
        raise UsageError.one("T004", message, help=f"those there are: {', '.join(_DIVERGENCES)}")
    refused = {
        f"f_divergence_type {divergence}": set() if divergence == "reverse_kl" else losses - _OF_DIVERGENCE,
        "use_weighting": losses & {"aot", "aot_unpaired", "sft"} if extra.get("use_weighting") else set(),
        "label_smoothing 0.5": losses & {"robust"} if extra.get("label_smoothing") == 0.5 else set(),
    }
    for what, which in refused.items():
        if which:
            message = f"training.extra: {what} does not go with {', '.join(sorted(which))}"
            raise UsageError.one("T004", message, help="drop one of the two")


def _check_extra(name: str, value: Any, ours: dict[str, Any], kind: type[Any], names: frozenset[str]) -> None:
    """Refuse what is not TRL's, not for a recipe to say, or of the wrong kind."""
    kinds = get_type_hints(kind)
    if name not in kinds:
        close = get_close_matches(name, sorted(names), n=1)
        hint = f"did you mean `{close[0]}`?" if close else "leave it out"
        raise UsageError.one("T001", f"training.extra: `{name}` is not a field of TRL's {kind.__name__}", help=hint)
    if name not in names:
        why = (
            "is set by qlmm itself"
            if name in ours
            else "cannot be passed on: it would break a promise of the run, or do nothing"
        )
        hint = "use the recipe's own key for it, or leave it out"
        raise UsageError.one("T001", f"training.extra: `{name}` {why}", help=hint)
    try:
        TypeAdapter(kinds[name]).validate_python(value, strict=True)
    except ValidationError as error:
        rule = error.errors(include_input=False)[0]["msg"].removeprefix("Input ")
        hint = f"write the value as TRL's {kind.__name__} documents it"
        raise UsageError.one("T001", f"training.extra: `{name}` {rule}", help=hint) from error


def _ours(training: TrainingSection, output: OutputSection, precision: Precision, steps: int) -> dict[str, Any]:
    return {
        "output_dir": str(Path(output.dir)),
        "per_device_train_batch_size": training.batch_size,
        "gradient_accumulation_steps": training.accumulation,
        "max_steps": steps,
        "learning_rate": training.learning_rate,
        "lr_scheduler_type": training.schedule,
        "warmup_steps": round(training.warmup * steps),
        "optim": _OPTIMIZERS[training.optimizer],
        "gradient_checkpointing": training.gradient_checkpointing,
        "bf16": precision.name == "bf16",
        "fp16": precision.name == "fp16",
        "use_cpu": precision.device == "cpu",
        "seed": training.seed,
        "data_seed": training.seed,
        "dataloader_num_workers": training.workers,
        "dataloader_pin_memory": precision.device == "cuda",
        "logging_steps": training.log_every,
        "logging_first_step": True,
        # A NaN must be seen: the filter would replace it by zero in the log and go on.
        "logging_nan_inf_filter": False,
        "save_strategy": "steps",
        "save_steps": training.save_every,
        # Rotation is ours: the stock one deletes before the new checkpoint is sealed.
        "save_total_limit": None,
        "eval_strategy": "no",
        "report_to": list(output.trackers) or "none",
        "disable_tqdm": True,
        "remove_unused_columns": False,
    }
