"""A small Hugging Face hub: what one commit with large files takes, with cuts on request.

It keeps to the hub's protocol: which files are large, LFS batches by digest (what is there is not
asked for again), one atomic commit, tags. Nothing is visible before the commit.
"""

import base64
import hashlib
import json
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from support.serving import QuietHandler, serving

REPOSITORY = "someone/foundry"
TOKEN = "hf_t0ken"
Answer = tuple[int, Any, dict[str, str]]


class HubDouble:
    """What the hub knows; `cut` names calls ("PUT lfs") whose connection is closed unanswered.

    Attributes:
        files: By path, what the main branch holds.
        blobs: Large files by SHA-256, visible or not.
        tags: Names.
        commits: Messages.
        log: Calls in order.
    """

    def __init__(self) -> None:
        self.files: dict[str, bytes] = {}
        self.blobs: dict[str, bytes] = {}
        self.tags: list[str] = []
        self.commits: list[str] = []
        self.cut: list[str] = []
        self.log: list[str] = []
        self.url = ""

    def answer(self, method: str, path: str, body: bytes, token: str | None) -> Answer:
        """Status, content and headers of one call."""
        api = f"/api/models/{REPOSITORY}"
        if path.startswith("/lfs/"):
            self.blobs[path.removeprefix("/lfs/")] = body
            return 200, {}, {}
        if REPOSITORY not in path and not path.startswith(("/api/validate-yaml", "/verify")):
            return 404, {"error": "Repository not found"}, {"X-Error-Code": "RepoNotFound"}
        if method not in {"GET", "HEAD"} and token != f"Bearer {TOKEN}" and path != "/verify":
            return 401, {"error": "Invalid username or password."}, {}
        match method, path.removeprefix(api):
            case "POST", "/preupload/main":
                asked = json.loads(body)["files"]
                return 200, {"files": [self._mode(f["path"]) for f in asked]}, {}
            case "POST", "/commit/main":
                return self._commit([json.loads(line) for line in body.splitlines()])
            case "POST", rest if rest.startswith("/tag/"):
                name = json.loads(body)["tag"]
                if name in self.tags:
                    return 409, {"error": "Tag exists"}, {}
                self.tags.append(name)
                return 200, {}, {}
            case "POST", rest if rest.endswith("/info/lfs/objects/batch"):
                return self._batch(json.loads(body)["objects"])
            case (("GET" | "HEAD"), rest) if "/resolve/main/" in rest:
                return self._file(rest.partition("/resolve/main/")[2])
        return 200, {}, {}

    def _mode(self, path: str) -> dict[str, Any]:
        mode = "lfs" if path.endswith(".safetensors") else "regular"
        return {"path": path, "uploadMode": mode, "shouldIgnore": False}

    def _batch(self, objects: list[dict[str, Any]]) -> Answer:
        rows = []
        for wanted in objects:
            row = {"oid": wanted["oid"], "size": wanted["size"], "authenticated": True}
            if wanted["oid"] not in self.blobs:
                upload = {"href": f"{self.url}/lfs/{wanted['oid']}", "header": {}}
                verify = {"href": f"{self.url}/verify", "header": {}}
                row["actions"] = {"upload": upload, "verify": verify}
            rows.append(row)
        kind = {"Content-Type": "application/vnd.git-lfs+json"}
        return 200, {"transfer": "basic", "objects": rows}, kind

    def _commit(self, lines: list[dict[str, Any]]) -> Answer:
        fresh: dict[str, bytes] = {}
        for line in lines:
            value = line["value"]
            if line["key"] == "header":
                self.commits.append(value["summary"])
            elif line["key"] == "file":
                fresh[value["path"]] = base64.b64decode(value["content"])
            elif line["key"] == "lfsFile":
                fresh[value["path"]] = self.blobs[value["oid"]]
        self.files |= fresh
        oid = hashlib.sha1(repr(sorted(self.files)).encode()).hexdigest()
        url = f"{self.url}/{REPOSITORY}/commit/{oid}"
        return 200, {"commitUrl": url, "commitOid": oid, "success": True, "hookOutput": ""}, {}

    def _file(self, path: str) -> Answer:
        if path not in self.files:
            return 404, {"error": "Entry not found"}, {"X-Error-Code": "EntryNotFound"}
        data = self.files[path]
        digest = hashlib.sha256(data).hexdigest()
        return 200, data, {"ETag": f'"{digest}"', "X-Repo-Commit": "a" * 40}


@contextmanager
def running() -> Iterator[HubDouble]:
    """The double, listening on this machine."""
    double = HubDouble()

    class Handler(QuietHandler):
        def _serve(self) -> None:
            body = self.rfile.read(int(self.headers.get("Content-Length") or 0))
            path = self.path.partition("?")[0]
            what = "lfs" if path.startswith("/lfs/") else path.rsplit("/", 2)[-2]
            call = f"{self.command} {what}"
            double.log.append(call)
            if call in double.cut:
                double.cut.remove(call)
                self.close_connection = True
                self.connection.close()
                return
            status, value, headers = double.answer(
                self.command, path, body, self.headers.get("Authorization")
            )
            data = value if isinstance(value, bytes) else json.dumps(value).encode()
            self.send_response(status)
            for name, text in headers.items():
                self.send_header(name, text)
            self.send_header("Content-Length", str(len(data)))
            self.end_headers()
            if self.command != "HEAD":
                self.wfile.write(data)

        do_GET = do_POST = do_PUT = do_HEAD = _serve

    with serving(Handler) as double.url:
        yield double
