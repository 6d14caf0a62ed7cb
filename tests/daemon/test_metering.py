"""Joules come from meters; where there is none, that is said."""

import json
import shutil
import signal
import subprocess
import threading
from pathlib import Path

import pytest

from scf.core.clock import SystemClock
from scf.daemon import gpu_worker
from scf.daemon.gpu_worker import Worker
from scf.daemon.metering import Meters, Reading
from scf.dispatch.bundle import make_bundle
from scf.dispatch.job import ExitReason, JobExit, JobSpec
from scf.storage.partitions import Folder
from support.clocks import ManualClock
from support.processes import python_env
from support.tiny_worker import WORKER, PatientPopen, tiny
from support.waiting import wait_for


def rapl(folder: Path, *energies_uj: int) -> Path:
    """Packages of a machine, and a part of the first, which must not be counted twice."""
    for index, energy_uj in enumerate(energies_uj):
        package = folder / f"intel-rapl:{index}"
        package.mkdir(parents=True, exist_ok=True)
        (package / "energy_uj").write_text(f"{energy_uj}\n")
        (package / "max_energy_range_uj").write_text("1000000000\n")
    part = folder / "intel-rapl:0:0"
    part.mkdir(exist_ok=True)
    (part / "energy_uj").write_text("999\n")
    return folder


@pytest.fixture(scope="module")
def nvml(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """NVML of two GPUs, in C: energy grows by 1500 mJ a device with each look."""
    compiler = shutil.which("cc")
    if compiler is None:
        pytest.skip("no C compiler for a stand-in of the driver's library")
    folder = tmp_path_factory.mktemp("nvml")
    (folder / "nvml.c").write_text(
        """
        static unsigned long long energy[2] = {1000000, 2000000};
        int nvmlInit_v2(void) { return 0; }
        int nvmlDeviceGetCount_v2(unsigned *n) { *n = 2; return 0; }
        int nvmlDeviceGetHandleByIndex_v2(unsigned i, void **h) { *h = (void *)(long)(i + 1); return 0; }
        int nvmlDeviceGetTotalEnergyConsumption(void *h, unsigned long long *mj) {
            *mj = energy[(long)h - 1] += 1500; return 0; }
        int nvmlDeviceGetMemoryInfo(void *h, unsigned long long m[3]) {
            m[0] = 80; m[1] = 50; m[2] = 30; return 0; }
        """
    )
    library = folder / "libnvml.so"
    subprocess.run(
        [compiler, "-shared", "-fPIC", "-o", library, folder / "nvml.c"], check=True, timeout=300
    )
    return library


def test_gpus_are_read_through_the_drivers_library(nvml: Path, tmp_path: Path) -> None:
    meters = Meters(rapl=tmp_path, nvml=str(nvml))

    reading = meters.read()

    assert reading.gpu_energy_j == 3.0  # two GPUs, one step of 1.5 J each
    assert reading.gpu_memory_bytes == 60
    assert reading.cpu_energy_j is None
    assert reading.energy_j == 3.0
    assert reading.not_metered[0] == "CPU: no RAPL that we may read"


def test_packages_are_counted_over_the_end_of_their_counters(tmp_path: Path) -> None:
    rapl(tmp_path, 999_000_000, 5_000_000)
    meters = Meters(rapl=tmp_path, nvml="no-such-library.so")
    rapl(tmp_path, 1_000_000, 6_500_000)
    assert meters.read().cpu_energy_j == pytest.approx(2.0 + 1.5)
    rapl(tmp_path, 2_000_000, 6_500_000)

    assert meters.read().cpu_energy_j == pytest.approx(4.5)


def test_without_meters_there_is_no_number(tmp_path: Path) -> None:
    """Not zero: unknown, and named."""
    reading = Meters(rapl=tmp_path, nvml="no-such-library.so").read()

    assert reading.to_json()["energy_j"] is None
    assert reading == Reading(
        None, None, None, ("CPU: no RAPL that we may read", "memory, disks, fans and power supply")
    )


def test_a_counter_that_may_not_be_read_is_not_metered(tmp_path: Path) -> None:
    rapl(tmp_path, 5)
    (tmp_path / "intel-rapl:0" / "energy_uj").unlink()

    assert Meters(rapl=tmp_path, nvml="no-such-library.so").read().cpu_energy_j is None


def test_the_heartbeat_says_step_loss_and_meters(tmp_path: Path) -> None:
    """And the exit record says what the job took, and what nobody counted."""
    todo = {"sleep_s": 2.0, "note": {"event": "step", "step": 7, "loss": 0.25}}
    spec = JobSpec("job-1", "tiny", 600.0, config=todo)
    bundle = make_bundle(Folder.at(tmp_path / "jobs"), spec, {})
    with subprocess.Popen([*WORKER, str(bundle.path)], env=python_env()) as worker:
        beat = wait_for(bundle.heartbeat, what="the first heartbeat")
        assert worker.wait(timeout=120) == 0

    assert {"step", "loss", "energy_j", "gpu_energy_j", "cpu_energy_j", "gpu_memory_bytes",
            "not_metered", "at"} <= set(beat)  # fmt: skip
    assert beat["not_metered"]
    record = bundle.exit()
    assert record is not None
    assert record.not_metered
    assert ("energy_j" in record.usage) is (beat["energy_j"] is not None)
    assert JobExit.from_json(json.loads(json.dumps(record.to_json()))) == record


def test_training_that_takes_more_joules_than_it_may_is_ended(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It is asked to save and end, as at its deadline; the record says what was counted."""
    monkeypatch.setattr(gpu_worker, "HEARTBEAT_S", 0.05)
    monkeypatch.setattr(subprocess, "Popen", PatientPopen)
    todo = {"sleep_s": 600.0, "listens": True}
    spec = JobSpec("job-1", "tiny", 600.0, config=todo, joules_max=5.0)
    bundle = make_bundle(Folder.at(tmp_path / "jobs"), spec, {})
    worker = Worker(bundle.path, kinds={"tiny": tiny}, lock=None, clock=SystemClock())
    worker._meters = Meters(rapl=rapl(tmp_path / "rapl", 1_000_000), nvml="no-such-library")

    def draw() -> None:
        wait_for(bundle.heartbeat, what="a heartbeat")
        rapl(tmp_path / "rapl", 6_000_000)  # at the limit nothing is ended
        wait_for(lambda: bundle.heartbeat()["energy_j"] == 5.0, what="the meter's reading")
        rapl(tmp_path / "rapl", 7_000_000)

    handler = signal.getsignal(signal.SIGTERM)
    drawing = threading.Thread(target=draw)
    drawing.start()
    try:
        with (tmp_path / "lock").open("w") as held:
            record = worker.run(held.fileno())
    finally:
        signal.signal(signal.SIGTERM, handler)
        drawing.join()

    assert (record.reason, record.detail) == (
        ExitReason.OVER_BUDGET,
        "6 J were used of 5 J",
    )
    assert record.usage["energy_j"] == 6.0
    assert (bundle.path / "outputs" / "saved").exists()


def test_a_heartbeat_every_ten_seconds(tmp_path: Path) -> None:
    """No sooner: it is a write to the drive. No later: its age says whether the worker lives."""
    spec = JobSpec("job-1", "tiny", 600.0)
    bundle = make_bundle(Folder.at(tmp_path / "jobs"), spec, {})
    clock = ManualClock()
    worker = Worker(bundle.path, kinds={}, lock=None, clock=clock)
    with subprocess.Popen(["true"]) as child:
        times = []
        for _ in range(31):
            worker._beat(child, spec)
            times.append(bundle.heartbeat()["at"])
            clock.advance(1.0)

    assert [times.index(at) for at in sorted(set(times))] == [0, 10, 20, 30]
