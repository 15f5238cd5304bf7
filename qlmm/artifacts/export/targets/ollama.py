"""The files for llama.cpp, and a Modelfile from which Ollama makes a model of them.

Ollama's templates are written in Go. The chat template is rendered with marks in place of the messages. What stands
around the marks becomes the Go template, where that is the same in every turn.

Usage: ``qlmm export ADAPTER --to ollama --out DIR``
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from jinja2 import TemplateError
from transformers import ProcessorMixin

from qlmm.artifacts.export.export import Export, Job, Plan, Written
from qlmm.artifacts.export.targets.gguf import LANGUAGE, VISION
from qlmm.artifacts.export.targets.gguf import plan as plan_gguf
from qlmm.artifacts.export.targets.gguf import write as write_gguf
from qlmm.core.command_line import line
from qlmm.core.files import atomic_write
from qlmm.data.encoding.guarded_template import guarded_template

__all__ = ["EXPORT", "Frame", "frame", "go_template"]

MODELFILE = "Modelfile"
ROLES = ("system", "user", "assistant", "user")
MARKS = tuple(f"<<qlmm mark {number}>>" for number in range(len(ROLES)))


@dataclass(frozen=True, slots=True)
class Frame:
    """What a chat template puts before and after messages, by role.

    It begins without the token that the tokenizer puts there; the default follows where no system message comes first.
    """

    begin: str
    default: str
    before: Mapping[str, str]
    after: Mapping[str, str]


def frame(processor: ProcessorMixin) -> Frame | None:
    """What stands around messages, or None where that depends on the turn."""
    try:
        whole = _shown(processor, ROLES, asks=True)
        ended = _shown(processor, ROLES[:3], asks=False)
        bare = _shown(processor, ROLES[1:2], asks=True)
    except TemplateError:
        return None
    pieces = re.split(f"({'|'.join(MARKS)})", whole)
    if pieces[1::2] != list(MARKS):
        return None
    first, to_user, to_answer, to_next, rest = pieces[::2]
    end, opening = ended.partition(MARKS[2])[2], bare.partition(MARKS[0])[0]
    user = to_next.removeprefix(end)
    starts = to_next.startswith(end) and to_answer.startswith(rest)
    if not (starts and to_user.endswith(user) and opening.endswith(user)):
        return None
    opening = opening.removesuffix(user)
    begin = opening if first.startswith(opening) else ""
    return Frame(
        begin=begin,
        default=opening.removeprefix(begin),
        before={"system": first.removeprefix(begin), "user": user, "assistant": to_answer.removeprefix(rest)},
        after={"system": to_user.removesuffix(user), "user": rest, "assistant": end},
    )


def _shown(processor: ProcessorMixin, roles: Sequence[str], *, asks: bool) -> str:
    """A conversation of marks; templates of processors take lists of parts, those of tokenizers plain text."""
    plain = [{"role": role, "content": mark} for role, mark in zip(roles, MARKS, strict=False)]
    parts = [one | {"content": [{"type": "text", "text": one["content"]}]} for one in plain]
    with guarded_template():
        text: str = processor.apply_chat_template(parts, tokenize=False, add_generation_prompt=asks)
        if "'type'" in text:
            text = processor.apply_chat_template(plain, tokenize=False, add_generation_prompt=asks)
    tokenizer = processor.tokenizer
    ids = tokenizer("a")["input_ids"]
    # The tokenizer puts its first token there itself.
    adds_start = ids and ids[0] == tokenizer.bos_token_id
    return text.removeprefix(tokenizer.bos_token) if tokenizer.bos_token and adds_start else text


def go_template(shape: Frame) -> str:
    """The same as a template of Ollama."""
    turns = "".join(
        f'{{{{ {word} eq .Role "{role}" }}}}{shape.before[role]}{{{{ .Content }}}}{shape.after[role]}'
        for word, role in (("if", "system"), ("else if", "user"), ("else if", "assistant"))
    )
    default = f'{{{{ if ne (index .Messages 0).Role "system" }}}}{shape.default}{{{{ end }}}}' if shape.default else ""
    return f"{shape.begin}{default}{{{{ range .Messages }}}}{turns}{{{{ end }}}}{{{{ end }}}}"


def plan(job: Job) -> Plan:
    """As for llama.cpp, and the template."""
    files = plan_gguf(job)
    drops = tuple(one for one in files.drops if "--chat-template" not in one)
    if frame(job.base.saved_processor(job.folder)) is None:
        drops += (
            "the chat template puts different things around different turns, which no TEMPLATE can: the Modelfile "
            "has none, and Ollama takes the one in model.gguf or guesses",
        )
    else:
        drops += ("of the chat template only system, user and assistant turns are kept: no tools, no other variables",)
    return Plan(drops, files.size)


def write(job: Job, made: Path, way: Path) -> Written:
    """Write the files and the Modelfile."""
    files = write_gguf(job, made, way)
    processor = job.base.saved_processor(job.folder)
    lines = [f"FROM ./{LANGUAGE}", f"FROM ./{VISION}"]
    if (shape := frame(processor)) is not None:
        lines.append(f'TEMPLATE """{go_template(shape)}"""')
    if processor.tokenizer.eos_token:
        lines.append(f'PARAMETER stop "{processor.tokenizer.eos_token}"')
    atomic_write(made / MODELFILE, "\n".join(lines) + "\n")

    def commands(place: str) -> tuple[str, ...]:
        return line("ollama", "create", job.name, "-f", f"{place}/{MODELFILE}"), line("ollama", "run", job.name)

    return Written(files.proof, commands)


EXPORT = Export("files for llama.cpp with a Modelfile for Ollama", plan, write)
