"""A small GitHub: releases and assets over HTTP on this machine, with faults on request.

It keeps to what the real one does: drafts may be changed, published releases may not; a tag of a
published release is used up for ever, even once the release is deleted; assets carry a digest.
"""

import hashlib
import json
import re
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any
from urllib.parse import parse_qs, urlsplit

from support.serving import QuietHandler, serving

REPOSITORY = "someone/foundry"
TOKEN = "t0ken"
BURNT = "tag_name was used by an immutable release"


class GitHubDouble:
    """What GitHub knows; `cut`, `refuse` and `spoil` name what goes wrong next.

    Attributes:
        releases: By id.
        burnt: Tags that were used up.
        cut: Calls ("METHOD what") whose answer is lost after they took effect.
        refuse: Calls that are answered with a status instead.
        spoil: Assets that arrive with another byte.
        log: Calls in order.
    """

    def __init__(self) -> None:
        self.releases: dict[int, dict[str, Any]] = {}
        self.burnt: set[str] = set()
        self.cut: list[str] = []
        self.refuse: dict[str, int] = {}
        self.spoil: set[str] = set()
        self.log: list[str] = []
        self.url = ""
        self._next = 1

    def published(self) -> dict[str, list[str]]:
        """Asset names by tag of what strangers see."""
        return {
            r["tag_name"]: sorted(a["name"] for a in r["assets"])
            for r in self.releases.values()
            if not r["draft"]
        }

    def answer(self, method: str, url: str, body: bytes, token: str | None) -> tuple[int, Any]:
        """Status and JSON of one call."""
        parts = urlsplit(url)
        path, query = parts.path, parse_qs(parts.query)
        found = re.fullmatch(rf"/repos/{REPOSITORY}/releases(?:/(assets/)?(\d+))?(/assets)?", path)
        if token != f"Bearer {TOKEN}":
            return 401, {"message": "Bad credentials"}
        if found is None:
            return 404, {"message": "Not Found"}
        is_asset, number, assets = found[1], int(found[2] or 0), found[3]
        if is_asset:
            for release in self.releases.values():
                release["assets"] = [a for a in release["assets"] if a["id"] != number]
            return 204, None
        if not number:
            if method == "GET":
                return 200, list(self.releases.values()) if query["page"] == ["1"] else []
            return self._create(json.loads(body))
        release = self.releases.get(number)
        if release is None:
            return 404, {"message": "Not Found"}
        if assets:
            return (
                (200, release["assets"]) if method == "GET" else self._upload(release, query, body)
            )
        if method == "GET":
            return 200, release
        if method == "DELETE":
            if not release["draft"]:
                self.burnt.add(release["tag_name"])
            del self.releases[number]
            return 204, None
        return self._publish(release)

    def _create(self, content: dict[str, Any]) -> tuple[int, Any]:
        release = {
            **content,
            "id": self._number(),
            "assets": [],
        }
        release["upload_url"] = (
            f"{self.url}/repos/{REPOSITORY}/releases/{release['id']}/assets{{?name,label}}"
        )
        self.releases[release["id"]] = release
        return 201, release

    def _upload(self, release: dict[str, Any], query: Any, body: bytes) -> tuple[int, Any]:
        (name,) = query["name"]
        if not release["draft"]:
            return 422, {"message": "Cannot upload assets to an immutable release."}
        if any(asset["name"] == name for asset in release["assets"]):
            return 422, {"message": "Validation Failed", "errors": [{"code": "already_exists"}]}
        if name in self.spoil:
            body += b"?"
        digest = f"sha256:{hashlib.sha256(body).hexdigest()}"
        asset = {"id": self._number(), "name": name, "size": len(body), "digest": digest}
        release["assets"].append(asset)
        return 201, asset

    def _publish(self, release: dict[str, Any]) -> tuple[int, Any]:
        taken = {r["tag_name"] for r in self.releases.values() if not r["draft"]}
        if release["tag_name"] in self.burnt | taken:
            return 422, {"message": "Validation Failed", "errors": [BURNT]}
        release["draft"] = False
        return 200, release

    def _number(self) -> int:
        self._next += 1
        return self._next


@contextmanager
def running() -> Iterator[GitHubDouble]:
    """The double, listening on this machine."""
    double = GitHubDouble()

    class Handler(QuietHandler):
        def _serve(self) -> None:
            body = self.rfile.read(int(self.headers.get("Content-Length") or 0))
            parts = urlsplit(self.path)
            name = parse_qs(parts.query).get("name", [parts.path.rpartition("/")[2]])[0]
            call = f"{self.command} {'release' if name.isdigit() else name}"
            double.log.append(call)
            if call in double.refuse:
                status, value = double.refuse.pop(call), {"message": "asked to refuse"}
            else:
                status, value = double.answer(
                    self.command, self.path, body, self.headers.get("Authorization")
                )
            if call in double.cut:
                double.cut.remove(call)
                self.close_connection = True
                self.connection.close()
                return
            data = b"" if value is None else json.dumps(value).encode()
            self.send_response(status)
            self.send_header("Content-Length", str(len(data)))
            self.end_headers()
            self.wfile.write(data)

        do_GET = do_POST = do_PATCH = do_DELETE = _serve

    with serving(Handler) as double.url:
        yield double
