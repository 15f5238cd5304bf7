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

from qlmm.artifacts.adapter import UNPROVEN
from qlmm.artifacts.card import card, placed
from qlmm.artifacts.load import check_files
from qlmm.artifacts.manifest import MANIFEST, Manifest, read_manifest
from qlmm.artifacts.scrub import Replaced, local_paths, scrub, secrets_in
from qlmm.core.errors import ModelError, Problem
from qlmm.data.sources import BUILTIN
from qlmm.training.facts import Proof, from_json

__all__ = ["ALWAYS", "CARD", "Item", "Parcel", "allowed", "pack", "proof_of"]

CARD = "README.md"
WEIGHTS = "adapter_model.safetensors"
ALWAYS = frozenset({"adapter_config.json", WEIGHTS, MANIFEST, CARD, "probe.json"})
_PICTURE = re.compile(r"held-out/[\w-][\w.-]*\.png")
# Files of a processor, a tokenizer or a chat template, when the manifest names them.
_PAPER = re.compile(r"(?:additional_chat_templates/)?[\w-][\w.-]*\.(?:json|jinja|txt|model|tiktoken|spm)")
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
    """Whether a file of this name may be sent or fetched: an adapter's own files, and papers its manifest names."""
    return name in ALWAYS or bool(_PICTURE.fullmatch(name)) or (name in manifest.files and bool(_PAPER.fullmatch(name)))


def proof_of(manifest: Manifest) -> Proof:
    """The proof in a manifest; without one, a proof of nothing."""
    return from_json(Proof, manifest.proof) if manifest.proof is not None else Proof((), None, None, 0, None)


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
    _refuse_contents(folder, names)
    shared, papers, replaced = _papers(folder, names, manifest)
    text = papers.get(CARD) or card(shared, proof)
    papers[CARD] = placed(text, shared, repo, {}, unproven=not proven)
    _refuse_secrets(papers, shared)
    return Parcel(
        repo=repo,
        items=tuple(Item(name, _content(folder, name, papers)) for name in sorted({*names, CARD})),
        left=tuple(name for name in _names(folder) if name not in names),
        replaced=tuple(replaced),
        manifest=shared,
        proven=proven,
        local_base=any(not (one["revision"] or one["id"].startswith(BUILTIN)) for one in shared.base["parts"].values()),
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


def _refuse_contents(folder: Path, names: Iterable[str]) -> None:
    """Stop at files that are not what their names say."""
    wrong = []
    for name in names:
        with (folder / name).open("rb") as file:
            head = file.read(9)
        if head.startswith(_PICKLED):
            wrong.append(Problem("H011", f"{name} is a pickle or an archive by its content"))
        elif name == WEIGHTS and head[8:9] != b"{":
            wrong.append(Problem("H011", f"{name} is no safetensors file"))
        elif _PICTURE.fullmatch(name) and not head.startswith(_PNG):
            wrong.append(Problem("H011", f"{name} is no PNG picture"))
    _refuse(folder, wrong)


def _refuse_secrets(papers: Mapping[str, str], manifest: Manifest) -> None:
    """Stop at papers that hold what looks like an access key; the manifest itself was cleaned of them."""
    commits = {part["revision"] for part in manifest.base["parts"].values() if part["revision"]}
    commits |= set(_PINNED.findall(manifest.model_dump_json()))
    found = {name: secrets_in(text, commits) for name, text in papers.items() if name != MANIFEST}
    wrong = [f"{name} seems to hold a {kind}" for name, kinds in found.items() for kind in kinds]
    if wrong:
        help = "take it out of the file, and revoke it where it was issued: it lay in a folder meant to be shared"
        raise ModelError([Problem("H011", message, help=help) for message in wrong])


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
    raw, replaced = scrub(json.loads((folder / MANIFEST).read_bytes()), MANIFEST)
    known, papers, hashes = local_paths(replaced), {}, dict(manifest.files)
    for name in names:
        if name == MANIFEST or not _is_text(name):
            continue
        text = before = _text(folder, name)
        for path, short in known.items():
            # In JSON a backslash is written twice.
            for spelt in {path, json.dumps(path)[1:-1]}:
                replaced += [Replaced(name, path, short)] if spelt in text else []
                text = text.replace(spelt, short)
        papers[name] = text
        if text != before and name in hashes:
            hashes[name] = sha256(text.encode("utf-8")).hexdigest()
    shared = Manifest.model_validate_json(json.dumps(raw | {"files": hashes}))
    if replaced:
        papers[MANIFEST] = shared.model_dump_json(indent=1) + "\n"
    return shared, papers, replaced


def _text(folder: Path, name: str) -> str:
    try:
        return (folder / name).read_bytes().decode("utf-8")
    except UnicodeDecodeError as error:
        help = f"nothing was sent; write {name} in UTF-8"
        raise ModelError.one("H011", f"{name} is not text in UTF-8, so nobody can look into it", help=help) from error


def _is_text(name: str) -> bool:
    return not (name == WEIGHTS or _PICTURE.fullmatch(name) or _VOCABULARY.fullmatch(name))


def _content(folder: Path, name: str, papers: Mapping[str, str]) -> Path | bytes:
    """The text where there is one: what was looked into is what is sent."""
    return papers[name].encode("utf-8") if name in papers else folder / name


def _with(items: Iterable[Item], name: str, content: bytes) -> list[Item]:
    return [Item(name, content) if item.name == name else item for item in items]
