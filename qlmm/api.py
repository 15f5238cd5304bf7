"""A run from recipe to report: each function composes the layers below it.

Usage: ``outcome = finetune(load_recipe("recipes/owl_lora.yaml"), listener=print)``
"""

from __future__ import annotations

import gc
import signal
import time
import uuid
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import Literal

import torch
from peft import PeftModel

from qlmm.artifacts.adapter.folder import file_hashes, stage_adapter
from qlmm.artifacts.adapter.load import LoadedAdapter, load
from qlmm.artifacts.adapter.manifest import Manifest, versions, write_manifest
from qlmm.artifacts.adapter.reload import prove_reload
from qlmm.artifacts.cards.adapter_card import MOST_PICTURES, card, picture_name
from qlmm.core import env
from qlmm.core.errors import RunError
from qlmm.core.events import Answered, Event, Finished, Listener, Resumed, StepDone, StepSkipped
from qlmm.core.filenames import ADAPTER, CARD, UNPROVEN
from qlmm.core.files import atomic_write
from qlmm.core.secrets import shareable
from qlmm.core.signals import handled
from qlmm.core.staging import publish
from qlmm.data.batching.holdout_split import Seen
from qlmm.data.media.remembered import Remembered
from qlmm.data.sample import Sample
from qlmm.evaluation.measures import Measures
from qlmm.generation.answers import answer, open_question, thumbnail
from qlmm.model.numerics.finite import not_finite
from qlmm.proof.fingerprint import Start
from qlmm.proof.probe import write_probe
from qlmm.proof.promises import judge
from qlmm.proof.records import Answer, Comparison, HeldOutProof, PartProof, PlanFacts, Proof, ReferenceProof
from qlmm.proof.verdicts import commonest_answer, compare, verdicts
from qlmm.recipe.load import LoadedRecipe, as_yaml
from qlmm.recipe.schema import Recipe
from qlmm.report.run_report import CURVE, METRICS, REPORT, report_run
from qlmm.training.continued import check_same_base, check_same_data, note_changes, refuse_changed
from qlmm.training.left_out import listed, pictures_named, rows_left_out
from qlmm.training.logbook import open_logbook, read_metrics
from qlmm.training.objective import exemplary
from qlmm.training.plan import Plan, make_plan
from qlmm.training.rows import measured
from qlmm.training.run import build, train
from qlmm.training.run_dir import Before, RunDir, RunRecord, read_record

__all__ = ["LoadedAdapter", "Outcome", "finetune", "load", "plan"]

# The pictures as they were when the run was started.
REMEMBERED = "pictures.json"
PROBE_FROM = 100  # training rows the probe is chosen from where none are held out


@dataclass(frozen=True, slots=True)
class Outcome:
    """How a run ended.

    Attributes:
        status: finished; already (an earlier call had finished it, nothing was done); stopped by a signal, resumable;
            unproven, when a promise was broken, which the adapter's folder has in its name.
    """

    status: Literal["finished", "already", "stopped", "unproven"]
    run_dir: Path
    adapter: Path | None
    proof: Proof | None
    answers: tuple[Answer, ...] = ()
    signal: int | None = None


@dataclass(frozen=True, slots=True)
class _Job:
    """One run under way."""

    loaded: LoadedRecipe
    plan: Plan
    run: RunDir
    held_out: Measures
    listener: Listener

    @property
    def questions(self) -> Sequence[tuple[Sample, Seen]]:
        """Held-out rows with pictures that are answered for the report, and what of them is trained on."""
        rows = zip(self.plan.held_out, self.plan.seen, strict=True)
        return [one for one in rows if one[0].images][: self.plan.recipe.evaluation.answers]


def plan(recipe: Recipe) -> Plan:
    """The plan of a run, after every check that `finetune` makes before weights are read; nothing is written.

    Raises:
        UsageError: what `finetune` would refuse.
        RunError: C001, C002 where the run in `output.dir` could not go on.
    """
    run = RunDir.look(Path(recipe.output.dir))
    if run is not None:
        refuse_changed(run.record.recipe, recipe, run.path)
    ready = _ready(recipe, run.record if run is not None else None)
    if run is not None:
        check_same_data(run, ready)
        run.last_good(lambda event: None)
    return ready


def _ready(recipe: Recipe, started: RunRecord | None) -> Plan:
    """The plan of a run, by what it chose and had to know of its rows when it was started."""
    chosen = started.plan.chosen if started is not None else None
    return make_plan(recipe, chosen, Remembered.read(Path(recipe.output.dir) / REMEMBERED))


def finetune(
    loaded: LoadedRecipe,
    *,
    listener: Listener = lambda event: None,
    planned: Callable[[PlanFacts], None] = lambda facts: None,
) -> Outcome:
    """Train by a recipe, or continue its run; end with an adapter and the proof of what was done.

    ``listener`` receives every event of the run, ``planned`` the plan before anything is written.

    Raises:
        UsageError: what is wrong with the request; nothing was started or written.
        RunError: why the run could not go on; its sealed checkpoints are intact.
    """
    begun, path = time.monotonic(), Path(loaded.recipe.output.dir)
    if (earlier := _finished_run(path, loaded.recipe)) is not None:
        return earlier
    ready = _ready(loaded.recipe, read_record(path))
    planned(ready.facts)
    # A wish to save that comes before or after training must not end the run.
    quiet = handled({signal.SIGUSR1: signal.SIG_IGN})
    with quiet, env.neutral(), RunDir.open(path, _record(loaded, ready)) as run:
        check_same_data(run, ready)
        _write_recipe_and_skipped(run, loaded, ready)
        run.clear()
        checkpoint = run.last_good(listener)
        if checkpoint is not None:
            note_changes(run, ready, versions(), listener)
        resume = Resumed(run.step_of(checkpoint), checkpoint.name) if checkpoint is not None else None
        with open_logbook(path / METRICS, start=resume.step if resume is not None else 0) as logbook:

            def both(event: Event) -> None:
                logbook(event)
                listener(event)

            job = _Job(loaded, ready, run, Measures(ready), both)
            with pictures_named(ready):
                measured = _train_and_measure(job, resume)
            if isinstance(measured, int):
                return Outcome("stopped", path, None, None, signal=measured)
            # The trained model goes, so that a small GPU has room for the process that reads the adapter back.
            gc.collect()
            if torch.cuda.is_available():
                torch.cuda.empty_cache()
            outcome = _conclude(job, measured)
            both(Finished(ready.facts.steps, time.monotonic() - begun))
        report_run(path, run.record)
        return outcome


@dataclass(frozen=True, slots=True)
class _Measured:
    """What is known of a trained model once the model itself can be let go."""

    start: Start
    before: HeldOutProof
    after: HeldOutProof
    parts: tuple[PartProof, ...]
    answers: tuple[Answer, ...]
    stage: Path
    reference: ReferenceProof | None


def _train_and_measure(job: _Job, resume: Resumed | None) -> _Measured | int:
    """Everything that needs the model in memory; an int is the signal that stopped training."""
    if resume is not None:
        job.listener(resume)
    model, start = build(job.plan)
    check_same_base(job.run, start)
    before, answers_before = _before(job, model)

    def evaluate(step: int) -> HeldOutProof:
        return job.held_out(model, step=step, listener=job.listener)

    checkpoint = job.run.path / resume.folder if resume is not None else None
    metrics = job.run.path / METRICS
    left_out = rows_left_out(metrics)
    ended = train(job.plan, job.run, model, job.listener, evaluate=evaluate, resume=checkpoint, left_out=left_out)
    job.run.write(left_out=rows_left_out(metrics))
    if ended.signal is not None:
        ended.finish()
        return ended.signal
    # How far the model went from its reference can be measured only until training lets go of that.
    after, drift = evaluate(job.plan.facts.steps), ended.finish()
    answers_after = _answers(job, model, "after")
    stage = _stage(job, model)
    parts = start.compare(model, _largest_gradients(read_metrics(metrics)))
    answers = tuple(
        Answer(
            thumbnail(row.images[0]),
            shareable(open_question(row).turns[-1].text.strip()),
            shareable(row.turns[-1].text),
            before_text,
            after_text,
            picture_trained=seen == "picture",
        )
        for (row, seen), before_text, after_text in zip(job.questions, answers_before, answers_after, strict=True)
    )
    reference = _reference(job, drift, resumed=resume is not None)
    return _Measured(start, before, after, parts, answers, stage, reference)


def _stage(job: _Job, model: PeftModel) -> Path:
    """The adapter's folder under way, with its probe; G004 when a weight is not finite."""
    ready = job.plan
    with job.run.writing("the adapter"):
        stage = stage_adapter(
            model, ready.encoder.processor, job.run.saving, ready.base.identity, bare=ready.placement.bare
        )
    if wrong := not_finite(stage):
        help = "start again in a new output.dir with lower learning rates"
        raise RunError.one("G004", f"no adapter is made: {'; '.join(wrong[:3])}", help=help)
    # The probe is chosen from held-out rows where there are any.
    left_out = {(one.file, one.line) for one in job.run.record.left_out}
    rows = (ready.train[row] for row in ready.readable)
    learned = (row for row in rows if (row.origin.file, row.origin.line) not in left_out)
    probed = ready.held_out or [measured(row) for row in islice(learned, PROBE_FROM)]
    write_probe(stage, model, ready.encoder, ready.precision, probed)
    return stage


def _reference(job: _Job, drift: float | None, *, resumed: bool) -> ReferenceProof | None:
    """What is known of the reference; a continued run's first loss is not the one before the first step."""
    if drift is None:
        return None
    first = next((event for event in read_metrics(job.run.path / METRICS) if isinstance(event, StepDone)), None)
    loss = first.loss if first is not None and first.step == 1 and not resumed else None
    return ReferenceProof(drift, loss, job.plan.objective.first_loss(job.plan.recipe.training))


def _before(job: _Job, model: PeftModel) -> tuple[HeldOutProof, list[str]]:
    """What is measured and answered before the first step; a continued run remembers it."""
    known = job.run.record.before
    if known is not None:
        return known.held_out, list(known.answers)
    proof = job.held_out(model, step=0, listener=job.listener)
    texts = _answers(job, model, "before")
    job.run.write(before=Before(held_out=proof, answers=tuple(texts)), status="unfinished")
    return proof, texts


def _answers(job: _Job, model: PeftModel, phase: str) -> list[str]:
    longest = job.plan.recipe.evaluation.max_new_tokens
    with job.plan.precision.autocast():
        texts = [shareable(answer(model, job.plan.encoder, row, longest)) for row, _ in job.questions]
    job.listener(Answered(phase, len(texts)))
    return texts


def _conclude(job: _Job, measured: _Measured) -> Outcome:
    """Read the adapter back in a fresh process, judge every promise, and give the adapter the name it deserves."""
    for number, one in enumerate(measured.answers[:MOST_PICTURES], 1):
        place = measured.stage / picture_name(number)
        place.parent.mkdir(exist_ok=True)
        atomic_write(place, one.picture)
    manifest = _manifest(job, measured)
    write_manifest(measured.stage, manifest)
    reload = prove_reload(measured.stage, job.plan.precision)
    empty = sum(not lengths.supervised for lengths in job.plan.lengths)
    own = job.plan.objective.promises(measured.reference)
    promises = judge(
        measured.parts, empty_masks=empty, seen=job.plan.seen, own=own, reload=reload, steps=job.plan.facts.steps
    )
    proof = Proof(
        parts=measured.parts,
        before=measured.before.pictures,
        after=measured.after.pictures,
        empty_masks=empty,
        reload=reload,
        reference=measured.reference,
        pairs_before=measured.before.pairs,
        pairs_after=measured.after.pairs,
        promises=promises,
        comparisons=_comparisons(job, measured),
        skipped=tuple(one.step for one in read_metrics(job.run.path / METRICS) if isinstance(one, StepSkipped)),
    )
    final = manifest.model_copy(update={"proof": proof})
    write_manifest(measured.stage, final)
    atomic_write(measured.stage / CARD, card(final, proof, measured.answers))
    adapter = publish(measured.stage, job.run.path / (ADAPTER if proof.holds else UNPROVEN), replace=True)
    outcome = Outcome("finished" if proof.holds else "unproven", job.run.path, adapter, proof, measured.answers)
    job.run.clear()
    job.run.write(
        status=outcome.status,
        proof=proof,
        verdicts=verdicts(proof),
        adapter=adapter.name,
        answers=measured.answers,
    )
    return outcome


def _comparisons(job: _Job, found: _Measured) -> tuple[Comparison, ...]:
    """The trained model beside itself before training, without its pictures, and the commonest answer of its rows."""
    texts = (measured(row).turns[-1].text for row in job.plan.train if exemplary(row))
    return compare(found.before, found.after, found.answers, commonest_answer(texts))


def _manifest(job: _Job, measured: _Measured) -> Manifest:
    ready = job.plan
    return Manifest(
        base=job.run.record.base,
        recipe=ready.recipe,
        precision=ready.precision.name,
        seed=ready.recipe.training.seed,
        frozen_sha256=measured.start.base_sha256,
        data=ready.data,
        steps=ready.facts.steps,
        exact=not (job.run.record.changes or job.run.record.left_out),
        versions=versions(),
        files=file_hashes(measured.stage),
    )


def _finished_run(path: Path, recipe: Recipe) -> Outcome | None:
    """The outcome of a run that is complete already; a directory started with another recipe is refused.

    A run that was cut off between its adapter and its report gets the report.
    """
    record = read_record(path)
    if record is None:
        return None
    refuse_changed(record.recipe, recipe, path)
    if record.status != "finished" or record.adapter is None:
        return None
    if not all((path / name).is_file() for name in (CURVE, REPORT)):
        with RunDir.open(path, record) as run:
            report_run(path, run.record)
    return Outcome("already", path, path / record.adapter, record.proof, record.answers or ())


def _record(loaded: LoadedRecipe, ready: Plan) -> RunRecord:
    """What a new run writes down before anything else."""
    return RunRecord(
        id=uuid.uuid4().hex,
        recipe=loaded.recipe,
        recipe_file=loaded.file,
        overrides=loaded.overrides,
        versions=versions(),
        environment=env.numeric(),
        base=ready.base.identity,
        data=ready.data,
        plan=ready.facts,
    )


def _write_recipe_and_skipped(run: RunDir, loaded: LoadedRecipe, ready: Plan) -> None:
    """The recipe as it ran, which repeats the run, and the bad rows that it lets be, with the reason for each."""
    run.write(recipe=loaded.recipe, recipe_file=loaded.file, overrides=loaded.overrides)
    atomic_write(run.path / "recipe.yaml", as_yaml(loaded.recipe))
    if not (run.path / REMEMBERED).exists():
        ready.remembered.write(run.path / REMEMBERED)
    if ready.bad:
        atomic_write(run.path / "skipped.jsonl", listed(ready.bad))


def _largest_gradients(metrics: Sequence[Event]) -> dict[str, float]:
    largest: dict[str, float] = {}
    for step in (event for event in metrics if isinstance(event, StepDone)):
        for part, norm in step.grad_norms.items():
            largest[part] = max(largest.get(part, 0.0), norm)
    return largest
