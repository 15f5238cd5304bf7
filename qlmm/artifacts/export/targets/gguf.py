"""A language file and a vision file for llama.cpp, with the merged weights.

Usage: ``qlmm export ADAPTER --to gguf --out DIR``
"""

from __future__ import annotations

import shlex
import subprocess
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from jinja2 import TemplateError
from transformers import AutoModelForImageTextToText, ProcessorMixin

from qlmm.artifacts.export.export import Export, Job, Plan, Written
from qlmm.artifacts.export.llamacpp.file import Stored, compare, need_gguf
from qlmm.artifacts.export.llamacpp.language import Language, plan_language
from qlmm.artifacts.export.llamacpp.vision import Vision, plan_vision
from qlmm.artifacts.export.targets.hf import merge_of, merged, merging_drops
from qlmm.core.errors import ModelError, RunError, UsageError

__all__ = ["EXPORT", "LANGUAGE", "VISION", "text_template"]

LANGUAGE, VISION = "model.gguf", "mmproj.gguf"
MARK = "qlmm-asks-this"


@dataclass(frozen=True, slots=True)
class Files:
    """Both files, planned."""

    language: Language
    vision: Vision

    @property
    def drops(self) -> tuple[str, ...]:
        """What llama.cpp does otherwise."""
        return self.vision.drops


def text_template(processor: ProcessorMixin) -> str | None:
    """The chat template where it takes messages of plain text, which is what llama.cpp hands over; else None."""
    template = processor.chat_template
    if not isinstance(template, str):
        return None
    try:
        shown = processor.tokenizer.apply_chat_template(
            [{"role": "user", "content": MARK}], chat_template=template, tokenize=False, add_generation_prompt=True
        )
    except (TemplateError, TypeError):
        return None
    return template if MARK in shown else None


def plan(job: Job) -> Plan:
    """Names for every weight and for the tokenizer, or llama.cpp's own converter for what is not known.

    Raises:
        UsageError: E020 without the package gguf, E024 for a converter that is not there.
        ModelError: E030 to E033 for what is not known.
    """
    need_gguf()
    converter = job.wishes.converter
    if converter is not None and not converter.is_file():
        raise UsageError.one("E024", f"--converter: there is no file {converter}")
    quantised = () if job.wishes.outtype == "f32" else (f"weights are rounded to {job.wishes.outtype}",)
    drops: tuple[str, ...] = (*merging_drops(job), *quantised)
    known = _files(job)
    if known is None:
        drops += ("llama.cpp's own converter writes the files; their weights are not compared with the merged ones",)
    else:
        drops += known.drops
        if known.language.template is None:
            drops += (
                "the chat template takes messages as lists of parts, which llama.cpp does not hand over: it is left "
                "out, so give llama.cpp one with --chat-template",
            )
    # The merged model lies beside while its weights are written anew.
    return Plan(drops, merge_of(job).size + _written_size(job, known))


def _written_size(job: Job, known: Files | None) -> int:
    """Bytes of both files; of those that a converter writes, those of their weights if none is kept more exactly."""
    model = job.shape.model
    if known is not None:
        return sum(one.size for one in [*known.language.tensors(model), *known.vision.tensors(model)])
    values: int = sum(weight.numel() for weight in model.state_dict().values())
    return values * (4 if job.wishes.outtype == "f32" else 2)


def _files(job: Job) -> Files | None:
    """Both files, or None where they are not known and a converter is there to write them."""
    processor = job.base.saved_processor(job.folder)
    try:
        language = plan_language(job.shape.model, job.folder, job.wishes.outtype, text_template(processor))
        return Files(language, plan_vision(job.shape.model, processor, language.outtype))
    except ModelError:
        if job.wishes.converter is None:
            raise
        return None


def write(job: Job, made: Path, way: Path) -> Written:
    """Merge, write both files, read them back, compare."""
    (way / "merged").mkdir()
    merged(job, way / "merged")
    files = _files(job)
    if files is None:
        proof = tuple(_converted(job, way / "merged", made / name) for name in (LANGUAGE, VISION))
    else:
        model = AutoModelForImageTextToText.from_pretrained(
            str(way / "merged"), dtype="auto", trust_remote_code=False
        ).eval()
        job.tell("writing the language file")
        spoken = files.language.write(made / LANGUAGE, model)
        job.tell("writing the vision file")
        seen = files.vision.write(made / VISION, model)
        job.tell("reading both back")
        proof = (_proof(made / LANGUAGE, spoken), _proof(made / VISION, seen))
    return Written(proof, _commands)


def _commands(place: str) -> tuple[str, ...]:
    files = f"-m {shlex.quote(f'{place}/{LANGUAGE}')} --mmproj {shlex.quote(f'{place}/{VISION}')}"
    return (f'llama-mtmd-cli {files} --image picture.png -p "What is this?"',)


def _proof(path: Path, tensors: Sequence[Stored]) -> str:
    found = compare(path, tensors)
    blocks = f", {found.rounded} of them in blocks of 8 bits" if found.rounded else ""
    return (
        f"{path.name} read back: {found.tensors} tensors are the merged weights{blocks}, apart by rounding alone "
        f"(at most {found.largest:.2g} of a tensor's largest value)"
    )


def _converted(job: Job, source: Path, place: Path) -> str:
    """One file by llama.cpp's converter.

    Raises:
        RunError: E025 when it fails.
    """
    import gguf

    command = [sys.executable, str(job.wishes.converter), str(source), "--outfile", str(place)]
    command += ["--outtype", job.wishes.outtype, *(["--mmproj"] if place.name == VISION else [])]
    job.tell(f"converting to {place.name}")
    done = subprocess.run(command, check=False, capture_output=True, text=True)
    if done.returncode != 0 or not place.is_file():
        reason = (done.stderr or done.stdout).strip().splitlines()[-1:] or ["no message"]
        raise RunError.one("E025", f"the converter could not write {place.name}: {reason[0]}")
    return f"{place.name} can be read: {len(gguf.GGUFReader(str(place)).tensors)} tensors"


EXPORT = Export("a language file and a vision file for llama.cpp", plan, write)
