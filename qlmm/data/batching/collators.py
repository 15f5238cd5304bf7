"""Row numbers -> batch: what the trainer's data loader calls.

The loader carries row numbers, not rows, so that order, resume and worker processes deal with integers only.

Usage: ``DataLoader(rows(len(samples)), collate_fn=Collator(samples, encoder), batch_size=4)``
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, Self

from qlmm.core.errors import DataError, Problem, RunError, Where
from qlmm.data.encoding.encoder import Encoder
from qlmm.data.encoding.shared_prefix import packed
from qlmm.data.media.images import BadImage
from qlmm.data.sample import Example, ImageRef, Origin, Preference, Sample

if TYPE_CHECKING:
    import torch

__all__ = ["Batch", "Collator", "PackedCollator", "PairCollator", "rows"]

# What a model and its loss are given: tensors by name, and few other things beside them.
Batch = dict[str, Any]


def rows(count: int) -> list[dict[str, int]]:
    """A data set of row numbers: ``[{"row": 0}, {"row": 1}, …]``."""
    return [{"row": row} for row in range(count)]


class Collator:
    """Turns row numbers into a training batch, and remembers where its rows came from.

    Attributes:
        last_origins: origins of the rows in the batch made last, for messages about it. Worker processes have their
            own copy, so the process that trains sees them only without workers.
    """

    def __init__(self, samples: Sequence[Example], encoder: Encoder) -> None:
        self._samples = samples
        self._encoder = encoder
        self.last_origins: tuple[Origin, ...] = ()
        self._fingerprint: str | None = None
        self._digests: dict[Path, str] = {}

    def __len__(self) -> int:
        """How many rows there are; an epoch may be made of fewer or more."""
        return len(self._samples)

    def name_pictures(self, fingerprint: str) -> None:
        """From now on a batch says under ``pictures`` how its pictures are called, in the order the model sees them.

        A name is made from the picture's encoded bytes and the fingerprint of the processor that prepares it.
        """
        self._fingerprint = fingerprint

    def named_like(self, other: Collator) -> Self:
        """This collator, naming pictures as another one does."""
        self._fingerprint = other._fingerprint
        return self

    def _names(self, samples: Sequence[Example]) -> list[str]:
        return [f"{self._fingerprint} {self._digest(image)} {image.at}" for one in samples for image in one.images]

    def _digest(self, image: ImageRef) -> str:
        """Hash of a picture's bytes; a file is read once a run."""
        if image.path is None:
            return hashlib.sha256(image.data or b"").hexdigest()
        if image.path not in self._digests:
            with image.path.open("rb") as file:
                self._digests[image.path] = hashlib.file_digest(file, "sha256").hexdigest()
        return self._digests[image.path]

    def __call__(self, features: Sequence[Mapping[str, int]]) -> Batch:
        """Encode the rows, and check that every picture has as many slots as it has tokens.

        Raises:
            RunError: D032 when a row's slots differ from its pictures' tokens, D036 when a picture cannot be decoded,
                D039 when the processor refuses the rows.
        """
        samples = [self._samples[feature["row"]] for feature in features]
        self.last_origins = tuple(sample.origin for sample in samples)
        try:
            batch = self._batch(samples)
        except BadImage as bad:
            raise self._unreadable(samples, bad) from bad
        except DataError as error:
            raise self._refused(samples, error) from error
        slots = (self._rows(batch) == self._encoder.slot_id).sum(dim=1).tolist()
        # A batch of pairs may have every row twice.
        shown = samples * (len(slots) // len(samples))
        for sample, found in zip(shown, slots, strict=True):
            self._check_slots(sample, found)
        return {**batch, "pictures": self._names(shown)} if self._fingerprint is not None else batch

    def _batch(self, samples: Sequence[Example]) -> Batch:
        return self._encoder.batch([sample for sample in samples if isinstance(sample, Sample)])

    @staticmethod
    def _rows(batch: Mapping[str, Any]) -> torch.Tensor:
        """The tokens that the model is given."""
        ids: torch.Tensor = batch["input_ids"]
        return ids

    def _check_slots(self, sample: Example, slots: int) -> None:
        tokens = self._encoder.slots(sample.images)
        if slots != tokens:
            where = Where(sample.origin.file, sample.origin.line)
            message = f"{slots} picture slots for {tokens} visual tokens ({len(sample.images)} pictures)"
            raise RunError.one("D032", message, where=where)

    @staticmethod
    def _refused(samples: Sequence[Example], error: DataError) -> RunError:
        """A processor's refusal names no row: all of the batch are named."""
        rows = ", ".join(str(sample.origin) for sample in samples)
        return RunError([replace(problem, message=f"{problem.message}; rows: {rows}") for problem in error.problems])

    def _unreadable(self, samples: Sequence[Example], bad: BadImage) -> RunError:
        origin = next((sample.origin for sample in samples if bad.ref in sample.images), samples[0].origin)
        message = f"picture {bad.ref.name}: {bad.reason}"
        help = "`qlmm data check` decodes every picture and lists all that are damaged"
        return RunError([Problem("D036", message, Where(origin.file, origin.line), help)])


class PairCollator(Collator):
    """Turns row numbers of preferences into a batch of pairs, as ``Encoder.pairs`` lays it out; with row numbers."""

    def __call__(self, features: Sequence[Mapping[str, int]]) -> Batch:
        """The batch, and under ``rows`` which pairs it is made of."""
        import torch

        return {**super().__call__(features), "rows": torch.tensor([feature["row"] for feature in features])}

    def _batch(self, samples: Sequence[Example]) -> Batch:
        return self._encoder.pairs(_preferences(samples))


class PackedCollator(PairCollator):
    """Turns row numbers of preferences into rows that hold both answers (`qlmm.data.encoding.shared_prefix`)."""

    def _batch(self, samples: Sequence[Example]) -> Batch:
        return {**packed(self._encoder, _preferences(samples))}

    @staticmethod
    def _rows(batch: Mapping[str, Any]) -> torch.Tensor:
        ids: torch.Tensor = batch["packed"]["input_ids"]
        return ids


def _preferences(samples: Sequence[Example]) -> list[Preference]:
    return [sample for sample in samples if isinstance(sample, Preference)]
