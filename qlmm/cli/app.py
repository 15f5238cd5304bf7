"""The command line: what each command takes. A command's own module is imported only when it runs, so help is instant.

Leaves with 0 done, 1 failed and explained, 2 usage or recipe error with nothing started, 101 a bug in qlmm,
130 Ctrl-C, 143 SIGTERM.

Usage: ``qlmm finetune owl_lora training.steps=200 --dry-run``
"""

from __future__ import annotations

import sys
import traceback
from pathlib import Path
from typing import Annotated, Literal

import typer

from qlmm import __version__
from qlmm.cli.commands.explain import EXAMPLE, explain
from qlmm.cli.commands.handing_on import commands
from qlmm.cli.commands.zoo_app import from_zoo, zoo_app
from qlmm.core import env
from qlmm.core.errors import QlmmError
from qlmm.core.files import atomic_write
from qlmm.core.secrets import redact

__all__ = ["app", "main"]

EXIT_BUG = 101
EXIT_INTERRUPTED = 130
LONGEST_BUG = 200

_HELP = {"help_option_names": ["-h", "--help"]}

# Help is plain text: the same on a terminal and in a log, and brackets in it are not taken for markup.
app = typer.Typer(
    help="Fine-tune multimodal language models on one consumer GPU.",
    no_args_is_help=True,
    context_settings=_HELP,
    rich_markup_mode=None,
    pretty_exceptions_enable=False,
    pretty_exceptions_show_locals=False,
)
data_app = typer.Typer(help="Look at rows before training on them.", no_args_is_help=True, rich_markup_mode=None)
model_app = typer.Typer(help="Look at a model before training it.", no_args_is_help=True, rich_markup_mode=None)
recipe_app = typer.Typer(help="Find, check, understand and copy recipes.", no_args_is_help=True, rich_markup_mode=None)
app.add_typer(data_app, name="data")
app.add_typer(model_app, name="model")
app.add_typer(recipe_app, name="recipe")
app.add_typer(zoo_app, name="zoo")
app.add_typer(commands)
app.command(epilog=EXAMPLE)(explain)


def _recipe_names(incomplete: str) -> list[str]:
    """Shipped recipes that complete a word on the command line."""
    from qlmm.recipe.library import shipped

    return [name for name in shipped() if name.startswith(incomplete)]


Recipe = Annotated[
    str,
    typer.Argument(metavar="RECIPE", help="A recipe file, a shipped name, or zoo:NAME.", autocompletion=_recipe_names),
]
Overrides = Annotated[
    list[str] | None,
    typer.Argument(metavar="section.key=value", help="Changes of the recipe, such as training.steps=20."),
]
Adapter = Annotated[
    Path,
    typer.Argument(metavar="ADAPTER", help="Adapter folder of a run (runs/x/adapter), or zoo:NAME.", callback=from_zoo),
]
Images = Annotated[
    list[Path] | None,
    typer.Option("--image", metavar="FILE", help="A picture; give the option again for more."),
]
MaxNewTokens = Annotated[int, typer.Option("--max-new-tokens", min=1, help="Longest answer.")]
Sample = Annotated[bool, typer.Option("--sample", help="Draw tokens at random instead of taking the likeliest.")]
Seed = Annotated[int, typer.Option("--seed", min=0, help="Seed of the draws of --sample.")]


def _version(wanted: bool) -> None:
    if wanted:
        typer.echo(f"qlmm {__version__}")
        raise typer.Exit


@app.callback()
def _options(
    version: Annotated[
        bool, typer.Option("--version", callback=_version, is_eager=True, help="Show the version and exit.")
    ] = False,
) -> None:
    """Options of qlmm itself."""


@app.command(epilog="Example: qlmm finetune owl_lora training.steps=200 --dry-run")
def finetune(
    recipe: Recipe,
    overrides: Overrides = None,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Show the plan and stop; nothing is written.")] = False,
) -> None:
    """Fine-tune by a recipe, or continue its run."""
    from qlmm.cli.commands.finetune import finetune as run

    run(recipe, overrides or [], dry_run=dry_run)


@app.command(epilog='Example: qlmm ask runs/owl_lora/adapter --image cat.png "What is this?"')
def ask(
    adapter: Adapter,
    question: Annotated[str, typer.Argument(metavar="QUESTION", help="What to ask, in quotes.")],
    image: Images = None,
    max_new_tokens: MaxNewTokens = 256,
    sample: Sample = False,
    seed: Seed = 0,
) -> None:
    """Ask a fine-tuned model one question."""
    from qlmm.cli.commands.ask import Settings
    from qlmm.cli.commands.ask import ask as run

    run(adapter, question, image or [], settings=Settings(max_new_tokens, sample, seed))


@app.command(epilog="Example: qlmm chat runs/owl_lora/adapter --image cat.png")
def chat(
    adapter: Adapter,
    image: Images = None,
    max_new_tokens: MaxNewTokens = 256,
    sample: Sample = False,
    seed: Seed = 0,
) -> None:
    """Talk to a fine-tuned model."""
    from qlmm.cli.commands.ask import Settings
    from qlmm.cli.commands.ask import chat as run

    run(adapter, image or [], settings=Settings(max_new_tokens, sample, seed))


@app.command(epilog="Example: qlmm prefer runs/owl_lora/adapter --prompts questions.jsonl --out pairs.jsonl")
def prefer(  # noqa: PLR0913, PLR0917  every parameter is an option of the command
    adapter: Adapter,
    prompts: Annotated[
        str, typer.Option("--prompts", metavar="FILE", help="Questions, in any format that can be trained on.")
    ],
    pairs: Annotated[Path, typer.Option("--out", metavar="FILE", help="The file of pairs to write.")],
    judge: Annotated[
        str | None,
        typer.Option("--judge", metavar="ADAPTER|ID", help="What judges: an adapter or a model; unset: ADAPTER."),
    ] = None,
    image_root: Annotated[
        str | None,
        typer.Option("--image-root", metavar="FOLDER", help="Folder that the questions' picture paths start from."),
    ] = None,
    answers: Annotated[int, typer.Option("--answers", help="Answers drawn per question.")] = 10,
    temperature: Annotated[float, typer.Option("--temperature", help="Temperature of the draws.")] = 0.7,
    per_prompt: Annotated[int, typer.Option("--per-prompt", help="Most pairs taken from one question.")] = 2,
    max_new_tokens: MaxNewTokens = 256,
    limit: Annotated[int | None, typer.Option("--limit", help="Take only the first so many questions.")] = None,
    seed: Annotated[int, typer.Option("--seed", min=0, help="Seed of the draws.")] = 0,
    as_json: Annotated[bool, typer.Option("--json", help="Print one JSON object.")] = False,
) -> None:
    """Make preference pairs from own answers."""
    from qlmm.cli.commands.prefer import prefer as run
    from qlmm.preference_data.pairing import Settings

    settings = Settings(answers, temperature, per_prompt, max_new_tokens, seed, limit)
    run(adapter, prompts, pairs, judge=judge, image_root=image_root, settings=settings, as_json=as_json)


@app.command(epilog="Example: qlmm push runs/owl_lora/adapter user/owl --dry-run")
def push(  # noqa: PLR0917  every parameter is an option of the command
    adapter: Adapter,
    repo: Annotated[str, typer.Argument(metavar="USER/NAME", help="The repository on the Hub; made if need be.")],
    public: Annotated[bool, typer.Option("--public", help="Let everybody read it; otherwise it is private.")] = False,
    dry_run: Annotated[
        bool, typer.Option("--dry-run", help="Show what would be sent; nothing is asked or sent.")
    ] = False,
    revision: Annotated[str, typer.Option("--revision", metavar="BRANCH", help="Branch to commit to.")] = "main",
    message: Annotated[str | None, typer.Option("--message", metavar="TEXT", help="Message of the commit.")] = None,
    unproven: Annotated[bool, typer.Option("--unproven", help="Share an adapter that proves nothing.")] = False,
) -> None:
    """Share an adapter on the Hub."""
    from qlmm.cli.commands.push import Settings
    from qlmm.cli.commands.push import push as run

    run(adapter, repo, settings=Settings(public, dry_run, revision, message, unproven))


@app.command(epilog="Example: qlmm pull user/owl@3f2a9c1 owl")
def pull(
    name: Annotated[str, typer.Argument(metavar="USER/NAME[@REVISION]", help="An adapter of qlmm on the Hub.")],
    folder: Annotated[Path | None, typer.Argument(metavar="[DIR]", help="Folder to make; unset: ./NAME.")] = None,
) -> None:
    """Fetch an adapter from the Hub."""
    from qlmm.cli.commands.pull import pull as run

    run(name, folder)


@app.command(epilog="Example: qlmm verify runs/owl_lora")
def verify(
    target: Annotated[
        str, typer.Argument(metavar="ADAPTER|RUN_DIR|HUB_ID", help="An adapter folder, a run, or one on the Hub.")
    ],
    as_json: Annotated[bool, typer.Option("--json", help="Print one JSON object.")] = False,
) -> None:
    """Check that an adapter is what it says."""
    from qlmm.cli.commands.verify import verify as run

    run(target, as_json=as_json)


@app.command(epilog="Example: qlmm merge runs/owl_lora/adapter merged --dtype bf16")
def merge(
    target: Annotated[
        str, typer.Argument(metavar="ADAPTER", help="An adapter folder, a run, or an adapter on the Hub.")
    ],
    folder: Annotated[Path, typer.Argument(metavar="OUT", help="The folder to make.")],
    onto: Annotated[
        Literal["original", "trained"],
        typer.Option("--onto", help="Merge into the base as published, or as the run held it (quantised)."),
    ] = "trained",
    dtype: Annotated[
        Literal["bf16", "fp16", "fp32"] | None,
        typer.Option("--dtype", help="Of the merged weights; unset: as in the base's files."),
    ] = None,
    shard_size: Annotated[
        str | None,
        typer.Option("--shard-size", metavar="SIZE", help="Largest file, such as 5GB; unset: as the base's files."),
    ] = None,
    no_measure: Annotated[
        bool, typer.Option("--no-measure", help="Do not load the models to measure what merging costs.")
    ] = False,
) -> None:
    """Merge an adapter into its base."""
    from qlmm.cli.commands.merge import merge as run

    run(target, folder, onto=onto, dtype=dtype, shard_size=shard_size, measured=not no_measure)


@app.command()
def doctor(
    as_json: Annotated[bool, typer.Option("--json", help="Print one JSON object.")] = False,
) -> None:
    """Show what this machine has and can do."""
    from qlmm.cli.commands.doctor import doctor as run

    run(as_json=as_json)


@data_app.command("check", epilog="Example: qlmm data check data/rows.jsonl --image-root data/pictures")
def data_check(
    target: Annotated[str, typer.Argument(metavar="RECIPE|FILE", help="A recipe, or a file or folder of rows.")],
    overrides: Overrides = None,
    format: Annotated[
        str | None,
        typer.Option("--format", help="Format of a file of rows; unset: detected."),
    ] = None,
    image_root: Annotated[
        str | None,
        typer.Option("--image-root", metavar="FOLDER", help="Folder that the file's picture paths start from."),
    ] = None,
) -> None:
    """List every problem of the rows; count tokens."""
    from qlmm.cli.commands.data import check as run

    run(target, overrides or [], format=format, image_root=image_root)


@data_app.command("show", epilog="Example: qlmm data show owl_lora --row 3")
def data_show(
    recipe: Recipe,
    overrides: Overrides = None,
    row: Annotated[int, typer.Option("--row", min=1, help="Which row, from 1.")] = 1,
) -> None:
    """Show a row: pictures, text, what is learned."""
    from qlmm.cli.commands.data import show as run

    run(recipe, overrides or [], row=row)


@model_app.command("show", epilog="Example: qlmm model show Qwen/Qwen3-VL-4B-Instruct --size 800x600")
def model_show(
    target: Annotated[str, typer.Argument(metavar="ID|FOLDER|RECIPE", help="A model's Hub id or folder, or a recipe.")],
    overrides: Overrides = None,
    size: Annotated[
        list[str] | None,
        typer.Option("--size", metavar="WxH", help="A picture size in pixels; give the option again for more."),
    ] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print one JSON object.")] = False,
) -> None:
    """Show a model's parts, tokens, memory."""
    from qlmm.cli.commands.model import show as run

    run(target, overrides or [], size=size or [], as_json=as_json)


@recipe_app.command("list")
def recipe_list(
    markdown: Annotated[bool, typer.Option("--markdown", help="Print the page recipes/README.md.")] = False,
) -> None:
    """List the shipped recipes."""
    from qlmm.cli.commands.recipe import list_recipes as run

    run(markdown=markdown)


@recipe_app.command("show")
def recipe_show(recipe: Recipe) -> None:
    """Print a recipe as it stands."""
    from qlmm.cli.commands.recipe import show as run

    run(recipe)


@recipe_app.command("check", epilog="Example: qlmm recipe check owl_lora training.steps=20")
def recipe_check(recipe: Recipe, overrides: Overrides = None) -> None:
    """Check a recipe, listing every problem."""
    from qlmm.cli.commands.recipe import check as run

    run(recipe, overrides or [])


@recipe_app.command("explain", epilog="Examples: qlmm recipe explain training.steps; qlmm recipe explain owl_lora")
def recipe_explain(
    subject: Annotated[
        str | None,
        typer.Argument(metavar="[KEY|RECIPE]", help="A key, a section, or a recipe; unset: all keys."),
    ] = None,
    overrides: Overrides = None,
    markdown: Annotated[bool, typer.Option("--markdown", help="Print the page docs/recipe.md.")] = False,
) -> None:
    """Explain keys, or the values of a recipe."""
    from qlmm.cli.commands.recipe import tell as run

    run(subject, overrides or [], markdown=markdown)


@recipe_app.command("new", epilog="Example: qlmm recipe new mine --from owl_lora")
def recipe_new(
    name: Annotated[str, typer.Argument(metavar="NAME", help="Name of the new recipe; NAME.yaml is written here.")],
    source: Annotated[
        str, typer.Option("--from", metavar="RECIPE", help="What to copy.", autocompletion=_recipe_names)
    ] = "owl_lora",
) -> None:
    """Copy a shipped recipe to start from."""
    from qlmm.cli.commands.recipe import new as run

    run(name, source)


def main() -> None:
    """Run the command line; the one place where every error ends.

    A refusal is printed with its way out. Anything else is a bug: one line says so and where the trace is.
    """
    try:
        app(prog_name="qlmm")
    except QlmmError as error:
        _say(error)
        sys.exit(error.exit_code)
    except KeyboardInterrupt:
        sys.exit(EXIT_INTERRUPTED)
    except Exception as error:  # noqa: BLE001  the edge of the program: an unknown error must still end in one line
        _report_bug(error)
        sys.exit(EXIT_BUG)


def _say(error: QlmmError) -> None:
    from qlmm.cli.output.console import out

    out.error(error)
    if env.flag("QLMM_DEBUG"):
        out.talk(_trace(error))


def _report_bug(error: Exception) -> None:
    """One line about a bug, and its trace in a file; the trace itself only where it was asked for."""
    from qlmm.cli.output.console import out

    trace = _trace(error)
    place = env.home() / "crash.txt"
    try:
        place.parent.mkdir(parents=True, exist_ok=True)
        atomic_write(place, trace)
        kept = f"trace: {place}"
    except OSError:
        kept = "QLMM_DEBUG=1 shows the trace"
    said = f"{type(error).__name__}: {error}".splitlines()[0][:LONGEST_BUG]
    out.talk(f"error[X101]: this is a bug in qlmm ({said}); {kept}")
    if env.flag("QLMM_DEBUG"):
        out.talk(trace)


def _trace(error: BaseException) -> str:
    """The trace without access keys and without the name of the home folder; values of variables are never in it."""
    lines = "".join(traceback.format_exception(type(error), error, error.__traceback__))
    return redact(lines).replace(str(Path.home()), "~")
