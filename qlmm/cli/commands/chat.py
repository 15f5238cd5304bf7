"""``qlmm chat``: a conversation with a fine-tuned model; without a terminal it is read line by line."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from qlmm.cli.arguments import Adapter, Images, MaxNewTokens, Sample, Seed, adapter_folder
from qlmm.cli.output.console import out
from qlmm.core.errors import QlmmError, UsageError

if TYPE_CHECKING:
    from qlmm.cli.conversation import Conversation

__all__ = ["chat"]

EXAMPLE = "Example: qlmm chat runs/owl_lora/adapter --image cat.png"
COMMANDS = "/image PATH shows a picture with your next message, /reset starts over, /quit leaves"


def chat(
    adapter: Adapter, image: Images = None, max_new_tokens: MaxNewTokens = 256, sample: Sample = False, seed: Seed = 0
) -> None:
    """Talk to a fine-tuned model."""
    from qlmm.cli.conversation import Conversation

    conversation = Conversation.begin(adapter_folder(adapter), image, max_new_tokens, sample, seed)
    if out.answerable:
        out.note(COMMANDS)
    while (line := out.read("you> ")) is not None and line.strip() != "/quit":
        try:
            _react(conversation, line.strip())
        except QlmmError as error:
            # A person can correct a mistake and go on; a script cannot.
            if not out.answerable:
                raise
            out.error(error)


def _react(conversation: Conversation, line: str) -> None:
    command, _, rest = line.partition(" ")
    if command == "/image":
        conversation.show(Path(rest.strip()))
    elif command == "/reset":
        conversation.reset()
    elif command.startswith("/"):
        raise UsageError.one("U011", f"unknown command `{command}`", help=COMMANDS)
    elif line:
        conversation.answer(line)
