"""TRL's `DPOTrainer` and `KTOTrainer` on a model in parts, with a reference that is exactly the start and stays it.

The reference is TRL's frozen copy of the adapter, connector included, beside the one that is trained.

Usage: ``trainer = DpoTrainer(peft_model, plan, callbacks=[monitor])``
"""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from peft import PeftModel
from trl import DPOTrainer, KTOTrainer

from qlmm.data.batching.collators import Batch
from qlmm.model.parts.split import PEFT_PREFIX
from qlmm.proof.fingerprint import processor_digest, tensors_digest
from qlmm.training.objective import REFERENCE
from qlmm.training.plan import Plan
from qlmm.training.run_dir import RunDir
from qlmm.training.trainers.base import Masters, PartsTrainer, RowsForTrl
from qlmm.training.trainers.pairs import PairsTrainer
from qlmm.training.trainers.pieces import Items
from qlmm.training.trainers.reference_cache import ReferenceCache

__all__ = ["DpoTrainer", "KtoTrainer", "ReferenceTrainer"]


class ReferenceTrainer(PartsTrainer):
    """Mixed in before a trainer of TRL that makes its own copy of the adapter."""

    def attach_masters(self, model: PeftModel) -> Masters:
        """As for every objective; notes what of the adapter must stay frozen, since a switch makes all of it trainable.

        That is a part that is only carried along, and parameters that nothing reads.
        """
        self._still = {name for name, p in model.named_parameters() if _of_adapter(name) and not p.requires_grad}
        return super().attach_masters(model)

    def rows_for_trl(self, plan: Plan) -> RowsForTrl:
        """Row numbers with a column of pictures: TRL would tokenise a data set that has none."""
        numbers, processor = super().rows_for_trl(plan)
        return numbers.add_column("images", [None] * len(numbers)), processor

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
        """After a switch of adapters, freeze again what was frozen."""
        for name, parameter in model.named_parameters():
            if name in self._still or _of_reference(name):
                parameter.requires_grad_(False)

    def loss(self, model: Any, inputs: Batch, outputs: bool, items: torch.Tensor | int | None) -> Any:
        """TRL's loss, whose pass through the reference switches adapters."""
        loss = super().loss(model, inputs, outputs, items)
        self.freeze(self.model)
        return loss

    def _save(self, output_dir: str | None = None, state_dict: dict[str, Any] | None = None) -> None:
        """Checkpoints do without the reference: a continued run takes it from its start."""
        super()._save(output_dir, state_dict)
        shutil.rmtree(Path(output_dir or self.args.output_dir) / REFERENCE, ignore_errors=True)

    def finish(self) -> float:
        """Delete the reference; returns how far it drifted from the start, which must be 0."""
        super().finish()
        values = dict(self.model.named_parameters())
        drift = max(float((values[name].cpu() - start).abs().max()) for name, start in self._reference.items())
        self.model.delete_adapter(REFERENCE)
        return drift


class DpoTrainer(ReferenceTrainer, PairsTrainer, DPOTrainer):
    """TRL's trainer, with the reference's log-probabilities computed once."""

    _cache: ReferenceCache | None = None

    def restore_masters(self, model: PeftModel, masters: Masters) -> None:
        """As for every reference; TRL, which would compute it in every step, is given what was computed once."""
        super().restore_masters(model, masters)
        self.precompute_ref_logps = True

    def prepare(self, run: RunDir) -> None:
        """Remember the reference's log-probabilities in the run's directory, under everything that they follow from."""
        super().prepare(run)
        plan, training = self._plan, self._plan.recipe.training
        if "reference" not in training.reuse:
            return
        self._cache = ReferenceCache(
            run.path / "reference.jsonl",
            of={
                "base": run.record.frozen_sha256 or "",
                "adapter": tensors_digest(self._reference),
                "data": plan.data.sha256,
                "processor": processor_digest(plan.encoder.processor),
            },
            how={
                "batch_size": training.batch_size,
                "seed": training.seed,
                "precision": plan.precision.name,
                "prefix": self.shares_prefixes,
                "ld_alpha": self.ld_alpha,
            },
        )

    def fit_longest(self, model: torch.nn.Module, items: Items) -> None:
        """As for every objective; values belong to the batch that a pair is first met in, which no trial is."""
        cache, self._cache = self._cache, None
        super().fit_longest(model, items)
        self._cache = cache

    def loss(self, model: Any, inputs: Batch, outputs: bool, items: torch.Tensor | int | None) -> Any:
        """TRL's loss over pairs, with the reference's log-probabilities given."""
        call, rows = self.scored_by(model), inputs.pop("rows").tolist()
        chosen, rejected = self._reference_logps(call, inputs, rows)
        known = {"ref_chosen_logps": chosen, "ref_rejected_logps": rejected}
        return super().loss(call, {**inputs, **known}, outputs, items)

    def _reference_logps(self, call: Any, inputs: Batch, rows: list[int]) -> tuple[torch.Tensor, torch.Tensor]:
        """Log-probabilities (pairs,) of both sides under the reference, remembered or computed now."""
        known = self._cache.get(rows) if self._cache is not None else None
        if known is None:
            chosen, rejected = self.compute_ref_log_probs(call, inputs)
            # Switching between adapters made the reference trainable, and carried parts with it.
            self.freeze(self.model)
            if self._cache is None:
                return chosen, rejected
            # A pair that was met before keeps its value, as it will in a continued run.
            known = self._cache.put(rows, list(zip(chosen.tolist(), rejected.tolist(), strict=True)))
        chosen, rejected = torch.tensor(known, device=self.accelerator.device).T
        return chosen, rejected

    def finish(self) -> float:
        """Close the file, and delete the reference; returns how far it drifted from the start, which must be 0."""
        if self._cache is not None:
            self._cache.close()
        return super().finish()


class KtoTrainer(ReferenceTrainer, KTOTrainer):
    """TRL's trainer, with batches of ours."""

    _also: Batch = {}  # noqa: RUF012  # replaced by every batch, never changed

    def _compute_loss(self, model: Callable[..., Any], inputs: Batch, return_outputs: bool) -> Any:
        self._also = inputs.pop("KL_also", {})
        return super()._compute_loss(self.scored_by(model), inputs, return_outputs)

    def row_mask(self, inputs: Batch) -> torch.Tensor | None:
        """None: other rows' answers have masks of their own."""
        return None

    def _compute_kl_logps(self, model: torch.nn.Module, batch: Batch) -> torch.Tensor | None:
        """Log-probabilities (rows,) of other rows' answers, with all that goes with these."""
        found: torch.Tensor | None = super()._compute_kl_logps(model, {**batch, **self._also})
        return found


def _of_adapter(name: str) -> bool:
    return name.startswith(PEFT_PREFIX) and (".lora_" in name or ".modules_to_save.default." in name)


def _of_reference(name: str) -> bool:
    return f".{REFERENCE}." in name
