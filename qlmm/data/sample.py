"""The one in-memory form of a training row, whatever file format it came from.

A row is a conversation whose turns hold text and pictures *in order*. Pictures are references:
nothing is decoded until a batch needs it. A video is several pictures, one after another.

Usage: ``Sample((Turn("user", (picture, "What is this?")), Turn("assistant", ("a cat",))), Origin("a.json", 3))``
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from fractions import Fraction
from pathlib import Path
from typing import Any, Literal

__all__ = ["ImageRef", "Origin", "Part", "Role", "Sample", "Turn"]

Role = Literal["system", "user", "assistant"]


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
    def images(self) -> tuple[ImageRef, ...]:
        """All pictures, in the order their places appear in the conversation."""
        return tuple(part for turn in self.turns for part in turn.parts if isinstance(part, ImageRef))

    def with_images(self, images: tuple[ImageRef, ...]) -> Sample:
        """The same conversation with other pictures in the same places (for the picture-swap proof).

        Raises:
            ValueError: when the number of pictures differs.
        """
        left = iter(images)
        if len(images) != len(self.images):
            raise ValueError(f"{len(images)} pictures for {len(self.images)} places")
        turns = tuple(
            replace(turn, parts=tuple(next(left) if isinstance(part, ImageRef) else part for part in turn.parts))
            for turn in self.turns
        )
        return replace(self, turns=turns)

    def without_images(self) -> Sample:
        """The same conversation with its pictures left out."""
        turns = tuple(
            replace(turn, parts=tuple(part for part in turn.parts if isinstance(part, str))) for turn in self.turns
        )
        return replace(self, turns=turns)

    def messages(self, pictures: list[Any] | None = None) -> list[dict[str, Any]]:
        """The conversation in the message form of transformers' chat templates.

        Args:
            pictures: decoded pictures, one per place, put into the message; left out when only text is rendered.
        """
        left = iter(pictures or [])
        messages = []
        for turn in self.turns:
            content: list[dict[str, Any]] = []
            for part in turn.parts:
                if isinstance(part, str):
                    content.append({"type": "text", "text": part})
                else:
                    content.append({"type": "image", "image": next(left)} if pictures else {"type": "image"})
            messages.append({"role": turn.role, "content": content})
        return messages
