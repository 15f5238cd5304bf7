"""Samples -> tensors; the only place where that happens, for training, measuring and answering alike.

The processor expands placeholders, one id per visual token. Labels are the ids of answers, by position, so that a
tokenizer whose padding is its end token still teaches the model to stop.

Usage: ``batch = Encoder.make(processor, max_length=2048).batch(samples)``
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import replace
from itertools import islice
from typing import TYPE_CHECKING, Literal

from qlmm.core.errors import ModelError, Where
from qlmm.data.contract import Processor
from qlmm.data.encoding.chat_template import Renderer
from qlmm.data.encoding.length_limit import Fitted, Lengths, fit
from qlmm.data.encoding.marked_processor import MarkedProcessor
from qlmm.data.encoding.marked_tokenizer import MarkedRow, marked, padded
from qlmm.data.encoding.trial import Trial
from qlmm.data.media.images import decode, size
from qlmm.data.sample import Example, Feedback, ImageRef, Preference, Row, Sample

if TYPE_CHECKING:
    import torch

__all__ = ["IGNORED", "Encoder"]

IGNORED = -100
ROWS_AT_ONCE = 256


class Encoder:
    """Encodes samples the way one processor's model wants them; made by `Encoder.make`.

    Attributes:
        processor: the base's.
        max_length: most tokens in a row, visual ones included.
        slot_id: the token that features of pictures go into.
        takes_text_only: whether rows may lack a picture, as far as the processor goes.
        takes_both: whether rows with and without a picture may stand in one batch.
        thinks: whether questions invite a thought before the answer.
    """

    def __init__(self, trial: Trial, *, max_length: int, shortens: bool, decoder: bool) -> None:
        self.processor = trial.processor.processor
        self.max_length = max_length
        self.slot_id = trial.slot_id
        self.takes_text_only = trial.takes_text_only
        self.takes_both = trial.takes_both
        self._marked = trial.processor
        self._renderer = trial.renderer
        self._trial = trial
        self._shortens = shortens
        self._decoder = decoder
        self.thinks = trial.renderer.thinks

    @classmethod
    def make(
        cls,
        processor: Processor,
        *,
        max_length: int = 2048,
        overlong: Literal["drop", "shorten"] = "drop",
        decoder: bool = False,
        thinking: bool = False,
    ) -> Encoder:
        """An encoder for a processor that was tried and can do what training needs.

        Args:
            processor: of the base, with its tokenizer and chat template.
            max_length: most tokens in a row, visual ones included.
            overlong: what ``fit`` does with longer rows.
            decoder: whether answers go to a decoder of their own (T5) instead of following the question.
            thinking: whether questions invite a thought, for templates that know both ways.

        Raises:
            ModelError: D030, D031 without a usable chat template; D034 without a padding token; D037 when the processor
                cannot be used for training; D045 when a prompt does not stand before its answer.
        """
        if processor.tokenizer.pad_token_id is None:
            raise ModelError.one("D034", "the tokenizer has no padding token", help="its end token can serve")
        trial = Trial(MarkedProcessor(processor, whole=decoder), Renderer(processor, thinks=thinking))
        if not decoder:
            trial.check_prompt()
        return cls(trial, max_length=max_length, shortens=overlong == "shorten", decoder=decoder)

    def thinking(self) -> Encoder:
        """The same encoder, with questions that invite a thought."""
        overlong: Literal["drop", "shorten"] = "shorten" if self._shortens else "drop"
        return Encoder.make(
            self.processor, max_length=self.max_length, overlong=overlong, decoder=self._decoder, thinking=True
        )

    def check_asked(self, samples: Sequence[Sample]) -> None:
        """ModelError D045 unless the tokens before a row's last answer are those that its question is asked with."""
        for sample in samples if self._renderer.may_think and not self._decoder else ():
            (row,) = self.read([sample])
            (asked,) = self._marked.read([marked(self._renderer.segments(_open(sample), prompt=True))])
            if row.ids[: row.answer.index(True)] != asked.ids:
                where = Where(sample.origin.file, sample.origin.line)
                message = "this row's answer stands behind another prompt than its question is asked with"
                help = "leave data.thinking unset where answers have thoughts, or name another base.chat_template"
                raise ModelError.one("D045", message, where=where, help=help)

    def batch(self, samples: Sequence[Sample]) -> dict[str, torch.Tensor]:
        """A right-padded training batch.

        Returns:
            ``input_ids``, ``attention_mask`` and ``labels`` (rows, longest row), labels ``IGNORED`` where nothing is
            learned; ``pixel_values`` and others as the processor gives them, only if there is a picture.
        """
        import torch

        if self._decoder:
            _, tensors = self.encode([_open(sample) for sample in samples], prompt=True)
            return {**tensors, "labels": torch.tensor(padded([self._answer_ids(one) for one in samples], IGNORED))}
        rows, tensors = self.encode(samples)
        learned = torch.tensor(padded([row.learned for row in rows], False))
        return {**tensors, "labels": torch.where(learned, tensors["input_ids"], IGNORED)}

    def pairs(self, preferences: Sequence[Preference]) -> dict[str, torch.Tensor]:
        """``completions`` of all rows with the chosen answer, then of all with the rejected, as TRL lays pairs out.

        Source: ``DataCollatorForVisionPreference`` of TRL 1.16, but for its padding between prompt and answer.
        """
        sides = [self._sides(one) for one in preferences]
        return self.completions([row for half in zip(*sides, strict=True) for row in half])

    def completions(self, rows: Sequence[Sample | Feedback]) -> dict[str, torch.Tensor]:
        """A right-padded batch of which the last answers alone are learned, as TRL's preference trainers take it.

        ``completion_mask`` (rows, longest row) is 1 on the last answer and its end token; the rest is as in ``batch``.

        Raises:
            ModelError: D044 for a base whose answers go to a decoder of their own.
        """
        import torch

        marks, tensors = self.encode([side for one in rows for side in self._sides(one)])
        return {**tensors, "completion_mask": torch.tensor(padded([row.answer for row in marks], False)).long()}

    def _sides(self, example: Example) -> tuple[Sample, ...]:
        """The conversations to encode: one, or those with the chosen and with the rejected answer."""
        if isinstance(example, Sample):
            return (example,)
        if self._decoder:
            message = "preferences are not supported for bases whose answers go to a decoder of their own"
            raise ModelError.one("D044", message, help="choose a base whose language model is a decoder only")
        if isinstance(example, Feedback):
            return (example.sample,)
        return example.side("chosen"), example.side("rejected")

    def _answer_ids(self, sample: Sample) -> list[int]:
        """The tokens of the last answer alone, begun as the tokenizer begins a text."""
        return self._marked.read([marked(self._renderer.answer(sample))])[0].ids

    def prompt(self, sample: Sample) -> dict[str, torch.Tensor]:
        """A conversation that ends with a user turn, as a batch of one: what stands before the answer in training."""
        return self.encode([sample], prompt=True)[1]

    def measure(self, samples: Iterable[Example]) -> list[Lengths]:
        """Tokens per row as ``batch`` and ``pairs`` give them, from picture headers, without decoding a picture."""
        lengths: list[Lengths] = []
        rest = iter(samples)
        while chunk := list(islice(rest, ROWS_AT_ONCE)):
            sides = [self._sides(example) for example in chunk]
            rows = iter(self.read([row for side in sides for row in side]))
            lengths += [
                self._lengths(one, list(islice(rows, len(side)))) for one, side in zip(chunk, sides, strict=True)
            ]
        return lengths

    def _lengths(self, sample: Example, rows: Sequence[MarkedRow]) -> Lengths:
        """One row's lengths from the tokens of its sides, each picture still a single placeholder."""
        text = max(len(row.ids) for row in rows) - len(sample.images) * len(self._trial.placeholder)
        visual = self.visual_tokens(sample.images)
        if not isinstance(sample, Sample):
            return Lengths(text, visual, sum(sum(row.answer) for row in rows))
        if self._decoder:
            answer = len(self._answer_ids(sample))
            return Lengths(text + answer, visual, answer if sample.turns[-1].learned else 0)
        return Lengths(text, visual, sum(rows[0].learned))

    def visual_tokens(self, images: Sequence[ImageRef]) -> int:
        """Tokens that pictures take, from their headers; separators that the processor writes are counted too."""
        return sum(self._trial.picture(size(image), together=len(images) > 1).tokens for image in images)

    def tokens_for(self, width: int, height: int) -> int:
        """Tokens that a picture of that size in pixels takes; DataError D039 when the processor refuses it."""
        return self._trial.picture((width, height)).tokens

    def slots(self, images: Sequence[ImageRef]) -> int:
        """Tokens that the features of pictures go into, from their headers."""
        return sum(self._trial.picture(size(image), together=len(images) > 1).slots for image in images)

    def fit(self, samples: Sequence[Row]) -> Fitted[Row]:
        """The rows that can be learned from within ``max_length``; pictures and the last answer are never cut.

        With ``overlong="shorten"`` the oldest exchanges after a leading system turn are left out until the row fits.
        Their pictures move to the first turn that stays. A pair fits when both of its sides do.
        """
        return fit(samples, self.measure, max_length=self.max_length, shorten=self._shortens)

    def read(self, samples: Sequence[Sample]) -> list[MarkedRow]:
        """Rows as tokenised, each picture a single placeholder; up to the answer, where a decoder of its own has it."""
        texts = (
            self._renderer.segments(_open(one), prompt=True) if self._decoder else self._renderer.segments(one)
            for one in samples
        )
        return self._marked.read([marked(segments) for segments in texts])

    def encode(
        self, samples: Sequence[Sample], *, prompt: bool = False
    ) -> tuple[list[MarkedRow], dict[str, torch.Tensor]]:
        """Rows as tokenised, pictures expanded, and the tensors that the processor makes of them, place by place.

        Raises:
            BadImage: when a picture cannot be decoded.
            DataError: D039 when the processor refuses the rows.
        """
        texts = [marked(self._renderer.segments(sample, prompt=prompt)) for sample in samples]
        pictures = [[decode(ref) for ref in sample.images] for sample in samples]
        return self._marked.run(texts, pictures)


def _open(sample: Sample) -> Sample:
    """The conversation up to its last question."""
    return replace(sample, turns=sample.turns[:-1])
