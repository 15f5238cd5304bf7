"""Reference log-probabilities on disk: exact, appended, never those of something else."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch

from qlmm.core.errors import RunError
from qlmm.training.trainers.reference_cache import ReferenceCache

OF = {"base": "b", "adapter": "a", "data": "d", "processor": "p"}
HOW = {"batch_size": 2, "ld_alpha": None}


def opened(folder: Path, of: dict[str, str] = OF, how: dict[str, object] = HOW) -> ReferenceCache:
    return ReferenceCache(folder / "reference.jsonl", of=of, how=how)


def filled(folder: Path) -> tuple[float, float]:
    chosen, rejected = torch.randn(2).tolist()
    cache = opened(folder)
    cache.put([4, 2], [(chosen, rejected), (-1.0, -2.0)])
    cache.close()
    return chosen, rejected


def test_values_come_back_to_the_last_bit(tmp_path: Path) -> None:
    values = filled(tmp_path)
    cache = opened(tmp_path)
    assert cache.get([4]) == [values]
    assert cache.get([2, 4]) == [(-1.0, -2.0), values]
    assert torch.equal(torch.tensor(cache.get([4])), torch.tensor([values]))


def test_a_batch_with_a_pair_not_yet_met_is_computed(tmp_path: Path) -> None:
    filled(tmp_path)
    assert opened(tmp_path).get([4, 3]) is None


def test_what_is_known_stays_as_it_was_first_computed(tmp_path: Path) -> None:
    filled(tmp_path)
    cache = opened(tmp_path)
    cache.put([2, 7], [(0.0, 0.0), (-3.0, -4.0)])
    cache.close()
    assert opened(tmp_path).get([2, 7]) == [(-1.0, -2.0), (-3.0, -4.0)]


def test_a_line_that_a_kill_cut_short_is_left_out(tmp_path: Path) -> None:
    filled(tmp_path)
    path = tmp_path / "reference.jsonl"
    whole = path.read_bytes()
    for cut in range(whole.index(b"\n") + 1, len(whole)):
        path.write_bytes(whole[:cut])
        cache = opened(tmp_path)
        assert (cache.get([4]) is None) == (whole[:cut].count(b"\n") < 2)
        cache.put([9], [(1.0, 2.0)])
        cache.close()
        assert opened(tmp_path).get([9]) == [(1.0, 2.0)]


@pytest.mark.parametrize("changed", OF)
def test_values_of_something_else_are_refused_by_name(tmp_path: Path, changed: str) -> None:
    filled(tmp_path)
    before = (tmp_path / "reference.jsonl").read_bytes()
    with pytest.raises(RunError, match=rf"C005.*another {changed}"):
        opened(tmp_path, {**OF, changed: "other"})
    assert (tmp_path / "reference.jsonl").read_bytes() == before


def test_other_settings_compute_anew(tmp_path: Path) -> None:
    filled(tmp_path)
    assert opened(tmp_path, how={**HOW, "batch_size": 3}).get([4]) is None


@pytest.mark.parametrize(
    "text", ["hello\n", "[]\n", '{"of": {}}\n', json.dumps({"of": OF, "how": HOW}) + '\n{"row": "x"}\n']
)
def test_a_file_that_is_something_else_is_refused(tmp_path: Path, text: str) -> None:
    (tmp_path / "reference.jsonl").write_text(text)
    with pytest.raises(RunError, match="C005"):
        opened(tmp_path)
