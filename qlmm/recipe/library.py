"""The shipped recipes, and those of the zoo: found by name, listed by what their first lines say, copied to be changed.

A shipped recipe opens with a comment: one line that sums it up, then ``label: text`` lines (trains, hardware, data,
run, override), each of which may go on over indented lines.

Usage: ``load_recipe(resolve("owl_lora"))``
"""

from __future__ import annotations

import re
from dataclasses import dataclass, field
from pathlib import Path

from qlmm.core.errors import RecipeError
from qlmm.core.naming import NAME_RULE, close
from qlmm.recipe import zoo

__all__ = ["LABELS", "ZOO_RECIPE", "Header", "copy", "folder", "header", "is_recipe", "readme", "resolve", "shipped"]

LABELS = ("trains", "hardware", "data", "run", "override")
# The recipe beside an adapter of the zoo.
ZOO_RECIPE = "recipe.yaml"

_README = """\
# Recipes

Each file is one fine-tuning run. Start one by name or by path, change any key on the command line:

```bash
qlmm recipe list
qlmm finetune owl_lora --dry-run
qlmm finetune owl_lora training.steps=200
qlmm recipe new mine --from owl_lora   # a copy of your own: mine.yaml
```

Relative paths in a recipe are relative to the directory you start it from. All keys: `docs/recipe.md`, or
`qlmm recipe explain`. This page is made from the files by `qlmm recipe list --markdown`.

| recipe | what it is | trains | hardware | data |
|---|---|---|---|---|
"""


@dataclass(frozen=True, slots=True)
class Header:
    """What a recipe's opening comment says: its name, the summary, and the labelled lines."""

    name: str
    summary: str
    facts: dict[str, str] = field(default_factory=dict)


def folder() -> Path:
    """Where the shipped recipes are: inside an installed package, or at the root of a checkout."""
    package = Path(__file__).resolve().parents[1]
    installed = package / "recipes"
    return installed if installed.is_dir() else package.parent / "recipes"


def shipped() -> dict[str, Path]:
    """Every shipped recipe by name, in the order of names."""
    return {path.stem: path for path in sorted(folder().glob("*.yaml")) if re.fullmatch(NAME_RULE, path.stem)}


def is_recipe(target: str) -> bool:
    """Whether an argument that may name other things too, such as rows or a model, names a recipe."""
    if Path(target).suffix in (".yaml", ".yml") or target.startswith(zoo.PREFIX):
        return True
    return target in shipped() and not Path(target).exists()


def resolve(recipe: str) -> Path:
    """The file that a recipe argument means: ``zoo:NAME``, a path, or the name of a shipped recipe.

    A file in the way of a shipped name wins.

    Raises:
        RecipeError: R001 when it is none of them, with the nearest shipped name.
        UsageError: Z001 for an adapter that the zoo does not have, with the nearest.
    """
    if recipe.startswith(zoo.PREFIX):
        return _short(zoo.entry_folder(recipe) / ZOO_RECIPE)
    path = Path(recipe)
    known = shipped()
    try:
        if path.is_file() or recipe not in known:
            _require_file(path, recipe, list(known))
            return path
    except (OSError, ValueError):
        # A name too long for a file system, or with a NUL in it.
        raise RecipeError.one("R001", "the recipe's name is not a file name") from None
    return _short(known[recipe])


def _short(path: Path) -> Path:
    """The path as one would type it from here, for messages."""
    here = Path.cwd()
    return path.relative_to(here) if path.is_relative_to(here) else path


def _require_file(path: Path, recipe: str, known: list[str]) -> None:
    if path.is_dir():
        raise RecipeError.one("R001", f"{recipe} is a folder, not a recipe file")
    if not path.exists():
        help = f"a recipe is a YAML file, a shipped name or zoo:NAME; {close(path.stem, known)}"
        raise RecipeError.one("R001", f"there is no recipe `{recipe}`", help=help)


def header(path: Path) -> Header:
    """The opening comment of a recipe file; a file without one has an empty summary."""
    lines = []
    for line in path.read_text("utf-8").splitlines():
        if not line.startswith("#"):
            break
        lines.append(line.removeprefix("#").removeprefix(" "))
    return Header(path.stem, lines[0].strip() if lines else "", _facts(lines[1:]))


def _facts(lines: list[str]) -> dict[str, str]:
    facts: dict[str, str] = {}
    label: str | None = None
    for line in lines:
        found = re.match(rf"({'|'.join(LABELS)}):\s+(.*)", line)
        if found:
            label = found[1]
            facts[label] = found[2].strip()
        elif label is not None and line.startswith("  "):
            facts[label] += f" {line.strip()}"
        else:
            label = None
    return facts


def readme() -> str:
    """The page recipes/README.md, its table made from the files."""
    rows = []
    for path in shipped().values():
        about = header(path)
        facts = [about.facts.get(label, "") for label in ("trains", "hardware", "data")]
        cells = [f"[`{about.name}`]({path.name})", about.summary, *facts]
        rows.append("| " + " | ".join(cell.replace("|", "\\|") for cell in cells) + " |")
    return _README + "\n".join(rows) + "\n"


def copy(name: str, source: str, folder: Path) -> Path:
    """Write a shipped recipe (or one of the zoo, or a recipe file) to ``folder/name.yaml`` as a start for one's own.

    Its run directory takes the new name, so that copy and original do not meet in one directory.

    Raises:
        RecipeError: R050 when the name is not one, R051 when the file exists: nothing is ever overwritten.
    """
    stem = name.removesuffix(".yaml")
    if not re.fullmatch(r"[A-Za-z0-9][A-Za-z0-9_.-]{0,99}", stem):
        raise RecipeError.one("R050", f"`{name}` is not a name for a recipe", help="letters, digits, _ - and .")
    text = resolve(source).read_text("utf-8")
    old = Path(source.removeprefix(zoo.PREFIX)).stem
    target = folder / f"{stem}.yaml"
    try:
        with target.open("x", encoding="utf-8") as file:
            file.write(_renamed(text, old, stem))
    except FileExistsError:
        raise RecipeError.one("R051", f"{target} exists", help="take another name; nothing is overwritten") from None
    except OSError as error:
        raise RecipeError.one("R051", f"cannot write {target}: {error.strerror}") from None
    return target


def _renamed(text: str, old: str, new: str) -> str:
    """The text with its run directory and its commands under the new name; what other recipes write stays."""
    text = re.sub(rf"(?m)^(  dir: runs/){re.escape(old)}$", rf"\g<1>{new}", text)
    return re.sub(rf"(qlmm finetune )(?:{zoo.PREFIX})?{re.escape(old)}\b", rf"\g<1>{new}.yaml", text)
