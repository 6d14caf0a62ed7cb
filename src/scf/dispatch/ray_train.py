"""Train on several nodes of a Ray cluster: what the worker starts in place of torchrun.

    python -m scf.dispatch.ray_train MODULE ARGUMENT...

Runs `MODULE.main(ARGUMENTS)` in the processes of Ray Train's TorchTrainer, on as many nodes as
`SCF_RAY_GROUP` says; the first of them is this one, where the bundle is that the outputs go to.
Ray ends the process that speaks with it, at times with exit code 0, or leaves it waiting for ever.
So a child speaks with Ray (`ray_driver_train`), and this process says what became of it: completed
only if the child says so; else the reason, in the job's notes.

SIGTERM is passed on by a file, which the first process of the training looks at.
"""

import json
import signal
import socket
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from types import FrameType

from scf.core.errors import ScfError
from scf.dispatch.bundle import PROGRESS_NAME, Bundle
from scf.dispatch.ray_driver import receive_frame

STOP_NAME = ".stop"
# The child says every 5 s that it is there; joining a busy cluster took 17 s.
SILENCE_S = 120.0
_END_WAIT_S = 5.0


def main(arguments: Sequence[str], *, silence_s: float = SILENCE_S) -> int:
    """Run, and see to the end of it; returns the exit code."""
    bundle = Path.cwd()
    (bundle / STOP_NAME).unlink(missing_ok=True)

    def on_sigterm(number: int, frame: FrameType | None) -> None:
        del number, frame
        (bundle / STOP_NAME).touch()

    signal.signal(signal.SIGTERM, on_sigterm)
    channel, theirs = socket.socketpair()
    with channel:
        with theirs:
            # In our process group: the worker ends all of it when the job is over.
            child = subprocess.Popen(
                [sys.executable, "-m", "scf.dispatch.ray_driver_train", str(theirs.fileno()),
                 *arguments],
                stdin=subprocess.DEVNULL, pass_fds=[theirs.fileno()],
            )  # fmt: skip
        channel.settimeout(silence_s)
        fault = _outcome(channel, child)
    child.kill()
    child.wait()
    (bundle / STOP_NAME).unlink(missing_ok=True)
    if fault is None:
        return 0
    _note(bundle, *fault)
    return ScfError.exit_code


def _outcome(channel: socket.socket, child: "subprocess.Popen[bytes]") -> tuple[str, str] | None:
    """What has gone wrong, by its name and in words; None when all is well."""
    try:
        while (frame := receive_frame(channel))[0] == b".":
            pass
    except TimeoutError:
        limit_s = channel.gettimeout()
        return "PeerLost", f"Ray has said nothing for {limit_s:g} s; its head may be gone"
    except (EOFError, OSError):
        try:
            code = child.wait(_END_WAIT_S)
        except subprocess.TimeoutExpired:
            return "PeerLost", "Ray has left without a word; its node here may have died"
        return "PeerLost", f"Ray has ended its driver (exit code {code}); its node may have died"
    kind, body = frame
    if kind == b"+":
        return None
    told = json.loads(body)
    return str(told["error"]), str(told["message"])


def _note(bundle: Path, error: str, message: str) -> None:
    """Say why, where the training has not said so itself."""
    sys.stderr.write(f"ray_train: {message}\n")
    if Bundle(bundle).last_progress().get("event") == "error":
        return
    note = {"event": "error", "error": error, "kind": "error", "message": message[:1000]}
    with (bundle / PROGRESS_NAME).open("a", encoding="utf-8") as file:
        file.write(json.dumps(note, sort_keys=True) + "\n")


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
