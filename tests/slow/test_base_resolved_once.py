"""A command reads each configuration, tokenizer and image processor of its base once."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from transformers import AutoConfig, AutoImageProcessor, AutoProcessor, AutoTokenizer

from qlmm.api import finetune
from qlmm.artifacts.adapter.verify import verify
from qlmm.artifacts.export.export import Wishes, export
from qlmm.artifacts.merge.merge import Settings, merge
from qlmm.cli.commands.ask import ask
from qlmm.model.loading.base import Base
from qlmm.recipe.load import LoadedRecipe
from tests.merge_cases import CASES, assembled
from tests.runs import TinyRun

pytestmark = pytest.mark.slow

SHORT = ("training.steps=2", "evaluation.answers=0")
BASES = ("base", "vision", "language")


class Trained:
    """A finished run, and recipes for further ones on the same base."""

    def __init__(self, folder: Path, kind: str) -> None:
        self.folder, self.kind = folder, kind
        finetune(self.recipe())
        self.adapter = folder / "run" / "adapter"

    def recipe(self, *overrides: str) -> LoadedRecipe:
        if self.kind == "native":
            make = TinyRun.make if not (self.folder / "base").exists() else TinyRun
            return make(self.folder).recipe(*SHORT, *overrides)
        made: LoadedRecipe = assembled(self.folder, CASES["mlp"], *SHORT, *overrides)
        return made


@pytest.fixture(scope="module", params=["native", "assembled"])
def trained(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Trained:
    return Trained(tmp_path_factory.mktemp(request.param), request.param)


@pytest.fixture
def reads(trained: Trained, monkeypatch: pytest.MonkeyPatch) -> Counter[str]:
    """How often each file of the base was read, and how often a base was resolved.

    Readers call each other: what one of them reads on the way belongs to it.
    """
    found: Counter[str] = Counter()
    inside: list[str] = []

    def counted(name: str, honest: Callable[..., Any]) -> Callable[..., Any]:
        def read(place: Any, *further: Any, **options: Any) -> Any:
            if not inside and Path(str(place)).parent == trained.folder and Path(str(place)).name in BASES:
                found[f"{name} of {Path(str(place)).name}"] += 1
            inside.append(name)
            try:
                return honest(place, *further, **options)
            finally:
                inside.pop()

        return read

    for auto in (AutoConfig, AutoTokenizer, AutoImageProcessor, AutoProcessor):
        monkeypatch.setattr(auto, "from_pretrained", counted(auto.__name__, auto.from_pretrained))
    resolve = Base.resolve

    def once(section: Any) -> Base:
        found["resolved"] += 1
        return resolve(section)

    monkeypatch.setattr(Base, "resolve", once)
    return found


def _export(trained: Trained, place: Path) -> None:
    export(str(trained.adapter), "hf", place / "export", Wishes())


def _ask(trained: Trained, place: Path) -> None:
    ask(str(trained.adapter), "what colour is this ?", [trained.folder / "0.png"])


COMMANDS: dict[str, Callable[[Trained, Path], Any]] = {
    "merge": lambda trained, place: merge(str(trained.adapter), place / "merged", Settings()),
    "verify": lambda trained, place: verify(trained.adapter),
    "ask": _ask,
    "export": _export,
    "finetune": lambda trained, place: finetune(trained.recipe(f"output.dir={place / 'again'}")),
    "finetune from an adapter": lambda trained, place: finetune(
        trained.recipe(f"output.dir={place / 'next'}", f"adapter.start_from={trained.adapter}")
    ),
}


@pytest.mark.parametrize("command", COMMANDS)
def test_a_base_is_read_once_a_command(command: str, trained: Trained, reads: Counter[str], tmp_path: Path) -> None:
    made = COMMANDS[command](trained, tmp_path)
    assert command != "verify" or made.holds
    configs = {"AutoConfig of base"} if trained.kind == "native" else {"AutoConfig of vision", "AutoConfig of language"}
    assert configs <= reads.keys()
    assert reads["resolved"] == 1
    assert set(reads.values()) == {1}, reads
