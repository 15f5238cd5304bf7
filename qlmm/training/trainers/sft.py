"""Supervised fine-tuning: TRL's `SFTTrainer` with a rate per part, our row order, and guards.

Everything about the loss (fused head, token counting, accumulation) is TRL's.

Usage: ``trainer = SftTrainer(peft_model, plan, callbacks=[monitor])``
"""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import torch
from datasets import Dataset
from peft import PeftModel
from transformers import PrinterCallback, TrainerCallback
from trl import SFTTrainer

from qlmm.core.errors import RunError
from qlmm.data.collate import Collator, rows
from qlmm.data.mixture import MixtureSampler
from qlmm.model.adapters import add_bare
from qlmm.model.losses import has_backbone, token_losses
from qlmm.model.parts import PartName, Parts
from qlmm.recipe.schema import TrainingSection
from qlmm.training.arguments import sft_config
from qlmm.training.plan import Plan

__all__ = ["SftTrainer", "peak_rates"]


class SftTrainer(SFTTrainer):
    """TRL's trainer, with what a vision-language model in parts needs.

    Attributes:
        grad_norms: largest gradient norm per part since they were last taken, before clipping.
    """

    optimizer: torch.optim.Optimizer | None

    def __init__(self, model: PeftModel, plan: Plan, *, callbacks: list[TrainerCallback]) -> None:
        self._order, self._parts, self._bare = plan.order(), plan.placement.parts, plan.placement.bare
        self._asked = plan.placement.asked
        self._rates = peak_rates(plan.recipe.training)
        collator = Collator(plan.train, plan.encoder)
        self.grad_norms: dict[str, float] = {}
        self._has_backbone = has_backbone(model.get_base_model())
        # TRL casts the trained weights of a quantised model to bf16 while it is built. That would round the masters,
        # so their exact values are put back before an optimiser sees them.
        masters = {name: p.detach().clone() for name, p in model.named_parameters() if p.requires_grad}
        super().__init__(
            model=model,
            args=sft_config(plan.recipe.training, plan.recipe.output, plan.precision, steps=plan.facts.steps),
            train_dataset=Dataset.from_list(rows(len(collator))),
            processing_class=plan.processor,
            data_collator=collator,
            callbacks=callbacks,
        )
        for name, parameter in model.named_parameters():
            if name in masters:
                parameter.data = masters[name].to(parameter.device)
        self.remove_callback(PrinterCallback)

    def create_optimizer(self, model: torch.nn.Module | None = None) -> torch.optim.Optimizer:
        """One group per part and kind of decay: norms and biases never decay."""
        if self.optimizer is None:
            decaying = set(self.get_decay_parameter_names(self.model))
            groups: dict[tuple[PartName, bool], list[torch.nn.Parameter]] = {}
            for name, parameter in self.model.named_parameters():
                if parameter.requires_grad:
                    groups.setdefault((self._parts.of(name), name in decaying), []).append(parameter)
            kind, options = self.get_optimizer_cls_and_kwargs(self.args, self.model)
            settings = [
                {"params": members, "lr": self._rates[part], "weight_decay": self.args.weight_decay if decays else 0.0,
                 "part": part}
                for (part, decays), members in groups.items()
            ]  # fmt: skip
            self.optimizer = kind(settings, **options)
        return self.optimizer

    def compute_loss(
        self,
        model: torch.nn.Module,
        inputs: dict[str, Any],
        return_outputs: bool = False,
        num_items_in_batch: torch.Tensor | int | None = None,
    ) -> Any:
        """TRL's loss through its fused head, or the same from the logits of a class without a backbone for it."""
        if model.training:
            self._rest_frozen()
        if self._has_backbone:
            return super().compute_loss(model, inputs, return_outputs, num_items_in_batch)
        labels = inputs.pop("labels")
        losses = token_losses(model, inputs, labels)
        return losses.sum() / max(1, losses.numel() if num_items_in_batch is None else int(num_items_in_batch))

    def training_step(self, *args: Any, **kwargs: Any) -> torch.Tensor:
        """One forward and backward pass; a loss that is not finite ends the run before any weight moves.

        Raises:
            RunError: G001 with the rows of the batch and the true value.
        """
        loss: torch.Tensor = super().training_step(*args, **kwargs)
        if not torch.isfinite(loss):
            raise RunError.one(
                "G001",
                f"loss is {float(loss)} at step {self.state.global_step + 1}; no weight was changed by it",
                help=f"rows of the batch: {_named(self.data_collator)}; look at them with `qlmm data show`, "
                "or lower the learning rates. The last sealed checkpoint is intact.",
            )
        return loss

    def _rest_frozen(self) -> None:
        """Keep dropout and running statistics of towers still while they are frozen: a batch norm would drift."""
        base = self.model.get_base_model()
        resting: tuple[PartName, ...] = ("vision", "other")
        for part in (part for part in resting if part not in self._asked):
            for name in self._parts.modules(part):
                base.get_submodule(name).eval()
        if "connector" in self._asked:
            for name in self._parts.connector:
                base.get_submodule(name).train()

    def _clip_grad_norm(self, model: torch.nn.Module) -> torch.Tensor:
        """Measure each part's gradient, then clip all of them together.

        Raises:
            RunError: G002 when a gradient is not finite. Under fp16 the loss scaler meets and skips such steps itself.
        """
        # Under fp16 gradients still carry the loss scale here, and a step that overflows is skipped by the scaler.
        scale = self.accelerator.scaler.get_scale() if self.accelerator.scaler is not None else 1.0
        for part, norm in _norms(model, self._parts).items():
            if math.isfinite(norm):
                self.grad_norms[part] = max(self.grad_norms.get(part, 0.0), norm / scale)
        total: torch.Tensor = super()._clip_grad_norm(model)
        if not self.args.fp16 and not torch.isfinite(total):
            raise RunError.one(
                "G002",
                f"a gradient is {float(total)} at step {self.state.global_step + 1}; no weight was changed by it",
                help="lower the learning rates, or training.extra.max_grad_norm. The last sealed checkpoint is intact.",
            )
        return total

    def take_grad_norms(self) -> dict[str, float]:
        """The largest gradient norm of each part since the last call: no step between two log lines goes unseen."""
        taken, self.grad_norms = self.grad_norms, {}
        return taken

    def _get_train_sampler(self, train_dataset: Dataset | None = None) -> MixtureSampler:
        return self._order

    def _save(self, output_dir: str | None = None, state_dict: dict[str, Any] | None = None) -> None:
        """Store the bare parameters too, or a continued run would start them anew."""
        super()._save(output_dir, state_dict)
        add_bare(self.model, Path(output_dir or self.args.output_dir), self._bare)

    def create_model_card(self, *args: Any, **kwargs: Any) -> None:
        """Cards are written once, with the adapter; TRL's draft would land in the run directory at every save."""

    def _send_telemetry(self) -> None:
        """Qlmm sends nothing about its users."""


def _named(collator: Collator) -> str:
    return ", ".join(str(origin) for origin in collator.last_origins)


def peak_rates(training: TrainingSection) -> dict[PartName, float]:
    """The peak learning rate of each part."""
    return {
        "language": training.learning_rate,
        "connector": training.connector_learning_rate,
        "vision": training.vision_learning_rate,
    }


def _norms(model: torch.nn.Module, parts: Parts) -> dict[str, float]:
    """L2 norm of each part's gradient, with one transfer from the device."""
    squares: dict[str, list[torch.Tensor]] = {}
    for name, parameter in model.named_parameters():
        if parameter.requires_grad and parameter.grad is not None:
            squares.setdefault(parts.of(name), []).append(parameter.grad.detach().float().square().sum())
    return {part: float(torch.stack(found).sum().sqrt()) for part, found in squares.items()}
