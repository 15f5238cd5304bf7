"""A finished run without a run: an adapter folder with invented facts, a record, a logbook; and a zoo to add it to.

Usage: ``zoo = Zoo.make(tmp_path, monkeypatch); zoo.add(finished_run(tmp_path))``
"""

from __future__ import annotations

import json
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file

from qlmm.artifacts.adapter import file_hashes
from qlmm.artifacts.card import card
from qlmm.artifacts.manifest import Manifest, write_manifest
from qlmm.artifacts.zoo_add import Request, add
from qlmm.core.events import Event, Finished
from qlmm.training.facts import Proof, to_json
from qlmm.training.logbook import Logbook
from tests.run_facts import PLAN, PROOF
from tests.unit.artifacts.adapters import manifest

TOKENIZER = json.dumps({"vocab": {f"word {number}": number for number in range(20_000)}})
COMMIT = "0123456789abcdef" * 2 + "01234567"


def finished_run(
    parent: Path,
    *,
    proof: Proof = PROOF,
    weights: int = 1000,
    probe: str = "{}",
    events: tuple[Event, ...] = (Finished(2, 90.0),),
    **changes: Any,
) -> Path:
    """The directory of a run that ended well, unless the changes say otherwise."""
    adapter = parent / "run" / "adapter"
    (adapter / "held-out").mkdir(parents=True)
    save_file({"lora_A": torch.arange(float(weights))}, adapter / "adapter_model.safetensors")
    (adapter / "adapter_config.json").write_text('{"peft_type": "LORA"}')
    (adapter / "probe.json").write_text(probe)
    (adapter / "tokenizer.json").write_text(TOKENIZER)
    (adapter / "tokenizer_config.json").write_text('{"local_files_only": false}')
    (adapter / "held-out" / "1.png").write_bytes(b"no picture")
    made = manifest(files=file_hashes(adapter), proof=to_json(proof), **changes)
    write_manifest(adapter, made)
    (adapter / "README.md").write_text(card(made, proof), "utf-8")
    (parent / "run" / "run.json").write_text(json.dumps({"status": "finished", "plan": to_json(PLAN)}))
    with Logbook(parent / "run" / "metrics.jsonl", start=0) as logbook:
        for event in events:
            logbook(event)
    return parent / "run"


@dataclass
class Zoo:
    """An empty zoo, a home of its own, and a base whose processor writes what it is told to."""

    folder: Path
    home: Path
    written: dict[str, str] = field(
        default_factory=lambda: {"tokenizer.json": TOKENIZER, "tokenizer_config.json": '{"local_files_only": true}'}
    )

    @classmethod
    def make(cls, parent: Path, monkeypatch: pytest.MonkeyPatch) -> Zoo:
        """Put the zoo in place of the shipped one."""
        zoo = cls(parent / "zoo", parent / "home")
        zoo.folder.mkdir()
        monkeypatch.setenv("QLMM_HOME", str(zoo.home))
        monkeypatch.setattr("qlmm.recipe.zoo.folder", lambda: zoo.folder)
        monkeypatch.setattr("qlmm.artifacts.zoo._write_processor", zoo.write)
        return zoo

    def write(self, _: Manifest, folder: Path) -> None:
        """Stand in for the base's processor."""
        for name, text in self.written.items():
            (folder / name).write_text(text)

    def add(self, run: Path, name: str = "mine", **changes: Any) -> Path:
        """Add a run's adapter."""
        facts = {"summary": "Knows colours", "licence": "Apache-2.0"} | changes
        return add(Request(str(run), name, **facts))

    def left(self) -> list[str]:
        """Everything in the zoo."""
        return sorted(path.name for path in self.folder.iterdir())
