"""Pickles are read as data: arrays and plain containers come out, and no program ever runs."""

import collections
import contextlib
import io
import os
import pickle
import pickletools
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from scf.fertilization.readers import safe_pickle
from scf.fertilization.readers.safe_pickle import UnsafePickle

VALUE = {
    "a": np.arange(6, dtype=np.float32).reshape(2, 3),
    "fortran": np.asfortranarray(np.arange(6.0).reshape(2, 3)),
    "big endian": np.arange(3, dtype=">i2"),
    "bytes": np.arange(4, dtype=np.uint8),
    "flags": np.array([True, False]),
    "empty": np.zeros((0, 3)),
    "scalar": np.float64(2.5),
    "zero axes": np.array(7, np.int64),
    "plain": [1, 2.5, "text", None, True, b"raw", (1, 2), {"deep": [3]}],
    "ordered": collections.OrderedDict(x=1),
}


@pytest.mark.parametrize("protocol", range(pickle.HIGHEST_PROTOCOL + 1))
def test_arrays_and_containers_come_out_as_they_went_in(protocol: int) -> None:
    read = safe_pickle.loads(pickle.dumps(VALUE, protocol=protocol))

    for name, array in VALUE.items():
        if isinstance(array, np.ndarray | np.generic):
            np.testing.assert_array_equal(read[name], array, strict=False)
            assert read[name].shape == array.shape
    assert read["plain"] == [1, 2.5, "text", None, True, b"raw", [1, 2], {"deep": [3]}]
    assert read["ordered"] == {"x": 1}


def test_numpy_1_wrote_other_module_names() -> None:
    data = pickle.dumps(np.arange(3.0), protocol=2).replace(
        b"numpy._core.multiarray", b"numpy.core.multiarray"
    )

    np.testing.assert_array_equal(safe_pickle.loads(data), np.arange(3.0))


class Run:
    """Unpickling this with the standard library would write a file."""

    def __init__(self, function, *arguments) -> None:
        self.call = (function, arguments)

    def __reduce__(self):
        return self.call


def hostile(path: Path) -> dict[str, bytes]:
    touch = f"open({str(path)!r}, 'w').close()"
    array = pickle.dumps(np.arange(2.0), protocol=2)
    return {
        "os.system": pickle.dumps(Run(os.system, f"touch {path}")),
        "eval": pickle.dumps(Run(eval, touch)),
        "exec, protocol 0": pickle.dumps(Run(exec, touch), protocol=0),
        "getattr of an allowed name": b"cbuiltins\ngetattr\n(cnumpy\nndarray\nS'tofile'\ntR.",
        "dotted name": b"\x80\x04\x8c\x05numpy\x8c\x12ndarray.__reduce__\x93.",
        "numpy's own loader": pickle.dumps(Run(np.load, str(path))),
        "numpy.f2py": b"cnumpy.f2py\ncompile\n(S'x'\ntR.",
        "numpy.testing.runstring": b"cnumpy.testing._private.utils\nrunstring\n"
        b"(S" + repr(touch).encode() + b"\n}tR.",
        "codecs other than latin1": b"c_codecs\nencode\n(S'x'\nS'zlib_codec'\ntR.",
        "INST": b"(S'" + touch.encode() + b"'\nios\nsystem\n.",
        "OBJ": b"(cos\nsystem\nS'x'\no.",
        "NEWOBJ of an allowed name": b"\x80\x02cnumpy\nndarray\n)\x81.",
        "BUILD on an allowed name": b"\x80\x02cnumpy\nndarray\n}X\x05\x00\x00\x00_makeX\x01\x00\x00\x00xsb.",
        "BUILD on a dict": b"\x80\x02}}X\x01\x00\x00\x00aK\x01sb.",
        "calling a number": b"K\x01)R.",
        "calling an array": array[:-1] + b")R.",
        "persistent id": b"Pwhatever\n.",
        "extension registry": b"\x82\x01.",
        "out-of-band buffer": b"\x80\x05\x97.",
        "memo index of 2^31": b"\x80\x02Nr\xff\xff\xff\x7f0h\x00.",
        "a string said to be 2^62 long": b"\x80\x04\x8d" + (2**62).to_bytes(8, "little") + b"x.",
        "bytes said to be 2^40 long": b"\x80\x05\x96" + (2**40).to_bytes(8, "little") + b"x.",
        "array of objects": pickle.dumps(np.array([{}, []], dtype=object)),
        "structured array": pickle.dumps(np.zeros(2, dtype=[("a", "f4")])),
        "array of text": pickle.dumps(np.array(["a"])),
        "dates": pickle.dumps(np.array(["2020-01-01"], "M8[D]")),
        "complex": pickle.dumps(np.zeros(2, complex)),
        "a complex number": pickle.dumps(1j),
        "a set": pickle.dumps({1, 2}),
        "a class": pickle.dumps(Path),
        "a path": pickle.dumps(Path("x")),
        "truncated": pickle.dumps(VALUE)[:-20],
        "empty": b"",
        "text": b"hello",
        "shape without data": array.replace(b"K\x02", b"K\x7f"),
    }


@pytest.mark.parametrize("name", hostile(Path("x")))
def test_a_pickle_that_asks_for_more_is_refused_and_does_nothing(name: str, tmp_path: Path) -> None:
    trace = tmp_path / "trace"

    with pytest.raises(UnsafePickle):
        safe_pickle.loads(hostile(trace)[name])

    assert not trace.exists()


def test_the_hostile_pickles_are_hostile(tmp_path: Path) -> None:
    """The test above would notice: the standard library does run such a program."""
    pickle.load(io.BytesIO(hostile(tmp_path / "trace")["eval"]))

    assert (tmp_path / "trace").exists()


def test_references_that_multiply_are_bounded() -> None:
    """Ten lists each holding the one before ten times would be 10^10 values."""
    bomb: list = [0]
    for _ in range(10):
        bomb = [bomb] * 10

    with pytest.raises(UnsafePickle, match="too"):
        _small_cleaner().clean(bomb, 0)


def _small_cleaner() -> safe_pickle._Cleaner:
    cleaner = safe_pickle._Cleaner()
    cleaner._nodes = safe_pickle._NODES_MAX - 10_000
    return cleaner


def test_cycles_are_refused() -> None:
    loop: list = []
    loop.append(loop)

    with pytest.raises(UnsafePickle, match="deep"):
        safe_pickle.loads(pickle.dumps(loop))


@settings(deadline=None)
@given(st.data())
def test_no_bytes_make_it_fail_otherwise(data: st.DataObject) -> None:
    """Mutations of a good pickle give a value or a refusal, never anything else."""
    good = bytearray(
        pickle.dumps({"a": np.arange(4.0), "b": [1, "x"]}, protocol=data.draw(st.integers(0, 5)))
    )
    for _ in range(data.draw(st.integers(1, 3))):
        good[data.draw(st.integers(0, len(good) - 1))] = data.draw(st.integers(0, 255))
    with contextlib.suppress(UnsafePickle):
        safe_pickle.loads(bytes(good))


def test_every_opcode_that_makes_objects_is_known_to_us() -> None:
    """A Python that adds opcodes makes this fail, so that somebody looks at them."""
    assert max(opcode.proto for opcode in pickletools.opcodes) == 5
    assert len(pickletools.opcodes) == 68
