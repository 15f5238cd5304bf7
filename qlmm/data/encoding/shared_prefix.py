"""Pairs as rows ``[prompt | chosen | rejected]``: pictures and question, most of a pair's tokens, are there once.

`qlmm.model.reuse.attention_layout` keeps the answers from seeing each other.

Usage: ``batch = packed(encoder, preferences); batch["packed"]["input_ids"].shape  # (pairs, longest row)``
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, TypedDict

from qlmm.core.errors import ModelError
from qlmm.data.encoding.marked_tokenizer import MarkedRow

if TYPE_CHECKING:
    import torch

    from qlmm.data.encoding.encoder import Encoder
    from qlmm.data.sample import Preference

__all__ = ["CHOSEN", "PROMPT", "REJECTED", "PackedBatch", "packed"]

# The segments of a row, and who sees whom; padding behind the rejected answer counts as part of it.
PROMPT, CHOSEN, REJECTED = 0, 1, 2
SEES = [[True, False, False], [True, True, False], [True, False, True]]


class PackedBatch(TypedDict):
    """A batch of pairs, one row each, as `packed` describes it."""

    input_ids: torch.Tensor
    completion_mask: torch.Tensor
    attention_mask: torch.Tensor
    packed: dict[str, torch.Tensor]
    layout: dict[str, torch.Tensor]
    take: torch.Tensor


def packed(encoder: Encoder, preferences: Sequence[Preference]) -> PackedBatch:
    """A right-padded batch of pairs, one row each.

    Returns:
        ``input_ids`` and ``completion_mask`` (2 × pairs, 1 + longest answer), chosen answers first: the last token of
        the prompt, then an answer, in TRL's layout; ``attention_mask`` (pairs, longest row), which counts the tokens;
        ``packed``: what the model takes, per-token tensors (pairs, longest row), pictures once; ``layout``: the fields
        of an `AttentionLayout`; ``take`` (2 × pairs, 1 + longest answer): places of the answers' tokens in the rows.

    Raises:
        ModelError: D046 when the two prompts of a pair differ.
    """
    import torch

    rows, tensors = encoder.encode([one.side("chosen") for one in preferences])
    others = encoder.read([one.side("rejected") for one in preferences])
    alone = encoder.read([one.side("chosen") for one in preferences])
    for one, other in zip(alone, others, strict=True):
        if one.ids[: _answer(one)[0]] != other.ids[: _answer(other)[0]]:
            message = "the chat template writes another prompt for another answer: a pair's answers cannot share it"
            raise ModelError.one("D046", message, help="leave prefix out of training.reuse")
    tails = [other.ids[slice(*_answer(other))] for other in others]
    spans = torch.tensor([_answer(row) for row in rows])
    prompt, chosen = spans[:, :1], spans[:, 1:] - spans[:, :1]
    return _laid_out(tensors, tails, prompt, chosen, pad=encoder.processor.tokenizer.pad_token_id)


def _answer(row: MarkedRow) -> tuple[int, int]:
    """Where the last answer begins and ends."""
    last = row.answer
    start = last.index(True)
    return start, start + sum(last)


def _laid_out(
    tensors: dict[str, torch.Tensor],
    tails: Sequence[list[int]],
    prompt: torch.Tensor,
    chosen: torch.Tensor,
    *,
    pad: int,
) -> PackedBatch:
    """The batch, from the chosen rows' tensors, the rejected answers, and lengths (pairs, 1) of prompts and chosen."""
    import torch

    ids = tensors["input_ids"]
    rejected = torch.tensor([len(tail) for tail in tails])[:, None]
    place = torch.arange(int((prompt + chosen + rejected).max())).expand(len(tails), -1)
    in_rejected = place >= prompt + chosen
    # Tokens of the rejected answer are like the first of the chosen one: text that follows the prompt.
    source = torch.where(in_rejected, prompt, place)
    model = {
        name: tensor.gather(1, source.view(*source.shape, *[1] * (tensor.dim() - 2)).expand(-1, -1, *tensor.shape[2:]))
        if tensor.dim() > 1 and tensor.shape[:2] == ids.shape
        else tensor
        for name, tensor in tensors.items()
    }
    for row, (tail, start) in enumerate(zip(tails, (prompt + chosen).flatten().tolist(), strict=True)):
        model["input_ids"][row, start : start + len(tail)] = torch.tensor(tail)
        model["input_ids"][row, start + len(tail) :] = pad
        model["attention_mask"][row, start + len(tail) :] = 0
    take, mask = _answers(
        torch.cat([prompt, prompt]), torch.cat([prompt, prompt + chosen]), torch.cat([chosen, rejected])
    )
    return {
        "input_ids": model["input_ids"][torch.arange(len(tails)).repeat(2)[:, None], take],
        "completion_mask": mask,
        "attention_mask": model["attention_mask"],
        "packed": model,
        # Each answer sees the prompt and itself; both answers stand at the positions that follow the prompt.
        "layout": {
            "segments": torch.where(in_rejected, REJECTED, torch.where(place >= prompt, CHOSEN, PROMPT)),
            "sees": torch.tensor(SEES),
            "positions": torch.where(in_rejected, place - chosen, place),
        },
        "take": take,
    }


def _answers(prompt: torch.Tensor, start: torch.Tensor, length: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Where each answer's tokens stand, after the prompt's last one, and which of these places are answers."""
    import torch

    step = torch.arange(1 + int(length.max()))
    take = torch.where(step == 0, prompt - 1, start + step - 1)
    return torch.where(step <= length, take, 0), ((step > 0) & (step <= length)).long()
