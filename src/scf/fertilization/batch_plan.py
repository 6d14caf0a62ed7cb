"""The batch plan: which shards, which split, which seed. A run is trained and measured on a plan.

The plan is hashed (`plan_id`), its fossils have a Merkle root, and it names no machine: it means
the same wherever the shards lie. Whole families are held out, by hash, so that the same family is
always on the same side, and a child plan keeps what its parent held out.
Format: docs/formats/batch-plan.md.
"""

import hashlib
import itertools
from collections.abc import Callable, Collection, Iterable, Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Protocol, Self

from scf.core.canonical import canonical_json
from scf.core.errors import InputError, NothingToDo, OperatorError
from scf.core.identity import is_sha256_hex, sha256_hex
from scf.core.merkle import TreeHasher
from scf.storage import durable
from scf.vault.journal_file import ShardSummary, summary_from_json
from scf.vault.provenance import FAMILY_BLOCK
from scf.vault.shard import ShardDamaged, read_shard

SCHEMA = "scf.plan/1"
TRAIN, HELD_OUT, ALL = "train", "held_out", "all"
HELD_OUT_FRACTION = 0.15
PlanShard = ShardSummary

_HASH_DIGITS = 16
_HASH_MAX = 16**_HASH_DIGITS - 1
_TRIES = 5


class NothingHeldOut(InputError):
    """Too few fossils, too close to each other: any split would train on what it measures."""

    kind = "split"

    def __init__(self, num_fossils: int) -> None:
        super().__init__(
            f"the vault's {num_fossils} fossils are one family within one block of {FAMILY_BLOCK} "
            "neighbours, so nothing can be held out to measure on",
            remedy="Take more in (`scf ingest PATH`): another family, or more than 64 records.",
        )


class PlanInvalid(InputError):
    """A plan cannot be read."""

    kind = "plan"


@dataclass(frozen=True)
class FreshAndReplay:
    """How a run mixes fossils that its parent had not with those that it had.

    Attributes:
        replay_shards: So many shards of the plan, from the first on, are the parent's.
        fresh_share: Share of each epoch that the others have, between 0 and 1.
    """

    replay_shards: int
    fresh_share: float


@dataclass(frozen=True)
class BatchPlan:
    """What a run is made of.

    Attributes:
        shards: In the order of their commits, which is the stored order of the fossils.
        fossils: How many fossils, both sides of the split, without the excluded ones.
        merkle_root: RFC 6962 root over their CIDs (as text, ascending), hex.
        seed: Of the split; the batcher has its own.
        held_out_below: Families whose hash is below these 16 hexadecimal digits are held out.
        excluded: CIDs that are in the shards and not in the plan (retracted), ascending.
        in_blocks: Families that are split as blocks of 64 neighbours, because all fossils were of
            one family when they were first planned over; ascending, usually none.
        mixture: How fresh and replayed fossils are mixed in training; None uses all alike.
    """

    shards: tuple[PlanShard, ...]
    fossils: int
    merkle_root: str
    seed: int
    held_out_below: str
    excluded: tuple[str, ...] = ()
    in_blocks: tuple[str, ...] = ()
    mixture: FreshAndReplay | None = None

    @property
    def may_repeat(self) -> bool:
        """Whether shards could hold a fossil twice; a vault never takes one in again."""
        return sum(shard.count for shard in self.shards) != self.fossils + len(self.excluded)

    @property
    def plan_id(self) -> str:
        """SHA-256 of the canonical JSON of the plan."""
        return sha256_hex(canonical_json(self.to_json()))

    def unit_of(self, family: str, position: int) -> str:
        """What is held out or trained on as a whole: the family, or its block of neighbours.

        Args:
            family: The fossil's family.
            position: Its line in its shard, from 0.
        """
        if family in self.in_blocks:
            return f"{family}#{position // FAMILY_BLOCK}"
        return family

    def is_held_out(self, unit: str) -> bool:
        """Whether this family (or block) is measured on, never trained on."""
        return family_hash(self.seed, unit) < self.held_out_below

    def split_of(self, family: str, position: int = 0) -> str:
        """`held_out` or `train`, for the fossil on line `position` of its shard."""
        return HELD_OUT if self.is_held_out(self.unit_of(family, position)) else TRAIN

    def to_json(self) -> dict[str, Any]:
        """The JSON form."""
        return {
            "schema": SCHEMA,
            "shards": [asdict(shard) for shard in self.shards],
            "fossils": self.fossils,
            "merkle_root": self.merkle_root,
            "seed": self.seed,
            "held_out_below": self.held_out_below,
            "excluded": list(self.excluded),
            # Absent where there are none, so that plans keep the identity that they had.
            **({"in_blocks": list(self.in_blocks)} if self.in_blocks else {}),
            **({"mixture": asdict(self.mixture)} if self.mixture else {}),
        }

    @classmethod
    def from_json(cls, value: Any) -> Self:
        """Read the JSON form. Raises PlanInvalid with the key that is wrong."""
        if not isinstance(value, dict) or value.get("schema") != SCHEMA:
            raise PlanInvalid(f"not a plan of schema {SCHEMA}")
        shards = [
            summary_from_json(s) if isinstance(s, dict) else None
            for s in _of_type(value, "shards", list)
        ]
        if None in shards:
            raise PlanInvalid(f"plan: shard {shards.index(None)} is malformed")
        below = _of_type(value, "held_out_below", str)
        if len(below) != _HASH_DIGITS or set(below) - set("0123456789abcdef"):
            raise PlanInvalid("plan: 'held_out_below' must be 16 lower-case hexadecimal digits")
        if not is_sha256_hex(value.get("merkle_root")):
            raise PlanInvalid("plan: 'merkle_root' must be 64 lower-case hexadecimal digits")
        return cls(
            shards=tuple(shard for shard in shards if shard is not None),
            fossils=_of_type(value, "fossils", int),
            merkle_root=value["merkle_root"],
            seed=_of_type(value, "seed", int),
            held_out_below=below,
            excluded=tuple(map(str, _of_type(value, "excluded", list))),
            in_blocks=tuple(map(str, _of_type({"in_blocks": [], **value}, "in_blocks", list))),
            mixture=_mixture(value.get("mixture"), len(shards)),
        )


@dataclass(frozen=True, slots=True)
class PlanFossil:
    """One fossil of a plan, without its numbers."""

    cid: str
    verdict: str
    family: str
    split: str


class CommittedShard(Protocol):
    """A journal entry, as far as a plan needs it."""

    @property
    def summary(self) -> ShardSummary:
        """What identifies the shard."""


class PlannedShards(Protocol):
    """What a plan asks about the fossils of some shards."""

    def cids(self) -> Iterator[str]:
        """Every CID, ascending."""

    def families(self) -> Iterator[tuple[str, int]]:
        """Every family with its number of fossils."""

    def contains(self, cid: str) -> bool:
        """Whether this fossil is there."""

    def blocks_of(self, family: str) -> list[int]:
        """The numbers `line // 64` at which fossils of this family stand in their shards."""


class PlannedVault(PlannedShards, Protocol):
    """What a plan asks of a vault. `vault.journal.Vault` has it.

    Spelled out here because plans are also read on rented machines, where the vault itself, which
    can sign, must not be reachable.
    """

    def refresh(self) -> None:
        """Take notice of shards that another process committed."""

    def journal_size(self) -> int:
        """Changes whenever a shard is committed."""

    def entries(self) -> Iterator[CommittedShard]:
        """The shards, in the order of their commits."""

    def within(self, shards: Iterable[str]) -> PlannedShards:
        """The same questions about these shards alone."""

    def retracted(self) -> Collection[str]:
        """CIDs that were taken back."""


def make_plan(
    vault: PlannedVault,
    *,
    seed: int,
    held_out_fraction: float = HELD_OUT_FRACTION,
    parent: BatchPlan | None = None,
    excluded: Iterable[str] = (),
    fresh_share: float | None = None,
    num_shards: int | None = None,
) -> BatchPlan:
    """Plan over all that the vault holds, or over its first `num_shards` shards.

    A plan over the first shards is the same whatever was committed after them.

    With two families or more, at least one is held out and at least one is trained on. With a
    parent, the parent's seed is kept, and its threshold is kept or raised: a family that was held
    out once is never trained on later. Fossils that were retracted are left out.

    A vault of one family has no second to hold out. There, blocks of 64 neighbours are split
    instead (`in_blocks`), and that family stays so in every later plan.

    With a parent and a `fresh_share`, shards that the parent had not make up that share of each
    epoch of training, and its own the rest; where there are none of either, all are used alike.

    Raises:
        NothingToDo: The vault holds no fossils.
        PlanInvalid: It holds fewer shards than `num_shards`.
        NothingHeldOut: They are one family, and of one block of neighbours.
    """
    left_out = frozenset(excluded) | frozenset(vault.retracted())
    for _ in range(_TRIES):
        vault.refresh()
        size = vault.journal_size()
        shards = [entry.summary for entry in itertools.islice(vault.entries(), num_shards)]
        held: PlannedShards = vault
        if num_shards is not None:
            held = vault.within(shard.path for shard in shards)
        tree = TreeHasher()
        for cid in held.cids():
            if cid not in left_out:
                tree.add(cid.encode("ascii"))
        families = [name for name, _ in held.families()]
        if num_shards is not None or vault.journal_size() == size:
            break
    else:
        raise OperatorError(
            "the vault grows faster than it can be planned over",
            remedy="Try again when the ingest beside this has ended.",
        )
    if num_shards is not None and len(shards) < num_shards:
        raise PlanInvalid(f"the vault has {len(shards)} shards, not {num_shards}")
    if tree.size == 0:
        raise NothingToDo("the vault holds no fossils", remedy="Take some in: `scf ingest PATH`.")
    split_seed = seed if parent is None else parent.seed
    known = parent.in_blocks if parent is not None else ()
    units, in_blocks = split_units(families, held.blocks_of, known=known)
    if len(units) < 2:
        raise NothingHeldOut(tree.size)
    below = held_out_threshold(
        units,
        seed=split_seed,
        fraction=held_out_fraction,
        # A comparison needs two units; of blocks there are always more to be had.
        at_least=2 if in_blocks else 1,
    )
    if parent is not None:
        below = max(below, parent.held_out_below)
    return BatchPlan(
        shards=tuple(shards),
        fossils=tree.size,
        merkle_root=tree.root().hex(),
        seed=split_seed,
        held_out_below=below,
        excluded=tuple(sorted(cid for cid in left_out if held.contains(cid))),
        in_blocks=in_blocks,
        mixture=_fresh_and_replay(shards, parent, fresh_share),
    )


def _fresh_and_replay(
    shards: Sequence[PlanShard], parent: BatchPlan | None, fresh_share: float | None
) -> FreshAndReplay | None:
    if parent is None or fresh_share is None:
        return None
    if not 0 < fresh_share < 1:
        raise ValueError(f"a share of fresh fossils of {fresh_share} is not between 0 and 1")
    # The journal only grows, so the parent's shards are the first ones.
    known = {shard.sha256 for shard in parent.shards}
    replay = [shard.sha256 in known for shard in shards]
    count = sum(replay)
    if count in {0, len(shards)} or not all(replay[:count]):
        return None
    return FreshAndReplay(count, fresh_share)


def split_units(
    families: Iterable[str],
    blocks_of: Callable[[str], Sequence[int]],
    *,
    known: Collection[str] = (),
) -> tuple[list[str], tuple[str, ...]]:
    """What a split chooses among, and which families are split as blocks of neighbours.

    Families, as long as there are two; one alone is split into its blocks.

    Args:
        families: All of them.
        blocks_of: The numbers of a family's blocks.
        known: Families that a parent split into blocks, and that stay so.
    """
    names = list(families)
    in_blocks = {name for name in names if name in known} if len(names) != 1 else set(names)
    units = [name for name in names if name not in in_blocks]
    for name in in_blocks:
        units += [f"{name}#{number}" for number in blocks_of(name)]
    return units, tuple(sorted(in_blocks))


def can_be_split(held: PlannedShards) -> bool:
    """Whether a first plan over these shards has something to train on and to hold out."""
    families = [name for name, _ in held.families()]
    return len(split_units(families, held.blocks_of)[0]) >= 2


def read_plan(path: Path) -> BatchPlan:
    """A plan from its file. Raises InputError that names it."""
    try:
        return BatchPlan.from_json(durable.read_json(path))
    except PlanInvalid as error:
        raise PlanInvalid(f"{path}: {error}") from error


def plan_fossils(plan: BatchPlan, vault_root: Path) -> Iterator[PlanFossil]:
    """Every fossil of a plan in the stored order, read from `vault_root` (`fossil_vault`).

    Raises:
        ShardDamaged: A shard is missing or unreadable. Digests are not recomputed here.
    """
    left_out = frozenset(plan.excluded)
    for shard in plan.shards:
        path = vault_root / shard.path
        if not path.is_file():
            raise ShardDamaged(path, "the plan names it, but it is missing")
        for fossil in read_shard(path, verify_cid=False):
            if fossil.cid not in left_out:
                unit = plan.unit_of(fossil.family, fossil.position)
                split = HELD_OUT if plan.is_held_out(unit) else TRAIN
                yield PlanFossil(fossil.cid, fossil.verdict, unit, split)


def family_hash(seed: int, family: str) -> str:
    """Where a family falls in the split: the first 16 digits of SHA-256 of `seed:family`."""
    return hashlib.sha256(f"{seed}:{family}".encode()).hexdigest()[:_HASH_DIGITS]


def held_out_threshold(
    families: Iterable[str], *, seed: int, fraction: float, at_least: int = 1
) -> str:
    """The threshold that holds out about `fraction` of the families, and never all or none.

    Args:
        families: What the split chooses among.
        seed: Of the split.
        fraction: How much is wanted, of 1.
        at_least: So many are held out where there are twice as many; else one.

    Raises:
        ValueError: `fraction` is not within 0 and 1.
    """
    if not 0.0 <= fraction <= 1.0:
        raise ValueError(f"held-out fraction {fraction} is not within 0 and 1")
    below = min(int(fraction * (_HASH_MAX + 1)), _HASH_MAX)
    hashes = {int(family_hash(seed, family), 16) for family in families}
    if len(hashes) >= 2:
        wanted = at_least if len(hashes) >= 2 * at_least else 1
        below = max(below, sorted(hashes)[wanted - 1] + 1)
        below = min(below, max(hashes))
    return f"{below:0{_HASH_DIGITS}x}"


def _mixture(value: Any, num_shards: int) -> FreshAndReplay | None:
    if value is None:
        return None
    if not isinstance(value, dict) or set(value) != {"replay_shards", "fresh_share"}:
        raise PlanInvalid("plan: 'mixture' must have 'replay_shards' and 'fresh_share'")
    replay, share = _of_type(value, "replay_shards", int), _of_type(value, "fresh_share", float)
    if not (0 < replay < num_shards and 0 < share < 1):
        raise PlanInvalid(
            f"plan: 'mixture' of {replay} of {num_shards} shards and a share of {share}"
        )
    return FreshAndReplay(replay, share)


def _of_type(value: dict[str, Any], key: str, kind: type) -> Any:
    if type(value.get(key)) is not kind:
        raise PlanInvalid(f"plan: {key!r} must be a {kind.__name__}")
    return value[key]
