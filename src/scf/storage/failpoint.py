"""Named places where a test can make the process die or a write fail.

`SCF_FAIL=name:kill` kills the process at the failpoint (as a power cut would), `name:error` raises
an I/O error there, `name:enospc` a full disk; `name:kill:3` acts on the third passage. A name that
ends in `*` stands for all that begin so; their passages are counted together. Every name is
declared in `NAMES`, and the crash tests enumerate it: a new write without one is noticed.
In production the cost is one dictionary look-up.
"""

import errno
import os
import signal

NAMES: dict[str, str] = {
    "durable.before_write": "nothing is on disk yet",
    "durable.before_rename": "the temporary file is complete, the final name absent",
    "durable.after_rename": "the final name is there, its folder not yet flushed",
    "durable.append.before": "the line is not yet in the file",
    "durable.append.after": "the line is in the file",
    "durable.folder.before_rename": "the staged folder is complete, the final name absent",
    "durable.folder.after_rename": "the folder has its final name",
    "audit.staged": "audit tiles are written, the tree head is not",
    "audit.committed": "the tree head is committed, full tiles may be unpublished",
    "vault.shard_written": "the shard is durable, its manifest is not",
    "vault.manifest_written": "shard and manifest are durable, the journal line is not",
    "vault.journalled": "the journal names the shard, the index does not",
    "keys.rotation_written": "the rotation is stated, the old key still signs",
    "runs.before_commit": "the transition is not recorded",
    "runs.after_commit": "the transition is recorded, its effect may be repeated",
    "pipeline.effect_done": "a stage's effect is done, its transition not recorded",
    "zoo.generation_written": "the generation's folder exists, the pointer does not name it",
    "release.packed": "the release is staged, not under its name",
}

_passages: dict[str, int] = {}


def failpoint(name: str) -> None:
    """Do what `SCF_FAIL` says about `name`; usually nothing."""
    plan = os.environ.get("SCF_FAIL")
    if plan is None:
        return
    assert name in NAMES, f"undeclared failpoint {name}"
    parts = plan.split(":")
    wanted = parts[0]
    if wanted != name and not (wanted.endswith("*") and name.startswith(wanted[:-1])):
        return
    _passages[wanted] = _passages.get(wanted, 0) + 1
    if len(parts) > 2 and _passages[wanted] != int(parts[2]):
        return
    if parts[1] == "kill":
        os.kill(os.getpid(), signal.SIGKILL)
    number = errno.ENOSPC if parts[1] == "enospc" else errno.EIO
    raise OSError(number, os.strerror(number), name)
