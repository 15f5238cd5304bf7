"""Everything about a run that can be known before weights are loaded; `--dry-run` stops here.

Cheap checks come first: a misspelt name is refused before a configuration is fetched, a bad row before any weights are.

Usage: ``plan = make_plan(recipe); plan.facts.steps``
"""

from __future__ import annotations

import importlib.util
import math
import os
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from statistics import median

from qlmm.core import env
from qlmm.core.errors import DataError, UsageError, Where
from qlmm.core.files import free_bytes
from qlmm.core.units import memory
from qlmm.data.batching.holdout_split import Seen
from qlmm.data.batching.mixture import Mixture, MixtureSampler
from qlmm.data.encoding.encoder import Encoder
from qlmm.data.encoding.length_limit import Lengths
from qlmm.data.fingerprint import DataFingerprint
from qlmm.data.media.images import BadImage, decode
from qlmm.data.media.remembered import NOTHING, Remembered
from qlmm.data.reading.dataset import Bad
from qlmm.data.sample import Example, Preference, Sample
from qlmm.model.inspection.memory import trained_sizes
from qlmm.model.loading.base import Base, Blueprint
from qlmm.model.numerics.precision import Precision, choose
from qlmm.model.parts.split import PART_NAMES, PartName
from qlmm.model.peft.adapter import Placement
from qlmm.model.peft.warm_start import Earlier
from qlmm.model.token_losses import needs_pictures
from qlmm.proof.records import Chosen, PartFacts, PlanFacts, TokenFacts
from qlmm.recipe.schema import Recipe
from qlmm.training.ground import Ground
from qlmm.training.memory_choice import applied, overrides
from qlmm.training.need import Need
from qlmm.training.objective import Objective, in_epoch, objective
from qlmm.training.rows import Rows, asked_so, measured, read_rows
from qlmm.training.trl_settings import trainer_config

__all__ = ["Plan", "make_plan"]

# A picture passes the tower alone to be kept, which is slower than a batch: it must come back for that to pay.
MANY_VIEWS = 2.0
MOST_NAMED = 5


@dataclass(frozen=True, slots=True)
class Plan:
    """A run that can start: what will be loaded, learned and measured.

    Attributes:
        train: rows to learn from, all of them within `data.max_length`; pairs for a preference objective.
        held_out: rows to measure on; of pairs, their chosen sides.
        seen: what of each held-out row is trained on.
        pairs: the held-out rows that are pairs.
        needs_pictures: whether every row must have a picture.
        mixture: what an epoch is made of.
        bad: rows that were left out.
        spare: how many rows may be left out of the loss beside them.
        remembered: what the run has to know of its rows to go on.
        keeps_features: whether a frozen tower's features of a picture are kept for when it comes back.
        need: what a step takes of memory, for any settings.
    """

    recipe: Recipe
    base: Base
    facts: PlanFacts
    precision: Precision
    placement: Placement
    earlier: Earlier | None
    encoder: Encoder
    train: tuple[Example, ...]
    lengths: tuple[Lengths, ...]
    held_out: tuple[Sample, ...]
    seen: tuple[Seen, ...]
    pairs: tuple[Preference, ...]
    needs_pictures: bool
    mixture: Mixture
    bad: tuple[Bad, ...]
    spare: float
    remembered: Remembered
    data: DataFingerprint
    keeps_features: bool
    need: Need

    @property
    def objective(self) -> Objective:
        """What the recipe's objective is."""
        return objective(self.recipe.training.objective)

    @property
    def readable(self) -> list[int]:
        """Numbers of the rows to learn from whose pictures could be read when this was planned."""
        return [number for number, row in enumerate(self.train) if row.readable]

    def order(self) -> MixtureSampler:
        """The seeded order rows are seen in."""
        return MixtureSampler(self.mixture, seed=self.recipe.training.seed)


def make_plan(recipe: Recipe, chosen: Chosen | None = None, remembered: Remembered = NOTHING) -> Plan:
    """Check everything and count everything; a UsageError is what is wrong with recipe, machine, base or data.

    A run that goes on is planned by what was `chosen` for `training.memory` when it was started, and by the rows that
    are `remembered`; without the former the choice is made here.
    """
    precision = choose(recipe.training.device, recipe.training.precision)
    _check_trackers(recipe)
    with env.neutral():
        trainer_config(recipe.training, recipe.output, precision, steps=1)
    ground = Ground.of(recipe)
    base, placement, encoder = ground.base, ground.placement, ground.encoder
    rows = read_rows(recipe, encoder, remembered)
    needs = not encoder.takes_text_only or needs_pictures(base.shape.model)
    _check_kinds_of_rows(recipe, base, rows, needs=needs)
    _check_pictures(recipe, placement, rows)
    need = Need.of(recipe, ground, precision, rows)
    chosen = need.chosen(recipe) if chosen is None and recipe.training.memory is not None else chosen
    fitted = applied(recipe, chosen) if chosen is not None else recipe
    steps = _steps(fitted, len(rows.mixture))
    views = _views(fitted, rows, steps)
    keeps = "vision" in recipe.training.reuse and "vision" not in placement.asked and views >= MANY_VIEWS
    kept = (f"features of a picture are kept: it is shown {views:.1f} times",) if keeps else ()
    facts = replace(
        _facts(fitted, need, rows, steps),
        pictures=ground.pictures,
        notes=_chosen(recipe, chosen) + kept + rows.loaded.unused,
        chosen=chosen,
    )
    _check_disk(facts)
    return Plan(
        recipe=fitted.model_copy(update={"base": base.pinned(), "data": asked_so(recipe.data, rows.encoder)}),
        base=base,
        facts=facts,
        precision=precision,
        placement=placement,
        earlier=ground.earlier,
        encoder=rows.encoder,
        train=rows.train.samples,
        lengths=rows.train.lengths,
        held_out=tuple(measured(row) for row in rows.held_out),
        seen=rows.seen,
        pairs=tuple(row for row in rows.held_out if isinstance(row, Preference)),
        needs_pictures=needs,
        mixture=rows.mixture,
        bad=rows.loaded.bad,
        spare=rows.loaded.spare,
        remembered=rows.remembered,
        data=rows.loaded.data,
        keeps_features=keeps,
        need=need,
    )


def _chosen(recipe: Recipe, chosen: Chosen | None) -> tuple[str, ...]:
    """The plan's words for what was chosen for `training.memory`."""
    if chosen is None:
        return ()
    changed = " ".join(overrides(recipe, chosen)) or "everything as the recipe has it"
    return (f"chosen for training.memory={recipe.training.memory}: {changed}",)


def _steps(recipe: Recipe, epoch_rows: int) -> int:
    training = recipe.training
    if training.steps is not None:
        return training.steps
    per_epoch = math.ceil(
        math.ceil(epoch_rows / training.rows_at_once) * training.rows_at_once / training.rows_per_step
    )
    return max(1, math.ceil(per_epoch * training.epochs))


def _views(recipe: Recipe, rows: Rows, steps: int) -> float:
    """How often the run shows a picture to the tower, on average over its pictures."""
    train, training = rows.train.samples, recipe.training
    shown = in_epoch(rows.mixture, lambda row: len(train[row].images))
    epochs = steps * training.rows_per_step / len(rows.mixture)
    different = len({image for row in train for image in row.images})
    return objective(training.objective).passes * shown * epochs / max(1, different)


def _facts(recipe: Recipe, need: Need, rows: Rows, steps: int) -> PlanFacts:
    """The plan screen's figures."""
    base, placement, precision = need.ground.base, need.ground.placement, need.precision
    shape, training, forecast = base.shape, recipe.training, need.forecast(recipe)
    trained = sum(trained_sizes(shape.model, placement))
    return PlanFacts(
        base=base.name,
        parts=tuple(_part(part, shape, placement, recipe, precision) for part in PART_NAMES if shape.parts.has(part)),
        targets=tuple(f"{ending} ({count})" for ending, count in placement.endings.items()),
        rows_kept=len(rows.train.samples),
        rows_dropped=rows.dropped,
        held_out_rows=len(rows.held_out),
        tokens=_tokens(rows.train.lengths),
        steps=steps,
        batch_rows=training.rows_per_step,
        memory_bytes=forecast.total,
        memory_breakdown=forecast.groups,
        # Each checkpoint has the trained weights and Adam's two moments; the adapter and its stage, the weights.
        disk_bytes=trained * 4 * (3 * (training.keep + 1) + 2) + 50_000_000,
        precision=precision.name,
        device=precision.device,
        output_dir=recipe.output.dir,
        warnings=_warnings(recipe, rows),
    )


def _part(part: PartName, shape: Blueprint, placement: Placement, recipe: Recipe, precision: Precision) -> PartFacts:
    # Tied weights are listed once, with the embeddings; a head that shares them has none of its own.
    sizes = [p.numel() for name, p in shape.model.named_parameters() if shape.parts.of(name) == part]
    trained = trained_sizes(shape.model, placement, part)
    quantised = part == "language" and recipe.base.quantize != "none"
    return PartFacts(
        part=part,
        tensors=len(sizes),
        parameters=sum(sizes),
        trainable_tensors=len(trained),
        trainable_parameters=sum(trained),
        storage=recipe.base.quantize if quantised else precision.name,
    )


def _tokens(lengths: Sequence[Lengths]) -> TokenFacts:
    totals = sorted(one.total for one in lengths)
    return TokenFacts(
        median=round(median(totals)),
        p95=totals[min(len(totals) - 1, math.ceil(len(totals) * 0.95) - 1)],
        max=totals[-1],
        visual_median=round(median(one.visual for one in lengths)),
    )


def _warnings(recipe: Recipe, rows: Rows) -> tuple[str, ...]:
    learned = objective(recipe.training.objective)
    found = list(learned.warnings(recipe.training, rows.mixture, rows.train.samples))
    if rows.loaded.bad:
        found.append(f"{len(rows.loaded.bad)} bad rows are left out; skipped.jsonl in the run directory names them")
    if gone := [str(one.origin) for one in rows.loaded.unreadable]:
        listed = ", ".join(gone[:MOST_NAMED]) + (" …" if len(gone) > MOST_NAMED else "")
        found.append(f"pictures of {len(gone)} rows cannot be read any more; the loss leaves these out: {listed}")
    if rows.seen_rows:
        first = rows.seen_rows[0].origin
        found.append(f"{len(rows.seen_rows)} rows of evaluation.sources are trained on and not measured, first {first}")
    if pictures := rows.seen.count("picture"):
        found.append(f"{pictures} of {len(rows.seen)} held-out rows show a picture that is trained on")
    found += rows.loaded.warnings
    if not rows.held_out:
        found.append("no held-out row: whether pictures are used cannot be measured")
    if ignored := env.not_obeyed():
        found.append(f"set in the environment, and not obeyed: {', '.join(ignored)}; the recipe decides")
    if numeric := env.numeric():
        listed = ", ".join(f"{name}={value}" for name, value in numeric.items())
        found.append(f"set in the environment, so that numbers may differ from those of other runs: {listed}")
    return tuple(found)


def _check_trackers(recipe: Recipe) -> None:
    """Refuse a tracker whose package is missing, which the trainer would only find out once the run had started."""
    for name in recipe.output.trackers:
        if importlib.util.find_spec(name) is None:
            help = f"pip install {name}, or leave it out"
            raise UsageError.one("T003", f"{name} is not installed here", help=help, key="output.trackers")


def _check_kinds_of_rows(recipe: Recipe, base: Base, rows: Rows, *, needs: bool) -> None:
    """Refuse rows without a picture, or batches of both kinds of rows, that this base cannot be given."""
    bare = next((sample for sample in (*rows.train.samples, *rows.held_out) if not sample.images), None)
    if bare is None:
        return
    if needs:
        raise DataError.one(
            "D042",
            f"this row has no picture, and {base.name} cannot do without",
            where=Where(bare.origin.file, bare.origin.line),
            help="leave rows without a picture out, or choose another base",
        )
    training, shown = recipe.training, any(sample.images for sample in rows.train.samples)
    if shown and not rows.encoder.takes_both and training.rows_at_once > 1:
        kind, rows_a_step = type(rows.encoder.processor).__name__, training.rows_per_step
        raise DataError.one(
            "D043",
            f"{kind} takes no batch that mixes rows with and without a picture",
            help=f"set training.batch_size=1 training.accumulation={rows_a_step}"
            if objective(training.objective).rows != "feedback"
            else "leave rows with or without a picture out",
        )


def _check_pictures(recipe: Recipe, placement: Placement, rows: Rows) -> None:
    """Refuse what would end unproven for certain, and decode the few pictures that are measured before training."""
    seeing = sorted(placement.asked & {"connector", "vision"})
    if seeing and not any(sample.images and sample.readable for sample in rows.train.samples):
        raise DataError.one(
            "D041",
            f"no row has a picture, so that adapter.{seeing[0]} cannot be trained",
            help=f"add rows with pictures, or set {' '.join(f'adapter.{part}=frozen' for part in seeing)}",
        )
    for sample in rows.held_out:
        for image in sample.images:
            try:
                decode(image)
            except BadImage as bad:
                where = Where(sample.origin.file, sample.origin.line)
                message = f"held-out picture {image.name}: {bad.reason}"
                help = "put the picture back, replace or remove it: rows that are measured cannot be left out"
                raise DataError.one("D020", message, where=where, help=help) from bad


def _check_disk(facts: PlanFacts) -> None:
    """Refuse a run that would fill the disk, or cannot write there at all."""
    place = Path(facts.output_dir).absolute()
    while not place.exists():
        place = place.parent
    if not place.is_dir() or not os.access(place, os.W_OK):
        why = f"{place} " + ("cannot be written to" if place.is_dir() else "is not a directory")
        help = "name another output.dir"
        raise UsageError.one("O004", f"{facts.output_dir} cannot be made: {why}", help=help, key="output.dir")
    free = free_bytes(place)
    if free < facts.disk_bytes:
        raise UsageError.one(
            "O003",
            f"not enough room for {facts.output_dir}: {memory(facts.disk_bytes)} needed, {memory(free)} free",
            help="name another output.dir, or keep fewer checkpoints with training.keep=1",
        )
