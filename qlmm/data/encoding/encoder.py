"""Samples -> tensors; the only place where that happens, for training, measuring and answering alike.

Placeholders are expanded by the processor, one id per visual token. Labels are the ids of answers, by position,
so that a tokenizer whose padding is its end token still teaches the model to stop.

Usage: ``batch = Encoder.make(processor, max_length=2048).batch(samples)``
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import replace
from itertools import islice
from typing import TYPE_CHECKING, Literal

from qlmm.core.errors import ModelError
from qlmm.data.contract import Processor
from qlmm.data.encoding.chat_template import Renderer
from qlmm.data.encoding.length_limit import Fitted, Lengths, fit
from qlmm.data.encoding.marked_processor import MarkedProcessor
from qlmm.data.encoding.marked_tokenizer import MarkedRow, marked
from qlmm.data.encoding.trial import Findings, PictureTokens, check_prompt, claimed, mask_of, tried, try_processor
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
    """

    def __init__(
        self,
        processor: MarkedProcessor,
        renderer: Renderer,
        findings: Findings,
        *,
        max_length: int,
        shortens: bool,
        decoder: bool,
    ) -> None:
        self.processor = processor.processor
        self.max_length = max_length
        self.slot_id = findings.slot_id
        self.takes_text_only = findings.takes_text_only
        self.takes_both = findings.takes_both
        self._marked = processor if findings.by_row else processor.with_one_list()
        self._renderer = renderer
        self._findings = findings
        self._shortens = shortens
        self._decoder = decoder
        self._holder = len(self.processor.tokenizer(renderer.placeholder, add_special_tokens=False)["input_ids"])
        self._sizes: dict[tuple[tuple[int, int], bool], PictureTokens] = {}

    @classmethod
    def make(
        cls,
        processor: Processor,
        *,
        max_length: int = 2048,
        overlong: Literal["drop", "shorten"] = "drop",
        decoder: bool = False,
    ) -> Encoder:
        """An encoder for a processor that was tried and can do what training needs.

        Args:
            processor: tokenizer, picture preparation and chat template of the base.
            max_length: most tokens in a row, visual ones included.
            overlong: what ``fit`` does with longer rows.
            decoder: whether answers go to a decoder of their own (T5) instead of following the question.

        Raises:
            ModelError: D030, D031 without a usable chat template; D034 without a padding token; D037 when
                the processor cannot be used for training; D045 when a prompt does not stand before its answer.
        """
        if processor.tokenizer.pad_token_id is None:
            raise ModelError.one("D034", "the tokenizer has no padding token", help="its end token can serve")
        renderer, own = Renderer(processor), MarkedProcessor(processor, whole=decoder)
        findings = try_processor(own, renderer)
        made = cls(own, renderer, findings, max_length=max_length, shortens=overlong == "shorten", decoder=decoder)
        if not decoder:
            check_prompt(made._marked, renderer)
        return made

    def batch(self, samples: Sequence[Sample]) -> dict[str, torch.Tensor]:
        """A right-padded training batch.

        Returns:
            ``input_ids``, ``attention_mask`` and ``labels`` of shape (rows, longest row), labels ``IGNORED`` wherever
            nothing is learned; ``pixel_values`` and others as the processor gives them, only if there is a picture.

        Raises:
            BadImage: when a picture cannot be decoded.
            DataError: D039 when the processor refuses the rows.
        """
        import torch

        if self._decoder:
            _, tensors = self.encode([_open(sample) for sample in samples], prompt=True)
            return {**tensors, "labels": self._decoder_labels(samples)}
        rows, tensors = self.encode(samples)
        learned = mask_of([row.learned for row in rows], tensors["input_ids"])
        return {**tensors, "labels": torch.where(learned, tensors["input_ids"], IGNORED)}

    def pairs(self, preferences: Sequence[Preference]) -> dict[str, torch.Tensor]:
        """A right-padded batch of pairs in TRL's layout: all rows with the chosen answer, then all with the rejected.

        Returns:
            ``input_ids``, ``attention_mask`` and ``completion_mask`` of shape (2 × pairs, longest row), the last 1 on
            the last answer and its end token alone; pictures of both halves and further tensors as in ``batch``.
            Source: ``DataCollatorForVisionPreference`` of TRL 1.16, but for its padding between prompt and answer.

        Raises:
            BadImage: when a picture cannot be decoded.
            DataError: D039 when the processor refuses the rows.
            ModelError: D044 for a base whose answers go to a decoder of their own.
        """
        sides = [self._sides(one) for one in preferences]
        return self.completions([row for half in zip(*sides, strict=True) for row in half])

    def completions(self, samples: Sequence[Sample]) -> dict[str, torch.Tensor]:
        """A right-padded batch of which the last answers alone are learned, as TRL's preference trainers take it.

        Returns:
            ``input_ids``, ``attention_mask`` and ``completion_mask`` of shape (rows, longest row), the last 1 on the
            last answer and its end token alone; pictures and further tensors as in ``batch``.

        Raises:
            BadImage: when a picture cannot be decoded.
            DataError: D039 when the processor refuses the rows.
        """
        rows, tensors = self.encode(samples)
        answers = mask_of([row.answer for row in rows], tensors["input_ids"])
        return {**tensors, "completion_mask": answers.long()}

    def _sides(self, example: Example) -> tuple[Sample, ...]:
        """The conversations to encode: the row itself, or those with the chosen and with the rejected answer."""
        if isinstance(example, Sample):
            return (example,)
        if self._decoder:
            message = "preferences are not supported for bases whose answers go to a decoder of their own"
            raise ModelError.one("D044", message, help="choose a base whose language model is a decoder only")
        if isinstance(example, Feedback):
            return (example.sample,)
        return example.side("chosen"), example.side("rejected")

    def _decoder_labels(self, samples: Sequence[Sample]) -> torch.Tensor:
        """The last answers alone, for a decoder."""
        import torch

        answers = [self._answer_ids(sample) for sample in samples]
        longest = max(len(ids) for ids in answers)
        return torch.tensor([[*ids, *[IGNORED] * (longest - len(ids))] for ids in answers])

    def _answer_ids(self, sample: Sample) -> list[int]:
        """What the decoder learns, begun as the tokenizer begins a text."""
        return self._marked.read([marked(self._renderer.answer(sample))])[0].ids

    def prompt(self, sample: Sample) -> dict[str, torch.Tensor]:
        """The model's input for answering a conversation that ends with a user turn, as a batch of one.

        The tokens are those that stand before the same answer in a training batch.
        """
        _, tensors = self.encode([sample], prompt=True)
        return tensors

    def measure(self, samples: Iterable[Example]) -> list[Lengths]:
        """Tokens per row as ``batch`` and ``pairs`` give them, from picture headers, without decoding a picture.

        Raises:
            BadImage: when a header cannot be read.
            ModelError: D044 for preferences, where ``pairs`` raises it.
        """
        lengths: list[Lengths] = []
        rest = iter(samples)
        while chunk := list(islice(rest, ROWS_AT_ONCE)):
            texts = [
                self._renderer.segments(_open(one), prompt=True) if self._decoder else self._renderer.segments(one)
                for example in chunk
                for one in self._sides(example)
            ]
            rows = iter(self._marked.read([marked(segments) for segments in texts]))
            lengths += [self._lengths(one, [next(rows) for _ in self._sides(one)]) for one in chunk]
        return lengths

    def _lengths(self, sample: Example, rows: Sequence[MarkedRow]) -> Lengths:
        """One row's lengths from the tokens of its sides, each picture still a single placeholder."""
        text = max(len(row.ids) for row in rows) - len(sample.images) * self._holder
        visual = self.visual_tokens(sample.images)
        if not isinstance(sample, Sample):
            return Lengths(text, visual, sum(sum(row.answer) for row in rows))
        if self._decoder:
            answer = len(self._answer_ids(sample))
            return Lengths(text + answer, visual, answer)
        return Lengths(text, visual, sum(rows[0].learned))

    def visual_tokens(self, images: Sequence[ImageRef]) -> int:
        """Tokens that pictures take, from their headers; separators that the processor writes are counted too."""
        return sum(self._picture(size(image), together=len(images) > 1).tokens for image in images)

    def tokens_for(self, width: int, height: int) -> int:
        """Tokens that a picture of that size in pixels takes, as ``visual_tokens`` counts them.

        Raises:
            DataError: D039 when the processor refuses such a picture.
        """
        return self._picture((width, height)).tokens

    def slots(self, images: Sequence[ImageRef]) -> int:
        """Tokens that the features of pictures go into, from their headers."""
        return sum(self._picture(size(image), together=len(images) > 1).slots for image in images)

    def fit(self, samples: Sequence[Row]) -> Fitted[Row]:
        """The rows that can be learned from within ``max_length``; pictures and the last answer are never cut.

        With ``overlong="shorten"`` the oldest exchanges after a leading system turn are left out until the row fits;
        pictures they showed move to the first turn that stays. A pair fits when both of its sides do.
        """
        return fit(samples, self.measure, max_length=self.max_length, shorten=self._shortens)

    def _picture(self, pixels: tuple[int, int], *, together: bool = False) -> PictureTokens:
        """What one picture of (width, height) takes, alone in a row or together with others."""
        place = (pixels, together and not self._findings.alike)
        if place not in self._sizes:
            said = claimed(self._marked, pixels) if self._findings.claims_hold and not place[1] else None
            self._sizes[place] = said or tried(self._marked, self._renderer, pixels, self.slot_id, together=place[1])
        return self._sizes[place]

    def read(self, samples: Sequence[Sample]) -> list[MarkedRow]:
        """Rows as tokenised, each picture a single placeholder."""
        return self._marked.read([marked(self._renderer.segments(one)) for one in samples])

    def encode(
        self, samples: Sequence[Sample], *, prompt: bool = False
    ) -> tuple[list[MarkedRow], dict[str, torch.Tensor]]:
        """Rows as tokenised, pictures expanded, and all the tensors that the processor makes of them.

        Raises:
            BadImage: when a picture cannot be decoded.
            DataError: D039 when the processor refuses the rows.
            ModelError: D037 when the processor changes tokens after they were read.
        """
        texts = [marked(self._renderer.segments(sample, prompt=prompt)) for sample in samples]
        pictures = [[decode(ref) for ref in sample.images] for sample in samples]
        return self._marked.run(texts, pictures)


def _open(sample: Sample) -> Sample:
    """The conversation up to its last question."""
    return replace(sample, turns=sample.turns[:-1])
