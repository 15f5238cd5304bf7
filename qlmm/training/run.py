"""From a plan to a trained model: attach the adapter, train, seal, stop in order.

Usage: ``model, start = build(plan); ended = train(plan, run, model, listener, evaluate=…, resume=…)``
"""

from __future__ import annotations

import faulthandler
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from peft import PeftModel, set_peft_model_state_dict
from safetensors.torch import load_file

from qlmm.core.events import Listener, RowLeftOut, Warned
from qlmm.core.filenames import ADAPTER_WEIGHTS
from qlmm.core.signals import stop_signals
from qlmm.model.image_budget.budget import agree
from qlmm.model.parts.split import PEFT_PREFIX
from qlmm.model.peft.adapter import attach, to_fp32
from qlmm.proof.fingerprint import Start
from qlmm.training.left_out import LeftOut
from qlmm.training.memory import no_memory, out_of_memory
from qlmm.training.monitor import Evaluate, Monitor
from qlmm.training.plan import Plan
from qlmm.training.run_dir import RunDir
from qlmm.training.trackers import Trackers

__all__ = ["Ended", "build", "train"]


@dataclass(frozen=True, slots=True)
class Ended:
    """How training ended: by a signal, or None when all steps were taken.

    `finish` removes what training put beside the model, once the model is measured. It returns how far the reference of
    a preference objective moved; None without one, or when no step was taken.
    """

    signal: int | None
    finish: Callable[[], float | None]


def build(plan: Plan) -> tuple[PeftModel, Start]:
    """Load the base, attach the adapter, and take the fingerprint of both.

    The result depends on recipe and seed alone, so that a continued run starts from the very same bits.
    """
    recipe, seed = plan.recipe, plan.recipe.training.seed
    base = plan.base.load(plan.precision, seed=seed)
    agree(base, plan.encoder.processor)
    model = attach(base, plan.placement, recipe.adapter, seed=seed)
    if plan.earlier is not None:
        plan.earlier.fill(model)
        to_fp32(model)
    bare = tuple(f"{PEFT_PREFIX}{name}" for name in plan.placement.bare)
    return model, Start.of(model, plan.placement.parts, plan.placement.asked, bare)


def train(
    plan: Plan,
    run: RunDir,
    model: PeftModel,
    listener: Listener,
    *,
    evaluate: Evaluate,
    resume: Path | None,
    left_out: Sequence[RowLeftOut] = (),
) -> Ended:
    """Train the model from `build`, in place, to the last step or to a signal; `resume` is a sealed checkpoint.

    ``left_out`` are the rows that were left out up to there.

    Raises:
        RunError: D036 when more pictures cannot be read than the recipe allows.
        RunError: G001, G002 when a loss or gradient is not finite; G003 when memory does not suffice for one row.
    """
    recipe = plan.recipe
    if resume is not None and run.step_of(resume) >= plan.facts.steps:
        # The trainer looks at its step count only after a step: resumed at the end, it would take one too many.
        set_peft_model_state_dict(model, load_file(str(resume / ADAPTER_WEIGHTS)))
        return Ended(None, lambda: None)
    monitor = Monitor(run, listener, recipe.training, every=recipe.evaluation.every, evaluate=evaluate)

    def lost(what: str) -> None:
        run.write(lost_trackers=tuple(dict.fromkeys((*(run.record.lost_trackers or ()), what))))
        listener(Warned(what))

    # After the monitor: a tracker that looks for a checkpoint finds it sealed.
    callbacks = [monitor, Trackers(recipe.output.trackers, lost)]
    trainer: Any = plan.objective.trainer()(model, plan, callbacks=callbacks)
    monitor.grad_norms, trainer.listener = trainer.take_grad_norms, listener
    for note in trainer.notes:
        listener(Warned(note))
    trainer.left_out = LeftOut(plan.spare, len(plan.bad), left_out, listener)
    trainer.prepare(run)
    if run.record.rows_at_once is not None:
        trainer.batches.at_once = min(run.record.rows_at_once, recipe.training.rows_at_once)

    def halved(step: int, rows: int) -> None:
        run.write(rows_at_once=rows)
        batch = recipe.training.rows_at_once
        listener(Warned(f"out of memory at step {step}: {rows} of a batch's {batch} rows at once from here; same loss"))

    trainer.halved = halved
    try:
        with stop_signals() as monitor.stop:
            trainer.train(resume_from_checkpoint=str(resume) if resume is not None else None)
    except (MemoryError, RuntimeError) as error:
        if out_of_memory(error):
            raise no_memory(plan, trainer.state.global_step + 1, trainer.batches.at_once) from error
        # A data loader names only which process is gone.
        if (lost := trainer.batches.lost()) is None:
            raise
        raise lost from error
    finally:
        faulthandler.cancel_dump_traceback_later()
    return Ended(monitor.stop.by, trainer.finish)
