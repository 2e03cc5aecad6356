"""A stand-in for the Hugging Face Hub on the loopback, which the real huggingface_hub client talks to.

    with HubServer() as hub:
        subprocess.run([...], env=hub.environment(home))

Repositories live in memory. Large files travel through LFS or, given a folder, through Xet, whose client library keeps
its chunks there. `hub.fail` makes requests fail, `hub.log` tells what was asked and answered.
"""

import base64
import hashlib
import json
import os
import re
import struct
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import NamedTuple
from urllib.parse import parse_qs, unquote, urlsplit

import yaml

LARGE_FILES = (".safetensors", ".bin", ".pt", ".png", ".parquet")
LARGE_SIZE = 10 * 2**20
PREFIXES = {"models": "", "datasets": "datasets/", "spaces": "spaces/"}
REPOSITORY = r"/api/(?P<kind>models|datasets|spaces)/(?P<name>[^/]+/[^/]+)"
REVISION = r"(?P<revision>[^/]+)"


class File(NamedTuple):
    """A file of a commit; of a large one, only the checksum, under which it is stored once."""

    size: int
    oid: str
    content: bytes | None = None
    sha256: str | None = None

    @classmethod
    def small(cls, content: bytes) -> "File":
        return cls(len(content), git_hash(content), content)

    @classmethod
    def large(cls, sha256: str, size: int) -> "File":
        pointer = f"version https://git-lfs.github.com/spec/v1\noid sha256:{sha256}\nsize {size}\n"
        return cls(size, git_hash(pointer.encode()), sha256=sha256)


def git_hash(content: bytes) -> str:
    return hashlib.sha1(b"blob %d\0" % len(content) + content).hexdigest()


class Commit(NamedTuple):
    oid: str
    files: dict[str, File]
    title: str
    description: str
    parent: "Commit | None"

    def history(self) -> "Iterator[Commit]":
        commit: Commit | None = self
        while commit is not None:
            yield commit
            commit = commit.parent


class Repository:
    """Commits, and the branches, tags and pull requests that name some of them."""

    def __init__(self, kind: str, name: str, private: bool):
        self.kind, self.name, self.private = kind, name, private
        self.commits: dict[str, Commit] = {}
        self.branches = {"main": self.commit({}, "initial commit", "", None)}
        self.tags: dict[str, Commit] = {}
        self.pull_requests: dict[str, Commit] = {}

    def commit(
        self, files: dict[str, File], title: str, description: str = "", parent: Commit | None = None
    ) -> Commit:
        oid = hashlib.sha1(f"{self.kind} {self.name} {len(self.commits)} {title}".encode()).hexdigest()
        self.commits[oid] = Commit(oid, files, title, description, parent)
        return self.commits[oid]

    def find(self, revision: str) -> Commit:
        for commits in (self.branches, self.tags, self.pull_requests, self.commits):
            if revision in commits:
                return commits[revision]
        raise HubError(404, "RevisionNotFound", f"Invalid rev id: {revision}")


class HubError(Exception):
    """An answer other than success, with the code that the client tells errors apart by."""

    def __init__(self, status: int, code: str | None = None, message: str = "", **headers: str):
        super().__init__(message)
        named = {"X-Error-Code": code, "X-Error-Message": message, **headers}
        self.answer = Answer({"error": message}, status, {key: value for key, value in named.items() if value})


@dataclass
class Answer:
    body: bytes | dict | list = b""
    status: int = 200
    headers: dict[str, str] = field(default_factory=dict)


class Request(NamedTuple):
    method: str
    path: str
    query: dict[str, list[str]]
    headers: dict[str, str]
    body: bytes
    user: str | None

    def json(self) -> dict:
        return json.loads(self.body or b"{}")


class Exchange(NamedTuple):
    """A line of the log."""

    method: str
    path: str
    status: int


@dataclass
class Fault:
    method: str
    path: re.Pattern
    status: int
    times: int


ROUTES: list[tuple[str, re.Pattern, Callable, bool]] = []


def route(method: str, pattern: str, write: bool = False) -> Callable:
    """Answer requests of that method (GET is HEAD too) to that path; to write takes the owner's token."""

    def keep(function: Callable) -> Callable:
        ROUTES.append((method, re.compile(pattern), function, write))
        return function

    return keep


class HubServer:
    """The Hub, on a free port from `with` on.

    Args:
        xet_folder: Where Xet keeps its chunks; without it, clients have to have Xet turned off.
    """

    def __init__(self, xet_folder: Path | None = None):
        self.xet_folder = xet_folder
        self.tokens = {"hf_owner": "owner", "hf_visitor": "visitor"}
        self.repositories: dict[tuple[str, str], Repository] = {}
        self.large_files: dict[str, bytes] = {}
        self.log: list[Exchange] = []
        self._faults: list[Fault] = []
        self._lock = threading.RLock()

    def __enter__(self) -> "HubServer":
        self._server = ThreadingHTTPServer(("127.0.0.1", 0), type("Handler", (HubHandler,), {"hub": self}))
        self.url = f"http://127.0.0.1:{self._server.server_port}"
        # Large files are on another host, to which the client may not send its token.
        self.storage_url = f"http://localhost:{self._server.server_port}"
        self._thread = threading.Thread(target=self._server.serve_forever, kwargs={"poll_interval": 0.05}, daemon=True)
        self._thread.start()
        return self

    def __exit__(self, *error) -> None:
        self._server.shutdown()
        self._server.server_close()
        self._thread.join()

    def environment(self, home: Path, token: str | None = "hf_owner", **variables: str) -> dict[str, str]:
        """Variables for a process that is to take this for the Hub, with its caches below `home`."""
        inherited = {key: value for key, value in os.environ.items() if not key.startswith(("HF_", "TRANSFORMERS_"))}
        own = {
            "HF_ENDPOINT": self.url,
            "HF_HOME": str(home),
            "HF_HUB_DISABLE_XET": "0" if self.xet_folder else "1",
            "HF_HUB_DISABLE_TELEMETRY": "1",
            "HF_HUB_DISABLE_PROGRESS_BARS": "1",
            "NO_PROXY": "127.0.0.1",
            "no_proxy": "127.0.0.1",
        }
        return inherited | own | ({"HF_TOKEN": token} if token else {}) | variables

    def fail(self, method: str, path: str, status: int, times: int = 1) -> None:
        """Answer the next `times` requests of that method, to paths that the expression finds, with an error."""
        self._faults.append(Fault(method, re.compile(path), status, times))

    def requests(self, method: str, path: str) -> list[Exchange]:
        """What the log has of that method, to paths that the expression finds."""
        return [exchange for exchange in self.log if exchange.method == method and re.search(path, exchange.path)]

    def files(self, name: str, revision: str = "main", kind: str = "models") -> dict[str, bytes]:
        """What is in a repository, but for what Xet has."""
        files = self.repositories[kind, name].find(revision).files
        contents = {path: self.large_files.get(file.sha256, file.content) for path, file in files.items()}
        return {path: content for path, content in contents.items() if content is not None}

    def answer(self, request: Request) -> Answer:
        """Find who answers a request, with the repository that it is about."""
        with self._lock:
            for fault in self._faults:
                if fault.times and fault.method == request.method and fault.path.search(request.path):
                    fault.times -= 1
                    return Answer({"error": "as the test wants it"}, fault.status)
            method = "GET" if request.method == "HEAD" else request.method
            for verb, pattern, function, write in ROUTES:
                found = pattern.fullmatch(request.path) if verb == method else None
                if found:
                    arguments = {key: unquote(value) for key, value in found.groupdict(default="").items()}
                    if "name" in arguments:
                        kind, name = arguments.pop("kind").strip("/") or "models", arguments.pop("name")
                        arguments["repository"] = self._open(request, kind, name, write)
                    return function(self, request, **arguments)
        raise HubError(404, message=f"The stand-in has no {request.method} {request.path}")

    def _open(self, request: Request, kind: str, name: str, write: bool) -> Repository:
        """A repository, if the one who asks may see it, or write to it."""
        repository = self.repositories.get((kind, name))
        owner = request.user == name.split("/")[0]
        if repository is None or (repository.private and not owner):
            raise HubError(404 if request.user else 401, "RepoNotFound", "Repository not found")
        if write and not owner:
            raise HubError(403, message="You don't have the rights to write to this repository")
        return repository

    # -----------------------------------------------------------------------------------------------------------------
    # Users and repositories
    # -----------------------------------------------------------------------------------------------------------------

    @route("GET", "/api/whoami-v2")
    def whoami(self, request: Request) -> Answer:
        if request.user is None:
            raise HubError(401, message="Invalid username or password.")
        access = {"type": "access_token", "accessToken": {"displayName": "test", "role": "write"}}
        return Answer({"type": "user", "name": request.user, "fullname": request.user, "orgs": [], "auth": access})

    @route("POST", "/api/repos/create")
    def create(self, request: Request) -> Answer:
        wanted = request.json()
        kind = f"{wanted.get('type') or 'model'}s"
        name = f"{wanted.get('organization') or request.user}/{wanted['name']}"
        if request.user is None:
            raise HubError(401, message="Invalid username or password.")
        if not name.startswith(f"{request.user}/"):
            raise HubError(403, message=f"You don't have the rights to create {name}")
        url = f"{self.url}/{PREFIXES[kind]}{name}"
        if (kind, name) in self.repositories:
            return Answer({"error": "You already created this model repo", "url": url}, 409)
        private = wanted.get("visibility") == "private" or bool(wanted.get("private"))
        self.repositories[kind, name] = Repository(kind, name, private)
        return Answer({"url": url, "name": name, "private": private})

    @route("DELETE", "/api/repos/delete")
    def delete(self, request: Request) -> Answer:
        wanted = request.json()
        kind = f"{wanted.get('type') or 'model'}s"
        name = f"{wanted.get('organization') or request.user}/{wanted['name']}"
        self._open(request, kind, name, write=True)
        del self.repositories[kind, name]
        return Answer({})

    @route("PUT", f"{REPOSITORY}/settings", write=True)
    def settings(self, request: Request, repository: Repository) -> Answer:
        wanted = request.json()
        repository.private = wanted.get("private", wanted.get("visibility") == "private")
        return Answer({"private": repository.private})

    @route("GET", f"{REPOSITORY}/auth-check")
    @route("GET", f"{REPOSITORY}/auth-check/write", write=True)
    def auth_check(self, request: Request, repository: Repository) -> Answer:
        return Answer({})

    @route("POST", "/api/validate-yaml")
    def validate_yaml(self, request: Request) -> Answer:
        found = re.match(r"---\n(.*?)\n---", request.json()["content"], re.DOTALL)
        if not found:
            return Answer({"errors": [], "warnings": [{"message": "empty or missing yaml metadata in repo card"}]})
        try:
            yaml.safe_load(found[1])
        except yaml.YAMLError as error:
            return Answer({"errors": [{"message": str(error)}], "warnings": []}, 400)
        return Answer({"errors": [], "warnings": []})

    # -----------------------------------------------------------------------------------------------------------------
    # Reading
    # -----------------------------------------------------------------------------------------------------------------

    @route("GET", REPOSITORY)
    @route("GET", f"{REPOSITORY}/revision/{REVISION}")
    def info(self, request: Request, repository: Repository, revision: str = "main") -> Answer:
        commit = repository.find(revision)
        siblings = [{"rfilename": path} for path in commit.files]
        owner = repository.name.split("/")[0]
        about = {"id": repository.name, "author": owner, "private": repository.private, "tags": [], "downloads": 0}
        return Answer({**about, "sha": commit.oid, "siblings": siblings, "gated": False, "disabled": False})

    @route("GET", f"{REPOSITORY}/tree/{REVISION}(/(?P<folder>.+))?")
    def tree(self, request: Request, repository: Repository, revision: str, folder: str) -> Answer:
        commit = repository.find(revision)
        prefix = f"{folder}/" if folder else ""
        inside = {path: file for path, file in commit.files.items() if path.startswith(prefix)}
        if folder and not inside:
            raise HubError(404, "EntryNotFound", f"{folder} does not exist on {revision}")
        recursive = request.query.get("recursive", ["false"])[0].lower() in ("true", "1")
        folders = {prefix + path.removeprefix(prefix).split("/")[0] for path in inside if "/" in path[len(prefix) :]}
        if not recursive:
            inside = {path: file for path, file in inside.items() if "/" not in path.removeprefix(prefix)}
        entries = [{"type": "directory", "path": path, "size": 0, "oid": git_hash(path.encode())} for path in folders]
        return Answer(entries + [self._entry(path, file) for path, file in inside.items()])

    @route("POST", f"{REPOSITORY}/paths-info/{REVISION}")
    def paths_info(self, request: Request, repository: Repository, revision: str) -> Answer:
        form = request.headers.get("content-type", "").startswith("application/x-www-form-urlencoded")
        wanted = parse_qs(request.body.decode()) if form else request.json()
        files = repository.find(revision).files
        return Answer([self._entry(path, files[path]) for path in wanted["paths"] if path in files])

    def _entry(self, path: str, file: File) -> dict:
        entry = {"type": "file", "path": path, "size": file.size, "oid": file.oid}
        if file.sha256:
            entry["lfs"] = {"oid": file.sha256, "size": file.size, "pointerSize": 134}
            if xet_hash := self._xet_hash(file):
                entry["xetHash"] = xet_hash
        return entry

    @route("GET", f"{REPOSITORY}/refs")
    def refs(self, request: Request, repository: Repository) -> Answer:
        def named(commits: dict[str, Commit], prefix: str) -> list[dict]:
            return [{"name": key, "ref": prefix + key, "targetCommit": value.oid} for key, value in commits.items()]

        branches, tags = named(repository.branches, "refs/heads/"), named(repository.tags, "refs/tags/")
        pull_requests = named(repository.pull_requests, "")
        return Answer({"branches": branches, "tags": tags, "converts": [], "pullRequests": pull_requests})

    @route("GET", f"{REPOSITORY}/commits/{REVISION}")
    def commits(self, request: Request, repository: Repository, revision: str) -> Answer:
        author = {"user": repository.name.split("/")[0]}
        lines = [
            {"id": one.oid, "title": one.title, "message": one.description, "authors": [author]}
            for one in repository.find(revision).history()
        ]
        return Answer([line | {"date": "2021-07-16T00:00:00.000Z"} for line in lines])

    @route("GET", f"/(?P<kind>datasets/|spaces/|)(?P<name>[^/]+/[^/]+)/resolve/{REVISION}/(?P<path>.+)")
    def resolve(self, request: Request, repository: Repository, revision: str, path: str) -> Answer:
        commit = repository.find(revision)
        if path not in commit.files:
            raise HubError(404, "EntryNotFound", "Entry not found", **{"X-Repo-Commit": commit.oid})
        file = commit.files[path]
        headers = {"X-Repo-Commit": commit.oid, "ETag": f'"{file.oid}"'}
        if file.content is not None:
            return self._content(request, file.content, headers)
        headers |= {"X-Linked-Size": str(file.size), "X-Linked-Etag": f'"{file.sha256}"'}
        if xet_hash := self._xet_hash(file):
            token = f"{self.url}/api/{repository.kind}/{repository.name}/xet-read-token/{commit.oid}"
            headers |= {"X-Xet-Hash": xet_hash, "Link": f'<{token}>; rel="xet-auth"'}
        return Answer(b"", 302, headers | {"Location": f"{self.storage_url}/large-files/{file.sha256}"})

    @route("GET", "/large-files/(?P<sha256>[0-9a-f]{64})")
    def large_file(self, request: Request, sha256: str) -> Answer:
        self._keep_token_secret(request)
        if sha256 not in self.large_files:
            raise HubError(404, message="No large file has that checksum; Xet has its own")
        return self._content(request, self.large_files[sha256], {"ETag": f'"{sha256}"'})

    @staticmethod
    def _keep_token_secret(request: Request) -> None:
        """The addresses of large files are signed; a token that comes too is one that strangers get to see."""
        if request.user:
            raise HubError(400, message="Only one auth mechanism allowed")

    def _content(self, request: Request, content: bytes, headers: dict[str, str]) -> Answer:
        """All of a file, or the range that is asked for."""
        headers = {**headers, "Accept-Ranges": "bytes", "Content-Type": "application/octet-stream"}
        found = re.fullmatch(r"bytes=(\d+)-(\d*)", request.headers.get("range", ""))
        if not found:
            return Answer(content, 200, headers)
        start, end = int(found[1]), min(int(found[2] or len(content) - 1), len(content) - 1)
        if start > end:
            return Answer(b"", 416, {**headers, "Content-Range": f"bytes */{len(content)}"})
        return Answer(
            content[start : end + 1], 206, {**headers, "Content-Range": f"bytes {start}-{end}/{len(content)}"}
        )

    # -----------------------------------------------------------------------------------------------------------------
    # Writing
    # -----------------------------------------------------------------------------------------------------------------

    @route("POST", f"{REPOSITORY}/preupload/{REVISION}", write=True)
    def preupload(self, request: Request, repository: Repository, revision: str) -> Answer:
        present = repository.find(revision).files
        answers = []
        for wanted in request.json()["files"]:
            large = wanted["path"].endswith(LARGE_FILES) or wanted["size"] > LARGE_SIZE
            answer = {"path": wanted["path"], "uploadMode": "lfs" if large else "regular", "shouldIgnore": False}
            if file := present.get(wanted["path"]):
                answer["oid"] = file.sha256 or file.oid
            answers.append(answer)
        return Answer({"files": answers})

    @route("POST", "/(?P<kind>datasets/|spaces/|)(?P<name>[^/]+/[^/]+).git/info/lfs/objects/batch", write=True)
    def lfs_batch(self, request: Request, repository: Repository) -> Answer:
        objects = []
        for wanted in request.json()["objects"]:
            answer = {"oid": wanted["oid"], "size": wanted["size"], "authenticated": True}
            if wanted["oid"] not in self.large_files:
                path = f"/large-files/{wanted['oid']}"
                upload, verify = {"href": self.storage_url + path}, {"href": f"{self.url}{path}/verify"}
                answer["actions"] = {"upload": upload, "verify": verify}
            objects.append(answer)
        return Answer({"transfer": "basic", "objects": objects})

    @route("PUT", "/large-files/(?P<sha256>[0-9a-f]{64})")
    def lfs_put(self, request: Request, sha256: str) -> Answer:
        self._keep_token_secret(request)
        if hashlib.sha256(request.body).hexdigest() != sha256:
            raise HubError(400, message="The file does not have the checksum that it was announced with")
        self.large_files[sha256] = request.body
        return Answer(b"", 200, {"ETag": f'"{sha256}"'})

    @route("POST", "/large-files/(?P<sha256>[0-9a-f]{64})/verify")
    def lfs_verify(self, request: Request, sha256: str) -> Answer:
        if len(self.large_files.get(sha256, b"")) != request.json()["size"]:
            raise HubError(404, message="No file of that size has arrived")
        return Answer({})

    @route("POST", f"{REPOSITORY}/commit/{REVISION}", write=True)
    def commit(self, request: Request, repository: Repository, revision: str) -> Answer:
        lines = [json.loads(line) for line in request.body.splitlines() if line.strip()]
        (header,) = [line["value"] for line in lines if line["key"] == "header"]
        parent = repository.find(revision)
        if header.get("parentCommit") not in (None, parent.oid):
            raise HubError(412, message="A commit has happened since. Please refresh and try again.")
        files = dict(parent.files)
        for line in lines:
            self._apply(line["key"], line["value"], files)
        commit = repository.commit(files, header["summary"], header.get("description", ""), parent)
        answer = {"success": True, "commitOid": commit.oid}
        if request.query.get("create_pr") == ["1"]:
            number = len(repository.pull_requests) + 1
            repository.pull_requests[f"refs/pr/{number}"] = commit
            page = f"{self.url}/{PREFIXES[repository.kind]}{repository.name}"
            answer["pullRequestUrl"] = f"{page}/discussions/{number}"
        elif revision in repository.pull_requests:
            repository.pull_requests[revision] = commit
        else:
            repository.branches[revision] = commit
        return Answer({**answer, "commitUrl": f"{self.url}/{repository.name}/commit/{commit.oid}"})

    def _apply(self, key: str, value: dict, files: dict[str, File]) -> None:
        """Do to the files what a line of a commit says."""
        if key == "file":
            files[value["path"]] = File.small(base64.b64decode(value["content"]))
        elif key == "lfsFile":
            file = File.large(value["oid"], value["size"])
            if file.sha256 not in self.large_files and not self._xet_hash(file):
                raise HubError(400, message=f"Your push referenced an object that was not uploaded: {file.sha256}")
            files[value["path"]] = file
        elif key == "deletedFile":
            if files.pop(value["path"], None) is None:
                raise HubError(404, "EntryNotFound", f"{value['path']} does not exist")
        elif key == "deletedFolder":
            for path in [path for path in files if path.startswith(value["path"].rstrip("/") + "/")]:
                del files[path]

    @route("POST", f"{REPOSITORY}/(?P<what>branch|tag)/{REVISION}", write=True)
    def create_reference(self, request: Request, repository: Repository, what: str, revision: str) -> Answer:
        wanted = request.json()
        named, name, target = repository.branches, revision, wanted.get("startingPoint") or "main"
        if what == "tag":
            named, name, target = repository.tags, wanted["tag"], revision
        if name in named:
            raise HubError(409, message=f"Reference {name} already exists")
        named[name] = repository.find(target)
        return Answer({})

    @route("DELETE", f"{REPOSITORY}/(?P<what>branch|tag)/{REVISION}", write=True)
    def delete_reference(self, request: Request, repository: Repository, what: str, revision: str) -> Answer:
        named = repository.tags if what == "tag" else repository.branches
        if revision == "main" and what == "branch":
            raise HubError(403, message="main cannot be deleted")
        if named.pop(revision, None) is None:
            raise HubError(404, "RevisionNotFound", f"Invalid rev id: {revision}")
        return Answer({})

    # -----------------------------------------------------------------------------------------------------------------
    # Xet
    # -----------------------------------------------------------------------------------------------------------------

    @route("GET", f"{REPOSITORY}/xet-(?P<what>read|write)-token/{REVISION}")
    def xet_token(self, request: Request, repository: Repository, what: str, revision: str) -> Answer:
        if what == "write":
            self._open(request, repository.kind, repository.name, write=True)
        if self.xet_folder is None:
            raise HubError(404, message="This Hub has no Xet: set HF_HUB_DISABLE_XET=1")
        store, expiry = f"local://{self.xet_folder}", int(time.time()) + 3600
        headers = {"X-Xet-Cas-Url": store, "X-Xet-Access-Token": "test", "X-Xet-Token-Expiration": str(expiry)}
        return Answer({"casUrl": store, "accessToken": "test", "exp": expiry}, headers=headers)

    def _xet_hash(self, file: File) -> str | None:
        """What Xet calls a large file, from the shards that its client has written."""
        shards = self.xet_folder.glob("xet/xorbs/shards/*.mdb") if self.xet_folder else []
        for shard in shards:
            if found := shard_hashes(shard.read_bytes()).get(file.sha256):
                return found
        return None


def shard_hashes(shard: bytes) -> dict[str, str]:
    """sha256, and Xet's own hash, of the files that a shard of Xet describes.

    Behind a header of 48 bytes follow the files: 48 bytes with hash, flags and number of segments, then 48 a segment,
    48 more a segment where the last bit of the flags is set, and 48 with the sha256 where the last but one is.
    """

    def hexadecimal(start: int) -> str:
        return "".join(f"{part:016x}" for part in struct.unpack_from("<4Q", shard, start))

    hashes, start = {}, 48
    while shard[start : start + 32] != b"\xff" * 32:
        flags, segments = struct.unpack_from("<II", shard, start + 32)
        own, start = hexadecimal(start), start + 48 * (1 + segments * (2 if flags >> 31 else 1))
        if flags >> 30 & 1:
            hashes[hexadecimal(start)] = own
            start += 48
    return hashes


class HubHandler(BaseHTTPRequestHandler):
    """Reads a request off the line, and writes down what the server answers."""

    hub: HubServer
    protocol_version = "HTTP/1.1"
    wbufsize, disable_nagle_algorithm = 2**16, True  # an answer leaves at once and in one piece

    def _respond(self) -> None:
        address = urlsplit(self.path)
        headers = {key.lower(): value for key, value in self.headers.items()}
        body = self._body(headers)
        token = headers.get("authorization", "").removeprefix("Bearer ")
        try:
            if token and token not in self.hub.tokens:
                raise HubError(401, message="Invalid credentials in Authorization header")
            user, query = self.hub.tokens.get(token), parse_qs(address.query)
            answer = self.hub.answer(Request(self.command, address.path, query, headers, body, user))
        except HubError as error:
            answer = error.answer
        self.hub.log.append(Exchange(self.command, unquote(self.path), answer.status))
        content = answer.body if isinstance(answer.body, bytes) else json.dumps(answer.body).encode()
        self.send_response(answer.status)
        for name, value in {"Content-Type": "application/json", **answer.headers}.items():
            self.send_header(name, value)
        self.send_header("Content-Length", str(len(content)))
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(content)

    do_GET = do_HEAD = do_POST = do_PUT = do_DELETE = _respond

    def _body(self, headers: dict[str, str]) -> bytes:
        if headers.get("transfer-encoding", "").lower() != "chunked":
            return self.rfile.read(int(headers.get("content-length", 0)))
        chunks = []
        while size := int(self.rfile.readline(), 16):
            chunks.append(self.rfile.read(size))
            self.rfile.readline()
        self.rfile.readline()
        return b"".join(chunks)

    def log_message(self, format: str, *arguments) -> None:
        """Nothing: the log is the server's."""
