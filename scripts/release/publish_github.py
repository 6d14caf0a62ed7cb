#!/usr/bin/env python3
"""Verify a packed release and publish it on GitHub, once. Python's standard library only.

    python scripts/release/publish_github.py verify ARCHIVE OUT
    python scripts/release/publish_github.py publish OUT

`verify` unpacks the archive, checks it with this checkout's verify_release.py against the foundry's
public key (.github/foundry.pub of this checkout, or the file that SCF_FOUNDRY_KEY names; never the
one in the archive), and fills OUT with what will be uploaded. `publish` makes a draft, uploads,
compares digests and publishes as the last step, since a published release is immutable and its tag
is used up for ever. A draft that an interrupted upload left is thrown away and made again. A tag
that a deleted release has used up is followed by `week-YYYY-MM-DD.2`, `.3` and so on.

From the environment: GITHUB_TOKEN, GITHUB_REPOSITORY, GITHUB_SHA, GITHUB_API_URL.

Exit code 0; 2 wrong arguments; 3 published already; 5 does not verify; 8 GitHub said no.
"""

import hashlib
import importlib.util
import json
import os
import shutil
import sys
import tarfile
import tempfile
import urllib.error
import urllib.parse
import urllib.request
from pathlib import Path
from typing import Any

CHECKOUT = Path(__file__).parents[2]
VERIFIER = CHECKOUT / "src" / "scf" / "release" / "verify_release.py"
KEY = CHECKOUT / ".github" / "foundry.pub"
# GitHub takes no asset of 2 GiB or more.
ASSET_MAX_BYTES = 2 * 2**30 - 1
TRIES = 3
TIMEOUT_S = 300
TAGS_MAX = 9


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
                    self._call("DELETE", f"{self._releases}/assets/{asset['id']}")

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
        raise Stop(8, f"GitHub does not answer; the draft {release['tag_name']} was left there")

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


def verify(archive: Path, out: Path, key: Path) -> str:
    """Check the archive and fill `out`; returns the release's name."""
    if not key.is_file():
        raise Stop(2, f"there is no {key}: commit the foundry's public key there (`scf keys show`)")
    name = archive.name.removesuffix(".tar.gz")
    with tempfile.TemporaryDirectory() as place:
        try:
            with tarfile.open(archive) as tar:
                tar.extractall(place, filter="data")
        except (tarfile.TarError, EOFError) as error:
            raise Stop(5, f"{archive.name} cannot be unpacked: {error}") from None
        if [path.name for path in Path(place).iterdir()] != [name]:
            raise Stop(5, f"{archive.name} does not hold the folder {name} and nothing else")
        release = Path(place) / name
        checked = _verifier().verify_release(release, key.read_bytes())
        sys.stdout.write(checked.text())
        if not checked.ok or checked.facts["name"] != name:
            raise Stop(5, f"{name} does not verify; nothing is published")
        if archive.stat().st_size > ASSET_MAX_BYTES:
            raise Stop(5, f"{archive.name} is larger than GitHub takes (2 GiB)")
        out.mkdir(parents=True, exist_ok=True)
        for file in ("RELEASE.json", "RELEASE.dsse.json", "NOTES.md", "verify_release.py"):
            shutil.copyfile(release / file, out / file)
    shutil.copyfile(archive, out / archive.name)
    return name


def publish(github: GitHub, out: Path, target: str) -> str:
    """Publish what lies in `out`; returns the tag."""
    name = str(json.loads((out / "RELEASE.json").read_bytes())["name"])
    files = sorted(path for path in out.iterdir() if path.is_file())
    digests = {path.name: _sha256(path) for path in files}
    existing = github.releases()
    for tag in [name, *(f"{name}.{number}" for number in range(2, TAGS_MAX + 1))]:
        for release in (r for r in existing if r["tag_name"] == tag):
            if not release["draft"]:
                _require_same(tag, github.assets(release), digests)
            github.delete(release)  # what an interrupted upload left
        try:
            draft = github.draft(tag, name=tag, body=(out / "NOTES.md").read_text(), target=target)
        except Refused as refused:
            if refused.is_burnt_tag:
                continue
            raise
        try:
            for path in files:
                github.upload(draft, path)
            _require_uploaded(github.assets(draft), digests)
            github.publish(draft)
        except (Refused, OSError, Stop) as error:
            if isinstance(error, Refused) or (isinstance(error, Stop) and error.code == 5):
                github.delete(draft)
            if isinstance(error, Refused) and error.is_burnt_tag:
                continue
            raise
        return tag
    raise Stop(8, f"{name} and {TAGS_MAX - 1} tags after it are used up")


def _require_same(tag: str, assets: list[dict[str, Any]], digests: dict[str, str]) -> None:
    """Raise Stop: published already (3), or something else is published under the tag (5)."""
    there = {asset["name"]: asset.get("digest") for asset in assets}
    if there.get("RELEASE.json") == digests["RELEASE.json"]:
        raise Stop(3, f"{tag} is published already")
    raise Stop(5, f"{tag} is published with another RELEASE.json; look at it before going on")


def _require_uploaded(assets: list[dict[str, Any]], digests: dict[str, str]) -> None:
    there = {asset["name"]: asset.get("digest") for asset in assets}
    for name, digest in digests.items():
        if there.get(name) != digest:
            raise Stop(5, f"GitHub holds {name} as {there.get(name)}, it is {digest}")
    if set(there) != set(digests):
        raise Stop(5, f"GitHub holds {min(set(there) - set(digests))}, which is not ours")


def _sha256(path: Path) -> str:
    """A digest as GitHub writes it."""
    with path.open("rb") as file:
        return f"sha256:{hashlib.file_digest(file, 'sha256').hexdigest()}"


def _verifier() -> Any:
    """verify_release.py of this checkout, without installing anything."""
    spec = importlib.util.spec_from_file_location("verify_release", VERIFIER)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module
    spec.loader.exec_module(module)
    return module


def main(arguments: list[str]) -> int:
    """The command; returns the exit code."""
    environment = os.environ
    try:
        match arguments:
            case ["verify", archive, out]:
                verify(Path(archive), Path(out), Path(environment.get("SCF_FOUNDRY_KEY") or KEY))
            case ["publish", out]:
                github = GitHub(
                    environment.get("GITHUB_API_URL", "https://api.github.com"),
                    environment["GITHUB_REPOSITORY"],
                    environment["GITHUB_TOKEN"],
                )
                tag = publish(github, Path(out), environment["GITHUB_SHA"])
                sys.stdout.write(f"published {tag}\n")
            case _:
                raise Stop(2, "usage: publish_github.py verify ARCHIVE OUT | publish OUT")
    except Stop as stop:
        sys.stderr.write(f"publish_github: {stop}\n")
        return stop.code
    except (Refused, OSError) as error:
        sys.stderr.write(f"publish_github: {error}; running it again is safe\n")
        return 8
    except KeyError as error:
        sys.stderr.write(f"publish_github: the environment has no {error}\n")
        return 2
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
