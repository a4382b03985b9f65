"""A stand-in for the Hugging Face hub: as much of its HTTP as pushing a dataset takes."""

import base64
import hashlib
import json
import re
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

LARGE = (".parquet", ".gz", ".png")  # what a dataset repository keeps as LFS objects


class Hub:
    """Repositories by name: their files, tags and whether they are private."""

    def __init__(self, token: str) -> None:
        self.token = token
        self.files: dict[str, dict[str, bytes]] = {}
        self.tags: dict[str, dict[str, str]] = {}
        self.private: dict[str, bool] = {}
        self.objects: dict[str, bytes] = {}  # LFS
        self.commits: list[str] = []
        self.uploads = 0
        self.url = ""


@contextmanager
def serving(hub: Hub) -> Iterator[Hub]:
    class Handler(_Handler):
        own = hub

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    hub.url = f"http://127.0.0.1:{server.server_port}"
    thread = threading.Thread(target=server.serve_forever)
    thread.start()
    try:
        yield hub
    finally:
        server.shutdown()
        thread.join()
        server.server_close()


class _Handler(BaseHTTPRequestHandler):
    own: Hub
    protocol_version = "HTTP/1.1"

    def do_POST(self) -> None:
        body = self._body()
        if not self._allowed():
            return
        path, hub = self.path.partition("?")[0], self.own
        if path == "/api/repos/create":
            self._create(json.loads(body))
        elif path == "/api/validate-yaml":
            assert json.loads(body)["content"].startswith("---\n")
            self._answer({"errors": [], "warnings": []})
        elif found := re.fullmatch(r"/api/datasets/(.+)/preupload/main", path):
            files = json.loads(body)["files"]
            self._answer({"files": [self._mode(found[1], file["path"]) for file in files]})
        elif re.fullmatch(r"/datasets/.+\.git/info/lfs/objects/batch", path):
            self._answer({"objects": [self._upload(o) for o in json.loads(body)["objects"]]})
        elif found := re.fullmatch(r"/api/datasets/(.+)/commit/main", path):
            self._commit(found[1], [json.loads(line) for line in body.splitlines()])
        elif found := re.fullmatch(r"/api/datasets/(.+)/tag/(.+)", path):
            tags = hub.tags.setdefault(found[1], {})
            known = tags.setdefault(json.loads(body)["tag"], found[2]) != found[2]
            self._answer({}, 409 if known else 200)
        else:
            self._answer({"error": f"no {path}"}, 404)

    def do_PUT(self) -> None:  # at an address that needs no token, as on the hub
        body, oid = self._body(), self.path.rpartition("/")[2]
        assert hashlib.sha256(body).hexdigest() == oid
        self.own.objects[oid] = body
        self.own.uploads += 1
        self._answer({})

    def do_GET(self) -> None:
        if not self._allowed():
            return
        found = re.fullmatch(r"/api/datasets/(.+)/tree/main", self.path.partition("?")[0])
        if not found:
            self._answer({"error": f"no {self.path}"}, 404)
            return
        files = self.own.files[found[1]]
        self._answer(
            [
                {"type": "file", "path": path, "size": len(data), "oid": _oid(data)}
                for path, data in sorted(files.items())
            ]
        )

    def _create(self, asked: dict[str, Any]) -> None:
        hub, repo = self.own, f"{asked['organization']}/{asked['name']}"
        assert asked["type"] == "dataset"
        known = repo in hub.files
        if not known:
            hub.files[repo] = {".gitattributes": b"*.parquet filter=lfs\n"}
            hub.private[repo] = asked.get("visibility") == "private" or asked.get("private", False)
        self._answer({"url": f"{hub.url}/datasets/{repo}", "id": repo}, 409 if known else 200)

    def _mode(self, repo: str, path: str) -> dict[str, Any]:
        there = self.own.files[repo].get(path)
        return {
            "path": path,
            "uploadMode": "lfs" if path.endswith(LARGE) else "regular",
            "shouldIgnore": False,
            "oid": None if there is None or path.endswith(LARGE) else _oid(there),
        }

    def _upload(self, wanted: dict[str, Any]) -> dict[str, Any]:
        known = wanted["oid"] in self.own.objects
        there = f"{self.own.url}/lfs/{wanted['oid']}"
        return wanted if known else wanted | {"actions": {"upload": {"href": there}}}

    def _commit(self, repo: str, lines: list[dict[str, Any]]) -> None:
        hub, files = self.own, self.own.files[repo]
        for line in lines:
            value = line["value"]
            if line["key"] == "file":
                files[value["path"]] = base64.b64decode(value["content"])
            elif line["key"] == "lfsFile":
                files[value["path"]] = hub.objects[value["oid"]]
            elif line["key"] == "deletedFile":
                del files[value["path"]]
        hub.commits.append(lines[0]["value"]["summary"])
        oid = hashlib.sha1(str(hub.commits).encode(), usedforsecurity=False).hexdigest()
        self._answer({"commitOid": oid, "commitUrl": f"{hub.url}/datasets/{repo}/commit/{oid}"})

    def _allowed(self) -> bool:
        if self.headers["Authorization"] == f"Bearer {self.own.token}":
            return True
        self._answer({"error": "Invalid credentials in Authorization header"}, 401)
        return False

    def _body(self) -> bytes:
        if self.headers.get("Transfer-Encoding") == "chunked":
            body = b""
            while size := int(self.rfile.readline(), 16):
                body += self.rfile.read(size)
                self.rfile.readline()
            self.rfile.readline()
            return body
        return self.rfile.read(int(self.headers.get("Content-Length", 0)))

    def _answer(self, said: object, status: int = 200) -> None:
        data = json.dumps(said).encode()
        self.send_response(status)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(data)))
        self.end_headers()
        self.wfile.write(data)

    def log_message(self, format: str, *args: object) -> None:
        pass


def _oid(data: bytes) -> str:
    blob = b"blob %d\0" % len(data) + data
    return hashlib.sha1(blob, usedforsecurity=False).hexdigest()
