"""The rows of a run: read from its sources, split into those to learn from and those to measure on, and made to fit.

Usage: ``rows = read_rows(recipe, encoder); rows.train.samples; rows.held_out``
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass

from qlmm.builtin import registry as builtin
from qlmm.core.errors import DataError
from qlmm.data.batching.holdout_split import set_aside
from qlmm.data.batching.mixture import Mixture
from qlmm.data.encoding.encoder import Encoder
from qlmm.data.encoding.length_limit import Fitted
from qlmm.data.errors import DropReason, OtherKind
from qlmm.data.reading.dataset import Loaded, load_samples
from qlmm.data.sample import Example, Feedback, Preference, Sample
from qlmm.recipe.schema import Recipe, Source
from qlmm.training.objective import exemplary, objective, redirected

__all__ = ["Rows", "measured", "read_rows"]


@dataclass(frozen=True, slots=True)
class Rows:
    """The rows of a run: all that were read, bad ones too; those to learn from; those to measure on; an epoch's."""

    encoder: Encoder
    loaded: Loaded[Example]
    train: Fitted[Example]
    held_out: tuple[Example, ...]
    mixture: Mixture

    @property
    def dropped(self) -> dict[str, int]:
        """Rows left out, by reason."""
        reasons = [*(one.reason for one in self.train.dropped), *(DropReason.BAD_ROW for _ in self.loaded.bad)]
        return {reason.value: count for reason, count in Counter(reasons).items()}


def read_rows(recipe: Recipe, encoder: Encoder) -> Rows:
    """Read, split and fit the rows of a recipe; base, machine and disk are not looked at.

    Raises:
        DataError: for rows that cannot be read, D040 when none is left to learn from.
    """
    data, evaluation = recipe.data, recipe.evaluation
    loaded = _load(recipe, data.sources)
    learn = list(range(len(loaded.samples)))
    if evaluation.sources:
        others: Sequence[Example] = _load(recipe, evaluation.sources).samples
    else:
        learn, aside = set_aside(loaded.samples, evaluation.rows, seed=recipe.training.seed)
        others = [loaded.samples[row] for row in aside]
    taught_by = objective(recipe.training.objective).taught
    taught = [(row, one) for row in learn for one in taught_by(loaded.samples[row])]
    fitted = encoder.fit([one for _, one in taught])
    if not fitted.samples:
        first = "".join(f": {one.origin}: {one.text}" for one in fitted.dropped[:1])
        help = "raise data.max_length, or set data.overlong=shorten"
        raise DataError.one("D040", f"no row is left to learn from{first}", help=help)
    # An undesirable answer measures nothing.
    held_out = encoder.fit([row for row in others if exemplary(row)]).samples[: evaluation.rows]
    sources = [loaded.source[taught[place][0]] for place in fitted.kept]
    weights = [source.weight for source in data.sources]
    mixture = Mixture.of(fitted.samples, sources, weights, text_ratio=data.text_ratio)
    return Rows(encoder, loaded, fitted, held_out, mixture)


def measured(row: Example) -> Sample:
    """What of a row is measured and asked: of a pair, its chosen side."""
    if isinstance(row, Feedback):
        return row.sample
    return row.side("chosen") if isinstance(row, Preference) else row


def _load(recipe: Recipe, sources: Sequence[Source]) -> Loaded[Example]:
    data = recipe.data
    try:
        return load_samples(
            sources,
            kind=objective(recipe.training.objective).rows,
            max_bad_rows=data.max_bad_rows,
            resolve=builtin.path,
            max_frames=data.max_frames,
            check_pictures=True,
        )
    except OtherKind as other:
        raise redirected(other) from None
