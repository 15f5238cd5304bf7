"""Samples -> tensors; the only place where that happens, for training, measuring and answering alike.

Placeholders are expanded by the processor, one id per visual token. Labels are the ids of answers, by position,
so that a tokenizer whose padding is its end token still teaches the model to stop.

Usage: ``batch = Encoder(processor, max_length=2048).batch(samples)``
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from itertools import islice
from typing import TYPE_CHECKING, Any, Literal

from qlmm.core.errors import ModelError
from qlmm.data.contract import Processor
from qlmm.data.images import MAX_PIXELS, decode, size
from qlmm.data.rendering import Renderer, Segment
from qlmm.data.sample import ImageRef, Origin, Sample, Turn

if TYPE_CHECKING:
    import torch

__all__ = ["IGNORED", "Dropped", "Encoder", "Fitted", "Lengths"]

IGNORED = -100
ROWS_AT_ONCE = 256
TOKENISED = {"add_special_tokens": False, "return_offsets_mapping": True}
# What processors return beside input_ids with one value per token.
PER_TOKEN = ("attention_mask", "token_type_ids", "mm_token_type_ids")


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
class _Row:
    """One encoded row: ids, whether each is learned, and the processor's further values per token."""

    ids: list[int]
    learned: list[bool]
    further: dict[str, list[int]]


class Encoder:
    """Encodes samples the way one processor's model wants them."""

    def __init__(
        self,
        processor: Processor,
        *,
        max_length: int = 2048,
        overlong: Literal["drop", "shorten"] = "drop",
        max_pixels: int = MAX_PIXELS,
    ) -> None:
        """Check that the processor can do what training needs.

        Args:
            processor: tokenizer, picture preparation and chat template of the base.
            max_length: most tokens in a row, visual ones included.
            overlong: what ``fit`` does with longer rows.
            max_pixels: largest picture.

        Raises:
            ModelError: D030, D031 without a usable chat template; D034 without a padding token.
        """
        self.processor = processor
        self.max_length = max_length
        self.max_pixels = max_pixels
        self._shortens = overlong == "shorten"
        self._renderer = Renderer(processor)
        tokenizer = processor.tokenizer
        if tokenizer.pad_token_id is None:
            raise ModelError.one("D034", "the tokenizer has no padding token", help="its end token can serve")
        self._pad = int(tokenizer.pad_token_id)
        self._start = _start_ids(tokenizer)
        self._lead = _leading_newline(tokenizer)
        self._visual: dict[tuple[int, int], int] = {}

    def batch(self, samples: Sequence[Sample]) -> dict[str, torch.Tensor]:
        """A right-padded training batch.

        Returns:
            ``input_ids``, ``attention_mask`` and ``labels`` of shape (rows, longest row), labels ``IGNORED`` wherever
            nothing is learned; ``pixel_values`` and kindred as the processor gives them, only if there is a picture.

        Raises:
            BadImage: when a picture cannot be decoded.
        """
        import torch

        rows, tensors = self._encode([self._renderer.segments(sample) for sample in samples])
        batch = {"input_ids": self._padded([row.ids for row in rows], self._pad)}
        for name in rows[0].further:
            batch[name] = self._padded([row.further[name] for row in rows], 0)
        learned = self._padded([[int(one) for one in row.learned] for row in rows], 0)
        batch["labels"] = torch.where(learned.bool(), batch["input_ids"], IGNORED)
        return {**batch, **tensors}

    def prompt(self, sample: Sample) -> dict[str, torch.Tensor]:
        """The model's input for answering a conversation that ends with a user turn, as a batch of one.

        The tokens are those that stand before the same answer in a training batch.
        """
        (row,), tensors = self._encode([self._renderer.segments(sample, prompt=True)])
        batch = {"input_ids": self._padded([row.ids], self._pad)}
        for name, values in row.further.items():
            batch[name] = self._padded([values], 0)
        return {**batch, **tensors}

    def measure(self, samples: Iterable[Sample]) -> list[Lengths]:
        """Tokens per row as ``batch`` gives them, from picture headers, without decoding a picture.

        Raises:
            BadImage: when a header cannot be read.
        """
        lengths: list[Lengths] = []
        rest = iter(samples)
        while chunk := list(islice(rest, ROWS_AT_ONCE)):
            rendered = [self._renderer.segments(sample) for sample in chunk]
            output = self.processor.tokenizer(self._texts(rendered), **TOKENISED)
            pieces = zip(output["input_ids"], output["offset_mapping"], strict=True)
            for sample, segments in zip(chunk, rendered, strict=True):
                lengths.append(self._lengths(sample, segments, pieces))
        return lengths

    def _lengths(self, sample: Sample, segments: Sequence[Segment], pieces: Iterator[tuple[list[int], Any]]) -> Lengths:
        """One row's lengths from the tokens of its segments, each picture still a single placeholder."""
        tokens, supervised = len(self._row_start(segments)), 0
        for number, segment in enumerate(segments):
            ids, offsets = next(pieces)
            skipped = self._skipped(ids, number)
            tokens += len(ids) - skipped
            supervised += sum(_learned(segment, offsets, skipped)) if segment.learned else 0
        return Lengths(tokens - len(sample.images), self.visual_tokens(sample.images), supervised)

    def visual_tokens(self, images: Sequence[ImageRef]) -> int:
        """Placeholders that pictures take, from their headers."""
        return sum(self._tokens_of(size(image, max_pixels=self.max_pixels)) for image in images)

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

    @property
    def ends_answers(self) -> bool:
        """Whether the template teaches the model to stop: learned text ends with a special token."""
        probe = Sample((Turn("user", ("q",)), Turn("assistant", ("a",))), Origin("probe", 1))
        (row,), _ = self._encode([self._renderer.segments(probe)])
        last = [token for token, learned in zip(row.ids, row.learned, strict=True) if learned][-1]
        return last == self.processor.tokenizer.eos_token_id or last in self.processor.tokenizer.added_tokens_decoder

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

    def _tokens_of(self, pixels: tuple[int, int]) -> int:
        """Placeholders of one picture of (width, height)."""
        if pixels not in self._visual:
            width, height = pixels
            (tokens,) = self.processor._get_num_multimodal_tokens(image_sizes=[(height, width)]).num_image_tokens or [0]
            self._visual[pixels] = int(tokens)
        return self._visual[pixels]

    def _encode(self, rendered: Sequence[Sequence[Segment]]) -> tuple[list[_Row], dict[str, torch.Tensor]]:
        """Rows with expanded placeholders, and the picture tensors of the whole batch."""
        segments = [segment for row in rendered for segment in row]
        pictures = [[decode(ref, max_pixels=self.max_pixels) for ref in segment.pictures] for segment in segments]
        output = dict(
            self.processor(
                text=self._texts(rendered),
                **({"images": pictures} if any(pictures) else {}),
                **TOKENISED,
                padding=True,
                padding_side="right",
                return_tensors="pt",
            )
        )
        real = output["attention_mask"].bool()
        offsets = output.pop("offset_mapping")
        columns = {name: output.pop(name) for name in ("input_ids", *PER_TOKEN) if name in output}
        pieces = (
            ({name: values[n][kept].tolist() for name, values in columns.items()}, offsets[n][kept].tolist())
            for n, kept in enumerate(real)
        )
        return [self._row(row, pieces) for row in rendered], output

    def _row(self, segments: Sequence[Segment], pieces: Iterator[tuple[dict[str, list[int]], Any]]) -> _Row:
        """One row from the tokens of its segments, which are the next of ``pieces``."""
        start = self._row_start(segments)
        learned = [False] * len(start)
        columns: dict[str, list[int]] = {}
        for number, segment in enumerate(segments):
            values, offsets = next(pieces)
            skipped = self._skipped(values["input_ids"], number)
            learned += _learned(segment, offsets, skipped)
            for name, column in values.items():
                columns.setdefault(name, _before(name, start)).extend(column[skipped:])
        return _Row(columns.pop("input_ids"), learned, columns)

    def _row_start(self, segments: Sequence[Segment]) -> list[int]:
        """What the tokenizer puts before a text, unless the template has written it."""
        bos = self.processor.tokenizer.special_tokens_map.get("bos_token")
        return [] if bos and segments[0].text.startswith(bos) else self._start

    def _texts(self, rendered: Sequence[Sequence[Segment]]) -> list[str]:
        """All segments' texts; where the tokenizer begins texts with a space of its own, a line feed keeps it off."""
        lead = "\n" if self._lead else ""
        return [segment.text if n == 0 else lead + segment.text for row in rendered for n, segment in enumerate(row)]

    def _skipped(self, ids: Sequence[int], number: int) -> int:
        """How many tokens of a row's segment are the line feed that was put before it."""
        if number == 0 or not self._lead:
            return 0
        if list(ids[: len(self._lead)]) != self._lead:
            raise ModelError.one("D035", "the tokenizer joins a line feed with the text after it: texts cannot be cut")
        return len(self._lead)

    @staticmethod
    def _padded(rows: Sequence[Sequence[int]], value: int) -> torch.Tensor:
        import torch

        longest = max(len(row) for row in rows)
        return torch.tensor([[*row, *[value] * (longest - len(row))] for row in rows], dtype=torch.long)


def _learned(segment: Segment, offsets: Sequence[tuple[int, int]], skipped: int) -> list[bool]:
    """Per token of a segment, whether it begins among the segment's learned characters."""
    end = segment.learned + (1 if skipped else 0)
    return [start < end for start, _ in offsets[skipped:]] if segment.learned else [False] * (len(offsets) - skipped)


def _before(name: str, start: Sequence[int]) -> list[int]:
    """A column's values for the tokens put before a text."""
    if name == "input_ids":
        return list(start)
    return [int(name == "attention_mask")] * len(start)


def _start_ids(tokenizer: Any) -> list[int]:
    """What the tokenizer itself puts before a text, such as the begin token of Llama."""
    plain = list(tokenizer("a", add_special_tokens=False)["input_ids"])
    full = list(tokenizer("a")["input_ids"])
    places = [place for place in range(len(full) - len(plain) + 1) if full[place : place + len(plain)] == plain]
    return full[: places[0]] if places else []


def _leading_newline(tokenizer: Any) -> list[int]:
    """The ids of a line feed, where texts must begin with one because the tokenizer otherwise adds a space; else none.

    SentencePiece tokenizers put a space before the first word of a text. A segment is no new text, so it is tokenised
    after a line feed, whose ids are then taken away.
    """
    line_feed = list(tokenizer("\n", add_special_tokens=False)["input_ids"])
    plain = list(tokenizer("a", add_special_tokens=False)["input_ids"])
    after = list(tokenizer("\na", add_special_tokens=False)["input_ids"])
    return line_feed if after != line_feed + plain and after[: len(line_feed)] == line_feed else []


def _without_oldest(sample: Sample) -> Sample | None:
    """The sample without its first question and answer, their pictures moved to the next question; None if only one."""
    head = 1 if sample.turns[0].role == "system" else 0
    turns = sample.turns[head:]
    if len(turns) <= 2:
        return None
    pictures = [part for turn in turns[:2] for part in turn.parts if isinstance(part, ImageRef)]
    first = replace(turns[2], parts=(*pictures, *turns[2].parts))
    return replace(sample, turns=(*sample.turns[:head], first, *turns[3:]))
