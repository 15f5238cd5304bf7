"""Chat templates: TRL's copies of real ones where it ships them, short ones in the manner of the family elsewhere.

Usage: ``template = shipped("qwen2_5_vl")``
"""

from __future__ import annotations

from pathlib import Path
from string import Template
from typing import Final

import trl

SHIPPED: Final = Path(trl.__file__).parent / "chat_templates"

_TURNS: Final = Template(
    "{{ '$begin' }}{% for message in messages %}{{ '$before' }}"
    "{% if message['content'] is string %}{{ message['content'] }}{% else %}"
    "{% for part in message['content'] %}{% if part['type'] == 'image' %}{{ '$picture' }}"
    "{% elif part['type'] == 'text' %}{{ part['text'] }}{% endif %}{% endfor %}{% endif %}"
    "{{ '$after' }}{% endfor %}{% if add_generation_prompt %}{{ '$answer' }}{% endif %}"
)


def shipped(name: str) -> str:
    """The text of a template that TRL ships."""
    return (SHIPPED / f"{name}.jinja").read_text(encoding="utf-8")


def turns(*, before: str, after: str, picture: str, answer: str, begin: str = "") -> str:
    """A template whose turns all look alike, without marks around what the model says.

    Args:
        before: what opens a turn; ``{role}`` stands for the role.
        after: what closes it; the same.
        picture: what stands for a picture.
        answer: what asks for the model's turn.
        begin: what opens the conversation.
    """
    opening, closing = (text.replace("{role}", "' + message['role'] + '") for text in (before, after))
    return _TURNS.substitute(begin=begin, before=opening, picture=picture, after=closing, answer=answer)


def chatml(picture: str) -> str:
    """The turns of Qwen and of all that are built on it."""
    return turns(
        before="<|im_start|>{role}\\n", after="<|im_end|>\\n", picture=picture, answer="<|im_start|>assistant\\n"
    )
