"""What can go wrong with the provider, divided by what to do next."""

from scf.core.errors import DoorError, DoorUnavailable, OperatorError, SubmissionUnknown


class KeyRefused(OperatorError):
    """RunPod does not accept the API key, or the key may not do this."""


class NotPlaced(DoorUnavailable):
    """No pod was made for this candidate: no capacity, or a rule of the provider. Try the next.

    The provider has no machine-readable difference between the two; when every candidate fails like
    this, the detail speaks of the request.
    """


class BalanceTooLow(DoorUnavailable):
    """The account has no money for this; no candidate will succeed."""


class RequestRefused(DoorError):
    """The request itself is wrong. The same request will never succeed."""


class RateLimited(DoorUnavailable):
    """The provider asks us to wait.

    Attributes:
        retry_after_s: For how long.
    """

    def __init__(self, message: str, retry_after_s: float) -> None:
        super().__init__(message, remedy=f"Try again in {retry_after_s:g} s.")
        self.retry_after_s = retry_after_s


class ProviderFault(DoorUnavailable):
    """The provider failed, could not be reached, or answered with something that is no answer."""


class CreateUnknown(SubmissionUnknown):
    """A pod may or may not have been made: list by name before anything else."""
