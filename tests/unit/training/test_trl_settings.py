"""The recipe's training section as TRL's settings: what qlmm decides stays decided, the rest can be passed on."""

from __future__ import annotations

from typing import Any, get_type_hints

import pytest
from trl import SFTConfig, SFTTrainer

from qlmm.core.errors import UsageError
from qlmm.model.numerics.precision import Precision
from qlmm.recipe.schema import OutputSection, TrainingSection
from qlmm.training import trl_settings as arguments
from qlmm.training.objective import objective
from qlmm.training.trainers.base import PartsTrainer
from qlmm.training.trainers.sft import SftTrainer
from qlmm.training.trl_settings import trainer_config

CPU = Precision("cpu", "fp32")
OUTPUT = OutputSection(dir="runs/x")


def config(**keys: Any) -> Any:
    return trainer_config(TrainingSection(**keys), OUTPUT, CPU, steps=200)


def test_the_recipe_is_what_trl_is_told() -> None:
    made = config(
        batch_size=3, accumulation=7, learning_rate=1e-3, schedule="linear", extra={"weight_decay": 0.1}, seed=11
    )
    assert (made.per_device_train_batch_size, made.gradient_accumulation_steps, made.max_steps) == (3, 7, 200)
    assert (made.learning_rate, str(made.lr_scheduler_type.value), made.weight_decay) == (1e-3, "linear", 0.1)
    assert made.seed == made.data_seed == 11


def test_warm_up_is_a_share_of_the_steps() -> None:
    assert config(warmup=0.03).warmup_steps == 6
    assert config(warmup=0.0).warmup_steps == 0


def test_a_loss_that_is_not_a_number_is_seen() -> None:
    assert config().logging_nan_inf_filter is False


def test_nothing_is_sent_anywhere() -> None:
    made = config()
    assert made.report_to in ([], "none", ["none"])
    assert made.push_to_hub is False
    assert SftTrainer._send_telemetry is PartsTrainer._send_telemetry
    # The override only helps as long as it is the name that TRL's own trainer calls.
    assert any("_send_telemetry" in vars(kind) for kind in SFTTrainer.__mro__)
    assert SftTrainer._send_telemetry(object()) is None  # type: ignore[arg-type]  # it must not even look at itself


def test_trackers_are_left_to_our_own_callback() -> None:
    made = trainer_config(TrainingSection(), OutputSection(dir="x", trackers=("tensorboard",)), CPU, steps=1)
    assert made.report_to == []


def test_checkpoints_are_rotated_by_us_and_rows_are_left_whole() -> None:
    made = config(save_every=5, keep=1)
    assert (made.save_steps, made.save_total_limit) == (5, None)
    assert made.max_length is None
    assert made.remove_unused_columns is False


@pytest.mark.parametrize(
    ("name", "flags"), [("fp32", (False, False)), ("bf16", (True, False)), ("fp16", (False, True))]
)
def test_the_precision_that_was_chosen_is_used(name: Any, flags: tuple[bool, bool]) -> None:
    made = arguments._ours(TrainingSection(), OUTPUT, Precision("cpu", name), 1)
    assert (made["bf16"], made["fp16"]) == flags
    assert made["use_cpu"]


@pytest.mark.parametrize("name", ["adamw", "adamw_8bit", "paged_adamw_8bit"])
def test_every_optimiser_of_a_recipe_is_one_of_the_trainer(name: Any) -> None:
    assert str(config(optimizer=name).optim.value).startswith(name)


def test_every_name_that_is_passed_on_is_one_of_trl() -> None:
    passed_on = objective("sft").passed_on
    assert set(get_type_hints(SFTConfig)) >= passed_on
    assert not passed_on & set(arguments._ours(TrainingSection(), OUTPUT, CPU, 1))


def test_further_settings_are_passed_on() -> None:
    made = config(extra={"adam_beta2": 0.98, "label_smoothing_factor": 0.1, "max_grad_norm": 0.3})
    assert (made.adam_beta2, made.label_smoothing_factor, made.max_grad_norm) == (0.98, 0.1, 0.3)
    assert config().max_grad_norm == 1.0


@pytest.mark.parametrize(
    ("extra", "said", "help"),
    [
        ({"adam_beta3": 1}, "`adam_beta3` is not a field", "did you mean `adam_beta2`?"),
        ({"zzz": 1}, "`zzz` is not a field", "leave it out"),
        ({"adam_beta2": "0.98"}, "`adam_beta2` should be a valid number", "documents it"),
        ({"push_to_hub": True}, "`push_to_hub` cannot be passed on", "leave it out"),
        ({"hub_model_id": "me/x"}, "cannot be passed on", "leave it out"),
        ({"trackio_space_id": "me/x"}, "cannot be passed on", "leave it out"),
        ({"trust_remote_code": True}, "cannot be passed on", "leave it out"),
        ({"resume_from_checkpoint": "x"}, "cannot be passed on", "leave it out"),
        ({"ignore_data_skip": True}, "cannot be passed on", "leave it out"),
        ({"max_steps": 9}, "`max_steps` is set by qlmm itself", "own key"),
        ({"logging_nan_inf_filter": True}, "is set by qlmm itself", "own key"),
        ({"output_dir": "/etc"}, "is set by qlmm itself", "own key"),
        ({"report_to": "wandb"}, "is set by qlmm itself", "own key"),
        ({"remove_unused_columns": True}, "is set by qlmm itself", "own key"),
    ],
)
def test_what_is_unknown_or_decided_is_refused(extra: dict[str, Any], said: str, help: str) -> None:
    with pytest.raises(UsageError, match=r"training\.extra") as caught:
        config(extra=extra)
    (problem,) = caught.value.problems
    assert problem.code == "T001"
    assert said in problem.message
    assert help in (problem.help or "")
