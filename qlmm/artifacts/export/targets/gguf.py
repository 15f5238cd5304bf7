"""A language file and a vision file for llama.cpp, with the merged weights.

Usage: ``qlmm export ADAPTER --to gguf --out DIR``
"""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

from jinja2 import TemplateError
from transformers import AutoModelForImageTextToText, ProcessorMixin

from qlmm.artifacts.export.export import Export, Job, Plan, Written
from qlmm.artifacts.export.llamacpp.file import GgufFile, compare, need_gguf
from qlmm.artifacts.export.llamacpp.language import plan_language
from qlmm.artifacts.export.llamacpp.vision import plan_vision
from qlmm.artifacts.export.targets.hf import merge_of, merged, merging_drops
from qlmm.core.command_line import line
from qlmm.core.errors import ModelError, RunError, UsageError
from qlmm.data.encoding.guarded_template import guarded_template

__all__ = ["EXPORT", "LANGUAGE", "VISION"]

LANGUAGE, VISION = "model.gguf", "mmproj.gguf"
MARK = "qlmm-asks-this"


def plan(job: Job) -> Plan:
    """Find names for weights and tokenizer, or leave what is not known to llama.cpp's own converter.

    Raises:
        UsageError: E020 without the package gguf, E024 for a converter that is not there, E032 for an unknown outtype.
        ModelError: E030, E031 and E033 for what is not known.
    """
    need_gguf()
    converter, outtype, model = job.wishes.converter, job.wishes.outtype, job.base.shape.model
    if converter is not None and not converter.is_file():
        raise UsageError.one("E024", f"--converter: there is no file {converter}")
    drops = merging_drops(job)
    if outtype != "f32":
        drops += (f"weights are rounded to {outtype}",)
    files = _files(job)
    if files is None:
        drops += ("llama.cpp's own converter writes the files; their weights are not compared with the merged ones",)
        # A guess: the converter may keep some weights more exactly.
        size = sum(weight.numel() for weight in model.state_dict().values()) * (4 if outtype == "f32" else 2)
    else:
        drops += tuple(drop for file in files.values() for drop in file.drops)
        size = sum(one.size for file in files.values() for one in file.tensors(model))
    # The merged model lies beside while its weights are written anew.
    return Plan(drops, merge_of(job).size + size)


def _files(job: Job) -> dict[str, GgufFile] | None:
    """Both files by name, or None where they are not known and a converter is there to write them."""
    processor, model = job.base.saved_processor(job.folder), job.base.shape.model
    try:
        language = plan_language(model, job.folder, job.wishes.outtype, _text_template(processor))
        return {LANGUAGE: language, VISION: plan_vision(model, processor, language.outtype)}
    except ModelError:
        if job.wishes.converter is None:
            raise
        return None


def _text_template(processor: ProcessorMixin) -> str | None:
    """The chat template where it takes messages of plain text, which is what llama.cpp passes; else None."""
    template = processor.chat_template
    if not isinstance(template, str):
        return None
    try:
        with guarded_template():
            shown = processor.tokenizer.apply_chat_template(
                [{"role": "user", "content": MARK}], chat_template=template, tokenize=False, add_generation_prompt=True
            )
    except TemplateError:
        return None
    return template if MARK in shown else None


def write(job: Job, made: Path, way: Path) -> Written:
    """Merge, write both files, read them back, compare."""
    checkpoint = way / "merged"
    checkpoint.mkdir()
    merged(job, checkpoint)
    files = _files(job)
    if files is None:
        return Written(tuple(_converted(job, checkpoint, made / name) for name in (LANGUAGE, VISION)), _commands)
    model = AutoModelForImageTextToText.from_pretrained(str(checkpoint), dtype="auto", trust_remote_code=False).eval()
    proof = []
    for name, file in files.items():
        job.tell(f"writing {name}, and reading it back")
        tensors = file.write(made / name, model)
        largest, rounded = compare(made / name, tensors), sum(one.kind == "q8_0" for one in tensors)
        blocks = f", {rounded} of them in blocks of 8 bits" if rounded else ""
        proof.append(
            f"{name} read back: {len(tensors)} tensors are the merged weights{blocks}, apart by rounding alone "
            f"(at most {largest:.2g} of a tensor's largest value)"
        )
    return Written(tuple(proof), _commands)


def _commands(place: str) -> tuple[str, ...]:
    files = ("-m", f"{place}/{LANGUAGE}", "--mmproj", f"{place}/{VISION}")
    return (line("llama-mtmd-cli", *files, "--image", "picture.png", "-p", "What is this?"),)


def _converted(job: Job, source: Path, place: Path) -> str:
    """One file by llama.cpp's converter; E025 when it fails."""
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
