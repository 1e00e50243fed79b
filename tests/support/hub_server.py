"""The few endpoints of the Hugging Face Hub by which a model is published and fetched, on a real HTTP server.

Written after huggingface_hub's own requests (2.4): repository, preupload, LFS by its basic transfer, commit, resolve.
"""

import base64
import hashlib
import json
import re
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

TOKEN = "hf_of_the_tests"
READ_TOKEN = "hf_that_only_reads"


@dataclass
class Repository:
    private: bool
    files: dict[str, bytes] = field(default_factory=dict)
    commits: int = 0

    @property
    def sha(self) -> str:
        return hashlib.sha1(str(self.commits).encode()).hexdigest()


class Hub(ThreadingHTTPServer):
    """Repositories of one owner, `me`, in memory."""

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), Handler)
        self.repositories: dict[str, Repository] = {}
        self.objects: dict[str, bytes] = {}
        self.broken = self.full = False
        self.url = f"http://127.0.0.1:{self.server_address[1]}"


class Handler(BaseHTTPRequestHandler):
    server: Hub

    def log_message(self, *_: object) -> None:
        """Write no line for every request."""

    def reply(self, status: int, document: object, **headers: str) -> None:
        data = json.dumps(document).encode()
        self.send_response(status)
        for name, value in {"Content-Type": "application/json", "Content-Length": str(len(data)), **headers}.items():
            self.send_header(name.replace("_", "-"), value)
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(data)

    def body(self) -> bytes:
        return self.rfile.read(int(self.headers.get("Content-Length") or 0))

    def answer(self) -> None:
        body, path = self.body(), self.path.partition("?")[0]
        token = (self.headers.get("Authorization") or "").removeprefix("Bearer ")
        if self.server.broken:
            return self.reply(500, {"error": "the database is away"})
        if path.startswith("/lfs/") and self.server.full:
            return self.reply(413, {"error": "no room"})
        if path.startswith("/lfs/"):  # whose address is signed
            self.server.objects[path.removeprefix("/lfs/")] = body
            return self.reply(200, {})
        if token not in (TOKEN, READ_TOKEN):
            return self.reply(401, {"error": "Invalid"}, X_Error_Message="Invalid credentials in Authorization header")
        if self.command == "POST" and path == "/api/validate-yaml":
            return self.reply(200, {"errors": [], "warnings": []})
        if self.command == "POST" and token == READ_TOKEN:
            return self.reply(403, {"error": "Forbidden"})
        if path == "/api/repos/create":
            return self.create(json.loads(body))
        found = re.fullmatch(r"(?:/api/models)?/(me/[\w.-]+?)(?:\.git)?(/.*)?", path)
        repository = self.server.repositories.get(found[1]) if found else None
        if found is None or repository is None:
            return self.reply(404, {"error": "Repository not found"}, X_Error_Code="RepoNotFound")
        return self.about(found[1], repository, found[2] or "", body)

    do_GET = do_POST = do_PUT = do_HEAD = answer  # noqa: N815

    def create(self, asked: dict[str, Any]) -> None:
        if asked["organization"] != "me":
            return self.reply(404, {"error": "no such organization"})
        private = asked.get("private", asked.get("visibility") == "private")
        self.server.repositories.setdefault(f"me/{asked['name']}", Repository(private=bool(private)))
        return self.reply(200, {"url": f"{self.server.url}/me/{asked['name']}"})

    def send(self, repository: Repository, file: str) -> None:
        commit, data = {"X_Repo_Commit": repository.sha}, repository.files.get(file)
        if data is None:
            return self.reply(404, {"error": "Entry not found"}, X_Error_Code="EntryNotFound", **commit)
        self.send_response(200)
        named = commit | {"ETag": f'"{hashlib.sha1(data).hexdigest()}"', "Content_Length": str(len(data))}
        for header, value in named.items():
            self.send_header(header.replace("_", "-"), value)
        self.end_headers()
        if self.command == "GET":
            self.wfile.write(data)

    def about(self, name: str, repository: Repository, what: str, body: bytes) -> None:
        for revision in ("main", repository.sha):
            if what.startswith(f"/resolve/{revision}/"):
                return self.send(repository, what.removeprefix(f"/resolve/{revision}/"))
        if not what:
            known = {"id": name, "private": repository.private, "sha": repository.sha}
            return self.reply(200, known | {"siblings": [], "tags": []})
        if what == "/preupload/main":
            files = json.loads(body)["files"]
            modes = [{"path": f["path"], "uploadMode": _mode(f["path"]), "shouldIgnore": False} for f in files]
            return self.reply(200, {"files": modes})
        if what == "/info/lfs/objects/batch":
            objects = [
                o | {"actions": {"upload": {"href": f"{self.server.url}/lfs/{o['oid']}"}}}
                for o in json.loads(body)["objects"]
            ]
            return self.reply(200, {"transfer": "basic", "objects": objects})
        if what == "/commit/main":
            for line in map(json.loads, body.splitlines()):
                value = line["value"]
                if line["key"] == "file":
                    repository.files[value["path"]] = base64.b64decode(value["content"])
                elif line["key"] == "lfsFile":
                    repository.files[value["path"]] = self.server.objects[value["oid"]]
            repository.commits += 1
            oid = f"{repository.commits:040x}"
            return self.reply(
                200, {"success": True, "commitUrl": f"{self.server.url}/{name}/commit/{oid}", "commitOid": oid}
            )
        return self.reply(404, {"error": f"the tests' hub has no {self.command} {what}"}, X_Error_Code="EntryNotFound")


def _mode(path: str) -> str:
    return "lfs" if path.endswith((".safetensors", ".bin")) else "regular"


@contextmanager
def hub_server() -> Iterator[Hub]:
    """Run a hub in threads of this process."""
    with Hub() as hub:
        thread = threading.Thread(target=hub.serve_forever, daemon=True)
        thread.start()
        try:
            yield hub
        finally:
            hub.shutdown()
            thread.join()
