"""Real processes under torchrun, gloo on the CPU: the curve of one, and an end when one is lost."""

import json
import os
import pickle
import shutil
import signal
import time
from pathlib import Path

import numpy as np
import psutil
import pytest
import safetensors.numpy

from scf.core.errors import UsageError
from scf.training.checkpoint_files import (
    CheckpointDamaged,
    CheckpointIncomplete,
    read_state,
    verify_digests,
)
from scf.training.distributed import Peers
from support import several_program
from support.gaussian_records import gaussian_points, write_points
from support.several import torchrun
from support.waiting import wait_for

LIMIT_S = 240
SETTINGS = {
    "width": 16, "depth": 1, "site_width": 0, "batch_size": 32, "max_seconds": 1e4, "max_steps": 30,
    "evaluate_every": 10, "calibration_particles": 0, "device": "cpu", "threads": 1,
    "warmup_steps": 5, "peer_limit_s": 60.0,
}  # fmt: skip


def case(name: str, *, resume: bool = False, dies_at: int = 0, **changes) -> dict:
    return {"name": name, "settings": SETTINGS | changes, "resume": resume, "dies_at": dies_at}


def curve(folder: Path, name: str) -> dict[int, float]:
    notes = [json.loads(line) for line in (folder / f"{name}.ndjson").read_text().splitlines()]
    return {note["step"]: note["loss"] for note in notes if note["event"] == "step"}


def weights(folder: Path) -> dict[str, np.ndarray]:
    verify_digests(folder)
    return safetensors.numpy.load_file(folder / "model.safetensors")


def run_together(folder: Path, *cases: dict) -> None:
    """The cases one after another on two processes."""
    listed = folder / "cases.json"
    listed.write_text(json.dumps(cases))
    program = (several_program.__file__, str(folder), str(listed))
    process = torchrun(2, log=folder / "log", program=program)
    try:
        assert process.wait(LIMIT_S) == 0, (folder / "log").read_text()
    finally:
        process.kill()


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Path:
    """Runs of one process, of two, and of two with FSDP2; runs that change from one to the other."""
    path = tmp_path_factory.mktemp("several")
    write_points(path / "points.ndjson", gaussian_points(200), families=20)
    small = {"memory_max_bytes": 2000}  # so that fossils are streamed
    alone = [
        case("one"), case("in parts", microbatch=16), case("one, streamed", **small),
        case("changing", max_steps=10), case("changing, streamed", max_steps=10, **small),
    ]  # fmt: skip
    for one in alone:
        several_program.run_case(path, one)
    run_together(
        path,
        case("two"),
        case("sharded", sharding="fsdp2", microbatch=5),
        case("two, streamed", **small),
        case("shares", dies_at=15, sharding="fsdp2", checkpoint_every_s=1e-9),
        case("shares of two", dies_at=15, sharding="fsdp2", checkpoint_every_s=1e-9),
        case("shares of two", sharding="fsdp2", resume=True),
        case("shares for plain", dies_at=15, sharding="fsdp2", checkpoint_every_s=1e-9),
        case("shares for plain", resume=True),
        case("changing", max_steps=20, sharding="fsdp2", resume=True),
        case("changing, streamed", max_steps=20, resume=True, **small),
    )
    shutil.copytree(path / "shares", path / "shares as left")
    several_program.run_case(path, case("shares", resume=True))
    for name, changes in (("changing", {}), ("changing, streamed", small)):
        several_program.run_case(path, case(name, resume=True, **changes))
    return path


def test_two_processes_are_one_in_two_parts(folder: Path) -> None:
    """Bit for bit: the same losses, weights, averages and moments."""
    assert list(curve(folder, "two")) == list(range(1, 31))
    assert curve(folder, "two") == curve(folder, "in parts")
    for name in ("model.safetensors", "ema.safetensors", "optimizer.safetensors"):
        two, parts = (folder / run / name for run in ("two", "in parts"))
        assert two.read_bytes() == parts.read_bytes()


@pytest.mark.parametrize(
    ("name", "like"),
    [
        ("in parts", "one"),
        ("two", "one"),
        ("sharded", "one"),
        ("changing", "one"),
        ("shares", "one"),
        ("shares of two", "one"),
        ("shares for plain", "one"),
        ("two, streamed", "one, streamed"),
        ("changing, streamed", "one, streamed"),
    ],
)
def test_the_curve_is_that_of_one_process(folder: Path, name: str, like: str) -> None:
    """To rounding, however a minibatch is divided: by parts, processes, FSDP2, or in turn."""
    one, other = curve(folder, like), curve(folder, name)
    assert list(other) == list(one) == list(range(1, 31))
    # AdamW's first steps are signs of gradients; rounding may turn those of the smallest.
    np.testing.assert_allclose(list(other.values()), list(one.values()), rtol=2e-3)
    assert np.median(np.abs(np.subtract(list(other.values()), list(one.values())))) < 1e-4
    assert read_state(folder / name)["best_step"] == read_state(folder / like)["best_step"]
    mine, its = weights(folder / name), weights(folder / like)
    assert mine.keys() == its.keys()
    for key in mine:
        np.testing.assert_allclose(mine[key], its[key], atol=2e-3, err_msg=key)


@pytest.mark.parametrize("name", ["sharded", "shares of two"])
def test_sharding_changes_nothing(folder: Path, name: str) -> None:
    """Beside two processes without it the curve differs by rounding alone, after looks as well.

    A look at the validation fossils gathers averaged weights. Where they were kept for the next
    step, its loss differed in the fourth digit.
    """
    two, sharded = curve(folder, "two"), curve(folder, name)
    assert len(two) == 30
    np.testing.assert_allclose(list(sharded.values()), list(two.values()), rtol=2e-5)


def test_shares_are_safetensors_and_json_alone(folder: Path) -> None:
    """What two processes left in mid-run: complete, one checkpoint, nothing pickled, all digested."""
    (step,) = (folder / "shares as left" / "resume").iterdir()
    names = sorted(path.name for path in step.iterdir())
    assert names == [
        "config.json", "digests.json", "frame.safetensors",
        "shard-00001-model-00001-of-00001.safetensors",
        "shard-00002-model-00001-of-00001.safetensors", "state.json",
    ]  # fmt: skip
    assert set(verify_digests(step, names=tuple(names[:1]))) == set(names) - {"digests.json"}
    assert read_state(step)["step"] == 14  # saved before step 15, after which all died
    for name in names:
        with pytest.raises(Exception, match=r".*"):  # whatever pickle says: it is none
            pickle.loads((step / name).read_bytes())
    # Each process wrote about half of the numbers.
    sizes = [(step / name).stat().st_size for name in names if name.startswith("shard")]
    assert min(sizes) > 0.4 * sum(sizes)


@pytest.mark.parametrize("harm", ["cut", "flipped", "missing"])
def test_a_damaged_share_is_named(folder: Path, tmp_path: Path, harm: str) -> None:
    """A share that is not what was written is refused by name, before training goes on."""
    shutil.copytree(folder / "shares as left", tmp_path / "run")
    (step,) = (tmp_path / "run" / "resume").iterdir()
    share = step / "shard-00002-model-00001-of-00001.safetensors"
    data = bytearray(share.read_bytes())
    if harm == "cut":
        share.write_bytes(data[:-100])
    elif harm == "flipped":
        data[-50] ^= 1
        share.write_bytes(data)
    else:
        share.unlink()
    shutil.copy(folder / "points.ndjson", tmp_path)

    with pytest.raises((CheckpointDamaged, CheckpointIncomplete), match="shard-00002"):
        several_program.run_case(tmp_path, case("run", resume=True))


def start_long_run(folder: Path) -> tuple[object, list[psutil.Process]]:
    """Two processes in a run without end; the programs, by rank, once both train."""
    write_points(folder / "points.ndjson", gaussian_points(200))
    (folder / "c.json").write_text(
        json.dumps(SETTINGS | {"max_steps": 10**7, "peer_limit_s": 20.0})
    )
    process = torchrun(
        2, "--fossils", str(folder / "points.ndjson"), "--config", str(folder / "c.json"),
        "--out", str(folder / "out"), "--progress", str(folder / "notes.ndjson"),
        log=folder / "log",
    )  # fmt: skip
    notes = folder / "notes.ndjson"
    wait_for(
        lambda: notes.exists() and len(notes.read_text().splitlines()) >= 2,
        what="two notes of progress", limit_s=LIMIT_S,
    )  # fmt: skip
    programs = psutil.Process(process.pid).children()
    return process, sorted(programs, key=lambda program: int(program.environ()["RANK"]))


def test_sigterm_to_one_ends_all_with_one_checkpoint(tmp_path: Path) -> None:
    """All end in order within 10 s, with one checkpoint, when one of them is told to stop."""
    process, programs = start_long_run(tmp_path)
    try:
        programs[1].send_signal(signal.SIGTERM)
        told = time.monotonic()
        assert process.wait(LIMIT_S) == 0, (tmp_path / "log").read_text()
        assert time.monotonic() - told < 90  # ten asked; this machine may be busy
    finally:
        process.kill()
    verify_digests(tmp_path / "out")
    state = read_state(tmp_path / "out")
    assert (state["status"], state["stop_reason"]) == ("stopped", "sigterm")
    ends = [line for line in (tmp_path / "log").read_text().splitlines() if "checkpoint in" in line]
    assert len(ends) == 1


def test_a_lost_process_ends_the_others_by_name(tmp_path: Path) -> None:
    """One is killed: the first says so, in its notes too, and ends within the limit."""
    process, programs = start_long_run(tmp_path)
    try:
        os.kill(programs[1].pid, signal.SIGKILL)
        assert process.wait(LIMIT_S) != 0
    finally:
        process.kill()
    last = json.loads((tmp_path / "notes.ndjson").read_text().splitlines()[-1])
    assert (last["event"], last["error"]) == ("error", "PeerLost")
    assert "process 0 of 2 lost the others" in (tmp_path / "log").read_text()


def test_an_environment_half_set_is_refused() -> None:
    """What is missing is named, with the way to start."""
    with pytest.raises(UsageError, match="MASTER_ADDR") as caught:
        Peers.join({"WORLD_SIZE": "2", "RANK": "0"}, limit_s=1.0)
    assert "torchrun" in caught.value.remedy
    assert Peers.join({}, limit_s=1.0).is_alone
