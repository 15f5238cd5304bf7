"""Pairs as rows that share their prompt: pictures and question once, then both answers.

Chosen and rejected answer follow the same pictures and the same question, which are most of a row's tokens. One row
``[prompt | chosen | rejected]`` holds them once; `qlmm.model.reuse.attention_layout` keeps the answers from seeing
each other.

Usage: ``batch = packed(encoder, preferences); batch["packed"]["input_ids"].shape  # (pairs, longest row)``
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, TypedDict

from qlmm.core.errors import ModelError
from qlmm.data.encoding.marked_tokenizer import MarkedRow

if TYPE_CHECKING:
    import torch

    from qlmm.data.encoding.encoder import Encoder
    from qlmm.data.sample import Preference

__all__ = ["CHOSEN", "PROMPT", "REJECTED", "LayoutFields", "PackedBatch", "packed"]

# The segments of a row, and who sees whom; padding behind the rejected answer counts as part of it.
PROMPT, CHOSEN, REJECTED = 0, 1, 2
SEES = [[True, False, False], [True, True, False], [True, False, True]]


@dataclass(frozen=True, slots=True)
class _Place:
    """Where a pair lies in its row: tokens before the answers, and tokens of each answer."""

    prompt: int
    chosen: int
    rejected: int

    @property
    def total(self) -> int:
        return self.prompt + self.chosen + self.rejected


class LayoutFields(TypedDict):
    """The fields of an `AttentionLayout`, as tensors that a data loader can move."""

    segments: torch.Tensor
    sees: torch.Tensor
    positions: torch.Tensor


class PackedBatch(TypedDict):
    """A batch of pairs, one row each, as `packed` describes it."""

    input_ids: torch.Tensor
    completion_mask: torch.Tensor
    attention_mask: torch.Tensor
    packed: dict[str, torch.Tensor]
    layout: LayoutFields
    take: torch.Tensor


def packed(encoder: Encoder, preferences: Sequence[Preference]) -> PackedBatch:
    """A right-padded batch of pairs, one row each.

    Returns:
        ``input_ids`` and ``completion_mask`` of shape (2 × pairs, 1 + longest answer), chosen answers first: the last
        token of the prompt, then an answer, in TRL's layout; ``attention_mask`` (pairs, longest row), which counts the
        tokens; ``packed``: what the model takes, per-token tensors of shape (pairs, longest row), pictures once;
        ``layout``: the fields of an `AttentionLayout`; and ``take`` (2 × pairs, 1 + longest answer), where in the rows
        the answers' tokens stand.

    Raises:
        BadImage: when a picture cannot be decoded.
        DataError: D039 when the processor refuses the rows.
        ModelError: D046 when the two prompts of a pair differ.
    """
    rows, tensors = encoder.encode([one.side("chosen") for one in preferences])
    others = encoder.read([one.side("rejected") for one in preferences])
    alone = encoder.read([one.side("chosen") for one in preferences])
    for one, other in zip(alone, others, strict=True):
        _check_same_prompt(one, other)
    before = tensors["input_ids"].shape[1] - max(len(row.ids) for row in rows)
    tails = [other.ids[slice(*_answer(other))] for other in others]
    places = [
        _Place(before + start, end - start, len(tail))
        for (start, end), tail in zip(map(_answer, rows), tails, strict=True)
    ]
    return _laid_out(tensors, places, tails, pad=encoder.processor.tokenizer.pad_token_id)


def _answer(row: MarkedRow) -> tuple[int, int]:
    """Where the last answer begins and ends."""
    last = row.answer
    start = last.index(True)
    return start, start + sum(last)


def _check_same_prompt(one: MarkedRow, other: MarkedRow) -> None:
    if one.ids[: _answer(one)[0]] != other.ids[: _answer(other)[0]]:
        raise ModelError.one(
            "D046",
            "the chat template writes another prompt for another answer: a pair's answers cannot share it",
            help="leave prefix out of training.reuse",
        )


def _laid_out(
    tensors: dict[str, torch.Tensor], places: Sequence[_Place], tails: Sequence[Sequence[int]], *, pad: int
) -> PackedBatch:
    import torch

    ids = tensors["input_ids"]
    source = _sources(places)
    model = {
        name: tensor.gather(1, source.view(*source.shape, *[1] * (tensor.dim() - 2)).expand(-1, -1, *tensor.shape[2:]))
        if tensor.dim() > 1 and tensor.shape[:2] == ids.shape
        else tensor
        for name, tensor in tensors.items()
    }
    for row, (place, tail) in enumerate(zip(places, tails, strict=True)):
        model["input_ids"][row, place.prompt + place.chosen : place.total] = torch.tensor(tail)
        model["input_ids"][row, place.total :] = pad
        model["attention_mask"][row, place.total :] = 0
    take, mask = _answers(places)
    rows = torch.arange(len(places)).repeat(2)[:, None]
    return {
        "input_ids": model["input_ids"][rows, take],
        "completion_mask": mask,
        "attention_mask": model["attention_mask"],
        "packed": model,
        "layout": _layout(places, ids.new_zeros(source.shape)),
        "take": take,
    }


def _layout(places: Sequence[_Place], like: torch.Tensor) -> LayoutFields:
    """Each answer sees the prompt and itself; both answers stand at the positions that follow the prompt."""
    import torch

    places_in_row = torch.arange(like.shape[1]).expand_as(like)
    prompt = torch.tensor([place.prompt for place in places])[:, None]
    chosen = torch.tensor([place.chosen for place in places])[:, None]
    in_rejected = places_in_row >= prompt + chosen
    return {
        "segments": torch.where(in_rejected, REJECTED, torch.where(places_in_row >= prompt, CHOSEN, PROMPT)),
        "sees": torch.tensor(SEES),
        "positions": torch.where(in_rejected, places_in_row - chosen, places_in_row),
    }


def _sources(places: Sequence[_Place]) -> torch.Tensor:
    """Per token of a packed row the token of the chosen row that it is like.

    Those of the rejected answer are like the first of the chosen one: text that follows the prompt.
    """
    import torch

    longest = max(place.total for place in places)
    rows = [
        [*range(place.prompt + place.chosen), *[place.prompt] * (longest - place.prompt - place.chosen)]
        for place in places
    ]
    return torch.tensor(rows)


def _answers(places: Sequence[_Place]) -> tuple[torch.Tensor, torch.Tensor]:
    """Where each answer's tokens stand, after the prompt's last one, and which of these places are answers."""
    import torch

    longest = 1 + max(max(place.chosen, place.rejected) for place in places)
    chosen = [[place.prompt - 1 + step for step in range(place.chosen + 1)] for place in places]
    rejected = [
        [place.prompt - 1, *(place.prompt + place.chosen + step for step in range(place.rejected))] for place in places
    ]
    take = [[*row, *[0] * (longest - len(row))] for row in (*chosen, *rejected)]
    mask = [[0, *[1] * (len(row) - 1), *[0] * (longest - len(row))] for row in (*chosen, *rejected)]
    return torch.tensor(take), torch.tensor(mask)
