"""A conversation with an adapter in the terminal: turns, pictures, and answers word by word.

Answers go to stdout and all else to stderr, so that ``qlmm ask … > answer.txt`` keeps the answer alone.

Usage: ``Conversation.begin(folder, ["cat.png"]).answer("What is this?")``
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING

from qlmm.artifacts.adapter.manifest import read_manifest
from qlmm.cli.output.console import out
from qlmm.data.media import images
from qlmm.data.sample import ImageRef, Origin, Part, Sample, Turn

if TYPE_CHECKING:
    from qlmm.artifacts.adapter.load import LoadedAdapter

__all__ = ["Conversation", "load_adapter"]


def load_adapter(adapter: Path) -> LoadedAdapter:
    """An adapter in the best precision of this machine; answers need not be those of the run to the last bit."""
    from qlmm.artifacts.adapter.load import load
    from qlmm.model.numerics.precision import choose

    out.note(f"loading {adapter}")
    return load(adapter, precision=choose("auto", "auto"))


def _picture(path: Path) -> ImageRef:
    """A picture that the user named, decoded once so that a damaged one is refused at once."""
    ref = ImageRef(path=path.expanduser())
    images.decode(ref)
    return ref


@dataclass
class Conversation:
    """The turns so far, and the pictures that wait for the next message; ``sample`` draws tokens at random."""

    loaded: LoadedAdapter
    pictures: list[ImageRef]
    max_new_tokens: int = 256
    sample: bool = False
    seed: int = 0
    turns: list[Turn] = field(default_factory=list)

    @classmethod
    def begin(
        cls,
        adapter: Path,
        shown: Iterable[Path] | None,
        max_new_tokens: int = 256,
        sample: bool = False,
        seed: int = 0,
    ) -> Conversation:
        """Load an adapter; what is not one (A001, A002) and damaged pictures are refused before torch is imported."""
        read_manifest(adapter)
        pictures = [_picture(path) for path in shown or ()]
        return cls(load_adapter(adapter), pictures, max_new_tokens, sample, seed)

    def answer(self, question: str, *, quiet: bool = False) -> str:
        """The answer to ``question``, streamed unless ``quiet``; the turn counts only once it has been answered."""
        import torch

        from qlmm.generation.answers import Streamer, answer

        loaded = self.loaded
        torch.manual_seed(self.seed + len(self.turns))
        # A terminal of another encoding gives bytes as lone surrogates, which no tokenizer takes.
        text = question.encode("utf-8", "replace").decode("utf-8")
        parts: tuple[Part, ...] = (*self.pictures, text)
        asked = [*self.turns, Turn("user", parts)]
        sample = Sample(tuple(asked), Origin("conversation", len(asked)))
        streamer = None if quiet else Streamer(loaded.encoder.processor.tokenizer, out.stream)
        with loaded.precision.autocast():
            reply = answer(loaded.model, loaded.encoder, sample, self.max_new_tokens, streamer, draw=self.sample)
        if not quiet:
            out.stream("\n")
        self.turns = [*asked, Turn("assistant", (reply,))]
        self.pictures = []
        return reply

    def show(self, path: Path) -> None:
        """Keep a picture for the next message."""
        self.pictures.append(_picture(path))
        out.note(f"{path.name} goes with your next message")

    def reset(self) -> None:
        """Forget turns and pictures."""
        self.turns, self.pictures = [], []
        out.note("started over")
