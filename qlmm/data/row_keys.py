"""Keys that mean the same in rows of every format: the system prompt, what is not learned, and what no format reads.

Usage: ``turns = with_keys(turns, row); refuse_unread(row, shows=True)``
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace

from qlmm.data.errors import BadRow
from qlmm.data.sample import Role, Turn
from qlmm.data.tracked import Tracked

__all__ = ["MEDIA", "OTHER_NAMES", "PICTURES", "learned", "refuse_unread", "with_keys"]

# Columns of pictures. A row that has both has the same in them; the other names are read where it has neither.
PICTURES = ("image", "images")
OTHER_NAMES = (
    "file_name", "img", "imgs", "image_path", "image_paths", "image_file", "picture", "pictures", "image_url",
)  # fmt: skip
MEDIA = (*PICTURES, *OTHER_NAMES, "video", "videos")
SYSTEM = ("system", "system_prompt")
# Of a turn: OpenAI's fine-tuning files have `weight`, ms-swift `loss`, axolotl `train` or `training`.
MASKS = ("loss", "loss_scale", "train", "training", "trainable", "weight")
# LLaMA-Factory's option, as a key of a row.
LAST_ONLY = "mask_history"

SOUND = "sound is not read"
TOOLS = "calls of tools are not learned"
PAIR = "a pair has its answers in `chosen` and `rejected`"
THOUGHTS = "write thoughts into the answer's text, between <think> and </think>"
# What these keys mean would be lost.
REFUSED = {
    "audio": SOUND, "audios": SOUND, "tools": TOOLS, "functions": TOOLS, "tool_calls": TOOLS, "function_call": TOOLS,
    "objects": "write the boxes of objects into the texts", "reasoning_content": THOUGHTS, "thinking": THOUGHTS,
    "rejected_messages": PAIR, "rejected_conversations": PAIR, "rejected_response": PAIR, "rejected_images": PAIR,
    "history": "write earlier turns as turns", "train_detail": "a turn is learned whole, or not at all",
}  # fmt: skip


def learned(entry: Mapping[str, object], role: Role, place: str) -> bool:
    """Whether a turn is learned, as far as its own keys say; BadRow where they cannot be followed."""
    given = {key: entry[key] for key in MASKS if entry.get(key) is not None}
    for key, value in given.items():
        if not isinstance(value, (bool, int, float)) or value not in (0, 1):
            raise BadRow(f"`{key}` of {place} is {value!r}: a turn is learned (true, 1) or not (false, 0)")
        if value and role != "assistant":
            raise BadRow(f"`{key}` of {place} asks to learn a turn of `{role}`: only answers are learned")
    if len(set(map(bool, given.values()))) > 1:
        raise BadRow(f"{' and '.join(f'`{key}`' for key in given)} of {place} contradict each other")
    return all(given.values())


def with_keys(turns: Sequence[Turn], row: Tracked) -> list[Turn]:
    """Turns with the row's system prompt before them, and with only the last answer learned where the row asks it."""
    turns = [*_system(turns, row), *turns]
    last_only = row.get(LAST_ONLY)
    if last_only is not None and not isinstance(last_only, bool):
        raise BadRow(f"`{LAST_ONLY}` is neither true nor false")
    if not last_only:
        return turns
    excepted = [replace(turn, learned=turn.role != "assistant") for turn in turns[:-1]]
    return [*excepted, *turns[-1:]]


def _system(turns: Sequence[Turn], row: Tracked) -> Sequence[Turn]:
    """The row's system prompt as a turn; none where it has none, or the conversation begins with the same."""
    key = next((key for key in SYSTEM if row.get(key)), None)
    if key is None:
        return ()
    text = row[key]
    if not isinstance(text, str):
        raise BadRow(f"`{key}` is not text")
    if not turns or turns[0].role != "system":
        return (Turn("system", (text,)),)
    if turns[0].text.strip() != text.strip():
        raise BadRow(f"`{key}` is another text than the conversation's system turn: keep one of them")
    return ()


def refuse_unread(row: Tracked, *, shows: bool) -> None:
    """Refuse a row with an unread key that changes what is learned; ``shows``: whether it has pictures."""
    for place in row.unread():
        key = place.rsplit(".", 1)[-1]
        if key in REFUSED:
            raise BadRow(f"`{place}` is not read: {REFUSED[key]}", f"change the row, or remove `{key}` from the file")
        if place in MEDIA and not shows:
            raise BadRow(f"`{place}` is not read by this format, and the row shows no picture")
