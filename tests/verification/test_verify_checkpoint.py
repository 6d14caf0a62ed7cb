"""A checkpoint that comes back is believed when its bytes, its layout and its numbers are sound."""

import json
import struct
from pathlib import Path

import numpy as np
import pytest
from safetensors.numpy import save_file

from scf.verification.verify_checkpoint import CheckpointInvalid, verify_checkpoint
from support.checkpoints import seal, write_checkpoint


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    write_checkpoint(tmp_path / "checkpoint")
    return tmp_path / "checkpoint"


def test_a_sound_checkpoint_is_described(folder: Path) -> None:
    facts = verify_checkpoint(folder)

    assert facts.digest == seal(folder)
    assert facts.num_parameters == 8 * 4 + 8
    assert set(facts.files) == {
        "model.safetensors", "ema.safetensors", "optimizer.safetensors", "config.json", "state.json",
    }  # fmt: skip
    assert facts.state["step"] == 100
    assert facts.size_bytes == sum((folder / name).stat().st_size for name in facts.files)


def test_the_digest_is_that_of_the_files(folder: Path, tmp_path: Path) -> None:
    """The same weights have the same name, other weights another."""
    again = write_checkpoint(tmp_path / "again")
    other = write_checkpoint(tmp_path / "other", seed=1)

    assert verify_checkpoint(folder).digest == again != other


@pytest.mark.parametrize(
    "name", ["model.safetensors", "ema.safetensors", "config.json", "optimizer.safetensors"]
)
def test_a_changed_byte_is_named(folder: Path, name: str) -> None:
    data = bytearray((folder / name).read_bytes())
    data[-1] ^= 1
    (folder / name).write_bytes(data)

    with pytest.raises(CheckpointInvalid, match=f"{name}: digest") as caught:
        verify_checkpoint(folder)
    assert caught.value.exit_code == 5


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
@pytest.mark.parametrize("dtype", ["f4", "f8", "f2"])
def test_weights_that_are_not_finite_are_refused(folder: Path, value: float, dtype: str) -> None:
    """However well the digests fit."""
    weights = np.ones((3, 5), dtype)
    weights[2, 4] = value
    for name in ("model", "ema"):
        save_file({"w": weights}, folder / f"{name}.safetensors")
    seal(folder)

    with pytest.raises(CheckpointInvalid, match="tensor 'w' holds numbers that are not finite"):
        verify_checkpoint(folder)


def _raw(path: Path, header: object, data: bytes) -> None:
    text = json.dumps(header).encode()
    path.write_bytes(struct.pack("<Q", len(text)) + text + data)


def test_bfloat16_is_understood(folder: Path) -> None:
    """numpy has no bfloat16: 0x3f80 is 1.0, 0x7fc0 is NaN."""
    header = {"w": {"dtype": "BF16", "shape": [2], "data_offsets": [0, 4]}}
    for name in ("model", "ema"):
        _raw(folder / f"{name}.safetensors", header, b"\x80\x3f\x80\x3f")
    seal(folder)
    assert verify_checkpoint(folder).num_parameters == 2

    for name in ("model", "ema"):
        _raw(folder / f"{name}.safetensors", header, b"\x80\x3f\xc0\x7f")
    seal(folder)
    with pytest.raises(CheckpointInvalid, match="not finite"):
        verify_checkpoint(folder)


@pytest.mark.parametrize(
    ("header", "data", "message"),
    [
        ({"w": {"dtype": "F32", "shape": [2], "data_offsets": [0, 8]}}, b"1234", "does not lie"),
        (
            {"w": {"dtype": "F32", "shape": [1], "data_offsets": [0, 4]}},
            b"12345678",
            "belong to no",
        ),
        ({"w": {"dtype": "F32", "shape": [2], "data_offsets": [0, 4]}}, b"1234", "does not lie"),
        ({"w": {"dtype": "Q4", "shape": [1], "data_offsets": [0, 4]}}, b"1234", "dtype 'Q4'"),
        ({"w": {"dtype": "F32", "shape": [-1], "data_offsets": [0, 4]}}, b"1234", "shape"),
        ({"w": {"dtype": "F32", "shape": [1]}}, b"1234", "has no place"),
        ([1], b"", "cut short"),
        ({}, b"", "holds no tensors"),
    ],
)
def test_a_malformed_safetensors_file_is_refused(folder, header, data, message) -> None:
    for name in ("model", "ema"):
        _raw(folder / f"{name}.safetensors", header, data)
    seal(folder)

    with pytest.raises(CheckpointInvalid, match=message):
        verify_checkpoint(folder)


@pytest.mark.parametrize("data", [b"", b"\xff" * 40, b"\x80\x04pickle" * 9])
def test_what_is_no_safetensors_file_is_refused(folder: Path, data: bytes) -> None:
    (folder / "model.safetensors").write_bytes(data)
    seal(folder)

    with pytest.raises(CheckpointInvalid, match="not a safetensors file"):
        verify_checkpoint(folder)


def test_the_average_must_be_of_the_same_model(folder: Path) -> None:
    save_file({"other": np.ones(3, "f4")}, folder / "ema.safetensors")
    seal(folder)

    with pytest.raises(CheckpointInvalid, match="not those of the model"):
        verify_checkpoint(folder)


@pytest.mark.parametrize(
    ("digests", "message"),
    [
        ("{}", "config.json is not listed"),
        ("[]", "not a JSON object"),
        ("{", "not JSON"),
        ('{"../escape": "' + "a" * 64 + '"}', "not a plain file"),
        ('{"config.json": "short"}', "not a plain file with a SHA-256"),
    ],
)
def test_a_bad_digest_list_is_refused(folder: Path, digests: str, message: str) -> None:
    (folder / "digests.json").write_text(digests)

    with pytest.raises(CheckpointInvalid, match=message):
        verify_checkpoint(folder)


def test_missing_files_and_links_are_refused(folder: Path) -> None:
    (folder / "state.json").rename(folder / "elsewhere")
    with pytest.raises(CheckpointInvalid, match=r"state\.json: missing"):
        verify_checkpoint(folder)
    (folder / "state.json").symlink_to(folder / "elsewhere")
    with pytest.raises(CheckpointInvalid, match="not a plain file"):
        verify_checkpoint(folder)
