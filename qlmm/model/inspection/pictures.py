"""What a base's processor makes of pictures: tokens by size, the pixel budget, and which rows are possible.

All of it is tried on blank pictures, because processors can do less than their settings show.

Usage: ``pictures, why_not = look(Base.resolve(recipe.base), recipe.data, [(336, 336)])``
"""

from __future__ import annotations

import io
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from PIL import Image

from qlmm.core.errors import ModelError, QlmmError
from qlmm.data.encoding.encoder import Encoder
from qlmm.data.sample import ImageRef, Origin, Part, Sample, Turn
from qlmm.model.image_budget.budget import Budget, budgeted
from qlmm.model.image_budget.processors import NotFollowed
from qlmm.model.loading.base import Base
from qlmm.recipe.schema import DataSection

__all__ = ["SIZES", "PicturesShown", "SizeShown", "Tried", "look"]

SIZES = ((336, 336), (1024, 768), (1920, 1080))
# A value of each key that most processors can follow; the others refuse the value, not the key.
KEYS = {
    "data.max_pixels": Budget(max_pixels=1_000_000),
    "data.min_pixels": Budget(min_pixels=10_000),
    "data.max_tiles": Budget(max_tiles=4),
}


@dataclass(frozen=True, slots=True)
class Tried:
    """Whether something worked, and else the processor's or template's reason."""

    possible: bool
    why_not: str | None = None


@dataclass(frozen=True, slots=True)
class SizeShown:
    """Tokens of a picture, as the model is and under the recipe's budget; None where it is refused or without one."""

    width: int
    height: int
    tokens: int | None
    budgeted: int | None


@dataclass(frozen=True, slots=True)
class PicturesShown:
    """What the processor makes of pictures.

    Attributes:
        ignores: keys of the pixel budget that it does not follow, each with the reason.
        budget: what the recipe's budget sets, in words.
        refused: why the recipe's budget cannot be followed.
    """

    processor: str
    sizes: tuple[SizeShown, ...]
    follows: tuple[str, ...]
    ignores: dict[str, str]
    budget: tuple[str, ...]
    refused: str | None
    without_picture: Tried  # a row of text alone
    several: Tried  # a row with two pictures


def look(base: Base, data: DataSection, sizes: Sequence[tuple[int, int]]) -> tuple[PicturesShown | None, str | None]:
    """What a base's processor makes of blank pictures of these widths and heights; or None, and why it cannot be used.

    The pixel budget of the recipe's section is tried besides the model's own.
    """
    own = data.model_copy(update=dict.fromkeys(("max_pixels", "min_pixels", "max_tiles")))
    try:
        encoder, _ = base.encoder(own)
    except QlmmError as error:
        return None, _reason(error)
    ignores = _ignored(base.processor)
    limited: Encoder | None = None
    budget: tuple[str, ...] = ()
    refused = None
    if Budget.of(data) != Budget():
        try:
            limited, budget = base.encoder(data)
        except QlmmError as error:
            refused = _reason(error)
    return PicturesShown(
        processor=type(base.processor).__name__,
        sizes=tuple(SizeShown(*size, _tokens(encoder, size), _tokens(limited, size)) for size in sizes),
        follows=tuple(key for key in KEYS if key not in ignores),
        ignores=ignores,
        budget=budget,
        refused=refused,
        without_picture=_row(encoder, 0),
        several=_row(encoder, 2),
    ), None


def _reason(error: QlmmError) -> str:
    problem = error.problems[0]
    return f"{problem.text}; {problem.help}" if problem.help else problem.text


def _tokens(encoder: Encoder | None, size: tuple[int, int]) -> int | None:
    try:
        return encoder.tokens_for(*size) if encoder is not None else None
    except QlmmError:
        return None


def _ignored(processor: Any) -> dict[str, str]:
    """Keys of the budget that the processor cannot follow, each with the reason."""
    found = {}
    for key, budget in KEYS.items():
        try:
            budgeted(processor, budget)
        except NotFollowed as error:
            found[key] = error.problems[0].message
        except ModelError:
            # It can be followed, though not with the value that was tried.
            continue
    return found


def _row(encoder: Encoder, pictures: int) -> Tried:
    """Whether a row with so many blank pictures becomes a batch."""
    stream = io.BytesIO()
    Image.new("RGB", SIZES[0], (127, 127, 127)).save(stream, "PNG")
    shown: tuple[Part, ...] = (*[ImageRef(data=stream.getvalue())] * pictures, "What is this?")
    row = Sample((Turn("user", shown), Turn("assistant", ("A grey square.",))), Origin("a blank row", 1))
    try:
        encoder.batch([row])
    except QlmmError as error:
        return Tried(False, error.text)
    return Tried(True)
