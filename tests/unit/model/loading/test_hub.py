"""A model that cannot be had is told in one sentence with the way out that fits."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from huggingface_hub.errors import GatedRepoError

from qlmm.core.errors import ModelError
from qlmm.model.loading.hub import Located, config_of, locate, reading

HUB = Located("some/model", "some/model", None)


def told(error: Exception, located: Located = HUB) -> str:
    """What the user reads when transformers raises this."""
    with pytest.raises(ModelError) as caught, reading("base.model", located):
        raise error
    return str(caught.value)


def gated() -> GatedRepoError:
    """What the Hub's library raises for a model whose licence was not accepted."""
    answer: Any = SimpleNamespace(headers={}, request=None)
    return GatedRepoError("403 Client Error", response=answer)


# As transformers 5.23 words them.
TORCHVISION = (
    "\nQwen2VLVideoProcessor requires the Torchvision library but it was not found in your environment.\nPlease"
)
TIMM = "\nTimmWrapperModel requires the timm library but it was not found. You can\n`pip install timm`."
WORDS = "Package `num2words` is required to run SmolVLM processor. Install it with `pip install num2words`."
LEARN = "X requires the scikit-learn library but it was not found.\n```\npip install -U scikit-learn\n```"


@pytest.mark.parametrize(
    ("error", "package", "help"),
    [
        (ImportError(TORCHVISION), "torchvision", 'pip install "qlmm[gpu]"'),
        (ImportError(TIMM), "timm", "pip install timm"),
        (ImportError(WORDS), "num2words", "pip install num2words"),
        (ImportError(LEARN), "scikit-learn", "pip install scikit-learn"),
        (ModuleNotFoundError("No module named 'x.y'", name="x.y"), "x", "pip install x"),
        (
            ValueError("some/model requires `torchvision` to be installed. Please install `torchvision`."),
            "torchvision",
            'pip install "qlmm[gpu]"',
        ),
    ],
)
def test_a_missing_package_is_named(error: Exception, package: str, help: str) -> None:
    said = told(error)
    assert said.startswith(f"error[M005]: base.model: some/model needs the package {package}, which is not installed")
    assert said.endswith(f"\nhelp: {help}")


def test_an_import_that_names_no_package_is_quoted() -> None:
    assert "needs a package that is not installed: cannot find it\n" in told(ImportError("cannot find it"))


def test_a_gated_model_is_told_apart_from_one_that_is_not_there() -> None:
    outer = OSError("You are trying to access a gated repo.")
    outer.__cause__ = gated()
    for error in (gated(), outer):
        said = told(error)
        assert said.startswith("error[M006]: base.model: some/model is gated")
        assert "accept the licence on the model's page, then run `hf auth login`" in said
    assert told(OSError("nothing there")).startswith("error[M003]: base.model: some/model is neither a model folder")


def test_a_folder_that_lacks_files_is_not_called_missing(tmp_path: Path) -> None:
    said = told(OSError("Can't load image processor for 'x'. If you were trying …"), locate(str(tmp_path)))
    assert f"the folder {tmp_path} does not have all of a model: Can't load image processor for 'x'\n" in said


def test_a_name_too_long_for_a_folder_is_no_bug() -> None:
    with pytest.raises(ModelError, match="is neither a model folder here"):
        config_of(locate("x" * 5000), "base.model")
