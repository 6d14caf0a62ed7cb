"""The provider's OpenAPI document (REST v2), where it is at hand: requests and answers are held to it.

It lies beside the repository (`../shared/runpod/openapi.json`), not in it.
"""

import functools
import json
from pathlib import Path
from typing import Any

import jsonschema
import pytest

PATH = Path(__file__).resolve().parents[4] / "shared" / "runpod" / "openapi.json"


@functools.cache
def document() -> dict[str, Any] | None:
    return json.loads(PATH.read_text()) if PATH.is_file() else None


def required_document() -> dict[str, Any]:
    """The document; the test is skipped, with the reason, where it is absent."""
    found = document()
    if found is None:
        pytest.skip(f"the provider's OpenAPI document is not at {PATH}")
    return found


@functools.cache
def _validator(name: str) -> Any:
    found = document()
    assert found is not None
    schema = {"$ref": f"#/components/schemas/{name}", "components": found["components"]}
    return jsonschema.Draft202012Validator(schema)


def errors_of(name: str, value: Any) -> list[str]:
    """Why `value` is no `name` of the document; empty when it is one, or there is no document."""
    if document() is None:
        return []
    return [error.message[:200] for error in _validator(name).iter_errors(value)]
