"""Samples -> tensors; the only place where that happens, for training, measuring and answering alike.

Placeholders are expanded by the processor, one id per visual token. Labels are the ids of answers, by position,
so that a tokenizer whose padding is its end token still teaches the model to stop.

Usage: ``batch = Encoder(processor, max_length=2048).batch(samples)``
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from itertools import islice
from typing import TYPE_CHECKING, Literal

from PIL import Image

from qlmm.compat.transformers_private import picture_tokens
from qlmm.core.errors import DataError, ModelError
from qlmm.data.contract import Processor
from qlmm.data.encoding.chat_template import Renderer
from qlmm.data.encoding.length_limit import Dropped, Fitted, Lengths, fit
from qlmm.data.encoding.marked_tokenizer import MarkedRow, marked, reading_marks
from qlmm.data.media.images import decode, size
from qlmm.data.sample import Example, Feedback, ImageRef, Preference, Row, Sample

if TYPE_CHECKING:
    import torch

__all__ = ["IGNORED", "Dropped", "Encoder", "Fitted", "Lengths"]

IGNORED = -100
ROWS_AT_ONCE = 256
HELP = "name a chat template that this base was trained with: base.chat_template"
# What processors have been seen to raise for rows they cannot take.
FAILURES = (ValueError, AttributeError, LookupError, TypeError, RuntimeError, NotImplementedError)
# Two picture sizes that a processor is tried on: its own word for how many tokens they take must hold for both.
TRIED = ((97, 61), (224, 224))


@dataclass(frozen=True, slots=True)
class _Picture:
    """What a picture takes in a row: all its tokens, and those of them that its features go into."""

    tokens: int
    slots: int


UNKNOWN = _Picture(-1, -1)


class Encoder:
    """Encodes samples the way one processor's model wants them.

    Attributes:
        slot_id: the token that features of pictures go into.
        takes_text_only: whether rows may lack a picture, as far as the processor goes.
        takes_both: whether rows with and without a picture may stand in one batch.
    """

    def __init__(
        self,
        processor: Processor,
        *,
        max_length: int = 2048,
        overlong: Literal["drop", "shorten"] = "drop",
        decoder: bool = False,
    ) -> None:
        """Check that the processor can do what training needs.

        Args:
            processor: tokenizer, picture preparation and chat template of the base.
            max_length: most tokens in a row, visual ones included.
            overlong: what ``fit`` does with longer rows.
            decoder: whether answers go to a decoder of their own (T5) instead of following the question.

        Raises:
            ModelError: D030, D031 without a usable chat template; D034 without a padding token; D037 when
                the processor cannot be used for training.
        """
        self.processor = processor
        self.max_length = max_length
        self._decoder = decoder
        self._shortens = overlong == "shorten"
        if processor.tokenizer.pad_token_id is None:
            raise ModelError.one("D034", "the tokenizer has no padding token", help="its end token can serve")
        self._renderer = Renderer(processor)
        self._own, self._tokenizer = reading_marks(processor, whole=decoder)
        self._holder = len(processor.tokenizer(self._renderer.placeholder, add_special_tokens=False)["input_ids"])
        self._shown: dict[tuple[tuple[int, int], bool], _Picture] = {}
        # Positions of M-RoPE need token types, which not every processor of such a model gives unasked.
        typed = "mm_token_type_ids" in processor.model_input_names
        self._asked = {"add_special_tokens": False, **({"return_mm_token_type_ids": True} if typed else {})}
        # Most processors take a list of pictures per row; GOT-OCR reads such lists as pages of one document.
        self._by_row = True
        self.slot_id = self._slot_id()
        self._counts = all(self._claimed(pixels) == self._tried(pixels) for pixels in TRIED)
        # LLaVA-OneVision cuts a picture into tiles only where it stands alone in a row.
        self._alike = self._tried(TRIED[0]) == self._tried(TRIED[0], together=True)
        self.takes_text_only = self._takes([0])
        self.takes_both = self.takes_text_only and self._takes([1, 0])
        if not decoder:
            self._check_prompt()

    def _takes(self, pictures: Sequence[int]) -> bool:
        """Whether the processor takes a batch of rows with so many pictures each."""
        texts = [marked(self._renderer.probe(pictures=count)) for count in pictures]
        try:
            self._run(texts, [[_blank(TRIED[0])] * count for count in pictures])
        except DataError:
            return False
        return True

    def _check_prompt(self) -> None:
        """What a model is asked must stand before the answer it has learned.

        Raises:
            ModelError: D045 when template or processor end a prompt with something else.
        """
        rows, tensors = self._run([marked(self._renderer.probe(pictures=1))], [[_blank(TRIED[0])]])
        _, asked = self._run([marked(self._renderer.probe(pictures=1, prompt=True))], [[_blank(TRIED[0])]])
        learned = _at_tokens([row.learned for row in rows], tensors["input_ids"])[0].nonzero()
        before = tensors["input_ids"][0, : int(learned[0])] if len(learned) else tensors["input_ids"][0]
        if before.tolist() != asked["input_ids"][0].tolist():
            raise ModelError.one(
                "D045", "a prompt is not what stands before an answer: the model would be asked otherwise", help=HELP
            )

    def batch(self, samples: Sequence[Sample]) -> dict[str, torch.Tensor]:
        """A right-padded training batch.

        Returns:
            ``input_ids``, ``attention_mask`` and ``labels`` of shape (rows, longest row), labels ``IGNORED`` wherever
            nothing is learned; ``pixel_values`` and kindred as the processor gives them, only if there is a picture.

        Raises:
            BadImage: when a picture cannot be decoded.
            DataError: D039 when the processor refuses the rows.
        """
        import torch

        if self._decoder:
            _, tensors = self.encode([_open(sample) for sample in samples], prompt=True)
            return {**tensors, "labels": self._decoder_labels(samples)}
        rows, tensors = self.encode(samples)
        learned = _at_tokens([row.learned for row in rows], tensors["input_ids"])
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
        answers = _at_tokens([row.answer for row in rows], tensors["input_ids"])
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
        row: MarkedRow = self._tokenizer.read([marked(self._renderer.answer(sample))])[0]
        return row.ids

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
            rows = iter(self._tokenizer.read([marked(segments) for segments in texts]))
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

    def _picture(self, pixels: tuple[int, int], *, together: bool = False) -> _Picture:
        """What one picture of (width, height) takes, alone in a row or together with others."""
        place = (pixels, together and not self._alike)
        if place not in self._shown:
            claimed = self._claimed(pixels) if self._counts and not place[1] else UNKNOWN
            self._shown[place] = claimed if claimed != UNKNOWN else self._tried(pixels, together=place[1])
        return self._shown[place]

    def _claimed(self, pixels: tuple[int, int]) -> _Picture:
        """What the processor says, without a picture; believed only where trying it gave the same."""
        width, height = pixels
        try:
            count = picture_tokens(self.processor, width, height)
        except FAILURES:  # not every processor can answer
            return UNKNOWN
        return _Picture(count, count)

    def _tried(self, pixels: tuple[int, int], *, together: bool = False) -> _Picture:
        """What a blank picture of that size takes, alone or beside another of its kind."""
        count = 2 if together else 1
        try:
            ids, text = self._try(pixels, count)
        except DataError:
            if not together:
                raise
            return self._tried(pixels)  # a processor that takes one picture a row
        return _Picture((len(ids) - len(text)) // count, ids.count(self.slot_id) // count)

    def _slot_id(self) -> int:
        """The token that pictures consist of: the one that a picture adds most of.

        Raises:
            ModelError: D031 when a picture adds nothing, or the processor does not find its place.
        """
        try:
            ids, text = self._try(TRIED[-1])
        except DataError as error:
            if self._by_row:
                self._by_row = False
                return self._slot_id()
            reason = error.problems[0].message
            raise ModelError.one("D031", f"the chat template does not show a picture: {reason}", help=HELP) from error
        added = Counter(ids) - Counter(text)
        if not added:
            raise ModelError.one("D031", "the chat template does not show a picture: one adds no token", help=HELP)
        slot = int(added.most_common(1)[0][0])
        answer = self._tokenizer.read([marked(self._renderer.probe(pictures=1))])[0]
        after = len(ids) - 1 - ids[::-1].index(slot)
        if self._renderer.placeholder == "" and after > len(ids) - sum(answer.learned):
            kind = type(self.processor).__name__
            raise ModelError.one("D031", f"{kind} puts pictures after the text: answers would not see them", help=HELP)
        return slot

    def _try(self, pixels: tuple[int, int], count: int = 1) -> tuple[list[int], list[int]]:
        """Tokens of a question with blank pictures, and of the same row without the placeholders'."""
        text = marked(self._renderer.probe(pictures=count))
        _, tensors = self._run([text], [[_blank(pixels)] * count])
        placeholder = self.processor.tokenizer(self._renderer.placeholder, add_special_tokens=False)["input_ids"]
        plain = Counter(self._tokenizer.read([text])[0].ids) - Counter(placeholder * count)
        real = tensors["input_ids"][0][tensors["attention_mask"][0].bool()].tolist()
        return real, list(plain.elements())

    def read(self, samples: Sequence[Sample]) -> list[MarkedRow]:
        """Rows as tokenised, each picture a single placeholder."""
        rows: list[MarkedRow] = self._tokenizer.read([marked(self._renderer.segments(one)) for one in samples])
        return rows

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
        return self._run(texts, pictures)

    def _run(
        self, texts: list[str], pictures: list[list[Image.Image]]
    ) -> tuple[list[MarkedRow], dict[str, torch.Tensor]]:
        """Rows as tokenised, and everything the processor makes of them and their pictures.

        Raises:
            ModelError: D037 when the processor changes tokens after they were read.
            DataError: D039 with the processor's own words when it refuses the rows.
        """
        images = pictures if self._by_row else [picture for row in pictures for picture in row]
        shown = {"images": images} if any(pictures) else {}
        try:
            output = dict(self._own(text=texts, **shown, **self._asked, padding=True, return_tensors="pt"))
        except FAILURES as error:
            raise DataError.one("D039", f"{type(self.processor).__name__} refuses rows: {error}", help=HELP) from error
        rows = self._tokenizer.taken()
        output.pop("labels", None)
        if "input_ids" not in output:
            raise ModelError.one("D037", f"{type(self.processor).__name__} gives no tokens: it takes no conversations")
        self._check_unchanged(rows, output["input_ids"])
        return rows, output

    def _check_unchanged(self, rows: Sequence[MarkedRow], ids: torch.Tensor) -> None:
        """Some processors put picture tokens before all rows; anything else would move the labels."""
        before = ids.shape[1] - max((len(row.ids) for row in rows), default=0)
        if not rows or any(ids[n, before : before + len(row.ids)].tolist() != row.ids for n, row in enumerate(rows)):
            message = (
                f"{type(self.processor).__name__} changes tokens after they were read: what is learned is not known"
            )
            raise ModelError.one("D037", message, help="choose another base")


def _blank(pixels: tuple[int, int]) -> Image.Image:
    return Image.new("RGB", pixels, (127, 127, 127))


def _open(sample: Sample) -> Sample:
    """The conversation up to its last question."""
    return replace(sample, turns=sample.turns[:-1])


def _at_tokens(marks: Sequence[Sequence[bool]], ids: torch.Tensor) -> torch.Tensor:
    """Per token of a batch whether its row marks it; some processors put picture tokens before all rows."""
    import torch

    before = ids.shape[1] - max(len(row) for row in marks)
    at = torch.zeros_like(ids, dtype=torch.bool)
    for number, row in enumerate(marks):
        at[number, before : before + len(row)] = torch.tensor(row, dtype=torch.bool)
    return at
