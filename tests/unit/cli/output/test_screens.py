"""The screens: what they say, in 80 columns; any other width will do."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest

from qlmm.cli.output.console import out
from qlmm.cli.output.screens import done_screen, plan_screen, proof_screen
from qlmm.proof.records import Comparison, PairProof, Promise
from tests.run_facts import PAIRS_PROOF, PLAN, PROOF


def test_the_plan_fits_one_screen(capsys: pytest.CaptureFixture[str]) -> None:
    out.screen(plan_screen(PLAN))
    lines = capsys.readouterr().out.splitlines()
    assert len(lines) <= 24
    assert max(map(len, lines)) <= 80
    assert all(line == line.rstrip() for line in lines)


def test_the_plan_says_everything_asked_of_it(capsys: pytest.CaptureFixture[str]) -> None:
    out.screen(plan_screen(PLAN))
    text = " ".join(capsys.readouterr().out.split())
    for fact in (
        PLAN.base,
        "connector 58 5,123,840 fp32 58 5,123,840 100.0 %",
        "language 692 138,957,120 nf4 420 4,442,240 3.2 %",
        "q_proj (30)",
        "2,931 kept, 41 dropped (38 too long, 3 no answer), 159 held out",
        "median 78 (of which 65 visual), 95 % have up to 92, longest 121",
        "260 of 16 rows each = 1.4 epochs",
        "1.3 GiB forecast: weights 300 MiB",
        "fp32 on cpu (2 cores)",
        "runs/quickstart (about 210 MiB on disk)",
        "warning: bf16 is emulated on this processor",
    ):
        assert fact in text


def test_the_proof_shows_movement_pictures_and_promises(capsys: pytest.CaptureFixture[str]) -> None:
    out.screen(proof_screen(PROOF))
    text = " ".join(capsys.readouterr().out.split())
    assert "connector 58 of 58 5,123,840 100.0 % 1.2e-03 3.41 -" in text
    assert "language 420 of 420 4,442,240 >99.9 % 4.1e-04 1.27 272 same" in text
    assert "gained by the right picture over a shuffled one -0.070 +0.749" in text
    assert "✓ every part asked to train moved" in text
    assert "sound yes all 2 promises kept" in text
    assert "✓ better than before training held-out loss 8.260 before, 3.894 after" in text
    assert "useful yes better than before training" in text


def test_the_proof_of_a_preference_run_shows_which_pairs_were_won(capsys: pytest.CaptureFixture[str]) -> None:
    out.screen(proof_screen(PAIRS_PROOF))
    lines = capsys.readouterr().out.splitlines()
    assert max(map(len, lines)) <= 80
    text = " ".join(" ".join(lines).split())
    assert "held-out pairs, chosen against rejected (64 pairs) before after won 51.6 % 84.4 %" in text
    assert "won with shuffled pictures (60 pairs) 50.0 % 55.0 %" in text
    assert "margin with shuffled pictures, nats +0.180 -1.250" in text
    assert "distance from the reference, nats per token - 0.0421" in text


def test_what_was_not_measured_on_pairs_has_no_line(capsys: pytest.CaptureFixture[str]) -> None:
    bare = PairProof(8, 0.5, 0.25, 0, None, None, None)
    out.screen(proof_screen(replace(PAIRS_PROOF, pairs_before=None, pairs_after=bare)))
    text = " ".join(capsys.readouterr().out.split())
    assert "won - 50.0 % margin, nats - +0.250" in text
    assert "reference" not in text
    out.screen(proof_screen(PROOF))
    assert "pairs" not in capsys.readouterr().out


def test_a_broken_promise_is_unmistakable(capsys: pytest.CaptureFixture[str]) -> None:
    stuck = replace(PROOF.parts[1], moved_tensors=0, moved_share=0.0)
    changed = replace(PROOF.parts[3], frozen_identical=False)
    out.screen(
        proof_screen(
            replace(PROOF, parts=(stuck, changed), promises=(Promise("it moved", False, "0 of 58"),), before=None)
        )
    )
    text = " ".join(capsys.readouterr().out.split())
    assert "✗ it moved 0 of 58" in text
    assert "0 of 58 5,123,840 0.0 %" in text
    assert "CHANGED" in text
    assert "sound NO 0 of 1 promises kept" in text


def test_a_run_that_was_of_no_use_says_so(capsys: pytest.CaptureFixture[str]) -> None:
    lost = Comparison("before training", "worse", "50.0 % of pairs won, margin -3.000; before 100.0 %, margin +1.250")
    as_good = Comparison("the commonest answer", "same", "2 of 8 answers right word for word; the commonest one gets 2")
    out.screen(proof_screen(replace(PROOF, comparisons=(as_good, lost))))
    lines = capsys.readouterr().out.splitlines()
    assert max(map(len, lines)) <= 80
    text = " ".join(" ".join(lines).split())
    assert "sound yes all 2 promises kept" in text
    assert "useful NO worse than before training, not better than the commonest answer" in text
    out.screen(proof_screen(replace(PROOF, comparisons=())))
    assert "useful unknown" in " ".join(capsys.readouterr().out.split())


def test_done_names_what_is_there_and_what_comes_next(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    (tmp_path / "adapter").mkdir()
    (tmp_path / "report.html").touch()
    command = f'qlmm ask {tmp_path}/adapter --image {"x" * 80}.png "What is this?"'
    out.screen(done_screen(tmp_path, [command]), soft_wrap=True)
    lines = capsys.readouterr().out.splitlines()
    assert f"  {command}" in lines
    assert any(line.startswith("report") for line in lines)
    assert not any(line.startswith("curve") for line in lines)


@pytest.mark.parametrize("columns", ["0", "20", "80", "400"])
def test_any_width_will_do(columns: str, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("COLUMNS", columns)
    out.screen(plan_screen(PLAN))
    out.screen(proof_screen(PROOF))
    assert "connector" in capsys.readouterr().out
