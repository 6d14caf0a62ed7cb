"""What software a release was made with: a CycloneDX bill of materials, and an exact lock.

Both are read from what is installed (importlib.metadata), so they say what ran, not what was
wished for. Nothing is downloaded. The same installation gives the same bytes.
"""

import functools
import platform
import re
import uuid
from collections.abc import Iterator
from importlib.metadata import Distribution, PackageNotFoundError, distribution
from typing import Any

from scf.core.canonical import canonical_json
from scf.core.identity import sha256_hex

PROJECT = "scf"
SPEC_VERSION = "1.6"

# Extras of ours that only developers install.
_NOT_SHIPPED = frozenset({"dev"})
_NAME = re.compile(r"\s*([A-Za-z0-9][A-Za-z0-9._-]*)")
_EXTRA = re.compile(r"""extra\s*==\s*['"]([^'"]+)['"]""")


def bill_of_materials(code_version: str, made_at: str) -> bytes:
    """CycloneDX 1.6 JSON of scf and every installed library that it needs or can use."""
    parts = _installed()
    components = [
        {
            "type": "library",
            "bom-ref": _reference(name, version),
            "name": name,
            "version": version,
            "purl": _reference(name, version),
            **({"licenses": [{"license": {"name": licence}}]} if licence else {}),
        }
        for name, (version, licence, _) in sorted(parts.items())
    ]
    own = {
        "type": "application",
        "bom-ref": _reference(PROJECT, code_version),
        "name": PROJECT,
        "version": code_version,
        "purl": _reference(PROJECT, code_version),
    }
    needs = {name: needed for name, (_, _, needed) in parts.items()}
    needs[PROJECT] = _needs_of_project()
    versions = {name: version for name, (version, _, _) in parts.items()} | {PROJECT: code_version}
    body: dict[str, Any] = {
        "bomFormat": "CycloneDX",
        "specVersion": SPEC_VERSION,
        "version": 1,
        "metadata": {
            "timestamp": made_at,
            "component": own,
            "properties": [{"name": "python", "value": platform.python_version()}],
        },
        "components": components,
        "dependencies": [
            {
                "ref": _reference(name, versions[name]),
                "dependsOn": [_reference(n, versions[n]) for n in needed if n in versions],
            }
            for name, needed in sorted(needs.items())
        ],
    }
    # A serial number that follows from the content: the same inputs give the same bytes.
    digest = sha256_hex(canonical_json(body))
    body["serialNumber"] = f"urn:uuid:{uuid.UUID(digest[:32], version=4)}"
    return canonical_json(body)


def constraints() -> bytes:
    """The lock: `name==version` a line, for `pip install --constraint`."""
    lines = [f"{name}=={version}" for name, (version, _, _) in sorted(_installed().items())]
    head = f"# What ran when this release was made, under Python {platform.python_version()}."
    return ("\n".join([head, *lines]) + "\n").encode()


@functools.lru_cache(maxsize=1)
def _installed() -> dict[str, tuple[str, str, tuple[str, ...]]]:
    """(version, licence, needs) by name, of all that scf reaches."""
    found: dict[str, tuple[str, str, tuple[str, ...]]] = {}
    waiting = list(_needs_of_project())
    while waiting:
        name = waiting.pop()
        if name in found or name == PROJECT:
            continue
        part = _find(name)
        if part is None:  # for another system, or an extra that is not installed
            continue
        needed = tuple(sorted(set(_needs(part, extras=False))))
        found[name] = (part.version, _licence(part), needed)
        waiting += needed
    return found


def _needs_of_project() -> tuple[str, ...]:
    part = _find(PROJECT)
    return () if part is None else tuple(sorted(set(_needs(part, extras=True))))


def _needs(part: Distribution, *, extras: bool) -> Iterator[str]:
    for requirement in part.requires or []:
        extra = _EXTRA.search(requirement)
        if extra is not None and (not extras or extra[1] in _NOT_SHIPPED):
            continue
        match = _NAME.match(requirement)
        if match is not None:
            yield _normalised(match[1])


def _find(name: str) -> Distribution | None:
    try:
        return distribution(name)
    except PackageNotFoundError:
        return None


def _licence(part: Distribution) -> str:
    """The licence's name where the package gives one line; whole texts are left out."""
    metadata = part.metadata
    named = [n for n in ("License-Expression", "License") if n in metadata]
    text = str(metadata[named[0]]) if named else ""
    return text if 0 < len(text) <= 60 and "\n" not in text else ""


def _normalised(name: str) -> str:
    return re.sub(r"[-_.]+", "-", name).lower()


def _reference(name: str, version: str) -> str:
    return f"pkg:pypi/{name}@{version}"
