"""An invented adapter for tests: its manifest, and a folder of small files that stand for its weights.

Usage: ``folder = adapter_folder(tmp_path); check_files(folder, read_manifest(folder))``
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file

from qlmm.artifacts.adapter.folder import file_hashes
from qlmm.artifacts.adapter.manifest import Manifest, versions, write_manifest
from qlmm.data.fingerprint import DataFingerprint, SourceCount
from qlmm.recipe.load import parse_recipe
from tests.run_facts import PROOF

NATIVE = "model: llava-hf/llava-1.5-7b-hf@0123abc"
ASSEMBLED = "vision: builtin:efficientnet-lite0\n  language: some/llama\n  connector: {kind: mlp}"
PARTS: dict[str, dict[str, Any]] = {
    "native": {"model": {"id": "llava-hf/llava-1.5-7b-hf@0123abc", "revision": "0123abc", "config_sha256": "aa"}},
    "assembled": {
        "vision": {"id": "builtin:efficientnet-lite0", "revision": None, "config_sha256": "bb"},
        "language": {"id": "some/llama", "revision": "4567def", "config_sha256": "cc"},
    },
}
RECIPE = """
version: 1
base:
  {base}
data: {{sources: [{{path: rows.jsonl}}]}}
output: {{dir: run}}
"""


def learned(*paths: str, kept: int) -> DataFingerprint:
    """What a manifest says about the rows of a run."""
    return DataFingerprint("f" * 64, tuple(SourceCount(path, "messages", 1.0, kept, kept, 0) for path in paths))


def manifest(kind: str = "native", **changes: Any) -> Manifest:
    """What a finished run would have written."""
    recipe = parse_recipe(RECIPE.format(base=NATIVE if kind == "native" else ASSEMBLED), "r.yaml").recipe
    facts: dict[str, Any] = {
        "base": {"kind": kind, "parts": PARTS[kind]},
        "recipe": recipe,
        "precision": "bf16",
        "seed": 3,
        "frozen_sha256": "0" * 64,
        "data": learned("rows.jsonl", kept=1234),
        "steps": 260,
        "proof": PROOF,
        "versions": versions(),
        "files": {},
    }
    return Manifest(**(facts | changes))


def adapter_folder(parent: Path) -> Path:
    """A folder with the files that every adapter has, and its manifest."""
    folder = parent / "adapter"
    folder.mkdir()
    for name in ("adapter_config.json", "chat_template.jinja"):
        (folder / name).write_text(json.dumps({"revision": None}) if name.endswith("json") else name, "utf-8")
    save_file({"lora_A": torch.zeros(2)}, folder / "adapter_model.safetensors")
    write_manifest(folder, manifest(files=file_hashes(folder)))
    return folder
