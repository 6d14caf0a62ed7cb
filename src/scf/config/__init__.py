"""Settings as values: built once from scf.toml and the environment, checked once."""

from scf.config.conducting import RunSettings, StartSettings, TuneSettings
from scf.config.doors import DoorsSection, RaySection, RunpodSection, SshSection
from scf.config.home import find_home, record_home
from scf.config.settings import (
    DaemonSettings,
    FoundryConfig,
    GateSettings,
    ReleaseSettings,
    TrainingSettings,
    VaultSettings,
    load_config,
)

__all__ = [
    "DaemonSettings",
    "DoorsSection",
    "FoundryConfig",
    "GateSettings",
    "RaySection",
    "ReleaseSettings",
    "RunSettings",
    "RunpodSection",
    "SshSection",
    "StartSettings",
    "TrainingSettings",
    "TuneSettings",
    "VaultSettings",
    "find_home",
    "load_config",
    "record_home",
]
