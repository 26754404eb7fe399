"""A stand-in for the Hugging Face hub on loopback: what its client calls to push a model and to load it again.

Repositories are versioned: branches, commits from NDJSON, weights through the LFS protocol (batch, PUT, verify), files
by `resolve`. It refuses what the hub refuses: unknown tokens, others' names, wrong checksums, objects that were not
uploaded, cards whose metadata is not valid, and commits to a branch that has moved on. Xet is left out.
"""

from __future__ import annotations

import base64
import contextlib
import hashlib
import json
import re
import threading
from collections.abc import Iterator
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any
from urllib.parse import unquote, urlsplit

import pytest
import yaml

TOKEN, READ_TOKEN, STALE_TOKEN = "hf_WriteMe1234567", "hf_ReadMe12345678", "hf_Stale123456789"
OWNER = "ada"
LFS = (".safetensors", ".bin")
ID = r"(?P<id>[^/]+/[^/]+)"


def git_oid(content: bytes) -> str:
    return hashlib.sha1(b"blob %d\0" % len(content) + content).hexdigest()


@dataclass
class Repository:
    """A repository of models: the files of each commit, and the newest commit of each branch."""

    private: bool = False
    gated: bool = False
    commits: dict[str, dict[str, bytes]] = field(default_factory=dict)
    branches: dict[str, str] = field(default_factory=dict)
    messages: list[str] = field(default_factory=list)

    def commit(self, branch: str, files: dict[str, bytes], message: str) -> str:
        text = json.dumps([len(self.commits), branch, message, sorted(files)])
        oid = hashlib.sha1(text.encode()).hexdigest()
        self.commits[oid], self.branches[branch] = files, oid
        self.messages.append(message)
        return oid

    def files(self, revision: str = "main") -> dict[str, bytes]:
        return self.commits[self.branches.get(revision, revision)]


class Refused(Exception):
    """An answer with an error."""

    def __init__(self, status: int, message: str, code: str = ""):
        super().__init__(message)
        self.status, self.code = status, code


@dataclass
class Hub:
    """The stand-in's content, and what it was asked.

    Attributes:
        asked: method and path of each request.
        sent: the value of each Authorization header, by method and path.
        failing: status of the answer to requests whose path has a text, such as `{"/commit/": 500}`.
    """

    endpoint: str
    repositories: dict[str, Repository] = field(default_factory=dict)
    objects: dict[str, bytes] = field(default_factory=dict)
    asked: list[tuple[str, str]] = field(default_factory=list)
    sent: dict[tuple[str, str], str] = field(default_factory=dict)
    failing: dict[str, int] = field(default_factory=dict)

    def make(self, name: str, files: dict[str, bytes] | None = None, **how: bool) -> Repository:
        repository = self.repositories[name] = Repository(**how)
        repository.commit("main", {".gitattributes": b"*.safetensors filter=lfs\n", **(files or {})}, "initial commit")
        return repository

    def uploads(self) -> list[str]:
        return [path for method, path in self.asked if method == "PUT"]

    def use(self, monkeypatch: pytest.MonkeyPatch, token: str | None = TOKEN) -> None:
        """Make the client in this process use the stand-in."""
        for name, value in {
            "ENDPOINT": self.endpoint,
            "HUGGINGFACE_CO_URL_TEMPLATE": self.endpoint + "/{repo_id}/resolve/{revision}/{filename}",
            "HF_HUB_OFFLINE": False,
            "HF_HUB_DISABLE_XET": True,
        }.items():
            monkeypatch.setattr(f"huggingface_hub.constants.{name}", value)
        monkeypatch.delenv("HF_TOKEN", raising=False)
        if token is not None:
            monkeypatch.setenv("HF_TOKEN", token)

    # the answers, by method and path

    def create(self, token: str, body: dict[str, Any], **_: str) -> dict[str, Any]:
        name = f"{body['organization']}/{body['name']}"
        self._may_write(token, name)
        address = {"url": f"{self.endpoint}/{name}"}
        if name in self.repositories:
            raise Refused(409, json.dumps({**address, "error": "You already created this model repo"}))
        self.make(name, private=body.get("visibility") == "private")
        return address

    def branch(self, token: str, id: str, revision: str, **_: Any) -> dict[str, Any]:
        repository = self._writable(token, id)
        if revision in repository.branches:
            raise Refused(409, "Reference already exists")
        repository.branches[revision] = repository.branches["main"]
        return {}

    def info(self, token: str, id: str, revision: str = "main", **_: Any) -> dict[str, Any]:
        repository = self._readable(token, id, revision)
        files = [{"rfilename": name} for name in repository.files(revision)]
        sha = repository.branches.get(revision, revision)
        return {"id": id, "modelId": id, "sha": sha, "private": repository.private, "siblings": files, "tags": []}

    def tree(self, token: str, id: str, revision: str, **_: Any) -> list[dict[str, Any]]:
        files = self._readable(token, id, revision).files(revision)
        return [
            {"type": "file", "path": name, "size": len(content), "oid": git_oid(content)}
            | (
                {"lfs": {"oid": hashlib.sha256(content).hexdigest(), "size": len(content), "pointerSize": 130}}
                if is_lfs(name)
                else {}
            )
            for name, content in files.items()
        ]

    def validate(self, token: str, body: dict[str, Any], **_: Any) -> dict[str, Any]:
        metadata = re.match(r"---\n(.*?)\n---", body["content"], re.DOTALL)
        if metadata is None:
            return {"errors": [], "warnings": [{"message": "empty or missing yaml metadata in repo card"}]}
        if errors := problems(yaml.safe_load(metadata[1])):
            raise Refused(400, json.dumps({"errors": [{"message": error} for error in errors]}))
        return {"errors": [], "warnings": []}

    def preupload(self, token: str, id: str, revision: str, body: dict[str, Any], **_: Any) -> dict[str, Any]:
        files = self._writable(token, id).files(revision)
        answer = []
        for asked in body["files"]:
            name = asked["path"]
            own = files.get(name)
            oid = None if own is None else hashlib.sha256(own).hexdigest() if is_lfs(name) else git_oid(own)
            mode = "lfs" if is_lfs(name) else "regular"
            answer.append({"path": name, "uploadMode": mode, "shouldIgnore": False, "oid": oid})
        return {"files": answer}

    def batch(self, token: str, id: str, body: dict[str, Any], **_: Any) -> dict[str, Any]:
        self._writable(token, id)
        return {"transfer": "basic", "objects": [self._batched(entry) for entry in body["objects"]]}

    def _batched(self, entry: dict[str, Any]) -> dict[str, Any]:
        if entry["oid"] in self.objects:
            return entry
        upload, verify = f"{self.endpoint}/storage/{entry['oid']}?signature=abc", f"{self.endpoint}/api/verify"
        return {**entry, "actions": {"upload": {"href": upload}, "verify": {"href": verify}}}

    def store(self, oid: str, content: bytes, **_: Any) -> dict[str, Any]:
        if hashlib.sha256(content).hexdigest() != oid:
            raise Refused(400, "the checksum differs")
        self.objects[oid] = content
        return {}

    def verify(self, body: dict[str, Any], **_: Any) -> dict[str, Any]:
        if len(self.objects.get(body["oid"], b"")) != body["size"]:
            raise Refused(422, "the object is not there")
        return {}

    def commit(self, token: str, id: str, revision: str, content: bytes, **_: Any) -> dict[str, Any]:
        repository = self._writable(token, id)
        header, *operations = [json.loads(line) for line in content.splitlines()]
        assert header["key"] == "header"
        if header["value"].get("parentCommit", repository.branches[revision]) != repository.branches[revision]:
            raise Refused(412, "the branch has a newer commit")
        files = dict(repository.files(revision))
        for operation in operations:
            value = operation["value"]
            match operation["key"]:
                case "file":
                    files[value["path"]] = base64.b64decode(value["content"])
                case "lfsFile" if value["oid"] in self.objects:
                    files[value["path"]] = self.objects[value["oid"]]
                case "deletedFile" if value["path"] in files:
                    del files[value["path"]]
                case _:
                    raise Refused(400, f"cannot apply {operation}")
        oid = repository.commit(revision, files, header["value"]["summary"])
        return {"commitUrl": f"{self.endpoint}/{id}/commit/{oid}", "commitOid": oid, "pullRequestUrl": None}

    def file(self, token: str, id: str, revision: str, name: str) -> tuple[bytes, dict[str, str]]:
        repository = self._readable(token, id, revision)
        files = repository.files(revision)
        if name not in files:
            raise Refused(404, "Entry not found", "EntryNotFound")
        content = files[name]
        etag = hashlib.sha256(content).hexdigest() if is_lfs(name) else git_oid(content)
        return content, {"ETag": f'"{etag}"', "X-Repo-Commit": repository.branches.get(revision, revision)}

    def _may_write(self, token: str, name: str) -> None:
        if token not in (TOKEN, READ_TOKEN):
            raise Refused(401, f"Invalid credentials in Authorization header: {token}")
        if token == READ_TOKEN or not name.startswith(f"{OWNER}/"):
            raise Refused(403, f"You don't have the rights to write to {name} with {token}")

    def _readable(self, token: str, name: str, revision: str) -> Repository:
        repository = self.repositories.get(name)
        if repository is None or (repository.private and token != TOKEN):
            raise Refused(404, "Repository not found", "RepoNotFound")
        if repository.gated:
            raise Refused(403, "Access to this model is restricted", "GatedRepo")
        if revision not in {*repository.branches, *repository.commits}:
            raise Refused(404, "Invalid rev id", "RevisionNotFound")
        return repository

    def _writable(self, token: str, name: str) -> Repository:
        self._may_write(token, name)
        return self._readable(token, name, "main")


def is_lfs(name: str) -> bool:
    return name.endswith(LFS)


def problems(metadata: Any) -> list[str]:
    """Return what the hub refuses in a card's metadata."""
    if not isinstance(metadata, dict):
        return ["metadata should be an object"]
    found = []
    for key, kind in (("library_name", str), ("pipeline_tag", str), ("license", str), ("tags", list)):
        if not isinstance(metadata.get(key, kind()), kind):
            found.append(f'"{key}" must be a {kind.__name__}')
    base = metadata.get("base_model", [])
    if not all(re.fullmatch(r"[\w.-]+(/[\w.-]+)?", name) for name in ([base] if isinstance(base, str) else base)):
        found.append('"base_model" must be ids of the hub')
    for model in metadata.get("model-index", []):
        for result in model["results"]:
            for part, keys in (("task", ("type",)), ("dataset", ("type", "name"))):
                found += [f'"{part}.{key}" is required' for key in keys if not result.get(part, {}).get(key)]
            for metric in result.get("metrics", []):
                found += [f'"metrics.{key}" is required' for key in ("type", "value") if key not in metric]
    return found


ROUTES: list[tuple[str, str, str]] = [
    ("POST", r"/api/repos/create", "create"),
    ("POST", r"/api/validate-yaml", "validate"),
    ("POST", r"/api/verify", "verify"),
    ("POST", rf"/api/models/{ID}/branch/(?P<revision>[^/]+)", "branch"),
    ("POST", rf"/api/models/{ID}/preupload/(?P<revision>[^/]+)", "preupload"),
    ("POST", rf"/api/models/{ID}/commit/(?P<revision>[^/]+)", "commit"),
    ("POST", rf"/{ID}\.git/info/lfs/objects/batch", "batch"),
    ("PUT", r"/storage/(?P<oid>\w+)", "store"),
    ("GET", rf"/api/models/{ID}", "info"),
    ("GET", rf"/api/models/{ID}/revision/(?P<revision>[^/]+)", "info"),
    ("GET", rf"/api/models/{ID}/tree/(?P<revision>[^/]+)", "tree"),
]
FILE = re.compile(rf"/{ID}/resolve/(?P<revision>[^/]+)/(?P<name>.+)")


class Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    server: Server

    def _answer(self) -> None:
        hub, path = self.server.hub, urlsplit(self.path).path
        content = self._body()
        authorization = self.headers.get("Authorization", "")
        token = authorization.removeprefix("Bearer ")
        hub.asked.append((self.command, path))
        hub.sent[self.command, path] = authorization
        try:
            for text, status in hub.failing.items():
                if text in path:
                    raise Refused(status, f"no, {token}")
            if self.command in ("GET", "HEAD") and (asked := FILE.fullmatch(path)):
                parts = {name: unquote(part) for name, part in asked.groupdict().items()}
                self._send(200, *hub.file(token, **parts))
                return
            for method, pattern, name in ROUTES:
                if method == self.command and (asked := re.fullmatch(pattern, path)):
                    parts = {key: unquote(part) for key, part in asked.groupdict().items()}
                    is_json = "json" in self.headers.get("Content-Type", "") and name != "commit"
                    body = json.loads(content) if is_json else {}
                    answer = getattr(hub, name)(token=token, body=body, content=content, **parts)
                    self._send(200, json.dumps(answer).encode(), {"Content-Type": "application/json"})
                    return
            raise Refused(404, f"the stand-in does not know {self.command} {path}", "EntryNotFound")
        except Refused as refused:
            said = str(refused)
            body = said if said.startswith("{") else json.dumps({"error": said})
            headers = {"Content-Type": "application/json", "X-Error-Message": " ".join(said.split())}
            if refused.code:
                headers["X-Error-Code"] = refused.code
            self._send(refused.status, body.encode(), headers)

    do_GET = do_HEAD = do_POST = do_PUT = _answer  # noqa: N815

    def _body(self) -> bytes:
        if self.headers.get("Transfer-Encoding") != "chunked":
            return self.rfile.read(int(self.headers.get("Content-Length", 0)))
        content = b""
        while size := int(self.rfile.readline(), 16):
            content += self.rfile.read(size)
            self.rfile.readline()
        self.rfile.readline()
        return content

    def _send(self, status: int, content: bytes, headers: dict[str, str]) -> None:
        self.send_response(status)
        for name, value in {**headers, "Content-Length": str(len(content))}.items():
            self.send_header(name, value)
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(content)

    def log_message(self, *_: Any) -> None:
        pass


class Server(ThreadingHTTPServer):
    hub: Hub


@contextlib.contextmanager
def serve() -> Iterator[Hub]:
    """Yield an empty stand-in."""
    with Server(("127.0.0.1", 0), Handler) as server:
        server.hub = Hub(f"http://127.0.0.1:{server.server_port}")
        thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01}, daemon=True)
        thread.start()
        yield server.hub
        server.shutdown()
