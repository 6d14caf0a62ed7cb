"""`scf doctor`: is all there that the foundry needs? Looks, changes nothing, spends nothing.

Each finding is one line: `ok`, `warn` (works, and something should be seen to) or `fail` (a thing
that the settings ask for will not work), with a remedy. No secret is shown or sent but to the
provider whose key it is.
"""

import importlib.util
import os
import platform
import re
import shutil
import stat
import sys
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass
from typing import Any

from scf.config import FoundryConfig, RunpodSection
from scf.control.emergency_lock import EmergencyLock
from scf.core.errors import DoorError, ScfError
from scf.core.units import format_bytes
from scf.daemon.doors import account_of, box_of, cluster_of
from scf.daemon.heartbeat import is_running
from scf.daemon.rooms import own_drive
from scf.dispatch.registry import LOCAL, RAY, RUNPOD, SSH, open_client
from scf.dispatch.runpod_errors import KeyRefused
from scf.dispatch.runpod_key import find_key

OK, WARN, FAIL = "ok", "warn", "fail"

PYTHON_MIN = (3, 11)
# A lease is told to the provider as a moment, so our clock must be about right.
# A call is made three times at most, so half a minute for a provider that is silent.
ANSWER_S = 10.0
SKEW_MAX_S = 60.0
FREE_MIN_BYTES = 10**9
# RunPod lets nobody rent who has less than about an hour's credit.
HOURS_OF_CREDIT = 1.0


@dataclass(frozen=True)
class Finding:
    """One line.

    Attributes:
        what: What was looked at.
        verdict: `ok`, `warn` or `fail`.
        detail: What was found.
        remedy: What to do, where something is to be done.
    """

    what: str
    verdict: str
    detail: str
    remedy: str | None = None

    def to_json(self) -> dict[str, Any]:
        return asdict(self)


def examine(config: FoundryConfig, *, offline: bool = False) -> list[Finding]:
    """Every finding, in the order in which a person would set things up.

    Args:
        config: All settings.
        offline: Ask nobody outside this machine.
    """
    findings = [*_machine(), *_home(config), *_drive(config), *_daemon(config), *_training(config)]
    order = config.doors.order
    findings.append(Finding("doors", OK, f"in order of preference: {', '.join(order)}"))
    if SSH in order:
        findings += _guarded("ssh door", lambda: _ssh(config, offline=offline))
    if RAY in order:
        findings += _guarded("ray door", lambda: _ray(config, offline=offline))
    if RUNPOD in order or config.runpod.image:
        findings += _guarded("runpod", lambda: _runpod(config, offline=offline))
    return findings


def _machine() -> Iterator[Finding]:
    version = platform.python_version()
    is_new = sys.version_info >= PYTHON_MIN
    yield Finding("python", OK if is_new else FAIL, f"{version} at {sys.executable}")
    for tool, why in (("ssh", "to reach boxes and pods"), ("ssh-keygen", "to make their keys")):
        yield _tool(tool, why)
    yield from _rsync()
    yield _tool("restic", "for encrypted backups; without it our own manifest is used", need=False)


def _tool(name: str, why: str, *, need: bool = True) -> Finding:
    path = shutil.which(name)
    if path is not None:
        return Finding(name, OK, path)
    return Finding(name, WARN, f"not installed ({why})", f"Install {name}." if need else None)


def _rsync() -> Iterator[Finding]:
    from scf.dispatch.transfer import check_tools

    try:
        check_tools()
    except ScfError as error:
        yield Finding("rsync", WARN, str(error), error.remedy)
    else:
        yield Finding("rsync", OK, str(shutil.which("rsync")))


def _home(config: FoundryConfig) -> Iterator[Finding]:
    home = config.home
    if not (home / "scf.toml").exists():
        yield Finding("home", FAIL, f"{home}: no foundry here", "Run `scf init --root DRIVE`.")
        return
    loose = [path for path in (home, home / "keys") if path.exists() and _mode(path) & 0o022]
    if loose:
        yield Finding("home", FAIL, f"{loose[0]}: others may write here (mode {_mode(loose[0]):o})",
                      f"`chmod go-w {loose[0]}`")  # fmt: skip
    elif _mode(home) & 0o077:
        yield Finding("home", WARN, f"{home}: others may look into it (mode {_mode(home):o})",
                      f"`chmod 700 {home}`")  # fmt: skip
    else:
        yield Finding("home", OK, str(home))
    keys = [path for path in sorted((home / "keys").glob("*")) if path.is_file()]
    private = [path for path in keys if path.suffix != ".pub" and b"PRIVATE" in _head(path)]
    open_ones = [path for path in private if _mode(path) & 0o077]
    if open_ones:
        yield Finding("signing keys", FAIL, f"{open_ones[0]}: others may read it",
                      f"`chmod 600 {open_ones[0]}`, then `scf keys rotate`")  # fmt: skip
    else:
        verdict = OK if keys else FAIL
        yield Finding("signing keys", verdict, f"{len(keys)} files in {home / 'keys'}",
                      None if keys else "Run `scf init`.")  # fmt: skip
    free_bytes = shutil.disk_usage(home).free
    yield Finding("home's disk", OK if free_bytes > FREE_MIN_BYTES else WARN,
                  f"{format_bytes(free_bytes)} free", "Free room for states.")  # fmt: skip


def _drive(config: FoundryConfig) -> Iterator[Finding]:
    try:
        drive = own_drive(config)
    except ScfError as error:
        yield Finding("drive", FAIL, str(error), error.remedy or "Plug it in, or see `scf init`.")
        return
    free_bytes = shutil.disk_usage(drive.root).free
    can_write = os.access(drive.root, os.W_OK)
    detail = f"{drive.root} ({drive.uuid}), {format_bytes(free_bytes)} free"
    yield Finding("drive", OK if can_write else FAIL, detail,
                  None if can_write else f"{drive.root} cannot be written to.")  # fmt: skip


def _daemon(config: FoundryConfig) -> Iterator[Finding]:
    fault = EmergencyLock(config.home).fault()
    if fault is not None:
        yield Finding("emergency lock", WARN, fault, "`scf unlock --reason TEXT`, if it is over.")
    else:
        yield Finding("emergency lock", OK, "clear")
    running = config.home.is_dir() and is_running(config.home)
    detail = "running" if running else "not running"
    yield Finding("daemon", OK if running else WARN, detail, "`scf service install`")


def _training(config: FoundryConfig) -> Iterator[Finding]:
    found = _library("torch", "torch", "train")
    needed = LOCAL in config.doors.order
    yield found if needed or found.verdict == OK else Finding("torch", WARN, found.detail,
                                                              found.remedy)  # fmt: skip


def _library(what: str, module: str, extra: str) -> Finding:
    if importlib.util.find_spec(module) is not None:
        return Finding(what, OK, f"the library {module} is installed")
    return Finding(what, FAIL, f"the library {module} is not installed",
                   f"pip install 'scf[{extra}]'")  # fmt: skip


def _ssh(config: FoundryConfig, *, offline: bool) -> Iterator[Finding]:
    box = box_of(config)
    if offline:
        yield Finding("ssh door", WARN, f"{box.host}:{box.port}: not asked (--offline)")
        return
    from scf.dispatch.remote import sender_of
    from scf.dispatch.transfer import SshLink

    link = SshLink(box, config.home / "ssh", sender_of(config.home))
    said = link.call("prepare", {"wanted": []}, limit_s=30.0)
    detail = f"{box.host}:{box.port} answers with its known key; Python {said.get('python')}"
    yield Finding("ssh door", OK, detail)


def _ray(config: FoundryConfig, *, offline: bool) -> Iterator[Finding]:
    missing = _library("httpx", "httpx", "cloud")
    if missing.verdict != OK:
        yield missing
        return
    cluster = cluster_of(config)
    if offline:
        yield Finding("ray door", WARN, f"{cluster.address}: not asked (--offline)")
        return
    from scf.dispatch.ray_jobs import open_jobs

    version = open_jobs(cluster).check()
    yield Finding("ray door", OK, f"{cluster.address} takes our token and no other; Ray {version}")


def _runpod(config: FoundryConfig, *, offline: bool) -> Iterator[Finding]:
    given = config.runpod
    missing = _library("httpx", "httpx", "cloud")
    if missing.verdict != OK:
        yield missing
        return
    yield from _image(given.image)
    if given.nodes > 1:
        detail = f"{given.nodes} pods; the provider takes no end for a cluster"
        yield Finding("cluster", WARN, detail,
                      "Only the daemon and the reaper are sure to end it: keep both on a machine "
                      "that stays on, and little credit in the account.")  # fmt: skip
    try:
        found = find_key(config.home, given.key_file, os.environ)
    except ScfError as error:
        yield Finding("runpod key", FAIL, str(error), error.remedy)
        return
    if offline:
        yield Finding("runpod key", WARN, f"from {found.origin}; not tried (--offline)")
        return
    client = open_client(account_of(config), timeout_s=ANSWER_S)
    try:
        try:
            account = client.account()
        except KeyRefused as error:
            yield Finding("runpod key", FAIL, f"from {found.origin}; not accepted", error.remedy)
            return
        yield Finding("runpod key", OK, f"from {found.origin}; accepted")
        skew_s = client.clock_skew_s
        if skew_s is None:
            yield Finding("clock", WARN, "the provider did not say its time")
        else:
            verdict = OK if abs(skew_s) <= SKEW_MAX_S else FAIL
            yield Finding("clock", verdict, f"{skew_s:+.0f} s against the provider's",
                          "Set the clock (NTP): leases are moments.")  # fmt: skip
        product = "CLUSTER" if given.nodes > 1 else "POD"
        found_offers = client.gpu_offers(num_gpus=given.num_gpus, product=product)
        offers = {offer.gpu: offer for offer in found_offers}
        yield from _prices(config, offers)
        yield _balance(config, account.balance_usd, offers)
        keys = client.ssh_keys()
        yield Finding("account's ssh keys", OK if keys else WARN, f"{len(keys)} registered",
                      "Our image starts its own ssh server, so this matters only for images that "
                      "rely on RunPod's.")  # fmt: skip
    finally:
        client.close()


def _image(image: str) -> Iterator[Finding]:
    if not image:
        yield Finding("runpod image", FAIL, "[runpod] image is not set",
                      "See docs/operations/first-h100-run.md.")  # fmt: skip
    elif not re.search(r"@sha256:[0-9a-f]{64}$", image):
        yield Finding("runpod image", WARN, f"{image}: named by a tag, which may move",
                      "Name it by digest: NAME@sha256:...")  # fmt: skip
    else:
        yield Finding("runpod image", OK, image)


def _prices(config: FoundryConfig, offers: dict[str, Any]) -> Iterator[Finding]:
    given = config.runpod
    for gpu in given.gpus:
        offer = offers.get(gpu)
        if offer is None:
            yield Finding("gpu", FAIL, f"{gpu}: not in the catalogue",
                          f"Known: {', '.join(sorted(offers)[:12])}.")  # fmt: skip
            continue
        usd_per_h = offer.usd_per_h(_cloud(given)) * given.num_gpus * given.nodes
        together = f" for {given.nodes} pods together" if given.nodes > 1 else ""
        detail = f"{gpu}: {usd_per_h:.2f} USD/h{together}, availability {offer.availability}"
        if usd_per_h <= 0 or usd_per_h > given.max_usd_per_h:
            yield Finding("gpu", WARN, f"{detail}; over max_usd_per_h {given.max_usd_per_h:.2f}",
                          "Passed over. Raise [runpod] max_usd_per_h to have it.")  # fmt: skip
        else:
            verdict = WARN if offer.availability in {None, "NONE"} else OK
            yield Finding("gpu", verdict, detail, "Name other types or data centres, too.")


def _cloud(given: RunpodSection) -> str:
    """A cluster is where the provider has it, at the price of the secure cloud."""
    return "SECURE" if given.nodes > 1 else given.cloud


def _balance(config: FoundryConfig, balance_usd: float | None, offers: dict[str, Any]) -> Finding:
    if balance_usd is None:
        return Finding("balance", WARN, "the provider does not say")
    given = config.runpod
    prices = [offers[gpu].usd_per_h(_cloud(given)) for gpu in given.gpus if gpu in offers]
    needed = min(prices, default=0.0) * given.num_gpus * given.nodes * HOURS_OF_CREDIT
    verdict = OK if balance_usd > needed else FAIL
    return Finding("balance", verdict, f"{balance_usd:.2f} USD",
                   f"At least an hour's credit ({needed:.2f} USD) is needed to rent.")  # fmt: skip


def _guarded(what: str, look: Callable[[], Iterator[Finding]]) -> list[Finding]:
    """What `look` finds; a failure is a finding, too."""
    findings: list[Finding] = []
    try:
        findings.extend(look())
    except (ScfError, DoorError) as error:
        findings.append(Finding(what, FAIL, str(error), error.remedy))
    return findings


def _mode(path: Any) -> int:
    return stat.S_IMODE(path.stat().st_mode)


def _head(path: Any) -> bytes:
    with path.open("rb") as file:
        return bytes(file.read(200))
