"""The error tree, divided by who must act.

Every error that a person may see is a `ScfError`. It carries an exit code (DESIGN section 6) and,
where something can be done, a `remedy`: one sentence that says what.
"""


class ScfError(Exception):
    """Base of all errors that scf raises on purpose.

    Args:
        message: What is wrong, with the file and the value.
        remedy: What the reader can do about it, as one imperative sentence.
    """

    exit_code = 1

    def __init__(self, message: str, *, remedy: str | None = None) -> None:
        super().__init__(message)
        self.remedy = remedy


class InputError(ScfError):
    """Input from outside is not what it claims to be: quarantine it, go on with the rest."""


class UsageError(ScfError):
    """A command, a setting or an argument cannot be understood: the caller corrects it."""

    exit_code = 2


class NothingToDo(ScfError):
    """What was asked for is already so."""

    exit_code = 3


class EmergencyLocked(ScfError):
    """The emergency lock is set (or cannot be read): nothing may start, spend or publish."""

    exit_code = 4


class VerificationFailed(ScfError):
    """A claim does not hold when measured: a digest, a signature, a metric."""

    exit_code = 5


class BudgetExceeded(ScfError):
    """Disk, money or time would pass its limit: the operator raises the limit or frees room."""

    exit_code = 6


class DriveError(ScfError):
    """The drive is missing, changed or failing: stop, write nothing, wait for the drive."""

    exit_code = 7


class DoorError(ScfError):
    """A way to run jobs failed: retry, or take another door."""

    exit_code = 8


class DoorUnavailable(DoorError):
    """Nothing was started. Trying later is safe."""


class SubmissionUnknown(DoorError):
    """The job may have started. Submit again with the same spec: the door finds it."""


class OperatorError(ScfError):
    """The set-up is not as it must be (not initialised, no key, running): tell the operator."""


class MissingTool(OperatorError):
    """A library or program is absent. We never pretend to have it."""


class TrainingError(ScfError):
    """Training stopped with a reason that has a name; the last good checkpoint stays."""
