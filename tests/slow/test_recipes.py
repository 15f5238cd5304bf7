"""Every shipped recipe is planned and trained for two steps, its base swapped for a tiny one of the same kind.

Recipes for one family of native models are trained in this process, with every size their headers name: a fresh one
loads no processor with a video half on a machine without torchvision. The others go the whole way, proof included.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import cache
from pathlib import Path

import pytest
import torch
from PIL import Image
from safetensors.torch import load_file
from transformers import Blip2Config, T5Config

from qlmm.api import Outcome, finetune
from qlmm.core.naming import names
from qlmm.data.reading.dataset import load_format
from qlmm.model.contract import TOWERS
from qlmm.model.loading.chat_template import chat_template
from qlmm.proof.records import PartProof, PlanFacts
from qlmm.recipe.load import LoadedRecipe, load_recipe
from qlmm.recipe.schema import Recipe, Source
from qlmm.training.plan import Plan, make_plan
from qlmm.training.run import build
from qlmm.training.trainers.sft import SftTrainer
from tests.assembling import image_processor, llama, settings_for, tower
from tests.families.build import Family, family, save
from tests.families.videos import videos_stood_in
from tests.tiny import tiny_llava, tiny_processor, tiny_tokenizer
from tests.unit.recipe.shipped import MODELS, commands

pytestmark = pytest.mark.slow

RECIPES = {path.stem: path for path in sorted((Path(__file__).resolve().parents[2] / "recipes").glob("*.yaml"))}
IN_PROCESS = [model for model, kind in MODELS.items() if kind != "llava"]
WHOLE = sorted(set(RECIPES) - {commands()[model][0] for model in IN_PROCESS})
T5 = "Salesforce/blip2-flan-t5-xl"
BUILTIN = "builtin:"
ROWS = 12
# What a laptop can do in a second; everything else stays as the recipe says, quantisation included.
SHORT = (
    "adapter.r=4",
    "training.steps=2",
    "training.batch_size=1",
    "training.accumulation=1",
    "training.workers=0",
    "training.device=cpu",
    "evaluation.rows=2",
    "evaluation.rows=2",
    "evaluation.answers=1",
    "evaluation.max_new_tokens=2",
)

Run = Callable[..., "Trained"]


class Trained:
    """A recipe's run on a tiny base: what was planned, and how it ended."""

    def __init__(self, loaded: LoadedRecipe) -> None:
        plans: list[PlanFacts] = []
        self.recipe = loaded.recipe
        self.outcome: Outcome = finetune(loaded, planned=plans.append)
        (self.plan,) = plans

    @property
    def weights(self) -> dict[str, torch.Tensor]:
        """The adapter's tensors."""
        assert self.outcome.adapter is not None
        return load_file(self.outcome.adapter / "adapter_model.safetensors")


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Run:
    """Trains a shipped recipe, once for each set of further overrides."""
    shelf = tmp_path_factory.mktemp("recipes")

    @cache
    def train(name: str, *further: str) -> Trained:
        folder = shelf / f"{name}-{len(further)}"
        folder.mkdir()
        recipe = load_recipe(RECIPES[name]).recipe
        overrides = [*SHORT, *_tiny_base(recipe, shelf), *_tiny_data(recipe, folder), f"output.dir={folder / 'run'}"]
        if recipe.adapter.start_from is not None:
            overrides += [f"adapter.start_from={train(Path(recipe.adapter.start_from).parts[1]).outcome.adapter}"]
        return Trained(load_recipe(RECIPES[name], [*overrides, *further]))

    return train


@dataclass(frozen=True)
class Practised:
    """A recipe for a native model, after two steps on a tiny one of its kind."""

    recipe: Recipe
    plan: Plan
    proofs: list[PartProof]


Practise = Callable[[str], Practised]


@pytest.fixture(scope="module")
def practise(tmp_path_factory: pytest.TempPathFactory) -> Practise:
    """Trains by the command that the recipe's header gives for a model."""
    shelf = tmp_path_factory.mktemp("families")

    @cache
    def train(model: str) -> Practised:
        folder = shelf / model.replace("/", "-")
        folder.mkdir()
        name, *said = commands()[model]
        recipe = load_recipe(RECIPES[name], said).recipe
        base = [f"base.model={folder / 'base'}"]
        overrides = [*SHORT, *said, *base, *_tiny_data(recipe, folder), f"output.dir={folder / 'run'}"]
        save(_tiny_family(model), folder / "base")
        with videos_stood_in():
            plan = make_plan(load_recipe(RECIPES[name], overrides).recipe)
            wrapped, start = build(plan)
            trainer = SftTrainer(wrapped, plan, callbacks=[])
            trainer.train()
        return Practised(recipe, plan, start.compare(wrapped, trainer.take_grad_norms()))

    return train


def _tiny_family(model: str) -> Family:
    """Random weights of a model's kind, with a T5 inside where the model has one."""
    one = family(MODELS[model])
    if model != T5:
        return one
    tokenizer = one.processor.tokenizer
    special = {"pad_token_id": tokenizer.pad_token_id, "eos_token_id": tokenizer.eos_token_id}
    sizes = {"d_model": 64, "d_kv": 16, "d_ff": 64, "num_layers": 2, "num_heads": 4, "vocab_size": len(tokenizer)}
    text = T5Config(**sizes, **special, decoder_start_token_id=tokenizer.pad_token_id, feed_forward_proj="gated-gelu")
    return replace(one, config=Blip2Config.from_dict({**one.config.to_dict(), "text_config": text.to_dict()}))


def _tiny_base(recipe: Recipe, shelf: Path) -> list[str]:
    """Overrides that put random weights of the same kind in the base's place."""
    if recipe.base.model is not None:
        return [f"base.model={_once(shelf / 'llava', _write_llava)}"]
    assert recipe.base.connector is not None
    kind = _tower_kind(str(recipe.base.vision))
    settings = settings_for(recipe.base.connector.kind, tower(kind).config.hidden_size)
    return [
        f"base.vision={_once(shelf / kind, _write_tower)}",
        f"base.language={_once(shelf / 'llama', _write_llama)}",
        *(f"base.connector.{key}={value}" for key, value in settings.items()),
    ]


def _tower_kind(vision: str) -> str:
    own = vision.removeprefix(BUILTIN).replace("-", "_")
    return own if own in names(TOWERS) else "clip"


def _once(folder: Path, write: Callable[[Path], None]) -> Path:
    if not folder.exists():
        write(folder)
    return folder


def _write_llava(folder: Path) -> None:
    processor = tiny_processor("vicuna")
    tiny_llava(processor).save_pretrained(folder)
    processor.save_pretrained(folder)


def _write_tower(folder: Path) -> None:
    tower(folder.name).save_pretrained(folder)
    image_processor(folder.name).save_pretrained(folder)


def _write_llama(folder: Path) -> None:
    tokenizer = tiny_tokenizer()
    llama(len(tokenizer), initializer_range=0.02).save_pretrained(folder)
    tokenizer.save_pretrained(folder)


def _tiny_data(recipe: Recipe, folder: Path) -> list[str]:
    """Overrides that put a few rows, in the very format the recipe asks for, in its data's place."""
    groups = {"data.sources": recipe.data.sources, "evaluation.sources": recipe.evaluation.sources}
    return [
        override
        for group, sources in groups.items()
        for number, source in enumerate(sources)
        for override in _tiny_source(f"{group}.{number}", source, folder, pairs=recipe.training.objective == "dpo")
    ]


def _tiny_source(key: str, source: Source, folder: Path, *, pairs: bool) -> list[str]:
    packaged = source.path.startswith(BUILTIN)
    pictures = packaged or pairs or source.image_root is not None
    first = ROWS if key.startswith("evaluation") else 0
    rows = _rows(source.format or ("preference" if pairs else "messages"), folder, first) if pictures else _text_rows()
    file = folder / f"{key}{'' if packaged else Path(source.path).suffix or '.jsonl'}"
    file = file if file.suffix in (".json", ".jsonl") else file.with_name(f"{key}.jsonl")
    file.write_text(json.dumps(rows) if file.suffix == ".json" else "\n".join(map(json.dumps, rows)))
    root = [f"{key}.image_root={folder}"] if source.image_root is not None else []
    return [f"{key}.path={file}", *root]


def _rows(form: str, folder: Path, first: int) -> list[dict[str, object]]:
    """The format's own example, again and again, each time about another picture."""
    example = json.dumps(load_format(form).example)
    assert "cat.jpg" in example
    numbers = range(first, first + ROWS)
    for number in numbers:
        Image.new("RGB", (40, 30 + number), (10 * number, 0, 255 - 10 * number)).save(folder / f"{number}.jpg")
    return [json.loads(example.replace("cat.jpg", f"{number}.jpg")) for number in numbers]


def _text_rows() -> list[dict[str, object]]:
    turns = [[("user", f"what is {number} ?"), ("assistant", f"a {number}")] for number in range(ROWS)]
    return [{"messages": [{"role": role, "content": said} for role, said in pair]} for pair in turns]


def test_there_are_as_many_recipes_as_promised() -> None:
    assert len(RECIPES) == 20
    assert len(WHOLE) == 9


@pytest.mark.parametrize("name", WHOLE)
def test_recipe_trains_exactly_what_it_names(name: str, run: Run) -> None:
    trained = run(name)
    adapter, proof = trained.recipe.adapter, trained.outcome.proof
    assert proof is not None
    assert trained.outcome.status == "finished", [promise for promise in proof.promises if not promise.kept]
    asked = {"language": adapter.language == "lora", "connector": adapter.connector == "full"}
    asked |= {"vision": adapter.vision == "full", "head": False}
    assert {part.part: part.asked for part in proof.parts} == asked
    assert {part.part: part.trained_tensors > 0 for part in proof.parts} == asked
    assert {part.part: part.moved_tensors > 0 for part in proof.parts} == asked
    assert {part.part: part.trainable_tensors for part in trained.plan.parts} == {
        part.part: part.trained_tensors for part in proof.parts
    }


@pytest.mark.parametrize("name", WHOLE)
def test_recipe_stores_the_language_model_as_it_says(name: str, run: Run) -> None:
    trained = run(name)
    stored = {part.part: part.storage for part in trained.plan.parts}
    assert stored == {"vision": "fp32", "connector": "fp32", "language": trained.recipe.base.quantize, "head": "fp32"}


@pytest.mark.parametrize("name", WHOLE)
def test_recipe_reads_back_to_the_same_logits(name: str, run: Run) -> None:
    proof = run(name).outcome.proof
    assert proof is not None
    assert proof.reload is not None
    assert proof.reload.max_difference <= 1e-6
    assert proof.after is not None


@pytest.mark.parametrize(
    "name", [name for name in WHOLE if load_recipe(RECIPES[name]).recipe.training.objective == "dpo"]
)
def test_a_preference_recipe_begins_at_its_reference(name: str, run: Run) -> None:
    proof = run(name).outcome.proof
    assert proof is not None
    assert proof.reference is not None
    assert proof.reference.drift == 0
    assert proof.pairs_after is not None
    if proof.reference.expected is not None:
        assert proof.reference.first_loss == pytest.approx(proof.reference.expected, abs=1e-4)


def test_stage_two_carries_on_from_stage_one(run: Run) -> None:
    first = run("owl_pretrain")
    second = run("owl_lora", f"adapter.start_from={first.outcome.adapter}")
    proof = second.outcome.proof
    assert proof is not None
    assert second.outcome.status == "finished", [promise for promise in proof.promises if not promise.kept]
    before, after = first.weights, second.weights
    assert set(before) <= set(after)
    vision = [name for name in before if "vision_tower" in name]
    connector = [name for name in before if "multi_modal_projector" in name]
    assert vision
    assert connector
    assert set(before) == {*vision, *connector}
    assert all(torch.equal(before[name], after[name]) for name in vision)
    # Adam moves a weight by at most its rate a step: what is further away did not start at stage 1's weights.
    furthest = max(float((before[name] - after[name]).abs().max()) for name in connector)
    assert 0 < furthest <= 2.1 * 2 * second.recipe.training.connector_learning_rate
    assert all(".lora_" in name for name in set(after) - set(before))
    assert proof.reload is not None
    assert proof.reload.max_difference <= 1e-6


def test_stage_one_is_not_taken_for_the_start_of_a_run_that_does_not_ask_for_it(run: Run) -> None:
    first, alone = run("owl_pretrain").weights, run("owl_lora").weights
    assert not any("vision_tower" in name for name in alone)
    queries = next(name for name in alone if name.endswith("query_tokens"))
    assert float((first[queries] - alone[queries]).abs().max()) > 1e-4


def test_a_gradient_between_two_log_lines_is_seen(run: Run) -> None:
    """The one logged step shows text alone; the steps after it train the connector."""
    trained = run("owl_lora", "training.steps=6", "training.log_every=10", "data.text_ratio=0.8")
    assert trained.outcome.status == "finished"


@pytest.mark.parametrize("model", IN_PROCESS)
def test_a_native_model_is_trained_as_its_recipe_says(model: str, practise: Practise) -> None:
    done = practise(model)
    adapter = done.recipe.adapter
    asked = {"vision": False, "connector": True, "language": True, "head": False}
    assert {proof.part: proof.asked for proof in done.proofs} == asked
    assert {proof.part: proof.trained_tensors > 0 for proof in done.proofs} == asked
    assert all(proof.moved_tensors == proof.trained_tensors for proof in done.proofs)
    assert all(proof.frozen_identical for proof in done.proofs)
    parts = done.plan.placement.parts
    assert {parts.of(name) for name in done.plan.placement.lora} == {
        "language",
        *(["connector"] if adapter.connector == "lora" else []),
    }
    assert {parts.of(name) for name in done.plan.placement.whole} == (
        {"connector"} if adapter.connector == "full" else set()
    )
    stored = {part.part: part.storage for part in done.plan.facts.parts}
    quantised = done.recipe.base.quantize if done.recipe.base.quantize != "none" else "fp32"
    assert stored == {"vision": "fp32", "connector": "fp32", "language": quantised, "head": "fp32"}


@pytest.mark.parametrize("model", IN_PROCESS)
def test_a_native_model_sees_pictures_and_prompts_as_its_recipe_says(model: str, practise: Practise) -> None:
    done = practise(model)
    data = done.recipe.data
    budgeted = {data.max_pixels, data.min_pixels, data.max_tiles} != {None}
    assert bool(done.plan.facts.pictures) == budgeted
    assert done.plan.facts.tokens.visual_median > 0
    assert not done.plan.facts.rows_dropped
    if done.recipe.base.chat_template is not None:
        assert done.plan.encoder.processor.chat_template == chat_template(done.recipe.base.chat_template)


def test_a_model_with_a_decoder_of_its_own_goes_the_whole_way(run: Run, tmp_path: Path) -> None:
    save(_tiny_family(T5), tmp_path)
    name, *_ = commands()[T5]
    trained = run(name, f"base.model={tmp_path}")
    proof = trained.outcome.proof
    assert proof is not None
    assert trained.outcome.status == "finished", [promise for promise in proof.promises if not promise.kept]
    assert trained.plan.targets
    assert any(target.startswith("wi_0") for target in trained.plan.targets)
    assert proof.reload is not None
    assert proof.reload.max_difference <= 1e-6
