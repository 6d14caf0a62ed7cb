"""The bill of materials says what is installed, the same way each time."""

import json
import uuid
from importlib.metadata import version

from scf.release.sbom import bill_of_materials, constraints

AT = "2026-11-18T12:00:00Z"


def test_it_lists_what_is_installed_with_its_version() -> None:
    bill = json.loads(bill_of_materials("0.1.0", AT))

    versions = {part["name"]: part["version"] for part in bill["components"]}
    assert versions["numpy"] == version("numpy")
    assert versions["cryptography"] == version("cryptography")
    assert "cffi" in versions, "what libraries need is part of it"
    assert "pytest" not in versions, "what only developers need is not"
    assert bill["metadata"]["component"]["name"] == "scf"
    assert bill["metadata"]["timestamp"] == AT


def test_every_reference_leads_to_a_component() -> None:
    bill = json.loads(bill_of_materials("0.1.0", AT))

    known = {part["bom-ref"] for part in bill["components"]}
    known.add(bill["metadata"]["component"]["bom-ref"])
    assert len(known) == len(bill["components"]) + 1
    for row in bill["dependencies"]:
        assert {row["ref"], *row["dependsOn"]} <= known


def test_the_same_installation_gives_the_same_bytes() -> None:
    first = bill_of_materials("0.1.0", AT)

    assert bill_of_materials("0.1.0", AT) == first
    serial = json.loads(first)["serialNumber"]
    assert uuid.UUID(serial.removeprefix("urn:uuid:")).version == 4
    assert json.loads(bill_of_materials("0.1.1", AT))["serialNumber"] != serial


def test_the_lock_has_one_exact_version_a_line() -> None:
    first, *lines = constraints().decode().splitlines()

    assert first.startswith("#")
    assert f"click=={version('click')}" in lines
    names = [line.split("==")[0] for line in lines]
    assert names == sorted(names)
    assert all(line.count("==") == 1 for line in lines)
