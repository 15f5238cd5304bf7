"""What a base is, as JSON and as the one comparison of two bases."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from qlmm.model.loading.identity import BaseIdentity, PartIdentity
from qlmm.recipe.schema import ConnectorSection

ZOO = Path(__file__).parents[4] / "adapters_zoo"
COMMIT = "a" * 40


def part(id: str = "some/clip", revision: str | None = None, config: str = "c") -> PartIdentity:
    return PartIdentity(id=id, revision=revision, config_sha256=config)


def native(**changes: str | None) -> BaseIdentity:
    return BaseIdentity(kind="native", parts={"model": part(**changes)})  # type: ignore[arg-type]


@pytest.mark.parametrize("path", sorted(ZOO.glob("*/qlmm.json")), ids=lambda path: path.parent.name)
def test_it_is_written_exactly_as_the_manifests_of_the_zoo_have_it(path: Path) -> None:
    stated = json.loads(path.read_text("utf-8"))["base"]
    identity = BaseIdentity.model_validate(stated)
    assert json.dumps(identity.model_dump(mode="json")) == json.dumps(stated)
    assert identity.differs(identity) == []


def test_a_native_base_is_written_without_a_connector() -> None:
    assert list(native().model_dump(mode="json")) == ["kind", "parts"]


@pytest.mark.parametrize(
    ("present", "fields"),
    [
        (native(), []),
        (native(config="d"), ["configuration"]),
        (native(revision=COMMIT), []),
        (native(id="other/clip"), ["id"]),
        (native(id="other/clip", config="d"), ["configuration", "id"]),
        (native(id=".", config="c"), []),
    ],
    ids=["same", "configuration", "revision known once", "id", "both", "a folder, which may be a copy"],
)
def test_what_differs_is_named(present: BaseIdentity, fields: list[str]) -> None:
    assert [one.field for one in native().differs(present)] == fields


def test_a_revision_differs_only_where_both_are_known_and_is_no_part_of_the_name() -> None:
    recorded, present = native(id=f"some/clip@{COMMIT}", revision=COMMIT), native(revision="b" * 40)
    (one,) = recorded.differs(present)
    assert (one.role, one.field) == ("model", "revision")
    assert one.recorded is not None
    assert (one.recorded.name, one.recorded.pinned) == ("some/clip", f"some/clip@{COMMIT}")
    assert recorded.differs(native(revision=COMMIT)) == []


def test_parts_that_only_one_of_them_has_are_differences_of_both() -> None:
    parts = {"vision": part(), "language": part("some/llama")}
    assembled = BaseIdentity(kind="assembled", parts=parts, connector=ConnectorSection(kind="mlp"))  # type: ignore[arg-type]
    found = {one.role: (one.recorded is None, one.present is None) for one in native().differs(assembled)}
    assert found == {"model": (False, True), "vision": (True, False), "language": (True, False)}


def test_only_a_folder_is_local() -> None:
    assert part("models/mine").local
    assert not part("builtin:owl").local
    assert not part("some/clip", COMMIT).local
