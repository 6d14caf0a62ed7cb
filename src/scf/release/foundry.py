"""What a release is made of and with: the drive's rooms, keys and settings, opened together."""

import contextlib
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from scf.audit.log import AuditLog
from scf.core.clock import Clock, SystemClock
from scf.release.costs import closed_attempts
from scf.runs.record import Attempt
from scf.signing.keys import load_signer, public_keys, read_rotations
from scf.signing.signer import Signer
from scf.signing.verify import PublicKey
from scf.storage.partitions import DEFAULT_BUDGETS_BYTES, Drive, Folder
from scf.vault.journal import Vault
from scf.zoo.registry import Zoo

# The partition's budget holds a year of releases (DESIGN section 2): 3.8 GB a week.
WEEKS_KEPT = 52
SIZE_MAX_BYTES = DEFAULT_BUDGETS_BYTES["release_history"] // WEEKS_KEPT
# On a small drive a release may take more than a week's share, up to this.
SIZE_ALWAYS_BYTES = 100_000_000


@dataclass(frozen=True)
class Foundry:
    """What a release is made of and with.

    Attributes:
        releases: `release_history` on the drive.
        zoo: Its champion is released.
        vault: Holds the shards that the champion was trained on.
        audit: Where the release is logged.
        signer: The foundry's key.
        keys: Public keys by role.
        clock: Says which week it is.
        code_version: `scf.__version__`.
        settings: The foundry's settings (JSON), packed as config/foundry.json; no secrets or paths.
        size_max_bytes: What a release may take; more is BudgetExceeded.
        rotations: Statements by which keys replaced each other, packed as keys/rotations.json.
        attempts: Jobs that ended, for what the week took.
    """

    releases: Folder
    zoo: Zoo
    vault: Vault
    audit: AuditLog
    signer: Signer
    keys: Mapping[str, PublicKey]
    code_version: str
    clock: Clock = SystemClock()  # noqa: RUF009 - stateless
    settings: Mapping[str, Any] | None = None
    size_max_bytes: int = SIZE_MAX_BYTES
    rotations: Sequence[Any] = ()
    attempts: Sequence[Attempt] = ()


@contextlib.contextmanager
def open_foundry(
    drive: Drive,
    home: Path,
    *,
    code_version: str,
    clock: Clock | None = None,
    settings: Mapping[str, Any] | None = None,
    size_max_bytes: int | None = None,
) -> Iterator[Foundry]:
    """Everything that a release needs, opened on one drive and home.

    Raises:
        KeyMissing: The home has no keys, or one cannot be trusted to be private.
        AuditLogRolledBack, AuditLogDamaged: The log is not what was signed.
    """
    clock = clock or SystemClock()
    signer = load_signer(home / "keys", "foundry")
    audit = AuditLog.open(drive.folder("zk_proofs", "audit"), home, signer, clock=clock)
    with Vault.open(drive, home) as vault:
        yield Foundry(
            releases=drive.folder("release_history"),
            zoo=Zoo.open(drive.folder("model_zoo"), clock=clock),
            vault=vault,
            audit=audit,
            signer=signer,
            keys=public_keys(home / "keys"),
            code_version=code_version,
            clock=clock,
            settings=settings,
            size_max_bytes=size_max_bytes or size_cap_bytes(drive),
            rotations=read_rotations(home / "keys"),
            attempts=closed_attempts(home),
        )


def size_cap_bytes(drive: Drive) -> int:
    """What one release may take on this drive: a 52nd of the partition's budget, or 100 MB."""
    budget = drive.budgets_bytes["release_history"]
    return min(budget, max(budget // WEEKS_KEPT, SIZE_ALWAYS_BYTES))
