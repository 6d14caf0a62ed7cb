"""A stranger recomputes CIDs with another IPLD implementation: npm's @ipld/dag-cbor."""

import json
import re
import shutil
import subprocess
from pathlib import Path

import numpy as np
import pytest

from scf.vault.fields import field_of_array
from scf.vault.fossil import encode_fossil, fossil_cid, make_fossil
from support.fossils import fossil_object

PAGE = Path(__file__).parents[2] / "docs" / "formats" / "fossil.md"
PACKAGES = ("@ipld/dag-cbor@9.2.4", "multiformats@13.3.7")
INSTALL_S, RUN_S = 60, 60


@pytest.fixture(scope="module")
def stranger(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The program of the page, beside the packages that it asks for."""
    if shutil.which("node") is None or shutil.which("npm") is None:
        pytest.skip("node and npm are not installed")
    folder = tmp_path_factory.mktemp("node")
    (folder / "package.json").write_text('{"private": true, "type": "module"}')
    try:
        subprocess.run(
            ["npm", "install", "--no-audit", "--no-fund", "--ignore-scripts", *PACKAGES],
            cwd=folder,
            capture_output=True,
            check=True,
            timeout=INSTALL_S,
        )
    except (subprocess.CalledProcessError, subprocess.TimeoutExpired) as error:
        pytest.skip(f"npm's packages cannot be had: {type(error).__name__}")
    match = re.search(r"```js example=recompute\n(.*?)```", PAGE.read_text(), flags=re.DOTALL)
    assert match is not None
    (folder / "recompute.js").write_text(match[1])
    return folder / "recompute.js"


def recomputed(program: Path, lines: list[bytes]) -> list[str]:
    done = subprocess.run(
        ["node", program.name],
        input=b"".join(lines),
        cwd=program.parent,
        capture_output=True,
        timeout=RUN_S,
    )
    assert done.returncode == 0, done.stderr.decode()
    return done.stdout.decode().split()


def line_of(obj) -> bytes:
    return json.dumps(obj).encode() + b"\n"


def test_the_vector_of_the_page(stranger: Path) -> None:
    match = re.search(r"```json vector=fossil\n(.*?)```", PAGE.read_text(), flags=re.DOTALL)
    assert match is not None

    assert recomputed(stranger, [match[1].encode()]) == [json.loads(match[1])["cid"]]


NUMBERS = [
    *(0, -0.0, 1, -1, 1.0, 0.1, 1 / 3, 23, 24, 255, 256, 65535, 65536, 2**32 - 1, 2**32, -(2**32)),
    *(2**53 - 1, -(2**53 - 1), 2**53, 2**53 + 2, -(2**53), 2**63, 1e15, 1e16, 1e21, 1e22, 1e300),
    *(5e-324, 1.7976931348623157e308, -1e-7, 1.5, 3.0, 65504.0, 1e-8, 123456789.125),
]
NAMES = ["a", "b", "aa", "Ab", "ä", "ab", "z" * 23, "z" * 24, "z" * 300, "日本", "𝛔", "", "a b"]


def test_numbers_and_names_of_every_kind(stranger: Path) -> None:
    """Both encoders write one form: shortest integers, 64-bit floats, keys by length, then bytes."""
    params = [{"x": number} for number in NUMBERS]
    params += [dict.fromkeys(NAMES, 1), {"deep": [{"b": [], "a": {}}, None, True, False]}]
    objs = [fossil_object(index, params=values) for index, values in enumerate(params)]

    assert recomputed(stranger, [line_of(obj) for obj in objs]) == [obj["cid"] for obj in objs]


def test_thousands_of_random_numbers(stranger: Path) -> None:
    rng = np.random.default_rng(0)
    bits = rng.integers(0, 2**64, 3000, np.uint64).view(np.float64)
    scaled = np.round(rng.standard_normal(1000) * 10.0 ** rng.integers(-5, 20, 1000), 3)
    numbers = [float(x) for x in [*bits[np.isfinite(bits)], *scaled]]
    objs = [fossil_object(i, params={"x": numbers[i::50]}) for i in range(50)]

    assert recomputed(stranger, [line_of(obj) for obj in objs]) == [obj["cid"] for obj in objs]


@pytest.mark.parametrize("dtype", ["float32", "float64", "int8", "int16", "int32", "uint8",
                                   "uint16", "uint32", "bool"])  # fmt: skip
def test_lists_and_packed_bytes_of_each_type(stranger: Path, dtype: str) -> None:
    rng = np.random.default_rng(1)
    array = (rng.standard_normal((3, 4)) * 100).astype(dtype)
    plain = {"dtype": dtype, "shape": [3, 4], "unit": "m", "values": array.ravel().tolist()}
    in_list = fossil_object(0, fields={"x": plain}, cid="")
    in_list["cid"] = fossil_cid(in_list)
    block = {k: v for k, v in in_list.items() if k not in {"cid", "verifier"}}
    packed = make_fossil(
        {**block, "fields": {"x": field_of_array(array, "m")}}, in_list["verifier"]
    )

    told = recomputed(stranger, [line_of(in_list), encode_fossil(packed)])

    assert told == [in_list["cid"], packed.cid]
    assert in_list["cid"] == packed.cid
