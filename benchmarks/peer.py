"""The peer: TRL's own `SFTTrainer` with the plan, base and batches of a qlmm run, so that only the trainer differs.

Usage: ``trainer = plain_trl(ready, base, steps=20); trainer.train()``
"""

from __future__ import annotations

from itertools import count, islice
from pathlib import Path
from typing import Any

from datasets import Dataset
from torch.utils.data import SequentialSampler
from transformers import PreTrainedModel, PrinterCallback, TrainerCallback
from trl import SFTConfig, SFTTrainer

from benchmarks.clock import Clock
from qlmm.data.batching.collators import Collator
from qlmm.model.peft.adapter import lora_config
from qlmm.training.plan import Plan

__all__ = ["plain_trl"]


class _Trl(SFTTrainer):
    """TRL's trainer as it is; only the order of rows is given, and nothing is sent anywhere."""

    def _get_train_sampler(self, train_dataset: Dataset | None = None) -> SequentialSampler:
        return SequentialSampler(train_dataset if train_dataset is not None else self.train_dataset)

    def _send_telemetry(self) -> None:
        """Benchmarks run without a network."""


class _Ticking(TrainerCallback):
    """Tells a clock when a step ended."""

    def __init__(self, clock: Clock) -> None:
        self._clock = clock

    def on_step_end(self, *_: Any, **__: Any) -> None:
        self._clock.tick()


def plain_trl(ready: Plan, base: PreTrainedModel, *, steps: int, clock: Clock | None = None) -> SFTTrainer:
    """TRL's trainer around a loaded base, set up as its documentation does for QLoRA with a module trained whole.

    It knows one learning rate, for which the connector's is taken. Its cast of trained weights to bf16 stays, and what
    is trained whole is put into the compute precision first, as it is in a model loaded by transformers.
    """
    training = ready.recipe.training
    for name in ready.placement.whole:
        base.get_submodule(name).to(ready.precision.compute)
    args = SFTConfig(
        output_dir=str(Path(ready.recipe.output.dir).with_name("trl")),
        per_device_train_batch_size=training.batch_size,
        max_steps=steps,
        learning_rate=training.connector_learning_rate,
        lr_scheduler_type=training.schedule,
        warmup_steps=round(training.warmup * steps),
        weight_decay=training.extra.get("weight_decay", 0.0),
        gradient_checkpointing=training.gradient_checkpointing,
        bf16=ready.precision.name == "bf16",
        fp16=ready.precision.name == "fp16",
        use_cpu=ready.precision.device == "cpu",
        seed=training.seed,
        logging_steps=1,
        save_strategy="no",
        report_to="none",
        disable_tqdm=True,
        max_length=None,
        remove_unused_columns=False,
        dataset_kwargs={"skip_prepare_dataset": True},
    )
    trainer = _Trl(
        model=base,
        args=args,
        train_dataset=Dataset.from_list([{"row": row} for row in _order(ready, steps * training.batch_size)]),
        processing_class=ready.encoder.processor,
        data_collator=Collator(ready.train, ready.encoder),
        peft_config=lora_config(ready.placement, ready.recipe.adapter),
        callbacks=[_Ticking(clock)] if clock is not None else [],
    )
    trainer.remove_callback(PrinterCallback)
    return trainer


def _order(ready: Plan, rows: int) -> list[int]:
    """The rows that a qlmm run by this plan sees, epoch after epoch."""
    sampler = ready.order()

    def seen() -> Any:
        for epoch in count():
            sampler.set_epoch(epoch)
            yield from sampler

    return list(islice(seen(), rows))
