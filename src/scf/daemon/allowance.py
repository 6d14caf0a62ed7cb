"""Money: nothing is rented once a cap would be passed, by the hour, run, day or month.

What may be spent is on the medium before it is spent (`approve`, called by a door with the most
that a job can cost until its leases end), replaced by the estimate once its machines are gone, and
by the provider's bill once there is one. So the sum never passes a cap, whoever crashes when: what
is rented has an end of its own, and its price until then is counted.

One small file a job, `home/money/JOB.json` (`scf.money/1`), under one lock: the daemon's doors and
`scf pods smoke` draw on the same purse.
"""

import contextlib
import re
from collections.abc import Mapping
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

from scf.control.budget import LIMITS
from scf.core.clock import Clock, utc_text
from scf.core.errors import BudgetExceeded, InputError
from scf.daemon.commands import limit_of, limits_asked_for
from scf.runs.store import DATABASE_NAME, RunStore
from scf.storage import durable
from scf.storage.instance_lock import instance_lock

SCHEMA = "scf.money/1"
LOCK_WAIT_S = 10.0
CAPS = ("usd_hour", "usd_run", "usd_day", "usd_month")

_RUN = re.compile(r"(run-[0-9a-f]{12})-")


@dataclass(frozen=True, kw_only=True)
class Promise:
    """Money of one job.

    Attributes:
        job_id: The job.
        run_id: Its run; a job of no run is its own.
        since: When it was first promised, RFC 3339; says which day and month it counts to.
        max_usd: What it can cost at most.
        usd_per_h: What it costs by the hour, while it is open.
        estimated_usd: By price and time; None while its machines may live.
        billed_usd: By the provider; None while there is no bill.
    """

    job_id: str
    run_id: str
    since: str
    max_usd: float
    usd_per_h: float
    estimated_usd: float | None = None
    billed_usd: float | None = None

    @property
    def is_open(self) -> bool:
        return self.estimated_usd is None and self.billed_usd is None

    @property
    def counts_usd(self) -> float:
        """What counts against the caps: the bill, else the estimate, else the most."""
        if self.billed_usd is not None:
            return self.billed_usd
        return self.max_usd if self.estimated_usd is None else self.estimated_usd


class Allowance:
    """The money of one home (`dispatch.purse.Purse`). Safe in threads and beside other processes.

    Args:
        home: The home.
        clock: Time.
    """

    def __init__(self, home: Path, clock: Clock) -> None:
        self._home = home
        self._folder = home / "money"
        self._clock = clock

    def approve(self, job_id: str, max_usd: float, *, usd_per_h: float) -> None:
        with self._locked():
            promise = self._promise_of(job_id, max_usd, usd_per_h)
            self._require_room(promise)
            self._keep(promise)

    def require_room(self, job_id: str, max_usd: float, *, usd_per_h: float) -> None:
        """Raise what `approve` would, and promise nothing."""
        with self._locked():
            self._require_room(self._promise_of(job_id, max_usd, usd_per_h))

    def settle(self, job_id: str, estimated_usd: float) -> None:
        with self._locked():
            if (promise := self.of(job_id)) is not None:
                self._keep(replace(promise, estimated_usd=estimated_usd, usd_per_h=0.0))

    def bill(self, job_id: str, billed_usd: float) -> None:
        with self._locked():
            if (promise := self.of(job_id)) is not None:
                self._keep(replace(promise, billed_usd=billed_usd))

    def of(self, job_id: str) -> Promise | None:
        """What is known of a job's money; None when none was promised."""
        path = self._folder / f"{job_id}.json"
        return _promise(durable.read_json(path)) if path.exists() else None

    def all(self) -> list[Promise]:
        """Every promise, by job."""
        return [_promise(durable.read_json(path)) for path in sorted(self._folder.glob("*.json"))]

    def spent_usd(self, cap: str = "usd_month", *, run_id: str | None = None) -> float:
        """What counts against a cap now: bills, estimates, and what open jobs may still cost."""
        return _counted(self.all(), cap, run_id=run_id, now=utc_text(self._clock.now()))

    def limits(self) -> dict[str, float]:
        """The caps in force, by name; one that was just set counts, daemon or not."""
        if not (self._home / DATABASE_NAME).exists():
            kept = {name: float(LIMITS[name].default or 0.0) for name in CAPS}
            asked = limits_asked_for(self._home, None)
        else:
            with contextlib.closing(RunStore.open(self._home, self._clock)) as store:
                kept = {name: limit_of(store, name) for name in CAPS}
                asked = limits_asked_for(self._home, store)
        return {name: asked.get(name, limit) for name, limit in kept.items()}

    def _promise_of(self, job_id: str, max_usd: float, usd_per_h: float) -> Promise:
        before = self.of(job_id)
        return Promise(
            job_id=job_id,
            run_id=_run_of(job_id),
            since=before.since if before else utc_text(self._clock.now()),
            max_usd=max_usd,
            usd_per_h=usd_per_h,
        )

    def _require_room(self, promise: Promise) -> None:
        others = [row for row in self.all() if row.job_id != promise.job_id]
        now = utc_text(self._clock.now())
        for cap, limit in self.limits().items():
            wants = promise.usd_per_h if cap == "usd_hour" else promise.max_usd
            spent = _counted(others, cap, run_id=promise.run_id, now=now)
            if spent + wants > limit + 1e-9:
                raise BudgetExceeded(
                    f"{promise.job_id} may cost {wants:.2f} {_UNITS[cap]}; {spent:.2f} of "
                    f"{limit:.2f} {_UNITS[cap]} are spent or promised",
                    remedy=f"Raise the limit: `scf budget set {cap} AMOUNT`.",
                )

    def _keep(self, promise: Promise) -> None:
        path = self._folder / f"{promise.job_id}.json"
        durable.write_json(path, {"schema": SCHEMA, **asdict(promise)}, mode=0o600)

    @contextlib.contextmanager
    def _locked(self) -> Any:
        self._folder.mkdir(parents=True, exist_ok=True, mode=0o700)
        path = self._home / "money.lock"
        with instance_lock(path, holder="scf allowance", wait_s=LOCK_WAIT_S):
            yield


_UNITS: Mapping[str, str] = {
    "usd_hour": "USD/h",
    "usd_run": "USD of its run",
    "usd_day": "USD of this day",
    "usd_month": "USD of this month",
}


def _counted(rows: list[Promise], cap: str, *, run_id: str | None, now: str) -> float:
    """An open job counts to every day and month that it reaches into."""
    if cap == "usd_hour":
        return sum(row.usd_per_h for row in rows if row.is_open)
    if cap == "usd_run":
        return sum(row.counts_usd for row in rows if row.run_id == run_id)
    length = len("2026-11-23") if cap == "usd_day" else len("2026-11")
    return sum(row.counts_usd for row in rows if row.is_open or row.since[:length] == now[:length])


def _run_of(job_id: str) -> str:
    found = _RUN.match(job_id)
    return found.group(1) if found else job_id


def _promise(value: Any) -> Promise:
    try:
        if value["schema"] != SCHEMA:
            raise ValueError(f"schema {value['schema']!r}")
        return Promise(**{key: item for key, item in value.items() if key != "schema"})
    except (AttributeError, KeyError, TypeError, ValueError) as error:
        raise InputError(f"money record: {type(error).__name__}: {error}") from error
