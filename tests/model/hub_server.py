"""A model hub on this machine: the part of the Hugging Face and ModelScope addresses that downloading needs."""

from __future__ import annotations

import hashlib
import json
import random
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from urllib.parse import parse_qs, unquote, urlsplit

COMMIT = "c" * 40
REPOSITORY = "org/tiny"
SHARD = random.Random(0).randbytes(1 << 20) * 25  # beyond the 10 MB that huggingface_hub writes at a time
FILES = {
    "config.json": b"{}",
    "model.safetensors": SHARD,
    "model.safetensors.index.json": b"{}",
    "tokenizer.model": b"pieces",
    "tokenizer_config.json": b"{}",
    "pytorch_model.bin": b"pickle",
    "pytorch_model.bin.index.json": b"{}",
    "training_args.bin": b"pickle",
    "modeling_chatglm.py": b"print('never')",
    "README.md": b"read me",
    "onnx/model.safetensors": b"elsewhere",
}
WANTED = {
    "config.json",
    "model.safetensors",
    "model.safetensors.index.json",
    "tokenizer.model",
    "tokenizer_config.json",
}


@dataclass
class Hub:
    """Files by name, what was asked for, and how to misbehave.

    `cut` maps a file to the bytes after which the connection breaks, once; `interrupt` is called at that moment.
    """

    files: dict[str, bytes]
    url: str = ""
    cut: dict[str, int] = field(default_factory=dict)
    interrupt: Callable[[], None] = lambda: None
    requests: list[tuple[str, str, str | None]] = field(default_factory=list)
    declared_size: dict[str, int] = field(default_factory=dict)
    tokens: set[tuple[str, str | None]] = field(default_factory=set)

    @property
    def storage_url(self) -> str:
        """Where large files are: to a client another host, as in reality."""
        return self.url.replace("127.0.0.1", "localhost")

    def asked(self, name: str) -> list[str | None]:
        """The Range headers of the downloads of a file, in order."""
        return [rang for method, asked, rang in self.requests if (method, asked) == ("GET", name)]

    def size(self, name: str) -> int:
        """The size that the hub states."""
        return self.declared_size.get(name, len(self.files[name]))


def is_large(name: str) -> bool:
    """Whether the hub keeps a file in its large-file storage, with the SHA-256 as version."""
    return name.endswith((".safetensors", ".bin", ".model"))


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    hub: Hub

    def log_message(self, format: str, *args: object) -> None:
        pass

    def do_HEAD(self) -> None:
        self._answer()

    def do_GET(self) -> None:
        self._answer()

    def _answer(self) -> None:
        parts = urlsplit(self.path)
        path, query = unquote(parts.path), {key: value[0] for key, value in parse_qs(parts.query).items()}
        if path in (f"/api/models/{REPOSITORY}", *(f"/api/models/{REPOSITORY}/revision/{r}" for r in ("main", COMMIT))):
            siblings = [{"rfilename": name} for name in self.hub.files]
            self._json({"id": REPOSITORY, "modelId": REPOSITORY, "sha": COMMIT, "siblings": siblings})
        elif path == f"/api/models/{REPOSITORY}/tree/{COMMIT}":
            self._json([self._entry(name) for name in self.hub.files])
        elif path.startswith(f"/{REPOSITORY}/resolve/{COMMIT}/"):
            self._file(path.rpartition("/")[2])
        elif path.startswith("/storage/"):
            self._file(path.rpartition("/")[2], redirect=False)
        elif path == f"/api/v1/models/{REPOSITORY}/repo/files" and query["Revision"] in ("master", "v1"):
            listed = [self._listed(name) for name in self.hub.files]
            self._json({"Code": 200, "Data": {"Files": [*listed, {"Path": "docs", "Type": "tree", "Size": 0}]}})
        elif path == f"/api/v1/models/{REPOSITORY}/repo":
            self._file(query["FilePath"], redirect=False)
        else:
            self.send_response(404)
            for header in ("X-Error-Code", "RepoNotFound"), ("Content-Length", "2"):
                self.send_header(*header)
            self.end_headers()
            self.wfile.write(b"{}")

    def _entry(self, name: str) -> dict[str, object]:
        entry: dict[str, object] = {"type": "file", "path": name, "size": self.hub.size(name), "oid": self._sha1(name)}
        if is_large(name):
            entry["lfs"] = {"oid": self._sha256(name), "size": self.hub.size(name), "pointerSize": 100}
        return entry

    def _listed(self, name: str) -> dict[str, object]:
        return {"Path": name, "Type": "blob", "Size": self.hub.size(name), "Sha256": self._sha256(name)}

    def _sha256(self, name: str) -> str:
        return hashlib.sha256(self.hub.files[name]).hexdigest()

    def _sha1(self, name: str) -> str:
        return hashlib.sha1(self.hub.files[name], usedforsecurity=False).hexdigest()

    def _json(self, data: object) -> None:
        body = json.dumps(data).encode()
        self.send_response(200)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def _file(self, name: str, redirect: bool = True) -> None:
        if name not in self.hub.files:
            self.send_error(404)
            return
        self.hub.tokens.add((self.headers["Host"].partition(":")[0], self.headers.get("Authorization")))
        redirect = redirect and is_large(name)
        self.send_response(302 if redirect else 206 if "Range" in self.headers else 200)
        self.send_header("X-Repo-Commit", COMMIT)
        self.send_header("ETag", f'"{self._sha256(name) if is_large(name) else self._sha1(name)}"')
        if redirect:
            self.send_header("X-Linked-ETag", f'"{self._sha256(name)}"')
            self.send_header("X-Linked-Size", str(self.hub.size(name)))
            self.send_header("Location", f"{self.hub.storage_url}/storage/{name}")
            self.send_header("Content-Length", "0")
            self.end_headers()
            return
        start = int(self.headers.get("Range", "bytes=0-").removeprefix("bytes=").partition("-")[0])
        body = self.hub.files[name][start:]
        self.send_header("Content-Length", str(len(body)))
        self.send_header("Accept-Ranges", "bytes")
        self.end_headers()
        self.hub.requests.append((self.command, name, self.headers.get("Range")))
        if self.command == "GET":
            self._send(name, body)

    def _send(self, name: str, body: bytes) -> None:
        if name not in self.hub.cut:
            self.wfile.write(body)
            return
        self.wfile.write(body[: self.hub.cut.pop(name)])
        self.wfile.flush()
        self.hub.interrupt()
        self.close_connection = True


@contextmanager
def serve(hub: Hub) -> Iterator[Hub]:
    """Serve `hub` on a free port of 127.0.0.1 and fill in its `url`."""
    server = ThreadingHTTPServer(("127.0.0.1", 0), type("Handler", (_Handler,), {"hub": hub}))
    hub.url = f"http://127.0.0.1:{server.server_port}"
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
    thread.start()
    try:
        yield hub
    finally:
        server.shutdown()
        thread.join()
        server.server_close()
