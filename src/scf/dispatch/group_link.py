"""One job on several machines: a link to all of them that looks like a link to the first.

The first machine is node 0: it is looked at, and what comes back comes from it. The others get the
same bundle and the same code, and are started, ended and tidied with it. Where to meet is fixed
before anything starts (a static rendezvous): each worker is told its rank, how many there are, and
the address of node 0 (`nodes.py`).
"""

import zlib
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from scf.dispatch.job import ExitReason
from scf.dispatch.nodes import environment_of
from scf.dispatch.sending import exit_of
from scf.dispatch.transfer import SshLink

# Kinds that are done by all nodes together; any other is done by the first alone.
TOGETHER = frozenset({"train_ebdm", "control"})
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

    def call(self, verb: str, request: dict[str, Any], *, limit_s: float = 60.0) -> dict[str, Any]:
        """See `SshLink.call`; what all of them say, as one answer."""
        if verb == "start":
            return self._start(request, limit_s)
        if verb == "look":
            return self._look(request, limit_s)
        answers = [link.call(verb, request, limit_s=limit_s) for link in self._links]
        return _as_one(answers)

    def push(self, staged: Path, *, size_bytes: int) -> None:
        """See `SshLink.push`."""
        for link in self._links:
            link.push(staged, size_bytes=size_bytes)

    def pull(self, job_id: str, names: Iterable[str], into: Path, *, size_bytes: int) -> None:
        """See `SshLink.pull`: from the first."""
        self._links[0].pull(job_id, names, into, size_bytes=size_bytes)

    def _start(self, request: dict[str, Any], limit_s: float) -> dict[str, Any]:
        is_together = request["spec"]["kind"] in TOGETHER
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
                own["spec"] = _with_root(request["spec"], root, there)
            answer = link.call("start", own, limit_s=limit_s)
        return answer

    def _look(self, request: dict[str, Any], limit_s: float) -> dict[str, Any]:
        answer = self._links[0].call("look", request, limit_s=limit_s)
        if answer.get("phase") != "running":
            return answer
        for link in self._links[1:]:
            other = link.call("look", {**request, "files_max": 1}, limit_s=limit_s)
            if _has_failed(other):
                # The others would wait for it until their own limit: end them; a new try goes on
                # from the last checkpoint.
                for each in self._links:
                    each.call("cancel", {"job_id": request["job_id"], "at_once": False})
        return answer


def _has_failed(answer: Mapping[str, Any]) -> bool:
    phase = answer.get("phase")
    if phase == "ended":
        return exit_of(answer.get("exit")).reason is not ExitReason.COMPLETED
    return phase == "lost"


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
