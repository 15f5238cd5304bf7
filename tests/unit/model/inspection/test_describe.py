"""What is said of a model is what a run makes of it: parts, connector, tokens, and the file that is saved."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from safetensors import safe_open

from qlmm.core.errors import ModelError
from qlmm.core.filenames import ADAPTER_WEIGHTS
from qlmm.data.encoding.encoder import Encoder
from qlmm.model.inspection.describe import ModelShown, describe
from qlmm.model.loading.base import Base
from qlmm.model.parts.split import split
from qlmm.model.peft.adapter import attach, place, save_adapter
from qlmm.model.peft.targets import alike
from qlmm.recipe.load import parse_recipe
from qlmm.recipe.schema import Recipe
from tests.families.build import family, tiny_model
from tests.families.videos import videos_stood_in

RECIPE = "{{version: 1, base: {{model: {folder}}}, data: {{sources: [{{path: x}}]}}, output: {{dir: x}}}}"


def recipe(folder: Path, *overrides: str) -> Recipe:
    return parse_recipe(RECIPE.format(folder=folder), "x.yaml", overrides).recipe


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Callable[[str], Path]]:
    """A family's configuration and processor on disk, without a single weight."""
    shelf = tmp_path_factory.mktemp("families")

    def saved(name: str) -> Path:
        if not (shelf / name).exists():
            one = family(name)
            one.config.save_pretrained(shelf / name)
            one.processor.save_pretrained(shelf / name)
        return shelf / name

    with videos_stood_in():
        yield saved


@pytest.fixture
def shown(folder: Callable[[str], Path]) -> Callable[..., ModelShown]:
    return lambda name, *overrides: describe(recipe(folder(name), *overrides))


@pytest.mark.parametrize(
    ("name", "connector"),
    [
        ("llava", {"a module of its own": ("model.multi_modal_projector",)}),
        (
            "llava_next",
            {"a module of its own": ("model.multi_modal_projector",), "bare parameters": ("model.image_newline",)},
        ),
        (
            "qwen3_vl",
            {"inside the vision tower": ("model.visual.merger", "model.visual.deepstack_merger_list")},
        ),
        (
            "mllama",
            {
                "a module of its own": ("model.multi_modal_projector",),
                "cross-attention layers inside the decoder": ("model.language_model.layers.1",),
            },
        ),
    ],
)
def test_a_connector_is_found_wherever_it_is(
    shown: Callable[..., ModelShown], name: str, connector: dict[str, tuple[str, ...]]
) -> None:
    assert shown(name).connector == connector


def test_every_parameter_is_counted_once(shown: Callable[..., ModelShown]) -> None:
    for name in ("llava_next", "qwen3_vl", "gemma3"):
        found = shown(name)
        model = tiny_model(family(name))
        assert found.parameters == sum(part.parameters for part in found.parts) == model.num_parameters()
        assert (found.class_name, found.model_type, found.kind) == (type(model).__name__, name, "native")


@pytest.mark.parametrize("quantize", ["nf4", "int8", "none"])
def test_bytes_by_storage_add_up_to_the_estimate(shown: Callable[..., ModelShown], quantize: str) -> None:
    found = shown("llava_next", f"base.quantize={quantize}")
    assert sum(size for part in found.parts for size in part.stored.values()) == found.memory["frozen weights"]
    words = {part.part: set(part.stored) for part in found.parts}
    assert words["vision"] == words["connector"] == words["head"] == {"bf16"}
    assert words["language"] == ({"bf16"} if quantize == "none" else {quantize, "bf16"})


@pytest.mark.parametrize(
    ("name", "overrides"),
    [
        ("llava", ()),
        ("llava", ("adapter.variant=dora",)),
        ("llava", ("adapter.vision=lora", "adapter.connector=frozen")),
        ("llava_next", ()),
        ("llava_next", ("adapter.connector=lora", "adapter.vision=full")),
        ("qwen3_vl", ()),
        ("mllama", ()),
        ("qwen3_vl_moe", ("adapter.targets=[all-linear, experts]", "adapter.dropout=0")),
    ],
)
def test_the_adapter_is_the_one_that_is_saved(
    shown: Callable[..., ModelShown],
    folder: Callable[[str], Path],
    tmp_path: Path,
    name: str,
    overrides: tuple[str, ...],
) -> None:
    said = shown(name, *overrides).adapter
    model, section = tiny_model(family(name)), recipe(folder(name), *overrides).adapter
    placement = place(model, split(model), section)
    wrapped = attach(model, placement, section, seed=0)
    save_adapter(wrapped, tmp_path, placement.bare)
    with safe_open(str(tmp_path / ADAPTER_WEIGHTS), framework="pt") as file:
        kept = {key: file.get_tensor(key) for key in file.keys()}  # noqa: SIM118  no mapping
    assert said.lora + said.whole + said.bare == len(kept)
    assert said.lora == sum(".lora_" in key for key in kept)
    assert said.size == sum(4 * value.numel() for value in kept.values())


def test_servers_take_lora_alone(shown: Callable[..., ModelShown]) -> None:
    assert shown("llava_next").adapter.obstacles == ("modules_to_save: set adapter.connector=lora",)
    assert shown("llava_next", "adapter.connector=lora").adapter.obstacles == ()
    both = shown("llava", "adapter.vision=full", "adapter.variant=dora").adapter.obstacles
    assert both == (
        "modules_to_save: set adapter.connector=lora and adapter.vision=lora",
        "DoRA: set adapter.variant=plain",
    )


def test_experts_are_told_and_their_quantisation_is_refused(shown: Callable[..., ModelShown]) -> None:
    found = shown("qwen3_vl_moe")
    assert found.experts is not None
    assert (found.experts.fused, found.experts.weights, found.experts.adapted) == (True, 4, False)
    assert found.refused is not None
    assert f"{found.experts.share:.0%} of this language model" in found.refused
    assert found.quantize == "none"
    assert {storage for part in found.parts for storage in part.stored} == {"bf16"}
    assert set(found.lora.endings) == {"q_proj", "k_proj", "v_proj", "o_proj"}
    asked = shown("qwen3_vl_moe", "base.quantize=none", "adapter.targets=[experts]", "adapter.dropout=0")
    assert asked.refused is None
    assert asked.experts is not None
    assert asked.experts.adapted
    assert asked.lora.layers == {"language": 4}


def test_a_dense_model_has_no_experts(shown: Callable[..., ModelShown]) -> None:
    found = shown("llava")
    assert found.experts is None
    assert found.refused is None


def test_what_trains_is_said_of_each_part(shown: Callable[..., ModelShown]) -> None:
    found = shown("llava", "adapter.vision=lora")
    assert {part.part: part.training for part in found.parts} == {
        "vision": "LoRA",
        "connector": "whole",
        "language": "LoRA",
        "head": "frozen",
    }
    assert all((part.trained > 0) == (part.training != "frozen") for part in found.parts)


def test_tokens_are_those_of_a_run_with_and_without_the_budget(
    folder: Callable[[str], Path], shown: Callable[..., ModelShown]
) -> None:
    asked = recipe(folder("qwen3_vl"), "data.max_pixels=4096")
    found = describe(asked, [(336, 336), (20, 4020)]).pictures
    assert found is not None
    plain = Encoder.make(Base.resolve(asked.base).processor).tokens_for(336, 336)
    first, refused = found.sizes
    assert first.tokens == plain
    assert first.budgeted not in (None, plain)
    assert (refused.tokens, refused.budgeted) == (None, None)
    assert found.budget[0] == "size.longest_edge 4,096 pixels"
    assert found.follows == ("data.max_pixels", "data.min_pixels")
    assert list(found.ignores) == ["data.max_tiles"]
    without = shown("qwen3_vl").pictures
    assert without is not None
    assert without.sizes[0].budgeted is None


def test_a_budget_that_cannot_be_followed_hides_nothing(shown: Callable[..., ModelShown]) -> None:
    found = shown("llava", "data.max_pixels=4096").pictures
    assert found is not None
    assert found.refused is not None
    assert "same size" in found.refused
    assert found.sizes[0].tokens == 16


def test_rows_that_the_processor_refuses_are_told(shown: Callable[..., ModelShown]) -> None:
    prefixed = shown("paligemma", "base.chat_template=paligemma").pictures
    assert prefixed is not None
    assert not prefixed.without_picture.possible
    assert "PaliGemmaProcessor" in str(prefixed.without_picture.why_not)
    queried = shown("blip-2", "base.chat_template=blip2").pictures
    assert queried is not None
    assert not queried.several.possible
    assert "1 of this row's 2 pictures" in str(queried.several.why_not)


def test_a_template_that_ends_prompts_otherwise_than_rows_is_told(shown: Callable[..., ModelShown]) -> None:
    found = shown("paligemma", "base.chat_template=blip2")
    assert found.pictures is None
    assert "a prompt is not what stands before an answer" in str(found.unseen)


def test_without_a_chat_template_the_rest_is_shown(shown: Callable[..., ModelShown]) -> None:
    found = shown("blip-2")
    assert found.pictures is None
    assert found.unseen is not None
    assert "no chat template" in found.unseen
    assert "base.chat_template" in found.unseen
    assert found.parts


def test_an_adapter_section_that_does_not_fit_is_refused(shown: Callable[..., ModelShown]) -> None:
    with pytest.raises(ModelError, match="`q_porj` matches no linear layer"):
        shown("llava", "adapter.targets=[q_porj]")
    with pytest.raises(ModelError, match="M032"):
        shown("llava", "adapter.variant=pissa")


@pytest.mark.parametrize(
    ("overrides", "name"),
    [((), "bf16"), (("training.precision=fp16",), "fp16"), (("training.device=cpu",), "fp32")],
)
def test_precision_does_not_depend_on_this_machine(
    shown: Callable[..., ModelShown], overrides: tuple[str, ...], name: str
) -> None:
    assert shown("llava", *overrides).compute == name


def test_names_that_differ_in_numbers_only_are_alike() -> None:
    assert alike(["a.0.b", "a.12.b", "c"]) == {"a.#.b": ["a.0.b", "a.12.b"], "c": ["c"]}
