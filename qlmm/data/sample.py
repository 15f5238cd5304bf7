"""The in-memory forms of a training row: a conversation, one with two last answers to compare, or one with a verdict.

Turns have text and pictures *in order*. Pictures are references, decoded when a batch needs them. A video is several
pictures, one after another.

Usage: ``Sample((Turn("user", (picture, "What is this?")), Turn("assistant", ("a cat",))), Origin("a.json", 3))``
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import dataclass, field, replace
from fractions import Fraction
from pathlib import Path
from typing import Annotated, Literal, Self, TypeVar

from pydantic import Field

__all__ = [
    "Example",
    "Feedback",
    "ImageRef",
    "Kind",
    "Origin",
    "Part",
    "Planned",
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


@dataclass(frozen=True, slots=True)
class Origin:
    """Where a row came from: the file as the user named it, and its line (text files) or row number, from 1."""

    file: str
    line: int

    def __str__(self) -> str:
        return f"{self.file}:{self.line}"


@dataclass(frozen=True, slots=True)
class Planned:
    """A picture's or a video's file as it was when a run was planned.

    Attributes:
        bytes: size of the file.
        width: of the picture in pixels, upright; `height` likewise.
        frames: of a video, the seconds of the frames that are shown, as fractions.
    """

    bytes: int
    width: int
    height: int
    frames: tuple[Annotated[str, Field(pattern=r"^-?[0-9]{1,40}(/[1-9][0-9]{0,40})?$")], ...] = ()


@dataclass(frozen=True, slots=True)
class ImageRef:
    """A picture not yet decoded: a file that was checked to lie under its root, or encoded bytes.

    ``planned`` is what is remembered of a picture that could be read when the run was planned, and now cannot.
    """

    path: Path | None = None
    data: bytes | None = None
    at: Fraction | None = None  # of a video: the second at which this frame is shown
    planned: Planned | None = field(default=None, compare=False)

    @property
    def name(self) -> str:
        """A short name for messages and reports."""
        name = self.path.name if self.path is not None else f"<{len(self.data or b'')} bytes>"
        return name if self.at is None else f"{name} at {float(self.at):.2f} s"


Part = str | ImageRef


@dataclass(frozen=True, slots=True)
class Turn:
    """One message: who speaks, and text and pictures in the order they are shown to the model.

    An answer that is not ``learned`` is shown to the model, and has no loss.
    """

    role: Role
    parts: tuple[Part, ...]
    learned: bool = True

    @property
    def text(self) -> str:
        """The turn's text without its pictures."""
        return "".join(part for part in self.parts if isinstance(part, str))


class _Pictured(ABC):
    """What rows of every kind have in common: turns with pictures, which can be exchanged, left out or shortened."""

    __slots__ = ()

    @property
    @abstractmethod
    def _shown(self) -> tuple[Turn, ...]:
        """The turns that have all pictures."""

    @abstractmethod
    def _showing(self, turns: tuple[Turn, ...]) -> Self:
        """The same row with other such turns."""

    @property
    def images(self) -> tuple[ImageRef, ...]:
        """All pictures, in the order of their places in the conversation."""
        return _images(self._shown)

    @property
    def readable(self) -> bool:
        """Whether all pictures could be read when they were last looked at."""
        return all(image.planned is None for image in self.images)

    def with_images(self, images: tuple[ImageRef, ...]) -> Self:
        """The same row with other pictures in the same places; ValueError when the number of pictures differs."""
        left, places = iter(images), len(self.images)
        if len(images) != places:
            raise ValueError(f"{len(images)} pictures for {places} places")
        return self._showing(
            tuple(
                replace(turn, parts=tuple(next(left) if isinstance(part, ImageRef) else part for part in turn.parts))
                for turn in self._shown
            )
        )

    def without_images(self) -> Self:
        """The same row with its pictures left out."""
        # A question that was a picture alone stays a question: templates cannot write a turn without content.
        texts = [tuple(part for part in turn.parts if isinstance(part, str)) for turn in self._shown]
        return self._showing(
            tuple(replace(turn, parts=parts or ("",)) for turn, parts in zip(self._shown, texts, strict=True))
        )

    def without_oldest(self) -> Self | None:
        """The same row without its first question and answer, their pictures in the next question; None without one."""
        turns = self._shown
        head = 1 if turns[0].role == "system" else 0
        first, rest = turns[head : head + 2], turns[head + 2 :]
        if not rest:
            return None
        return self._showing((*turns[:head], replace(rest[0], parts=(*_images(first), *rest[0].parts)), *rest[1:]))


@dataclass(frozen=True, slots=True)
class Sample(_Pictured):
    """A conversation to learn from: assistant turns are supervised, unless the row excepts them; nothing else is."""

    turns: tuple[Turn, ...]
    origin: Origin

    @property
    def content(self) -> tuple[Turn, ...]:
        """All that is learned from; equal for copies of a row."""
        return self.turns

    @property
    def _shown(self) -> tuple[Turn, ...]:
        return self.turns

    def _showing(self, turns: tuple[Turn, ...]) -> Self:
        return replace(self, turns=turns)


@dataclass(frozen=True, slots=True)
class _Asked(_Pictured):
    """A row whose answers stand apart from the conversation before them, which ends with a question."""

    prompt: tuple[Turn, ...]

    @property
    def _shown(self) -> tuple[Turn, ...]:
        return self.prompt

    def _showing(self, turns: tuple[Turn, ...]) -> Self:
        return replace(self, prompt=turns)


@dataclass(frozen=True, slots=True)
class Preference(_Asked):
    """A conversation with two last answers, ``chosen`` being the better; nothing else is learned."""

    chosen: str
    rejected: str
    origin: Origin

    @property
    def turns(self) -> tuple[Turn, ...]:
        """The conversation with the chosen answer."""
        return self.side("chosen").turns

    @property
    def content(self) -> tuple[Turn, ...]:
        """The prompt, then both answers; equal for copies of a row."""
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
    """A conversation whose last answer, ``completion``, was judged; nothing else is learned."""

    completion: str
    desirable: bool
    origin: Origin

    @property
    def turns(self) -> tuple[Turn, ...]:
        """The conversation with its answer."""
        return self.sample.turns

    @property
    def content(self) -> tuple[Turn, ...]:
        """The conversation, then the verdict; equal for copies of a row."""
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
