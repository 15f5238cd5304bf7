"""The examples of CONTRIBUTING.md work as they stand: each is put where it says and used as its kind is used."""

from __future__ import annotations

import importlib
import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch

from qlmm.core.naming import names
from qlmm.data.encoding.encoder import IGNORED, Encoder
from qlmm.data.media.media_root import ImageRoot
from qlmm.data.reading.dataset import FORMATS, load_format
from qlmm.data.sample import Origin, Sample, Turn
from qlmm.model.contract import CONNECTORS, TOWERS, own_tower
from qlmm.model.numerics.precision import Precision
from qlmm.recipe.library import LABELS, header
from qlmm.recipe.load import load_recipe
from qlmm.recipe.schema import OBJECTIVES, OutputSection, TrainingSection
from qlmm.training.objective import objective
from qlmm.training.trainers.pairs import PairsTrainer
from qlmm.training.trl_settings import trainer_config
from tests.assembling import ALL_TOWERS, build, pictures
from tests.tiny import tiny_processor

ROOT = Path(__file__).resolve().parents[2]
PAGE = (ROOT / "CONTRIBUTING.md").read_text("utf-8")
EXAMPLES = dict(re.findall(r"`([\w/]+\.(?:py|jinja|yaml))`\n\n```\w+\n(.*?)```\n", PAGE, re.DOTALL))


@pytest.fixture
def added(tmp_path: Path) -> Iterator[Path]:
    """The examples that are Python, as if their files lay in the folders they name."""
    before = set(sys.modules)
    folders = {}
    for name, text in EXAMPLES.items():
        file = tmp_path / name
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text(text)
        if file.suffix == ".py":
            package = importlib.import_module(".".join(Path(name).parent.parts))
            package.__path__.append(str(file.parent))
            folders[package] = str(file.parent)
    importlib.invalidate_caches()
    yield tmp_path
    for package, folder in folders.items():
        package.__path__.remove(folder)
    for name in set(sys.modules) - before:
        if name.startswith((CONNECTORS, TOWERS, FORMATS, OBJECTIVES)):
            del sys.modules[name]


def test_there_is_an_example_of_every_kind_of_extension() -> None:
    assert [str(Path(name).parent) for name in EXAMPLES] == [
        "qlmm/model/connectors", "qlmm/data/formats", "qlmm/training/objectives", "qlmm/model/towers",
        "qlmm/model/templates", "recipes", "qlmm/cli/commands",
    ]  # fmt: skip


@pytest.mark.usefixtures("added")
@torch.no_grad()
@pytest.mark.parametrize("tower", ALL_TOWERS)
def test_the_connector_works_on_every_tower(tower: str) -> None:
    assert "mean" in names(CONNECTORS)
    built = build("mean", tower)
    batch = built.batch("what is <image> ?", pictures(1))
    assert int((batch["input_ids"] == built.image_token_id).sum()) == built.spec.tokens == 1
    assert built.model(**batch).logits.isfinite().all()


@pytest.mark.usefixtures("added")
def test_the_format_reads_its_example_and_refuses_what_is_none(tmp_path: Path) -> None:
    form = load_format("flashcards")
    turns = form.read(form.example, ImageRoot(tmp_path))
    assert [turn.role for turn in turns] == ["user", "assistant"]
    assert [name for name in names(FORMATS) if load_format(name).detect(form.example)] == ["flashcards"]
    with pytest.raises(Exception, match="the back is int"):
        form.read({**form.example, "back": 3}, ImageRoot(tmp_path))


@pytest.mark.usefixtures("added")
def test_the_objective_is_one_a_recipe_can_name() -> None:
    training = TrainingSection(objective="hinge", extra={"beta": 0.5})
    made = trainer_config(training, OutputSection(dir="x"), Precision("cpu", "fp32"), steps=1)
    assert (made.loss_type, made.beta) == ("hinge", 0.5)
    assert issubclass(objective("hinge").trainer(), PairsTrainer)


@pytest.mark.usefixtures("added")
@torch.no_grad()
def test_the_tower_carries_a_connector() -> None:
    found = own_tower("patches")
    assert found is not None
    assert found.model(found.config())(torch.rand(1, 3, 224, 224)).last_hidden_state.shape == (1, 49, 32)
    built = build("linear", "patches")
    assert built.facts.grid == (7, 7)
    assert built.model(**built.batch("<image> what ?", pictures(1))).logits.isfinite().all()


def test_the_template_teaches_answers_and_when_to_stop() -> None:
    processor = tiny_processor()
    (processor.chat_template,) = (text for name, text in EXAMPLES.items() if name.endswith(".jinja"))
    encoder = Encoder.make(processor)
    row = Sample((Turn("user", ("what is this ?",)), Turn("assistant", ("a cat",))), Origin("x", 1))
    labels = encoder.batch([row])["labels"][0]
    assert processor.tokenizer.decode(labels[labels != IGNORED]) == "a cat</s>"


def test_the_recipe_is_one_and_says_what_it_is(added: Path) -> None:
    file = added / "recipes" / "captions.yaml"
    assert load_recipe(file).recipe.adapter.language == "frozen"
    about = header(file)
    assert about.summary
    assert set(about.facts) == set(LABELS)


def test_the_command_runs_and_has_its_help(added: Path) -> None:
    code = (
        "import sys; import qlmm.cli.commands as folder; folder.__path__.append(sys.argv.pop(1))\n"
        "from qlmm.cli.app import main; main()"
    )

    def run(*words: str) -> str:
        command = [sys.executable, "-c", code, str(added / "qlmm" / "cli" / "commands"), *words]
        return subprocess.run(command, capture_output=True, text=True, cwd=ROOT, check=True).stdout

    assert run("steps", "owl_lora", "training.steps=20") == "20\n"
    assert "steps     Print the steps that a recipe asks for." in run("--help")
    assert "Example: qlmm steps owl_lora" in run("steps", "--help")
