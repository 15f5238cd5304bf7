"""``qlmm model show`` says what a model is without a weight of it, and one clear error where it is none."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from huggingface_hub.errors import GatedRepoError
from transformers import CONFIG_MAPPING
from transformers.utils import hub, is_timm_available, is_torchvision_available

from qlmm.cli.app import main
from tests.assembling import image_processor, llama, tower_config
from tests.families.build import family
from tests.families.videos import videos_stood_in
from tests.tiny import tiny_tokenizer

Run = Callable[..., tuple[int, str, str]]


@pytest.fixture(scope="module")
def shelf(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Folders with configurations and processors of models, and none of weights."""
    shelf = tmp_path_factory.mktemp("models")
    with videos_stood_in():
        for name in ("llava", "llava_next", "qwen3_vl", "mllama", "qwen3_vl_moe", "gemma3", "emu3", "blip-2"):
            one = family(name)
            one.config.save_pretrained(shelf / name)
            one.processor.save_pretrained(shelf / name)
    tokenizer = tiny_tokenizer()
    llama(len(tokenizer)).config.save_pretrained(shelf / "text")
    tokenizer.save_pretrained(shelf / "text")
    tower_config("clip").save_pretrained(shelf / "clip")
    image_processor("clip").save_pretrained(shelf / "clip")
    CONFIG_MAPPING["gemma3n"]().save_pretrained(shelf / "timm")
    family("llava").config.save_pretrained(shelf / "mute")
    strange = {"model_type": "mystery_vl", "auto_map": {"AutoConfig": "configuration_mystery.MysteryConfig"}}
    for folder, config in (("empty", None), ("remote", strange), ("unknown", {"model_type": "mystery_vl"})):
        (shelf / folder).mkdir()
        if config is not None:
            (shelf / folder / "config.json").write_text(json.dumps(config))
    return shelf


@pytest.fixture
def run(shelf: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Iterator[Run]:
    """Exit code, stdout and stderr of ``qlmm model show``, started beside the folders, 80 columns wide."""
    monkeypatch.chdir(shelf)
    monkeypatch.setenv("COLUMNS", "80")
    monkeypatch.setenv("NO_COLOR", "1")

    def run(*words: str) -> tuple[int, str, str]:
        monkeypatch.setattr(sys, "argv", ["qlmm", "model", "show", *words])
        capsys.readouterr()
        with pytest.raises(SystemExit) as caught:
            main()
        said = capsys.readouterr()
        return int(caught.value.code or 0), said.out, said.err

    with videos_stood_in():
        yield run


def flat(text: str) -> str:
    """The screen without its line ends, so that a test need not know where they are."""
    return " ".join(text.split())


SAYS = {
    "emu3": ("connector none",),
    "llava": (
        "class LlavaForConditionalGeneration (llava), native parameters 164,800",
        "answers after the question, by one decoder",
        "vision 64,128 parameters (bf16 125 KiB), frozen model.vision_tower",
        "connector 8,320 parameters (bf16 16 KiB), 8,320 trained a module of its own: model.multi_modal_projector",
        "language 70,912 parameters (nf4 about 25 KiB + bf16 42 KiB), LoRA: 26,624 trained model.language_model",
        "layers 14 in the language part, by 7 patterns",
        "336 x 336 16 tokens 1024 x 768 16 tokens 1920 x 1080 16 tokens",
        "cannot data.max_pixels, data.min_pixels, data.max_tiles: this base's LlavaImageProcessor",
        "without a picture: taken by the processor with two pictures: taken by the processor",
        "contains 32 tensors, 136 KiB in fp32: 28 of LoRA, 4 of whole modules",
        "servers vLLM and its like refuse modules_to_save: set adapter.connector=lora",
        "to train on one row of 1,024 tokens in bf16: frozen weights",
    ),
    "llava_next": (
        "a module of its own: model.multi_modal_projector bare parameters: model.image_newline",
        "336 x 336 88 tokens 1024 x 768 70 tokens",
        "can follow data.max_pixels, data.min_pixels, data.max_tiles",
        "28 of LoRA, 4 of whole modules, 1 bare",
    ),
    "qwen3_vl": (
        "inside the vision tower: model.visual.merger, model.visual.deepstack_merger_list",
        "can follow data.max_pixels, data.min_pixels cannot data.max_tiles",
    ),
    "mllama": (
        "cross-attention layers inside the decoder: model.language_model.layers.1",
        "1024 x 768 1 token",
    ),
    "qwen3_vl_moe": (
        "quantised refused: bitsandbytes cannot quantise fused experts, which are 68% of this language model's",
        "experts 4 fused weights that bitsandbytes cannot quantise, 67.5 % of the language model; not adapted",
        "routers left alone",
    ),
    "gemma3": (
        "head shares the weights of the embeddings lm_head",
        "1920 x 1080 9 tokens",
        "can follow data.max_tiles cannot data.max_pixels, data.min_pixels:",
    ),
}


@pytest.mark.parametrize("name", SAYS)
def test_a_model_is_shown_on_80_columns(run: Run, name: str) -> None:
    code, said, talk = run(name)
    assert (code, talk) == (0, "")
    for words in SAYS[name]:
        assert words in flat(said), said
    assert max(len(line) for line in said.splitlines()) <= 80
    assert not any(line.endswith(" ") for line in said.splitlines())


def test_changes_and_sizes_are_taken_from_the_command_line(run: Run) -> None:
    words = ("qwen3_vl", "adapter.connector=lora", "data.max_pixels=4096", "--size", "200x100", "--size", "20x4020")
    said = flat(run(*words)[1])
    assert "servers vLLM and its like take it" in said
    assert "200 x 100 10 tokens (2 without the budget)" in said
    assert "20 x 4020 refused by the processor" in said
    assert "budget size.longest_edge 4,096 pixels" in said
    assert "336 x 336" not in said


def test_a_budget_that_cannot_be_followed_is_told(run: Run) -> None:
    code, said, _ = run("llava", "data.max_pixels=4096")
    assert code == 0
    assert "budget refused: data.max_pixels: this base's LlavaImageProcessor" in flat(said)


def test_json_holds_the_same_facts(run: Run) -> None:
    code, said, talk = run("llava_next", "--json", "--size", "336x336")
    assert (code, talk) == (0, "")
    facts = json.loads(said)["result"]
    assert [part["part"] for part in facts["parts"]] == ["vision", "connector", "language", "head"]
    assert facts["connector"]["bare parameters"] == ["model.image_newline"]
    assert facts["pictures"]["sizes"] == [{"width": 336, "height": 336, "tokens": 88, "budgeted": None}]
    assert facts["adapter"]["obstacles"] == ["modules_to_save: set adapter.connector=lora"]
    assert facts["lora"]["layers"] == {"language": 14}
    assert facts["memory"]["frozen weights"] > 0


RECIPE = """\
version: 1
base: {{{base}}}
adapter: {{targets: [{target}]}}
data:
  sources: [{{path: rows.jsonl}}]
  max_pixels: 4096
output: {{dir: run}}
"""
ASSEMBLED = "vision: clip, language: text, connector: {kind: mlp}, chat_template: vicuna"


def test_a_recipe_gives_base_adapter_and_budget(run: Run, shelf: Path) -> None:
    (shelf / "mine.yaml").write_text(RECIPE.format(base="model: qwen3_vl, quantize: none", target="q_proj"))
    said = flat(run("mine.yaml")[1])
    assert "endings q_proj (2)" in said
    assert "336 x 336 16 tokens (4 without the budget)" in said
    assert "bf16" in said
    assert "nf4" not in said
    assert not (shelf / "run").exists()


def test_an_assembled_base_is_shown_too(run: Run, shelf: Path) -> None:
    (shelf / "mine.yaml").write_text(RECIPE.format(base=ASSEMBLED, target="q_proj"))
    said = flat(run("mine.yaml")[1])
    assert "base clip + mlp + text class LlavaForConditionalGeneration (llava), assembled" in said
    assert "a module of its own: model.multi_modal_projector" in said
    assert "336 x 336 4 tokens" in said
    assert "budget refused: data.max_pixels" in said


def test_a_recipe_that_does_not_fit_is_told_with_its_line(run: Run, shelf: Path) -> None:
    (shelf / "mine.yaml").write_text(RECIPE.format(base="model: llava", target="q_porj"))
    code, said, error = run("mine.yaml")
    assert (code, said) == (2, "")
    assert error.startswith("error[M030]: adapter.targets: `q_porj` matches no linear layer")
    assert "--> mine.yaml:3" in error


def test_a_processor_without_a_template_does_not_hide_the_rest(run: Run) -> None:
    code, said, talk = run("blip-2")
    assert (code, talk) == (0, "")
    assert "bare parameters: query_tokens" in said
    assert "not known base.chat_template: blip-2 has no chat template of its own; set base.chat_template to" in flat(
        said
    )


def test_a_processor_that_is_not_there_does_not_hide_the_rest(run: Run) -> None:
    code, said, _ = run("mute")
    assert code == 0
    assert "model.multi_modal_projector" in said
    assert "not known base.model: the folder mute does not have all of a model: Can't load" in flat(said)


@pytest.mark.skipif(is_torchvision_available(), reason="this machine has torchvision")
def test_a_missing_package_of_the_processor_does_not_hide_the_rest(shelf: Path) -> None:
    command = [sys.executable, "-m", "qlmm", "model", "show", str(shelf / "qwen3_vl")]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    assert "inside the vision tower: model.visual.merger" in flat(done.stdout)
    missing = 'needs the package torchvision, which is not installed; pip install "qlmm[gpu]"'
    assert missing in flat(done.stdout)
    assert done.stderr == ""


def gated(*_: Any, **__: Any) -> None:
    """What the Hub's library does where a licence was not accepted."""
    answer: Any = SimpleNamespace(headers={}, request=None)
    raise GatedRepoError("403 Client Error", response=answer)


BAD = {
    "text-only model": ("text", "M010", "text is not a vision-language model (it is of kind llama)", "base.language"),
    "encoder alone": (
        "clip",
        "M010",
        "clip is not a vision-language model (it is of kind clip_vision_model)",
        "base.vis",
    ),
    "folder that holds none": ("empty", "M003", "cannot read empty: Unrecognized model", "choose another model"),
    "folder that is not there": ("./none/here", "M003", "./none/here is neither a model folder here", "the spelling"),
    "file": ("llava/config.json", "M003", "llava/config.json is a file, not a model folder", "name the folder"),
    "id out of reach": ("no/such", "M003", "no/such is neither a model folder here nor", "HF_HUB_OFFLINE=1"),
    "remote code": ("remote", "M004", "asks for Python code from a repository", "transformers supports itself"),
    "unknown kind": ("unknown", "M003", "cannot read unknown: The checkpoint", "upgrade transformers"),
    "endless name": ("x" * 5000, "M003", "is neither a model folder here", "check the spelling"),
    "recipe that is not there": ("owl_lroa.yaml", "R001", "there is no recipe `owl_lroa.yaml`", "`owl_lora`"),
}


def refused(run: Run, *words: str) -> tuple[str, str]:
    """Message and help of a request that is refused with one error and exit code 2."""
    code, said, error = run(*words)
    assert (code, said) == (2, ""), error
    assert error.startswith("error[")
    assert error.count("error[") == 1
    assert "Traceback" not in error
    message, _, help = error.partition("\nhelp: ")
    return message, help


@pytest.mark.parametrize("case", BAD)
def test_what_is_no_model_for_this_is_one_clear_error(run: Run, case: str) -> None:
    target, code, says, helps = BAD[case]
    message, help = refused(run, target)
    assert message.startswith(f"error[{code}]: ")
    assert says in message
    assert helps in help


def test_a_gated_model_has_a_way_in(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(hub, "hf_hub_download", gated)
    message, help = refused(run, "some/gated-model")
    assert message == (
        "error[M006]: base.model: some/gated-model is gated: its licence has to be accepted before it can be fetched"
    )
    assert help == "accept the licence on the model's page, then run `hf auth login`\n"


@pytest.mark.skipif(is_timm_available(), reason="this machine has timm")
def test_a_tower_that_needs_a_package_names_it(run: Run) -> None:
    message, help = refused(run, "timm")
    assert message == "error[M005]: base.model: timm needs the package timm, which is not installed"
    assert help == "pip install timm\n"


@pytest.mark.parametrize("size", ["12", "0x5", "axb", "-3x4", "100x", "1024x768x3"])
def test_a_size_that_is_none_is_refused(run: Run, size: str) -> None:
    message, help = refused(run, "llava", f"--size={size}")
    assert message == f"error[U032]: --size {size} is not a picture size"
    assert "1024x768" in help


def test_a_size_that_no_picture_may_have_is_refused(run: Run) -> None:
    assert "more than the 50,000,000 pixels" in refused(run, "llava", "--size", "100000x90000")[0]


def test_a_misspelt_change_is_shown_as_it_was_typed(run: Run) -> None:
    message, help = refused(run, "llava", "training.stpes=2")
    assert "--> command line:1" in message
    assert "did you mean `steps`?" in help
