"""Adapters and bases made to hang, to fill the memory or to run code: refused by name, before anything is built."""

from __future__ import annotations

import json
import math
import time
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from jinja2 import TemplateError

from qlmm.artifacts.adapter.folder import file_hashes
from qlmm.artifacts.adapter.load import check_files, load
from qlmm.artifacts.adapter.manifest import read_manifest, write_manifest
from qlmm.artifacts.adapter.verify import check_adapter, verify
from qlmm.artifacts.hub.package import pack
from qlmm.core import json_files
from qlmm.core.errors import ModelError
from qlmm.core.filenames import ADAPTER_CONFIG, MANIFEST
from qlmm.core.limited import TooMuch, limited
from qlmm.data.encoding import guarded_template
from qlmm.data.encoding.encoder import Encoder
from qlmm.model.loading.base import Base
from qlmm.model.loading.hub import config_of, locate
from qlmm.model.peft.config_file import read_config
from qlmm.model.peft.warm_start import Earlier
from qlmm.recipe.schema import BaseSection
from tests.sharing import shared_adapter
from tests.tiny import tiny_processor
from tests.unit.artifacts.adapters import manifest

CODE = "open('ran', 'w').write('x')"
ANY = settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
VALUES = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=20),
    lambda one: st.lists(one, max_size=3) | st.dictionaries(st.text(max_size=8), one, max_size=3),
    max_leaves=6,
)


def with_config(parent: Path, **changes: Any) -> Path:
    """An adapter whose hashes fit, with other settings of PEFT."""
    folder = shared_adapter(parent)
    changed(folder, ADAPTER_CONFIG, changes)
    return folder


def changed(folder: Path, name: str, changes: dict[str, Any]) -> None:
    path = folder / name
    before = json.loads(path.read_text("utf-8")) if path.is_file() else {}
    path.write_text(json.dumps(before | changes), "utf-8")
    made = read_manifest(folder)
    write_manifest(folder, made.model_copy(update={"files": file_hashes(folder)}))


@pytest.mark.parametrize(
    "changes",
    [
        {"target_modules": r"(([a-z_.0-9]+)*)*!"},
        {"target_modules": r"(?:1|11)(?:1|11)(?:1|11)(?:1|11)x"},
        {"target_modules": r"\d+\d+\d+\d+\d+x"},
        {"target_modules": "a" * (1 << 19)},
        {"target_modules": ["q_proj", "(a+)+$"]},
        {"rank_pattern": {"(a+)+$": 4}},
        {"alpha_pattern": {"(a+)+$": 4}},
        {"layers_pattern": ["(a+)+$"]},
        {"exclude_modules": "(a+)+$"},
        {"layer_replication": [[0, 100000]]},
        {"r": 10**6},
        {"r": 0},
        {"r": "8"},
        {"lora_alpha": math.nan},
        {"lora_alpha": math.inf},
        {"lora_alpha": -1},
        {"peft_type": "IA3"},
        {"init_lora_weights": "eva"},
        {"auto_mapping": {"parent_library": "antigravity", "base_model_class": "x"}},
        {"modules_to_save": ["a b"]},
    ],
    ids=str,
)
def test_settings_that_qlmm_never_writes_are_refused_by_every_command(changes: dict[str, Any], tmp_path: Path) -> None:
    folder = with_config(tmp_path, **changes)
    for command in (load, check_adapter, lambda one: pack(one, "me/x", unproven=False)):
        with pytest.raises(ModelError, match="A038") as caught:
            command(folder)
        assert next(iter(changes)) in str(caught.value)
    files = next(check for check in verify(folder).checks if check.name == "files")
    assert (files.status, "is not what qlmm writes" in files.found) == ("failed", True)


def test_settings_as_qlmm_writes_them_are_read(tmp_path: Path) -> None:
    pattern = r"model\.layers\.\d+\.self_attn\.q_proj|model\.layers\.(?:1|22|3)\.mlp\.up-proj|dummy-target-modules"
    folder = with_config(tmp_path, target_modules=pattern, rank_pattern={}, alpha_pattern={}, new_key_of_peft=None)
    assert read_config(folder).target_modules == pattern
    check_files(folder, read_manifest(folder))


@pytest.mark.parametrize("name", [MANIFEST, ADAPTER_CONFIG])
def test_a_file_of_hundreds_of_megabytes_is_not_read(name: str, tmp_path: Path) -> None:
    folder = shared_adapter(tmp_path)
    with (folder / name).open("r+b") as file:
        file.truncate(300 << 20)
    with pytest.raises(ModelError, match="File too large"):
        read_manifest(folder) if name == MANIFEST else read_config(folder)
    (folder / name).write_text("[" * 100_000)
    with pytest.raises(ModelError, match=r"A002|A038"):
        read_manifest(folder) if name == MANIFEST else read_config(folder)


@pytest.mark.parametrize("key", sorted(json_files.RUNS_CODE))
@pytest.mark.parametrize(
    "name", [ADAPTER_CONFIG, "tokenizer_config.json", "processor_config.json", "qformer/config.json"]
)
def test_an_adapter_that_asks_for_code_is_refused_by_every_command(
    key: str, name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    folder = shared_adapter(tmp_path)
    (folder / name).parent.mkdir(exist_ok=True)
    (folder / "evil.py").write_text(CODE)
    changed(folder, name, {"deep": [{key: {"AutoConfig": "evil.Config"}}]})
    for command in (load, check_adapter):
        with pytest.raises(ModelError, match=f"M004.*{key}"):
            command(folder)
    assert any("M004" in check.found or key in check.found for check in verify(folder).checks)
    assert not Path("ran").exists()


@pytest.mark.parametrize("name", ["adapter_config.json", MANIFEST])
def test_a_start_from_an_adapter_that_asks_for_code_is_refused(name: str, tmp_path: Path) -> None:
    (tmp_path / name).write_text('{"auto_map": {}}')
    earlier = Earlier(tmp_path / "adapter_model.safetensors", frozenset(), has_lora=True)
    with pytest.raises(ModelError, match="M004"):
        earlier.check_base(manifest().base) if name == MANIFEST else earlier.check_scale(manifest().recipe.adapter)


@pytest.mark.parametrize("name", ["config.json", "tokenizer_config.json", "generation_config.json"])
def test_a_base_that_asks_for_code_is_refused(name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    base = tmp_path / "base"
    base.mkdir()
    (base / "evil.py").write_text(CODE)
    (base / "config.json").write_text('{"model_type": "llava"}')
    asked = {"model_type": "llava", "auto_map": {"AutoConfig": "evil.Config", "AutoTokenizer": ["evil.T", None]}}
    (base / name).write_text(json.dumps(asked))
    with pytest.raises(ModelError, match=r"M004.*auto_map"):
        Base.resolve(BaseSection(model=str(base)))
    assert not Path("ran").exists()


@pytest.mark.parametrize(
    ("changes", "code"),
    [
        ({"num_hidden_layers": 100_000}, "M008"),
        ({"num_hidden_layers": 1e300}, "M008"),
        ({"num_hidden_layers": math.nan}, "M008"),
        ({"num_local_experts": 10**9}, "M008"),
        ({"hidden_size": 1 << 40}, "M008"),
        ({"hidden_size": 1 << 25}, "M008"),
        ({"vocab_size": 1 << 29}, "M008"),
        ({"hidden_size": "x"}, "M003"),
        ({"num_attention_heads": 0}, "M003"),
        ({"num_hidden_layers": [[3]]}, "M003"),
    ],
    ids=str,
)
def test_a_base_of_impossible_size_is_refused_at_once(changes: dict[str, Any], code: str, tmp_path: Path) -> None:
    text = {"model_type": "llama", "hidden_size": 64, "num_hidden_layers": 1, "num_attention_heads": 4} | changes
    (tmp_path / "config.json").write_text(json.dumps({"model_type": "llava", "text_config": text}))
    begun = time.monotonic()
    with pytest.raises(ModelError, match=code):
        _ = Base.resolve(BaseSection(model=str(tmp_path))).shape
    assert time.monotonic() - begun < 60


def test_the_largest_models_are_possible(tmp_path: Path) -> None:
    text = {"model_type": "llama", "num_hidden_layers": 126, "hidden_size": 16384, "vocab_size": 262144}
    text["max_position_embeddings"] = 10485760
    (tmp_path / "config.json").write_text(json.dumps({"model_type": "llava", "text_config": text}))
    assert config_of(locate(str(tmp_path)), "base.model").text_config.num_hidden_layers == 126


BOMBS = {
    "endless loops": "{% for a in range(99999) %}{% for b in range(99999) %}{% for c in range(99999) %}{% endfor %}"
    "{% endfor %}{% endfor %}",
    "a long string": "{% set x = 'a' * 20000000000 %}",
    "strings that double": "{% set ns = namespace(s='aaaaaaaa') %}{% for i in range(60) %}{% set ns.s = ns.s ~ ns.s %}"
    "{% endfor %}",
    "a filter": "{{ 'x' | center(20000000000) }}",
    "a number": "{% set x = 10 ** (10 ** 9) %}",
    "recursion": "{% macro f(n) %}{{ f(n) }}{{ f(n) }}{% endmacro %}{{ f(1) }}",
    "an error of Python": "{{ 1 // 0 }}",
    "much text": "{% for i in range(99999) %}{{ 'a' * 10000 }}{% endfor %}",
}


@pytest.mark.parametrize("name", BOMBS)
def test_a_chat_template_cannot_hang_or_fill_the_memory(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(guarded_template, "SECONDS", 0.5)
    monkeypatch.setattr(guarded_template, "SIZE", 1 << 28)
    processor = tiny_processor("vicuna")
    processor.chat_template = BOMBS[name] + processor.chat_template
    begun = time.monotonic()
    with pytest.raises(ModelError, match=r"D031.*marked answer: .*(takes more than|makes|Error)"):
        Encoder.make(processor)
    assert time.monotonic() - begun < 30


def endless() -> None:
    """Works on for ever, as a library does that takes every error for an answer."""
    while True:
        with suppress(Exception):
            time.sleep(0.01)


def test_limits_are_gone_afterwards() -> None:
    with pytest.raises(TooMuch, match=r"more than 0\.05 seconds"), limited(seconds=0.05, size=1 << 30):
        endless()
    with pytest.raises(TooMuch, match="more than 64 MB"), limited(seconds=10, size=1 << 26):
        bytearray(1 << 27)
    assert len(bytearray(1 << 27)) == 1 << 27
    with pytest.raises(TemplateError, match="ZeroDivisionError"), guarded_template.guarded_template():
        _ = 1 // 0
