"""Private names of dependencies are imported and touched in ``qlmm/compat`` only, and our own stay in their classes.

Ruff's SLF001 sees ``object._name``; this sees what it lets pass: imports of private and internal modules, names in
strings, private arguments, and methods of a dependency that are called or overridden through ``self``.
"""

from __future__ import annotations

import ast
import re
from collections.abc import Iterable, Iterator
from pathlib import Path

import pytest

from tests.contract.hooks import HOOKS

ROOT = Path(__file__).resolve().parents[2]
COMPAT = ROOT / "qlmm" / "compat"
OUTSIDE = [path for path in sorted((ROOT / "qlmm").rglob("*.py")) if COMPAT not in path.parents]

# What a dependency documents besides its top level; of the others any module without an underscore may be imported.
PUBLIC = {
    "accelerate": {"utils"},
    "bitsandbytes": {"functional", "nn"},
    "datasets": {"config", "exceptions"},
    "huggingface_hub": {"constants", "errors", "utils"},
    "peft": set[str](),
    "transformers": {"modeling_outputs", "utils"},
    "trl": set[str](),
}
# Methods of texts, whose arguments are parts of names and not names.
OF_TEXTS = {"endswith", "startswith", "removesuffix", "removeprefix", "replace", "join", "split", "partition"}
LISTED = {hook.name for hook in HOOKS}


def private(name: str) -> bool:
    return re.fullmatch(r"_[A-Za-z]\w*", name) is not None


def internal(module: str) -> bool:
    """Whether a module is private, or of a dependency that does not document it."""
    first, *inner = module.split(".")
    if module == "__future__" or (first == "qlmm" and not any(map(private, inner))):
        return False
    hidden = first in PUBLIC and bool(inner) and (inner[0] not in PUBLIC[first] or len(inner) > 1)
    return hidden or any(map(private, (first, *inner)))


def own_names(trees: Iterable[ast.Module]) -> set[str]:
    """Private names that classes of the given modules define: methods, fields, and what is set on ``self``."""
    found = set()
    for scope in (node for tree in trees for node in ast.walk(tree) if isinstance(node, ast.ClassDef)):
        found |= {node.name for node in scope.body if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef)}
        for node in ast.walk(scope):
            if isinstance(node, ast.Attribute) and isinstance(node.ctx, ast.Store) and is_self(node.value):
                found.add(node.attr)
            elif isinstance(node, ast.AnnAssign) and isinstance(node.target, ast.Name):
                found.add(node.target.id)
            elif isinstance(node, ast.Name) and isinstance(node.ctx, ast.Store):
                found.add(node.id)
    return {name for name in found if private(name)}


def is_self(node: ast.expr) -> bool:
    return isinstance(node, ast.Name) and node.id in {"self", "cls"}


def findings(tree: ast.Module, own: set[str]) -> Iterator[tuple[int, str]]:
    """Line and words of every use of a private name that is not an own one on ``self``."""
    packages = {alias.name for node in ast.walk(tree) if isinstance(node, ast.Import) for alias in node.names}
    for node in ast.walk(tree):
        if isinstance(node, ast.Import | ast.ImportFrom):
            yield from ((node.lineno, name) for name in imported(node))
        elif isinstance(node, ast.Attribute):
            yield from ((node.lineno, name) for name in touched(node, own, packages))
        elif isinstance(node, ast.Call | ast.Subscript | ast.Constant):
            yield from ((node.lineno, name) for name in spelt(node))


def imported(node: ast.Import | ast.ImportFrom) -> Iterator[str]:
    """Private names and internal modules that a statement imports."""
    if isinstance(node, ast.Import):
        yield from (alias.name for alias in node.names if internal(alias.name))
        return
    module = node.module or ""
    full = [f"{module}.{alias.name}" for alias in node.names]
    # ``from trl import experimental`` names a module, too.
    yield from (one for one in full if private(one.rpartition(".")[2]) or internal(module) or one == "trl.experimental")


def touched(node: ast.Attribute, own: set[str], packages: set[str]) -> Iterator[str]:
    """A private attribute, or one of an internal module."""
    if private(node.attr):
        inherited = node.attr in LISTED and isinstance(node.value, ast.Call) and ast.unparse(node.value.func) == "super"
        if not inherited and not (node.attr in own and isinstance(node.value, ast.Name)):
            yield ast.unparse(node)
        return
    chain = dotted(node)
    if chain.partition(".")[0] in packages and internal(chain.rpartition(".")[0]):
        yield chain


def spelt(node: ast.Call | ast.Subscript | ast.Constant) -> Iterator[str]:
    """Private names that are arguments, keys or strings, and names of internal modules in strings."""
    if isinstance(node, ast.Call):
        yield from (f"{one.arg}=" for one in node.keywords if one.arg and private(one.arg))
        if not (isinstance(node.func, ast.Attribute) and node.func.attr in OF_TEXTS):
            yield from filter(private, texts(node.args))
    elif isinstance(node, ast.Subscript):
        yield from filter(private, texts([node.slice]))
    elif isinstance(node.value, str) and node.value.partition(".")[0] in PUBLIC:
        # A sentence may begin with a package's name; a module's name is one word.
        yield from (one for one in re.findall(r"\A[\w.]+\Z", node.value) if internal(one.rstrip(".")))


def dotted(node: ast.expr) -> str:
    """``package.module.name`` as written; nothing for an attribute of anything else."""
    text = ast.unparse(node)
    return text if re.fullmatch(r"[\w.]+", text) else ""


def texts(nodes: Iterable[ast.expr]) -> list[str]:
    return [node.value for node in nodes if isinstance(node, ast.Constant) and isinstance(node.value, str)]


def test_private_names_of_dependencies_stand_in_the_compatibility_modules() -> None:
    trees = {path: ast.parse(path.read_text("utf-8")) for path in OUTSIDE}
    own = own_names(trees.values())
    found = [
        f"{path.relative_to(ROOT).as_posix()}:{line} {words}"
        for path, tree in trees.items()
        for line, words in findings(tree, own)
    ]
    assert not found, "move it into qlmm/compat, with its release, its public replacement and a contract test"


@pytest.mark.parametrize(
    "line",
    [
        "from trl.experimental.orpo import ORPOTrainer",
        "from trl import experimental",
        "import trl; trl.experimental.orpo.ORPOTrainer",
        "from trl.trainer.utils import pad",
        "from transformers.models.llava.modeling_llava import LlavaMultiModalProjector",
        "from peft.utils.other import transpose",
        "from torch._dynamo import reset",
        "from qlmm.core.files import _sync",
        "import huggingface_hub._commit_api",
        "importlib.import_module('trl.experimental.orpo')",
        "importlib.import_module(f'trl.experimental.{name}')",
        "config._attn_implementation",
        "model.config._attn_implementation",
        "super()._inner_training_loop()",
        "self._inner_training_loop()",
        "self.processor._get_num_multimodal_tokens()",
        "torch.nn.modules.batchnorm._BatchNorm",
        "vars(model)['_hf_peft_config_loaded']",
        "network.get_submodule('_conv_stem')",
        "cached_file(name, _raise_exceptions_for_missing_entries=False)",
    ],
)
def test_every_way_to_a_private_name_is_found(line: str) -> None:
    assert list(findings(ast.parse(line), own=set()))


@pytest.mark.parametrize(
    "line",
    [
        "from transformers import PreTrainedModel",
        "from transformers.modeling_outputs import BaseModelOutput",
        "from huggingface_hub.errors import GatedRepoError",
        "import datasets; datasets.config.HF_DATASETS_CACHE",
        "import torch; torch.utils.data.Sampler",
        "self._rows",
        "records._rows",
        "super()._save(folder)",
        "name.endswith('_config')",
        "from qlmm import __version__",
        "module.__class__",
    ],
)
def test_public_and_own_names_are_let_pass(line: str) -> None:
    assert not list(findings(ast.parse(line), own={"_rows"}))
