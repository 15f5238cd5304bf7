"""The shipped recipes, and those of the zoo: found by name, listed by their first lines, copied to be changed.

A shipped recipe opens with a comment: one line that sums it up, then ``label: text``, with further lines indented.

Usage: ``load_recipe(resolve("owl_lora"))``
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from itertools import takewhile
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
    """A recipe's name, and the summary and labelled lines of its opening comment."""

    name: str
    summary: str
    facts: dict[str, str]


def folder() -> Path:
    """Where the shipped recipes are."""
    return zoo.packaged("recipes")


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

    Raises:
        RecipeError: R001 when it is none of them, with the nearest shipped name.
        UsageError: Z001 for an adapter that the zoo does not have, with the nearest.
    """
    if recipe.startswith(zoo.PREFIX):
        return _short(zoo.entry_folder(recipe) / ZOO_RECIPE)
    path = Path(recipe)
    known = shipped()
    try:
        if recipe in known and not path.is_file():
            return _short(known[recipe])
        if path.is_dir():
            raise RecipeError.one("R001", f"{recipe} is a folder, not a recipe file")
        if not path.exists():
            help = f"a recipe is a YAML file, a shipped name or zoo:NAME; {close(path.stem, known)}"
            raise RecipeError.one("R001", f"there is no recipe `{recipe}`", help=help)
    except (OSError, ValueError):
        # A name too long for a file system, or with a NUL in it.
        raise RecipeError.one("R001", "the recipe's name is not a file name") from None
    return path


def _short(path: Path) -> Path:
    """The path as one would type it from here, for messages."""
    here = Path.cwd()
    return path.relative_to(here) if path.is_relative_to(here) else path


def header(path: Path) -> Header:
    """The opening comment of a recipe file; without one the summary is empty."""
    comment = takewhile(lambda line: line.startswith("#"), path.read_text("utf-8").splitlines())
    lines = [line.removeprefix("#").removeprefix(" ") for line in comment]
    return Header(path.stem, lines[0].strip() if lines else "", _facts(lines[1:]))


def _facts(lines: list[str]) -> dict[str, str]:
    facts: dict[str, str] = {}
    label = ""
    for line in lines:
        if found := re.match(rf"({'|'.join(LABELS)}):\s+(.*)", line):
            label = found[1]
            facts[label] = found[2].strip()
        elif label and line.startswith("  "):
            facts[label] += f" {line.strip()}"
        else:
            label = ""
    return facts


def readme() -> str:
    """The page recipes/README.md, its table made from the files."""
    page = _README
    for path in shipped().values():
        about = header(path)
        facts = [about.facts.get(label, "") for label in ("trains", "hardware", "data")]
        cells = [f"[`{about.name}`]({path.name})", about.summary, *facts]
        page += "| " + " | ".join(cell.replace("|", "\\|") for cell in cells) + " |\n"
    return page


def copy(name: str, source: str, folder: Path) -> Path:
    """Write a recipe to ``folder/name.yaml`` as a start for one's own; its run directory takes the new name.

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
