"""What rows have that is not learned as their owner may expect: keys that are not read, markers, rendered turns.

Usage: ``notices = Notices("rows.jsonl"); notices.add(row, sample); notices.unused(); list(notices.warnings())``
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field

from qlmm.data.sample import Example, Origin, Turn
from qlmm.data.tracked import Tracked

__all__ = ["Notices"]

MOST_KEYS = 30
# How data sets and templates write the place of a picture, a video or a sound.
MARKER = re.compile(
    r"<(?:image|video|audio|img)(?:[ _-]?\d+)?>|<ImageHere>|<image_placeholder>|<start_of_image>|\[IMG\]"
    r"|<\|(?:image|video|vision|audio)\w*\|>"
)
# Control tokens of chat templates: ChatML and Llama 3, DeepSeek, Mistral, Llama 2, Gemma.
CONTROL = re.compile(r"<\|[a-zA-Z]\w*\|>|<｜[^｜<>]{1,40}｜>|\[/?INST\]|<</?SYS>>|<(?:start|end)_of_turn>")
# Marks of a user's turn and of the answer after it: Vicuna, plain dialogue, Alpaca.
MARKS = ("USER: ", "Human: ", "User: ", "###")
SPEAKERS = (
    (re.compile(r"\bUSER: "), re.compile(r"\bASSISTANT:")),
    (re.compile(r"^(?:Human|User): ", re.MULTILINE), re.compile(r"^(?:Assistant|AI|GPT|Bot): ", re.MULTILINE)),
    (
        re.compile(r"^### ?(?:Human|User|Instruction):", re.MULTILINE),
        re.compile(r"^### ?(?:Assistant|Response):", re.M),
    ),
)


@dataclass(slots=True)
class _Count:
    """In how many rows something was found: by name, in all, and where first."""

    names: Counter[str] = field(default_factory=Counter)
    rows: int = 0
    first: Origin | None = None

    def add(self, names: Iterable[str], origin: Origin) -> None:
        if found := set(names):
            self.names.update(found)
            self.rows += 1
            self.first = self.first or origin

    def line(self, what: str, meaning: str) -> Iterator[str]:
        if self.rows:
            named = ", ".join(f"`{name}`" for name, _ in self.names.most_common(3))
            yield f"{what}: {_rows(self.rows)} ({named}), first {self.first}; {meaning}"


@dataclass(slots=True)
class Notices:
    """Counts over the rows of one source."""

    source: str
    keys: Counter[str] = field(default_factory=Counter)
    markers: _Count = field(default_factory=_Count)
    rendered: _Count = field(default_factory=_Count)

    def add(self, row: Tracked, sample: Example) -> None:
        """Count a row that was read."""
        self.keys.update(set(row.unread()))
        if not sample.images:
            asked = (turn.text for turn in sample.turns if turn.role == "user")
            found = (one[0] for text in asked if "<" in text or "[" in text for one in MARKER.finditer(text))
            self.markers.add(found, sample.origin)
        self.rendered.add(_rendered(sample.content), sample.origin)

    def unused(self) -> tuple[str, ...]:
        """The keys that were not read, in one line; none where all were."""
        named = [f"`{key}` ({_rows(count)})" for key, count in self.keys.most_common(MOST_KEYS)]
        more = [f"and {len(self.keys) - MOST_KEYS:,} more"] if len(self.keys) > MOST_KEYS else []
        return (f"{self.source}: not used: {', '.join([*named, *more])}",) if named else ()

    def warnings(self) -> Iterator[str]:
        """What was found in texts, a line each."""
        yield from self.markers.line("markers without a picture", "they are read as text; does a column name pictures?")
        meaning = "they are read as text; give turns as turns, the chat template writes its marks itself"
        yield from self.rendered.line("marks of a chat template in texts", meaning)


def _rows(count: int) -> str:
    return f"{count:,} row{'' if count == 1 else 's'}"


def _rendered(turns: Sequence[Turn]) -> Iterator[str]:
    """Control tokens in the texts, and speakers that follow each other in one text."""
    for turn in turns:
        text = turn.text
        if "<" in text or "[" in text:
            yield from (found[0] for found in CONTROL.finditer(text))
        # Most texts have none of these, and finding that out by expression takes as long as reading the row.
        for user, assistant in SPEAKERS if any(mark in text for mark in MARKS) else ():
            asked = user.search(text)
            answer = assistant.search(text, asked.end()) if asked else None
            if asked and answer:
                yield f"{asked[0].strip()} … {answer[0].strip()}"
