"""A reference that is exactly the start, and stays it: what objectives with a frozen copy beside the model share.

The copy is TRL's: an adapter named ``ref``, connector included, beside the one that is trained.

Usage: ``class KtoTrainer(ReferenceTrainer, KTOTrainer): …``
"""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import torch
from peft import PeftModel

from qlmm.data.batching.collators import Batch
from qlmm.model.parts.split import PEFT_PREFIX
from qlmm.training.plan import Plan
from qlmm.training.trainers.base import Masters, PartsTrainer, RowsForTrl

__all__ = ["REFERENCE", "ReferenceTrainer"]

# The name TRL gives to its frozen copy.
REFERENCE = "ref"


class ReferenceTrainer(PartsTrainer):
    """Mixed in before a trainer of TRL that makes its own copy of the adapter."""

    def attach_masters(self, model: PeftModel) -> Masters:
        """As for every objective; what of the adapter must stay frozen is noted besides.

        That is a part that is only carried along, and parameters nothing reads. Switching between adapters makes
        everything of the active one trainable.
        """
        self._still = {name for name, p in model.named_parameters() if _of_adapter(name) and not p.requires_grad}
        return super().attach_masters(model)

    def rows_for_trl(self, plan: Plan) -> RowsForTrl:
        """Row numbers with a column of pictures: TRL would tokenise a data set that has none."""
        given = super().rows_for_trl(plan)
        numbers = given["train_dataset"]
        return {**given, "train_dataset": numbers.add_column("images", [None] * len(numbers))}

    def restore_masters(self, model: PeftModel, masters: Masters) -> None:
        """As for every objective; the reference becomes the start to the last bit, which TRL may have rounded."""
        super().restore_masters(model, masters)
        values = dict(model.named_parameters())
        for name, parameter in values.items():
            if _of_reference(name):
                parameter.data = values[name.replace(f".{REFERENCE}.", ".default.")].detach().clone()
        self.freeze(model)
        self._reference = {
            name: p.detach().to("cpu", copy=True) for name, p in model.named_parameters() if _of_reference(name)
        }

    def freeze(self, model: PeftModel) -> None:
        """Leave nothing trainable that was not, once adapters were switched."""
        for name, parameter in model.named_parameters():
            if name in self._still or _of_reference(name):
                parameter.requires_grad_(False)

    def loss(self, model: Any, inputs: Batch, outputs: bool, items: torch.Tensor | int | None) -> Any:
        """TRL's loss; the reference's pass leaves nothing trainable that was not."""
        loss = super().loss(model, inputs, outputs, items)
        self.freeze(self.model)
        return loss

    def _save(self, output_dir: str | None = None, state_dict: dict[str, Any] | None = None) -> None:
        """A continued run takes the reference from its start, so that checkpoints do without."""
        super()._save(output_dir, state_dict)
        shutil.rmtree(Path(output_dir or self.args.output_dir) / REFERENCE, ignore_errors=True)

    def finish(self) -> float:
        """Let the reference go; returns how far it drifted from the start, which must be 0."""
        super().finish()
        values = dict(self.model.named_parameters())
        drift = max(float((values[name].cpu() - start).abs().max()) for name, start in self._reference.items())
        self.model.delete_adapter(REFERENCE)
        return drift


def _of_adapter(name: str) -> bool:
    return name.startswith(PEFT_PREFIX) and (".lora_" in name or ".modules_to_save.default." in name)


def _of_reference(name: str) -> bool:
    return f".{REFERENCE}." in name
