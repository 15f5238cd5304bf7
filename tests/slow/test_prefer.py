"""Preference pairs from a tiny adapter's own answers: end to end, interrupted and gone on, accepted by what trains."""

from __future__ import annotations

import json
import os
import signal
from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any
from zlib import crc32

import pytest
import torch

from qlmm.api import LoadedAdapter, finetune, load
from qlmm.artifacts.adapter.load import load_base, plain_base
from qlmm.cli.commands.data import check
from qlmm.core.errors import QlmmError, RunError
from qlmm.data.sample import ImageRef, Origin, Sample, Turn
from qlmm.generation.answers import answer, draw
from qlmm.model.loading.base import Base
from qlmm.model.token_losses import last_logits
from qlmm.preference_data.judge import Judge
from qlmm.preference_data.pairing import Settings, Verdict
from qlmm.preference_data.prefer import Outcome, PromptDone, prefer, records_of
from qlmm.preference_data.records import JudgedAnswer, Record
from qlmm.preference_data.summary import collect
from qlmm.recipe.schema import BaseSection
from qlmm.training.plan import make_plan
from tests.families.build import family, save
from tests.runs import TinyRun, picture_row

HOW = Settings(answers=4, temperature=0.7, max_new_tokens=8)
PROMPTS = 4


@pytest.fixture(scope="module", autouse=True)
def opinionated() -> Iterator[None]:
    """A model with random weights judges all statements alike; here their text decides which way it goes."""
    judged = Judge.verdicts

    def verdicts(self: Judge, questions: Sequence[str], shown: Sequence[ImageRef]) -> list[Verdict]:
        found = judged(self, questions, shown)
        return [_sided(question, verdict) for question, verdict in zip(questions, found, strict=True)]

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Judge, "verdicts", verdicts)
        yield


def _sided(question: str, verdict: Verdict) -> Verdict:
    low, high = sorted(verdict)
    return (low, high) if crc32(question.encode()) % 2 else (high, low)


@pytest.fixture(scope="module")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> TinyRun:
    made = TinyRun.make(tmp_path_factory.mktemp("prefer"))
    outcome = finetune(made.recipe("training.steps=2", "evaluation.answers=0"))
    assert outcome.adapter is not None
    rows = [picture_row(made.folder, number) for number in range(PROMPTS)]
    (made.folder / "prompts.jsonl").write_text("\n".join(json.dumps(row) for row in rows), encoding="utf-8")
    return made


@pytest.fixture(scope="module")
def adapter(tiny: TinyRun) -> Path:
    return next(path.parent for path in (tiny.folder / "run").glob("*/qlmm.json"))


@pytest.fixture(scope="module")
def loaded(adapter: Path) -> LoadedAdapter:
    return load(adapter)


def made(tiny: TinyRun, adapter: Path, name: str, how: Settings = HOW, **further: Any) -> tuple[Path, Outcome]:
    out = tiny.folder / f"{name}.jsonl"
    return out, prefer(adapter, str(tiny.folder / "prompts.jsonl"), out, settings=how, **further)


@pytest.fixture(scope="module")
def whole(tiny: TinyRun, adapter: Path) -> Path:
    out, outcome = made(tiny, adapter, "whole")
    assert outcome.status == "finished"
    assert outcome.summary is not None
    assert outcome.summary.pairs
    assert outcome.summary.prompts == PROMPTS
    return out


def test_the_pairs_can_be_trained_on_as_they_are(
    tiny: TinyRun, whole: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    check(str(whole))
    assert "no problems" in capsys.readouterr().out
    plan = make_plan(tiny.recipe("training.objective=dpo", f"data.sources=[{{path: {whole}}}]").recipe)
    assert plan.train


def test_records_say_how_each_pair_came_about(whole: Path) -> None:
    head, *records = (json.loads(line) for line in records_of(whole).read_text("utf-8").splitlines())
    assert head["settings"]["answers"] == HOW.answers
    assert len(records) == PROMPTS
    for record in records:
        scores = [one["score"] for one in record["answers"]]
        assert len(scores) == HOW.answers
        assert len(record["pairs"]) == min(record["candidates"], HOW.per_prompt)
        assert all(scores[chosen] - scores[rejected] >= 1 for chosen, rejected in record["pairs"])
        for one in record["answers"]:
            denied = [statement["yes"] <= statement["no"] for statement in one["statements"]]
            assert denied == [statement["refuted"] for statement in one["statements"]]
            assert one["score"] == (-sum(denied) if denied else None)
    row = json.loads(whole.read_text("utf-8").splitlines()[0])
    said = {one["text"] for record in records for one in record["answers"]}
    assert {row["chosen"][0]["content"], row["rejected"][0]["content"]} <= said


@pytest.mark.parametrize("torn", [False, True])
@pytest.mark.parametrize("after", [1, 3])
def test_an_interrupted_run_goes_on_and_ends_the_same(
    tiny: TinyRun, adapter: Path, whole: Path, after: int, torn: bool
) -> None:
    name = f"interrupted-{after}-{torn}"

    def interrupt(done: PromptDone) -> None:
        if done.number == after:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        made(tiny, adapter, name, listener=interrupt)
    out = tiny.folder / f"{name}.jsonl"
    assert not out.exists()
    if torn:
        with records_of(out).open("ab") as file:
            file.write(b'{"prompt": %d, "question": "wh' % after)
    seen: list[int] = []
    made(tiny, adapter, name, listener=lambda done: seen.append(done.number))
    assert seen == list(range(after + 1, PROMPTS + 1))
    assert out.read_bytes() == whole.read_bytes()
    assert records_of(out).read_bytes() == records_of(whole).read_bytes()


@pytest.mark.parametrize("which", [signal.SIGTERM, signal.SIGINT])
def test_a_signal_ends_a_run_after_the_prompt_under_way(tiny: TinyRun, adapter: Path, which: signal.Signals) -> None:
    before = signal.getsignal(which)
    _, outcome = made(tiny, adapter, which.name, listener=lambda done: os.kill(os.getpid(), which))
    assert (outcome.status, outcome.done, outcome.total, outcome.signal) == ("stopped", 1, PROMPTS, which)
    assert signal.getsignal(which) is before


def test_more_prompts_may_follow(tiny: TinyRun, adapter: Path, whole: Path) -> None:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("qlmm.preference_data.prefer.collect", lambda samples, records: ([], None))
        made(tiny, adapter, "more", replace(HOW, limit=2))
    out, _ = made(tiny, adapter, "more")
    assert out.read_bytes() == whole.read_bytes()


def test_a_finished_run_is_repeated_without_a_model(
    tiny: TinyRun, adapter: Path, whole: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("qlmm.preference_data.prefer.load", None)
    before = whole.read_bytes()
    whole.unlink()
    made(tiny, adapter, "whole")
    assert whole.read_bytes() == before


@pytest.mark.parametrize(
    ("further", "how", "named"),
    [
        ({}, replace(HOW, seed=1), "seed"),
        ({}, replace(HOW, answers=5), "answers"),
        ({"judge": "base"}, HOW, "judge"),
    ],
)
def test_records_of_another_run_are_refused(
    tiny: TinyRun, adapter: Path, whole: Path, further: dict[str, str], how: Settings, named: str
) -> None:
    named_judge = {key: str(tiny.folder / value) for key, value in further.items()}
    before = whole.read_bytes()
    with pytest.raises(QlmmError, match=named) as caught:
        made(tiny, adapter, "whole", how, **named_judge)
    assert caught.value.problems[0].code == "J003"
    assert whole.read_bytes() == before


def test_a_base_can_judge(tiny: TinyRun, adapter: Path, whole: Path) -> None:
    out, _ = made(tiny, adapter, "judged", judge=str(tiny.folder / "base"))
    answers, own = _said(out), _said(whole)
    assert [texts for texts, _ in answers] == [texts for texts, _ in own]
    assert [verdicts for _, verdicts in answers] != [verdicts for _, verdicts in own]


def _said(out: Path) -> list[tuple[list[str], list[float]]]:
    records = [json.loads(line) for line in records_of(out).read_text("utf-8").splitlines()[1:]]
    return [
        (
            [one["text"] for one in record["answers"]],
            [statement["yes"] for one in record["answers"] for statement in one["statements"]],
        )
        for record in records
    ]


def pictures(tiny: TinyRun, count: int) -> tuple[ImageRef, ...]:
    return tuple(ImageRef(path=tiny.folder / f"{number}.png") for number in range(count))


@pytest.mark.parametrize("count", [0, 1, 2])
def test_every_drawn_answer_sees_its_own_pictures_in_order(tiny: TinyRun, loaded: LoadedAdapter, count: int) -> None:
    sample = Sample((Turn("user", (*pictures(tiny, count), "what is this ?")),), Origin("here", 1))
    likeliest = answer(loaded.model, loaded.encoder, sample, 8)
    drawn = draw(loaded.model, loaded.encoder, sample, 3, temperature=1e-4, max_new_tokens=8)
    assert drawn == [likeliest] * 3


def test_a_seed_decides_the_draws(tiny: TinyRun, loaded: LoadedAdapter) -> None:
    sample = Sample((Turn("user", (*pictures(tiny, 1), "what is this ?")),), Origin("here", 1))
    drawn = [draw(loaded.model, loaded.encoder, sample, 3, max_new_tokens=8, seed=seed) for seed in (1, 1, 2)]
    assert drawn[0] == drawn[1] != drawn[2]
    assert len(set(drawn[0])) > 1


def test_a_verdict_in_a_batch_is_the_next_token_of_the_prompt_alone(tiny: TinyRun, loaded: LoadedAdapter) -> None:
    judge, shown = Judge.of(loaded), pictures(tiny, 1)
    questions = ["is it red ?", "is the cat in the picture red or is it another colour ?", "a"]
    together = judge.verdicts(questions, shown)
    for question, verdict in zip(questions, together, strict=True):
        asked = Sample((Turn("user", (*shown, question)),), Origin("here", 1))
        with torch.no_grad():
            logits = last_logits(loaded.model, loaded.encoder.prompt(asked), 1)[0, -1]
        assert verdict == pytest.approx(_sided(question, judge.words.verdict(logits)), rel=1e-4)
        assert verdict[0] != verdict[1]
    assert len(set(together)) == len(questions)


def test_a_base_answers_alone(tiny: TinyRun) -> None:
    base = load_base(Base.resolve(plain_base(str(tiny.folder / "base"))))
    sample = Sample((Turn("user", (*pictures(tiny, 1), "what ?")),), Origin("here", 1))
    assert not base.model.training
    assert isinstance(answer(base.model, base.encoder, sample, 4), str)


@pytest.mark.parametrize("name", ["florence2", "gemma3", "idefics3", "llava_next", "mllama"])
def test_other_kinds_of_models_draw_and_judge_alike(name: str, tiny: TinyRun, tmp_path: Path) -> None:
    one = family(name)
    save(one, tmp_path)
    template = "blip2" if one.processor.chat_template is None else None
    base = load_base(Base.resolve(BaseSection(model=str(tmp_path), quantize="none", chat_template=template)))
    shown = pictures(tiny, 1 if base.model.config.is_encoder_decoder else 2)
    asked = Sample((Turn("user", (*shown, "what is this ?")),), Origin("here", 1))
    likeliest = answer(base.model, base.encoder, asked, 4)
    assert draw(base.model, base.encoder, asked, 3, temperature=1e-5, max_new_tokens=4) == [likeliest] * 3
    judge = Judge.of(base)
    found = judge.verdicts(["a much longer question than the other one ?", "what is this ?"], shown)
    with torch.no_grad():
        logits = last_logits(base.model, base.encoder.prompt(asked), 1)[0, -1]
    assert found[1] == pytest.approx(_sided("what is this ?", judge.words.verdict(logits)), rel=1e-3)


def test_no_pair_at_all_is_refused() -> None:
    answer = JudgedAnswer(text="a", split_by="sentences", statements=(), score=None)
    record = Record(
        prompt=0, origin="here:1", question="What?", pictures=(), seed=0, answers=(answer,), candidates=0, pairs=()
    )
    sample = Sample((Turn("user", ("What?",)),), Origin("here", 1))
    with pytest.raises(RunError) as caught:
        collect([sample], [record])
    assert caught.value.problems[0].code == "J008"


def test_a_judge_without_a_chat_template_is_refused_before_anything_is_loaded(
    tiny: TinyRun, adapter: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    save(family("florence2"), tmp_path)
    monkeypatch.setattr("qlmm.preference_data.prefer.load", None)
    with pytest.raises(QlmmError, match="has no chat template") as caught:
        made(tiny, adapter, "mute", judge=str(tmp_path))
    assert "--judge: " in str(caught.value)
    assert "base.chat_template: " not in str(caught.value)
    assert not records_of(tiny.folder / "mute.jsonl").exists()
