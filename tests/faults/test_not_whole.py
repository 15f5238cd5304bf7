"""A base or an adapter that is not whole is refused, by the names of its tensors, before it answers or is trained."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from qlmm.artifacts.adapter.folder import file_hashes
from qlmm.artifacts.adapter.load import load
from qlmm.artifacts.adapter.manifest import read_manifest, write_manifest
from qlmm.core.errors import QlmmError
from qlmm.core.filenames import ADAPTER_WEIGHTS
from qlmm.model.loading import whole
from qlmm.model.loading.base import Base
from qlmm.model.numerics.precision import choose
from qlmm.recipe.schema import BaseSection
from qlmm.training.plan import make_plan
from tests.assembling import image_processor, llama, tower
from tests.families.merging import adapter_of, shaken
from tests.runs import TinyRun
from tests.tiny import tiny_tokenizer

WEIGHTS, HEAD = "model.safetensors", "language_model.lm_head.weight"
POINTER = "version https://git-lfs.github.com/spec/v1\noid sha256:00\nsize 9\n"
State = dict[str, Tensor]


def stored(path: Path, change: Callable[[State], object]) -> None:
    """A file of weights, changed."""
    state = load_file(path)
    change(state)
    save_file(state, path, metadata={"format": "pt"})


def without(word: str) -> Callable[[Path], None]:
    """A checkpoint without the tensors that have a word in their names."""
    return lambda folder: stored(folder / WEIGHTS, lambda s: [s.pop(name) for name in list(s) if word in name])


def cut(folder: Path) -> None:
    """A download that ended half-way."""
    content = (folder / WEIGHTS).read_bytes()
    (folder / WEIGHTS).write_bytes(content[: len(content) // 2])


SPOILT: dict[str, tuple[str, str, Callable[[Path], object]]] = {
    "no tower": ("M007", r"lacks model\.vision_tower\..*more", without("vision_tower")),
    "no language model": ("M007", r"lacks lm_head\.weight.*more", without("language_model")),
    "no connector": ("M007", r"lacks model\.multi_modal_projector", without("projector")),
    "a tensor too few": ("M007", r"it lacks lm_head\.weight", without("lm_head")),
    "a tensor too many": (
        "M007",
        "it has more, which no such model has",
        lambda folder: stored(folder / WEIGHTS, lambda s: s.update(more=s[HEAD][:1].clone())),
    ),
    "another shape": (
        "M007",
        r"lm_head\.weight is 5 x 64, not \d+ x 64",
        lambda folder: stored(folder / WEIGHTS, lambda s: s.update({HEAD: s[HEAD][:5].clone()})),
    ),
    "a file that is cut": ("M007", f"{WEIGHTS} cannot be read", cut),
    "a pointer of Git LFS": (
        "M007",
        f"Git LFS pointers in place of {WEIGHTS}",
        lambda folder: (folder / WEIGHTS).write_text(POINTER),
    ),
    "a tokenizer that is a pointer": (
        "M007",
        r"Git LFS pointers in place of tokenizer\.json",
        lambda folder: (folder / "tokenizer.json").write_text(POINTER),
    ),
    "no weights": ("M151", "has no weights", lambda folder: (folder / WEIGHTS).unlink()),
}


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> TinyRun:
    """A native base, a tower, a language model, and an adapter."""
    folder = tmp_path_factory.mktemp("whole")
    run, tokenizer = TinyRun.make(folder), tiny_tokenizer()
    for model, with_it, name in (
        (tower("clip"), image_processor("clip"), "tower"),
        (llama(len(tokenizer)), tokenizer, "llama"),
    ):
        model.save_pretrained(folder / name)
        with_it.save_pretrained(folder / name)
    plan = make_plan(run.recipe().recipe)
    adapter_of(plan, shaken(plan), folder)
    return run


def refused(code: str, says: str, act: Callable[[], object]) -> None:
    """Whether an act ends in one error with one of these codes, which says that."""
    with pytest.raises(QlmmError, match=says) as caught:
        act()
    (problem,) = caught.value.problems
    assert problem.code in code.split()
    assert problem.help


@pytest.mark.parametrize("name", SPOILT)
def test_a_native_base_that_is_not_whole(name: str, made: TinyRun, tmp_path: Path) -> None:
    code, says, spoil = SPOILT[name]
    base = shutil.copytree(made.folder / "base", tmp_path / "base")
    spoil(base)
    recipe = made.recipe(f"base.model={base}", f"output.dir={tmp_path / 'run'}").recipe
    refused(code, says, lambda: make_plan(recipe))
    section = BaseSection(model=str(base), quantize="none")
    refused(code, says, lambda: Base.resolve(section).load(choose("cpu", "fp32"), seed=0))


@pytest.mark.parametrize(
    "name", ["no tower", "no language model", "a tensor too few", "a tensor too many", "another shape"]
)
def test_weights_that_were_only_fetched_for_loading(
    name: str, made: TinyRun, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Files that were not there while planning are compared when they are read."""
    code, says, spoil = SPOILT[name]
    base = shutil.copytree(made.folder / "base", tmp_path / "base")
    spoil(base)
    monkeypatch.setattr(whole, "_folder", lambda place: None)
    section = BaseSection(model=str(base), quantize="none")
    refused(code, says, lambda: Base.resolve(section).load(choose("cpu", "fp32"), seed=0))


def assembled(folder: Path) -> BaseSection:
    return BaseSection.model_validate(
        {
            "vision": str(folder / "tower"),
            "language": str(folder / "llama"),
            "connector": {"kind": "linear"},
            "quantize": "none",
            "chat_template": "plain",
        }
    )


@pytest.mark.parametrize("part", ["tower", "llama"])
@pytest.mark.parametrize("change", ["missing", "layers", "cut", "pointer"])
def test_a_part_of_an_assembled_base_that_is_not_whole(part: str, change: str, made: TinyRun, tmp_path: Path) -> None:
    for name in ("tower", "llama"):
        shutil.copytree(made.folder / name, tmp_path / name)
    Base.resolve(assembled(tmp_path)).check_weights()
    file = tmp_path / part / WEIGHTS

    def more(state: State) -> None:
        name = next(name for name in state if ".layers.1." in name)
        state[name.replace(".1.", ".7.")] = state[name].clone()

    def fewer(state: State) -> None:
        state.pop(next(name for name in state if ".layers.1." in name))

    if change in ("missing", "layers"):
        stored(file, fewer if change == "missing" else more)
    else:
        {"cut": cut, "pointer": lambda folder: (folder / WEIGHTS).write_text(POINTER)}[change](file.parent)
    says = {"missing": "it lacks ", "layers": r"it has .*\.7\.", "cut": "cannot be read", "pointer": "pointers"}[change]
    refused("M007", says, lambda: Base.resolve(assembled(tmp_path)).load(choose("cpu", "fp32"), seed=0))


def test_what_stood_on_a_tower_is_not_asked_for(made: TinyRun, tmp_path: Path) -> None:
    for name in ("tower", "llama"):
        shutil.copytree(made.folder / name, tmp_path / name)
    stored(tmp_path / "tower" / WEIGHTS, lambda state: state.update({"classifier.weight": torch.zeros(3, 32)}))
    Base.resolve(assembled(tmp_path)).load(choose("cpu", "fp32"), seed=0)


def _first(state: State, word: str) -> str:
    return next(name for name in state if word in name)


def _half(state: State, word: str) -> None:
    name = _first(state, word)
    state[name] = state[name].half()


ADAPTERS: dict[str, Callable[[State], object]] = {
    "A017 extra": lambda state: state.update(more=torch.zeros(2)),
    "A017 missing LoRA": lambda state: state.pop(_first(state, "lora_B")),
    "A017 missing connector": lambda state: state.pop(_first(state, "projector")),
    "A017 LoRA in fp16": lambda state: _half(state, "lora_A"),
    "A017 connector in fp16": lambda state: _half(state, "projector"),
    "A015 NaN in LoRA": lambda state: state[_first(state, "lora_A")].fill_(float("nan")),
    "A015 NaN in the connector": lambda state: state[_first(state, "projector")].fill_(float("nan")),
}


@pytest.mark.parametrize("name", ADAPTERS)
def test_an_adapter_that_is_not_whole(name: str, made: TinyRun, tmp_path: Path) -> None:
    """Its manifest fits the file: the tensors alone tell."""
    adapter = shutil.copytree(made.folder / "adapter", tmp_path / "adapter")
    stored(adapter / ADAPTER_WEIGHTS, ADAPTERS[name])
    recipe = made.recipe(f"adapter.start_from={adapter}", f"output.dir={tmp_path / 'run'}").recipe
    refused("M050 M051 M052", "", lambda: make_plan(recipe))
    write_manifest(adapter, read_manifest(adapter).model_copy(update={"files": file_hashes(adapter)}))
    refused(name.split(maxsplit=1)[0], "", lambda: load(adapter))
    refused("M050 M051 M052", "", lambda: make_plan(recipe))


def test_weights_to_start_from_that_were_changed(made: TinyRun, tmp_path: Path) -> None:
    adapter = shutil.copytree(made.folder / "adapter", tmp_path / "adapter")
    stored(adapter / ADAPTER_WEIGHTS, lambda state: state[_first(state, "lora_B")].add_(1))
    recipe = made.recipe(f"adapter.start_from={adapter}", f"output.dir={tmp_path / 'run'}").recipe
    refused("M050", "it was changed since qlmm.json was written", lambda: make_plan(recipe))
