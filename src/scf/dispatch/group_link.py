"""One job on several machines: a link to all of them that looks like a link to the first.

The first machine is node 0: it is looked at, and what comes back comes from it. The others get the
same bundle and the same code, and are started, ended and tidied with it. Where to meet is fixed
before anything starts (a static rendezvous): each worker is told its rank, how many there are, and
the address of node 0 (`nodes.py`).
"""

import base64
import contextlib
import dataclasses
import shutil
import tempfile
import zlib
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from scf.core.canonical import canonical_json
from scf.core.errors import DoorUnavailable
from scf.dispatch.job import ExitReason, JobExit
from scf.dispatch.nodes import environment_of
from scf.dispatch.returned import OutputsRefused
from scf.dispatch.sending import exit_of
from scf.dispatch.transfer import SshLink

# Kinds that are done by all nodes together, as is a job that asks for several; any other is done by
# the first alone.
TOGETHER = frozenset({"train_ebdm", "control"})
# How a node ends that was told to, or that lost the others: somebody else knows the reason.
_NOT_THE_REASON = frozenset({ExitReason.LOST, ExitReason.PREEMPTED, ExitReason.CANCELLED})
_PORT_FIRST, _PORTS = 29_400, 1000


class GroupLink(SshLink):
    """Requests and transfers to several boxes.

    Args:
        links: One for each node, in order of rank.
        address: Of node 0, as the others reach it.
    """

    def __init__(self, links: Sequence[SshLink], address: str) -> None:
        first = links[0]
        super().__init__(first.box, first.folder, first.sender, first.held)
        self._links = tuple(links)
        self._address = address
        self._missing: list[set[str]] = [set() for _ in links]

    def call(self, verb: str, request: dict[str, Any], *, limit_s: float = 60.0) -> dict[str, Any]:
        """See `SshLink.call`; what all of them say, as one answer."""
        if verb == "start":
            return self._start(request, limit_s)
        if verb == "look":
            return self._look(request, limit_s)
        if verb == "cancel":
            return self._cancel(request, limit_s)
        answers = [link.call(verb, request, limit_s=limit_s) for link in self._links]
        if verb == "prepare":
            self._missing = [set(answer.get("missing") or []) for answer in answers]
        return _as_one(answers)

    def push(self, staged: Path, *, size_bytes: int) -> None:
        """See `SshLink.push`: to each what it said it lacks, so that nobody gets a file twice."""
        for link, missing in zip(self._links, self._missing, strict=True):
            names = sorted(path.name for path in staged.iterdir() if path.name in missing)
            if not names:
                continue
            part = Path(tempfile.mkdtemp(prefix=f".{staged.name}-", dir=staged.parent))
            try:
                for name in names:
                    (part / name).symlink_to((staged / name).resolve())
                link.push(part, size_bytes=size_bytes)
            finally:
                shutil.rmtree(part, ignore_errors=True)

    def pull(self, job_id: str, names: Iterable[str], into: Path, *, size_bytes: int) -> None:
        """See `SshLink.pull`: from the first."""
        self._links[0].pull(job_id, names, into, size_bytes=size_bytes)

    def _start(self, request: dict[str, Any], limit_s: float) -> dict[str, Any]:
        spec = request["spec"]
        is_together = spec["kind"] in TOGETHER or spec.get("nodes", 1) > 1
        links = self._links if is_together else self._links[:1]
        port = _PORT_FIRST + zlib.crc32(str(request["job_id"]).encode()) % _PORTS
        root = _root_of(request)
        answer: dict[str, Any] = {}
        # The first comes last: where it says that it has started, all have.
        for rank, link in reversed(list(enumerate(links))):
            told = environment_of(rank, len(links), self._address, port)
            own = {**request, "environment": {**request["environment"], **told}}
            if rank and root is not None:
                there = str(link.call("prepare", {"wanted": []})["root"])
                own["spec"] = _with_root(spec, root, there)
            answer = link.call("start", own, limit_s=limit_s)
        return answer

    def _look(self, request: dict[str, Any], limit_s: float) -> dict[str, Any]:
        answer = self._links[0].call("look", request, limit_s=limit_s)
        if answer.get("phase") not in {"running", "ended"}:
            return answer
        others: list[Mapping[str, Any]] = []
        for link in self._links[1:]:
            # One that cannot be reached keeps nobody from what the first says; whether it is lost
            # is said by the first, which misses it, or by whoever rents it.
            other: Mapping[str, Any] = {"phase": "silent"}
            with contextlib.suppress(DoorUnavailable):
                other = link.call("look", {**request, "files_max": 1}, limit_s=limit_s)
            others.append(other)
        if answer["phase"] == "ended":
            return {**answer, "exit": _as_one_exit(answer.get("exit"), others)}
        if _first_failure(others) is not None:
            # The others would wait for it until their own limit: end them; a new try goes on from
            # the last checkpoint.
            self._cancel({"job_id": request["job_id"], "at_once": False}, limit_s)
        return answer

    def _cancel(self, request: dict[str, Any], limit_s: float) -> dict[str, Any]:
        """Every node that can be reached; the first must be."""
        for link in self._links[1:]:
            with contextlib.suppress(DoorUnavailable):
                link.call("cancel", request, limit_s=limit_s)
        return self._links[0].call("cancel", request, limit_s=limit_s)


def _first_failure(others: Sequence[Mapping[str, Any]]) -> JobExit | None:
    """Of the others' failures the one that is not a consequence of another; None without any."""
    failures = [_failure_of(number, answer) for number, answer in enumerate(others, 1)]
    failed = [failure for failure in failures if failure is not None]
    return min(failed, key=lambda failure: failure.reason in _NOT_THE_REASON, default=None)


def _failure_of(number: int, answer: Mapping[str, Any]) -> JobExit | None:
    """How a node failed; None while it runs, or where it has done its part."""
    if answer.get("phase") == "lost":
        return JobExit(ExitReason.LOST, f"node {number}: its processes are gone")
    if answer.get("phase") != "ended":
        return None
    try:
        ended = exit_of(answer.get("exit"))
    except OutputsRefused as error:
        return JobExit(ExitReason.WORKER_ERROR, f"node {number}: {error}"[:1000])
    if ended.reason is ExitReason.COMPLETED:
        return None
    return dataclasses.replace(ended, detail=f"node {number}: {ended.detail}"[:1000])


def _as_one_exit(encoded: Any, others: Sequence[Mapping[str, Any]]) -> Any:
    """The first node's exit record, with what all of them took, and who failed first.

    The first may have ended only because another did: the reason is the other's then. What it
    leaves under `outputs/` is its own. A node that has not ended yet is named as not metered.
    """
    try:
        first = exit_of(encoded)
    except OutputsRefused:
        return encoded  # whoever follows the job refuses it, with the reason
    usage, not_metered = dict(first.usage), list(first.not_metered)
    for number, answer in enumerate(others, 1):
        if answer.get("phase") in {"absent", "cancelled"}:
            continue  # the first works alone
        try:
            ended = exit_of(answer.get("exit"))
        except OutputsRefused:
            not_metered.append(f"node {number} of the job")
            continue
        for name, amount in ended.usage.items():
            # Sizes are of the largest; seconds and joules add up.
            both = (usage.get(name, 0.0), amount)
            usage[name] = max(both) if name.endswith("_bytes") else sum(both)
        not_metered += [f"node {number}: {what}" for what in ended.not_metered]
    one = dataclasses.replace(first, usage=usage, not_metered=tuple(not_metered))
    failed = _first_failure(others)
    if failed and first.reason in _NOT_THE_REASON and failed.reason not in _NOT_THE_REASON:
        one = dataclasses.replace(one, reason=failed.reason, detail=failed.detail)
    return base64.b64encode(canonical_json(one.to_json())).decode()


def _as_one(answers: Sequence[dict[str, Any]]) -> dict[str, Any]:
    """The first's answer, with what must hold of all of them."""
    one = dict(answers[0])
    for key in ("missing", "refused"):
        if key in one:
            one[key] = sorted({name for answer in answers for name in answer.get(key) or []})
    if "free_bytes" in one:
        one["free_bytes"] = min(answer["free_bytes"] for answer in answers)
    for key in ("rsync", "forgotten"):
        if key in one:
            one[key] = all(answer.get(key) for answer in answers)
    return one


def _root_of(request: Mapping[str, Any]) -> str | None:
    """The folder on the first machine, as the spec's vault names it."""
    vault = request["spec"].get("vault")
    tail = f"/jobs/{request['job_id']}/vault"
    return vault.removesuffix(tail) if isinstance(vault, str) and vault.endswith(tail) else None


def _with_root(spec: Mapping[str, Any], root: str, there: str) -> dict[str, Any]:
    return {**spec, "vault": there + str(spec["vault"]).removeprefix(root)}
