"""Every figure on a page that comes from a benchmark is the one in the benchmark's result.

A row of `FIGURES` is a place in a page, the result file, where in it the value stands, and how it is rounded. A figure
that stands beside the name of a result file and is in no row fails the last test: add a row.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from dataclasses import dataclass
from functools import cache
from typing import Any

import pytest

from tests.pages import PAGES, ROOT, name_of

RESULTS = ROOT / "benchmarks" / "results"
QUICKSTART, MERGE, DPO = "quickstart-cpu", "merge-cpu", "dpo-cpu"
FORECAST, NEED = "forecast-cpu", "docs/decisions/043-memory-forecast.md"
MOVEMENT, GPU = "movement-cpu", "gpu-nvidia-h100-80gb-hbm3"
GB, GIB = 1e9, 2**30


@dataclass(frozen=True)
class Figure:
    """A figure on a page.

    Attributes:
        page: the page.
        place: a pattern with one group, which is the figure; blanks stand for any white space.
        file: name of the result.
        value: the figure from the result.
        form: how it is written.
    """

    page: str
    place: str
    file: str
    value: Callable[[Any], float]
    form: str = "{:.2f}"

    def __str__(self) -> str:
        return f"{self.page}: {self.place}"


def shuffled(result: Any) -> float:
    return float(result["after"]["shuffled"] - result["after"]["right"])


def without(result: Any) -> float:
    return float(result["after"]["none"] - result["after"]["right"])


def moved(kind: str) -> Callable[[Any], float]:
    return lambda result: 100 * result["bases"]["LLaVA, mlp"][kind]["ratio_to_fp32"]


def of(*path: str, per: float = 1.0) -> Callable[[Any], float]:
    """The value at a place of the result, in a larger unit."""

    def value(result: Any) -> float:
        for key in path:
            result = result[key]
        return float(result) / per

    return value


def ratios(pick: Callable[[list[float]], float]) -> Callable[[Any], float]:
    return lambda result: pick([one["ratio"] for one in result["shapes"].values()])


def taken(result: Any) -> float:
    """The most that a whole process took, as times its forecast."""
    parts = ("forecast_libraries_bytes", "forecast_step_bytes")
    return max(one["peak_as_it_is_bytes"] / sum(one[part] for part in parts) for one in result["shapes"].values())


def to_copying(tool: str) -> Callable[[Any], float]:
    return lambda result: result[tool]["seconds"] / result["copy_seconds"]


README, SMALL, LARGE = "README.md", "recipes/quickstart.yaml", "recipes/owl_lora.yaml"
ONCE, ONTO = "docs/decisions/020-what-a-pair-needs-once.md", "docs/decisions/021-merge-onto-what-was-trained.md"
FIGURES = [
    Figure(README, r"ended (\S+) nats per token below the loss with \*shuffled\* pictures", QUICKSTART, shuffled),
    Figure(README, r"pictures and (\S+) below the loss with \*no picture\*", QUICKSTART, without),
    Figure(README, r"and (\d+) of \d+ answers were right", QUICKSTART, of("answers_right"), "{:.0f}"),
    Figure(README, r"and \d+ of (\d+) answers were right", QUICKSTART, of("answers"), "{:.0f}"),
    Figure(README, r"by (\S+) nats per token against shuffled pictures", QUICKSTART, shuffled),
    Figure(README, r"shuffled pictures and (\S+) against none", QUICKSTART, without),
    Figure(README, r"only (\d+) of \d+ answers are right", QUICKSTART, of("answers_right"), "{:.0f}"),
    Figure(README, r"only \d+ of (\d+) answers are right", QUICKSTART, of("answers"), "{:.0f}"),
    Figure(SMALL, r"loss is (\S+) nats per token lower # than with shuffled", QUICKSTART, shuffled),
    Figure(SMALL, r"shuffled pictures and (\S+) lower than with no picture", QUICKSTART, without),
    Figure(SMALL, r"(\d+) of \d+ answers are right", QUICKSTART, of("answers_right"), "{:.0f}"),
    Figure(SMALL, r"\d+ of (\d+) answers are right", QUICKSTART, of("answers"), "{:.0f}"),
    Figure(README, r"TRL alone moved (\d+) %", MOVEMENT, moved("TRL alone, NF4, bf16 compute"), "{:.0f}"),
    Figure(README, r"qlmm's (\d+) %", MOVEMENT, moved("qlmm, NF4, bf16 compute"), "{:.0f}"),
    Figure(README, r"it trained (\S+) times TRL's pairs", DPO, of("qlmm_to_trl"), "{:.1f}"),
    Figure(README, r"and (\S+) times in the first", DPO, of("qlmm_to_trl_first_epoch"), "{:.1f}"),
    Figure("CHANGELOG.md", r"(\S+) times TRL's pairs per second", DPO, of("qlmm_to_trl"), "{:.1f}"),
    Figure(ONCE, r"(\S+) times TRL's pairs per second,", DPO, of("qlmm_to_trl")),
    Figure(ONCE, r"(\S+) in the first epoch", DPO, of("qlmm_to_trl_first_epoch")),
    Figure(ONCE, r"and (\S+) in the later ones", DPO, of("qlmm_to_trl_later_epochs"), "{:.1f}"),
    Figure(ONCE, r"(\S+) times fewer core seconds", DPO, of("qlmm_to_trl_in_core_seconds")),
    Figure(ONCE, r"`prefix` alone (\S+),", DPO, of("each_switch_to_none", "prefix"), "{:.1f}"),
    Figure(ONCE, r"`reference` (\S+),", DPO, of("each_switch_to_none", "reference")),
    Figure(ONCE, r"`vision` (\S+);", DPO, of("each_switch_to_none", "vision")),
    Figure(ONCE, r"as fast as TRL \((\S+)\)", DPO, of("none_to_trl")),
    *(
        figure
        for page in (README, "docs/merge.md")
        for figure in (
            Figure(page, r"checkpoint of (\S+) GB", MERGE, of("checkpoint_bytes", per=GB), "{:.1f}"),
            Figure(page, r"(\S+) GB (?:of memory|for a checkpoint)", MERGE, of("qlmm", "peak_bytes", per=GB), "{:.1f}"),
            Figure(page, r"(\S+) times (?:as long as|the time of) copying", MERGE, to_copying("qlmm")),
            Figure(page, r"PEFT(?::| takes) (\S+) GB", MERGE, of("peft", "peak_bytes", per=GB), "{:.1f}"),
            Figure(page, r"GB(?:,| and) (\S+) times", MERGE, to_copying("peft"), "{:.1f}"),
        )
    ),
    Figure("CHANGELOG.md", r"(\S+) GB merged in", MERGE, of("checkpoint_bytes", per=GB), "{:.1f}"),
    Figure("CHANGELOG.md", r"merged in (\S+) GB", MERGE, of("qlmm", "peak_bytes", per=GB), "{:.1f}"),
    Figure(ONTO, r"a LLaVA of (\S+) GB", MERGE, of("checkpoint_bytes", per=GB), "{:.1f}"),
    Figure(ONTO, r"`\): (\d+) s,", MERGE, of("qlmm", "seconds"), "{:.0f}"),
    Figure(ONTO, r"(\S+) times copying", MERGE, to_copying("qlmm")),
    Figure(ONTO, r"with (\S+) GB of memory", MERGE, of("qlmm", "peak_bytes", per=GB), "{:.1f}"),
    Figure(ONTO, r"same files: (\d+) s", MERGE, of("peft", "seconds"), "{:.0f}"),
    Figure(ONTO, r"s and (\S+) GB\.", MERGE, of("peft", "peak_bytes", per=GB), "{:.1f}"),
    Figure(README, r"(\d+) steps of 1,024 tokens on an H100", GPU, of("shape", "steps"), "{:.0f}"),
    Figure(README, r"steps of (\S+) tokens on an H100", GPU, of("finetune", "tokens_per_step"), "{:,.0f}"),
    Figure(README, r"peak was (\S+) GiB", GPU, of("finetune", "peak_step_bytes", per=GIB), "{:.1f}"),
    Figure(README, r"a step took (\S+) s;", GPU, of("finetune", "step_s"), "{:.3f}"),
    Figure(README, r"in bf16, took (\S+) s", GPU, of("trl", "step_s"), "{:.3f}"),
    Figure(README, r"s and (\S+) GiB\.", GPU, of("trl", "peak_step_bytes", per=GIB), "{:.1f}"),
    Figure(README, r"batch of (\d+) it was", GPU, of("larger_batch", "batch"), "{:.0f}"),
    Figure(README, r"it was (\S+) tokens per second", GPU, of("larger_batch", "tokens_per_s"), "{:,.0f}"),
    Figure(README, r"second and (\S+) GiB", GPU, of("larger_batch", "peak_step_bytes", per=GIB), "{:.1f}"),
    Figure(NEED, r"without libraries was (\S+) to", FORECAST, ratios(min)),
    Figure(NEED, r"to (\S+) of what steps took", FORECAST, ratios(max)),
    Figure(NEED, r"processes took (\S+) times its forecast", FORECAST, taken),
    Figure(LARGE, r"took (\S+) GiB on an H100", GPU, of("finetune", "peak_step_bytes", per=GIB), "{:.1f}"),
    Figure(LARGE, r"rows (\S+) GiB \(measured", GPU, of("larger_batch", "peak_step_bytes", per=GIB), "{:.1f}"),
]


# Figures beside a result file that come from elsewhere: measured by a test, or named by its own source.
OTHERWISE: dict[str, set[str]] = {
    README: {"0.00005", "0.078"},  # docs/merge.md says how these were measured
    ONTO: {"0.00005", "0.078"},
}


@cache
def page(name: str) -> str:
    """A page's text, with one blank for any white space."""
    return " ".join((ROOT / name).read_text("utf-8").split())


@cache
def result(file: str) -> Any:
    return json.loads((RESULTS / f"{file}.json").read_text("utf-8"))["result"]


@pytest.mark.parametrize("figure", FIGURES, ids=str)
def test_a_figure_is_that_of_its_result(figure: Figure) -> None:
    found = re.findall(figure.place, page(figure.page))
    assert found, "the sentence is not there any more: change the row, or take it out with the figure"
    assert set(found) == {figure.form.format(figure.value(result(figure.file)))}


def test_all_promises_of_the_run_on_a_gpu_held() -> None:
    promises = result(GPU)["proof"]["promises"]
    assert "All five promises held" in page(README)
    assert [promise["kept"] for promise in promises] == [True] * 5
    assert result(GPU)["proof"]["reload"]["same"]


def test_every_result_that_a_page_names_is_read_by_a_figure() -> None:
    read = {figure.file for figure in FIGURES}
    pages = " ".join(path.read_text("utf-8") for path in PAGES)
    named = {path.stem for path in RESULTS.glob("*.json") if path.name in pages}
    assert named
    assert named <= read


@pytest.mark.parametrize("path", PAGES, ids=name_of)
def test_a_figure_beside_the_name_of_a_result_is_in_the_table(path: Any) -> None:
    """Decimal figures of a paragraph that names a result file; a publication's number or a version is not one."""
    known = {
        match[1]
        for figure in FIGURES
        if figure.page == name_of(path)
        for match in re.finditer(figure.place, page(figure.page))
    }
    text = re.sub(r"Python 3\.\d+", "", path.read_text("utf-8"))
    for paragraph in re.split(r"\n\s*\n|\n(?=[*-] )", text):
        if "benchmarks/results/" in paragraph:
            beside = re.findall(r"(?<![\w.,/-])\d+[.,]\d+(?= (?:nats|times|GB|GiB|s\b|tokens|%)|[,;. )])", paragraph)
            assert {one.rstrip(".,") for one in beside} <= known | OTHERWISE.get(name_of(path), set())
