"""Who is asked before money is spent, and told what it came to. A door that rents is handed one."""

from typing import Protocol


class Purse(Protocol):
    """Money, as a door sees it. Every call may come from a thread of the door, and twice."""

    def approve(self, job_id: str, max_usd: float, *, usd_per_h: float) -> None:
        """Promise `max_usd` to a job, in place of what was promised to it before.

        Args:
            job_id: The job.
            max_usd: What all its machines together can cost at most, those given up included.
            usd_per_h: What it costs by the hour while it runs.

        Raises:
            BudgetExceeded: A cap would be passed. Nothing is promised; nothing may be rented.
        """

    def settle(self, job_id: str, estimated_usd: float) -> None:
        """Its machines are gone: this is what they cost by price and time."""

    def bill(self, job_id: str, billed_usd: float) -> None:
        """The provider's own figure, which from now on counts in place of the estimate."""


class OpenPurse:
    """No limits but those of the door itself."""

    def approve(self, job_id: str, max_usd: float, *, usd_per_h: float) -> None:
        """Agree."""

    def settle(self, job_id: str, estimated_usd: float) -> None:
        """Forget it."""

    def bill(self, job_id: str, billed_usd: float) -> None:
        """Forget it."""
