"""One tiny base with its rows for all golden tests of losses."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

if TYPE_CHECKING:
    from tests.runs import TinyRun


@pytest.fixture(scope="session")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> TinyRun:
    from tests.golden.one_step import prepared

    return prepared(tmp_path_factory.mktemp("golden"))
