"""Adapters to and from the Hub: one commit up, whole or not at all; verified and in one rename down.

Usage: ``pushed = push(pack(folder, "user/name", unproven=False)); pulled = pull("user/name", Path("name"))``
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from dataclasses import dataclass
from glob import escape
from hashlib import sha1, sha256
from pathlib import Path
from typing import Any

from huggingface_hub import CommitOperationAdd, CommitOperationDelete, get_token
from huggingface_hub.errors import HfHubHTTPError, RemoteEntryNotFoundError

from qlmm.artifacts.adapter import publish
from qlmm.artifacts.card import public_ids
from qlmm.artifacts.hub_talk import LOG_IN, TIMEOUT_S, Hub, checked_name, talking
from qlmm.artifacts.load import check_files
from qlmm.artifacts.manifest import MANIFEST, Manifest, read_manifest
from qlmm.artifacts.parcel import ALWAYS, CARD, Item, Parcel, allowed, proof_of
from qlmm.artifacts.place import check_place
from qlmm.core.errors import ModelError, Problem, RunError, UsageError
from qlmm.core.files import file_sha256

__all__ = ["MAIN", "Pulled", "Pushed", "pull", "push"]

MAIN = "main"
PICTURES = "held-out/*.png"
# What a repository may hold before its first adapter.
BLANK = frozenset({".gitattributes", ".gitignore", "LICENSE", CARD})
AGAIN = "your adapter is as it was; run the same command again: large files that arrived are not sent twice"
AGAIN_PULL = "run the same command again: what was fetched is kept in the cache"


@dataclass(frozen=True, slots=True)
class Pushed:
    """Where an adapter is now; `changed` is False when the same files were there already."""

    address: str
    commit: str
    private: bool
    changed: bool


@dataclass(frozen=True, slots=True)
class Pulled:
    """An adapter that was fetched, the commit it is from, and whether its maker's run kept its promises."""

    folder: Path
    repo: str
    commit: str
    proven: bool


@dataclass(frozen=True, slots=True)
class _Head:
    """A branch as it is before a push: its commit, its files, and the manifest among them."""

    commit: str
    names: frozenset[str]
    private: bool
    manifest: dict[str, Any] | None


def push(
    parcel: Parcel,
    *,
    public: bool = False,
    branch: str = MAIN,
    message: str | None = None,
    tell: Callable[[str], None] = lambda line: None,
) -> Pushed:
    """Send an adapter in one commit; what goes wrong leaves the Hub as it was, or with an empty repository.

    Args:
        parcel: what is sent.
        public: let everybody read a repository that is made now, or know that everybody can read the one there is.
        branch: branch to commit to; made where there is none.
        message: of the commit.
        tell: is told what is going on.

    Raises:
        UsageError: H001 to H006, H009, H012 before anything is changed.
        RunError: H007, H008, H013, H014 for what went wrong on the way.
    """
    repo = checked_name(parcel.repo)
    with talking(repo, AGAIN, tell) as hub:
        _check_token(hub)
        parcel = parcel.licensed(_licences(hub, parcel.manifest))
        head = _head(hub, repo, public, branch)
        _refuse_other(head, parcel)
        if head.private and public:
            tell(f"{repo} stays private: make it public on its settings page")
        operations = [name for name in sorted(head.names) if _is_stale(name, head, parcel)]
        commit = hub.ask(
            lambda api: api.create_commit(
                repo,
                # A request that is repeated needs fresh operations: they remember what the Hub said of them.
                [
                    *(CommitOperationAdd(item.name, item.content) for item in parcel.items),
                    *(CommitOperationDelete(name) for name in operations),
                ],
                commit_message=message or f"Adapter of qlmm {parcel.manifest.versions['qlmm']}",
                revision=branch,
                parent_commit=head.commit,
            )
        ).oid
        _compare(hub, parcel, commit)
        return Pushed(f"{hub.api.endpoint}/{repo}", commit, head.private, changed=commit != head.commit)


def _check_token(hub: Hub) -> None:
    """Ask who we are: a wrong token is told apart from a missing right."""
    if get_token() is None:
        raise UsageError.one("H001", "pushing needs a token of the Hub, and there is none", help=LOG_IN)
    hub.ask(lambda api: api.whoami())


def _licences(hub: Hub, manifest: Manifest) -> dict[str, str]:
    """The licences that the Hub states for bases and data sets; what it does not show has none."""
    bases, data = public_ids(manifest)
    asked: list[tuple[str, Callable[[Any], Any]]] = [
        *(
            (name, lambda api, name=name: api.model_info(name, expand=["cardData"], timeout=TIMEOUT_S))
            for name in bases
        ),
        *(
            (name, lambda api, name=name: api.dataset_info(name, expand=["cardData"], timeout=TIMEOUT_S))
            for name in data
        ),
    ]
    found = {}
    for name, question in asked:
        try:
            facts = (hub.ask(question).card_data or {}).get("license")
        except HfHubHTTPError:
            continue
        if facts:
            found[name] = facts if isinstance(facts, str) else ", ".join(facts)
    return found


def _head(hub: Hub, repo: str, public: bool, branch: str) -> _Head:
    """The branch that is pushed to; repository and branch are made where there are none."""
    if not hub.ask(lambda api: api.repo_exists(repo)):
        hub.ask(lambda api: api.create_repo(repo, private=not public, exist_ok=True))
    info = hub.ask(lambda api: api.model_info(repo, timeout=TIMEOUT_S))
    if not info.private and not public:
        raise UsageError.one(
            "H012",
            f"{repo} is public: everybody could read the adapter",
            help="add --public if that is meant, or make it private on its settings page first",
        )
    if branch != MAIN:
        hub.ask(lambda api: api.create_branch(repo, branch=branch, exist_ok=True))
        info = hub.ask(lambda api: api.model_info(repo, revision=branch, timeout=TIMEOUT_S))
    names = frozenset(file.rfilename for file in info.siblings or ())
    return _Head(info.sha, names, bool(info.private), _there(hub, repo, info.sha) if MANIFEST in names else None)


def _there(hub: Hub, repo: str, commit: str) -> dict[str, Any]:
    """The manifest in the repository; whatever cannot be read is the manifest of something else."""
    path = hub.ask(lambda api: api.hf_hub_download(repo, MANIFEST, revision=commit))
    try:
        raw = json.loads(Path(path).read_bytes())
    except ValueError:
        return {}
    return raw if isinstance(raw, dict) else {}


def _refuse_other(head: _Head, parcel: Parcel) -> None:
    """As git refuses to overwrite another history: a repository is for adapters of one base."""
    help = "push to another name, or delete that repository on its settings page first"
    if head.manifest is None:
        strange = sorted(head.names - BLANK)
        if strange:
            shown = ", ".join(strange[:3])
            raise UsageError.one(
                "H005", f"{parcel.repo} holds something else than an adapter of qlmm: {shown}", help=help
            )
        return
    ours, theirs = _parts(parcel.manifest.model_dump()), _parts(head.manifest)
    if ours != theirs:
        bases = " + ".join(sorted(name for name, _ in theirs.values())) or "an unknown one"
        raise UsageError.one("H006", f"{parcel.repo} holds an adapter of another base: {bases}", help=help)


def _parts(manifest: dict[str, Any]) -> dict[str, tuple[str, str]]:
    """Id and configuration of every part of a base, without revisions: a newer one is still the same base."""
    try:
        parts = manifest["base"]["parts"]
        return {role: (one["id"].partition("@")[0], one["config_sha256"]) for role, one in parts.items()}
    except (KeyError, TypeError, AttributeError):
        return {}


def _is_stale(name: str, head: _Head, parcel: Parcel) -> bool:
    """Whether a file of the adapter that was there before has no place in this one."""
    named = (head.manifest or {}).get("files", {})
    return name in named and name not in {item.name for item in parcel.items}


def _compare(hub: Hub, parcel: Parcel, commit: str) -> None:
    """Look at what arrived, by size and hash: a repository's own rules can keep files out without a word."""
    tree = hub.ask(lambda api: list(api.list_repo_tree(parcel.repo, recursive=True, revision=commit)))
    there = {entry.path: entry for entry in tree}
    wrong = [item.name for item in parcel.items if item.name not in there or not _same(item, there[item.name])]
    if wrong:
        help = "look for a .gitignore in it; the commit is there, and nobody should use it"
        raise RunError.one("H013", f"not everything arrived in {parcel.repo}: {', '.join(wrong)}", help=help)


def _same(item: Item, entry: Any) -> bool:
    if entry.lfs is not None:
        content = item.content
        return bool(
            entry.lfs.sha256 == (sha256(content).hexdigest() if isinstance(content, bytes) else file_sha256(content))
        )
    blob = item.content if isinstance(item.content, bytes) else item.content.read_bytes()
    # Git's name of a file's content; no matter of security.
    return bool(entry.blob_id == sha1(b"blob %d\0%s" % (len(blob), blob), usedforsecurity=False).hexdigest())


def pull(name: str, target: Path | None = None, *, tell: Callable[[str], None] = lambda line: None) -> Pulled:
    """Fetch an adapter, verify it, and let it appear in one rename.

    Args:
        name: id of its repository; ``id@revision`` for a branch, a tag or a commit.
        target: the folder to make; by default called as the repository, in the current one.
        tell: is told what is going on.

    Raises:
        UsageError: A033, H004, H009, H020 for a request that cannot be met.
        ModelError: H021 when the repository holds no adapter of qlmm, or a damaged one.
        RunError: H007, H008, H023 for what went wrong on the way.
    """
    id, _, revision = name.partition("@")
    repo = checked_name(id)
    place = target if target is not None else Path(repo.partition("/")[2])
    check_place(place)
    with talking(repo, AGAIN_PULL, tell) as hub:
        manifest, commit = _described(hub, repo, revision or None)
        wanted = [*(escape(one) for one in {*ALWAYS, *manifest.files}), PICTURES]
        cached = Path(hub.ask(lambda api: api.snapshot_download(repo, revision=commit, allow_patterns=wanted)))
        stage = place.parent / f".{place.name}.part"
        try:
            _copy(cached, stage, manifest)
            _verify(stage, manifest, f"{repo}@{commit}")
            publish(stage, place)
        finally:
            shutil.rmtree(stage, ignore_errors=True)
    return Pulled(place, repo, commit, proven=proof_of(manifest).holds)


def _described(hub: Hub, repo: str, revision: str | None) -> tuple[Manifest, str]:
    """The manifest, and the commit that everything else is fetched from."""
    try:
        path = Path(hub.ask(lambda api: api.hf_hub_download(repo, MANIFEST, revision=revision)))
    except RemoteEntryNotFoundError as error:
        raise _no_adapter(hub, repo, revision) from error
    manifest = read_manifest(path.parent)
    strange = [one for one in manifest.files if not allowed(one, manifest)]
    if strange:
        message = f"{repo} names files that no adapter of qlmm has: {', '.join(strange[:3])}"
        raise ModelError.one("H021", message, help="nothing was fetched; ask whoever made it")
    return manifest, path.parent.name


def _no_adapter(hub: Hub, repo: str, revision: str | None) -> ModelError:
    info = hub.ask(lambda api: api.model_info(repo, revision=revision, timeout=TIMEOUT_S))
    names = {file.rfilename for file in info.siblings or ()}
    if "adapter_config.json" in names:
        help = (
            f'load it with PEFT: PeftModel.from_pretrained(base, "{repo}"); qlmm cannot tell its base, data and proof'
        )
        return ModelError.one("H021", f"{repo} is an adapter of PEFT without {MANIFEST}, not made by qlmm", help=help)
    return ModelError.one(
        "H021", f"{repo} holds no adapter: it has no {MANIFEST}", help="check the name and the revision"
    )


def _copy(cached: Path, stage: Path, manifest: Manifest) -> None:
    """Real files beside their place; the cache holds links, and keeps its own copy."""
    shutil.rmtree(stage, ignore_errors=True)
    stage.mkdir(parents=True)
    for path in sorted(cached.rglob("*")):
        name = path.relative_to(cached).as_posix()
        if path.is_file() and allowed(name, manifest):
            (stage / name).parent.mkdir(exist_ok=True)
            shutil.copyfile(path, stage / name)


def _verify(stage: Path, manifest: Manifest, shown: str) -> None:
    try:
        check_files(stage, manifest)
    except ModelError as error:
        help = "nothing was kept; whoever made it has to push it again"
        problems = [Problem("H021", one.message.replace(str(stage), shown), help=help) for one in error.problems]
        raise ModelError(problems) from error
