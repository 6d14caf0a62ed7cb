"""Names that are digests: SHA-256 and CIDv1."""

import hashlib
import re

import libipld

from scf.core.errors import InputError

# CIDv1 (0x01), codec dag-cbor (0x71), multihash sha2-256 (0x12) of 32 bytes (0x20).
_CID_HEAD = bytes((0x01, 0x71, 0x12, 0x20))
_CID_TEXT = re.compile(r"b[a-z2-7]{58}")
_SHA256_TEXT = re.compile(r"[0-9a-f]{64}")


def sha256_hex(data: bytes) -> str:
    """Lower-case hexadecimal SHA-256."""
    return hashlib.sha256(data).hexdigest()


def is_sha256_hex(text: object) -> bool:
    """Whether `text` has the form of a SHA-256 in lower-case hexadecimal."""
    return isinstance(text, str) and _SHA256_TEXT.fullmatch(text) is not None


def cid_of(block: bytes) -> str:
    """CIDv1 (base32, dag-cbor, sha2-256) of a DAG-CBOR block."""
    return cid_from_digest(hashlib.sha256(block).digest())


def cid_from_digest(digest: bytes) -> str:
    """The CID text that belongs to a 32-byte SHA-256 digest."""
    if len(digest) != 32:
        raise ValueError(f"a SHA-256 digest has 32 bytes, not {len(digest)}")
    # Ten times faster than base64.b32encode, which is written in Python: 1.3 against 13 us.
    return str(libipld.encode_cid(_CID_HEAD + digest))


def cid_digest(cid: str) -> bytes:
    """The 32-byte SHA-256 digest inside a CID text.

    Raises:
        InputError: `cid` is not a CIDv1 of the kind above.
    """
    if _CID_TEXT.fullmatch(cid):
        try:
            digest = bytes(libipld.decode_cid(cid)["hash"]["digest"])
        except ValueError:
            digest = b""
        # The last letter carries spare bits, and version, codec or hash may be others.
        if len(digest) == 32 and cid_from_digest(digest) == cid:
            return digest
    raise InputError(f"{cid[:80]!r} is not a CIDv1 (base32, dag-cbor, sha2-256)")
