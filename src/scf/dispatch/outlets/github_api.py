"""Releases on GitHub, drafted, uploaded, compared and published once. Standard library only.

A published release of GitHub's is immutable and its tag is used up for ever, so publishing is the
last step. A draft that an interrupted upload left is gone on with: what arrived whole stays. A tag
that a deleted release has used up is followed by `week-YYYY-MM-DD.2`, `.3` and so on.

Used by the foundry itself (`github.py`) and by the workflow, which loads this file from the
checkout without installing anything (scripts/release/publish_github.py).
"""

import hashlib
import json
import urllib.error
import urllib.parse
import urllib.request
from pathlib import Path
from typing import Any

API = "https://api.github.com"
TRIES = 3
TIMEOUT_S = 300
TAGS_MAX = 9
PUBLISHED, DIFFERS, NO_ANSWER = 3, 5, 8


class Stop(Exception):
    """Ends the program with a message and an exit code."""

    def __init__(self, code: int, message: str) -> None:
        super().__init__(message)
        self.code = code


class Refused(Exception):
    """GitHub answered, and the answer is no."""

    def __init__(self, status: int, body: str) -> None:
        super().__init__(f"GitHub answered {status}: {body[:400]}")
        self.status, self.body = status, body

    @property
    def is_burnt_tag(self) -> bool:
        """Whether the tag belonged to an immutable release once."""
        return self.status == 422 and "immutable release" in self.body


class GitHub:
    """The few calls on releases that publishing takes."""

    def __init__(self, api: str, repository: str, token: str) -> None:
        self._releases = f"{api}/repos/{repository}/releases"
        self._token = token

    def releases(self) -> list[dict[str, Any]]:
        """All releases, drafts among them."""
        found: list[dict[str, Any]] = []
        for page in range(1, 100):
            part = self._call("GET", f"{self._releases}?per_page=100&page={page}")
            found += part
            if len(part) < 100:
                break
        return found

    def draft(self, tag: str, *, name: str, body: str, target: str) -> dict[str, Any]:
        """Make a draft."""
        content = {"tag_name": tag, "name": name, "body": body, "target_commitish": target}
        made: dict[str, Any] = self._call("POST", self._releases, {**content, "draft": True})
        return made

    def assets(self, release: dict[str, Any]) -> list[dict[str, Any]]:
        """What was uploaded to a release."""
        url = f"{self._releases}/{release['id']}/assets?per_page=100"
        found: list[dict[str, Any]] = self._call("GET", url)
        return found

    def upload(self, release: dict[str, Any], path: Path) -> None:
        """Upload one file; a half-uploaded one of that name is replaced."""
        base = release["upload_url"].partition("{")[0]
        url = f"{base}?{urllib.parse.urlencode({'name': path.name})}"
        for attempt in range(TRIES):
            try:
                self._call("POST", url, path)
                return
            except (OSError, Refused) as error:
                lost = isinstance(error, OSError) or error.status == 422 or error.status >= 500
                if not lost or attempt == TRIES - 1:
                    raise
            for asset in self.assets(release):
                if asset["name"] == path.name:
                    self.delete_asset(asset)

    def publish(self, release: dict[str, Any]) -> dict[str, Any]:
        """The last step. If the answer is lost, look whether it happened."""
        url = f"{self._releases}/{release['id']}"
        for _ in range(TRIES):
            try:
                done: dict[str, Any] = self._call("PATCH", url, {"draft": False})
                return done
            except OSError:
                seen: dict[str, Any] = self._call("GET", url)
                if not seen["draft"]:
                    return seen
        raise Stop(
            NO_ANSWER, f"GitHub does not answer; the draft {release['tag_name']} was left there"
        )

    def delete_asset(self, asset: dict[str, Any]) -> None:
        """Take one uploaded file of a draft away."""
        self._call("DELETE", f"{self._releases}/assets/{asset['id']}")

    def delete(self, release: dict[str, Any]) -> None:
        """Throw a draft away."""
        self._call("DELETE", f"{self._releases}/{release['id']}")

    def _call(self, method: str, url: str, content: Any = None) -> Any:
        """One request. Raises Refused for an answer that is a no, OSError for none."""
        headers = {
            "Accept": "application/vnd.github+json",
            "Authorization": f"Bearer {self._token}",
            "X-GitHub-Api-Version": "2022-11-28",
            "User-Agent": "scf-weekly-release",
        }
        if isinstance(content, Path):
            headers["Content-Type"] = "application/octet-stream"
            headers["Content-Length"] = str(content.stat().st_size)
            with content.open("rb") as file:
                return self._send(method, url, file, headers)
        data = None if content is None else json.dumps(content).encode()
        return self._send(method, url, data, headers)

    def _send(self, method: str, url: str, data: Any, headers: dict[str, str]) -> Any:
        # The address is GitHub's, from the runner's environment and GitHub's own answers.
        request = urllib.request.Request(url, data, headers, method=method)  # noqa: S310
        try:
            with urllib.request.urlopen(request, timeout=TIMEOUT_S) as answer:  # noqa: S310
                body = answer.read()
        except urllib.error.HTTPError as error:
            with error:
                raise Refused(error.code, error.read().decode(errors="replace")) from None
        return json.loads(body) if body else None


def publish(github: GitHub, out: Path, target: str) -> str:
    """Publish what lies in `out`; returns the tag.

    Args:
        github: The repository.
        out: What is uploaded, NOTES.md and RELEASE.json among it.
        target: Commit or branch that the tag points at.

    Raises:
        Stop: Published already (3), something else is under the tag (5), no tag is left (8).
        Refused: GitHub said no; the draft was taken away.
        OSError: No answer; the draft stays, and the next call goes on with it.
    """
    name = str(json.loads((out / "RELEASE.json").read_bytes())["name"])
    notes = (out / "NOTES.md").read_text(encoding="utf-8")
    files = sorted(path for path in out.iterdir() if path.is_file())
    digests = {path.name: _sha256(path) for path in files}
    existing = github.releases()
    for tag in [name, *(f"{name}.{number}" for number in range(2, TAGS_MAX + 1))]:
        ours = [release for release in existing if release["tag_name"] == tag]
        for release in ours:
            if not release["draft"]:
                _require_same(tag, github.assets(release), digests)
        for spare in ours[1:]:
            github.delete(spare)
        try:
            draft = ours[0] if ours else github.draft(tag, name=tag, body=notes, target=target)
        except Refused as refused:
            if refused.is_burnt_tag:
                continue
            raise
        try:
            _fill(github, draft, files, digests)
            github.publish(draft)
        except (Refused, Stop) as error:
            if not (isinstance(error, Stop) and error.code == NO_ANSWER):
                github.delete(draft)
            if isinstance(error, Refused) and error.is_burnt_tag:
                continue
            raise
        return tag
    raise Stop(NO_ANSWER, f"{name} and {TAGS_MAX - 1} tags after it are used up")


def _fill(
    github: GitHub, draft: dict[str, Any], files: list[Path], digests: dict[str, str]
) -> None:
    """Upload what is not there yet, take away what is there and is something else, compare."""
    there = {}
    for asset in github.assets(draft):
        if asset.get("digest") == digests.get(asset["name"], ""):
            there[asset["name"]] = asset
        else:
            github.delete_asset(asset)
    for path in files:
        if path.name not in there:
            github.upload(draft, path)
    _require_uploaded(github.assets(draft), digests)


def _require_same(tag: str, assets: list[dict[str, Any]], digests: dict[str, str]) -> None:
    """Raise Stop: published already (3), or something else is published under the tag (5)."""
    there = {asset["name"]: asset.get("digest") for asset in assets}
    if there.get("RELEASE.json") == digests["RELEASE.json"]:
        raise Stop(PUBLISHED, f"{tag} is published already")
    raise Stop(DIFFERS, f"{tag} is published with another RELEASE.json; look at it before going on")


def _require_uploaded(assets: list[dict[str, Any]], digests: dict[str, str]) -> None:
    there = {asset["name"]: asset.get("digest") for asset in assets}
    for name, digest in digests.items():
        if there.get(name) != digest:
            raise Stop(DIFFERS, f"GitHub holds {name} as {there.get(name)}, it is {digest}")
    if set(there) != set(digests):
        raise Stop(DIFFERS, f"GitHub holds {min(set(there) - set(digests))}, which is not ours")


def _sha256(path: Path) -> str:
    """A digest as GitHub writes it."""
    with path.open("rb") as file:
        return f"sha256:{hashlib.file_digest(file, 'sha256').hexdigest()}"
