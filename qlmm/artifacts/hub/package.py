"""What of an adapter's folder leaves the machine: an allow list, refusals, and papers without local paths and keys.

Nothing here reaches for the network, and nothing in the folder is changed.

Usage: ``parcel = pack(Path("runs/x/adapter"), "user/name", unproven=False)``
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace
from hashlib import sha256
from pathlib import Path
from typing import Any

from pydantic import ValidationError
from safetensors import SafetensorError, safe_open

from qlmm.artifacts.adapter.folder import UNPROVEN
from qlmm.artifacts.adapter.load import check_files
from qlmm.artifacts.adapter.manifest import MANIFEST, Manifest, read_manifest
from qlmm.artifacts.cards.adapter_card import card, local_sources, placed
from qlmm.artifacts.hub.scrub import Replaced, local_paths, places_in, scrub, secrets_in, whole_paths
from qlmm.core.errors import ModelError, Problem
from qlmm.proof.probe import PROBE
from qlmm.proof.records import Proof, from_json

__all__ = ["CARD", "Item", "Parcel", "allowed", "check_contents", "pack", "proof_of"]

CARD = "README.md"
WEIGHTS = "adapter_model.safetensors"
# The two files that no manifest names: itself, and the card, which its owner may edit.
UNNAMED = frozenset({MANIFEST, CARD})
_PICTURE = re.compile(r"held-out/[\w-][\w.-]*\.png")
# Files of PEFT, a processor, tokenizers or chat templates; a second tokenizer has a folder of its own.
_PAPER = re.compile(r"(?:[\w-][\w.-]*/)?[\w-][\w.-]*\.(?:json|jinja|txt|model|tiktoken|spm)")
_PICKLE = re.compile(r".*\.(?:pkl|pickle|pt|pth|bin|ckpt|joblib|npy|npz)", re.IGNORECASE)
_SECRET = re.compile(
    r"(?:.*/)?(?:\.env.*|\.netrc|\.?token|id_[a-z0-9]+|credentials.*|secrets?\b.*|.*\.(?:pem|key|p12|pfx|kdbx))",
    re.IGNORECASE,
)
# Words of the base's tokenizer: any row of digits may be one, and the manifest's hash says that the run wrote them.
_VOCABULARY = re.compile(r"tokenizer\.json|vocab\..*|merges\.txt|.*\.(?:model|tiktoken|spm)")
_PINNED = re.compile(r"@([0-9a-f]{40})\b")
_PNG = b"\x89PNG\r\n\x1a\n"
_PICKLED = (b"\x80", b"PK")


@dataclass(frozen=True, slots=True)
class Item:
    """One file as it is sent: its name in the repository, and a file of the folder or bytes in its place."""

    name: str
    content: Path | bytes

    @property
    def size(self) -> int:
        """Bytes."""
        return len(self.content) if isinstance(self.content, bytes) else self.content.stat().st_size


@dataclass(frozen=True, slots=True)
class Parcel:
    """Everything that would be sent, and what was done to it.

    Attributes:
        left: files of the folder that are not on the allow list and stay here.
        replaced: what was taken out of the papers.
        manifest: the manifest as it is sent.
        proven: whether every promise of the run was kept.
        local_base: the base is a folder of this machine, which nobody else has.
    """

    repo: str
    items: tuple[Item, ...]
    left: tuple[str, ...]
    replaced: tuple[Replaced, ...]
    manifest: Manifest
    proven: bool
    local_base: bool

    @property
    def card(self) -> str:
        """The model card as it is sent."""
        (text,) = [item.content for item in self.items if item.name == CARD and isinstance(item.content, bytes)]
        return text.decode("utf-8")

    def licensed(self, licences: Mapping[str, str]) -> Parcel:
        """The same parcel, its card with the licences that the Hub states."""
        text = placed(self.card, self.manifest, self.repo, licences, unproven=not self.proven)
        return replace(self, items=tuple(_with(self.items, CARD, text.encode("utf-8"))))


def allowed(name: str, manifest: Manifest) -> bool:
    """Whether a file of this name may be sent or fetched: one that the manifest names, of a kind that adapters have."""
    known = name == WEIGHTS or bool(_PICTURE.fullmatch(name) or _PAPER.fullmatch(name))
    return name in UNNAMED or (name in manifest.files and known)


def proof_of(manifest: Manifest) -> Proof:
    """The proof in a manifest; without one, a proof of nothing.

    Raises:
        ModelError: A002 when it cannot be read.
    """
    if manifest.proof is None:
        return Proof((), None, None, 0, None)
    try:
        return from_json(Proof, manifest.proof)
    except ValidationError as error:
        first = error.errors(include_input=False)[0]
        place = ".".join(str(part) for part in first["loc"])
        help = "take the adapter again from whoever made it; without its proof nobody knows what it is"
        message = f"the proof in {MANIFEST} is damaged: {place}: {first['msg']}"
        raise ModelError.one("A002", message, help=help) from error


def pack(folder: Path, repo: str, *, unproven: bool) -> Parcel:
    """Choose, check and clean what of an adapter's folder is sent.

    Args:
        folder: the adapter.
        repo: id of the repository it goes to, for the card.
        unproven: send an adapter that proves nothing.

    Raises:
        ModelError: A001 to A003 for a folder that is no whole adapter, H010 for one that proves nothing, H011 for
            files that must not be sent, H015 for a card that cannot be read.
    """
    manifest = read_manifest(folder)
    _refuse_dangers(folder)
    check_files(folder, manifest)
    proof = proof_of(manifest)
    proven = proof.holds and folder.resolve().name != UNPROVEN
    if not proven and not unproven:
        raise _unproven(folder, proof)
    names = [name for name in _names(folder) if allowed(name, manifest)]
    _refuse_incomplete(folder, manifest)
    check_contents(folder, names)
    shared, papers, replaced = _papers(folder, names, manifest)
    text = papers.get(CARD) or card(shared, proof)
    papers[CARD] = placed(text, shared, repo, {}, unproven=not proven)
    _refuse_secrets(papers, shared)
    _refuse_local(papers | {MANIFEST: shared.model_dump_json()})
    return Parcel(
        repo=repo,
        items=tuple(Item(name, _content(folder, name, papers)) for name in sorted({*names, CARD})),
        left=tuple(name for name in _names(folder) if name not in names),
        replaced=tuple(replaced),
        manifest=shared,
        proven=proven,
        local_base=any(part.local for part in shared.base.parts.values()),
    )


def _names(folder: Path) -> list[str]:
    """Every file and link below the folder."""
    return sorted(
        path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.is_symlink() or not path.is_dir()
    )


def _refuse_dangers(folder: Path) -> None:
    """Stop at what has no business in an adapter: pickles, keys and links say that something went wrong before."""
    wrong = []
    for name in _names(folder):
        if (folder / name).is_symlink():
            wrong.append(Problem("H011", f"{name} is a link, and what it leads to may be anything"))
        elif _PICKLE.fullmatch(name):
            wrong.append(Problem("H011", f"{name} is a pickle by its name, which runs code where it is read"))
        elif _SECRET.fullmatch(name):
            wrong.append(Problem("H011", f"{name} looks like a file of access keys"))
    _refuse(folder, wrong)


def _refuse_incomplete(folder: Path, manifest: Manifest) -> None:
    """Stop where a file that the adapter needs cannot go with it: nobody could pull what arrives."""
    strange = [name for name in manifest.files if not allowed(name, manifest)]
    if strange:
        help = "nothing was sent; an adapter with such a file is shared by other means, or trained again without it"
        raise ModelError(
            [
                Problem("H011", f"{MANIFEST} names {name}, which is no kind of file to share", help=help)
                for name in strange
            ]
        )


def check_contents(folder: Path, names: Iterable[str]) -> None:
    """Stop at files that are not what their names say.

    Raises:
        ModelError: H011 naming them.
    """
    wrong = []
    for name in names:
        with (folder / name).open("rb") as file:
            head = file.read(len(_PNG))
        if name == WEIGHTS:
            # Its first bytes are a length, which may be those of a pickle by chance.
            wrong += [] if _is_safetensors(folder / name) else [Problem("H011", f"{name} is no safetensors file")]
        elif head.startswith(_PICKLED):
            wrong.append(Problem("H011", f"{name} is a pickle or an archive by its content"))
        elif _PICTURE.fullmatch(name) and not head.startswith(_PNG):
            wrong.append(Problem("H011", f"{name} is no PNG picture"))
    _refuse(folder, wrong)


def _is_safetensors(path: Path) -> bool:
    """Whether the header can be read and fits the file."""
    try:
        with safe_open(str(path), framework="pt"):
            return True
    except SafetensorError:
        return False


def _refuse_secrets(papers: Mapping[str, str], manifest: Manifest) -> None:
    """Stop at papers that hold what looks like an access key; the manifest itself was cleaned of them."""
    commits = {part.revision for part in manifest.base.parts.values() if part.revision}
    commits |= set(_PINNED.findall(manifest.model_dump_json()))
    found = {name: secrets_in(text, commits) for name, text in papers.items() if name != MANIFEST}
    wrong = [f"{name} seems to hold a {kind}" for name, kinds in found.items() for kind in kinds]
    if wrong:
        help = "take it out of the file, and revoke it where it was issued: it lay in a folder meant to be shared"
        raise ModelError([Problem("H011", message, help=help) for message in wrong])


def _refuse_local(papers: Mapping[str, str]) -> None:
    """Stop at papers that still name a place of this machine; the words of the probe's rows belong to the data."""
    wrong = [
        f"{name} names {place} of this machine"
        for name, text in papers.items()
        if name != PROBE
        for place in sorted({*places_in(text), *_paths_in(name, text)})
    ]
    if wrong:
        help = "nothing was sent; take it out of the file, and run the same command again"
        raise ModelError([Problem("H011", message, help=help) for message in wrong])


def _paths_in(name: str, text: str) -> list[str]:
    """Values and keys of a paper in JSON that are absolute paths; any path at all in the manifest."""
    found = _local_in(name, text)
    return [one.before for one in found] if name == MANIFEST else list(whole_paths(found))


def _refuse(folder: Path, wrong: list[Problem]) -> None:
    if wrong:
        help = f"nothing was sent; move it out of {folder} and run the same command again"
        raise ModelError([replace(one, help=help) for one in wrong])


def _unproven(folder: Path, proof: Proof) -> ModelError:
    broken = [promise for promise in proof.promises if not promise.kept]
    why = f"promise broken: {broken[0].name} ({broken[0].detail})" if broken else "no promise of its run was checked"
    return ModelError.one(
        "H010",
        f"{folder} is not proven: {why}",
        help="train again, or add --unproven to share it as it is; its card then says so on top",
    )


def _papers(folder: Path, names: Iterable[str], manifest: Manifest) -> tuple[Manifest, dict[str, str], list[Replaced]]:
    """Texts among the files as they are sent, the manifest among them with the hashes of what was changed."""
    texts = {name: _text(folder, name) for name in names if name != MANIFEST and _is_text(name)}
    renamed = local_sources(manifest, texts.get(CARD, ""))
    raw, replaced = scrub(json.loads((folder / MANIFEST).read_bytes()), MANIFEST, renamed)
    elsewhere = [one for name, text in texts.items() if name != PROBE for one in _local_in(name, text)]
    known, papers, hashes = local_paths([*replaced, *elsewhere]), {}, dict(manifest.files)
    for name, before in texts.items():
        papers[name], found = _cut(name, before, known)
        replaced += found
        if found and name in hashes:
            hashes[name] = sha256(papers[name].encode("utf-8")).hexdigest()
    text, found = _cut(MANIFEST, json.dumps(raw | {"files": hashes}), known)
    shared = Manifest.model_validate_json(text)
    if replaced or found:
        papers[MANIFEST] = shared.model_dump_json(indent=1) + "\n"
    return shared, papers, replaced + found


def _local_in(name: str, text: str) -> list[Replaced]:
    """What in a paper in JSON looks like a local path; other papers say nothing of where a path begins and ends."""
    try:
        value: Any = json.loads(text) if name.endswith(".json") else None
    except ValueError:
        return []
    return scrub(value, name)[1]


def _cut(name: str, text: str, known: Mapping[str, str]) -> tuple[str, list[Replaced]]:
    """A text with known paths cut, and what was."""
    found = []
    for path, short in known.items():
        # In JSON a backslash is written twice.
        for spelt in {path, json.dumps(path)[1:-1]}:
            found += [Replaced(name, path, short)] if spelt in text else []
            text = text.replace(spelt, short)
    return text, found


def _text(folder: Path, name: str) -> str:
    try:
        return (folder / name).read_bytes().decode("utf-8")
    except UnicodeDecodeError as error:
        help = f"nothing was sent; write {name} in UTF-8"
        raise ModelError.one("H011", f"{name} is not text in UTF-8, so nobody can look into it", help=help) from error


def _is_text(name: str) -> bool:
    return not (name == WEIGHTS or _PICTURE.fullmatch(name) or _VOCABULARY.fullmatch(name.rpartition("/")[2]))


def _content(folder: Path, name: str, papers: Mapping[str, str]) -> Path | bytes:
    """The text where there is one: what was looked into is what is sent."""
    return papers[name].encode("utf-8") if name in papers else folder / name


def _with(items: Iterable[Item], name: str, content: bytes) -> list[Item]:
    return [Item(name, content) if item.name == name else item for item in items]
