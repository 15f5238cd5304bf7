"""TRL's `DPOTrainer` on a model in parts, with the reference's log-probabilities computed once.

Usage: ``trainer = DpoTrainer(peft_model, plan, callbacks=[monitor])``
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from peft import PeftModel
from trl import DPOTrainer

from qlmm.data.batching.collators import Batch
from qlmm.proof.fingerprint import processor_digest, tensors_digest
from qlmm.training.run_dir import RunDir
from qlmm.training.trainers.base import Masters
from qlmm.training.trainers.pairs import PairsTrainer
from qlmm.training.trainers.reference import ReferenceTrainer
from qlmm.training.trainers.reference_cache import ReferenceCache

__all__ = ["DpoTrainer"]


class DpoTrainer(ReferenceTrainer, PairsTrainer, DPOTrainer):
    """TRL's trainer, with a reference that is exactly the start, and stays it."""

    _cache: ReferenceCache | None = None

    def restore_masters(self, model: PeftModel, masters: Masters) -> None:
        """As for every reference; TRL, which would compute it in every step, is given what was computed once."""
        super().restore_masters(model, masters)
        self.precompute_ref_logps = True

    def prepare(self, run: RunDir) -> None:
        """Remember the reference's log-probabilities in the run's directory.

        Raises:
            RunError: C005 when the directory holds those of another base, adapter, data or processor.
        """
        if self.reuses("reference"):
            own = "" if self.args.world_size == 1 else f"-{self.args.process_index}"
            self.remember(run.path / f"reference{own}.jsonl", base=run.record.frozen_sha256 or "")

    def remember(self, path: Path, *, base: str) -> None:
        """Keep the reference's log-probabilities in a file, under everything that they follow from.

        Args:
            path: the file.
            base: hash of the base as it lies in memory.

        Raises:
            RunError: C005 when the file holds those of another base, adapter, data or processor.
        """
        plan, training = self._plan, self._plan.recipe.training
        self._cache = ReferenceCache.open(
            path,
            of={
                "base": base,
                "adapter": tensors_digest(self._reference),
                "data": plan.data.sha256,
                "processor": processor_digest(plan.processor),
            },
            how={
                "batch_size": training.batch_size,
                "seed": training.seed,
                "precision": plan.precision.name,
                "prefix": self.shares_prefixes,
                "ld_alpha": self.ld_alpha,
                "processes": self.args.world_size,
            },
        )

    def loss(self, model: Any, inputs: Batch, outputs: bool, items: torch.Tensor | int | None) -> Any:
        """TRL's loss over pairs, with the reference's log-probabilities given."""
        call, rows = self.scored_by(model), inputs.pop("rows").tolist()
        chosen, rejected = self._reference_logps(call, inputs, rows)
        known = {"ref_chosen_logps": chosen, "ref_rejected_logps": rejected}
        return super().loss(call, {**inputs, **known}, outputs, items)

    def _reference_logps(self, call: Any, inputs: Batch, rows: list[int]) -> tuple[torch.Tensor, torch.Tensor]:
        """Log-probabilities (pairs,) of both sides under the reference, remembered or computed now."""
        known = self._cache.get(rows) if self._cache is not None else None
        if known is not None:
            chosen, rejected = torch.tensor(known, device=self.accelerator.device).T
            return chosen, rejected
        chosen, rejected = self.compute_ref_log_probs(call, inputs)
        # Switching between adapters made the reference trainable, and carried parts with it.
        self.freeze(self.model)
        if self._cache is not None:
            self._cache.put(rows, list(zip(chosen.tolist(), rejected.tolist(), strict=True)))
            # A pair that was met before keeps its value, as it will in a continued run.
            chosen, rejected = torch.tensor(self._cache.get(rows), device=chosen.device).T
        return chosen, rejected

    def finish(self) -> float:
        """Let the reference go; returns how far it drifted from the start, which must be 0."""
        if self._cache is not None:
            self._cache.close()
        return super().finish()
