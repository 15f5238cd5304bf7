"""The bad inputs that users meet: how each comes about, and what they must be told.

Usage: ``case = CASES["no answer"]; case.spoil(folder)``, then run ``qlmm`` with ``case.words`` and ``case.overrides``
"""

from __future__ import annotations

import io
import json
import random
import struct
import zlib
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from PIL import Image
from safetensors.torch import save_file

RECIPE = """\
version: 1
base:
  model: llava
  quantize: none
adapter:
  r: 4
data:
  sources:
    - path: rows.jsonl
  max_length: 200
training:
  steps: 2
output:
  dir: run
evaluation:
  rows: 2
"""
ASSEMBLED = "base={vision: clip, language: llama, connector: {kind: mlp}, chat_template: vicuna, quantize: none}"
ROWS = 12
PROJECTOR = "base_model.model.model.multi_modal_projector"
QUERY = "base_model.model.model.language_model.layers.0.self_attn.q_proj"


def row(
    question: str = "what is this ?", answer: str | None = "red", images: list[str] | None = None
) -> dict[str, Any]:
    """A row in the ``messages`` format."""
    said = [{"role": "user", "content": question}]
    said += [{"role": "assistant", "content": answer}] if answer is not None else []
    return {"messages": said, "images": ["1.png"] if images is None else images}


Spoil = Callable[[Path], object]


def line(content: dict[str, Any] | str) -> Spoil:
    """Makes line 3 of the rows something else."""

    def spoil(folder: Path) -> None:
        rows = (folder / "rows.jsonl").read_text().splitlines()
        rows[2] = content if isinstance(content, str) else json.dumps(content)
        (folder / "rows.jsonl").write_text("\n".join(rows))

    return spoil


def picture(data: bytes) -> Spoil:
    """Makes picture 2, which row 3 shows, something else."""
    return lambda folder: (folder / "2.png").write_bytes(data)


def recipe(old: str, new: str) -> Spoil:
    """Changes the recipe file."""
    return lambda folder: (folder / "my.yaml").write_text(RECIPE.replace(old, new))


def file(name: str, content: str | bytes = "") -> Spoil:
    """Puts a file somewhere."""

    def spoil(folder: Path) -> None:
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_bytes(content if isinstance(content, bytes) else content.encode())

    return spoil


def weights(name: str, shape: tuple[int, ...]) -> Spoil:
    """An adapter of one tensor, in the folder ``stage1``."""

    def spoil(folder: Path) -> None:
        (folder / "stage1").mkdir()
        save_file({name: torch.zeros(shape)}, folder / "stage1" / "adapter_model.safetensors")

    return spoil


def plain(width: int, height: int) -> bytes:
    """A whole PNG."""
    stream = io.BytesIO()
    Image.new("RGB", (width, height)).save(stream, "PNG")
    return stream.getvalue()


def bomb(width: int, height: int) -> bytes:
    """A PNG of a hundred bytes that promises many pixels."""
    header = struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    chunks = [(b"IHDR", header), (b"IDAT", zlib.compress(b"")), (b"IEND", b"")]
    return b"\x89PNG\r\n\x1a\n" + b"".join(
        struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data)) for kind, data in chunks
    )


def cut(share: float) -> bytes:
    """The first part of a JPEG."""
    stream = io.BytesIO()
    Image.frombytes("RGB", (64, 64), random.Random(0).randbytes(64 * 64 * 3)).save(stream, "JPEG")
    return stream.getvalue()[: int(len(stream.getvalue()) * share)]


def scratched() -> bytes:
    """A PNG whose beginning and end are whole, and whose pixels are not."""
    data = bytearray(plain(64, 64))
    start = data.index(b"IDAT") + 4
    data[start + 8 : start + 24] = bytes(16)
    return bytes(data)


@dataclass(frozen=True)
class Case:
    """One thing that is wrong, and what the user must be told."""

    code: str
    says: tuple[str, ...]
    helps: str = ""
    overrides: tuple[str, ...] = ()
    spoil: Spoil = field(default=lambda folder: None)
    words: tuple[str, ...] = ("finetune", "my.yaml")


CASES = {
    # The recipe.
    "unknown key": Case("R012", ("unknown key `depth`", "my.yaml:6:3", "6 |   depth: 4"), "keys: variant, language",
                        spoil=recipe("r: 4", "depth: 4")),
    "misspelt key": Case("R012", ("unknown key `stpes`", "command line:1"), "did you mean `steps`?",
                         ("training.stpes=3",)),
    "another trainer's key": Case("R012", ("unknown key `rank`", "my.yaml:6:3"), "did you mean `r`?",
                                  spoil=recipe("r: 4", "rank: 4")),
    "wrong type": Case("R013", ("`training.steps` should be a whole number", "my.yaml:12:10", "this is text"),
                       "write the number without quotes", spoil=recipe("steps: 2", "steps: '2'")),
    "wrong choice": Case("R013", ("`base.quantize` should be none, int8, nf4 or fp4",), "did you mean `nf4`?",
                         ("base.quantize=nf5",)),
    "missing recipe": Case("R001", ("no recipe `owl_lroa`",), "did you mean `owl_lora`?",
                           words=("finetune", "owl_lroa")),
    "access key in the recipe": Case("R020", ("looks like a Hugging Face token",), "revoke it",
                                     (f"training.extra={{hub_token: hf_{'aB3dE5gH7j' * 3}}}",)),
    # Files that are not there.
    "missing rows": Case("D002", ("no such file or folder: rowz.jsonl",), ". has rows.jsonl",
                         ("data.sources.0.path=rowz.jsonl",)),
    "missing held-out rows": Case("D002", ("no such file or folder: aside.jsonl",), ". has rows.jsonl",
                                  ("evaluation.sources=[{path: aside.jsonl}]",)),
    "held-out rows that are trained on": Case("D047", ("all 12 rows of evaluation.sources are in data.sources too",),
                                              "set aside", ("evaluation.sources=[{path: rows.jsonl}]",)),
    "missing picture": Case("D005", ("1 of 12 rows name pictures that are not in", "2.png"), "`image_root`",
                            spoil=lambda folder: (folder / "2.png").unlink()),
    "wrong picture folder": Case("D005", ("12 of 12 rows name pictures that are not in", "0.png, 1.png"),
                                 "is `image_root` the folder", ("data.sources.0.image_root=photos",)),
    "missing base": Case("M003", ("base.model: no/such is neither a model folder here",), "check the spelling",
                         ("base.model=no/such",)),
    "base folder without a model": Case("M003", ("base.vision", "`model_type`"), "choose another model",
                                        (ASSEMBLED.replace("clip", "empty"),), file("empty/notes.txt")),
    # Pictures.
    "picture that is none": Case("D001", ("picture 2.png: not a picture", "rows.jsonl:3"), "replace or remove",
                                 spoil=picture(b"<!doctype html><title>404</title>")),
    "empty picture": Case("D001", ("picture 2.png: the file is empty", "rows.jsonl:3"), "replace or remove",
                          spoil=picture(b"")),
    "oversized picture": Case("D001", ("picture 2.png: 8000 × 7000 is more than the 50,000,000 pixels", "rows.jsonl:3"),
                              "replace or remove", spoil=picture(bomb(8_000, 7_000))),
    "picture that would fill the memory": Case("D001", ("picture 2.png: more than 178 million pixels",),
                                               "replace or remove", spoil=picture(bomb(60_000, 60_000))),
    "picture path out of its folder": Case("D001", ("`../../etc/passwd` contains `..`", "rows.jsonl:3"), "`image_root`",
                                           spoil=line(row(images=["../../etc/passwd"]))),
    # Rows.
    "broken line": Case("D001", ("broken JSON: Expecting", "rows.jsonl:3:"), "one JSON object per line",
                        spoil=line('{"messages": [{"role": "user", "content": "hi"')),
    "more markers than pictures": Case("D001", ("2 <image> markers for 1 pictures", "rows.jsonl:3"), "a correct row:",
                                       spoil=line(row("<image> <image> what ?"))),
    "no answer": Case("D001", ("no answer", "rows.jsonl:3"), "a correct row:", spoil=line(row(answer=None))),
    "empty answer": Case("D001", ("empty answer", "rows.jsonl:3"), "a correct row:", spoil=line(row(answer="  "))),
    "no rows": Case("D007", ("nothing to learn from in rows.jsonl",), "is it the right file?",
                    spoil=file("rows.jsonl")),
    "rows of no known shape": Case("D004", ("their keys are `q`, `a`",), "llava: conversations",
                                   spoil=file("rows.jsonl", '{"q": "a", "a": "b"}\n')),
    "rows that are all too long": Case("D040", ("no row is left", "visual", "> 9"), "raise data.max_length",
                                       ("data.max_length=9",)),
    "text rows that are not there": Case("D008", ("data.text_ratio: it is 0.5, but there are no text-only rows",),
                                         "leave text_ratio out", ("data.text_ratio=0.5",)),
    "unknown format": Case("N001", ("no format is called `lava`",), "did you mean `llava`?",
                           ("data.sources.0.format=lava",)),
    # The model and what is trained.
    "unknown connector": Case("N001", ("no connector is called `mpl`",), "did you mean `mlp`?",
                              (ASSEMBLED.replace("mlp", "mpl"),)),
    "wrong connector setting": Case("M101", ("base.connector: unknown key `quries`",), "did you mean `queries`?",
                                    (ASSEMBLED.replace("kind: mlp", "kind: abstractor, quries: 4"),)),
    "target that matches nothing": Case("M030", ("`q_porj` matches no linear layer", "command line:1:17"), "q_proj",
                                        ("adapter.targets=[q_porj]",)),
    "no chat template": Case("M041", ("base.chat_template: speechless has no chat template of its own",),
                             "chatml, owl, paligemma, plain, vicuna", ("base.model=speechless",)),
    "no chat template, assembled": Case("M041", ("llama has no chat template",), "set base.chat_template",
                                        (ASSEMBLED.replace("chat_template: vicuna, ", ""),)),
    "unknown chat template": Case("M040", ("no template `vicunna`",), "did you mean `vicuna`?",
                                  ("base.chat_template=vicunna",)),
    "vision and language swapped": Case("M110", ("base.vision: llama is a language model",), "swapped?",
                                        ("base.vision=llama", "base.language=clip", "base.model=null",
                                         "base.connector={kind: mlp}")),
    "a tower as language model": Case("M120", ("base.language: clip is not a causal language model",), "swapped?",
                                      (ASSEMBLED.replace("language: llama", "language: clip"),)),
    "text-only base": Case("M010", ("base.model: llama is not a vision-language model",), "base.language",
                           ("base.model=llama",)),
    "hidden state that is not there": Case("M113", ("base.vision_layer: the tower has no hidden state 9",), "-1 to",
                                           (ASSEMBLED.replace("quantize", "vision_layer: 9, quantize"),)),
    "decomposition of 4-bit weights": Case("M032", ("adapter.variant: pissa",), "set base.quantize=none",
                                           ("adapter.variant=pissa", "base.quantize=nf4")),
    "start from nothing": Case("M050", ("adapter.start_from: runs/stage1/adapter has no",), "adapter folder",
                               ("adapter.start_from=runs/stage1/adapter",)),
    "start from another base": Case("M051", ("trained on another base", "resampler"), "this recipe's base",
                                    ("adapter.start_from=stage1",),
                                    weights("base_model.model.model.resampler.weight", (1,))),
    # The machine and the run.
    "setting TRL does not know": Case("T001", ("`adam_beta3` is not a field of TRL's SFTConfig",),
                                      "did you mean `adam_beta2`?", ("training.extra={adam_beta3: 0.9}",)),
    "setting that is qlmm's": Case("T001", ("`max_steps` is set by qlmm itself",), "own key",
                                   ("training.extra={max_steps: 9}",)),
    "half precision without a GPU": Case("M002", ("training.precision: fp16 needs a GPU",), "use auto, fp32",
                                         ("training.precision=fp16", "training.device=cpu")),
    "output directory that is not ours": Case("O001", ("output.dir: run is not ours", "no run.json"),
                                              "nothing there was touched", spoil=file("run/thesis.tex", "x")),
    "output directory with a damaged record": Case("O001", ("output.dir: run is not ours", "cannot be read"),
                                                   "nothing there was touched", spoil=file("run/run.json", "{")),
    "output directory that is a file": Case("O001", ("output.dir: run is not a directory",), "another output.dir",
                                            spoil=file("run", "x")),
    "no adapter to ask": Case("A001", ("there is no folder runs/a/adapter",), "name an adapter folder",
                              words=("ask", "runs/a/adapter", "What is this?")),
    "damaged adapter to ask": Case("A002", ("x/qlmm.json is damaged: base",), "fetch the adapter again",
                                   spoil=file("x/qlmm.json", "{}"), words=("ask", "x", "What is this?")),
    "cut picture": Case("D001", ("picture 2.png: cannot be decoded", "rows.jsonl:3"), "replace or remove",
                        spoil=picture(cut(0.7))),
    "damaged held-out picture": Case("D020", ("held-out picture 99.png: cannot be decoded", "aside.jsonl:1"),
                                     "replace or remove", ("evaluation.sources=[{path: aside.jsonl}]",),
                                     lambda folder: [file("99.png", scratched())(folder), file("aside.jsonl", "\n".join(
                                         json.dumps(row(images=[name])) for name in ("99.png", "1.png")))(folder)]),
    "setting of another kind": Case("T001", ("`adam_beta2` should be a valid number",), "SFTConfig documents it",
                                    ("training.extra={adam_beta2: high}",)),
    "setting that would publish the run": Case("T001", ("`push_to_hub` cannot be passed on",), "leave it out",
                                               ("training.extra={push_to_hub: true}",)),
    "setting that would break resuming": Case("T001", ("`save_only_model` cannot be passed on",), "leave it out",
                                              ("training.extra={save_only_model: true}",)),
    "start from damaged weights": Case("M050", ("adapter_model.safetensors is damaged",), "fetch the adapter again",
                                       ("adapter.start_from=x",), file("x/adapter_model.safetensors", "abc")),
    "start from a part of another shape": Case("M052", ("does not fit this recipe", "linear_1.bias is missing"),
                                               "use the base of that adapter", ("adapter.start_from=stage1",),
                                               weights(f"{PROJECTOR}.linear_1.weight", (64, 32))),
    "start from another rank": Case("M052", ("does not fit this recipe", "rank 16, not 4"), "its adapter.r",
                                    ("adapter.start_from=stage1",), weights(f"{QUERY}.lora_A.weight", (16, 64))),
    "base with a damaged configuration": Case("M003", ("base.language", "cannot read broken"), "another model",
                                              (ASSEMBLED.replace("language: llama", "language: broken"),),
                                              file("broken/config.json", "{")),
    "tracker that is not installed": Case("T003", ("output.trackers: mlflow is not installed",), "pip install mlflow",
                                          ("output.trackers=[mlflow]",)),
    "output directory below a file": Case("O004", ("rows.jsonl/run cannot be made", "is not a directory"),
                                          "another output.dir", ("output.dir=rows.jsonl/run",)),
    "output directory with an endless name": Case("O001", ("cannot be used: File name too long",),
                                                  "another output.dir", (f"output.dir={'x' * 300}",)),
    "no picture for the connector to learn from": Case("D041", ("no row has a picture", "adapter.connector"),
                                                       "adapter.connector=frozen",
                                                       spoil=file("rows.jsonl", "\n".join(
                                                           json.dumps(row(images=[])) for _ in range(ROWS)))),
}  # fmt: skip
