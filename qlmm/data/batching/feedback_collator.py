"""Row numbers of judged answers -> batch, with each prompt also before another row's answer, as KTO needs it.

KTO estimates how far the model moved from its reference on answers that do not belong to their prompts: each row gets
the answer of the row before it in its batch.

Usage: ``DataLoader(rows(len(samples)), collate_fn=FeedbackCollator(samples, encoder, kl=True), batch_size=4)``
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from qlmm.data.batching.collators import Batch, Collator
from qlmm.data.encoding.encoder import Encoder
from qlmm.data.sample import Example, Feedback

if TYPE_CHECKING:
    pass

__all__ = ["EXCHANGED", "FeedbackCollator"]

# What TRL's trainer exchanges between a row and the same prompt before another answer.
EXCHANGED = ("input_ids", "attention_mask", "completion_mask", "token_type_ids", "mm_token_type_ids")


class FeedbackCollator(Collator):
    """Turns row numbers of feedback into a batch in TRL's layout.

    ``input_ids``, ``attention_mask``, ``completion_mask`` and token types are of shape (rows, longest row), ``label``
    is of shape (rows) and true for desirable answers. The same names with ``KL_`` before them hold the prompts before
    other rows' answers, cut at ``max_length``. Pictures are there once: both see the same. Whatever else differs, such
    as the cross-attention mask of Mllama, stands under its own name in ``KL_also``, which TRL does not know.
    Source: ``DataCollatorForVisionUnpairedPreference`` of TRL 1.16.
    """

    def __init__(self, samples: Sequence[Example], encoder: Encoder, *, kl: bool) -> None:
        """Take the rows.

        Args:
            samples: all rows.
            encoder: encodes them.
            kl: whether the loss needs the prompts before other answers.
        """
        super().__init__(samples, encoder)
        self._kl = kl

    def _batch(self, samples: Sequence[Example]) -> Batch:
        import torch

        judged = [sample for sample in samples if isinstance(sample, Feedback)]
        own = self._encoder.completions([one.sample for one in judged])
        return {**own, "label": torch.tensor([one.desirable for one in judged]), **self._compared(judged, own)}

    def _another(self, one: Feedback) -> Feedback:
        """Another row than the only one of a batch, whose own answer would be no comparison."""
        others = (row for row in self._samples if isinstance(row, Feedback) and row.completion != one.completion)
        return next(others, one)

    def _compared(self, judged: Sequence[Feedback], own: Batch) -> Batch:
        """The prompts before the answers of the rows before them, as far as that differs from the rows themselves."""
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
