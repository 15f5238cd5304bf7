"""Row numbers -> batch: what the trainer's data loader calls.

The loader has row numbers, not rows, so that order, resume and worker processes deal with integers only.

Usage: ``DataLoader(rows(len(samples)), collate_fn=Collator(samples, encoder), batch_size=4)``
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from qlmm.core.errors import DataError, Problem, RunError, Where
from qlmm.data.encoding.encoder import Encoder
from qlmm.data.encoding.shared_prefix import packed
from qlmm.data.errors import Unreadable
from qlmm.data.media.images import BadImage
from qlmm.data.sample import Example, Feedback, ImageRef, Origin, Preference, Sample

if TYPE_CHECKING:
    import torch

__all__ = ["EXCHANGED", "Batch", "Collator", "FeedbackCollator", "PackedCollator", "PairCollator", "gone", "rows"]

# What a model and its loss are given: tensors by name, and few other things beside them.
Batch = dict[str, Any]
# What TRL's KTO trainer exchanges between a row and the same prompt before another answer.
EXCHANGED = ("input_ids", "attention_mask", "completion_mask", "token_type_ids", "mm_token_type_ids")


def rows(count: int) -> list[dict[str, int]]:
    """A data set of row numbers: ``[{"row": 0}, {"row": 1}, …]``."""
    return [{"row": row} for row in range(count)]


class Collator:
    """Turns row numbers into a training batch.

    With a ``processor_digest``, batches list under ``pictures`` a name made of it and the encoded bytes of each picture
    shown.
    """

    def __init__(self, samples: Sequence[Example], encoder: Encoder) -> None:
        self._samples = samples
        self._encoder = encoder
        self.processor_digest: str | None = None
        self._digests: dict[Path, str] = {}

    def __len__(self) -> int:
        """How many rows there are; an epoch may be made of fewer or more."""
        return len(self._samples)

    def origins(self, rows: Iterable[int]) -> list[Origin]:
        """Where rows came from."""
        return [self._samples[row].origin for row in rows]

    def _digest(self, image: ImageRef) -> str:
        """Hash of a picture's bytes; a file is read once a run."""
        if image.path is None:
            return hashlib.sha256(image.data or b"").hexdigest()
        if image.path not in self._digests:
            try:
                with image.path.open("rb") as file:
                    self._digests[image.path] = hashlib.file_digest(file, "sha256").hexdigest()
            except OSError as error:
                raise BadImage(image, error.strerror or str(error)) from None
        return self._digests[image.path]

    def __call__(self, features: Sequence[Mapping[str, int]]) -> Batch:
        """Encode the rows, and check that every picture has as many slots as it has tokens.

        Raises:
            Unreadable: for a picture that cannot be read.
            RunError: D032 for slots that are not the pictures' tokens, D039 for rows that the processor refuses.
        """
        samples = [self._samples[feature["row"]] for feature in features]
        try:
            return self._checked(samples)
        except BadImage as bad:
            raise Unreadable(gone(samples, bad)) from bad

    def _checked(self, samples: Sequence[Example]) -> Batch:
        try:
            batch = self._batch(samples)
        except BadImage:
            raise
        except DataError as error:
            # A processor's refusal names no row.
            named = ", ".join(str(sample.origin) for sample in samples)
            raise RunError([replace(one, message=f"{one.message}; rows: {named}") for one in error.problems]) from error
        slots = (self._rows(batch) == self._encoder.slot_id).sum(dim=1).tolist()
        # A batch of pairs may have every row twice.
        shown = [*samples] * (len(slots) // len(samples))
        for sample, found in zip(shown, slots, strict=True):
            tokens = self._encoder.slots(sample.images)
            if found != tokens:
                message = f"{found} picture slots for {tokens} visual tokens ({len(sample.images)} pictures)"
                raise RunError.one("D032", message, where=Where(sample.origin.file, sample.origin.line))
        if self.processor_digest is None:
            return batch
        images = [image for one in shown for image in one.images]
        return {**batch, "pictures": [f"{self.processor_digest} {self._digest(one)} {one.at}" for one in images]}

    def _batch(self, samples: Sequence[Example]) -> Batch:
        return self._encoder.batch([sample for sample in samples if isinstance(sample, Sample)])

    @staticmethod
    def _rows(batch: Mapping[str, Any]) -> torch.Tensor:
        """The tokens that the model is given."""
        ids: torch.Tensor = batch["input_ids"]
        return ids


class PairCollator(Collator):
    """Turns row numbers of preferences into a batch of pairs, as ``Encoder.pairs`` lays it out; with row numbers."""

    def __call__(self, features: Sequence[Mapping[str, int]]) -> Batch:
        """The batch, and under ``rows`` which pairs it is made of."""
        import torch

        return {**super().__call__(features), "rows": torch.tensor([feature["row"] for feature in features])}

    def _batch(self, samples: Sequence[Example]) -> Batch:
        return self._encoder.pairs(_preferences(samples))


class PackedCollator(PairCollator):
    """Turns row numbers of preferences into rows of both answers (`qlmm.data.encoding.shared_prefix`)."""

    def _batch(self, samples: Sequence[Example]) -> Batch:
        return {**packed(self._encoder, _preferences(samples))}

    @staticmethod
    def _rows(batch: Mapping[str, Any]) -> torch.Tensor:
        ids: torch.Tensor = batch["packed"]["input_ids"]
        return ids


class FeedbackCollator(Collator):
    """Turns row numbers of feedback into a batch in TRL's layout.

    ``input_ids``, ``attention_mask``, ``completion_mask`` and token types are (rows, longest row), ``label`` is (rows)
    and true for desirable answers. With ``kl``, the same names with ``KL_`` before them are the prompts before other
    rows' answers, cut at ``max_length``: KTO estimates from them how far the model moved from its reference. A row gets
    the answer of the row before it in the batch. Pictures are there once, since both see the same. What else differs,
    such as the cross-attention mask of Mllama, is in ``KL_also``, which TRL does not know.
    Source: ``DataCollatorForVisionUnpairedPreference`` of TRL 1.16.
    """

    def __init__(self, samples: Sequence[Example], encoder: Encoder, *, kl: bool) -> None:
        super().__init__(samples, encoder)
        self._kl = kl

    def _batch(self, samples: Sequence[Example]) -> Batch:
        import torch

        judged = [sample for sample in samples if isinstance(sample, Feedback)]
        own = self._encoder.completions(judged)
        return {**own, "label": torch.tensor([one.desirable for one in judged]), **self._compared(judged, own)}

    def _another(self, one: Feedback) -> Feedback:
        """Another row than the only one of a batch, whose own answer would be no comparison."""
        others = (row for row in self._samples if isinstance(row, Feedback) and row.completion != one.completion)
        return next(others, one)

    def _compared(self, judged: Sequence[Feedback], own: Batch) -> Batch:
        """The prompts before other answers, as far as that differs from the rows themselves."""
        import torch

        if not self._kl:
            return {}
        before = [judged[-1] if len(judged) > 1 else self._another(judged[0]), *judged[:-1]]
        exchanged = [one.answered(other.completion) for one, other in zip(judged, before, strict=True)]
        found = self._encoder.completions(exchanged)
        rows, width = found["input_ids"].shape
        for name, value in found.items():
            if value.shape[:2] == (rows, width):
                found[name] = value[:, : self._encoder.max_length]
        also = {name: found[name] for name in found.keys() - set(EXCHANGED) if not torch.equal(found[name], own[name])}
        return {**{f"KL_{name}": found[name] for name in EXCHANGED if name in found}, "KL_also": also}


def _preferences(samples: Sequence[Example]) -> list[Preference]:
    return [sample for sample in samples if isinstance(sample, Preference)]


def gone(samples: Sequence[Example], bad: BadImage) -> dict[int, Problem]:
    """The rows that show a picture which cannot be read, each by its place with its problem."""
    # A whole video may be at fault, not one of its frames.
    file = replace(bad.ref, at=None)
    shows = [any(replace(image, at=None) == file for image in one.images) for one in samples]
    return {
        place: Problem("D036", bad.message, Where(one.origin.file, one.origin.line))
        for place, one in enumerate(samples)
        if shows[place] or not any(shows)
    }
