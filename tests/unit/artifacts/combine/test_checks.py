"""What can be said of a combination before a weight is read: its numbers, and what its adapters are called."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from qlmm.artifacts.adapter.folder import file_hashes
from qlmm.artifacts.adapter.manifest import Combination, read_manifest, write_manifest
from qlmm.artifacts.combine.card import combine_card
from qlmm.artifacts.combine.checks import Source, check_same_base, check_settings, read_sources
from qlmm.artifacts.hub.package import pack
from qlmm.core.errors import ModelError, UsageError
from tests.sharing import COMMIT, PRIVATE, contents, shared_adapter
from tests.unit.artifacts.adapters import manifest


@pytest.mark.parametrize(
    ("method", "weights", "says"),
    [
        ("cat", (float("nan"), 1.0), "finite"),
        ("ties", (1.0, float("-inf")), "finite"),
        ("linear", (1.0, 1.0), "add up to 1, and these add up to 2"),
        ("linear", (0.5, 0.0), "add up to 1, and these add up to 0.5"),
        ("linear", (1.5, -0.5), "with a negative one"),
        ("ties", (1.0, 0.0), "must be the same"),
        ("ties", (-1.0, -1.0), "above 0"),
    ],
)
def test_weights_that_would_scale_lora_and_connector_differently_are_refused(
    method: Any, weights: tuple[float, ...], says: str
) -> None:
    with pytest.raises(UsageError, match=rf"K002.*{says}") as caught:
        check_settings(2, method, weights, 0.5)
    (problem,) = caught.value.problems
    assert says == "finite" or "--method cat" in str(problem.help)


@pytest.mark.parametrize(
    ("method", "weights"),
    [
        ("cat", (3.0, -1.0)),
        ("linear", (0.1, 0.9)),
        ("ties", (1.0, 1.0)),
        ("ties", (0.5, 0.5)),
    ],
)
def test_other_weights_are_taken(method: Any, weights: tuple[float, ...]) -> None:
    check_settings(2, method, weights, 0.5)


def test_an_adapter_is_called_by_its_id_or_its_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    run, snapshot = shared_adapter(tmp_path / "owl"), shared_adapter(tmp_path / "snapshots", name=COMMIT)
    moved = shared_adapter(tmp_path, name="combined")
    fetched = {"me/owl": snapshot, "me/owl@v2": snapshot, f"me/owl@{COMMIT}": snapshot, "zoo:owl_kinds": snapshot}
    pulled = shared_adapter(tmp_path, name="adapter-cats")
    monkeypatch.setattr(
        "qlmm.artifacts.combine.checks.find_adapter", lambda target: fetched.get(target) or Path(target)
    )
    targets = [*fetched, str(run), str(run), str(moved), str(snapshot), str(pulled)]
    names = [source.name for source in read_sources(targets)]
    short = f"me/owl@{COMMIT[:7]}"
    assert names == [
        "me/owl",
        "me/owl@v2",
        short,
        "zoo:owl_kinds",
        *("owl", "owl-2", "combined-2"),
        "adapter",
        pulled.name,
    ]


def test_the_card_names_base_data_and_losses_and_can_be_pushed(tmp_path: Path) -> None:
    names, data = ["me/owl", "zoo:owl_kinds"], ["rows.jsonl"]
    sources = [{"name": name, "weights_sha256": "ab" * 32, "steps": 3, "data": data} for name in names]
    rows = "12 rows that the runs held out; me/owl may have been trained on some of them (its rows have changed since)"
    made: dict[str, Any] = {
        "method": "cat",
        "weights": [0.7, -0.2],
        "sources": sources,
        "reload": 0.0,
        "measured_on": rows,
    }
    losses = {"me/owl": 0.5, "zoo:owl_kinds": 0.25, "combined": 0.125}
    folder = shared_adapter(tmp_path, combined=Combination.model_validate(made | {"losses": losses}))
    made_of = read_manifest(folder)
    (folder / "README.md").write_text(combine_card(made_of.shared()), "utf-8")
    write_manifest(
        folder,
        made_of.model_copy(update={"proof": None, "files": file_hashes(folder)}),
    )
    parcel = pack(folder, "me/both", unproven=True).licensed({"some/llava": "apache-2.0"})
    for wanted in (
        f"| model | [some/llava](https://huggingface.co/some/llava) | {COMMIT} | apache-2.0 |",
        "| `me/owl` | 0.7 | 3 | `rows.jsonl` | `abababababab` |",
        "| `zoo:owl_kinds` | -0.2 | 3 | `rows.jsonl` | `abababababab` |",
        "| `rows.jsonl` | 1,234 | not stated |",
        f"On {rows}.",
        "| `combined` | 0.1250 |",
        "**Unproven.**",
    ):
        assert wanted in parcel.card
    assert PRIVATE not in parcel.card + parcel.manifest.model_dump_json()
    assert contents(folder)["README.md"] != parcel.card.encode()
    assert all(f"<!-- qlmm: {section};" in parcel.card for section in ("base", "data", "use"))


@pytest.mark.parametrize("field", ["revision", "config_sha256"])
def test_adapters_of_two_bases_are_refused_with_what_differs(field: str, tmp_path: Path) -> None:
    folder = shared_adapter(tmp_path)

    def of(value: str) -> Source:
        facts = {"id": "some/llava", "revision": COMMIT, "config_sha256": "aa"} | {field: value}
        return Source(value[:1], folder, manifest(base={"kind": "native", "parts": {"model": facts}}))

    one, other = "1" * 40, "2" * 40
    with pytest.raises(ModelError, match="K004") as caught:
        check_same_base([of(one), of(other)], "cat")
    assert one in str(caught.value)
    assert other in str(caught.value)
