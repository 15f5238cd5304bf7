"""The report: whole, self-contained, and harmless whatever a model or a data row says."""

from __future__ import annotations

import io
import re
from dataclasses import replace
from html.parser import HTMLParser
from pathlib import Path

import pytest
from PIL import Image

from qlmm.core.events import Event, Finished
from qlmm.proof.records import Answer, Comparison, PairProof, Promise
from qlmm.report.report import RunReport, render_report, write_report
from tests.run_facts import PAIRS_PROOF, PLAN, PROOF, metrics, pair_metrics, step

HOSTILE = """<script>alert(1)</script><img src=x onerror="alert(2)">"'&{{ 7*7 }}</pre></style>"""
RECIPE = "version: 1\nbase:\n  language: builtin:smollm2-135m  # small\n"
VERSIONS = {"qlmm": "0.1.0", "torch": "2.13.0"}


def png() -> bytes:
    target = io.BytesIO()
    Image.new("RGB", (8, 8), "red").save(target, "PNG")
    return target.getvalue()


ANSWERS = [
    Answer(png(), "What is shown?", "red apple", "I cannot see.", "Red apple."),
    Answer(png(), "What is shown?", "tiger", "", "zebra"),
]
REPORT = RunReport(PLAN, PROOF, [*metrics(), Finished(260, 431.2)], ANSWERS, RECIPE, VERSIONS)


class Page(HTMLParser):
    """Collects what a browser would act on, and the words it would show."""

    def __init__(self, html: str) -> None:
        super().__init__()
        self.tags: list[str] = []
        self.attributes: list[tuple[str, str | None]] = []
        self.words = ""
        self._style = False
        self.feed(html)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append(tag)
        self.attributes += attrs
        self.words += " "
        self._style = tag == "style"

    def handle_endtag(self, tag: str) -> None:
        self._style = False

    def handle_data(self, data: str) -> None:
        if not self._style:
            self.words += data

    @property
    def text(self) -> str:
        return " ".join(self.words.split())


def test_it_shows_the_whole_run() -> None:
    text = Page(render_report(REPORT)).text
    for fact in (
        "quickstart",
        PLAN.base,
        "sound all 2 promises kept",
        "useful on held-out rows better than before training",
        "+0.75 nats",
        "−0.07 before training",
        "8.26 → 3.89",
        "9.6 M",
        "260 steps of 16 rows, in 7:11, fp32 on cpu",
        "every part asked to train moved",
        "420 of 420",
        ">99.9 %",
        "expected red apple before I cannot see. after Red apple. ✓",
        "before (nothing) after zebra",
        "1 of 2 equal the expected answer",
        "language: builtin:smollm2-135m # small",
        "torch 2.13.0",
        "38 dropped: too long",
        PLAN.warnings[0],
    ):
        assert fact in text


def test_a_preference_run_says_which_pairs_are_won_and_whether_by_the_picture() -> None:
    html = render_report(replace(REPORT, proof=PAIRS_PROOF, metrics=pair_metrics()))
    page = Page(html)
    for fact in (
        "52 → 84 % of held-out pairs won",
        "64 held-out pairs before after won 51.6 % 84.4 %",
        "won with another row's pictures (60 pairs) 50.0 % 55.0 %",
        "chosen over rejected answer, nats +0.21 +12.50",
        "with another row's pictures, nats +0.18 −1.25",
        "(KL, nats per token) – 0.0421",
        "decided by words alone",
    ):
        assert fact in page.text
    assert page.tags.count("img") == 6


def test_a_preference_run_without_pictures_or_reference_has_no_empty_lines() -> None:
    proof = replace(PAIRS_PROOF, pairs_before=None, pairs_after=PairProof(8, 0.5, 0.25, 0, None, None, None))
    events = pair_metrics(kl=False, pictures=False)
    text = Page(render_report(replace(REPORT, proof=proof, metrics=events))).text
    assert "8 held-out pairs before after won – 50.0 % chosen over rejected answer, nats – +0.25" in text
    assert "another row's pictures (" not in text
    assert "KL" not in text


def test_a_run_without_pairs_has_no_such_section() -> None:
    assert "Preferences" not in Page(render_report(REPORT)).text


def test_it_needs_nothing_outside_itself() -> None:
    html = render_report(REPORT)
    page = Page(html)
    assert not {"script", "link", "iframe", "object", "embed", "form", "a", "base"} & set(page.tags)
    sources = [value or "" for name, value in page.attributes if name in ("src", "href", "srcset")]
    assert len(sources) == 4
    assert all(value.startswith("data:image/png;base64,") for value in sources)
    assert not re.search(r"https?:|url\(|@import", html)
    assert "default-src 'none'; img-src data:" in html


def test_text_from_data_and_models_cannot_act() -> None:
    answer = Answer(png(), HOSTILE, HOSTILE, HOSTILE, HOSTILE)
    report = RunReport(
        replace(PLAN, base=HOSTILE, output_dir=f"runs/{HOSTILE}", targets=(HOSTILE,), warnings=(HOSTILE,)),
        replace(PROOF, promises=(Promise(HOSTILE, True, HOSTILE),)),
        metrics(),
        [answer],
        HOSTILE,
        {HOSTILE: HOSTILE},
    )
    page, calm = Page(render_report(report)), Page(render_report(replace(REPORT, answers=ANSWERS[:1])))
    assert "script" not in page.tags
    assert page.tags.count("img") == calm.tags.count("img")
    assert not [name for name, _ in page.attributes if name.startswith("on")]
    assert page.text.count("<script>alert(1)</script>") >= 8
    assert "{{ 7*7 }}" in page.text


def test_secrets_are_left_out() -> None:
    secret = "hf_" + "Zx9Y" * 8
    answer = Answer(png(), secret, "", "", "")
    report = replace(REPORT, recipe_text=f"# {secret}\n{RECIPE}", answers=[answer], versions={"x": secret})
    assert secret not in render_report(report)


def test_a_broken_promise_is_shown_as_one() -> None:
    proof = replace(
        PROOF,
        parts=(replace(PROOF.parts[1], moved_tensors=57), replace(PROOF.parts[0], frozen_identical=False)),
        promises=(*PROOF.promises, Promise("frozen", False, "1 tensor differs")),
    )
    html = render_report(replace(REPORT, proof=proof))
    assert "not sound</span> 2 of 3 promises kept" in html
    assert 'class="badge broken"' in html
    assert html.count('class="number alarm"') == 2


def test_a_run_that_made_the_model_worse_is_not_useful_at_first_sight() -> None:
    worse = Comparison("before training", "worse", "50.0 % of pairs won")
    page = Page(render_report(replace(REPORT, proof=replace(PROOF, comparisons=(worse,))))).text
    head = page.split("parameters trained")[0]
    assert "sound all 2 promises kept" in head
    assert "not useful on held-out rows worse than before training" in head
    assert "Training made the model worse on held-out rows." in head


def test_a_picture_that_was_trained_on_is_named_so() -> None:
    seen = Page(render_report(replace(REPORT, answers=[replace(ANSWERS[0], picture_trained=True), ANSWERS[1]]))).text
    assert seen.count("rows about this picture were trained on") == 1
    assert "Never trained on" not in seen


@pytest.mark.parametrize("events", [[], [step(1, float("nan"))], metrics(3)])
def test_a_run_that_stopped_early_still_has_a_report(events: list[Event], tmp_path: Path) -> None:
    proof = replace(PROOF, before=None, after=None, reload=None, promises=(), parts=())
    write_report(tmp_path / "report.html", RunReport(PLAN, proof, events, [], "", {}))
    assert "Nothing was proved." in (tmp_path / "report.html").read_text(encoding="utf-8")


def test_half_a_surrogate_pair_can_be_written(tmp_path: Path) -> None:
    write_report(tmp_path / "report.html", replace(REPORT, recipe_text="\udc80 é 🙈"))
    assert "? é 🙈" in (tmp_path / "report.html").read_text(encoding="utf-8")
