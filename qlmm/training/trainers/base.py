"""What every objective's trainer shares: the order in which it is built, a rate per part, our row order, and guards.

Usage: ``class SftTrainer(PartsTrainer, SFTTrainer): …``
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from contextlib import nullcontext
from pathlib import Path
from statistics import fmean
from typing import Any

import torch
from datasets import Dataset
from peft import PeftModel
from transformers import PreTrainedModel, PrinterCallback, TrainerCallback

from qlmm.core.errors import RunError
from qlmm.core.events import Listener, StepSkipped
from qlmm.data.batching.collators import Batch, rows
from qlmm.data.batching.mixture import MixtureSampler
from qlmm.model.numerics.finite import is_finite
from qlmm.model.parts.split import PartName, Parts
from qlmm.model.peft.adapter import add_bare
from qlmm.model.reuse.feature_store import LIMIT_BYTES, FeatureStore
from qlmm.model.reuse.frozen_tower import FrozenTower
from qlmm.model.reuse.supervised_head import SupervisedHead
from qlmm.model.token_losses import evaluating, token_losses
from qlmm.proof.fingerprint import processor_digest
from qlmm.training.objective import refused
from qlmm.training.plan import Plan
from qlmm.training.rows import measured
from qlmm.training.run_dir import RunDir
from qlmm.training.trainers.pieces import rows_of
from qlmm.training.trainers.unpadded import UnpaddedTrainer
from qlmm.training.trl_settings import trainer_config

__all__ = ["Masters", "PartsTrainer", "RowsForTrl"]

Masters = dict[str, torch.Tensor]
# What TRL's constructors are given to train on, and to process it with.
RowsForTrl = tuple[Any, Any]
# So many steps in a row that cannot be taken are no accident of their rows.
MOST_SKIPPED = 10
# A loss scaler halves its scale, 65536 at first, until gradients fit; below this none ever will.
MOST_SCALED = 40
BATCH_NORMS = (torch.nn.BatchNorm1d, torch.nn.BatchNorm2d, torch.nn.BatchNorm3d, torch.nn.SyncBatchNorm)


class PartsTrainer(UnpaddedTrainer):
    """Mixed in before a trainer of TRL: what a vision-language model in parts needs.

    The constructor is a fixed sequence of steps. A subclass overrides steps and calls the one it overrides; it has no
    constructor of its own.

    Attributes:
        grad_norms: largest gradient norm per part since they were last taken, before clipping.
        notes: what the user should know about how this run is computed.
        listener: is given the steps that are not taken.
    """

    listener: Listener

    # Of transformers' Trainer, which stands behind this class.
    model: Any
    args: Any
    state: Any
    accelerator: Any
    data_collator: Any
    optimizer: torch.optim.Optimizer | None

    # Whether a step since the last log was not taken.
    _missed = False

    def __init__(self, model: PeftModel, plan: Plan, *, callbacks: Sequence[TrainerCallback]) -> None:
        """Build TRL's trainer on a model with its adapter, by the plan."""
        self._plan, self._placement, self._parts, self._order = plan, plan.placement, plan.placement.parts, plan.order()
        self._tower: FrozenTower | None = None
        self.grad_norms: dict[str, float] = {}
        self.notes: list[str] = []
        self._run: RunDir | None = None
        self._wrong, self._in_a_row = "", 0
        self._step_loss, self._losses = 0.0, list[float]()
        args = trainer_config(plan.recipe.training, plan.recipe.output, plan.precision, steps=plan.facts.steps)
        # Checkpointing needs inputs that ask for gradients only where it is re-entrant, which it is not unless asked.
        if not (args.gradient_checkpointing_kwargs or {}).get("use_reentrant"):
            _spare_inputs(model.get_base_model())
        masters = self.attach_masters(model)
        train_dataset, processing_class = self.rows_for_trl(plan)
        super().__init__(  # type: ignore[call-arg]  # TRL's
            model=model,
            args=args,
            data_collator=plan.objective.collator(plan.train, plan.encoder, args),
            callbacks=list(callbacks),
            train_dataset=train_dataset,
            processing_class=processing_class,
        )
        self.restore_masters(model, masters)
        self.check_loss_path(model, plan)
        self.install_reuse(model, plan)
        self.lay_out_rows(model, plan)
        self._head = SupervisedHead(model.get_base_model())
        self.cut_padding(model, plan)
        self.take_pieces(plan, self.data_collator)

    def attach_masters(self, model: PeftModel) -> Masters:
        """Exact copies of everything that is trained, by name, before TRL touches the model."""
        return {name: p.detach().clone() for name, p in model.named_parameters() if p.requires_grad}

    def rows_for_trl(self, plan: Plan) -> RowsForTrl:
        """What TRL is given to train on: row numbers, which the collator turns into batches."""
        return Dataset.from_list(rows(len(plan.train))), plan.encoder.processor

    def restore_masters(self, model: PeftModel, masters: Masters) -> None:
        """Undo TRL's cast of a quantised model's trained weights to bf16, which would round the masters."""
        for name, parameter in model.named_parameters():
            if name in masters:
                parameter.data = masters[name].to(parameter.device)
        self.remove_callback(PrinterCallback)  # type: ignore[attr-defined]  # Trainer's

    def check_loss_path(self, model: PeftModel, plan: Plan) -> None:
        """Refuse a class whose log-probabilities TRL's fused head gets wrong, which preferences are made of."""
        if not self.fused_head_agrees(plan.encoder.batch([measured(plan.train[plan.readable[0]])])):
            name, own = plan.recipe.training.objective, type(model.get_base_model()).__name__
            why = f"{name} takes log-probabilities from TRL's head, which are not those of {own}"
            raise refused("objective", why, "choose another base, or objective sft", "T005")

    def install_reuse(self, model: PeftModel, plan: Plan) -> None:
        """Run a frozen tower without gradients, and once for each picture where that pays."""
        store = FeatureStore() if plan.keeps_features else None
        self._tower = FrozenTower.of(model, plan.placement, store)
        if self._tower is None or not self._tower.stores:
            return
        # What a step shows once must all fit, or most pictures would pass the tower alone and for nothing.
        if plan.objective.passes == 1 and self._feature_bytes(self._tower, plan) > LIMIT_BYTES:
            self._tower.keep_none()
            self.notes.append("features of pictures are not kept: they would not fit into 2 GiB")
        else:
            self.data_collator.processor_digest = processor_digest(plan.encoder.processor)

    def _feature_bytes(self, tower: FrozenTower, plan: Plan) -> int:
        """Bytes that the features of all pictures would take, from those of one row."""
        shown = next(one for one in plan.train if one.images and one.readable)
        inputs, labels = self._given(plan.encoder.batch([measured(shown)]))
        with evaluating(self.model), self.accelerator.autocast():
            token_losses(self.model, inputs, labels)
        return tower.made // len(shown.images) * len({image for one in plan.train for image in one.images})

    def _given(self, batch: Batch) -> tuple[Batch, torch.Tensor]:
        """A batch's inputs and its labels, on the device."""
        inputs = {name: value.to(self.model.device) for name, value in batch.items()}
        return inputs, inputs.pop("labels")

    def lay_out_rows(self, model: PeftModel, plan: Plan) -> None:
        """Change how rows lie in a batch, where the objective has a shorter layout; none here."""

    def scored_by(self, model: Callable[..., Any]) -> Callable[..., Any]:
        """A model as TRL calls it, whose fused head scores supervised positions only."""
        return self._head.of(model)

    def prepare(self, run: RunDir) -> None:
        """What is left to do before the first step, in the run's directory."""
        self._run = run

    def create_optimizer(self, model: torch.nn.Module | None = None) -> torch.optim.Optimizer:
        """One group per part and kind of decay: norms and biases never decay."""
        if self.optimizer is None:
            own: Any = self
            decaying = set(own.get_decay_parameter_names(self.model))
            groups: dict[tuple[PartName, bool], list[torch.nn.Parameter]] = {}
            for name, parameter in self.model.named_parameters():
                if parameter.requires_grad:
                    groups.setdefault((self._parts.of(name), name in decaying), []).append(parameter)
            kind, options = own.get_optimizer_cls_and_kwargs(self.args, self.model)
            training = self._plan.recipe.training
            rates: dict[PartName, float] = {
                "language": training.learning_rate,
                "connector": training.connector_learning_rate,
                "vision": training.vision_learning_rate,
            }
            settings = [
                {"params": members, "lr": rates[part], "weight_decay": self.args.weight_decay if decays else 0.0,
                 "part": part}
                for (part, decays), members in groups.items()
            ]  # fmt: skip
            self.optimizer = kind(settings, **options)
        return self.optimizer

    def training_step(self, model: torch.nn.Module, inputs: Batch, items: torch.Tensor | int | None = None) -> Any:
        """One forward and backward pass; a loss that is not finite ends the run, or its step is not taken."""
        loss: torch.Tensor = super().training_step(model, inputs, items)
        if not torch.isfinite(loss):
            named = ", ".join(map(str, self.data_collator.origins(rows_of(inputs))))
            help = f"rows of the batch: {named}; look at them with `qlmm data show`, or lower the learning rates"
            self._not_finite("G001", f"loss is {float(loss)}", help)
            loss = torch.zeros_like(loss)
        self._step_loss += float(loss)
        return loss

    def _not_finite(self, code: str, what: str, help: str) -> None:
        """End the run, or mark the step as one not to take, as `training.on_nonfinite` asks."""
        first, self._wrong = not self._wrong, self._wrong or f"{what} at step {self.state.global_step + 1}"
        # One step counts once, however much in it is wrong.
        self._in_a_row += first
        skip = self._plan.recipe.training.on_nonfinite == "skip"
        if skip and self._in_a_row < MOST_SKIPPED:
            return
        row = f", the last of {self._in_a_row} in a row that were not taken" if skip else ""
        help = f"{help}. Checkpoints sealed before are intact."
        raise RunError.one(code, f"{self._wrong}{row}; no weight was changed by it", help=help)

    def fused_head_agrees(self, batch: Batch) -> bool:
        """Whether TRL's fused head gives this class's own loss, tried on one batch.

        It scales logits by the configuration, which Aya Vision's own forward does not; Chameleon masks some.
        """
        inputs, labels = self._given(batch)
        with evaluating(self.model), self.accelerator.autocast():
            fused = self.model(**inputs, labels=labels, fused_lm_head=True, use_cache=False)
            own = token_losses(self.model, inputs, labels)
        rounding = 5e-2 if self.args.bf16 or self.args.fp16 else 1e-3
        return torch.allclose(-fused.log_probs[fused.label_mask].float(), own, rtol=rounding, atol=rounding)

    def compute_loss(
        self,
        model: torch.nn.Module,
        inputs: Batch,
        return_outputs: bool = False,
        num_items_in_batch: torch.Tensor | int | None = None,
    ) -> Any:
        """The objective's loss, with frozen towers at rest and the batch's pictures known by name."""
        if self.model.training:
            self.rest_frozen()
        names = inputs.pop("pictures", None)
        with self._tower.showing(names) if self._tower is not None else nullcontext():
            return self.loss(model, inputs, return_outputs, num_items_in_batch)

    def loss(self, model: Any, inputs: Batch, outputs: bool, items: torch.Tensor | int | None) -> Any:
        """TRL's loss; an objective overrides this where its batches or its model differ from TRL's."""
        return super().compute_loss(model, inputs, outputs, items)  # type: ignore[misc]  # Trainer's

    def rest_frozen(self) -> None:
        """Keep dropout and running statistics of towers still while they are frozen: a batch norm would drift."""
        base = self.model.get_base_model()
        resting: frozenset[PartName] = frozenset({"vision", "other"})
        for part in resting - self._placement.asked:
            for name in self._parts.modules(part):
                base.get_submodule(name).eval()
        if not any(self._parts.of(name) == "vision" for name in self._placement.whole):
            for name in self._parts.vision:
                for norm in (one for one in base.get_submodule(name).modules() if isinstance(one, BATCH_NORMS)):
                    norm.eval()
        if "connector" in self._placement.asked:
            for name in self._parts.connector:
                base.get_submodule(name).train()

    def _clip_grad_norm(self, model: torch.nn.Module) -> torch.Tensor:
        """Measure each part's gradient, then clip all together."""
        self._measure_gradients(model)
        total: torch.Tensor = super()._clip_grad_norm(model)  # type: ignore[misc]  # Trainer's
        return total

    def _get_grad_norm(self, model: torch.nn.Module, grad_norm: torch.Tensor | None = None) -> torch.Tensor:
        """The norm of all gradients, clipped or not; one that is not finite ends the run, or its step is not taken.

        Under fp16 the loss scaler skips such steps itself.
        """
        if grad_norm is None:
            self._measure_gradients(model)
        total: torch.Tensor = super()._get_grad_norm(model, grad_norm=grad_norm)  # type: ignore[misc]  # Trainer's
        finite = math.isfinite(total)
        if self.args.fp16 and not finite and not self._wrong:
            self._in_a_row += 1
            if self._in_a_row >= MOST_SCALED:
                help = "set training.precision=bf16 or fp32, or lower the learning rates"
                raise RunError.one("G002", f"gradients of {self._in_a_row} steps in a row are not finite", help=help)
            self._losses.append(self._step_loss)
            self._step_loss = 0.0
            return total
        if not finite:
            help = "lower the learning rates, or training.extra.max_grad_norm"
            self._not_finite("G002", f"a gradient is {float(total)}", help)
        self._end_of_step(model)
        return total

    def _measure_gradients(self, model: torch.nn.Module) -> None:
        # Under fp16 gradients are still multiplied by the loss scale here.
        scale = self.accelerator.scaler.get_scale() if self.accelerator.scaler is not None else 1.0
        for part, norm in _norms(model, self._parts).items():
            if math.isfinite(norm):
                self.grad_norms[part] = max(self.grad_norms.get(part, 0.0), norm / scale)

    def _end_of_step(self, model: torch.nn.Module) -> None:
        """Take the gradients away from a step that must not be taken: optimizers pass over what has none."""
        if not self._wrong and self._rowless:
            self._wrong = f"no row of step {self.state.global_step + 1} can be read"
        if self._wrong:
            self._missed = True
            model.zero_grad(set_to_none=True)
            self.listener(StepSkipped(self.state.global_step + 1, self._wrong))
        else:
            self._in_a_row = 0
            self._losses.append(self._step_loss)
        self._wrong, self._step_loss = "", 0.0

    def log(self, logs: dict[str, float], start_time: float | None = None) -> None:
        """Log the mean loss of the steps that were taken; what is not finite has no place in a checkpoint's history."""
        if self._missed and "loss" in logs:
            del logs["loss"]
            logs |= {"loss": fmean(self._losses)} if self._losses else {}
        self._losses, self._missed = [], False
        super().log(logs, start_time)  # type: ignore[misc]  # Trainer's
        self.state.log_history[-1] = {name: one for name, one in self.state.log_history[-1].items() if is_finite(one)}

    def take_grad_norms(self) -> dict[str, float]:
        """The largest gradient norm of each part since the last call: no step between two log lines goes unseen."""
        taken, self.grad_norms = self.grad_norms, {}
        return taken

    def _get_train_sampler(self, train_dataset: Dataset | None = None) -> MixtureSampler:
        return self._order

    def _save(self, output_dir: str | None = None, state_dict: dict[str, Any] | None = None) -> None:
        """Store the bare parameters too, or a continued run would start them anew."""
        super()._save(output_dir, state_dict)  # type: ignore[misc]  # Trainer's
        add_bare(self.model, Path(output_dir or self.args.output_dir), self._placement.bare)

    def _get_output_dir(self, trial: object) -> str:
        """Where checkpoints are written before they are sealed."""
        if self._run is not None:
            return str(self._run.saving)
        own: str = super()._get_output_dir(trial)  # type: ignore[misc]  # Trainer's
        return own

    def _save_checkpoint(self, model: torch.nn.Module, trial: object) -> None:
        """Save; what a full disk leaves half made is removed, and the message names it."""
        step = self.state.global_step
        with self._run.writing(f"checkpoint {step}") if self._run is not None else nullcontext():
            super()._save_checkpoint(model, trial)  # type: ignore[misc]  # Trainer's

    def finish(self) -> float | None:
        """What is left to do when training is over; returns the drift of the reference where there is one."""
        if self._tower is not None:
            self._tower.end()
        if self._unpadded is not None:
            self._unpadded.end()
        self._head.end()
        return None

    def create_model_card(self, *args: Any, **kwargs: Any) -> None:
        """Cards are written once, with the adapter; TRL's draft would land in the run directory at every save."""

    def _send_telemetry(self) -> None:
        """Qlmm sends nothing about its users."""


def _spare_inputs(base: PreTrainedModel) -> None:
    """Keep TRL and `Trainer.train` from letting every embedding's output ask for gradients.

    They do so for gradient checkpointing, for the frozen tower's embeddings too: all of the tower would be run backward
    for nothing. Some TRL trainers do it twice, and `disable_input_require_grads` takes the last hooks off only.
    """
    base.disable_input_require_grads()
    base.enable_input_require_grads = lambda: None


def _norms(model: torch.nn.Module, parts: Parts) -> dict[str, float]:
    """L2 norm of each part's gradient, with one transfer from the device."""
    squares: dict[str, list[torch.Tensor]] = {}
    for name, parameter in model.named_parameters():
        if parameter.requires_grad and parameter.grad is not None:
            squares.setdefault(parts.of(name), []).append(parameter.grad.detach().float().square().sum())
    return {part: float(torch.stack(found).sum().sqrt()) for part, found in squares.items()}
