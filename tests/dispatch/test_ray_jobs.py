"""The job server of a Ray cluster, as a small real server answers for it; no Ray is needed."""

import json
from collections.abc import Callable, Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from threading import Thread

import pytest

from scf.core.errors import DoorUnavailable, OperatorError
from scf.dispatch.ray_access import RayToken
from scf.dispatch.ray_jobs import RayJobs
from scf.dispatch.transfer import BoxFault, BoxRefusedUs, BoxUnreachable

TOKEN = "CANARY0123456789"


class Cluster(ThreadingHTTPServer):
    """Answers as it is told to, by method and path; asks for the token unless it is open."""

    def __init__(self) -> None:
        self.answers: dict[str, tuple[int, bytes]] = {
            "GET /api/version": (200, b'{"ray_version": "2.60.0"}')
        }
        self.is_open = False
        self.asked: list[str] = []
        super().__init__(("127.0.0.1", 0), _Handler)

    @property
    def address(self) -> str:
        return f"http://127.0.0.1:{self.server_address[1]}"


class _Handler(BaseHTTPRequestHandler):
    server: Cluster

    def do_GET(self) -> None:
        self.server.asked.append(f"{self.command} {self.path}")
        shown = self.headers.get("Authorization")
        status, body = self.server.answers.get(f"{self.command} {self.path}", (404, b"none"))
        if not self.server.is_open and shown != f"Bearer {TOKEN}":
            status, body = (403 if shown else 401), b"Unauthorized"
        self.send_response(status)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    do_POST = do_PUT = do_GET

    def log_message(self, *_: object) -> None:
        pass


@pytest.fixture
def cluster() -> Iterator[Cluster]:
    with Cluster() as server:
        Thread(target=server.serve_forever, daemon=True).start()
        yield server
        server.shutdown()


@pytest.fixture
def jobs(cluster: Cluster) -> Iterator[RayJobs]:
    found = RayJobs(cluster.address, RayToken(TOKEN))
    yield found
    found.close()


def test_a_cluster_that_knows_our_token_says_its_version(jobs: RayJobs) -> None:
    assert jobs.check() == "2.60.0"


def test_a_wrong_token_is_said_with_the_remedy_and_not_shown(cluster: Cluster) -> None:
    jobs = RayJobs(cluster.address, RayToken("CANARY-wrong"))
    with pytest.raises(BoxRefusedUs, match="does not take our token") as caught:
        jobs.check()
    jobs.close()
    assert "ray get-auth-token" in str(caught.value.remedy)
    assert "CANARY" not in f"{caught.value!r} {caught.value} {caught.value.remedy} {jobs._token!r}"


def test_a_cluster_open_to_anybody_is_not_used(cluster: Cluster, jobs: RayJobs) -> None:
    cluster.is_open = True
    with pytest.raises(DoorUnavailable, match="asks nobody for a token") as caught:
        jobs.check()
    assert "RAY_AUTH_MODE=token" in str(caught.value.remedy)


def test_nobody_there_is_unavailable() -> None:
    jobs = RayJobs("http://127.0.0.1:1", RayToken(TOKEN))
    with pytest.raises(BoxUnreachable, match="no Ray cluster answers at http://127") as caught:
        jobs.check()
    jobs.close()
    assert "--dashboard-host" in str(caught.value.remedy)


def test_a_job_is_absent_or_how_ray_says(cluster: Cluster, jobs: RayJobs) -> None:
    assert jobs.info("scf-1") is None
    assert jobs.log("scf-1") == ""
    row = {"status": "FAILED", "message": "no such python"}
    cluster.answers["GET /api/jobs/scf-1"] = (200, json.dumps(row).encode())
    info = jobs.info("scf-1")
    assert info is not None
    assert (info.status, info.is_over, info.message) == ("FAILED", True, "no such python")


@pytest.mark.parametrize(
    ("answer", "ask", "told"),
    [
        ((200, b"[1]"), lambda jobs: jobs.info("x"), "cannot be read"),
        ((200, b"<html>"), lambda jobs: jobs.info("x"), "cannot be read"),
        (
            (500, b"Trace\nValueError: already exists"),
            lambda jobs: jobs.info("x"),
            "already exists",
        ),
        ((200, bytes(17 * 2**20)), lambda jobs: jobs.info("x"), "endless"),
    ],
)
def test_an_answer_that_is_none_is_a_fault(
    cluster: Cluster, jobs: RayJobs, answer: tuple[int, bytes], ask: Callable, told: str
) -> None:
    cluster.answers["GET /api/jobs/x"] = answer
    with pytest.raises(BoxFault, match=told):
        ask(jobs)


def test_a_package_is_sent_where_it_is_missing(cluster: Cluster, jobs: RayJobs) -> None:
    assert not jobs.has_package("a.zip")
    cluster.answers |= {"PUT /api/packages/gcs/a.zip": (200, b"")}
    jobs.put_package("a.zip", b"code")
    cluster.answers |= {"GET /api/packages/gcs/a.zip": (200, b"")}
    assert jobs.has_package("a.zip")


def test_the_token_comes_from_a_file_of_ours_alone(tmp_path: Path) -> None:
    path = tmp_path / "token"
    with pytest.raises(OperatorError, match="cannot be read") as caught:
        RayToken.read(path)
    assert "umask 077" in str(caught.value.remedy)
    path.touch(mode=0o600)
    path.write_text(f"{TOKEN}\n")
    assert RayToken.read(path).text == TOKEN
    path.chmod(0o640)
    with pytest.raises(OperatorError, match="others may read"):
        RayToken.read(path)
    path.chmod(0o600)
    path.write_text("two words")
    with pytest.raises(OperatorError, match="holds no token"):
        RayToken.read(path)
