"""``qlmm ask``: a fine-tuned model answers one question on stdout."""

from __future__ import annotations

from typing import Annotated

import typer

from qlmm.cli.arguments import Adapter, AsJson, Images, MaxNewTokens, Sample, Seed, adapter_folder
from qlmm.cli.output.console import out
from qlmm.core.errors import UsageError

__all__ = ["ask"]

EXAMPLE = 'Example: qlmm ask runs/owl_lora/adapter --image cat.png "What is this?"'


def ask(  # noqa: PLR0917  every parameter is an option of the command
    adapter: Adapter,
    question: Annotated[str, typer.Argument(metavar="QUESTION", help="What to ask, in quotes.")],
    image: Images = None,
    max_new_tokens: MaxNewTokens = 256,
    sample: Sample = False,
    seed: Seed = 0,
    as_json: AsJson = False,
) -> None:
    """Ask a fine-tuned model one question."""
    if not question.strip():
        raise UsageError.one("U010", "the question is empty", help='ask something: qlmm ask ADAPTER "What is this?"')
    from qlmm.cli.conversation import Conversation

    conversation = Conversation.begin(adapter_folder(adapter), image, max_new_tokens, sample, seed)
    reply = conversation.answer(question, quiet=as_json)
    if as_json:
        out.json({"question": question, "answer": reply})
