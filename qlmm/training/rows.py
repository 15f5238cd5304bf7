"""The rows of a run: read from its sources, split into those to learn from and those to measure on, and made to fit.

Usage: ``rows = read_rows(recipe, encoder); rows.train.samples; rows.held_out``
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import islice

from qlmm.builtin import registry as builtin
from qlmm.core.errors import DataError, Where
from qlmm.data.batching.holdout_split import Seen, seen_in, set_aside
from qlmm.data.batching.mixture import Mixture
from qlmm.data.encoding.encoder import Encoder
from qlmm.data.encoding.length_limit import Fitted
from qlmm.data.errors import DropReason, OtherKind
from qlmm.data.media.copies import originals
from qlmm.data.media.remembered import NOTHING, Remembered
from qlmm.data.reading.dataset import Loaded, load_samples
from qlmm.data.sample import Example, Feedback, ImageRef, Preference, Sample
from qlmm.recipe.schema import DataSection, Recipe, Source
from qlmm.training.objective import exemplary, objective, redirected

__all__ = ["Rows", "asked_so", "measured", "read_rows", "thinking"]

# Rows of each kind, with a thought and without, that are compared with the prompt that asks for their answer.
CHECKED = 8
# How the thoughts of every family end whose chat template can open one.
THOUGHT = "</think>"


@dataclass(frozen=True, slots=True)
class Rows:
    """The rows of a run.

    Attributes:
        loaded: all rows of `data.sources` that were read, and the bad ones.
        train: those to learn from.
        kept_out: how many of them are not learned from, since they share a picture with held-out rows.
        held_out: those to measure on.
        seen: what of each held-out row is trained on.
        seen_rows: rows of `evaluation.sources` that are not measured, since they are trained on.
        mixture: what an epoch is made of.
        remembered: what a run that goes on has to know of these rows.
    """

    encoder: Encoder
    loaded: Loaded[Example]
    train: Fitted[Example]
    kept_out: int
    held_out: tuple[Example, ...]
    seen: tuple[Seen, ...]
    seen_rows: tuple[Example, ...]
    mixture: Mixture
    remembered: Remembered

    @property
    def dropped(self) -> dict[str, int]:
        """Rows left out, by reason."""
        reasons = Counter(one.reason for one in self.train.dropped)
        reasons += Counter({DropReason.BAD_ROW: len(self.loaded.bad), DropReason.PICTURE_HELD_OUT: self.kept_out})
        return {reason.value: count for reason, count in reasons.items()}


def read_rows(recipe: Recipe, encoder: Encoder, remembered: Remembered = NOTHING) -> Rows:
    """Read, split and fit the rows of a recipe; base, machine and disk are not looked at.

    A run that goes on has the rows that are remembered, also where their pictures are gone.

    Raises:
        DataError: for rows that cannot be read, D040 when none is left to learn from, D047 when all rows to measure on
            are trained on.
    """
    data, evaluation = recipe.data, recipe.evaluation
    loaded = _load(recipe, data.sources, remembered)
    encoder = thinking(encoder, data, loaded.samples)
    apart = [_load(recipe, evaluation.sources, remembered)] if evaluation.sources else []
    others: Sequence[Example] = [row for one in apart for row in one.samples]
    same = _same([*loaded.samples, *others], remembered)
    learn, aside = list(range(len(loaded.samples))), list[int]()
    if not evaluation.sources:
        learn, aside = set_aside(loaded.samples, evaluation.rows, seed=recipe.training.seed, same=same)
        others = [loaded.samples[row] for row in aside]
    taught_by = objective(recipe.training.objective).taught
    taught = [(row, one) for row in learn for one in taught_by(loaded.samples[row])]
    fitted = encoder.fit([one for _, one in taught])
    if not any(row.readable for row in fitted.samples):
        first = "".join(f": {one.origin}: {one.text}" for one in fitted.dropped[:1])
        help = "raise data.max_length, or set data.overlong=shorten"
        raise DataError.one("D040", f"no row is left to learn from{first}", help=help)
    for kind in (True, False):
        encoder.check_asked(
            [measured(row) for row in islice((r for r in fitted.samples if _thinks(r) == kind), CHECKED)]
        )
    # An undesirable answer measures nothing.
    measurable = encoder.fit([row for row in others if exemplary(row)]).samples
    seen = list(zip(measurable, seen_in(fitted.samples, measurable, same), strict=True))
    held_out = [one for one in seen if one[1] != "row"][: evaluation.rows]
    if seen and not held_out:
        raise _all_trained_on(measurable)
    sources = [loaded.source[taught[place][0]] for place in fitted.kept]
    weights = [source.weight for source in data.sources]
    mixture = Mixture.of(fitted.samples, sources, weights, text_ratio=data.text_ratio)
    return Rows(
        encoder,
        loaded,
        fitted,
        kept_out=len(loaded.samples) - len(learn) - len(aside),
        held_out=tuple(row for row, _ in held_out),
        # Of the rows that are measured; earlier exclusions do not count.
        seen=tuple(seen_in(fitted.samples, [row for row, _ in held_out], same)),
        seen_rows=tuple(row for row, what in seen if what == "row"),
        mixture=mixture,
        remembered=_remembered([loaded, *apart], same),
    )


def _same(rows: Sequence[Example], remembered: Remembered) -> dict[ImageRef, ImageRef]:
    """Each picture with the first of its copies; as it was where one of the pictures is gone."""
    compared = originals if all(row.readable for row in rows) else remembered.originals
    return compared(image for row in rows for image in row.images)


def _remembered(loads: Sequence[Loaded[Example]], same: Mapping[ImageRef, ImageRef]) -> Remembered:
    pictures = {path: one for loaded in loads for path, one in loaded.pictures.items()}
    return Remembered.of(pictures, same, [one.origin for loaded in loads for one in loaded.bad])


def thinking(encoder: Encoder, data: DataSection, samples: Sequence[Example]) -> Encoder:
    """The encoder that asks as rows are answered: inviting a thought where the recipe asks for it, or a row has one."""
    decided = data.thinking is None and any(map(_thinks, samples))
    return encoder.thinking() if decided else encoder


def asked_so(data: DataSection, encoder: Encoder) -> DataSection:
    """A recipe's data section that records whether questions invite a thought."""
    return data.model_copy(update={"thinking": True}) if encoder.thinks else data


def _thinks(row: Example) -> bool:
    """Whether an answer of a row has a thought."""
    return any(THOUGHT in turn.text for turn in row.content if turn.role == "assistant")


def measured(row: Example) -> Sample:
    """What of a row is measured and asked: of a pair, its chosen side."""
    if isinstance(row, Feedback):
        return row.sample
    return row.side("chosen") if isinstance(row, Preference) else row


def _all_trained_on(rows: Sequence[Example]) -> DataError:
    """Why nothing can be measured: all these rows are among those to learn from."""
    first = rows[0].origin
    return DataError.one(
        "D047",
        f"all {len(rows)} rows of evaluation.sources are in data.sources too: what is learned measures nothing",
        where=Where(first.file, first.line),
        help="name other rows, or leave evaluation.sources out: rows of data.sources are then set aside",
    )


def _load(recipe: Recipe, sources: Sequence[Source], remembered: Remembered) -> Loaded[Example]:
    data = recipe.data
    try:
        return load_samples(
            sources,
            kind=objective(recipe.training.objective).rows,
            max_bad_rows=data.max_bad_rows,
            resolve=builtin.path,
            max_frames=data.max_frames,
            check_pictures=True,
            remembered=remembered,
        )
    except OtherKind as other:
        raise redirected(other) from None
