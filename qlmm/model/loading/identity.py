"""What exactly a base is, part by part, and the only answer to whether two bases are the same.

Manifests and run records have an identity as JSON; every check of a base compares two of them.

Usage: ``for difference in manifest.base.differs(base.identity): …``
"""

from __future__ import annotations

import os
from dataclasses import dataclass
from typing import Literal

from pydantic import BaseModel, ConfigDict, Field

from qlmm.builtin.registry import BUILTIN
from qlmm.recipe.schema import ConnectorSection

__all__ = ["BaseIdentity", "Difference", "PartIdentity", "Role"]

# The recipe's key of a checkpoint, without `base.`.
Role = Literal["model", "vision", "language", "connector"]


class PartIdentity(BaseModel):
    """One checkpoint of a base: its id in the recipe, its commit on the Hub, and a hash of its configuration.

    Of a connector's published weights, the hash is that of the weights.
    """

    model_config = ConfigDict(extra="forbid", frozen=True)

    id: str
    revision: str | None
    config_sha256: str

    @property
    def name(self) -> str:
        """The id without the revision pinned in it; a folder's name may have an @ of its own."""
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
    """One way in which two bases differ: in a part that both have, or as ``part`` in one that only one of them has."""

    role: Role
    field: Literal["part", "configuration", "revision", "id"]
    recorded: PartIdentity | None
    present: PartIdentity | None


class BaseIdentity(BaseModel):
    """What a base is; the JSON of a native base has no connector."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    kind: Literal["native", "assembled"]
    parts: dict[Role, PartIdentity] = Field(min_length=1)
    connector: ConnectorSection | None = Field(None, exclude_if=lambda section: section is None)

    @property
    def whole(self) -> PartIdentity | None:
        """The checkpoint of a native base; None for a base that is assembled from parts."""
        return self.parts.get("model")

    def differs(self, present: BaseIdentity) -> list[Difference]:
        """Every difference of this base, as recorded, from the present one; empty when nothing shows that they are two.

        A revision is compared where both are known. Ids are compared unless one of them is a folder here, which may be
        a copy of a model on the Hub. The connector is left out: an adapter's tensors show whether it fits.
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
    if recorded.name != present.name and not (os.path.exists(recorded.id) or os.path.exists(present.id)):
        found.append(Difference(role, "id", recorded, present))
    return found
