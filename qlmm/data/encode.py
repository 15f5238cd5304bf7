"""Samples -> tensors; the only place where that happens, for training, measuring and answering alike.

Placeholders are expanded by the processor, one id per visual token. Labels are the ids of answers, by position,
so that a tokenizer whose padding is its end token still teaches the model to stop.

Usage: ``batch = Encoder(processor, max_length=2048).batch(samples)``
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from itertools import islice
from typing import TYPE_CHECKING, Literal

from PIL import Image

from qlmm.core.errors import DataError, ModelError
from qlmm.data.contract import Processor
from qlmm.data.images import decode, size
from qlmm.data.pieces import MarkedRow, marked, reading_marks
from qlmm.data.rendering import Renderer
from qlmm.data.sample import ImageRef, Origin, Sample

if TYPE_CHECKING:
    import torch

__all__ = ["IGNORED", "Dropped", "Encoder", "Fitted", "Lengths"]

IGNORED = -100
ROWS_AT_ONCE = 256
HELP = "name a chat template that this base was trained with: base.chat_template"
# Two picture sizes that a processor is tried on: its own word for how many tokens they take must hold for both.
TRIED = ((97, 61), (224, 224))


@dataclass(frozen=True, slots=True)
class Lengths:
    """Tokens of one row.

    Attributes:
        text: everything that is not a visual token.
        visual: placeholders of its pictures.
        supervised: tokens that carry loss; part of ``text``.
    """

    text: int
    visual: int
    supervised: int

    @property
    def total(self) -> int:
        """Tokens the model sees."""
        return self.text + self.visual


@dataclass(frozen=True, slots=True)
class Dropped:
    """A row that does not fit, and why."""

    origin: Origin
    reason: str


@dataclass(frozen=True, slots=True)
class Fitted:
    """Rows that fit, shortened where the recipe allows it.

    Attributes:
        samples: rows to train on.
        kept: per sample, its place among the rows given.
        lengths: per sample, its tokens.
        dropped: the others, with reasons.
        shortened: how many samples lost old turns.
    """

    samples: tuple[Sample, ...]
    kept: tuple[int, ...]
    lengths: tuple[Lengths, ...]
    dropped: tuple[Dropped, ...]
    shortened: int


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
        self._own, self._tokenizer = reading_marks(processor)
        self._holder = len(processor.tokenizer(self._renderer.placeholder, add_special_tokens=False)["input_ids"])
        self._shown: dict[tuple[int, int], _Picture] = {}
        # Positions of M-RoPE need token types, which not every processor of such a model gives unasked.
        typed = "mm_token_type_ids" in processor.model_input_names
        self._asked = {"add_special_tokens": False, **({"return_mm_token_type_ids": True} if typed else {})}
        # Most processors take a list of pictures per row; GOT-OCR reads such lists as pages of one document.
        self._by_row = True
        self.slot_id = self._slot_id()
        self._counts = all(self._claimed(pixels) == self._tried(pixels) for pixels in TRIED)
        self.takes_text_only = self._takes_text_only()

    def _takes_text_only(self) -> bool:
        try:
            self._run([marked(self._renderer.probe(picture=False))], [[]])
        except DataError:
            return False
        return True

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
            _, tensors = self._encode([_open(sample) for sample in samples], prompt=True)
            return {**tensors, "labels": self._decoder_labels(samples)}
        rows, tensors = self._encode(samples)
        before = tensors["input_ids"].shape[1] - max(len(row.ids) for row in rows)
        labels = torch.full_like(tensors["input_ids"], IGNORED)
        for number, row in enumerate(rows):
            own = tensors["input_ids"][number, before : before + len(row.ids)]
            labels[number, before : before + len(row.ids)] = torch.where(torch.tensor(row.learned), own, IGNORED)
        return {**tensors, "labels": labels}

    def _decoder_labels(self, samples: Sequence[Sample]) -> torch.Tensor:
        """The last answers alone, for a decoder."""
        import torch

        answers = [self._answer_ids(sample) for sample in samples]
        longest = max(len(ids) for ids in answers)
        return torch.tensor([[*ids, *[IGNORED] * (longest - len(ids))] for ids in answers])

    def _answer_ids(self, sample: Sample) -> list[int]:
        (row,) = self._tokenizer.read([marked(self._renderer.answer(sample))])
        return [token for token, learned in zip(row.ids, row.learned, strict=True) if learned]

    def prompt(self, sample: Sample) -> dict[str, torch.Tensor]:
        """The model's input for answering a conversation that ends with a user turn, as a batch of one.

        The tokens are those that stand before the same answer in a training batch.
        """
        _, tensors = self._encode([sample], prompt=True)
        return tensors

    def measure(self, samples: Iterable[Sample]) -> list[Lengths]:
        """Tokens per row as ``batch`` gives them, from picture headers, without decoding a picture.

        Raises:
            BadImage: when a header cannot be read.
        """
        lengths: list[Lengths] = []
        rest = iter(samples)
        while chunk := list(islice(rest, ROWS_AT_ONCE)):
            texts = [
                self._renderer.segments(_open(one), prompt=True) if self._decoder else self._renderer.segments(one)
                for one in chunk
            ]
            rows = self._tokenizer.read([marked(segments) for segments in texts])
            lengths += [self._lengths(sample, row) for sample, row in zip(chunk, rows, strict=True)]
        return lengths

    def _lengths(self, sample: Sample, row: MarkedRow) -> Lengths:
        """One row's lengths from its tokens, each picture still a single placeholder."""
        text, visual = len(row.ids) - len(sample.images) * self._holder, self.visual_tokens(sample.images)
        if self._decoder:
            answer = len(self._answer_ids(sample))
            return Lengths(text + answer, visual, answer)
        return Lengths(text, visual, sum(row.learned))

    def visual_tokens(self, images: Sequence[ImageRef]) -> int:
        """Tokens that pictures take, from their headers; separators that the processor writes are counted too."""
        return sum(self._picture(size(image)).tokens for image in images)

    def tokens_for(self, width: int, height: int) -> int:
        """Tokens that a picture of that size in pixels takes, as ``visual_tokens`` counts them.

        Raises:
            DataError: D039 when the processor refuses such a picture.
        """
        return self._picture((width, height)).tokens

    def slots(self, images: Sequence[ImageRef]) -> int:
        """Tokens that the features of pictures go into, from their headers."""
        return sum(self._picture(size(image)).slots for image in images)

    def fit(self, samples: Sequence[Sample]) -> Fitted:
        """The rows that can be learned from within ``max_length``; pictures and the last answer are never cut.

        With ``overlong="shorten"`` the oldest exchanges after a leading system turn are left out until the row fits;
        pictures they showed move to the first turn that stays.
        """
        fitted: list[tuple[int, Sample, Lengths]] = []
        dropped: list[Dropped] = []
        for place, (sample, lengths) in enumerate(zip(samples, self.measure(samples), strict=True)):
            for candidate, tokens in self._candidates(sample, lengths):
                if tokens.total <= self.max_length and tokens.supervised:
                    fitted.append((place, candidate, tokens))
                    break
            else:
                dropped.append(Dropped(sample.origin, self._why_not(lengths)))
        return Fitted(
            samples=tuple(sample for _, sample, _ in fitted),
            kept=tuple(place for place, _, _ in fitted),
            lengths=tuple(lengths for _, _, lengths in fitted),
            dropped=tuple(dropped),
            shortened=sum(samples[place] is not sample for place, sample, _ in fitted),
        )

    def _candidates(self, sample: Sample, lengths: Lengths) -> Iterator[tuple[Sample, Lengths]]:
        """The row, and, where allowed, ever shorter forms of it."""
        yield sample, lengths
        while self._shortens and (shorter := _without_oldest(sample)) is not None:
            sample = shorter
            yield sample, self.measure([sample])[0]

    def _why_not(self, lengths: Lengths) -> str:
        if not lengths.supervised:
            return "nothing to learn: no token of an answer is left"
        return f"{lengths.visual:,} visual + {lengths.text:,} text tokens > {self.max_length:,}"

    def _picture(self, pixels: tuple[int, int]) -> _Picture:
        """What one picture of (width, height) takes."""
        if pixels not in self._shown:
            claimed = self._claimed(pixels) if self._counts else UNKNOWN
            self._shown[pixels] = claimed if claimed != UNKNOWN else self._tried(pixels)
        return self._shown[pixels]

    def _claimed(self, pixels: tuple[int, int]) -> _Picture:
        """What the processor says, without a picture; believed only where trying it gave the same."""
        width, height = pixels
        try:
            counts = self.processor._get_num_multimodal_tokens(image_sizes=[(height, width)]).num_image_tokens or [0]
        except (AttributeError, TypeError, ValueError, KeyError):  # not every processor can answer
            return UNKNOWN
        return _Picture(int(counts[0]), int(counts[0]))

    def _tried(self, pixels: tuple[int, int]) -> _Picture:
        """What a blank picture of that size takes."""
        ids, text = self._try(pixels)
        return _Picture(len(ids) - len(text), ids.count(self.slot_id))

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
        answer = self._tokenizer.read([marked(self._renderer.probe(picture=True))])[0]
        after = len(ids) - 1 - ids[::-1].index(slot)
        if self._renderer.placeholder == "" and after > len(ids) - sum(answer.learned):
            kind = type(self.processor).__name__
            raise ModelError.one("D031", f"{kind} puts pictures after the text: answers would not see them", help=HELP)
        return slot

    def _try(self, pixels: tuple[int, int]) -> tuple[list[int], list[int]]:
        """Tokens of a question with a blank picture, and of the same row without the placeholder's."""
        text = marked(self._renderer.probe(picture=True))
        _, tensors = self._run([text], [[_blank(pixels)]])
        placeholder = self.processor.tokenizer(self._renderer.placeholder, add_special_tokens=False)["input_ids"]
        plain = Counter(self._tokenizer.read([text])[0].ids) - Counter(placeholder)
        real = tensors["input_ids"][0][tensors["attention_mask"][0].bool()].tolist()
        return real, list(plain.elements())

    def _encode(
        self, samples: Sequence[Sample], *, prompt: bool = False
    ) -> tuple[list[MarkedRow], dict[str, torch.Tensor]]:
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
        except (ValueError, AttributeError, KeyError, TypeError) as error:  # a processor may fail in any of these
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


def _without_oldest(sample: Sample) -> Sample | None:
    """The sample without its first question and answer, their pictures moved to the next question; None if only one."""
    head = 1 if sample.turns[0].role == "system" else 0
    turns = sample.turns[head:]
    if len(turns) <= 2:
        return None
    pictures = [part for turn in turns[:2] for part in turn.parts if isinstance(part, ImageRef)]
    first = replace(turns[2], parts=(*pictures, *turns[2].parts))
    return replace(sample, turns=(*sample.turns[:head], first, *turns[3:]))
