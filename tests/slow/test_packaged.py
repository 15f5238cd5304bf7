"""The packaged weights and pictures, for real: fetched once per machine, kept under QLMM_HOME."""

from __future__ import annotations

import json
from functools import cache
from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import Image
from torch.nn import functional
from transformers import (
    AutoImageProcessor,
    AutoModel,
    AutoModelForCausalLM,
    AutoTokenizer,
    PreTrainedModel,
)

from qlmm.builtin import registry as builtin
from qlmm.builtin.assets import emoji
from qlmm.model.assembled.build import assemble, assembled_config, connector_for
from qlmm.model.assembled.language import add_image_token, embedding_width
from qlmm.model.assembled.processor import assembled_processor
from qlmm.model.assembled.vision import picture_size, prepared, vision_facts
from tests.assembling import stored_config

pytestmark = pytest.mark.slow


@pytest.fixture(autouse=True)
def two_threads() -> Any:
    """Real sizes gain from both cores, whatever the rest of the suite runs on."""
    before = torch.get_num_threads()
    torch.set_num_threads(2)
    yield
    torch.set_num_threads(before)


@cache
def language() -> tuple[PreTrainedModel, Any]:
    folder = builtin.path("smollm2-135m")
    model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32).eval()
    return model, AutoTokenizer.from_pretrained(folder)


def tower(name: str) -> tuple[PreTrainedModel, Any]:
    folder = builtin.path(name)
    config = stored_config(folder)
    return AutoModel.from_pretrained(folder, config=config).eval(), AutoImageProcessor.from_pretrained(folder)


def picture(label: str) -> Image.Image:
    """The picture of a name, on white."""
    for name in ("emoji", "emoji-heldout"):
        file = builtin.path(name)
        for line in file.read_text("utf-8").splitlines():
            row = json.loads(line)
            if row["messages"][1]["content"] == label:
                drawn = Image.open(file.parent / row["images"][0]).convert("RGBA")
                white = Image.new("RGBA", drawn.size, "white")
                return Image.alpha_composite(white, drawn).convert("RGB")
    raise AssertionError(label)


def alike(features: torch.Tensor) -> torch.Tensor:
    """Cosine of every pair."""
    unit = functional.normalize(features, dim=-1)
    return unit @ unit.T


def test_smollm2_knows_the_capital_of_france() -> None:
    model, tokenizer = language()
    assert type(model).__name__ == "LlamaForCausalLM"
    assert "quantization_config" not in model.config.to_dict()
    assert sum(parameter.numel() for parameter in model.parameters()) == pytest.approx(134.5e6, rel=0.001)
    question = [{"role": "user", "content": "What is the capital of France?"}]
    ids = tokenizer.apply_chat_template(question, add_generation_prompt=True, return_tensors="pt")["input_ids"]
    with torch.no_grad():
        answer = model.generate(ids, max_new_tokens=12, do_sample=False)
    assert "Paris" in tokenizer.decode(answer[0, ids.shape[1] :])


@torch.no_grad()
def test_the_tower_sees_that_two_apples_are_more_alike_than_an_apple_and_a_bus() -> None:
    model, prepare = tower("efficientnet-lite0")
    pixels = prepare([picture(label) for label in ("red apple", "green apple", "bus", "minibus")], return_tensors="pt")
    output = model(**pixels, output_hidden_states=True)
    tokens = output.hidden_states[-1]
    assert tokens.isfinite().all()
    assert torch.equal(tokens, model(**pixels, output_hidden_states=True).hidden_states[-1])
    close = alike(tokens.mean(1))
    assert close[0, 1] > close[0, 2]
    assert close[2, 3] > close[1, 3]


def test_pictures_are_split_by_concept() -> None:
    sides = []
    for name in ("emoji", "emoji-heldout"):
        file = builtin.path(name)
        rows = [json.loads(line) for line in file.read_text("utf-8").splitlines()]
        assert all((file.parent / row["images"][0]).is_file() for row in rows)
        sides.append([row["messages"][1]["content"] for row in rows])
    train, held = sides
    assert len(train) + len(held) == 732
    assert 120 <= len(held) <= 180
    assert not {emoji.concept(label) for label in train} & {emoji.concept(label) for label in held}
    notice = (builtin.path("emoji").parent / "NOTICE.txt").read_text()
    assert "Microsoft" in notice
    assert "LobeHub" in notice


def test_folders_are_readable_by_whom_the_umask_lets(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    mode = (tmp_path / "file").stat().st_mode & 0o777
    assert (builtin.path("efficientnet-lite0") / "model.safetensors").stat().st_mode & 0o777 == mode


@torch.no_grad()
def test_an_abstractor_joins_the_quick_starts_parts() -> None:
    model, tokenizer = language()
    vision, prepare = tower("efficientnet-lite0")
    prepare = prepared(prepare, "squash")
    bare = model(input_ids=torch.tensor([[1, 2, 3, 4]])).logits
    image_token_id = add_image_token(tokenizer, model)
    facts = vision_facts(vision.config, picture_size(prepare))
    settings = {"hidden": 384, "layers": 2, "heads": 6}
    connector, spec = connector_for("abstractor", settings, facts=facts, text_width=embedding_width(model), seed=0)
    config = assembled_config(vision.config, model, spec, image_token_id)
    whole = assemble(vision, model, connector, config)
    processor = assembled_processor(prepare, tokenizer, config=config, facts=facts)
    chat = [{"role": "user", "content": "<image>What is this?"}, {"role": "assistant", "content": "red apple"}]
    text = tokenizer.apply_chat_template(chat, tokenize=False)
    batch = processor(images=[picture("red apple")], text=text, return_tensors="pt")
    assert int((batch["input_ids"] == image_token_id).sum()) == spec.tokens == 65
    loss = whole(**batch, labels=batch["input_ids"].masked_fill(batch["input_ids"] == image_token_id, -100)).loss
    assert loss.isfinite()
    text_only = whole(input_ids=torch.tensor([[1, 2, 3, 4]])).logits
    assert torch.allclose(text_only[..., : bare.shape[-1]], bare, atol=1e-4)
