"""What another machine says and sends is looked at before it is believed."""

import base64
from pathlib import Path

import pytest

from scf.core.canonical import canonical_json
from scf.core.identity import sha256_hex
from scf.dispatch.job import ExitReason, JobExit
from scf.dispatch.returned import (
    PARTIAL,
    RETURNING_NAME,
    OutputsRefused,
    ReturnLimits,
    check_arrived,
    checked_rows,
    differing,
    install,
    prune,
    tail_of,
    tidy,
)
from scf.dispatch.sending import exit_of

LIMITS = ReturnLimits(files_max=3, file_max_bytes=100, total_max_bytes=150)


@pytest.fixture
def bundle(tmp_path: Path) -> Path:
    (tmp_path / "bundle" / "outputs").mkdir(parents=True)
    return tmp_path / "bundle"


def arrive(bundle: Path, name: str, data: bytes = b"new") -> Path:
    path = bundle / RETURNING_NAME / name
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(data)
    return path


@pytest.mark.parametrize(
    "name",
    [
        "/etc/passwd",
        "outputs",
        "outputs/",
        "outputs/../x",
        "outputs/a/../../x",
        "outputs/./a",
        "outputs//a",
        "inputs/plan.json",
        "exit.json",
        "outputs/a\nb",
        "outputs/a\0b",
        "outputs/\x1b[2J",
        "outputs/a\\b",
        f"outputs/{PARTIAL}/a",
        "outputs/" + "a" * 300,
        "outputs" + "/a" * 20,
        "",
    ],
)
def test_a_name_that_does_not_stay_inside_outputs_is_refused(name: str) -> None:
    with pytest.raises(OutputsRefused, match="not a name"):
        checked_rows([[name, 1, 1]], LIMITS)


@pytest.mark.parametrize(
    "value",
    [
        None,
        {},
        [["outputs/a"]],
        [["outputs/a", -1, 0]],
        [["outputs/a", "1", 0]],
        [["outputs/a", 101, 0]],
        [["outputs/a", 80, 0], ["outputs/b", 80, 0]],
        [[f"outputs/{i}", 1, 0] for i in range(4)],
    ],
)
def test_a_list_that_is_none_or_is_too_much_is_refused(value: object) -> None:
    with pytest.raises(OutputsRefused):
        checked_rows(value, LIMITS)


def test_a_sound_list_is_taken() -> None:
    rows = checked_rows([["outputs/checkpoint/model é.safetensors", 100, 5]], LIMITS)

    assert [row.group for row in rows.values()] == ["outputs/checkpoint"]


def test_a_link_that_arrives_is_refused_and_removed(bundle: Path) -> None:
    (bundle / RETURNING_NAME / "outputs").mkdir(parents=True)
    (bundle / RETURNING_NAME / "outputs" / "a").symlink_to("/etc/passwd")

    with pytest.raises(OutputsRefused, match="neither a file nor a folder"):
        check_arrived(bundle / RETURNING_NAME, {"outputs/a": 1})
    assert not (bundle / RETURNING_NAME).exists()


def test_a_linked_folder_that_arrives_is_refused(bundle: Path, tmp_path: Path) -> None:
    (bundle / RETURNING_NAME).mkdir()
    (bundle / RETURNING_NAME / "outputs").symlink_to(tmp_path)

    with pytest.raises(OutputsRefused, match="neither a file nor a folder"):
        check_arrived(bundle / RETURNING_NAME, {"outputs/a": 1})


def test_what_was_not_asked_for_is_refused(bundle: Path) -> None:
    arrive(bundle, "outputs/b")

    with pytest.raises(OutputsRefused, match="not asked for"):
        check_arrived(bundle / RETURNING_NAME, {"outputs/a": 1})


def test_far_more_than_was_said_is_refused(bundle: Path) -> None:
    arrive(bundle, "outputs/a", bytes(2**20 + 3))

    with pytest.raises(OutputsRefused, match="far too long"):
        check_arrived(bundle / RETURNING_NAME, {"outputs/a": 1})


def test_what_a_dead_follower_fetched_is_removed_and_parts_stay(bundle: Path) -> None:
    arrive(bundle, "outputs/old")
    part = arrive(bundle, f"outputs/{PARTIAL}/a")

    tidy(bundle / RETURNING_NAME, {"outputs/a"})
    check_arrived(bundle / RETURNING_NAME, {"outputs/a": 1})

    assert part.exists()
    assert not (bundle / RETURNING_NAME / "outputs" / "old").exists()


def test_what_arrived_takes_its_place_also_where_a_folder_was(bundle: Path) -> None:
    (bundle / "outputs" / "a" / "deep").mkdir(parents=True)
    (bundle / "outputs" / "b").write_text("a file")
    arrive(bundle, "outputs/a")
    arrive(bundle, "outputs/b/c")

    install(bundle, ["outputs/a", "outputs/b/c", "outputs/not-sent-again"])

    assert (bundle / "outputs" / "a").read_bytes() == b"new"
    assert (bundle / "outputs" / "b" / "c").read_bytes() == b"new"


def test_what_is_gone_there_goes_here_except_in_groups_that_move(bundle: Path) -> None:
    for name in ("outputs/a/1", "outputs/a/2", "outputs/b/1"):
        (bundle / name).parent.mkdir(exist_ok=True)
        (bundle / name).touch()

    prune(bundle, ["outputs/a/1"], groups_kept={"outputs/b"})

    left = sorted(p.relative_to(bundle).as_posix() for p in bundle.rglob("*") if p.is_file())
    assert left == ["outputs/a/1", "outputs/b/1"]


def test_the_arrived_file_counts_before_the_one_in_the_bundle(bundle: Path) -> None:
    (bundle / "outputs" / "a").write_bytes(b"old")
    arrive(bundle, "outputs/a", b"new")

    assert differing(bundle, {"outputs/a": sha256_hex(b"new")}) == []
    assert differing(bundle, {"outputs/a": sha256_hex(b"old")}) == ["outputs/a"]
    assert differing(bundle, {"outputs/none": sha256_hex(b"")}) == ["outputs/none"]


@pytest.mark.parametrize("value", [None, 3, "§", "a", {"a": 1}])
def test_a_tail_that_is_none_is_empty(value: object) -> None:
    assert tail_of(value) == b""


@pytest.mark.parametrize(
    "text",
    [b"", b"[]", b"{", b'{"schema": "scf.job-exit/1"}', bytes(2**20)],
)
def test_an_exit_record_that_is_none_is_refused(text: bytes) -> None:
    with pytest.raises(OutputsRefused, match="exit record"):
        exit_of(base64.b64encode(text).decode())
    with pytest.raises(OutputsRefused, match="exit record"):
        exit_of(None)


def test_an_exit_record_is_read() -> None:
    record = JobExit(ExitReason.COMPLETED)

    assert exit_of(base64.b64encode(canonical_json(record.to_json())).decode()) == record
