"""The in-memory forms of a training row, whatever file format it came from.

A row is a conversation whose turns hold text and pictures *in order*, or one with two last answers to compare, or one
whose last answer was judged.
Pictures are references: nothing is decoded until a batch needs it. A video is several pictures, one after another.

Usage: ``Sample((Turn("user", (picture, "What is this?")), Turn("assistant", ("a cat",))), Origin("a.json", 3))``
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from fractions import Fraction
from pathlib import Path
from typing import Literal, TypeVar

__all__ = [
    "Example",
    "Feedback",
    "ImageRef",
    "Kind",
    "Origin",
    "Part",
    "Preference",
    "Role",
    "Row",
    "Sample",
    "Side",
    "Turn",
]

Role = Literal["system", "user", "assistant"]
Kind = Literal["conversation", "preference", "feedback"]
Side = Literal["chosen", "rejected"]
AskedT = TypeVar("AskedT", bound="_Asked")


@dataclass(frozen=True, slots=True)
class Origin:
    """Where a row came from: the file as the user named it, and its line (text files) or row number, from 1."""

    file: str
    line: int

    def __str__(self) -> str:
        return f"{self.file}:{self.line}"


@dataclass(frozen=True, slots=True)
class ImageRef:
    """A picture not yet decoded: a file that was checked to lie under its root, or encoded bytes.

    Attributes:
        path: the file, of a picture or of a video.
        data: the encoded bytes, where there is no file.
        at: where file or bytes are a video: the second at which the frame is shown that is this picture.
    """

    path: Path | None = None
    data: bytes | None = None
    at: Fraction | None = None

    @property
    def name(self) -> str:
        """A short name for messages and reports."""
        name = self.path.name if self.path is not None else f"<{len(self.data or b'')} bytes>"
        return name if self.at is None else f"{name} at {float(self.at):.2f} s"


Part = str | ImageRef


@dataclass(frozen=True, slots=True)
class Turn:
    """One message: who speaks, and text and pictures in the order they are shown to the model."""

    role: Role
    parts: tuple[Part, ...]

    @property
    def text(self) -> str:
        """The turn's text without its pictures."""
        return "".join(part for part in self.parts if isinstance(part, str))


@dataclass(frozen=True, slots=True)
class Sample:
    """A conversation to learn from: every assistant turn is supervised, nothing else is."""

    turns: tuple[Turn, ...]
    origin: Origin

    @property
    def content(self) -> tuple[Turn, ...]:
        """All that the row says; equal for copies of a row."""
        return self.turns

    @property
    def images(self) -> tuple[ImageRef, ...]:
        """All pictures, in the order their places appear in the conversation."""
        return _images(self.turns)

    def with_images(self, images: tuple[ImageRef, ...]) -> Sample:
        """The same conversation with other pictures in the same places (for the picture-swap proof).

        Raises:
            ValueError: when the number of pictures differs.
        """
        return replace(self, turns=_with_images(self.turns, images))

    def without_images(self) -> Sample:
        """The same conversation with its pictures left out."""
        return replace(self, turns=_without_images(self.turns))

    def without_oldest(self) -> Sample | None:
        """The same conversation without its first question and answer, their pictures kept; None if it has one only."""
        turns = _without_oldest(self.turns)
        return None if turns is None else replace(self, turns=turns)


@dataclass(frozen=True, slots=True)
class _Asked:
    """What rows have in common whose answers stand apart from the conversation before them."""

    prompt: tuple[Turn, ...]

    @property
    def images(self) -> tuple[ImageRef, ...]:
        """All pictures, in the order their places appear in the prompt; every answer is about the same."""
        return _images(self.prompt)

    def with_images(self: AskedT, images: tuple[ImageRef, ...]) -> AskedT:
        """The same row with other pictures in the same places.

        Raises:
            ValueError: when the number of pictures differs.
        """
        return replace(self, prompt=_with_images(self.prompt, images))

    def without_images(self: AskedT) -> AskedT:
        """The same row with its pictures left out."""
        return replace(self, prompt=_without_images(self.prompt))

    def without_oldest(self: AskedT) -> AskedT | None:
        """The same row without its first question and answer, their pictures kept; None if it has one only."""
        prompt = _without_oldest(self.prompt)
        return None if prompt is None else replace(self, prompt=prompt)


@dataclass(frozen=True, slots=True)
class Preference(_Asked):
    """A conversation with two last answers, one of them the better; nothing else is learned.

    Attributes:
        prompt: the turns before the answers; the last is the user's, and all pictures are in these.
        chosen: the better answer.
        rejected: the worse answer.
        origin: where the row came from.
    """

    chosen: str
    rejected: str
    origin: Origin

    @property
    def turns(self) -> tuple[Turn, ...]:
        """The conversation with the chosen answer."""
        return self.side("chosen").turns

    @property
    def content(self) -> tuple[Turn, ...]:
        """All that the row says: the prompt, then both answers; equal for copies of a row."""
        return (*self.turns, Turn("assistant", (self.rejected,)))

    def side(self, name: Side) -> Sample:
        """The conversation with one of the answers."""
        answer = self.chosen if name == "chosen" else self.rejected
        return Sample((*self.prompt, Turn("assistant", (answer,))), self.origin)

    def judged(self) -> tuple[Feedback, Feedback]:
        """The pair as two rows of one answer each: the chosen one is desirable, the rejected one is not."""
        return (
            Feedback(self.prompt, self.chosen, True, self.origin),
            Feedback(self.prompt, self.rejected, False, self.origin),
        )


@dataclass(frozen=True, slots=True)
class Feedback(_Asked):
    """A conversation whose last answer was judged; nothing else is learned.

    Attributes:
        prompt: the turns before the answer; the last is the user's, and all pictures are in these.
        completion: the answer.
        desirable: whether answers should become more like it, or less.
        origin: where the row came from.
    """

    completion: str
    desirable: bool
    origin: Origin

    @property
    def turns(self) -> tuple[Turn, ...]:
        """The conversation with its answer."""
        return self.sample.turns

    @property
    def content(self) -> tuple[Turn, ...]:
        """All that the row says: the conversation, then the verdict; equal for copies of a row."""
        return (*self.turns, Turn("user", ("desirable" if self.desirable else "undesirable",)))

    @property
    def sample(self) -> Sample:
        """The conversation without the verdict."""
        return self.answered(self.completion)

    def answered(self, completion: str) -> Sample:
        """The prompt with an answer, its own or another row's."""
        return Sample((*self.prompt, Turn("assistant", (completion,))), self.origin)


Example = Sample | Preference | Feedback
Row = TypeVar("Row", bound=Example)


def _images(turns: tuple[Turn, ...]) -> tuple[ImageRef, ...]:
    return tuple(part for turn in turns for part in turn.parts if isinstance(part, ImageRef))


def _with_images(turns: tuple[Turn, ...], images: tuple[ImageRef, ...]) -> tuple[Turn, ...]:
    left, places = iter(images), len(_images(turns))
    if len(images) != places:
        raise ValueError(f"{len(images)} pictures for {places} places")
    return tuple(
        replace(turn, parts=tuple(next(left) if isinstance(part, ImageRef) else part for part in turn.parts))
        for turn in turns
    )


def _without_images(turns: tuple[Turn, ...]) -> tuple[Turn, ...]:
    # A question that was a picture alone stays a question: templates cannot write a turn without content.
    return tuple(
        replace(turn, parts=tuple(part for part in turn.parts if isinstance(part, str)) or ("",)) for turn in turns
    )


def _without_oldest(turns: tuple[Turn, ...]) -> tuple[Turn, ...] | None:
    """The turns without the first question and answer, whose pictures move to the next question."""
    head = 1 if turns[0].role == "system" else 0
    first, rest = turns[head : head + 2], turns[head + 2 :]
    if not rest:
        return None
    return (*turns[:head], replace(rest[0], parts=(*_images(first), *rest[0].parts)), *rest[1:])
