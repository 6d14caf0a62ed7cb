"""Check a whole audit log: every entry, every tile, the head, and what was known of it before.

Nothing here needs a home or a private key: a copy of `zk_proofs/audit` and the foundry's public key
will do.
"""

from collections import Counter
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from scf.audit.entry import Entry, EntryInvalid
from scf.audit.log import CHECKPOINT_NAME, AuditLogDamaged, read_log_file
from scf.audit.tiles import (
    WIDTH,
    TileInvalid,
    decode_bundle,
    decode_tile,
    entry_paths,
    num_levels,
    tile_paths,
)
from scf.audit.tree_head import TreeHead, TreeHeadInvalid, verify_note
from scf.core.merkle import EMPTY_ROOT, TreeHasher, leaf_hash, root_of_hashes
from scf.signing.verify import PublicKey, SignatureInvalid


@dataclass(frozen=True)
class CheckReport:
    """What a check found.

    Attributes:
        size: Entries under the head; 0 where there is no head.
        root: The head's root, hexadecimal.
        events: How many entries of each event.
        first_at, last_at: Times of the first and last entry.
        problems: What does not fit, each with the file; empty means that all is well.
    """

    origin: str | None
    size: int
    root: str
    events: dict[str, int]
    first_at: str | None
    last_at: str | None
    problems: tuple[str, ...]

    @property
    def ok(self) -> bool:
        """Whether everything fits."""
        return not self.problems

    def to_json(self) -> dict[str, Any]:
        """For `scf audit check --json`."""
        return {
            "ok": self.ok,
            "origin": self.origin,
            "size": self.size,
            "root": self.root,
            "events": self.events,
            "first_at": self.first_at,
            "last_at": self.last_at,
            "problems": list(self.problems),
        }


def check_log(folder: Path, key: PublicKey, *, known: TreeHead | None = None) -> CheckReport:
    """Re-compute everything in the log in `folder`. Problems are returned, not raised.

    Args:
        folder: `zk_proofs/audit`, or a copy of it.
        key: The foundry's public key.
        known: A head seen before (a home's copy, one in a release): the log must begin with it.
    """
    head, problems = _read_head(folder, key)
    if head is None:
        if known is not None and known.size:
            problems.append(f"{CHECKPOINT_NAME}: {known.size} entries were signed, none are here")
        return CheckReport(None, 0, EMPTY_ROOT.hex(), {}, None, None, tuple(problems))
    hashes: list[bytes] = []
    events: Counter[str] = Counter()
    times: list[str] = []
    for path, width in entry_paths(head.size):
        for data in _bundle(folder, path, width, problems):
            hashes.append(leaf_hash(data))
            try:
                entry = Entry.decode(data)
            except EntryInvalid as error:
                problems.append(f"{path}: entry {len(hashes) - 1}: {error}")
            else:
                events[entry.event] += 1
                times.append(entry.at)
    if len(hashes) == head.size:
        _check_tiles(folder, hashes, problems)
        if root_of_hashes(hashes) != head.root:
            problems.append(f"{CHECKPOINT_NAME}: the entries do not lead to the signed root")
        if known is not None:
            problems += _prefix_problems(known, head, hashes)
    return CheckReport(
        head.origin,
        head.size,
        head.root.hex(),
        dict(sorted(events.items())),
        times[0] if times else None,
        times[-1] if times else None,
        tuple(problems),
    )


def _read_head(folder: Path, key: PublicKey) -> tuple[TreeHead | None, list[str]]:
    try:
        note = (folder / CHECKPOINT_NAME).read_bytes()
    except FileNotFoundError:
        tiles = (folder / "tile").exists()
        return None, [f"{CHECKPOINT_NAME}: missing, although there are tiles"] if tiles else []
    except OSError as error:
        return None, [f"{CHECKPOINT_NAME}: cannot be read: {error.strerror}"]
    try:
        return verify_note(note, key), []
    except (TreeHeadInvalid, SignatureInvalid) as error:
        return None, [f"{CHECKPOINT_NAME}: {error}"]


def _bundle(folder: Path, path: str, width: int, problems: list[str]) -> list[bytes]:
    try:
        return decode_bundle(read_log_file(folder, path), width)
    except (AuditLogDamaged, TileInvalid) as error:
        problems.append(f"{path}: {error}")
        return []


def _check_tiles(folder: Path, leaf_hashes: list[bytes], problems: list[str]) -> None:
    """Every tile of every level must hold what the entries lead to."""
    expected = leaf_hashes
    for level in range(num_levels(len(leaf_hashes))):
        for number, (path, width) in enumerate(tile_paths(len(leaf_hashes), level)):
            wanted = expected[number * WIDTH : number * WIDTH + width]
            try:
                found = decode_tile(read_log_file(folder, path), width)
            except (AuditLogDamaged, TileInvalid) as error:
                problems.append(f"{path}: {error}")
                continue
            if found != wanted:
                odd = next(i for i in range(width) if found[i] != wanted[i])
                problems.append(f"{path}: hash {odd} is not that of the entries below it")
        expected = [
            root_of_hashes(expected[i : i + WIDTH])
            for i in range(0, len(expected) - WIDTH + 1, WIDTH)
        ]


def _prefix_problems(known: TreeHead, head: TreeHead, hashes: list[bytes]) -> list[str]:
    if known.origin != head.origin:
        return [f"{CHECKPOINT_NAME}: log {head.origin}, but {known.origin} was known"]
    if known.size > head.size:
        return [f"{CHECKPOINT_NAME}: {known.size} entries were signed, {head.size} are here"]
    hasher = TreeHasher()
    for digest in hashes[: known.size]:
        hasher.add_hash(digest)
    if hasher.root() != known.root:
        return [f"{CHECKPOINT_NAME}: the first {known.size} entries are not those known before"]
    return []
