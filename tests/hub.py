"""A small Hub on this machine that speaks the protocol of the installed client, and fails on command.

It keeps whole commits, serves them by branch and commit, stores large files by hash, and writes down every request.

Usage: ``with Hub().running() as hub: …``, where the client's endpoint is ``hub.address``
"""

from __future__ import annotations

import base64
import hashlib
import json
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any
from urllib.parse import parse_qs, unquote, urlsplit

import yaml

TOKEN, READER, WRONG = "hf_" + "a" * 30, "hf_" + "r" * 30, "hf_" + "w" * 30
LARGE = (".safetensors", ".png")
EMPTY = {".gitattributes": b"*.safetensors filter=lfs\n"}


def git_hash(content: bytes) -> str:
    """Git's name of a file's content."""
    return hashlib.sha1(b"blob %d\0" % len(content) + content).hexdigest()


@dataclass
class Repo:
    """Commits by id, and where the branches stand; the first commit is the one every new repository has."""

    private: bool = False
    commits: dict[str, dict[str, bytes]] = field(default_factory=dict)
    branches: dict[str, str] = field(default_factory=dict)
    messages: list[str] = field(default_factory=list)
    card: dict[str, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        self.add("main", dict(EMPTY), "initial commit")

    def add(self, branch: str, files: dict[str, bytes], message: str) -> str:
        """Put a commit on a branch."""
        oid = hashlib.sha1(f"{len(self.commits)} {branch} {message} {sorted(files)}".encode()).hexdigest()
        self.commits[oid], self.branches[branch] = files, oid
        self.messages.append(message)
        return oid

    def commit(self, revision: str) -> str | None:
        """The commit a revision stands for."""
        return self.branches.get(revision, revision if revision in self.commits else None)

    @property
    def files(self) -> dict[str, bytes]:
        """What main holds."""
        return self.commits[self.branches["main"]]


class Hub:
    """The server: its repositories, its large files, every request so far, and how it misbehaves.

    Attributes:
        dies_after: requests it answers before every connection breaks without a word; None: never.
        busy: answers in turn instead of the real ones, as (part of the path, status, headers).
        ignored: names that a repository's .gitignore keeps out.
        halves: names of files of which it sends one half, once, before the connection breaks.
        sent: bytes of large files that were sent to it.
        continued: bytes at which downloads were continued.
    """

    def __init__(self) -> None:
        self.repos: dict[str, Repo] = {}
        self.large: dict[str, bytes] = {}
        self.requests: list[str] = []
        self.created: list[dict[str, Any]] = []
        self.busy: list[tuple[str, int, dict[str, str]]] = []
        self.dies_after: int | None = None
        self.ignored: set[str] = set()
        self.halves: set[str] = set()
        self.continued: list[int] = []
        self.sent = 0
        self.lock = threading.RLock()
        self._server = ThreadingHTTPServer(("127.0.0.1", 0), type("Bound", (_Handler,), {"hub": self}))
        self._server.daemon_threads = True
        self._server.block_on_close = False

    @property
    def address(self) -> str:
        """The endpoint."""
        return f"http://127.0.0.1:{self._server.server_address[1]}"

    @contextmanager
    def running(self) -> Iterator[Hub]:
        """Serve until the block ends."""
        thread = threading.Thread(target=self._server.serve_forever, args=(0.01,), daemon=True)
        thread.start()
        try:
            yield self
        finally:
            self._server.shutdown()
            self._server.server_close()
            thread.join()

    def asked(self, part: str) -> list[str]:
        """The requests whose method and path hold a text."""
        return [request for request in self.requests if part in request]


class _Refused(Exception):
    def __init__(self, status: int, message: str, code: str = "") -> None:
        super().__init__(message)
        self.status, self.message, self.code = status, message, code


class _Handler(BaseHTTPRequestHandler):
    hub: Hub
    protocol_version = "HTTP/1.1"
    # Head and body in one packet: in two, the second waits 40 ms for the first to be acknowledged.
    wbufsize = 1 << 16

    def log_message(self, format: str, *args: Any) -> None:
        """Say nothing."""

    def _serve(self) -> None:
        body = self._body()
        with self.hub.lock:
            if self.hub.dies_after is not None and len(self.hub.requests) >= self.hub.dies_after:
                self.close_connection = True
                return
            self.hub.requests.append(f"{self.command} {unquote(self.path)}")
            for turn, (part, status, headers) in enumerate(self.hub.busy):
                if part in self.path:
                    del self.hub.busy[turn]
                    self._answer(status, {"error": "busy"}, headers)
                    return
            try:
                self._route(body)
            except _Refused as refused:
                headers = {"X-Error-Message": refused.message} | (
                    {"X-Error-Code": refused.code} if refused.code else {}
                )
                self._answer(refused.status, {"error": refused.message}, headers)

    do_GET = do_HEAD = do_POST = do_PUT = _serve

    def _body(self) -> bytes:
        if "chunked" in self.headers.get("Transfer-Encoding", ""):
            pieces = []
            while size := int(self.rfile.readline(), 16):
                pieces.append(self.rfile.read(size))
                self.rfile.readline()
            self.rfile.readline()
            return b"".join(pieces)
        return self.rfile.read(int(self.headers.get("Content-Length", 0)))

    def _answer(self, status: int, value: Any = None, headers: dict[str, str] | None = None) -> None:
        content = value if isinstance(value, bytes) else json.dumps(value).encode()
        self.send_response(status)
        for name, text in {"Content-Length": str(len(content)), **(headers or {})}.items():
            self.send_header(name, text)
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(content)

    def _route(self, body: bytes) -> None:
        path = [unquote(part) for part in urlsplit(self.path).path.strip("/").split("/")]
        match path:
            case ["api", "whoami-v2"]:
                self._answer(200, {"name": self._user(), "type": "user", "orgs": []})
            case ["api", "repos", "create"]:
                self._create(json.loads(body))
            case ["api", "validate-yaml"]:
                self._validate(json.loads(body)["content"])
            case ["api", "models", user, name, *rest]:
                self._model(f"{user}/{name}", rest, body)
            case ["api", "datasets", *_]:
                raise _Refused(404, "Repository not found", "RepoNotFound")
            case [user, name, "info", "lfs", "objects", "batch"]:
                self._may_write(f"{user}/{name.removesuffix('.git')}")
                self._batch(json.loads(body))
            case ["lfs", oid]:
                assert hashlib.sha256(body).hexdigest() == oid
                self.hub.large[oid] = body
                self.hub.sent += len(body)
                self._answer(200, {})
            case ["verify"]:
                self._answer(200 if json.loads(body)["oid"] in self.hub.large else 404, {})
            case [user, name, "resolve", revision, *inside]:
                self._file(f"{user}/{name}", revision, "/".join(inside))
            case _:
                raise _Refused(404, f"no such page: {self.path}")

    def _user(self) -> str:
        users = {f"Bearer {TOKEN}": "me", f"Bearer {READER}": "reader"}
        given = self.headers.get("Authorization", "")
        if given and given not in users:
            raise _Refused(401, "Invalid credentials in Authorization header")
        if not given:
            raise _Refused(401, "Invalid username or password.")
        return users[given]

    def _repo(self, id: str) -> Repo:
        """A repository that the asker may see."""
        repo = self.hub.repos.get(id)
        asker = self._user() if self.headers.get("Authorization") else None
        if repo is None or (repo.private and asker != id.partition("/")[0]):
            raise _Refused(404 if asker else 401, "Repository not found", "RepoNotFound")
        return repo

    def _may_write(self, id: str) -> Repo:
        if self._user() != id.partition("/")[0]:
            raise _Refused(403, f"You don't have the rights to write to {id}")
        return self._repo(id)

    def _create(self, wanted: dict[str, Any]) -> None:
        user = self._user()
        id = f"{wanted['organization'] or user}/{wanted['name']}"
        if not id.startswith(f"{user}/"):
            raise _Refused(
                403, f"You don't have the rights to create a model under the namespace {wanted['organization']}"
            )
        if id in self.hub.repos:
            raise _Refused(409, "You already created this model repo")
        self.hub.created.append(wanted)
        self.hub.repos[id] = Repo(private=wanted.get("visibility") == "private")
        self._answer(200, {"url": f"{self.hub.address}/{id}", "name": id, "id": id})

    def _validate(self, content: str) -> None:
        data = yaml.safe_load(content.split("---\n")[1])
        wrong = [
            f'"base_model" with value {name} is not valid' for name in data.get("base_model", []) if name[0] in "/."
        ]
        if data.get("license", "mit") not in ("mit", "apache-2.0"):
            wrong.append('"license" must be one of [apache-2.0, mit, ...]')
        self._answer(400 if wrong else 200, {"errors": [{"message": one} for one in wrong], "warnings": []})

    def _model(self, id: str, rest: list[str], body: bytes) -> None:
        match rest:
            case [] | ["revision", _]:
                self._info(id, rest[-1] if rest else "main")
            case ["branch", branch]:
                repo = self._may_write(id)
                if branch in repo.branches:
                    raise _Refused(409, "Reference already exists")
                repo.branches[branch] = json.loads(body)["startingPoint"]
                self._answer(200, {})
            case ["tree", revision]:
                files = self._files(id, revision)
                self._answer(200, [self._entry(name, content) for name, content in files.items()])
            case ["preupload", revision]:
                self._may_write(id)
                files = self._files(id, revision)
                asked = json.loads(body)["files"]
                self._answer(200, {"files": [self._mode(one["path"], files.get(one["path"])) for one in asked]})
            case ["commit", revision]:
                self._commit(id, self._may_write(id), revision, body)
            case _:
                raise _Refused(404, f"no such page: {self.path}")

    def _files(self, id: str, revision: str) -> dict[str, bytes]:
        repo = self._repo(id)
        commit = repo.commit(revision)
        if commit is None:
            raise _Refused(404, "Invalid rev id", "RevisionNotFound")
        return repo.commits[commit]

    def _info(self, id: str, revision: str) -> None:
        files, repo = self._files(id, revision), self._repo(id)
        facts: dict[str, Any] = {"id": id, "_id": "0", "sha": repo.commit(revision), "private": repo.private}
        if "expand" in parse_qs(urlsplit(self.path).query):
            facts["cardData"] = repo.card
        self._answer(200, facts | {"siblings": [{"rfilename": name} for name in files]})

    def _entry(self, name: str, content: bytes) -> dict[str, Any]:
        large = {"oid": hashlib.sha256(content).hexdigest(), "size": len(content), "pointerSize": 134}
        entry = {"type": "file", "path": name, "size": len(content), "oid": git_hash(content)}
        return entry | ({"lfs": large, "xetHash": large["oid"]} if name.endswith(LARGE) else {})

    def _mode(self, name: str, there: bytes | None) -> dict[str, Any]:
        large = name.endswith(LARGE)
        oid = None if there is None else hashlib.sha256(there).hexdigest() if large else git_hash(there)
        mode = "lfs" if large else "regular"
        return {"path": name, "uploadMode": mode, "shouldIgnore": name in self.hub.ignored, "oid": oid}

    def _batch(self, asked: dict[str, Any]) -> None:
        objects = []
        for one in asked["objects"]:
            upload, verify = {"href": f"{self.hub.address}/lfs/{one['oid']}"}, {"href": f"{self.hub.address}/verify"}
            new = {} if one["oid"] in self.hub.large else {"actions": {"upload": upload, "verify": verify}}
            objects.append({"oid": one["oid"], "size": one["size"], **new})
        self._answer(200, {"transfer": "basic", "objects": objects})

    def _commit(self, id: str, repo: Repo, branch: str, body: bytes) -> None:
        lines = [json.loads(line) for line in body.splitlines()]
        files, header = dict(self._files(id, branch)), lines[0]["value"]
        if header.get("parentCommit") not in (None, repo.commit(branch)):
            raise _Refused(412, "A commit has happened since. Please refresh and try again.")
        for line in lines[1:]:
            value = line["value"]
            if line["key"] == "file":
                files[value["path"]] = base64.b64decode(value["content"])
            elif line["key"] == "lfsFile":
                files[value["path"]] = self.hub.large[value["oid"]]
            elif line["key"] == "deletedFile":
                del files[value["path"]]
        oid = repo.add(branch, files, header["summary"])
        self._answer(200, {"success": True, "commitOid": oid, "commitUrl": f"{self.hub.address}/{id}/commit/{oid}"})

    def _file(self, id: str, revision: str, name: str) -> None:
        files, repo = self._files(id, revision), self._repo(id)
        if name not in files:
            raise _Refused(404, "Entry not found", "EntryNotFound")
        content = files[name]
        etag = hashlib.sha256(content).hexdigest() if name.endswith(LARGE) else git_hash(content)
        headers = {"ETag": f'"{etag}"', "X-Repo-Commit": repo.commit(revision) or "", "Accept-Ranges": "bytes"}
        if name.endswith(LARGE):
            # An invitation to Xet, which this Hub does not speak: whoever accepts it gets nowhere.
            headers |= {"X-Xet-Hash": etag, "X-Xet-Refresh-Route": f"{self.hub.address}/xet"}
        start = int(self.headers.get("Range", "bytes=0-").removeprefix("bytes=").partition("-")[0])
        if name in self.hub.halves and self.command == "GET" and not start:
            self.hub.halves.remove(name)
            self._answer(200, content[: len(content) // 2], headers | {"Content-Length": str(len(content))})
            self.close_connection = True
            return
        if start:
            self.hub.continued.append(start)
            headers["Content-Range"] = f"bytes {start}-{len(content) - 1}/{len(content)}"
        self._answer(206 if start else 200, content[start:], headers)
