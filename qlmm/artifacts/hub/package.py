"""What of an adapter's folder is sent: files on a list, their manifest, and a card for the Hub.

Nothing here needs the network or changes the folder.

Usage: ``package = pack(Path("runs/x/adapter"), "user/name", unproven=False)``
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from pathlib import Path

from qlmm.artifacts.adapter.allowed_files import (
    allowed,
    check_contents,
    files_below,
    has_pickle_name,
    is_picture,
    refuse_files,
)
from qlmm.artifacts.adapter.load import check_files
from qlmm.artifacts.adapter.local_paths import places_in, secrets_in
from qlmm.artifacts.adapter.manifest import Manifest, read_manifest
from qlmm.artifacts.adapter.tensors import check_finite
from qlmm.artifacts.cards.adapter_card import card, placed
from qlmm.core.errors import ModelError, Problem
from qlmm.core.filenames import ADAPTER_WEIGHTS, CARD, LOCAL_RECIPE, MANIFEST, PROBE, UNPROVEN

__all__ = ["Content", "Package", "pack"]

_SECRET = re.compile(
    r"(?:.*/)?(?:\.env.*|\.netrc|\.?token|id_[a-z0-9]+|credentials.*|secrets?\b.*|.*\.(?:pem|key|p12|pfx|kdbx))",
    re.IGNORECASE,
)
# Words of the base's tokenizer: any row of digits may be one, and the manifest's hash shows that the run wrote them.
_VOCABULARY = re.compile(r"tokenizer\.json|vocab\..*|merges\.txt|.*\.(?:model|tiktoken|spm)")
_PINNED = re.compile(r"@([0-9a-f]{40})\b")


# A file of the folder, or what is sent in its place.
Content = Path | bytes


@dataclass(frozen=True, slots=True)
class Package:
    """Everything that would be sent.

    Attributes:
        card: the model card.
        others: the other files, by their names in the repository.
        left: files of the folder that are not on the list and stay here.
        local_base: whether the base is a folder of this machine, which nobody else has.
    """

    repo: str
    card: str
    others: Mapping[str, Content]
    left: tuple[str, ...]
    manifest: Manifest
    proven: bool
    local_base: bool

    @property
    def files(self) -> dict[str, Content]:
        """Every file, the card among them."""
        return dict(sorted({**self.others, CARD: self.card.encode("utf-8")}.items()))

    @property
    def sizes(self) -> dict[str, int]:
        """Bytes of every file."""
        return {name: len(one) if isinstance(one, bytes) else one.stat().st_size for name, one in self.files.items()}

    def licensed(self, licences: Mapping[str, str]) -> Package:
        """The same package, its card with the licences that the Hub states."""
        return replace(self, card=placed(self.card, self.manifest, self.repo, licences, unproven=not self.proven))


def pack(folder: Path, repo: str, *, unproven: bool) -> Package:
    """Choose and check what of an adapter's folder is sent; `unproven` sends one that proves nothing.

    Raises:
        ModelError: A001 to A003 or A015 for a folder that is not a whole adapter, H010 for one that proves nothing,
            H011 for files that must not be sent, H015 for a card that cannot be read.
    """
    manifest = read_manifest(folder, local=False)
    refuse_files(folder, _dangers(folder))
    check_files(folder, manifest)
    proof = manifest.proven_by
    proven = proof.holds and folder.resolve().name != UNPROVEN
    if not proven and not unproven:
        broken = [f"promise broken: {one.name} ({one.detail})" for one in proof.promises if not one.kept]
        why = broken[0] if broken else "no promise of its run was checked"
        help = "train again, or add --unproven to share it as it is; its card then has that on top"
        raise ModelError.one("H010", f"{folder} is not proven: {why}", help=help)
    names = [name for name in files_below(folder) if allowed(name, manifest)]
    check_contents(folder, names)
    check_finite(folder)
    texts = {name: _text(folder, name) for name in names if _is_text(name)}
    written = texts.get(CARD) or card(manifest, proof)
    texts[CARD] = placed(written, manifest, repo, {}, unproven=not proven)
    if problems := [*_incomplete(manifest), *_private(texts, manifest)]:
        raise ModelError(problems)
    return Package(
        repo,
        texts.pop(CARD),
        # What was looked into is what is sent.
        {name: texts[name].encode("utf-8") if name in texts else folder / name for name in names if name != CARD},
        left=tuple(name for name in files_below(folder) if name not in (*names, LOCAL_RECIPE)),
        manifest=manifest,
        proven=proven,
        local_base=any(part.local for part in manifest.base.parts.values()),
    )


def _dangers(folder: Path) -> Iterator[str]:
    """Pickles, keys and links in an adapter's folder: each is a sign that something went wrong before."""
    for name in files_below(folder):
        if (folder / name).is_symlink():
            yield f"{name} is a link, and what it leads to may be anything"
        elif has_pickle_name(name):
            yield f"{name} is a pickle by its name, which runs code where it is read"
        elif _SECRET.fullmatch(name):
            yield f"{name} looks like a file of access keys"
        elif secrets_in(name):
            yield "a file has an access key for its name"


def _incomplete(manifest: Manifest) -> Iterator[Problem]:
    """Files that the adapter needs and that cannot go with it: nobody could pull what arrives."""
    help = "nothing was sent; an adapter with such a file is shared by other means, or trained again without it"
    for name in manifest.files:
        if not allowed(name, manifest):
            yield Problem("H011", f"{MANIFEST} names {name}, which is not a kind of file to share", help=help)


def _private(texts: Mapping[str, str], manifest: Manifest) -> Iterator[Problem]:
    """Texts with access keys, or with folders of this machine; the probe's rows belong to the data."""
    commits = {part.revision for part in manifest.base.parts.values() if part.revision}
    commits |= set(_PINNED.findall(manifest.model_dump_json()))
    revoke = "take it out of the file, and revoke it where it was issued: it lay in a folder meant to be shared"
    cut = "nothing was sent; take it out of the file, and run the same command again"
    for name, text in texts.items():
        for kind in secrets_in(text, commits):
            yield Problem("H011", f"{name} seems to contain a {kind}", help=revoke)
        for place in places_in(name, text) if name != PROBE else ():
            yield Problem("H011", f"{name} names {place} of this machine", help=cut)


def _text(folder: Path, name: str) -> str:
    try:
        return (folder / name).read_bytes().decode("utf-8")
    except UnicodeDecodeError as error:
        help = f"nothing was sent; write {name} in UTF-8"
        raise ModelError.one("H011", f"{name} is not text in UTF-8, so nobody can look into it", help=help) from error


def _is_text(name: str) -> bool:
    return not (name == ADAPTER_WEIGHTS or is_picture(name) or _VOCABULARY.fullmatch(name.rpartition("/")[2]))
