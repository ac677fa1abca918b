"""A hub on this computer: the endpoints that an upload uses, over real HTTP.

Weights go the way of Git LFS, the other files inside the commit, as on the hub.
"""

import base64
import hashlib
import json
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

TOKEN = "hf_" + "a" * 30
READ_ONLY = "hf_" + "b" * 30


class Hub(ThreadingHTTPServer):
    """Repositories by name: their kind, files, and whether they are private."""

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), _Handler)
        self.repositories: dict[str, dict[str, bytes]] = {}
        self.kinds: dict[str, str] = {}
        self.private: dict[str, bool] = {}
        self.messages: list[str] = []
        self.objects: dict[str, bytes] = {}
        self.broken = False

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.server_address[1]}"


class _Handler(BaseHTTPRequestHandler):
    server: Hub

    def log_message(self, format: str, *args: Any) -> None:
        pass

    def answer(self, content: Any, status: int = 200) -> None:
        body = json.dumps(content).encode()
        self.send_response(status)
        if status >= 400:
            self.send_header("X-Error-Message", content["error"])
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def body(self) -> bytes:
        if self.headers.get("Transfer-Encoding") == "chunked":
            parts = []
            while size := int(self.rfile.readline(), 16):
                parts.append(self.rfile.read(size))
                self.rfile.readline()
            self.rfile.readline()
            return b"".join(parts)
        return self.rfile.read(int(self.headers.get("Content-Length", 0)))

    def refused(self, writes: bool = True) -> bool:
        """Answers a request that is not allowed; returns whether it did."""
        token = self.headers.get("Authorization", "").removeprefix("Bearer ")
        if self.server.broken:
            self.answer({"error": "Internal Error"}, 500)
        elif token not in (TOKEN, READ_ONLY):
            self.answer({"error": "Invalid username or password."}, 401)
        elif writes and token == READ_ONLY:
            self.answer({"error": "You don't have the rights to create a model"}, 403)
        else:
            return False
        return True

    def do_GET(self) -> None:
        if self.refused(writes=False):
            return
        name = "/".join(self.path.split("?")[0].split("/")[3:5])
        if name not in self.server.repositories:
            self.send_response(404)
            self.send_header("X-Error-Code", "RepoNotFound")
            self.send_header("Content-Length", "0")
            self.end_headers()
            return
        files = self.server.repositories[name]
        if "/tree/" in self.path:
            self.answer([{"type": "file", "path": path, "oid": "0", "size": 1} for path in files])
            return
        listed = [{"rfilename": path} for path in files]
        self.answer({"id": name, "sha": "0" * 40, "private": True, "siblings": listed, "tags": []})

    def do_PUT(self) -> None:
        content = self.body()
        self.server.objects[hashlib.sha256(content).hexdigest()] = content
        self.answer({})

    def do_POST(self) -> None:
        content = self.body()
        if self.path == "/api/validate-yaml":
            self.answer({"errors": [], "warnings": []})
        elif not self.refused():
            if self.path == "/api/repos/create":
                self.create(json.loads(content))
            elif "/preupload/" in self.path:
                files = json.loads(content)["files"]
                modes = {True: "lfs", False: "regular"}
                self.answer(
                    {
                        "files": [
                            {
                                "path": file["path"],
                                "uploadMode": modes[file["path"].endswith(".safetensors")],
                                "shouldIgnore": False,
                            }
                            for file in files
                        ]
                    }
                )
            elif self.path.endswith("/objects/batch"):
                self.batch(json.loads(content)["objects"])
            elif "/commit/" in self.path:
                self.commit([json.loads(line) for line in content.splitlines()])
            else:
                self.answer({"error": f"no such endpoint: {self.path}"}, 404)

    def create(self, asked: dict[str, Any]) -> None:
        name = f"{asked['organization']}/{asked['name']}"
        if name in self.server.repositories:
            where = f"{self.server.url}/{name}"
            self.answer({"error": "You already created this model repo", "url": where}, 409)
            return
        self.server.kinds[name] = asked.get("type") or "model"
        self.server.repositories[name] = {".gitattributes": b"*.safetensors filter=lfs"}
        self.server.private[name] = asked.get("visibility") == "private" or bool(
            asked.get("private")
        )
        self.answer({"url": f"{self.server.url}/{name}"})

    def batch(self, objects: list[dict[str, Any]]) -> None:
        found = [
            {
                "oid": entry["oid"],
                "size": entry["size"],
                "actions": {"upload": {"href": f"{self.server.url}/lfs/{entry['oid']}"}},
            }
            for entry in objects
        ]
        self.answer({"transfer": "basic", "objects": found})

    def commit(self, lines: list[dict[str, Any]]) -> None:
        name = "/".join(self.path.split("/")[3:5])
        files = self.server.repositories[name]
        for line in lines:
            value = line["value"]
            if line["key"] == "header":
                self.server.messages.append(value["summary"])
            elif line["key"] == "file":
                files[value["path"]] = base64.b64decode(value["content"])
            elif line["key"] == "lfsFile":
                files[value["path"]] = self.server.objects[value["oid"]]
            elif line["key"] == "deletedFile":
                del files[value["path"]]
        kind = "datasets/" if self.path.startswith("/api/datasets/") else ""
        where = f"{self.server.url}/{kind}{name}/commit/{'1' * 40}"
        self.answer({"success": True, "commitOid": "1" * 40, "commitUrl": where})


@contextmanager
def running() -> Iterator[Hub]:
    """Yields a hub that answers on loopback."""
    with Hub() as hub:
        thread = threading.Thread(target=hub.serve_forever, daemon=True)
        thread.start()
        try:
            yield hub
        finally:
            hub.shutdown()
            thread.join()
