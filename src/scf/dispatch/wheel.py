"""The code that travels: a wheel made of the running package, the same bytes every time.

Only what the package consists of goes in (modules and the data files beside them), with fixed
times and modes, in order of name, stored and not compressed: two machines with the same source make
the same wheel, and its SHA-256 names the code. A working folder, with its notes and secrets, never
leaves.
"""

import base64
import hashlib
import io
import zipfile
from importlib import metadata
from pathlib import Path

import scf
from scf.core.errors import MissingTool
from scf.core.identity import sha256_hex
from scf.storage import durable

SUFFIXES = frozenset({".py", ".typed", ".toml", ".json", ".md", ".html", ".css", ".js", ".svg"})

_EPOCH = (1980, 1, 1, 0, 0, 0)  # the earliest time that a zip file can say


def build_wheel(package: Path | None = None) -> bytes:
    """The wheel of `package` (default: this `scf`), byte for byte the same for the same files."""
    folder = package or _package_folder()
    version = _version()
    entries = {
        f"scf/{path.relative_to(folder).as_posix()}": path.read_bytes()
        for path in sorted(folder.rglob("*"))
        if path.suffix in SUFFIXES and path.is_file() and "__pycache__" not in path.parts
    }
    info = f"scf-{version}.dist-info"
    entries[f"{info}/METADATA"] = f"Metadata-Version: 2.1\nName: scf\nVersion: {version}\n".encode()
    entries[f"{info}/WHEEL"] = (
        b"Wheel-Version: 1.0\nGenerator: scf\nRoot-Is-Purelib: true\nTag: py3-none-any\n"
    )
    rows = [f"{name},{_record_digest(data)},{len(data)}" for name, data in sorted(entries.items())]
    entries[f"{info}/RECORD"] = "\n".join([*rows, f"{info}/RECORD,,", ""]).encode()
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w", zipfile.ZIP_STORED) as archive:
        for name, data in sorted(entries.items()):
            row = zipfile.ZipInfo(name, _EPOCH)
            row.create_system = 3
            row.external_attr = 0o644 << 16
            archive.writestr(row, data)
    return buffer.getvalue()


def keep_wheel(folder: Path) -> tuple[Path, str]:
    """Build the wheel into `folder`, named by its digest; returns its path and its SHA-256."""
    data = build_wheel()
    digest = sha256_hex(data)
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / f"{digest}.whl"
    durable.write_once(path, data)
    return path, digest


def _package_folder() -> Path:
    folder = Path(scf.__file__ or "").parent
    if not (folder / "dispatch" / "wheel.py").is_file():
        raise MissingTool(
            f"{folder}: the package's files are not here, so no wheel can be made of them",
            remedy="Install scf as files (not as a zip), or set the box to use its own scf.",
        )
    return folder


def _version() -> str:
    try:
        return metadata.version("scf")
    except metadata.PackageNotFoundError:
        return "0"


def _record_digest(data: bytes) -> str:
    raw = base64.urlsafe_b64encode(hashlib.sha256(data).digest()).rstrip(b"=")
    return f"sha256={raw.decode()}"
