"""A recipe's training section as TRL's `SFTConfig`, and the escape hatch `training.extra`.

Usage: ``args = sft_config(recipe.training, output_dir, precision, steps=260, extra_ok=True)``
"""

from __future__ import annotations

from difflib import get_close_matches
from pathlib import Path
from typing import Any, get_type_hints

from pydantic import TypeAdapter, ValidationError
from trl import SFTConfig

from qlmm.core.errors import UsageError
from qlmm.model.precision import Precision
from qlmm.recipe.schema import OutputSection, TrainingSection

__all__ = ["sft_config"]

# What a recipe may pass on. The others are set by qlmm, would break a promise (exact resume, whole rows, rotation
# after sealing), or would let a shared recipe publish, load code or read files.
_NAMES = """
adam_beta1 adam_beta2 adam_epsilon max_grad_norm optim_args lr_scheduler_kwargs label_smoothing_factor tf32
torch_compile torch_compile_backend torch_compile_mode use_liger_kernel liger_kernel_config neftune_noise_alpha
torch_empty_cache_steps full_determinism gradient_checkpointing_kwargs activation_offloading loss_type
dataloader_prefetch_factor dataloader_persistent_workers dataloader_multiprocessing_context
ddp_find_unused_parameters ddp_bucket_cap_mb ddp_broadcast_buffers ddp_static_graph ddp_backend ddp_timeout
average_tokens_across_devices router_aux_loss_coef run_name project log_level skip_memory_metrics
"""
_PASSED_ON = frozenset(_NAMES.split())
# What differs from TRL's defaults unless the recipe says otherwise. Routers are never trained, so that there is nothing
# to balance between experts.
_DEFAULTS: dict[str, Any] = {"router_aux_loss_coef": 0.0}
_OPTIMIZERS = {"adamw": "adamw_torch", "adamw_8bit": "adamw_8bit", "paged_adamw_8bit": "paged_adamw_8bit"}


def sft_config(training: TrainingSection, output: OutputSection, precision: Precision, *, steps: int) -> SFTConfig:
    """TRL's settings for a run of `steps` optimiser steps.

    Raises:
        UsageError: T001 for a name in `training.extra` that SFTConfig lacks or that is not passed on, or for a value of
            another kind; T002 when TRL refuses the settings together.
    """
    ours = _ours(training, output, precision, steps)
    for name, value in training.extra.items():
        _check_extra(name, value, ours)
    try:
        return SFTConfig(**ours, **_DEFAULTS | training.extra)
    except (ValueError, TypeError, ImportError) as error:
        said = str(error).splitlines()[0]
        raise UsageError.one("T002", f"TRL refuses the training section: {said}", help="change or drop it") from error


def _check_extra(name: str, value: Any, ours: dict[str, Any]) -> None:
    """Refuse what is not TRL's, not for a recipe to say, or of the wrong kind."""
    kinds = get_type_hints(SFTConfig)
    if name not in kinds:
        close = get_close_matches(name, sorted(_PASSED_ON), n=1)
        hint = f"did you mean `{close[0]}`?" if close else "leave it out"
        raise UsageError.one("T001", f"training.extra: `{name}` is not a field of TRL's SFTConfig", help=hint)
    if name not in _PASSED_ON:
        why = "is set by qlmm itself" if name in ours else "cannot be passed on: it would break a promise of the run"
        hint = "use the recipe's own key for it, or leave it out"
        raise UsageError.one("T001", f"training.extra: `{name}` {why}", help=hint)
    try:
        TypeAdapter(kinds[name]).validate_python(value, strict=True)
    except ValidationError as error:
        rule = error.errors(include_input=False)[0]["msg"].removeprefix("Input ")
        hint = "write the value as TRL's SFTConfig documents it"
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
        "weight_decay": training.weight_decay,
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
