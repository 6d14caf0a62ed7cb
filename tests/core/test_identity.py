"""CIDs are what every other IPLD library says they are."""

import libipld
import pytest
from hypothesis import given
from hypothesis import strategies as st

from scf.core.errors import InputError
from scf.core.identity import cid_digest, cid_from_digest, cid_of


@given(st.binary(max_size=200))
def test_a_cid_reads_back_and_an_independent_decoder_agrees(block: bytes) -> None:
    cid = cid_of(block)
    decoded = libipld.decode_cid(cid)

    assert cid_from_digest(cid_digest(cid)) == cid
    assert (decoded["version"], decoded["codec"]) == (1, 0x71)
    assert bytes(decoded["hash"]["digest"]) == cid_digest(cid)


def test_the_empty_map_has_its_published_cid() -> None:
    # Known from the IPLD world: the CID of {} in dag-cbor.
    assert cid_of(b"\xa0") == "bafyreigbtj4x7ip5legnfznufuopl4sg4knzc2cof6duas4b3q2fy6swua"


@pytest.mark.parametrize(
    "text",
    ["", "b" * 59, "Qm123", "bafy", "bafyreigbtj4x7ip5legnfznufuopl4sg4knzc2cof6duas4b3q2fy6swu1"],
)
def test_other_text_is_refused(text: str) -> None:
    with pytest.raises(InputError):
        cid_digest(text)
