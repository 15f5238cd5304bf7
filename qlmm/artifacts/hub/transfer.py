"""Adapters to and from the Hub: one commit up, whole or not at all; verified and in one rename down.

Usage: ``pushed = push(pack(folder, "user/name", unproven=False)); pulled = pull("user/name", Path("name"))``
"""

from __future__ import annotations

import shutil
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from functools import partial
from glob import escape
from hashlib import sha1, sha256
from pathlib import Path

from huggingface_hub import (
    CommitOperationAdd,
    CommitOperationDelete,
    HfApi,
    RepoFile,
    get_token,
    try_to_load_from_cache,
)
from huggingface_hub.errors import HfHubHTTPError, HFValidationError, RemoteEntryNotFoundError, RevisionNotFoundError

from qlmm.artifacts.adapter.allowed_files import allowed, check_contents
from qlmm.artifacts.adapter.load import check_files
from qlmm.artifacts.adapter.manifest import Manifest, read_manifest
from qlmm.artifacts.adapter.tensors import check_finite
from qlmm.artifacts.cards.adapter_card import public_ids
from qlmm.artifacts.hub.connection import LOG_IN, TIMEOUT_S, Hub, checked_name, hub_client
from qlmm.artifacts.hub.package import Content, Package
from qlmm.core.errors import ModelError, Problem, RunError, UsageError
from qlmm.core.filenames import ADAPTER_CONFIG, CARD, MANIFEST
from qlmm.core.files import file_sha256
from qlmm.core.staging import check_place, check_room, publish, staged

__all__ = ["MAIN", "Pulled", "Pushed", "pull", "push"]

MAIN = "main"
# What a repository may contain before its first adapter.
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
    """An adapter that was fetched; `files` of it have the hashes of its manifest: all but manifest and card."""

    folder: Path
    repo: str
    commit: str
    files: int
    proven: bool


@dataclass(frozen=True, slots=True)
class _Head:
    """A branch as it is before a push; its manifest, if it can be read; a new one begins where main is."""

    commit: str
    names: frozenset[str]
    private: bool
    manifest: Manifest | None
    new: bool


def push(
    package: Package,
    *,
    public: bool = False,
    branch: str = MAIN,
    message: str | None = None,
    tell: Callable[[str], None] = lambda line: None,
) -> Pushed:
    """Send an adapter in one commit, to a repository and a branch that are made where there are none.

    What goes wrong leaves the Hub as it was, or with an empty repository or branch. `public` lets everybody read it.

    Raises:
        UsageError: H001 to H006, H009, H012 before anything is changed, H016 for a card that the Hub refuses.
        RunError: H007, H008, H013, H014 for what went wrong on the way.
    """
    repo = checked_name(package.repo)
    with hub_client(repo, AGAIN, tell) as hub:
        names = _token_names(hub)
        package = package.licensed(_licences(hub, package.manifest))
        head = _head(hub, repo, branch, public=public, names=names)
        _refuse_other(head, package)
        if head.new:
            hub.ask(lambda api: api.create_branch(repo, branch=branch, revision=head.commit, exist_ok=True))
        if head.private and public:
            tell(f"{repo} stays private: make it public on its settings page")
        commit = hub.ask(
            lambda api: api.create_commit(
                repo,
                _operations(head, package),
                commit_message=message or f"Adapter of qlmm {package.manifest.versions['qlmm']}",
                revision=branch,
                parent_commit=head.commit,
            )
        ).oid
        _compare(hub, package, commit)
        return Pushed(f"{hub.api.endpoint}/{repo}", commit, head.private, changed=commit != head.commit)


def _operations(head: _Head, package: Package) -> list[CommitOperationAdd | CommitOperationDelete]:
    """Every file, in the place of the earlier adapter's; made anew for each request, whose answer they remember."""
    files = package.files
    before = head.names & head.manifest.files.keys() if head.manifest is not None else set()
    added = [CommitOperationAdd(name, content) for name, content in files.items()]
    return [*added, *(CommitOperationDelete(name) for name in sorted(before - files.keys()))]


def _token_names(hub: Hub) -> list[str]:
    """Whose token it is, and of which organisations; asking tells a wrong token apart from a missing right."""
    if get_token() is None:
        raise UsageError.one("H001", "pushing needs a token of the Hub, and there is none", help=LOG_IN)
    me = hub.ask(lambda api: api.whoami())
    return [me["name"], *(one["name"] for one in me.get("orgs", ()))]


def _licences(hub: Hub, manifest: Manifest) -> dict[str, str]:
    """The licences that the Hub states for bases and data sets; what it does not show has none."""
    bases, data = public_ids(manifest)
    found = {}
    for name, ask in [*((name, HfApi.model_info) for name in bases), *((name, HfApi.dataset_info) for name in data)]:
        try:
            info = hub.ask(partial(ask, repo_id=name, expand=["cardData"], timeout=TIMEOUT_S))
        except (HfHubHTTPError, HFValidationError):
            continue
        if licence := (info.card_data or {}).get("license"):
            found[name] = licence if isinstance(licence, str) else ", ".join(licence)
    return found


def _head(hub: Hub, repo: str, branch: str, *, public: bool, names: list[str]) -> _Head:
    """The branch that is pushed to; the repository is made where there is none."""
    if not hub.ask(lambda api: api.repo_exists(repo)):
        hub.ask(lambda api: api.create_repo(repo, private=not public, exist_ok=True))
    info = hub.ask(lambda api: api.model_info(repo, timeout=TIMEOUT_S))
    if not info.private and not public:
        raise _public(repo, names)
    new = False
    if branch != MAIN:
        try:
            info = hub.ask(lambda api: api.model_info(repo, revision=branch, timeout=TIMEOUT_S))
        except RevisionNotFoundError:
            new = True
    files, manifest = frozenset(file.rfilename for file in info.siblings or ()), None
    if MANIFEST in files:
        path = Path(hub.ask(lambda api: api.hf_hub_download(repo, MANIFEST, revision=info.sha)))
        with suppress(ModelError):  # one that cannot be read is that of something else
            manifest = read_manifest(path.parent, local=False)
    return _Head(info.sha, files, bool(info.private), manifest, new)


def _public(repo: str, names: list[str]) -> UsageError:
    """Why nothing goes to a repository that everybody reads: somebody else's would not take it with --public either."""
    owner = repo.partition("/")[0]
    if owner not in names:
        help = f"push to a name of your own, such as {names[0]}/{repo.partition('/')[2]}"
        return UsageError.one("H003", f"{repo} belongs to {owner}, and your token to {', '.join(names)}", help=help)
    help = "add --public if that is meant, or make it private on its settings page first"
    return UsageError.one("H012", f"{repo} is public: everybody could read the adapter", help=help)


def _refuse_other(head: _Head, package: Package) -> None:
    """As git refuses to overwrite another history: a repository is for adapters of one base."""
    help = "push to another name, or delete that repository on its settings page first"
    if MANIFEST not in head.names:
        if strange := ", ".join(sorted(head.names - BLANK)[:3]):
            message = f"{package.repo} has something else than an adapter of qlmm: {strange}"
            raise UsageError.one("H005", message, help=help)
        return
    theirs = head.manifest.base if head.manifest is not None else None
    # A newer revision is still the same base.
    if theirs is None or any(one.field != "revision" for one in theirs.differs(package.manifest.base)):
        bases = " + ".join(sorted(part.name for part in theirs.parts.values())) if theirs else "an unknown one"
        raise UsageError.one("H006", f"{package.repo} has an adapter of another base: {bases}", help=help)


def _compare(hub: Hub, package: Package, commit: str) -> None:
    """Look at what arrived, by hash: a repository's own rules can keep files out without a word."""
    there = _files(hub, package.repo, commit)
    wrong = [name for name, one in package.files.items() if name not in there or not _same(one, there[name])]
    if wrong:
        help = "look for a .gitignore in it; the commit is there, and nobody should use it"
        raise RunError.one("H013", f"not everything arrived in {package.repo}: {', '.join(wrong)}", help=help)


def _files(hub: Hub, repo: str, commit: str) -> dict[str, RepoFile]:
    """What the Hub knows of every file of a commit, by name."""
    tree = hub.ask(lambda api: list(api.list_repo_tree(repo, recursive=True, revision=commit)))
    return {entry.path: entry for entry in tree if isinstance(entry, RepoFile)}


def _same(sent: Content, entry: RepoFile) -> bool:
    """Whether the Hub has this content; a large file is read in pieces."""
    if entry.lfs is not None:
        ours = sha256(sent).hexdigest() if isinstance(sent, bytes) else file_sha256(sent)
        return bool(ours == entry.lfs.sha256)
    content = sent if isinstance(sent, bytes) else sent.read_bytes()
    # Git's name of a file's content; no matter of security.
    return bool(sha1(b"blob %d\0%s" % (len(content), content), usedforsecurity=False).hexdigest() == entry.blob_id)


def pull(name: str, target: Path | None = None, *, tell: Callable[[str], None] = lambda line: None) -> Pulled:
    """Fetch ``id`` or ``id@revision``, verify it, and let it appear in one rename, by default as ``./NAME``.

    Raises:
        UsageError: A033, A034, H004, H009, H020 for a request that cannot be met.
        ModelError: A002, H021 when the repository has no adapter of qlmm, or a damaged one.
        RunError: H007, H008, H023 for what went wrong on the way.
    """
    id, _, revision = name.partition("@")
    repo = checked_name(id)
    shown = target if target is not None else Path(repo.partition("/")[2])
    check_place(shown)
    place = shown.resolve()
    with hub_client(repo, AGAIN_PULL, tell) as hub:
        manifest, commit = _described(hub, repo, revision or None)
        wanted = sorted({MANIFEST, CARD, *manifest.files})
        sizes = {name: entry.size for name, entry in _files(hub, repo, commit).items() if name in wanted}
        fetched = [name for name in sizes if not isinstance(try_to_load_from_cache(repo, name, revision=commit), str)]
        # What is fetched lies in the cache and in its place.
        check_room(place, sum(sizes.values()) + sum(sizes[name] for name in fetched))
        patterns = [escape(one) for one in wanted]
        cached = Path(hub.ask(lambda api: api.snapshot_download(repo, revision=commit, allow_patterns=patterns)))
        with staged(place) as stage:
            _copy(cached, stage, wanted)
            _verify(stage, manifest, f"{repo}@{commit}")
            publish(stage, place)
    return Pulled(shown, repo, commit, files=len(manifest.files), proven=manifest.proven_by.holds)


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
    if ADAPTER_CONFIG in {file.rfilename for file in info.siblings or ()}:
        message = f"{repo} is an adapter of PEFT without {MANIFEST}, not made by qlmm"
        loaded = f'load it with PEFT: PeftModel.from_pretrained(base, "{repo}")'
        help = f"{loaded}; qlmm does not know its base, data and proof"
    else:
        message = f"{repo} is not an adapter: it has no {MANIFEST}"
        help = "check the name and the revision"
    return ModelError.one("H021", message, help=help)


def _copy(cached: Path, stage: Path, wanted: list[str]) -> None:
    """Real files beside their place; the cache has links, and keeps its own copy."""
    for name in wanted:
        if (cached / name).is_file():
            (stage / name).parent.mkdir(exist_ok=True)
            shutil.copyfile(cached / name, stage / name)


def _verify(stage: Path, manifest: Manifest, shown: str) -> None:
    try:
        check_files(stage, manifest, shown)
        check_contents(stage, manifest.files)
        check_finite(stage)
    except ModelError as error:
        help = "nothing was kept; whoever made it has to push it again"
        raise ModelError([Problem("H021", one.message, help=help) for one in error.problems]) from error
