"""A recipe's training section as TRL's `SFTConfig`, and the escape hatch `training.extra`.

Usage: ``args = sft_config(recipe.training, output_dir, precision, steps=260, extra_ok=True)``
"""

from __future__ import annotations

import dataclasses
from difflib import get_close_matches
from pathlib import Path
from typing import Any

from trl import SFTConfig

from qlmm.core.errors import UsageError
from qlmm.model.precision import Precision
from qlmm.recipe.schema import OutputSection, TrainingSection

__all__ = ["sft_config"]

_OPTIMIZERS = {"adamw": "adamw_torch", "adamw_8bit": "adamw_8bit", "paged_adamw_8bit": "paged_adamw_8bit"}


def sft_config(training: TrainingSection, output: OutputSection, precision: Precision, *, steps: int) -> SFTConfig:
    """TRL's settings for a run of `steps` optimiser steps.

    Raises:
        UsageError: T001 for a name in `training.extra` that SFTConfig lacks or that qlmm sets itself.
    """
    ours = _ours(training, output, precision, steps)
    known = {field.name for field in dataclasses.fields(SFTConfig)}
    for name in training.extra:
        if name in ours or name not in known:
            raise _bad_extra(name, sorted(known - set(ours)), taken=name in ours)
    return SFTConfig(**ours, **training.extra)


def _bad_extra(name: str, free: list[str], *, taken: bool) -> UsageError:
    close = get_close_matches(name, free, n=1)
    why = "is set by qlmm itself" if taken else "is not a field of TRL's SFTConfig"
    hint = f"did you mean `{close[0]}`?" if close and not taken else "use the recipe's own key for it, or leave it out"
    return UsageError.one("T001", f"training.extra: `{name}` {why}", help=hint)


def _ours(training: TrainingSection, output: OutputSection, precision: Precision, steps: int) -> dict[str, Any]:
    return {
        "output_dir": str(Path(output.dir)),
        "per_device_train_batch_size": training.batch_size,
        "gradient_accumulation_steps": training.accumulation,
        "max_steps": steps,
        "learning_rate": training.learning_rate,
        "lr_scheduler_type": training.schedule,
        "warmup_steps": round(training.warmup * steps),
        "weight_decay": training.weight_decay,
        "max_grad_norm": training.max_grad_norm,
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
        # Lengths are checked when the run is planned; cutting here would cut pictures.
        "max_length": None,
        "dataset_kwargs": {"skip_prepare_dataset": True},
    }
