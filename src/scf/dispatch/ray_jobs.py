"""The job server of a Ray cluster, over HTTP: submit, look, stop, and the code that a job needs.

    GET  /api/version                        who is there
    GET  /api/packages/gcs/NAME.zip          is this package there
    PUT  /api/packages/gcs/NAME.zip          here it is
    POST /api/jobs/                          start {submission_id, entrypoint, ...}; an id once
    GET  /api/jobs/ID, /api/jobs/ID/logs     how it is, what it said
    POST /api/jobs/ID/stop

Ray's own client is not used: it needs ray on this machine (715 MB) to send five requests. Every
request carries the cluster's token (`RAY_AUTH_MODE=token`, Ray 2.52 and newer); a cluster that
answers without one is not used, since whoever reaches it can run programs on it.
"""

import contextlib
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import httpx

from scf.core.canonical import parse_json
from scf.core.errors import DoorUnavailable, InputError
from scf.dispatch.ray_access import GUIDE, RaySettings, RayToken
from scf.dispatch.transfer import BoxFault, BoxRefusedUs, BoxUnreachable

_ANSWER_MAX_BYTES = 16 * 2**20
# Ray answers at once, but its agent may just be starting (2.4 s for the first job of a cluster).
_LIMIT_S = 30.0
_OVER = frozenset({"SUCCEEDED", "FAILED", "STOPPED"})


@dataclass(frozen=True)
class RayJobInfo:
    """What the cluster says of a job.

    Attributes:
        status: `PENDING`, `RUNNING`, `SUCCEEDED`, `FAILED`, `STOPPED`.
        message: Ray's own words.
    """

    status: str
    message: str

    @property
    def is_over(self) -> bool:
        return self.status in _OVER


class RayJobs:
    """The job server at one address.

    Args:
        address: `http://HOST:8265`, as the cluster's dashboard says it.
        token: The cluster's.
        transport: For tests.
    """

    def __init__(
        self, address: str, token: RayToken, *, transport: httpx.BaseTransport | None = None
    ) -> None:
        self.address = address.rstrip("/")
        # Not by way of a proxy: a cluster is on our own network, and the token is for it alone.
        self._client = httpx.Client(
            base_url=self.address, timeout=_LIMIT_S, transport=transport, trust_env=False
        )
        self._token = token

    def close(self) -> None:
        self._client.close()

    def check(self) -> str:
        """Make sure that a cluster answers which knows our token and wants it; Ray's version.

        Raises:
            DoorUnavailable: Nobody answers, the token is wrong, or the cluster is open to anybody.
        """
        version = str(_object(self._ask("GET", "/api/version")).get("ray_version"))[:50]
        if self._send("GET", "/api/version", is_known=False)[0] == httpx.codes.OK:
            raise DoorUnavailable(
                f"the Ray cluster at {self.address} asks nobody for a token: whoever reaches it "
                "can run programs on it. Nothing was sent.",
                remedy=f"Start every node with RAY_AUTH_MODE=token and the same token. {GUIDE}",
            )
        return version

    def has_package(self, name: str) -> bool:
        return self._ask("GET", f"/api/packages/gcs/{name}", may_lack=True) is not None

    def put_package(self, name: str, data: bytes) -> None:
        """Give the cluster a package; it drops it when no job has used it for 10 minutes."""
        self._ask("PUT", f"/api/packages/gcs/{name}", content=data)

    def submit(self, request: Mapping[str, Any]) -> None:
        """Start a job. Whether it was started, `info` of its `submission_id` says, not this.

        Raises:
            DoorUnavailable: No answer.
            BoxFault: Ray does not want it, or has a job of this id.
        """
        self._ask("POST", "/api/jobs/", json=dict(request))

    def info(self, submission_id: str) -> RayJobInfo | None:
        """How the job is; None when the cluster knows of none."""
        answer = self._ask("GET", f"/api/jobs/{submission_id}", may_lack=True)
        if answer is None:
            return None
        row = _object(answer)
        return RayJobInfo(str(row.get("status"))[:50], str(row.get("message"))[:1000])

    def log(self, submission_id: str) -> str:
        """What the job has said; empty when nothing is known of it."""
        answer = self._ask("GET", f"/api/jobs/{submission_id}/logs", may_lack=True)
        return "" if answer is None else str(_object(answer).get("logs") or "")

    def stop(self, submission_id: str) -> None:
        """End the job with all that it started. For a job that is over, nothing."""
        self._ask("POST", f"/api/jobs/{submission_id}/stop", may_lack=True)

    def _ask(self, method: str, path: str, *, may_lack: bool = False, **what: Any) -> bytes | None:
        status, body = self._send(method, path, **what)
        if status == httpx.codes.OK:
            return body
        if status == httpx.codes.NOT_FOUND and may_lack:
            return None
        if status in {httpx.codes.UNAUTHORIZED, httpx.codes.FORBIDDEN}:
            raise BoxRefusedUs(
                f"the Ray cluster at {self.address} does not take our token ({status})",
                remedy=f"Compare it with what `ray get-auth-token` says on its head. {GUIDE}",
            )
        lines = body.decode(errors="replace").strip().splitlines()
        raise BoxFault(
            f"the Ray cluster at {self.address}: {method} {path}: {status}: "
            f"{lines[-1][:300] if lines else 'no word'}"
        )

    def _send(
        self, method: str, path: str, *, is_known: bool = True, **what: Any
    ) -> tuple[int, bytes]:
        headers = {"Authorization": f"Bearer {self._token.text}"} if is_known else {}
        body = bytearray()
        try:
            with self._client.stream(method, path, headers=headers, **what) as answer:
                for piece in answer.iter_bytes():
                    body += piece
                    if len(body) > _ANSWER_MAX_BYTES:
                        raise BoxFault(f"the Ray cluster at {self.address}: an endless answer")
        except httpx.HTTPError as error:
            raise BoxUnreachable(
                f"no Ray cluster answers at {self.address}: {type(error).__name__}: {error}",
                remedy="Is its head running, and with --dashboard-host? `ray status` there says; "
                f"the firewall must let 8265 through. {GUIDE}",
            ) from error
        return answer.status_code, bytes(body)


def open_jobs(ray: RaySettings) -> RayJobs:
    """The job server of the cluster. Raises OperatorError where there is no token."""
    return RayJobs(ray.address, RayToken.read(ray.token_file))


def _object(body: bytes | None) -> dict[str, Any]:
    with contextlib.suppress(InputError):
        value = parse_json(body or b"")
        if isinstance(value, dict):
            return value
    raise BoxFault("the Ray cluster gave an answer that cannot be read")
