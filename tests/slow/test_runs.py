"""Whole runs: what comes out, that a continued run is the same run, and that no kill loses it."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from qlmm.api import Outcome, finetune
from qlmm.core.errors import RecipeError, RunError
from qlmm.core.events import Event, Resumed, Saved, StepDone
from qlmm.training.logbook import read_metrics
from tests.runs import TinyRun

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> tuple[TinyRun, Outcome]:
    """A run that nothing disturbed."""
    run = TinyRun.make(tmp_path_factory.mktemp("whole"))
    return run, finetune(run.recipe())


def _adapter(folder: Path) -> dict[str, torch.Tensor]:
    return load_file(folder / "adapter" / "adapter_model.safetensors")


def _same(first: dict[str, torch.Tensor], second: dict[str, torch.Tensor]) -> bool:
    return first.keys() == second.keys() and all(torch.equal(first[name], second[name]) for name in first)


def test_a_run_ends_proven_and_leaves_what_it_promised(whole: tuple[TinyRun, Outcome]) -> None:
    run, outcome = whole
    folder = run.folder / "run"
    assert outcome.status == "finished"
    assert outcome.proof is not None
    assert outcome.proof.holds
    assert {path.name for path in folder.iterdir()} >= {
        "run.json", "recipe.yaml", "metrics.jsonl", "loss.png", "report.html", "adapter", "checkpoint-8",
    }  # fmt: skip
    names = {path.name for path in (folder / "adapter").iterdir()}
    assert {
        "adapter_config.json",
        "adapter_model.safetensors",
        "README.md",
        "qlmm.json",
        "chat_template.jinja",
    } <= names
    assert not {name for name in names if name.endswith((".bin", ".pt", ".pth"))}


def test_the_proof_names_what_was_trained(whole: tuple[TinyRun, Outcome]) -> None:
    _, outcome = whole
    assert outcome.proof is not None
    parts = {part.part: part for part in outcome.proof.parts}
    assert parts["vision"].trained_tensors == parts["head"].trained_tensors == 0
    assert parts["connector"].moved_tensors == parts["connector"].trained_tensors == 4
    assert parts["language"].moved_tensors == parts["language"].trained_tensors == 28
    assert outcome.proof.reload is not None
    assert outcome.proof.reload.max_difference <= 1e-6
    assert outcome.proof.before is not None
    assert outcome.proof.after is not None
    assert outcome.proof.after.right < outcome.proof.before.right


def test_a_finished_run_says_so_and_does_nothing(whole: tuple[TinyRun, Outcome]) -> None:
    run, _ = whole
    before = {path: path.stat().st_mtime_ns for path in (run.folder / "run").rglob("*")}
    assert finetune(run.recipe()).status == "already"
    assert {path: path.stat().st_mtime_ns for path in (run.folder / "run").rglob("*")} == before


def test_a_directory_started_with_another_recipe_is_refused(whole: tuple[TinyRun, Outcome]) -> None:
    run, _ = whole
    with pytest.raises(RecipeError, match=r"training\.learning_rate"):
        finetune(run.recipe("training.learning_rate=2e-3"))


def test_a_native_adapter_loads_with_plain_peft_without_qlmm(whole: tuple[TinyRun, Outcome], tmp_path: Path) -> None:
    """In a process that cannot import qlmm, plain PEFT gives the logits of qlmm's own loader."""
    run, outcome = whole
    program = tmp_path / "plain.py"
    program.write_text(
        "import sys; sys.modules['qlmm'] = None\n"
        "import torch\nfrom peft import PeftModel\nfrom transformers import AutoModelForImageTextToText\n"
        f"base = AutoModelForImageTextToText.from_pretrained({str(run.folder / 'base')!r}, dtype=torch.float32)\n"
        f"model = PeftModel.from_pretrained(base, {str(outcome.adapter)!r}).eval()\n"
        "ids = torch.tensor([[1, 65, 66, 259, 259, 259, 259, 70]])\n"
        "picture = torch.linspace(-1, 1, 3 * 28 * 28).reshape(1, 3, 28, 28)\n"
        "print(repr(model(input_ids=ids, pixel_values=picture).logits[0, -1, :5].tolist()))\n"
    )
    from qlmm.artifacts.adapter.load import load

    loaded = load(outcome.adapter or Path())
    image = loaded.processor.image_token_id
    text = program.read_text().replace("259", str(image))
    program.write_text(text)
    done = subprocess.run([sys.executable, str(program)], capture_output=True, text=True, check=True, cwd=tmp_path)
    ids = torch.tensor([[1, 65, 66, image, image, image, image, 70]])
    picture = torch.linspace(-1, 1, 3 * 28 * 28).reshape(1, 3, 28, 28)
    with torch.no_grad():
        ours = loaded.model(input_ids=ids, pixel_values=picture).logits[0, -1, :5]
    assert torch.allclose(torch.tensor(json.loads(done.stdout.splitlines()[-1])), ours, atol=1e-6)


@pytest.mark.parametrize(
    "changes",
    [
        ("base.quantize=nf4", "adapter.variant=dora"),
        ("base.quantize=int8", "adapter.variant=rslora"),
        ("base.quantize=none", "adapter.variant=pissa", "training.gradient_checkpointing=true"),
    ],
    ids=["nf4-dora", "int8-rslora", "pissa-checkpointing"],
)
def test_every_storage_and_variant_trains_and_reads_back(tmp_path: Path, changes: tuple[str, ...]) -> None:
    run = TinyRun.make(tmp_path)
    outcome = finetune(run.recipe("training.steps=5", "evaluation.answers=0", *changes))
    assert outcome.proof is not None
    assert [promise.name for promise in outcome.proof.promises if not promise.kept] == []


def test_an_epoch_smaller_than_the_data_is_trained_to_its_end(tmp_path: Path) -> None:
    """A text ratio leaves rows out of an epoch; rows are then numbered beyond its length."""
    run = TinyRun.make(tmp_path)
    rows = (tmp_path / "rows.jsonl").read_text().splitlines()
    texts = [row for row in rows if '"images"' not in row]
    (tmp_path / "rows.jsonl").write_text("\n".join([*rows[:10], *texts * 10]))
    steps = ("training.epochs=2", "training.steps=null", "training.save_every=100")
    assert finetune(run.recipe("data.text_ratio=0.5", *steps, "evaluation.rows=2")).status == "finished"


class _Stop(Exception):
    """The test's own way to end a run at a given event."""


def _stopping(at: Callable[[Event], bool], seen: list[Event]) -> Callable[[Event], None]:
    def listen(event: Event) -> None:
        seen.append(event)
        if at(event):
            raise _Stop

    return listen


def test_a_continued_run_is_bit_for_bit_the_uninterrupted_one(
    whole: tuple[TinyRun, Outcome], tmp_path_factory: pytest.TempPathFactory
) -> None:
    """Dropout on, stopped in the middle of an epoch, once right after a save and once two steps later."""
    run = TinyRun.make(tmp_path_factory.mktemp("resumed"))
    seen: list[Event] = []
    with pytest.raises(_Stop):
        finetune(run.recipe(), listener=_stopping(lambda event: isinstance(event, Saved), seen))
    with pytest.raises(_Stop):
        finetune(run.recipe(), listener=_stopping(lambda e: isinstance(e, StepDone) and e.step == 7, seen))
    outcome = finetune(run.recipe(), listener=seen.append)
    assert outcome.status == "finished"
    assert [event.step for event in seen if isinstance(event, Resumed)] == [2, 6]
    assert _same(_adapter(run.folder / "run"), _adapter(whole[0].folder / "run"))
    steps = [e for e in read_metrics(run.folder / "run/metrics.jsonl") if isinstance(e, StepDone)]
    expected = [e for e in read_metrics(whole[0].folder / "run/metrics.jsonl") if isinstance(e, StepDone)]
    assert [(e.step, e.loss) for e in steps] == [(e.step, e.loss) for e in expected]


def test_a_run_stopped_between_its_last_step_and_its_adapter_takes_no_further_step(
    whole: tuple[TinyRun, Outcome], tmp_path: Path
) -> None:
    run, seen = TinyRun.make(tmp_path), []
    with pytest.raises(_Stop):
        finetune(run.recipe(), listener=_stopping(lambda e: isinstance(e, Saved) and e.step == 8, []))
    assert finetune(run.recipe(), listener=seen.append).status == "finished"
    assert not any(isinstance(event, StepDone) for event in seen)
    assert _same(_adapter(tmp_path / "run"), _adapter(whole[0].folder / "run"))


def test_changed_rows_are_refused_on_resume(tmp_path: Path) -> None:
    run = TinyRun.make(tmp_path)
    with pytest.raises(_Stop):
        finetune(run.recipe(), listener=_stopping(lambda event: isinstance(event, Saved), []))
    rows = (tmp_path / "rows.jsonl").read_text().splitlines()
    (tmp_path / "rows.jsonl").write_text("\n".join([*rows[1:], rows[0]]))
    with pytest.raises(RunError, match="the rows changed"):
        finetune(run.recipe())


def test_a_loss_that_is_not_finite_ends_the_run_before_a_weight_moves(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from trl import SFTTrainer

    run = TinyRun.make(tmp_path)
    honest = SFTTrainer.compute_loss

    def poisoned(self: SFTTrainer, *args: object, **kwargs: object) -> torch.Tensor:
        loss: torch.Tensor = honest(self, *args, **kwargs)
        return loss * float("nan") if self.state.global_step == 3 else loss

    monkeypatch.setattr(SFTTrainer, "compute_loss", poisoned)
    with pytest.raises(RunError, match="loss is nan at step 4") as caught:
        finetune(run.recipe())
    assert "rows.jsonl:" in str(caught.value)
    state = load_file(tmp_path / "run/checkpoint-2/adapter_model.safetensors")
    assert all(torch.isfinite(tensor).all() for tensor in state.values())
    assert not (tmp_path / "run/adapter").exists()
    monkeypatch.undo()
    assert finetune(run.recipe()).status == "finished"


def test_a_projector_that_cannot_move_ends_unproven(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The failure this project exists for: asked to train, silently frozen."""
    from qlmm.training.trainers.sft import SftTrainer

    run = TinyRun.make(tmp_path)
    honest = SftTrainer.create_optimizer

    def forgetful(self: SftTrainer, model: torch.nn.Module | None = None) -> torch.optim.Optimizer:
        optimizer = honest(self, model)
        for group in optimizer.param_groups:
            if group["part"] == "connector":
                group["lr"] = group["initial_lr"] = 0.0
        return optimizer

    monkeypatch.setattr(SftTrainer, "create_optimizer", forgetful)
    outcome = finetune(run.recipe())
    assert outcome.status == "unproven"
    assert outcome.adapter is not None
    assert outcome.adapter.name == "adapter-UNPROVEN"
    assert not (tmp_path / "run/adapter").exists()
    assert outcome.proof is not None
    assert [promise.name for promise in outcome.proof.promises if not promise.kept] == ["connector was trained"]
