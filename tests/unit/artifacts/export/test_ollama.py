"""A Modelfile's TEMPLATE says what the chat template says, or there is none."""

from __future__ import annotations

from typing import Any

import pytest

from qlmm.artifacts.export.targets.ollama import Frame, frame, go_template
from tests.tiny import tiny_processor

TALK = [
    {"role": "system", "content": "Be brief."},
    {"role": "user", "content": "Hi"},
    {"role": "assistant", "content": "Ho"},
    {"role": "user", "content": "And?"},
    {"role": "assistant", "content": "So."},
    {"role": "user", "content": "Well?"},
]
DEFAULT = (
    "{% if messages[0]['role'] != 'system' %}SYSTEM You help.\n{% endif %}"
    "{% for m in messages %}{{ m['role'] | upper }} {{ m['content'] }}\n{% endfor %}"
    "{% if add_generation_prompt %}ASSISTANT {% endif %}"
)
ODD = (
    "{% for m in messages %}{{ loop.index }}:{{ m['content'] }}\n{% endfor %}"
    "{% if add_generation_prompt %}A {% endif %}"
)


def expected(processor: Any, messages: list[dict[str, str]], *, parts: bool) -> str:
    given = [
        {"role": one["role"], "content": [{"type": "text", "text": one["content"]}] if parts else one["content"]}
        for one in messages
    ]
    text: str = processor.apply_chat_template(given, tokenize=False, add_generation_prompt=True)
    return text


def rendered(shape: Frame, messages: list[dict[str, str]]) -> str:
    """What the Go template gives for messages."""
    turns = (f"{shape.before[one['role']]}{one['content']}{shape.after[one['role']]}" for one in messages)
    default = shape.default if messages[0]["role"] != "system" else ""
    return shape.begin + default + "".join(turns)


@pytest.mark.parametrize("name", ["vicuna", "chatml", "owl"])
@pytest.mark.parametrize("start", [0, 1])
def test_packaged_templates_become_go_templates(name: str, start: int) -> None:
    processor = tiny_processor(name)
    shape = frame(processor)
    assert shape is not None
    assert rendered(shape, TALK[start:]) == expected(processor, TALK[start:], parts=True)
    assert go_template(shape).count("{{ .Content }}") == 3


@pytest.mark.parametrize("start", [0, 1])
def test_a_default_system_prompt_is_kept(start: int) -> None:
    processor = tiny_processor()
    processor.chat_template = DEFAULT
    shape = frame(processor)
    assert shape is not None
    assert rendered(shape, TALK[start:]) == expected(processor, TALK[start:], parts=False)
    assert '{{ if ne (index .Messages 0).Role "system" }}SYSTEM You help.\n{{ end }}' in go_template(shape)


@pytest.mark.parametrize("template", [ODD, "{{ raise_exception('no') }}", "always the same"])
def test_a_template_that_depends_on_the_turn_has_no_go_template(template: str) -> None:
    processor = tiny_processor()
    processor.chat_template = template
    assert frame(processor) is None
