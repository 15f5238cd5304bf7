"""What exactly a base is, part by part, and the only answer to whether two bases are the same.

An adapter's manifest and a run's record hold an identity as JSON; every check of a base compares two of them.

Usage: ``for difference in manifest.base.differs(base.identity): …``
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from pydantic import BaseModel, ConfigDict, Field

from qlmm.builtin.registry import BUILTIN
from qlmm.recipe.schema import ConnectorSection

__all__ = ["BaseIdentity", "Difference", "PartIdentity", "Role"]

# The recipe's key of a checkpoint, without `base.`.
Role = Literal["model", "vision", "language", "connector"]


class PartIdentity(BaseModel):
    """One checkpoint of a base.

    Attributes:
        id: as the recipe names it: a Hub id, a folder or ``builtin:NAME``.
        revision: the commit of a model on the Hub; None for folders and packaged weights.
        config_sha256: hash of its configuration; of a connector's published weights, hash of the weights.
    """

    model_config = ConfigDict(extra="forbid", frozen=True)

    id: str
    revision: str | None
    config_sha256: str

    @property
    def name(self) -> str:
        """The id without the revision that may be pinned in it; a folder's name may hold an @ of its own."""
        return self.id.partition("@")[0] if self.revision else self.id

    @property
    def pinned(self) -> str:
        """The name with the commit, where there is one."""
        return f"{self.name}@{self.revision}" if self.revision else self.name

    @property
    def local(self) -> bool:
        """Whether it lies in a folder, which nobody else has."""
        return not (self.revision or self.id.startswith(BUILTIN))


@dataclass(frozen=True, slots=True)
class Difference:
    """One way in which two bases differ.

    Attributes:
        role: the part that differs.
        field: what differs about it; ``part`` when only one of the bases has it.
        recorded: the part as written down; None when the recorded base lacks it.
        present: the part it is compared with; None when that base lacks it.
    """

    role: Role
    field: Literal["part", "configuration", "revision", "id"]
    recorded: PartIdentity | None
    present: PartIdentity | None


class BaseIdentity(BaseModel):
    """What a base is: one checkpoint, or a tower and a language model with the connector between them.

    Attributes:
        connector: the recipe's section; None for a native base, whose JSON has no such key.
    """

    model_config = ConfigDict(extra="forbid", frozen=True)

    kind: Literal["native", "assembled"]
    parts: dict[Role, PartIdentity] = Field(min_length=1)
    connector: ConnectorSection | None = Field(None, exclude_if=lambda section: section is None)

    def differs(self, present: BaseIdentity) -> list[Difference]:
        """Every difference from another base, part by part; empty when nothing says that they are two.

        A revision is compared where both are known. Ids are compared unless one of them is a folder here, which may be
        a copy of a model on the Hub. The connector is left out: an adapter's tensors say whether it fits.

        Args:
            present: the base that this one, as recorded, is compared with.
        """
        roles = dict.fromkeys((*self.parts, *present.parts))
        return [one for role in roles for one in _of_part(role, self.parts.get(role), present.parts.get(role))]


def _of_part(role: Role, recorded: PartIdentity | None, present: PartIdentity | None) -> list[Difference]:
    if recorded is None or present is None:
        return [Difference(role, "part", recorded, present)]
    found = []
    if recorded.config_sha256 != present.config_sha256:
        found.append(Difference(role, "configuration", recorded, present))
    if recorded.revision and present.revision and recorded.revision != present.revision:
        found.append(Difference(role, "revision", recorded, present))
    if recorded.name != present.name and not (Path(recorded.id).exists() or Path(present.id).exists()):
        found.append(Difference(role, "id", recorded, present))
    return found
