"""Money: no job is started at a door that costs once the month's allowance is used up.

What may be spent is noted before it is spent (`approve`, called by a door that rents, with the most
that the job can cost), and replaced by what it did cost once the job's receipt is in. So the sum
never passes the limit, whenever the conductor crashes.
"""

from scf.core.clock import Clock
from scf.core.errors import BudgetExceeded
from scf.daemon.commands import limit_of
from scf.runs.store import RunStore

# {job: most that it can cost}, of jobs whose receipts are not in.
RESERVED = "money.reserved"


class Allowance:
    """The month's money of one home."""

    def __init__(self, store: RunStore, clock: Clock) -> None:
        self._store = store
        self._clock = clock

    def spent_usd(self) -> float:
        """What receipts of this month (UTC) say, and what open jobs may still cost."""
        month = self._clock.now().strftime("%Y-%m")
        return self._store.cost_usd_since(f"{month}-01") + sum(self._reserved().values())

    def approve(self, job_id: str, max_usd: float) -> None:
        """Reserve `max_usd` for a job; asking twice for one job reserves once.

        Raises:
            BudgetExceeded: It would pass the limit; nothing is reserved.
        """
        limit = limit_of(self._store, "usd_month")
        others = {job: usd for job, usd in self._reserved().items() if job != job_id}
        spent = self.spent_usd() - self._reserved().get(job_id, 0.0)
        if spent + max_usd > limit:
            raise BudgetExceeded(
                f"{job_id} may cost {max_usd:.2f} USD; {spent:.2f} of {limit:.2f} USD of this "
                "month are spent or promised",
                remedy="Raise the limit: `scf budget set usd_month AMOUNT`.",
            )
        self._store.set(RESERVED, {**others, job_id: max_usd})

    def _reserved(self) -> dict[str, float]:
        """Promises to jobs that have no receipt yet."""
        kept: dict[str, float] = self._store.get(RESERVED, {})
        open_jobs = {attempt.attempt_id for attempt in self._store.open_attempts()}
        return {job: usd for job, usd in kept.items() if job in open_jobs}
