"""`FoundryConfig`: every setting, with its unit, a default that works, and what moves with it.

Precedence: command line, environment (`SCF_ROOT`, `SCF_HOME`), `scf.toml` in the home, default. An
unknown key is an error that lists the known ones.
"""

import dataclasses
import tomllib
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from scf.config.conducting import (
    KeepSettings,
    RunSettings,
    StartSettings,
    TuneSettings,
    conducting_rules,
)
from scf.config.doors import DoorsSection, RaySection, RunpodSection, SshSection, door_rules
from scf.core.errors import OperatorError, UsageError

CONFIG_NAME = "scf.toml"
GEARS = ("STANDARD", "ACCELERATED", "HYPER", "SINGULARITY")
# Shifts by what waits.
AUTO_GEAR = "AUTO"
DEVICES = ("auto", "cuda", "mps", "cpu")


@dataclass(frozen=True, kw_only=True)
class VaultSettings:
    """How fossils are kept.

    Attributes:
        shard_bytes: A shard is closed once it holds this much; larger shards mean fewer files.
        line_max_bytes: A longer line is quarantined unread, so that no file can fill the memory.
        record_max_bytes: A record with more numbers than this is quarantined; one takes up to seven
            times its size in memory while it becomes a line.
    """

    shard_bytes: int = 256_000_000
    line_max_bytes: int = 64 * 2**20
    record_max_bytes: int = 128 * 2**20


@dataclass(frozen=True, kw_only=True)
class TrainingSettings:
    """The budget and shape of one training run; the defaults fit a CPU.

    Attributes:
        preset: Network and optimiser settings by name (`tiny`, `base`).
        max_seconds: Training stops here, whatever step it has reached.
        max_steps: And here, whatever time is left.
        batch_size: Fossils for one optimiser step.
        device: `auto` takes cuda, then mps, then cpu.
        checkpoint_every_s: Pause between checkpoints; a lost machine costs at most this much work.
        seed: Seeds initial weights, noise and order; the same seed gives the same run on CPU.
        held_out_fraction: Share of families that no run ever trains on.
        fresh_share: Share of each epoch for fossils that the champion was not trained on, against
            those that it was; 0 uses all alike. More follows news faster and forgets sooner.
        cache_share: What the shard cache may take of `system_cache`; 0 switches it off, and fossils
            are streamed from NDJSON, 5 to 40 times slower.
    """

    preset: str = "base"
    max_seconds: float = 75.0
    max_steps: int = 200_000
    batch_size: int = 128
    device: str = "auto"
    checkpoint_every_s: float = 60.0
    seed: int = 0
    held_out_fraction: float = 0.15
    fresh_share: float = 0.0
    cache_share: float = 0.75


@dataclass(frozen=True, kw_only=True)
class DaemonSettings:
    """When the conductor acts.

    Attributes:
        gear: Polling floor by name: STANDARD 5 s, ACCELERATED 1 s, HYPER 0.1 s, SINGULARITY 0.05 s;
            AUTO shifts by what waits.
        min_fresh_fossils: A run starts once the vault holds this many that the last plan had not.
        settle_s: Fresh fossils are left alone until the vault has been still for this long.
        job_deadline_s: A job that runs longer is ended.
        max_attempts: A run that failed this often is parked with its reason.
        auto_release: Pack the weekly release when one is due.
        hardware_token: A file on a key that somebody can pull: while it is not there, the emergency
            lock is set. Empty: there is none.
        scratch_control: Also train what has a parent from nothing, within the same budget, and
            measure it beside: what going on is worth. Doubles the training.
    """

    gear: str = "STANDARD"
    min_fresh_fossils: int = 64
    settle_s: float = 2.0
    job_deadline_s: float = 6 * 3600.0
    max_attempts: int = 3
    auto_release: bool = True
    hardware_token: str = ""
    scratch_control: bool = False


@dataclass(frozen=True, kw_only=True)
class GateSettings:
    """What a candidate must show.

    Attributes:
        alpha: Chance of promoting one that is no better.
        min_families: Held-out families needed before a champion can be replaced.
        looks: Candidates that may be judged on the held-out pool within `looks_days`; each is a
            chance of `alpha` to promote one that is no better.
        looks_days: Over so many days they are counted.
    """

    alpha: float = 0.05
    min_families: int = 20
    looks: int = 20
    looks_days: int = 28


@dataclass(frozen=True, kw_only=True)
class ReleaseSettings:
    """The weekly release.

    Attributes:
        push: Where `scf release make --publish` and `scf release push` send it: `folder:/PATH`,
            `s3://BUCKET/PREFIX`, `hf://OWNER/REPOSITORY`, `github://OWNER/REPOSITORY`. Credentials
            never stand here: docs/operations/publish.md says where they come from.
        size_max_mb: What one release may take, in MB; 0 is a 52nd of release_history's budget.
    """

    push: tuple[str, ...] = ()
    size_max_mb: float = 0.0

    @property
    def size_max_bytes(self) -> int | None:
        """The cap; None for the default."""
        return int(self.size_max_mb * 1e6) or None


@dataclass(frozen=True, kw_only=True)
class FoundryConfig:
    """All settings, built once in `main`.

    Attributes:
        home: Small state, on the internal disk.
        root: The drive's root; None until `scf init` or `SCF_ROOT` names one.
    """

    home: Path
    root: Path | None = None
    vault: VaultSettings = field(default_factory=VaultSettings)
    training: TrainingSettings = field(default_factory=TrainingSettings)
    daemon: DaemonSettings = field(default_factory=DaemonSettings)
    gate: GateSettings = field(default_factory=GateSettings)
    doors: DoorsSection = field(default_factory=DoorsSection)
    ssh: SshSection = field(default_factory=SshSection)
    runpod: RunpodSection = field(default_factory=RunpodSection)
    ray: RaySection = field(default_factory=RaySection)
    start: StartSettings = field(default_factory=StartSettings)
    run: RunSettings = field(default_factory=RunSettings)
    tune: TuneSettings = field(default_factory=TuneSettings)
    keep: KeepSettings = field(default_factory=KeepSettings)
    release: ReleaseSettings = field(default_factory=ReleaseSettings)

    def public(self) -> dict[str, Any]:
        """What a release may show: how models are made, and no path, host, account or address."""
        return {name: dataclasses.asdict(getattr(self, name)) for name in _PUBLIC}

    @property
    def token(self) -> Path | None:
        """The hardware token, where one is configured."""
        text = self.daemon.hardware_token
        return Path(text).expanduser() if text else None

    def need_root(self) -> Path:
        """The drive's root. Raises OperatorError when none is configured."""
        if self.root is None:
            raise OperatorError(
                f"no drive is configured for the home {self.home}",
                remedy="Run `scf init --root DIR`, or set SCF_ROOT.",
            )
        return self.root


_SECTIONS: dict[str, type] = {
    "vault": VaultSettings,
    "training": TrainingSettings,
    "daemon": DaemonSettings,
    "gate": GateSettings,
    "doors": DoorsSection,
    "ssh": SshSection,
    "runpod": RunpodSection,
    "ray": RaySection,
    "start": StartSettings,
    "run": RunSettings,
    "tune": TuneSettings,
    "keep": KeepSettings,
    "release": ReleaseSettings,
}
# Sections that releases show. A new section stays private until it is named here.
_PUBLIC = ("vault", "training", "daemon", "gate", "start", "run", "tune")
# Environment variables that go before a setting of [runpod].
_ADDRESSES = {"SCF_RUNPOD_REST": "rest", "SCF_RUNPOD_GRAPHQL": "graphql"}


def load_config(
    home: Path, *, root: Path | None = None, environment: Mapping[str, str]
) -> FoundryConfig:
    """Read `home/scf.toml` (absent: defaults) and apply the environment and `root` over it.

    Raises:
        UsageError: The file is not TOML, or a key or value is not understood.
    """
    path = home / CONFIG_NAME
    table = _read_toml(path)
    known = {"root", *_SECTIONS}
    _refuse_unknown(path, "", set(table), known)
    sections = {name: _section(path, name, kind, table) for name, kind in _SECTIONS.items()}
    addresses = {
        key: environment[name] for name, key in _ADDRESSES.items() if environment.get(name)
    }
    sections["runpod"] = dataclasses.replace(sections["runpod"], **addresses)
    chosen = root or environment.get("SCF_ROOT") or table.get("root")
    config = FoundryConfig(
        home=home,
        root=Path(chosen).expanduser().resolve() if chosen else None,
        **sections,
    )
    _check_values(path, config)
    return config


def _read_toml(path: Path) -> dict[str, Any]:
    try:
        return tomllib.loads(path.read_text())
    except FileNotFoundError:
        return {}
    except (OSError, UnicodeDecodeError, tomllib.TOMLDecodeError) as error:
        raise UsageError(f"{path}: cannot be read as TOML: {error}") from error


def _section(path: Path, name: str, kind: type, table: Mapping[str, Any]) -> Any:
    values = table.get(name, {})
    if not isinstance(values, dict):
        raise UsageError(f"{path}: [{name}] must be a table, found {values!r}")
    fields = {f.name: f for f in dataclasses.fields(kind)}
    if name == "runpod" and "api_key" in values:
        raise UsageError(
            f"{path}: [runpod] the API key does not stand here, where backups and pages see it",
            remedy="Give it as RUNPOD_API_KEY, or in a file of mode 0600 (`key_file`); see "
            "docs/operations/first-h100-run.md.",
        )
    _refuse_unknown(path, f"[{name}] ", set(values), set(fields))
    return kind(**{key: _typed(path, name, fields[key], value) for key, value in values.items()})


def _typed(path: Path, section: str, setting: "dataclasses.Field[Any]", value: Any) -> Any:
    kind = type(setting.default)
    if kind is float and isinstance(value, int) and not isinstance(value, bool):
        return float(value)
    if kind is tuple and isinstance(value, list) and all(isinstance(one, str) for one in value):
        return tuple(value)
    if type(value) is not kind:
        raise UsageError(
            f"{path}: [{section}] {setting.name} = {value!r} must be of type {_kind_text(kind)}"
        )
    return value


def _kind_text(kind: type) -> str:
    return "list of texts" if kind is tuple else kind.__name__


def _refuse_unknown(path: Path, where: str, found: set[str], known: set[str]) -> None:
    unknown = sorted(found - known)
    if unknown:
        raise UsageError(
            f"{path}: {where}has no setting {unknown[0]!r}",
            remedy=f"Known here: {', '.join(sorted(known))}.",
        )


def _check_values(path: Path, config: FoundryConfig) -> None:
    rules = [
        ("[daemon] gear", config.daemon.gear, config.daemon.gear in {*GEARS, AUTO_GEAR},
         " | ".join((*GEARS, AUTO_GEAR))),
        ("[training] device", config.training.device, config.training.device in DEVICES,
         " | ".join(DEVICES)),
        ("[training] max_seconds", config.training.max_seconds, config.training.max_seconds > 0,
         "more than 0"),
        ("[training] max_steps", config.training.max_steps, config.training.max_steps > 0,
         "more than 0"),
        ("[training] batch_size", config.training.batch_size, config.training.batch_size > 0,
         "more than 0"),
        ("[training] held_out_fraction", config.training.held_out_fraction,
         0 < config.training.held_out_fraction < 1, "between 0 and 1"),
        ("[training] fresh_share", config.training.fresh_share,
         0 <= config.training.fresh_share < 1, "0, or below 1"),
        ("[training] cache_share", config.training.cache_share,
         0 <= config.training.cache_share <= 1, "between 0 and 1"),
        ("[vault] shard_bytes", config.vault.shard_bytes, config.vault.shard_bytes >= 1_000_000,
         "at least 1000000"),
        ("[vault] line_max_bytes", config.vault.line_max_bytes,
         config.vault.line_max_bytes >= 65536, "at least 65536"),
        ("[vault] record_max_bytes", config.vault.record_max_bytes,
         config.vault.record_max_bytes >= 65536, "at least 65536"),
        ("[daemon] min_fresh_fossils", config.daemon.min_fresh_fossils,
         config.daemon.min_fresh_fossils > 0, "more than 0"),
        ("[daemon] max_attempts", config.daemon.max_attempts, config.daemon.max_attempts > 0,
         "more than 0"),
        ("[gate] alpha", config.gate.alpha, 0 < config.gate.alpha < 0.5, "between 0 and 0.5"),
        ("[gate] looks", config.gate.looks, config.gate.looks > 0, "more than 0"),
        ("[gate] looks_days", config.gate.looks_days, config.gate.looks_days > 0, "more than 0"),
        ("[release] size_max_mb", config.release.size_max_mb, config.release.size_max_mb >= 0,
         "0 or more"),
        *door_rules(config.doors, config.ssh, config.runpod, config.ray),
        *conducting_rules(config.start, config.run, config.tune, config.keep),
    ]  # fmt: skip
    for name, value, is_good, wanted in rules:
        if not is_good:
            raise UsageError(f"{path}: {name} = {value!r} must be {wanted}")


def config_text(root: Path) -> str:
    """The scf.toml that `scf init` writes: the root, and every default as a comment."""
    lines = [
        "# Settings of this foundry. A line that begins with # shows a default.",
        f"root = {_toml_text(str(root))}",
    ]
    for name, kind in _SECTIONS.items():
        lines += ["", f"[{name}]"]
        for setting in dataclasses.fields(kind):
            lines.append(f"# {setting.name} = {_toml_value(setting.default)}")
    return "\n".join(lines) + "\n"


def _toml_value(value: Any) -> str:
    if isinstance(value, bool):
        return "true" if value else "false"
    if isinstance(value, tuple):
        return f"[{', '.join(map(_toml_value, value))}]"
    return _toml_text(value) if isinstance(value, str) else repr(value)


def _toml_text(text: str) -> str:
    escaped = text.replace("\\", "\\\\").replace('"', '\\"')
    return f'"{escaped}"'
