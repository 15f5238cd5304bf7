"""Direct preference optimisation and its relatives: TRL's `DPOTrainer` on a model in parts (arXiv 2305.18290).

The reference is what the run started from: TRL keeps a frozen copy of the adapter, connector included, beside the one
that is trained. For a fresh adapter that is the base itself.

Usage: ``trainer = DpoTrainer(peft_model, plan, callbacks=[monitor])``
"""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import torch
from peft import PeftModel
from transformers import TrainerCallback
from trl import DPOTrainer

from qlmm.data.collate import PairCollator
from qlmm.model.adapters import PEFT_PREFIX
from qlmm.training.arguments import trainer_config
from qlmm.training.parts_trainer import PartsTrainer, masters_of
from qlmm.training.plan import Plan

__all__ = ["REFERENCE", "TRAINER", "DpoTrainer"]

# The name TRL gives to its frozen copy.
REFERENCE = "ref"


class DpoTrainer(PartsTrainer, DPOTrainer):
    """TRL's trainer, with a reference that is exactly the start, and stays it."""

    def __init__(self, model: PeftModel, plan: Plan, *, callbacks: list[TrainerCallback]) -> None:
        numbers, masters = self.begin(plan), masters_of(model)
        # A part that is only carried along, and parameters nothing reads, must stay frozen: switching between adapters
        # makes everything of the active one trainable.
        self._still = [name for name, p in model.named_parameters() if _of_adapter(name) and not p.requires_grad]
        DPOTrainer.__init__(
            self,
            model=model,
            args=trainer_config(plan.recipe.training, plan.recipe.output, plan.precision, steps=plan.facts.steps),
            # TRL takes a data set for one with pictures by its columns, and would tokenise any other.
            train_dataset=numbers.add_column("images", [None] * len(numbers)),
            processing_class=plan.processor,
            data_collator=PairCollator(plan.train, plan.encoder),
            callbacks=callbacks,
        )
        self.put_back(model, masters)
        self._fix_reference(model)
        self._reference = {
            name: p.detach().to("cpu", copy=True) for name, p in model.named_parameters() if f".{REFERENCE}." in name
        }

    def _fix_reference(self, model: PeftModel) -> None:
        """Make the reference the start to the last bit, which TRL's cast to bf16 may have taken from it."""
        values = dict(model.named_parameters())
        for name, parameter in values.items():
            if f".{REFERENCE}." in name:
                parameter.data = values[name.replace(f".{REFERENCE}.", ".default.")].detach().clone()
        self._freeze(model)

    def _freeze(self, model: PeftModel) -> None:
        still = set(self._still)
        for name, parameter in model.named_parameters():
            if name in still or f".{REFERENCE}." in name:
                parameter.requires_grad_(False)

    def compute_loss(
        self,
        model: torch.nn.Module,
        inputs: dict[str, Any],
        return_outputs: bool = False,
        num_items_in_batch: torch.Tensor | int | None = None,
    ) -> Any:
        """TRL's loss over pairs; the reference's pass leaves nothing trainable that was not."""
        if model.training:
            self.rest_frozen()
        loss = super().compute_loss(model, inputs, return_outputs, num_items_in_batch)
        self._freeze(self.model)
        return loss

    def _save(self, output_dir: str | None = None, state_dict: dict[str, Any] | None = None) -> None:
        """A continued run takes the reference from its start, so that checkpoints do without."""
        super()._save(output_dir, state_dict)
        shutil.rmtree(Path(output_dir or self.args.output_dir) / REFERENCE, ignore_errors=True)

    def finish(self) -> float:
        """Let the reference go; returns how far it drifted from the start, which must be 0."""
        values = dict(self.model.named_parameters())
        drift = max(float((values[name].cpu() - start).abs().max()) for name, start in self._reference.items())
        self.model.delete_adapter(REFERENCE)
        return drift


def _of_adapter(name: str) -> bool:
    return name.startswith(PEFT_PREFIX) and (".lora_" in name or ".modules_to_save.default." in name)


TRAINER = DpoTrainer
