"""A finished run without a run: an adapter folder with invented facts, a record, a logbook; and a zoo to add it to.

Usage: ``zoo = Zoo.make(tmp_path, monkeypatch); zoo.add(finished_run(tmp_path))``
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file

from maintenance.zoo_entry import Request, add
from qlmm.artifacts.adapter.folder import file_hashes
from qlmm.artifacts.adapter.manifest import write_manifest
from qlmm.artifacts.cards.adapter_card import card
from qlmm.core.events import Event, Finished
from qlmm.model.loading.chat_template import chat_template
from qlmm.proof.records import Proof
from qlmm.recipe.load import parse_recipe
from qlmm.recipe.schema import BaseSection, Recipe
from qlmm.training.logbook import open_logbook
from tests.run_facts import PROOF, record
from tests.sharing import picture
from tests.unit.artifacts.adapters import RECIPE, manifest

TOKENIZER = json.dumps({"vocab": {f"word {number}": number for number in range(20_000)}})
# As long as a commit of the Hub is, and as a key of Weights & Biases.
COMMIT = "0123456789abcdef" * 2 + "01234567"
PINNED = f"some/llava@{COMMIT}"
CONFIG = {"peft_type": "LORA", "base_model_name_or_path": "some/llava", "revision": COMMIT}


def recipe(*overrides: str) -> Recipe:
    """A recipe on a base of the Hub, pinned by its whole commit."""
    return parse_recipe(RECIPE.format(base=f"model: {PINNED}"), "r.yaml", overrides).recipe


def base(name: str = PINNED, revision: str | None = COMMIT) -> dict[str, Any]:
    """What a manifest says of a base that is one model."""
    return {"kind": "native", "parts": {"model": {"id": name, "revision": revision, "config_sha256": "aa"}}}


def finished_run(
    parent: Path,
    *,
    proof: Proof = PROOF,
    weights: int = 1000,
    papers: Mapping[str, str] = {},
    events: tuple[Event, ...] = (Finished(2, 90.0),),
    **changes: Any,
) -> Path:
    """The directory of a run that ended well, unless the changes say otherwise; ``papers`` are files of its adapter."""
    adapter = parent / "run" / "adapter"
    (adapter / "held-out").mkdir(parents=True)
    save_file({"lora_A": torch.arange(float(weights))}, adapter / "adapter_model.safetensors")
    texts = {
        "adapter_config.json": json.dumps(CONFIG),
        "probe.json": "{}",
        "tokenizer.json": TOKENIZER,
        "tokenizer_config.json": '{"local_files_only": false}',
    }
    for name, text in (texts | dict(papers)).items():
        (adapter / name).parent.mkdir(exist_ok=True)
        (adapter / name).write_bytes(text.encode("utf-8", "surrogateescape"))
    (adapter / "held-out" / "1.png").write_bytes(picture(9))
    facts = {"recipe": recipe(), "base": base(), "proof": proof, "files": file_hashes(adapter)}
    made = manifest(**(facts | changes))
    write_manifest(adapter, made)
    (adapter / "README.md").write_text(card(made, proof), "utf-8")
    (parent / "run" / "run.json").write_text(record().model_copy(update={"status": "finished"}).to_text())
    with open_logbook(parent / "run" / "metrics.jsonl", start=0) as logbook:
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
        for place in ("qlmm.artifacts.zoo.catalogue", "maintenance.zoo_entry"):
            monkeypatch.setattr(f"{place}.write_processor", zoo.write)
        return zoo

    def write(self, section: BaseSection, folder: Path) -> None:
        """Stand in for the base's processor."""
        template = chat_template(section.chat_template)
        texts = self.written | ({"chat_template.jinja": template} if template is not None else {})
        for name, text in texts.items():
            (folder / name).write_text(text)

    def add(self, run: Path, name: str = "mine", **changes: Any) -> Path:
        """Add a run's adapter."""
        facts = {"summary": "Knows colours", "licence": "Apache-2.0"} | changes
        return add(Request(str(run), name, **facts))

    def left(self) -> list[str]:
        """Everything in the zoo."""
        return sorted(path.name for path in self.folder.iterdir())
