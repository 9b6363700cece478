"""A stand-in of the Hugging Face Hub: as much of its HTTP interface as writing and reading small files takes."""

import base64
import hashlib
import json
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from threading import Thread
from typing import Any
from urllib.parse import urlsplit

import huggingface_hub.constants
import pytest

__all__ = ["Hub", "hub_server"]


class Hub(ThreadingHTTPServer):
    """The repositories of a hub, by name, each with files by name.

    Attributes:
        repos: What there is.
        asked: Methods and paths of the requests, in their order.
        tokens: Who those were by that wrote something.

    """

    daemon_threads = True

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), _Handler)
        self.repos: dict[str, dict[str, bytes]] = {}
        self.asked: list[str] = []
        self.tokens: set[str | None] = set()

    @property
    def endpoint(self) -> str:
        return f"http://127.0.0.1:{self.server_address[1]}"


class _Handler(BaseHTTPRequestHandler):
    server: Hub

    def log_message(self, *_: object) -> None:
        """Say nothing."""

    def _answer(self, content: object, status: int = 200, **headers: str) -> None:
        body = content if isinstance(content, bytes) else json.dumps(content).encode()
        self.send_response(status)
        for name, value in {"Content-Length": str(len(body)), **headers}.items():
            self.send_header(name.replace("_", "-"), value)
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(body)

    def _parts(self) -> list[str]:
        path = urlsplit(self.path).path
        self.server.asked.append(f"{self.command} {path}")
        return path.strip("/").split("/")

    def do_POST(self) -> None:
        parts = self._parts()
        self.server.tokens.add(self.headers["Authorization"])
        content = self.rfile.read(int(self.headers["Content-Length"]))
        if parts[:2] == ["api", "validate-yaml"]:
            self._answer({"errors": [], "warnings": []})
        elif parts[:3] == ["api", "repos", "create"]:
            self._create(json.loads(content))
        elif parts[4] == "preupload":
            plan = {"uploadMode": "regular", "shouldIgnore": False}
            self._answer({"files": [{"path": each["path"], **plan} for each in json.loads(content)["files"]]})
        else:
            self._commit("/".join(parts[2:4]), [json.loads(line) for line in content.splitlines()])

    def _create(self, wanted: dict[str, Any]) -> None:
        name = f"{wanted.get('organization') or 'me'}/{wanted['name']}"
        if name.startswith("closed/"):
            self._answer({"error": "You don't have the rights"}, 403)
            return
        known = name in self.server.repos
        self.server.repos.setdefault(name, {})
        self._answer({"url": f"{self.server.endpoint}/{name}", "id": name}, 409 if known else 200)

    def _commit(self, name: str, lines: list[dict[str, Any]]) -> None:
        for line in lines:
            if line["key"] == "file":
                self.server.repos[name][line["value"]["path"]] = base64.b64decode(line["value"]["content"])
        oid = self._oid(name)
        url = f"{self.server.endpoint}/{name}/commit/{oid}"
        self._answer({"success": True, "commitOid": oid, "commitUrl": url})

    def _oid(self, name: str) -> str:
        return hashlib.sha1(repr(sorted(self.server.repos[name].items())).encode()).hexdigest()  # noqa: S324  # as git

    def do_HEAD(self) -> None:
        self.do_GET()

    def do_GET(self) -> None:
        parts = self._parts()
        is_api = parts[0] == "api"
        name = "/".join(parts[2:4] if is_api else parts[:2])
        files = self.server.repos.get(name)
        if files is None:
            self._answer({}, 401, X_Error_Code="RepoNotFound")
        elif is_api and parts[4:5] == ["tree"]:
            self._answer([{"type": "file", "path": each, "size": 1, "oid": "0"} for each in files])
        elif is_api:
            self._answer({"id": name, "sha": self._oid(name), "siblings": [{"rfilename": each} for each in files]})
        elif parts[3] not in ("main", self._oid(name)):
            self._answer({}, 404, X_Error_Code="RevisionNotFound")
        elif parts[4] not in files:
            self._answer({}, 404, X_Error_Code="EntryNotFound", X_Repo_Commit=self._oid(name))
        else:
            content = files[parts[4]]
            self._answer(content, ETag=f'"{hashlib.sha1(content).hexdigest()}"', X_Repo_Commit=self._oid(name))  # noqa: S324


@contextmanager
def hub_server(patch: pytest.MonkeyPatch) -> Iterator[Hub]:
    """Serve a hub without repositories, and let huggingface_hub take it for the hub, and go there."""
    with Hub() as hub:
        Thread(target=hub.serve_forever, kwargs={"poll_interval": 0.02}, daemon=True).start()
        patch.setattr(huggingface_hub.constants, "ENDPOINT", hub.endpoint)
        template = hub.endpoint + "/{repo_id}/resolve/{revision}/{filename}"
        patch.setattr(huggingface_hub.constants, "HUGGINGFACE_CO_URL_TEMPLATE", template)
        patch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", False)
        try:
            yield hub
        finally:
            hub.shutdown()
