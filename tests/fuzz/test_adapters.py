"""The papers of an adapter, with anything in them: they are read, or refused as what they are."""

from __future__ import annotations

import json
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from qlmm.artifacts.adapter.folder import file_hashes
from qlmm.artifacts.adapter.load import load
from qlmm.artifacts.adapter.manifest import read_manifest, write_manifest
from qlmm.artifacts.adapter.verify import check_adapter, verify
from qlmm.artifacts.hub.package import pack
from qlmm.core.errors import ModelError, QlmmError
from qlmm.core.filenames import ADAPTER_CONFIG, MANIFEST
from qlmm.model.peft.config_file import AdapterConfig, read_config
from tests.fuzz.inputs import FUZZ, damaged, mutated, soon, values
from tests.sharing import shared_adapter

ALPHABET = '[]{}",:0e9.-\\unNIt\t'
KEYS = sorted({*AdapterConfig.model_fields, "sha256", "layers_pattern", "x"})


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return shared_adapter(tmp_path_factory.mktemp("adapter"))


@pytest.fixture(scope="module")
def papers(folder: Path) -> dict[str, str]:
    """Both files as they were written."""
    return {name: (folder / name).read_text("utf-8") for name in (MANIFEST, ADAPTER_CONFIG)}


def _read(folder: Path, name: str, text: str, *others: Callable[[Path], object]) -> None:
    """Only errors of ours come out of any command that reads the file; its hash fits, as an attacker's would."""
    before = {file: (folder / file).read_bytes() for file in (MANIFEST, ADAPTER_CONFIG)}
    made = read_manifest(folder)
    (folder / name).write_bytes(text.encode("utf-8", "surrogatepass"))
    if name != MANIFEST:
        write_manifest(folder, made.model_copy(update={"files": file_hashes(folder)}))
    own = read_manifest if name == MANIFEST else read_config
    try:
        for command in (own, check_adapter, load, *others):
            with soon(), suppress(QlmmError if command is not own else ModelError):
                command(folder)
    finally:
        for file, content in before.items():
            (folder / file).write_bytes(content)


OTHERS = (verify, lambda folder: pack(folder, "me/x", unproven=True))


@pytest.mark.parametrize("name", [MANIFEST, ADAPTER_CONFIG])
@FUZZ
@given(data=st.data())
def test_other_values_are_read_or_refused(name: str, folder: Path, papers: dict[str, str], data: st.DataObject) -> None:
    raw: Any = mutated(data, json.loads(papers[name]), KEYS)
    _read(folder, name, json.dumps(raw, ensure_ascii=data.draw(st.booleans())), *OTHERS)


@pytest.mark.parametrize("name", [MANIFEST, ADAPTER_CONFIG])
@FUZZ
@given(data=st.data())
def test_damaged_text_is_read_or_refused(name: str, folder: Path, papers: dict[str, str], data: st.DataObject) -> None:
    _read(folder, name, damaged(data, papers[name], ALPHABET), *OTHERS)


@FUZZ
@given(written=st.dictionaries(st.sampled_from(KEYS), values(KEYS)))
def test_no_adapter_config_raises_an_error_of_another_kind(folder: Path, written: dict[str, Any]) -> None:
    _read(folder, ADAPTER_CONFIG, json.dumps(written))
