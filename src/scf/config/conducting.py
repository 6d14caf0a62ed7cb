"""Settings of the conductor's judgement: when a run starts, what it may take, what it may try."""

from dataclasses import dataclass, fields

from scf.core.errors import UsageError
from scf.core.units import parse_size_bytes


@dataclass(frozen=True, kw_only=True)
class StartSettings:
    """What starts a run before `[daemon] min_fresh_fossils` are there. 0 and "" leave a rule out.

    Each needs at least one fresh fossil; a run on nothing new is asked for with `scf run-now`.

    Attributes:
        fresh_age_h: A fresh fossil has waited so many hours.
        novel_share: This share of the fresh fossils is stranger to the champion than 95 of 100
            fossils that it was measured on (0.05 would be usual). Asked of a short job.
        novel_fossils_min: Fewer fresh fossils are not asked about.
        schedule: `every 7 days`, `every 12 hours`, or five fields as in a crontab (UTC).
    """

    fresh_age_h: float = 0.0
    novel_share: float = 0.0
    novel_fossils_min: int = 8
    schedule: str = ""


@dataclass(frozen=True, kw_only=True)
class RunSettings:
    """What one run may take, trying again included where a door measures it. 0 is no limit.

    Attributes:
        usd_max: A door at whose price the job could cost more is not used.
        seconds_max: A job is ended after this long, if that is less than `job_deadline_s`.
        joules_max: A door whose power could make it more, or is unknown, is not used; and where
            there are meters, training is ended once it took more, all its tries together.
        within_h: Doors that would not be done by then are used only where no other is left.
        upload_bytes_per_s: How fast data gets to other machines, for weighing them.
        local_power_w: What this machine draws under load; 0 where nobody knows.
        ssh_power_w: What the machine of `[ssh]` draws.
        runpod_power_w: What a rented machine draws.
        ray_power_w: What the machines of `[ray]` draw together.
    """

    usd_max: float = 0.0
    seconds_max: float = 0.0
    joules_max: float = 0.0
    within_h: float = 0.0
    upload_bytes_per_s: float = 10e6
    local_power_w: float = 0.0
    ssh_power_w: float = 0.0
    runpod_power_w: float = 0.0
    ray_power_w: float = 0.0


@dataclass(frozen=True, kw_only=True)
class KeepSettings:
    """What is kept, and how much room each partition has. `scf budget set` goes before it.

    Attributes:
        generations: Newest generations that stay in the zoo, beside released ones, champion, best.
        jobs: Bundles of ended runs that stay in system_cache/jobs.
        fossil_vault: Room for a partition, such as `1.2 TB`; empty leaves it as the drive has it.
        energy_atlas: Likewise.
        model_zoo: Likewise.
        release_history: Likewise.
        zk_proofs: Likewise.
        system_cache: Likewise.
    """

    generations: int = 5
    jobs: int = 40
    fossil_vault: str = ""
    energy_atlas: str = ""
    model_zoo: str = ""
    release_history: str = ""
    zk_proofs: str = ""
    system_cache: str = ""

    def room(self) -> dict[str, int]:
        """Bytes for each partition that is named. Raises UsageError for a text that is no size."""
        texts = {field.name: getattr(self, field.name) for field in fields(self)}
        return {
            name: parse_size_bytes(text)
            for name, text in texts.items()
            if isinstance(text, str) and text
        }

    def is_room(self, name: str) -> bool:
        """Whether the text for a partition is a size, or none."""
        text = getattr(self, name)
        try:
            return not text or parse_size_bytes(text) > 0
        except UsageError:
            return False


@dataclass(frozen=True, kw_only=True)
class TuneSettings:
    """Which settings of training are proposed from past attempts (needs the extra `[tune]`).

    A pair of equal bounds leaves a setting as it is.

    Attributes:
        enabled: Whether anything is proposed.
        learning_rate_min: Bounds of `learning_rate`; tried on a logarithmic scale.
        learning_rate_max: Likewise.
        weight_decay_min: Bounds of `weight_decay`.
        weight_decay_max: Likewise.
        batch_size_min: Bounds of `batch_size`; powers of two between them are tried.
        batch_size_max: Likewise.
        first_random: So many runs are spread over the bounds before past ones guide.
    """

    enabled: bool = False
    learning_rate_min: float = 5e-4
    learning_rate_max: float = 8e-3
    weight_decay_min: float = 0.05
    weight_decay_max: float = 1.0
    batch_size_min: int = 64
    batch_size_max: int = 256
    first_random: int = 4


Rule = tuple[str, object, bool, str]


def conducting_rules(
    start: StartSettings, run: RunSettings, tune: TuneSettings, keep: KeepSettings
) -> list[Rule]:
    """(name, value, whether it is good, what is wanted) of each value that can be wrong."""
    from scf.config.schedule import Schedule

    limits = [
        (f"[run] {name}", getattr(run, name), getattr(run, name) >= 0, "0 or more")
        for name in (
            "usd_max",
            "seconds_max",
            "joules_max",
            "within_h",
            "local_power_w",
            "ssh_power_w",
            "runpod_power_w",
            "ray_power_w",
        )
    ]
    pairs = [
        ("learning_rate", tune.learning_rate_min, tune.learning_rate_max),
        ("weight_decay", tune.weight_decay_min, tune.weight_decay_max),
        ("batch_size", tune.batch_size_min, tune.batch_size_max),
    ]
    return [
        ("[start] fresh_age_h", start.fresh_age_h, start.fresh_age_h >= 0, "0 or more"),
        ("[start] novel_share", start.novel_share, 0 <= start.novel_share <= 1, "from 0 to 1"),
        ("[start] novel_fossils_min", start.novel_fossils_min, start.novel_fossils_min > 0,
         "more than 0"),
        ("[start] schedule", start.schedule, Schedule.is_one(start.schedule), Schedule.FORMS),
        *limits,
        ("[run] upload_bytes_per_s", run.upload_bytes_per_s, run.upload_bytes_per_s > 0,
         "more than 0"),
        ("[keep] generations", keep.generations, keep.generations > 0, "more than 0"),
        ("[keep] jobs", keep.jobs, keep.jobs > 0, "more than 0"),
        *((f"[keep] {name}", getattr(keep, name), keep.is_room(name), "a size such as '1.2 TB'")
          for name in ("fossil_vault", "energy_atlas", "model_zoo", "release_history", "zk_proofs",
                       "system_cache")),
        *((f"[tune] {name}_min", low, 0 < low <= high, f"above 0, at most {name}_max = {high!r}")
          for name, low, high in pairs),
        ("[tune] first_random", tune.first_random, tune.first_random > 0, "more than 0"),
    ]  # fmt: skip
