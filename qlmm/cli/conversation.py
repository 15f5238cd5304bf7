"""A conversation with a loaded adapter in the terminal: turns, pictures, and answers word by word.

Answers go to stdout and all else to stderr, so that ``qlmm ask … > answer.txt`` keeps the answer alone.

Usage: ``Conversation(load_adapter(folder)).answer("What is this?")``
"""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING

from qlmm.artifacts.adapter.manifest import read_manifest
from qlmm.cli.output.console import out
from qlmm.data.media import images
from qlmm.data.sample import ImageRef, Origin, Part, Sample, Turn

if TYPE_CHECKING:
    from qlmm.artifacts.adapter.load import LoadedAdapter

__all__ = ["Conversation", "check_adapter", "load_adapter", "picture"]


def check_adapter(adapter: Path) -> None:
    """Refuse a folder that is not an adapter in a moment, before the libraries that load it are imported.

    Raises:
        QlmmError: A001 for a folder without a manifest, A002 for a damaged one.
    """
    read_manifest(adapter)


def load_adapter(adapter: Path) -> LoadedAdapter:
    """Load an adapter in the best precision of this machine.

    Answers need not be those of the run to the last bit, so the run's own precision is not asked for.
    """
    from qlmm.artifacts.adapter.load import load
    from qlmm.model.numerics.precision import choose

    out.talk(f"loading {adapter}")
    return load(adapter, precision=choose("auto", "auto"))


def picture(path: Path) -> ImageRef:
    """A picture that the user named, decoded once so that a damaged one is refused now."""
    ref = ImageRef(path=path.expanduser())
    images.decode(ref)
    return ref


@dataclass
class Conversation:
    """The turns so far, and the pictures that wait for the next message.

    Attributes:
        loaded: the model that answers.
        max_new_tokens: where an answer is cut.
        sample: draw tokens instead of taking the likeliest.
        seed: decides what is drawn.
    """

    loaded: LoadedAdapter
    max_new_tokens: int = 256
    sample: bool = False
    seed: int = 0
    turns: list[Turn] = field(default_factory=list)
    pictures: list[ImageRef] = field(default_factory=list)

    def answer(self, question: str) -> None:
        """Stream the answer to ``question``; the turn counts only once it has been answered."""
        import torch

        from qlmm.generation.answers import Streamer, answer

        loaded = self.loaded
        torch.manual_seed(self.seed + len(self.turns))
        # A terminal of another encoding hands over bytes as lone surrogates, which no tokenizer takes.
        text = question.encode("utf-8", "replace").decode("utf-8")
        parts: tuple[Part, ...] = (*self.pictures, text)
        asked = [*self.turns, Turn("user", parts)]
        sample = Sample(tuple(asked), Origin("conversation", len(asked)))
        streamer = Streamer(loaded.encoder.processor.tokenizer, out.stream)
        with loaded.precision.autocast():
            reply = answer(loaded.model, loaded.encoder, sample, self.max_new_tokens, streamer, draw=self.sample)
        out.stream("\n")
        self.turns = [*asked, Turn("assistant", (reply,))]
        self.pictures = []

    def show(self, path: Path) -> None:
        """Keep a picture for the next message."""
        self.pictures.append(picture(path))
        out.talk(f"{path.name} goes with your next message")

    def reset(self) -> None:
        """Forget turns and pictures."""
        self.turns, self.pictures = [], []
        out.talk("started over")
