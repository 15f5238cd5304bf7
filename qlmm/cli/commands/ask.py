"""``qlmm ask``: a fine-tuned model answers one question on stdout."""

from __future__ import annotations

from typing import Annotated

import typer

from qlmm.cli.arguments import Adapter, Images, MaxNewTokens, Sample, Seed
from qlmm.core.errors import UsageError

__all__ = ["ask"]

EXAMPLE = 'Example: qlmm ask runs/owl_lora/adapter --image cat.png "What is this?"'


def ask(
    adapter: Adapter,
    question: Annotated[str, typer.Argument(metavar="QUESTION", help="What to ask, in quotes.")],
    image: Images = None,
    max_new_tokens: MaxNewTokens = 256,
    sample: Sample = False,
    seed: Seed = 0,
) -> None:
    """Ask a fine-tuned model one question."""
    if not question.strip():
        raise UsageError.one("U010", "the question is empty", help='ask something: qlmm ask ADAPTER "What is this?"')
    from qlmm.cli.conversation import Conversation

    Conversation.begin(adapter, image, max_new_tokens, sample, seed).answer(question)
