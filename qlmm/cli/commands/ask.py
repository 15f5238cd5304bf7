"""``qlmm ask`` and ``qlmm chat``: an adapter answers in the terminal, word by word.

Answers go to stdout, everything else to stderr, so that ``qlmm ask … > answer.txt`` holds the answer and nothing more.

Usage: ``ask(Path("runs/owl_lora/adapter"), "What is this?", [Path("cat.png")])``
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING

from qlmm.cli.output.console import out
from qlmm.core.errors import QlmmError, UsageError
from qlmm.data.media import images
from qlmm.data.sample import ImageRef, Origin, Part, Sample, Turn

if TYPE_CHECKING:
    from qlmm.artifacts.adapter.load import LoadedAdapter

__all__ = ["Settings", "ask", "chat"]

COMMANDS = "/image PATH shows a picture with your next message, /reset starts over, /quit leaves"


@dataclass(frozen=True, slots=True)
class Settings:
    """How answers are made.

    Attributes:
        max_new_tokens: where an answer is cut.
        sample: draw words instead of taking the likeliest.
        seed: decides what is drawn.
    """

    max_new_tokens: int = 256
    sample: bool = False
    seed: int = 0


def ask(adapter: Path, question: str, image: Sequence[Path] = (), *, settings: Settings | None = None) -> None:
    """Print one answer to one question about any number of pictures.

    Raises:
        QlmmError: when the adapter, a picture or the question is not there; before the model is loaded.
    """
    if not question.strip():
        raise UsageError.one("U010", "the question is empty", help='ask something: qlmm ask ADAPTER "What is this?"')
    _check_adapter(adapter)
    talk = _Talk(settings or Settings(), pictures=[_picture(path) for path in image])
    talk.answer(_load(adapter), question)


def chat(adapter: Path, image: Sequence[Path] = (), *, settings: Settings | None = None) -> None:
    """Talk over several turns; a terminal has a prompt and commands, anything else is read line by line.

    Raises:
        QlmmError: when the adapter or a picture is not there; before the model is loaded. Later mistakes are told and
            the talk goes on, unless nobody sits there to correct them.
    """
    _check_adapter(adapter)
    talk = _Talk(settings or Settings(), pictures=[_picture(path) for path in image])
    loaded = _load(adapter)
    if out.answerable:
        out.talk(COMMANDS)
    while (line := out.read("you> ")) is not None and line.strip() != "/quit":
        try:
            _react(talk, loaded, line.strip())
        except QlmmError as error:
            if not out.answerable:
                raise
            out.error(error)


@dataclass
class _Talk:
    """A conversation so far, and the pictures that wait for the next message."""

    settings: Settings
    turns: list[Turn] = field(default_factory=list)
    pictures: list[ImageRef] = field(default_factory=list)

    def answer(self, loaded: LoadedAdapter, question: str) -> None:
        """Stream the answer to ``question``; the turn counts only once it has been answered."""
        import torch

        from qlmm.generation.answers import Streamer, answer

        torch.manual_seed(self.settings.seed + len(self.turns))
        # A terminal of another encoding hands over bytes as lone surrogates, which no tokenizer takes.
        text = question.encode("utf-8", "replace").decode("utf-8")
        parts: tuple[Part, ...] = (*self.pictures, text)
        asked = [*self.turns, Turn("user", parts)]
        sample = Sample(tuple(asked), Origin("conversation", len(asked)))
        streamer = Streamer(loaded.encoder.processor.tokenizer, out.stream)
        with loaded.precision.autocast():
            reply = answer(
                loaded.model,
                loaded.encoder,
                sample,
                self.settings.max_new_tokens,
                streamer,
                draw=self.settings.sample,
            )
        out.stream("\n")
        self.turns = [*asked, Turn("assistant", (reply,))]
        self.pictures = []

    def show(self, path: Path) -> None:
        """Keep a picture for the next message."""
        self.pictures.append(_picture(path))
        out.talk(f"{path.name} goes with your next message")

    def reset(self) -> None:
        """Forget everything."""
        self.turns, self.pictures = [], []
        out.talk("started over")


def _react(talk: _Talk, loaded: LoadedAdapter, line: str) -> None:
    command, _, rest = line.partition(" ")
    commands: dict[str, Callable[[], None]] = {
        "/image": lambda: talk.show(Path(rest.strip())),
        "/reset": talk.reset,
    }
    if command in commands:
        commands[command]()
    elif command.startswith("/"):
        raise UsageError.one("U011", f"unknown command `{command}`", help=COMMANDS)
    elif line:
        talk.answer(loaded, line)


def _check_adapter(adapter: Path) -> None:
    """Refuse what is no adapter in a moment, before the libraries that load it are imported."""
    from qlmm.artifacts.adapter.manifest import read_manifest

    read_manifest(adapter)


def _picture(path: Path) -> ImageRef:
    """A picture the user named, decoded once so that a damaged one is refused now."""
    ref = ImageRef(path=path.expanduser())
    images.decode(ref)
    return ref


def _load(adapter: Path) -> LoadedAdapter:
    from qlmm.cli.output.library_noise import quiet

    quiet()
    from qlmm.artifacts.adapter.load import load
    from qlmm.model.numerics.precision import choose

    out.talk(f"loading {adapter}")
    # The best this machine has: answers need not be those of the run to the last bit.
    return load(adapter, precision=choose("auto", "auto"))
