"""A recipe's training section as TRL's `SFTConfig` or `DPOConfig`, and the escape hatch `training.extra`.

Usage: ``args = trainer_config(recipe.training, recipe.output, precision, steps=260)``
"""

from __future__ import annotations

from difflib import get_close_matches
from pathlib import Path
from typing import Any, get_type_hints

from pydantic import TypeAdapter, ValidationError
from trl import DPOConfig, SFTConfig

from qlmm.core.errors import UsageError
from qlmm.model.precision import Precision
from qlmm.recipe.schema import OutputSection, TrainingSection

__all__ = ["LOSSES", "trainer_config"]

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
_PREFERENCE_NAMES = """
beta label_smoothing ld_alpha f_divergence_type f_alpha_divergence_coef use_weighting discopop_tau
"""
_PREFERENCE = (_PASSED_ON | set(_PREFERENCE_NAMES.split())) - {"loss_type"}
# TRL 1.16's losses over pairs; a test holds the list against TRL.
_LOSS_NAMES = """
sigmoid hinge ipo exo_pair nca_pair robust bco_pair sppo_hard aot aot_unpaired apo_zero apo_down discopop sft
sigmoid_norm
"""
LOSSES = tuple(_LOSS_NAMES.split())
# What differs from TRL's defaults unless the recipe says otherwise. Routers are never trained, so that there is nothing
# to balance between experts.
_DEFAULTS: dict[str, Any] = {"router_aux_loss_coef": 0.0}
_OPTIMIZERS = {"adamw": "adamw_torch", "adamw_8bit": "adamw_8bit", "paged_adamw_8bit": "paged_adamw_8bit"}


def trainer_config(
    training: TrainingSection, output: OutputSection, precision: Precision, *, steps: int
) -> SFTConfig | DPOConfig:
    """TRL's settings for a run of `steps` optimiser steps.

    Raises:
        UsageError: T001 for a name in `training.extra` that TRL's class lacks or that is not passed on, or for a value
            of another kind; T002 when TRL refuses the settings together; T004 for losses that are not of the objective.
    """
    kind, names = (
        (SFTConfig, _PASSED_ON)
        if training.objective == "sft"
        else (DPOConfig, (_PASSED_ON | _PREFERENCE) - {"loss_type"})
    )
    ours = _ours(training, output, precision, steps) | _losses(training)
    for name, value in training.extra.items():
        _check_extra(name, value, ours, kind, names)
    try:
        return kind(**ours, **_DEFAULTS | training.extra)
    except (ValueError, TypeError, ImportError) as error:
        said = str(error).splitlines()[0]
        raise UsageError.one("T002", f"TRL refuses the training section: {said}", help="change or drop it") from error


def _losses(training: TrainingSection) -> dict[str, Any]:
    """TRL's fields for the losses of a preference objective.

    Raises:
        UsageError: T004 for a loss that TRL does not have, or for losses where the objective takes none, or a beta that
            is no positive number, or a loss without a parameter it needs.
    """
    if training.objective == "sft":
        if training.losses:
            raise UsageError.one(
                "T004", "training.losses belongs to objective dpo; sft has one loss", help="leave it out"
            )
        # Pictures are cut where a row is: lengths are checked when the run is planned.
        return {"dataset_kwargs": {"skip_prepare_dataset": True}}
    losses = training.losses or {"sigmoid": 1.0}
    for name in losses:
        if name not in LOSSES:
            close = get_close_matches(name, LOSSES, n=1)
            hint = f"did you mean `{close[0]}`?" if close else f"losses there are: {', '.join(LOSSES)}"
            raise UsageError.one("T004", f"training.losses: TRL has no loss `{name}`", help=hint)
    beta = training.extra.get("beta", 0.1)
    if not isinstance(beta, float | int) or beta <= 0:
        raise UsageError.one("T004", f"training.extra: beta {beta} must be above 0", help="0.1 is TRL's default")
    smoothing = training.extra.get("label_smoothing", 0.0)
    if "exo_pair" in losses and not smoothing:
        raise UsageError.one(
            "T004", "training.losses: exo_pair needs label_smoothing", help="set training.extra.label_smoothing=0.001"
        )
    return {"loss_type": list(losses), "loss_weights": list(losses.values())}


def _check_extra(name: str, value: Any, ours: dict[str, Any], kind: type[Any], names: frozenset[str]) -> None:
    """Refuse what is not TRL's, not for a recipe to say, or of the wrong kind."""
    kinds = get_type_hints(kind)
    if name not in kinds:
        close = get_close_matches(name, sorted(names), n=1)
        hint = f"did you mean `{close[0]}`?" if close else "leave it out"
        raise UsageError.one("T001", f"training.extra: `{name}` is not a field of TRL's {kind.__name__}", help=hint)
    if name not in names:
        why = "is set by qlmm itself" if name in ours else "cannot be passed on: it would break a promise of the run"
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
    }
