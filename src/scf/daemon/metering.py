"""What a job's machine draws, by the machine's own meters. What has no meter is named, not guessed.

* GPU: NVML's count of energy since the driver was loaded, one for each device (Volta and newer).
* CPU packages: Linux RAPL, `/sys/class/powercap/intel-rapl:N/energy_uj` (root may be needed).

Both count the whole device and the whole package: on a machine that does other work beside the job,
that is in it. The libraries are the driver's; nothing is installed for this.
"""

import contextlib
import ctypes
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

RAPL = Path("/sys/class/powercap")
NVML = "libnvidia-ml.so.1"


@dataclass(frozen=True)
class Reading:
    """What the meters say at one moment.

    Attributes:
        gpu_energy_j: Of all GPUs since `Meters` was made; None where it is not metered.
        cpu_energy_j: Of all CPU packages, likewise.
        gpu_memory_bytes: In use on all GPUs now; None where nobody says.
        not_metered: What draws power here and has no meter that we may read.
    """

    gpu_energy_j: float | None
    cpu_energy_j: float | None
    gpu_memory_bytes: int | None
    not_metered: tuple[str, ...]

    @property
    def energy_j(self) -> float | None:
        """The sum of what is metered; None where nothing is."""
        known = [e for e in (self.gpu_energy_j, self.cpu_energy_j) if e is not None]
        return sum(known) if known else None

    def to_json(self) -> dict[str, Any]:
        return {
            "energy_j": _rounded(self.energy_j),
            "gpu_energy_j": _rounded(self.gpu_energy_j),
            "cpu_energy_j": _rounded(self.cpu_energy_j),
            "gpu_memory_bytes": self.gpu_memory_bytes,
            "not_metered": list(self.not_metered),
        }


class Meters:
    """The meters of this machine, from the moment when this is made.

    Args:
        rapl: Where RAPL's files are.
        nvml: Name of NVIDIA's library.
    """

    def __init__(self, *, rapl: Path = RAPL, nvml: str = NVML) -> None:
        self._packages = [
            _Package(folder)
            for folder in sorted(rapl.glob("intel-rapl:*"))
            if folder.name.count(":") == 1
        ]
        self._gpus = _open_nvml(nvml)
        self._gpu_start_mj = self._gpus.energy_mj() if self._gpus is not None else None
        self._is_cpu_metered = bool(self._packages) and all(p.is_read for p in self._packages)

    def read(self) -> Reading:
        """What they say now. Call it at least every minute: RAPL's counters are short."""
        missing = ["memory, disks, fans and power supply"]
        cpu_j = None
        if self._is_cpu_metered:
            used_uj = [package.used_uj() for package in self._packages]
            if None not in used_uj:
                cpu_j = sum(uj for uj in used_uj if uj is not None) / 1e6
        if cpu_j is None:
            missing.insert(0, "CPU: no RAPL that we may read")
        gpu_j = memory_bytes = None
        if self._gpus is not None:
            memory_bytes = self._gpus.memory_bytes()
            now_mj = self._gpus.energy_mj()
            if now_mj is not None and self._gpu_start_mj is not None:
                gpu_j = (now_mj - self._gpu_start_mj) / 1e3
            else:
                missing.insert(0, "GPU: NVML counts no energy on it")
        return Reading(gpu_j, cpu_j, memory_bytes, tuple(missing))


class _Package:
    """One CPU package: a counter that begins anew when it is full."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._last_uj = self._look("energy_uj")
        self._range_uj = self._look("max_energy_range_uj")
        self._used_uj = 0

    @property
    def is_read(self) -> bool:
        return self._last_uj is not None and self._range_uj is not None

    def used_uj(self) -> int | None:
        now_uj = self._look("energy_uj")
        if now_uj is None or self._last_uj is None or self._range_uj is None:
            return None
        step = now_uj - self._last_uj
        self._used_uj += step if step >= 0 else step + self._range_uj
        self._last_uj = now_uj
        return self._used_uj

    def _look(self, name: str) -> int | None:
        try:
            return int((self._folder / name).read_text())
        except (OSError, ValueError):
            return None


class _Nvml:
    """The few calls of NVML that are needed (its C interface is stable)."""

    def __init__(self, library: ctypes.CDLL) -> None:
        self._library = library
        count = ctypes.c_uint()
        self._ok("nvmlDeviceGetCount_v2", ctypes.byref(count))
        self._devices = []
        for index in range(count.value):
            handle = ctypes.c_void_p()
            self._ok("nvmlDeviceGetHandleByIndex_v2", ctypes.c_uint(index), ctypes.byref(handle))
            self._devices.append(handle)

    @property
    def count(self) -> int:
        return len(self._devices)

    def energy_mj(self) -> int | None:
        """Of all devices since their driver was loaded; None where one does not count."""
        return self._sum(self._energy_mj)

    def memory_bytes(self) -> int | None:
        """In use on all devices."""
        return self._sum(self._memory_bytes)

    def _sum(self, of: Callable[[ctypes.c_void_p], int]) -> int | None:
        if not self._devices:
            return None
        try:
            return sum(of(device) for device in self._devices)
        except (OSError, AttributeError):
            return None

    def _energy_mj(self, device: ctypes.c_void_p) -> int:
        energy = ctypes.c_ulonglong()
        self._ok("nvmlDeviceGetTotalEnergyConsumption", device, ctypes.byref(energy))
        return energy.value

    def _memory_bytes(self, device: ctypes.c_void_p) -> int:
        memory = _Memory()
        self._ok("nvmlDeviceGetMemoryInfo", device, ctypes.byref(memory))
        return int(memory.used)

    def _ok(self, name: str, *arguments: Any) -> None:
        code = getattr(self._library, name)(*arguments)
        if code != 0:
            raise OSError(f"{name}: NVML error {code}")


class _Memory(ctypes.Structure):
    """`nvmlMemory_t`."""

    _fields_ = (
        ("total", ctypes.c_ulonglong),
        ("free", ctypes.c_ulonglong),
        ("used", ctypes.c_ulonglong),
    )


def num_gpus(nvml: str = NVML) -> int:
    """GPUs of NVIDIA on this machine; 0 where there is no driver."""
    found = _open_nvml(nvml)
    return found.count if found is not None else 0


def _open_nvml(name: str) -> _Nvml | None:
    """NVML, where there is an NVIDIA driver; None elsewhere."""
    with contextlib.suppress(OSError, AttributeError):
        library = ctypes.CDLL(name)
        if library.nvmlInit_v2() == 0:
            return _Nvml(library)
    return None


def _rounded(value: float | None) -> float | None:
    return None if value is None else round(value, 3)
