"""A recipe's training section as TRL's settings, of the objective's class, and the escape hatch `training.extra`.

Usage: ``args = trainer_config(recipe.training, recipe.output, precision, steps=260)``
"""

from __future__ import annotations

from collections.abc import Mapping
from difflib import get_close_matches
from pathlib import Path
from typing import Any, get_type_hints

from pydantic import TypeAdapter, ValidationError

from qlmm.core.errors import UsageError
from qlmm.model.numerics.precision import Precision
from qlmm.recipe.schema import OutputSection, TrainingSection
from qlmm.training.load import EVERY, KWARGS
from qlmm.training.objective import NOT_PASSED_ON, Objective, objective, objectives, refused

__all__ = ["trainer_config"]


def trainer_config(training: TrainingSection, output: OutputSection, precision: Precision, *, steps: int) -> Any:
    """TRL's settings for a run of `steps` optimiser steps, of the class that belongs to the objective.

    Raises:
        UsageError: T001 for a name in `training.extra` that TRL's class lacks or that is not passed on, or for a value
            of another kind; T002 when TRL refuses the settings together; T004 for losses that are not of the objective
            or lack what they need, or a parameter of them that is not above 0; T006 for batches of one row where the
            loss compares rows of a batch.
    """
    asked = objective(training.objective)
    kind = asked.config()
    ours = {**_ours(training, output, precision, steps), **asked.fixed, **_losses(training, asked)}
    for name in sorted(asked.positive & training.extra.keys()):
        value = training.extra[name]
        # The loss would be constant, turned round or not there.
        if not isinstance(value, float | int) or value <= 0:
            raise refused("extra", f"{name} {value} must be above 0", "leave it out for the default")
    asked.check(training)
    if training.tokens_per_batch is not None and not asked.separable(training):
        why = f"the loss of objective {training.objective} compares the rows of a batch"
        raise refused("tokens_per_batch", why, "set training.batch_size instead", "T006")
    _check_every(training, asked)
    for name, value in training.extra.items():
        _check_extra(name, value, ours, kind, asked.passed_on)
        if name.startswith("dataloader_") and not training.workers:
            raise refused(
                "extra", f"`{name}` is read by worker processes only", "set training.workers=1 or more", "T001"
            )
    try:
        return kind(**ours, **{**asked.defaults, **training.extra})
    except (ValueError, TypeError, ImportError) as error:
        why = str(error).splitlines()[0]
        raise UsageError.one("T002", f"TRL refuses the training section: {why}", help="change or drop it") from error


def _losses(training: TrainingSection, asked: Objective) -> Mapping[str, Any]:
    """TRL's fields for the losses of an objective."""
    for name in training.losses:
        if name not in asked.losses:
            raise _not_of(training.objective, asked, name)
    if not asked.losses:
        return {}
    losses = training.losses or {asked.losses[0]: 1.0}
    if asked.mixed:
        return {"loss_type": list(losses), "loss_weights": list(losses.values())}
    (name, weight), *more = losses.items()
    if more or weight != 1:
        raise refused(
            "losses",
            f"objective {training.objective} takes one loss, with weight 1",
            f"leave one of {', '.join(losses)}: 1.0; verdicts are weighed by training.extra.desirable_weight "
            "and undesirable_weight",
        )
    return {"loss_type": name}


def _not_of(name: str, asked: Objective, loss: str) -> UsageError:
    """Why an objective does not have a loss, and where it is."""
    owner = next((other for other, one in objectives().items() if loss in one.losses), None)
    if owner is not None:
        # The one loss of DPO's that compares nothing is the likelihood itself.
        why = f"is not a loss of objective {name}" if loss == "sft" else asked.lacks
        return refused("losses", f"{loss} {why}", f"use objective {owner}")
    if not asked.losses:
        return refused("losses", f"objective {name} has one loss of its own", "leave training.losses out")
    close = get_close_matches(loss, asked.losses, n=1)
    help = f"did you mean `{close[0]}`?" if close else f"losses there are: {', '.join(asked.losses)}"
    return refused("losses", f"TRL has no loss `{loss}`", help)


def _check_extra(name: str, value: Any, ours: Mapping[str, Any], kind: type[Any], names: frozenset[str]) -> None:
    """Refuse what is not TRL's, not for a recipe to set, or of the wrong kind."""
    kinds = get_type_hints(kind)
    if name not in kinds:
        close = get_close_matches(name, sorted(names), n=1)
        help = f"did you mean `{close[0]}`?" if close else "leave it out"
        raise refused("extra", f"`{name}` is not a field of TRL's {kind.__name__}", help, "T001")
    if name not in names:
        lost = NOT_PASSED_ON.get(name, "it would break a promise of the run, or do nothing")
        why = "is set by qlmm itself" if name in ours else f"cannot be passed on: {lost}"
        raise refused("extra", f"`{name}` {why}", "use the recipe's own key for it, or leave it out", "T001")
    try:
        TypeAdapter(kinds[name]).validate_python(value, strict=True)
    except ValidationError as error:
        rule = error.errors(include_input=False)[0]["msg"].removeprefix("Input ")
        help = f"write the value as TRL's {kind.__name__} documents it"
        raise refused("extra", f"`{name}` {rule}", help, "T001") from error


def _check_every(training: TrainingSection, asked: Objective) -> None:
    """Refuse a number of layers that transformers would only stumble over once the run had started."""
    kwargs = training.extra.get(KWARGS)
    every = kwargs.get(EVERY) if isinstance(kwargs, dict) else None
    if every is None:
        return
    if not isinstance(every, int) or isinstance(every, bool) or every < 1:
        raise refused("extra", f"{EVERY} {every} must be a whole number from 1", "1 checkpoints every layer", "T001")
    if asked.reference:
        why = f"`{EVERY}` is lost in TRL's pass through the reference of objective {training.objective}"
        raise refused("extra", why, "leave it out, or set training.gradient_checkpointing=false", "T001")


def _ours(training: TrainingSection, output: OutputSection, precision: Precision, steps: int) -> Mapping[str, Any]:
    return {
        "output_dir": str(Path(output.dir)),
        "per_device_train_batch_size": training.rows_at_once,
        "gradient_accumulation_steps": training.rows_per_step // training.rows_at_once,
        "max_steps": steps,
        "learning_rate": training.learning_rate,
        "lr_scheduler_type": training.schedule,
        "warmup_steps": round(training.warmup * steps),
        "optim": "adamw_torch" if training.optimizer == "adamw" else training.optimizer,
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
        # Trackers are called by us: an error that one raises must not end the run.
        "report_to": "none",
        "disable_tqdm": True,
        "remove_unused_columns": False,
    }
