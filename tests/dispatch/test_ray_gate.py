"""The gate of a Ray job and the link through it: the real server and client, without Ray."""

import os
import socket
import stat
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from threading import Thread

import httpx
import pytest

from scf.core.identity import sha256_hex
from scf.dispatch import ray_link
from scf.dispatch.process import HeldFile
from scf.dispatch.ray_gate import Gate, key_of, own_address, sweep, token_of
from scf.dispatch.ray_link import RayBox, RayLink
from scf.dispatch.transfer import BoxFault, BoxRefusedUs, BoxUnreachable
from support.waiting import wait_for

KEY = key_of("CANARY", "scf-1-job-1")
BOX = RayBox("gate", "python3")


@pytest.fixture
def gate(tmp_path: Path) -> Iterator[Gate]:
    with Gate(
        ("127.0.0.1", 0), key=KEY, root=tmp_path / "root", job_id="job-1", sender="home-1",
        code=(tmp_path, "sha256:0"),
    ) as server:  # fmt: skip
        Thread(target=server.serve_forever, daemon=True).start()
        yield server
        server.shutdown()


@pytest.fixture
def link(gate: Gate) -> Iterator[RayLink]:
    found = RayLink(BOX, "{}:{}".format(*gate.server_address), KEY)
    yield found
    found.close()


@pytest.fixture
def bundle(gate: Gate) -> Path:
    """The job's, over there."""
    (gate.bundle / "outputs").mkdir(parents=True)
    return gate.bundle


def staged(folder: Path, *contents: bytes) -> tuple[Path, list[list[object]]]:
    folder.mkdir()
    for data in contents:
        (folder / sha256_hex(data)).write_bytes(data)
    return folder, [[sha256_hex(data), len(data)] for data in contents]


def into(tmp_path: Path) -> Path:
    (tmp_path / "here").mkdir(exist_ok=True)
    return tmp_path / "here" / ".returning"


def test_what_is_there_is_not_missing_and_not_sent_again(link: RayLink, tmp_path: Path) -> None:
    folder, wanted = staged(tmp_path / "staged", b"", b"shard", bytes(3 * 2**20))
    assert len(link.call("prepare", {"wanted": wanted})["missing"]) == 3

    link.push(folder, size_bytes=1)
    assert link.call("receive", {"contents": [row[0] for row in wanted]}) == {"refused": []}

    ready = link.call("prepare", {"wanted": wanted})
    assert ready["missing"] == []
    assert ready["scf"] == "sha256:0"


def test_a_transfer_goes_on_where_it_broke_off(
    gate: Gate, link: RayLink, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Both ways: what is there, or here, is not sent again."""
    data = os.urandom(5 * 2**20)
    folder, wanted = staged(tmp_path / "staged", data)
    name = str(wanted[0][0])
    real, sent = ray_link._pieces, [0]

    def cut(read, in_time):
        for number, piece in enumerate(real(read, in_time)):
            if number == 2:
                raise httpx.WriteError("the cable is out")
            yield piece

    def count(read, in_time):
        for piece in real(read, in_time):
            sent[0] += len(piece)
            yield piece

    monkeypatch.setattr(ray_link, "_pieces", cut)
    with pytest.raises(BoxUnreachable, match="cable"):
        link.push(folder, size_bytes=len(data))
    monkeypatch.setattr(ray_link, "_pieces", count)

    def arrived() -> int:
        return int(link.call("arrived", {"contents": [name]})["sizes"][name])

    # The gate may still be reading what was sent before the cut.
    wait_for(lambda: arrived() == 2 * 2**20, what="the two pieces to arrive")
    there = arrived()
    assert 0 < there < len(data)
    link.push(folder, size_bytes=len(data))
    assert sent[0] == len(data) - there
    assert link.call("receive", {"contents": [name]}) == {"refused": []}

    (gate.bundle / "outputs").mkdir(parents=True)
    (gate.bundle / "outputs" / "model").write_bytes(data)
    target = into(tmp_path)
    begun = ray_link._Begun(target / ray_link.PARTIAL, "outputs/model")
    tag = ray_link._tag_of(gate.bundle / "outputs" / "model")
    with begun.open(str(tag), 0) as file:
        file.write(data[: 2**20])
    got: list[int] = []
    real_get = link._client.stream

    def watched(method, path, **what):
        got.append(what.get("headers", {}).get("Range"))
        return real_get(method, path, **what)

    monkeypatch.setattr(link._client, "stream", watched)
    link.pull("job-1", {"outputs/model": len(data)}, target, size_bytes=len(data))
    assert got == [f"bytes={2**20}-"]
    assert (target / "outputs/model").read_bytes() == data


def test_a_file_that_changed_meanwhile_is_fetched_anew(
    bundle: Path, link: RayLink, tmp_path: Path
) -> None:
    target = into(tmp_path)
    with ray_link._Begun(target / ray_link.PARTIAL, "outputs/a").open('"9-9"', 0) as file:
        file.write(b"old")
    (bundle / "outputs" / "a").write_bytes(b"new and longer")

    link.pull("job-1", {"outputs/a": 14, "outputs/gone": 1}, target, size_bytes=15)

    assert (target / "outputs/a").read_bytes() == b"new and longer"
    assert not (target / "outputs/gone").exists()


def test_what_the_bundle_has_is_not_fetched_again(
    bundle: Path, link: RayLink, tmp_path: Path
) -> None:
    (bundle / "outputs" / "a").write_bytes(b"same")
    target = into(tmp_path)
    link.pull("job-1", {"outputs/a": 4}, target, size_bytes=4)
    (target.parent / "outputs").mkdir()
    (target / "outputs/a").rename(target.parent / "outputs/a")

    link.pull("job-1", {"outputs/a": 4}, target, size_bytes=4)

    assert not (target / "outputs/a").exists()


@pytest.mark.parametrize("name", ["outputs/link", "../secret", "outputs/to/x", "outputs", "pipe"])
def test_only_plain_files_of_the_bundle_are_given(
    bundle: Path, link: RayLink, tmp_path: Path, name: str
) -> None:
    (bundle.parent / "secret").write_text("s")
    (bundle / "outputs" / "link").symlink_to(bundle.parent / "secret")
    (tmp_path / "elsewhere").mkdir()
    (tmp_path / "elsewhere" / "x").write_text("s")
    (bundle / "outputs" / "to").symlink_to(tmp_path / "elsewhere")
    os.mkfifo(bundle / "pipe")

    link.pull("job-1", {name: 1}, into(tmp_path), size_bytes=1)

    assert not [path for path in into(tmp_path).rglob("*") if path.is_file()]


def test_who_does_not_know_the_key_gets_nothing(gate: Gate, tmp_path: Path) -> None:
    wrong = RayLink(BOX, "{}:{}".format(*gate.server_address), key_of("CANARY", "scf-1-job-2"))
    with pytest.raises(BoxRefusedUs, match="does not know us"):
        wrong.call("prepare", {"wanted": []})
    wrong.close()
    assert "CANARY" not in KEY
    assert not any(gate.place.jobs.iterdir())


def test_a_request_is_about_its_own_job_and_folder(gate: Gate, link: RayLink) -> None:
    """Whatever it says."""
    (gate.place.jobs / "other").mkdir()
    link.call("forget", {"job_id": "other", "root": "/"})
    assert (gate.place.jobs / "other").is_dir()


def test_nonsense_is_answered_and_the_gate_stays(gate: Gate, link: RayLink) -> None:
    with pytest.raises(BoxFault, match="KeyError"):
        link.call("alchemy", {})
    for body in (b"", b"[1]", b"{"):
        answer = link._client.post("/call", content=body)
        assert "error" in answer.json()
    assert link.call("look", {"files_max": 1}) == {"phase": "absent"}


class _Liar(BaseHTTPRequestHandler):
    """A gate that gives what it likes."""

    tag, body, announced = '"4-1"', b"data", None

    def do_GET(self) -> None:
        self.send_response(200)
        self.send_header("ETag", self.tag)
        self.send_header("Content-Length", str(self.announced or len(self.body)))
        self.end_headers()
        self.wfile.write(self.body)
        self.close_connection = True

    def log_message(self, *_: object) -> None:
        pass


@pytest.mark.parametrize(
    ("lie", "kind", "told"),
    [
        ({"body": bytes(3 * 2**20)}, BoxFault, "far longer"),
        ({"tag": "whatever"}, BoxFault, "without size and time"),
        ({"tag": '"' + "9" * 500 + '-1"'}, BoxFault, "without size and time"),
        ({"announced": 10}, BoxUnreachable, "get"),
    ],
)
def test_a_gate_that_lies_fills_no_disk(
    tmp_path: Path, lie: dict[str, object], kind: type[Exception], told: str
) -> None:
    handler = type("Liar", (_Liar,), lie)
    with ThreadingHTTPServer(("127.0.0.1", 0), handler) as server:
        Thread(target=server.serve_forever, daemon=True).start()
        link = RayLink(BOX, "{}:{}".format(*server.server_address), KEY)
        with pytest.raises(kind, match=told):
            link.pull("job-1", {"outputs/a": 4}, into(tmp_path), size_bytes=4)
        link.close()
        server.shutdown()
    assert not (into(tmp_path) / "outputs/a").exists()


def test_bundles_of_jobs_whose_gate_is_shut_are_taken_away(gate: Gate) -> None:
    jobs, root = gate.place.jobs, gate.place.root
    for name in ("job-1", "open", "running", "over"):
        (jobs / name).mkdir()
        (jobs / name / "worker.lock").touch()
    held = [
        HeldFile(root / "open.gate").acquire(),
        HeldFile(jobs / "running/worker.lock").acquire(),
    ]

    sweep(gate.place, "job-1")

    assert sorted(path.name for path in jobs.iterdir()) == ["job-1", "open", "running"]
    for descriptor in held:
        os.close(descriptor)


def test_what_arrives_is_for_us_alone(gate: Gate, link: RayLink, tmp_path: Path) -> None:
    folder, wanted = staged(tmp_path / "staged", b"shard")
    link.push(folder, size_bytes=5)
    assert stat.S_IMODE((gate.place.incoming / str(wanted[0][0])).stat().st_mode) == 0o600


def test_the_token_is_found_where_ray_looks(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    (tmp_path / "mine").write_text("from the path\n")
    (tmp_path / ".ray").mkdir()
    (tmp_path / ".ray" / "auth_token").write_text("the default\n")
    path = {"RAY_AUTH_TOKEN_PATH": str(tmp_path / "mine")}
    assert token_of({"RAY_AUTH_TOKEN": "said", **path}) == "said"
    assert token_of(path) == "from the path"
    assert token_of({}) == "the default"
    with pytest.raises(SystemExit, match="RAY_AUTH_MODE=token"):
        token_of({"RAY_AUTH_TOKEN_PATH": str(tmp_path / "none")})


def test_the_gate_is_where_the_head_is_reached_from() -> None:
    with socket.socket() as head:
        head.bind(("127.0.0.1", 0))
        assert own_address(f"127.0.0.1:{head.getsockname()[1]}") == "127.0.0.1"
    assert own_address("") == "127.0.0.1"
