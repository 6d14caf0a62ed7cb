#!/usr/bin/env python3
"""Verify a packed release and publish it on GitHub, once. Python's standard library only.

    python scripts/release/publish_github.py verify ARCHIVE OUT
    python scripts/release/publish_github.py publish OUT

`verify` unpacks the archive (or its parts, ARCHIVE.001 and so on), checks it with this checkout's
verify_release.py against the foundry's public key (.github/foundry.pub of this checkout, or the
file that SCF_FOUNDRY_KEY names; never the one in the archive), and fills OUT with what will be
uploaded. `publish` makes a draft or goes on with one, uploads, compares digests and publishes as
the last step (src/scf/dispatch/outlets/github_api.py).

From the environment: GITHUB_TOKEN, GITHUB_REPOSITORY, GITHUB_SHA, GITHUB_API_URL.

Exit code 0; 2 wrong arguments; 3 published already; 5 does not verify; 8 GitHub said no.
"""

import importlib.util
import os
import shutil
import sys
import tempfile
from pathlib import Path
from typing import Any

CHECKOUT = Path(__file__).parents[2]
SOURCES = CHECKOUT / "src" / "scf"
KEY = CHECKOUT / ".github" / "foundry.pub"
BESIDE = ("RELEASE.json", "RELEASE.dsse.json", "NOTES.md", "verify_release.py")


def load(path: str) -> Any:
    """A module of this checkout that needs the standard library alone, nothing installed."""
    spec = importlib.util.spec_from_file_location(Path(path).stem, SOURCES / path)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module
    spec.loader.exec_module(module)
    return module


API = load("dispatch/outlets/github_api.py")
ARCHIVE = load("dispatch/outlets/archive.py")
VERIFIER = load("release/verify_release.py")


def verify(archive: Path, out: Path, key: Path) -> str:
    """Check the archive and fill `out`; returns the release's name."""
    if not key.is_file():
        raise API.Stop(
            2, f"there is no {key}: commit the foundry's public key there (`scf keys show`)"
        )
    name = archive.name.removesuffix(".tar.gz")
    with tempfile.TemporaryDirectory() as place:
        try:
            with ARCHIVE.unpacking(archive) as tar:
                tar.extractall(place, filter="data")
        except ARCHIVE.ArchiveDamaged as error:
            raise API.Stop(5, str(error)) from None
        if [path.name for path in Path(place).iterdir()] != [name]:
            raise API.Stop(5, f"{archive.name} does not hold the folder {name} and nothing else")
        release = Path(place) / name
        checked = VERIFIER.verify_release(release, key.read_bytes())
        sys.stdout.write(checked.text())
        if not checked.ok or checked.facts["name"] != name:
            raise API.Stop(5, f"{name} does not verify; nothing is published")
        out.mkdir(parents=True, exist_ok=True)
        for file in BESIDE:
            shutil.copyfile(release / file, out / file)
    for part in ARCHIVE.parts_of(archive):
        shutil.copyfile(part, out / part.name)
    return name


def main(arguments: list[str]) -> int:
    """The command; returns the exit code."""
    environment = os.environ
    try:
        match arguments:
            case ["verify", archive, out]:
                verify(Path(archive), Path(out), Path(environment.get("SCF_FOUNDRY_KEY") or KEY))
            case ["publish", out]:
                github = API.GitHub(
                    environment.get("GITHUB_API_URL", API.API),
                    environment["GITHUB_REPOSITORY"],
                    environment["GITHUB_TOKEN"],
                )
                tag = API.publish(github, Path(out), environment["GITHUB_SHA"])
                sys.stdout.write(f"published {tag}\n")
            case _:
                raise API.Stop(2, "usage: publish_github.py verify ARCHIVE OUT | publish OUT")
    except API.Stop as stop:
        sys.stderr.write(f"publish_github: {stop}\n")
        return int(stop.code)
    except (API.Refused, OSError) as error:
        sys.stderr.write(f"publish_github: {error}; running it again is safe\n")
        return 8
    except KeyError as error:
        sys.stderr.write(f"publish_github: the environment has no {error}\n")
        return 2
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
