"""Check a checkpoint folder before it is believed: digests, safetensors, finite weights. No torch.

A checkpoint comes back from a job that may have run anywhere. Here its bytes are compared with its
own digest list, the safetensors files are taken apart by hand (a header of JSON, then raw numbers),
and every weight is looked at. What it predicts is for `measure` and the gate.
"""

import hashlib
import json
import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from scf.core.canonical import canonical_json, parse_json
from scf.core.errors import InputError, VerificationFailed
from scf.core.identity import is_sha256_hex, sha256_hex
from scf.storage import durable

DIGESTS_NAME = "digests.json"
REQUIRED = ("model.safetensors", "ema.safetensors", "config.json", "state.json")

_HEADER_MAX_BYTES = 100_000_000  # the limit of the safetensors format
_BLOCK_BYTES = 8 * 2**20
# safetensors dtype -> numpy dtype of the stored bytes, whose last digit is their number. BF16 has
# none: it is widened by hand.
_DTYPES = {
    "F64": "<f8", "F32": "<f4", "F16": "<f2", "BF16": "<u2", "I64": "<i8", "I32": "<i4",
    "I16": "<i2", "I8": "|i1", "U64": "<u8", "U32": "<u4", "U16": "<u2", "U8": "|u1", "BOOL": "|u1",
}  # fmt: skip


class CheckpointInvalid(VerificationFailed):
    """A checkpoint folder is not what its digest list says, or holds what no model can be."""

    def __init__(self, path: Path, reason: str) -> None:
        super().__init__(
            f"{path}: {reason}",
            remedy="Let the run be repeated (`scf runs`); do not use this checkpoint.",
        )


@dataclass(frozen=True)
class CheckpointFacts:
    """What is known of a checkpoint once it is verified.

    Attributes:
        path: The folder.
        digest: Its name: SHA-256 of the canonical JSON of `files`.
        files: SHA-256 of each file, by name.
        size_bytes: Of all these files together.
        num_parameters: Numbers in `model.safetensors`.
        config: `config.json`.
        state: `state.json`.
    """

    path: Path
    digest: str
    files: Mapping[str, str]
    size_bytes: int
    num_parameters: int
    config: Mapping[str, Any]
    state: Mapping[str, Any]


def verify_checkpoint(folder: Path) -> CheckpointFacts:
    """Read every byte of a checkpoint and return what it is.

    Raises:
        CheckpointInvalid: Names the file and what is wrong with it.
    """
    files = read_digests(folder)
    for name, expected in files.items():
        path = folder / name
        if path.is_symlink() or not path.is_file():
            raise CheckpointInvalid(path, "missing, or not a plain file")
        actual = file_sha256(path)
        if actual != expected:
            raise CheckpointInvalid(path, f"digest {actual}, {DIGESTS_NAME} says {expected}")
    tensors = {
        name: _verify_tensors(folder / name) for name in files if name.endswith(".safetensors")
    }
    model, ema = tensors["model.safetensors"], tensors["ema.safetensors"]
    if not model:
        raise CheckpointInvalid(folder / "model.safetensors", "it holds no tensors")
    if model != ema:
        odd = min(set(model.items()) ^ set(ema.items()))[0]
        raise CheckpointInvalid(
            folder / "ema.safetensors", f"its tensors are not those of the model (such as {odd!r})"
        )
    return CheckpointFacts(
        path=folder,
        digest=checkpoint_digest(files),
        files=files,
        size_bytes=sum((folder / name).stat().st_size for name in files),
        num_parameters=sum(math.prod(shape) for _, shape in model.values()),
        config=_read_object(folder / "config.json"),
        state=_read_object(folder / "state.json"),
    )


def read_digests(folder: Path) -> dict[str, str]:
    """`digests.json`: SHA-256 by file name, all required files among them.

    Raises:
        CheckpointInvalid: Missing, malformed, or a name that leads elsewhere.
    """
    path = folder / DIGESTS_NAME
    files = _read_object(path)
    for name, digest in files.items():
        is_plain = not name.startswith(".") and not {"/", "\\", "\0"} & set(name)
        if not is_plain or name == DIGESTS_NAME or not is_sha256_hex(digest):
            raise CheckpointInvalid(path, f"entry {name!r} is not a plain file with a SHA-256")
    missing = sorted(set(REQUIRED) - set(files))
    if missing:
        raise CheckpointInvalid(path, f"{missing[0]} is not listed")
    return {name: str(digest) for name, digest in sorted(files.items())}


def checkpoint_digest(files: Mapping[str, str]) -> str:
    """The name of a checkpoint with these files: it changes when any byte of any file does."""
    return sha256_hex(canonical_json(dict(files)))


def file_sha256(path: Path) -> str:
    """Digest of a file, streaming."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _read_object(path: Path) -> dict[str, Any]:
    try:
        value = durable.read_json(path)
    except InputError as error:
        raise CheckpointInvalid(path, str(error).removeprefix(f"{path}: ")) from error
    if not isinstance(value, dict):
        raise CheckpointInvalid(path, "not a JSON object")
    return value


def _verify_tensors(path: Path) -> dict[str, tuple[str, tuple[int, ...]]]:
    """Dtype and shape by tensor name, once layout and numbers are seen to be sound."""
    header, start = _read_header(path)
    size_bytes = path.stat().st_size - start
    tensors = {}
    position = 0
    for name, about in sorted(header.items(), key=lambda item: _offsets(path, *item)):
        begin, end = _offsets(path, name, about)
        dtype, shape = about.get("dtype"), about.get("shape")
        if dtype not in _DTYPES or not isinstance(shape, list):
            raise CheckpointInvalid(path, f"tensor {name!r} has dtype {dtype!r}, shape {shape!r}")
        if not all(type(length) is int and length >= 0 for length in shape):
            raise CheckpointInvalid(path, f"tensor {name!r} has shape {shape!r}")
        expected = math.prod(shape) * int(_DTYPES[dtype][-1])
        if begin != position or end - begin != expected or end > size_bytes:
            raise CheckpointInvalid(path, f"tensor {name!r} does not lie where its header says")
        if dtype in {"F64", "F32", "F16", "BF16"}:
            _require_finite(path, name, dtype, start + begin, expected)
        tensors[name] = (dtype, tuple(shape))
        position = end
    if position != size_bytes:
        raise CheckpointInvalid(path, f"{size_bytes - position} bytes belong to no tensor")
    return tensors


def _read_header(path: Path) -> tuple[dict[str, Any], int]:
    with path.open("rb") as file:
        length = int.from_bytes(file.read(8), "little")
        if not 2 <= length <= _HEADER_MAX_BYTES:
            raise CheckpointInvalid(path, "not a safetensors file: no header")
        text = file.read(length)
    try:
        header = parse_json(text)
    except InputError as error:
        raise CheckpointInvalid(path, f"not a safetensors file: {error}") from error
    if len(text) != length or not isinstance(header, dict):
        raise CheckpointInvalid(path, "not a safetensors file: the header is cut short")
    header.pop("__metadata__", None)
    return header, 8 + length


def _offsets(path: Path, name: str, about: Any) -> tuple[int, int]:
    offsets = about.get("data_offsets") if isinstance(about, dict) else None
    if not isinstance(offsets, list) or [type(o) for o in offsets] != [int, int]:
        raise CheckpointInvalid(path, f"tensor {name!r} has no place: {json.dumps(about)[:80]}")
    return offsets[0], offsets[1]


def _require_finite(path: Path, name: str, dtype: str, begin: int, size_bytes: int) -> None:
    import numpy as np  # here, so that who only names checkpoints stays small

    for block in _blocks(path, begin, size_bytes):
        numbers = np.frombuffer(block, _DTYPES[dtype])
        if dtype == "BF16":  # the upper half of a float32
            numbers = (numbers.astype("<u4") << 16).view("<f4")
        if not np.isfinite(numbers).all():
            raise CheckpointInvalid(path, f"tensor {name!r} holds numbers that are not finite")


def _blocks(path: Path, begin: int, size_bytes: int) -> Iterator[bytes]:
    with path.open("rb") as file:
        file.seek(begin)
        while size_bytes > 0:
            block = file.read(min(size_bytes, _BLOCK_BYTES))
            size_bytes -= len(block)
            yield block
