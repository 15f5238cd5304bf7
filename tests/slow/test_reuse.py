"""What a preference run computes once changes no loss and no gradient; where a model cannot, the run says so."""

from __future__ import annotations

import json
from collections.abc import Callable
from contextlib import nullcontext
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from PIL import Image
from safetensors.torch import load_file

from qlmm.api import finetune
from qlmm.core.errors import QlmmError
from qlmm.core.events import Event, StepDone, Warned
from qlmm.data.encoding.shared_prefix import CHOSEN, PROMPT
from qlmm.model.reuse.attention_layout import LayoutHooks
from qlmm.recipe.load import LoadedRecipe
from qlmm.training.logbook import read_metrics
from qlmm.training.objective import objective as objective_of
from qlmm.training.plan import Plan, make_plan
from qlmm.training.run import build
from qlmm.training.trainers import base as trainers
from tests.assembling import image_processor, llama, tower
from tests.runs import TinyRun, pair_row
from tests.tiny import tiny_tokenizer

SWITCHES = ("prefix", "reference", "vision")
CLOSE = 1e-4


@pytest.fixture(scope="module")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> TinyRun:
    """Pairs with one picture, with two, and without."""
    folder = tmp_path_factory.mktemp("reuse")
    made = TinyRun.make(folder)
    rows = [pair_row(folder, number, picture=number % 5 != 4) for number in range(20)]
    for number in (2, 7, 11):
        Image.new("RGB", (20, 60), (number, 90, 200)).save(folder / f"second-{number}.png")
        rows[number]["images"] = [*rows[number]["images"], f"second-{number}.png"]  # type: ignore[misc]  # a list of names
        rows[number]["prompt"] = f"<image>and <image>{rows[number]['prompt']}".replace("<image>what", "what")
        rows[number]["rejected"] = "no " * number
    (folder / "pairs.jsonl").write_text("\n".join(json.dumps(row) for row in rows), encoding="utf-8")
    return made


def recipe(tiny: TinyRun, name: str, *overrides: str) -> LoadedRecipe:
    return tiny.recipe(
        "training.objective=dpo",
        "training.learning_rate=1e-3",
        "adapter.dropout=0.0",
        "training.batch_size=3",
        # Equality is looked at in full precision, on a GPU too.
        "training.precision=fp32",
        f"data.sources=[{{path: {tiny.folder}/pairs.jsonl}}]",
        f"output.dir={tiny.folder}/{name}",
        *overrides,
    )


def trainer(tiny: TinyRun, *overrides: str) -> tuple[Any, Plan]:
    plan = make_plan(recipe(tiny, "unused", *overrides).recipe)
    model, _ = build(plan)
    moved = {name: p for name, p in model.named_parameters() if p.requires_grad}
    with torch.random.fork_rng():
        torch.manual_seed(0)
        # The policy must differ from its reference, or every loss is ln 2 whatever is computed.
        made = objective_of(plan.recipe.training.objective).trainer()(model, plan, callbacks=[])
        for parameter in moved.values():
            parameter.data += 0.05 * torch.randn_like(parameter)
    return made, plan


def gradients(tiny: TinyRun, *overrides: str) -> tuple[float, dict[str, torch.Tensor]]:
    """Loss and gradients of one batch with every kind of row."""
    made, plan = trainer(tiny, *overrides)
    numbers = [
        next(n for n, row in enumerate(plan.train) if len(row.images) == pictures) for pictures in (0, 1, 2)
    ] * 2  # fmt: skip
    made.model.train()
    inputs = made._prepare_inputs(made.data_collator([{"row": number} for number in numbers]))
    # As in a training step: on a GPU this is where bf16 comes in.
    with made.compute_loss_context_manager():
        loss = made.compute_loss(made.model, inputs)
    loss.backward()
    found = {name: p.grad.clone() for name, p in made.model.named_parameters() if p.grad is not None}
    return float(loss.detach()), found


@pytest.mark.parametrize(
    "overrides",
    [
        (),
        ("adapter.connector=lora",),
        ("adapter.vision=lora",),
        ("training.gradient_checkpointing=true",),
        ("training.losses={sigmoid: 0.8, bco_pair: 0.2, sft: 1.0}",),
        ("training.losses={ipo: 1.0}",),
        ("training.objective=orpo",),
        ("training.objective=simpo",),
        ("training.losses={sigmoid_norm: 1.0}", "training.extra={use_weighting: true}"),
        ("training.extra={ld_alpha: 0.5}",),
    ],
)
@pytest.mark.parametrize("switch", [*SWITCHES, "prefix, reference, vision"])
def test_loss_and_gradients_are_those_of_the_plain_path(tiny: TinyRun, switch: str, overrides: tuple[str, ...]) -> None:
    plain_loss, plain = gradients(tiny, "training.reuse=[]", *overrides)
    loss, found = gradients(tiny, f"training.reuse=[{switch}]", *overrides)
    assert loss == pytest.approx(plain_loss, rel=CLOSE)
    assert found.keys() == plain.keys()
    assert any(gradient.abs().max() > 0 for gradient in plain.values())
    for name, gradient in plain.items():
        off = float((found[name] - gradient).norm() / gradient.norm().clamp(min=1e-8))
        assert off < CLOSE, name


@pytest.mark.parametrize("objective", ["dpo", "kto", "orpo"])
def test_a_frozen_tower_sees_a_picture_once_a_run(tiny: TinyRun, objective: str) -> None:
    made, plan = trainer(tiny, f"training.objective={objective}", "training.reuse=[vision]")

    def epoch(size: int) -> int:
        before = made._tower.seen
        rows = [{"row": row} for row in range(len(plan.train))]
        for start in range(0, len(rows), size):
            batch = made._prepare_inputs(made.data_collator(rows[start : start + size]))
            with made.compute_loss_context_manager():
                made.compute_loss(made.model, batch)
        return int(made._tower.seen - before)

    assert epoch(3) > 0
    assert epoch(2) == epoch(3) == 0


@pytest.mark.parametrize("attention", ["eager", "sdpa"])
def test_both_forms_of_attention_take_the_mask(tiny: TinyRun, attention: str) -> None:
    made, plan = trainer(tiny, "training.reuse=[]")
    made.model.get_base_model().set_attn_implementation(attention)
    assert made._objection(made.model, LayoutHooks(made.model.get_base_model()), plan) is None


def test_one_answer_does_not_see_the_other(tiny: TinyRun) -> None:
    made, _ = trainer(tiny, "training.reuse=[prefix]")
    made.model.eval()
    batch = made._prepare_inputs(made.data_collator([{"row": 0}]))
    ids, layout = batch["packed"]["input_ids"], batch["layout"]
    labels = batch["input_ids"].masked_fill(batch["completion_mask"] == 0, -100)

    def rejected() -> torch.Tensor:
        call = made.scored_by(made.model)
        given = {name: value for name, value in batch.items() if name not in ("completion_mask", "rows")}
        with torch.no_grad(), made.compute_loss_context_manager():
            scores: torch.Tensor = call(**given, labels=labels, fused_lm_head=True, use_cache=False).log_probs
        return scores[1].clone()

    before = rejected()
    start, end = (int((layout["segments"][0] <= last).sum()) for last in (PROMPT, CHOSEN))
    ids[0, start:end] = (ids[0, start:end] + 7) % 50
    assert torch.equal(before, rejected())
    ids[0, start - 1] += 1
    assert not torch.equal(before, rejected())


def assembled(folder: Path) -> str:
    """A base of random parts, as an override."""
    if not (folder / "tower").exists():
        tokenizer = tiny_tokenizer()
        tower("clip").save_pretrained(folder / "tower")
        image_processor("clip").save_pretrained(folder / "tower")
        llama(len(tokenizer), initializer_range=0.02).save_pretrained(folder / "llama")
        tokenizer.save_pretrained(folder / "llama")
    parts = f"vision: {folder}/tower, language: {folder}/llama, connector: {{kind: mlp}}"
    return f"base={{{parts}, chat_template: vicuna, quantize: none}}"


@pytest.mark.parametrize("kind", ["llava", "assembled"])
@pytest.mark.parametrize("objective", ["sft", "dpo", "kto", "orpo"])
@pytest.mark.parametrize("reuse", ["[]", "[vision]"])
def test_no_gradient_passes_a_frozen_tower_while_training(tiny: TinyRun, objective: str, reuse: str, kind: str) -> None:
    """Checkpointing asks for gradients of every embedding's output when training starts, the tower's too."""
    base = (assembled(tiny.folder),) if kind == "assembled" else ()
    rows = f"data.sources=[{{path: {tiny.folder}/{'rows' if objective == 'sft' else 'pairs'}.jsonl}}]"
    settings = ("training.gradient_checkpointing=true", "training.steps=2", f"training.reuse={reuse}", rows)
    made, plan = trainer(tiny, f"training.objective={objective}", *settings, *base)
    asked: list[bool] = []
    model = made.model.get_base_model()
    seeing = model.get_submodule(plan.placement.parts.vision[0])
    seeing.register_forward_hook(lambda module, args, found: asked.append(found.last_hidden_state.requires_grad))
    # A hook that asks for gradients is put on later than this one: what came out is looked at afterwards.
    embedded: list[torch.Tensor] = []
    model.get_input_embeddings().register_forward_hook(lambda module, args, found: embedded.append(found))
    made.train()
    assert asked
    assert not any(asked)
    assert not any(one.requires_grad for one in embedded)


def test_supervised_training_keeps_features_where_pictures_come_back(tiny: TinyRun) -> None:
    rows = (f"data.sources=[{{path: {tiny.folder}/rows.jsonl}}]", "training.objective=sft", "training.batch_size=3")
    once, plan = trainer(tiny, *rows, "training.epochs=1", "training.steps=null")
    assert not plan.keeps_features
    assert plan.facts.notes == ()
    assert "pictures" not in once.data_collator([{"row": 0}])
    made, plan = trainer(tiny, *rows, "training.epochs=3", "training.steps=null")
    assert plan.keeps_features
    assert plan.facts.notes == ("features of a picture are kept: it is shown 3.0 times",)
    made.train()
    pictures = len({image for row in plan.train for image in row.images})
    # The first batches are shown whole or twice, until it is clear that pictures may be shown one by one.
    assert pictures <= made._tower.seen <= pictures + 9


def test_supervised_training_keeps_no_features_that_would_not_fit(
    tiny: TinyRun, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(trainers, "LIMIT_BYTES", 5000)
    rows = (f"data.sources=[{{path: {tiny.folder}/rows.jsonl}}]", "training.objective=sft", "training.steps=30")
    made, plan = trainer(tiny, *rows)
    assert plan.keeps_features
    assert not made._tower.stores
    assert made.notes == ["features of pictures are not kept: they would not fit into 2 GiB"]
    assert "pictures" not in made.data_collator([{"row": 0}])


def test_supervised_training_is_the_same_with_features_kept(tiny: TinyRun) -> None:
    rows = (f"data.sources=[{{path: {tiny.folder}/rows.jsonl}}]", "training.objective=sft", "training.steps=30")
    finetune(recipe(tiny, "kept", *rows))
    finetune(recipe(tiny, "anew", *rows, "training.reuse=[]"))
    assert steps(tiny.folder / "kept") == pytest.approx(steps(tiny.folder / "anew"), rel=CLOSE)


def steps(folder: Path) -> list[float]:
    return [event.loss for event in read_metrics(folder / "metrics.jsonl") if isinstance(event, StepDone)]


def test_whole_runs_have_the_same_curve(tiny: TinyRun) -> None:
    finetune(recipe(tiny, "fast", "training.steps=12"))
    finetune(recipe(tiny, "plain", "training.steps=12", "training.reuse=[]"))
    assert steps(tiny.folder / "fast") == pytest.approx(steps(tiny.folder / "plain"), rel=CLOSE)
    assert (tiny.folder / "fast" / "reference.jsonl").is_file()
    assert not (tiny.folder / "plain" / "reference.jsonl").exists()


def test_the_reference_is_asked_once_per_pair(tiny: TinyRun, monkeypatch: pytest.MonkeyPatch) -> None:
    made, plan = trainer(tiny, "training.reuse=[reference]", "training.steps=12")
    asked: list[int] = []
    computed: Callable[..., Any] = made.compute_ref_log_probs
    monkeypatch.setattr(made, "compute_ref_log_probs", lambda *given: (asked.append(1), computed(*given))[1])
    folder = tiny.folder / "asked"
    folder.mkdir()
    record = SimpleNamespace(frozen_sha256="b")
    made.prepare(
        SimpleNamespace(path=folder, saving=folder / ".part", record=record, writing=lambda what: nullcontext())
    )
    made.train()
    # A batch is asked about when it holds a pair that was not met before: never in a later epoch of the same batches.
    lines = (tiny.folder / "asked" / "reference.jsonl").read_text(encoding="utf-8").splitlines()
    assert len(lines) - 1 == len(plan.train)
    assert len(asked) < 12


def test_a_model_that_cannot_share_prompts_says_so_and_trains(tiny: TinyRun, monkeypatch: pytest.MonkeyPatch) -> None:
    def leaking(self: LayoutHooks, mask: Any, hidden: torch.Tensor) -> Any:
        return mask

    monkeypatch.setattr(LayoutHooks, "_masked", leaking)
    said: list[str] = []
    outcome = finetune(
        recipe(tiny, "leaking"),
        listener=lambda event: said.append(event.message) if isinstance(event, Warned) else None,
    )
    assert outcome.proof is not None
    assert outcome.proof.holds
    assert any("pairs do not share their prompts: log-probabilities would differ" in message for message in said)


class Cut(Exception):
    """A run that was cut."""


def test_log_probabilities_of_another_run_are_refused(tiny: TinyRun) -> None:
    def cut(event: Event) -> None:
        if isinstance(event, StepDone) and event.step == 3:
            raise Cut

    finetune(recipe(tiny, "first"))
    with pytest.raises(Cut):
        finetune(recipe(tiny, "second", "training.seed=5"), listener=cut)
    stored = (tiny.folder / "first" / "reference.jsonl").read_bytes()
    (tiny.folder / "second" / "reference.jsonl").write_bytes(stored)
    with pytest.raises(QlmmError, match=r"C005.*another adapter"):
        finetune(recipe(tiny, "second", "training.seed=5"))


def test_a_run_that_was_cut_goes_on_with_what_it_remembers(tiny: TinyRun) -> None:
    def cut(event: Event) -> None:
        if isinstance(event, StepDone) and event.step == 5:
            raise Cut

    whole = finetune(recipe(tiny, "whole"))
    with pytest.raises(Cut):
        finetune(recipe(tiny, "cut"), listener=cut)
    gone_on = finetune(recipe(tiny, "cut"))
    assert whole.adapter is not None
    assert gone_on.adapter is not None
    one, other = (load_file(str(run.adapter / "adapter_model.safetensors")) for run in (whole, gone_on) if run.adapter)
    assert one.keys() == other.keys()
    assert all(torch.equal(one[name], other[name]) for name in one)
