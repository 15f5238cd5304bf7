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

from qlmm.model.parts.split import PEFT_PREFIX
from qlmm.training.trainers.base import PartsTrainer

__all__ = ["REFERENCE", "ReferenceTrainer"]

# The name TRL gives to its frozen copy.
REFERENCE = "ref"


class ReferenceTrainer(PartsTrainer):
    """Mixed in before a trainer of TRL that makes its own copy of the adapter.

    A trainer calls `note_still` before TRL's constructor and `fix_reference` once the masters are put back.
    """

    def note_still(self, model: PeftModel) -> None:
        """Remember what of the adapter must stay frozen: a part that is only carried along, parameters nothing reads.

        Switching between adapters makes everything of the active one trainable.
        """
        self._still = {name for name, p in model.named_parameters() if _of_adapter(name) and not p.requires_grad}

    def fix_reference(self, model: PeftModel) -> None:
        """Make the reference the start to the last bit, which TRL's cast to bf16 may have taken from it."""
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

    def compute_loss(
        self,
        model: Any,
        inputs: dict[str, Any],
        return_outputs: bool = False,
        num_items_in_batch: torch.Tensor | int | None = None,
    ) -> Any:
        """TRL's loss; the reference's pass leaves nothing trainable that was not."""
        if self.model.training:
            self.rest_frozen()
        loss = super().compute_loss(  # type: ignore[misc]  # Trainer's
            model, inputs, return_outputs, num_items_in_batch
        )
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
