"""The command line starts at once, imports nothing heavy for light work, and ends every error in its exit code."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from collections.abc import Callable
from importlib.metadata import version
from pathlib import Path

import pytest
from typer.testing import CliRunner

import qlmm
from qlmm.cli import app as command_line
from qlmm.core import naming
from qlmm.core.errors import RunError, UsageError

ROOT = Path(__file__).resolve().parents[2]
HEAVY = ("torch", "transformers", "trl", "peft", "numpy", "PIL", "datasets", "matplotlib", "bitsandbytes")
SECRET = "hf_" + "aB3dE5gH7j" * 3

# Every option of every command; a new one is a change of the surface and belongs into CHANGELOG.md.
OPTIONS = {
    (): {"--version", "--install-completion", "--show-completion"},
    ("finetune",): {"--dry-run", "--json"},
    ("fit",): {"--memory", "--gpu", "--json"},
    ("ask",): {"--image", "--max-new-tokens", "--sample", "--seed", "--json"},
    ("chat",): {"--image", "--max-new-tokens", "--sample", "--seed"},
    ("prefer",): {
        "--prompts",
        "--out",
        "--judge",
        "--image-root",
        "--answers",
        "--temperature",
        "--per-prompt",
        "--max-new-tokens",
        "--limit",
        "--seed",
        "--json",
    },
    ("push",): {"--public", "--dry-run", "--revision", "--message", "--unproven", "--json"},
    ("pull",): {"--json"},
    ("verify",): {"--json"},
    ("merge",): {"--onto", "--dtype", "--shard-size", "--no-measure", "--json"},
    ("export",): {"--to", "--out", "--onto", "--outtype", "--converter", "--json"},
    ("combine",): {
        "--weights",
        "--out",
        "--method",
        "--density",
        "--rows",
        "--image-root",
        "--json",
    },
    ("doctor",): {"--json"},
    ("explain",): {"--markdown", "--json"},
    ("data",): set(),
    ("data", "check"): {"--format", "--image-root", "--json"},
    ("data", "show"): {"--row", "--json"},
    ("data", "convert"): {"--to", "--out", "--format", "--image-root", "--json"},
    ("model",): set(),
    ("model", "show"): {"--size", "--json"},
    ("recipe",): set(),
    ("recipe", "list"): {"--markdown", "--json"},
    ("recipe", "show"): {"--json"},
    ("recipe", "check"): {"--json"},
    ("recipe", "explain"): {"--markdown", "--json"},
    ("recipe", "new"): {"--from", "--json"},
    ("zoo",): set(),
    ("zoo", "list"): {"--json"},
    ("zoo", "show"): {"--json"},
    ("zoo", "verify"): {"--json"},
    ("zoo", "run"): {"--image", "--json"},
}


def imported_by(code: str) -> set[str]:
    """Top-level modules that a fresh interpreter holds after running ``code``."""
    script = f"import sys\n{code}\nimport json\nprint(json.dumps(sorted({{m.partition('.')[0] for m in sys.modules}})))"
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, cwd=ROOT, check=True)
    return set(json.loads(done.stdout.splitlines()[-1]))


def ends(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], *words: str
) -> tuple[int | str | None, str, str]:
    """Exit code, stdout and stderr of one command."""
    monkeypatch.setattr(sys, "argv", ["qlmm", *words])
    with pytest.raises(SystemExit) as caught:
        command_line.main()
    said = capsys.readouterr()
    return caught.value.code, said.out, said.err


@pytest.mark.parametrize(
    "code",
    [
        "import qlmm.cli.app",
        "import qlmm; dir(qlmm); qlmm.load_recipe",
        "from qlmm.cli.commands.recipe import check; check('recipes/owl_lora.yaml', ['training.steps=3'])",
        "from qlmm.cli.commands.recipe import list_recipes; list_recipes()",
        "from qlmm.cli.commands.zoo import list_entries; list_entries()",
        "from qlmm.cli.commands.explain import explain; explain('D005'); explain()",
        "from typer.testing import CliRunner; from qlmm.cli.app import app; CliRunner().invoke(app, ['--help'])",
    ],
)
def test_light_work_imports_nothing_heavy(code: str) -> None:
    assert not imported_by(code) & set(HEAVY)


def test_help_does_not_even_read_the_schema() -> None:
    assert not imported_by("import qlmm.cli.app") & {"pydantic", "yaml", "rich"}


def test_each_file_is_the_command_of_its_name() -> None:
    listed = CliRunner().invoke(command_line.app, ["--help"]).output.split("Commands:")[1]
    assert sorted(re.findall(r"(?m)^  (\w+)  ", listed)) == naming.names("qlmm.cli.commands")


PLAIN = """
from typing import Annotated
import typer
def {name}(word: Annotated[str, typer.Argument(metavar="WORD")]) -> None:
    \"\"\"Say a word.\"\"\"
    print(word)
"""


def test_a_new_file_is_a_command_at_once(tmp_path: Path) -> None:
    (tmp_path / "echo.py").write_text(PLAIN.format(name="echo"))
    (tmp_path / "nothing.py").write_text(
        PLAIN.format(name="echo") + '\nEXAMPLE = "Example: qlmm nothing x"\nnothing = echo'
    )
    code = (
        "import sys; import qlmm.cli.commands as folder; folder.__path__.append(sys.argv.pop(1))\n"
        "from qlmm.cli.app import main; main()"
    )

    def run(*words: str) -> subprocess.CompletedProcess[str]:
        command = [sys.executable, "-c", code, str(tmp_path), *words]
        return subprocess.run(command, capture_output=True, text=True, cwd=ROOT, check=True)

    shown = run("--help").stdout
    listed = re.findall(r"(?m)^  (\w+)  ", shown.split("Commands:")[1])
    assert listed[listed.index("doctor") :][:4] == ["doctor", "echo", "nothing", "data"]
    assert "echo      Say a word." in shown
    assert run("echo", "hello").stdout == "hello\n"
    assert "Example: qlmm nothing x" in run("nothing", "--help").stdout


def test_a_reader_that_left_ends_a_command_without_a_trace() -> None:
    reader, writer = os.pipe()
    os.close(reader)
    command = [sys.executable, "-m", "qlmm", "recipe", "list"]
    done = subprocess.run(command, stdout=writer, stderr=subprocess.PIPE, text=True, cwd=ROOT, check=False)
    os.close(writer)
    assert (done.returncode, done.stderr) == (1, "")


@pytest.mark.parametrize("command", OPTIONS, ids=" ".join)
def test_the_options_are_these(command: tuple[str, ...]) -> None:
    done = CliRunner().invoke(command_line.app, [*command, "--help"], prog_name="qlmm")
    assert done.exit_code == 0
    options = done.output.split("Options:")[-1]
    assert set(re.findall(r"(?m)^  (?:-\w, )?(--[a-z-]+)", options)) - {"--help"} == OPTIONS[command]


def test_every_command_is_in_the_help() -> None:
    def commands(*group: str) -> set[str]:
        listed = CliRunner().invoke(command_line.app, [*group, "--help"]).output.split("Commands:")[1]
        assert "..." not in listed, "a command's first line is too long for its place"
        return set(re.findall(r"(?m)^  (\w+)  ", listed))

    light = {"doctor", "explain", "data", "model", "recipe", "zoo"}
    assert (
        commands()
        == {"finetune", "fit", "ask", "chat", "prefer", "push", "pull", "verify", "merge"}
        | {"export", "combine"}
        | light
    )
    assert commands("data") == {"check", "convert", "show"}
    assert commands("model") == {"show"}
    assert commands("recipe") == {"list", "show", "check", "explain", "new"}
    assert commands("zoo") == {"list", "show", "verify", "run"}


def test_the_version_is_that_of_the_package() -> None:
    assert CliRunner().invoke(command_line.app, ["--version"]).output == f"qlmm {qlmm.__version__}\n"
    assert version("qlmm") == qlmm.__version__


def test_the_package_knows_its_public_names() -> None:
    assert qlmm.load_recipe.__module__ == "qlmm.recipe.load"
    assert set(dir(qlmm)) == set(qlmm.__all__)
    with pytest.raises(AttributeError, match="no attribute 'nothing'"):
        qlmm.nothing  # noqa: B018


def test_it_runs_as_a_module() -> None:
    done = subprocess.run(
        [sys.executable, "-m", "qlmm", "--version"], capture_output=True, text=True, cwd=ROOT, check=True
    )
    assert done.stdout.startswith("qlmm ")


@pytest.mark.parametrize("words", [["--nope"], ["nope"], ["recipe", "check"], ["data", "show", "x", "--row", "0"]])
def test_wrong_usage_ends_with_2(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], words: list[str]
) -> None:
    code, printed, said = ends(monkeypatch, capsys, *words)
    assert (code, printed) == (2, "")
    assert "qlmm" in said


@pytest.fixture
def failing(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Callable[[BaseException], None]:
    """Make ``qlmm recipe list`` raise what the test wants; crash traces go to a folder of the test."""
    monkeypatch.setenv("QLMM_HOME", str(tmp_path / "home"))
    monkeypatch.delenv("QLMM_DEBUG", raising=False)

    def arm(error: BaseException) -> None:
        def fail() -> None:
            hidden = SECRET  # noqa: F841  a local that must not reach the trace
            raise error

        monkeypatch.setattr("qlmm.recipe.library.shipped", fail)

    return arm


@pytest.mark.parametrize(("kind", "code"), [(UsageError, 2), (RunError, 1)])
def test_a_refusal_is_printed_and_ends_with_its_code(
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    failing: Callable[[BaseException], None],
    kind: type[UsageError],
    code: int,
) -> None:
    failing(kind.one("T999", "no such thing", help="try another"))
    assert ends(monkeypatch, capsys, "recipe", "list") == (code, "", "error[T999]: no such thing\nhelp: try another\n")


def test_ctrl_c_ends_with_130(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], failing: Callable[[BaseException], None]
) -> None:
    failing(KeyboardInterrupt())
    assert ends(monkeypatch, capsys, "recipe", "list")[0] == 130


def test_a_bug_ends_with_101_in_one_line_and_its_trace_in_a_file(
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    failing: Callable[[BaseException], None],
    tmp_path: Path,
) -> None:
    failing(RuntimeError(f"token {SECRET}\nsecond line"))
    code, printed, said = ends(monkeypatch, capsys, "recipe", "list")
    trace = (tmp_path / "home" / "crash.txt").read_text("utf-8")
    assert (code, printed) == (101, "")
    assert said.count("\n") == 1
    assert "this is a bug in qlmm (RuntimeError: token <redacted>)" in said
    assert "RuntimeError" in trace
    assert SECRET not in said + trace


def test_the_trace_is_shown_on_request_and_still_redacted(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], failing: Callable[[BaseException], None]
) -> None:
    monkeypatch.setenv("QLMM_DEBUG", "1")
    failing(RuntimeError(f"token {SECRET}"))
    _, _, said = ends(monkeypatch, capsys, "recipe", "list")
    assert "Traceback" in said
    assert SECRET not in said
    assert str(Path.home()) + "/" not in said


def test_a_bug_without_a_place_for_its_trace_is_still_one_line(
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    failing: Callable[[BaseException], None],
    tmp_path: Path,
) -> None:
    (tmp_path / "home").write_text("a file where the folder should be")
    failing(RuntimeError())
    code, _, said = ends(monkeypatch, capsys, "recipe", "list")
    assert code == 101
    assert "QLMM_DEBUG=1 shows the trace" in said
