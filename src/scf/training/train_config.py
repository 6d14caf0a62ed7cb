"""Every setting of a training run, as one frozen value. No torch here.

Settings come from a preset (a TOML file under `presets/`), then a JSON file, then the command line;
the later wins. An unknown key is an error that lists the known ones. The whole value is stored in
the checkpoint's `config.json`.
"""

import dataclasses
import difflib
import importlib.resources
import math
import tomllib
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from scf.core.errors import UsageError

DEVICES = ("auto", "cuda", "mps", "cpu")
SYMMETRIES = ("translation", "sign", "rotation")
CHOICES = {
    "body": ("auto", "mlp", "lattice"),
    "antithetic": ("auto", "on", "off"),
    "targets": ("auto", "own", "shared"),
    "bounds": ("auto", "off"),
    "precision": ("fp32", "bf16"),
    "compile": ("auto", "on", "off"),
    "sharding": ("none", "fsdp2"),
    "device": DEVICES,
}
_PRESETS = importlib.resources.files("scf.training") / "presets"


@dataclass(frozen=True, kw_only=True)
class TrainConfig:
    """How a model is made.

    Nothing here but the limits depends on how long a run lasts: learning rate and averaging are
    functions of the step alone. So a run can be stopped anywhere, and a resumed one repeats the
    uninterrupted one whatever its limits were.

    Attributes:
        preset: Where the other defaults came from.
        width: Units of a layer; time grows with its square, and so does what can be learned.
        depth: Residual blocks.
        site_width: Units of the network that reads one site at a time; 0 leaves it out.
        body: `mlp` reads the whole record at once; `lattice` sums a local energy over the sites of
            a grid. `auto` takes the lattice where all fields share a grid of two or three axes, or
            of one that is periodic.
        field_width: Features of a site in a lattice.
        field_depth: Its residual blocks, on each level.
        field_levels: Grids it works on, each half as fine as the one before (a U-Net). 0 takes one,
            and more only where the Gaussian is diagonal: then one below 16 sites a side and one
            more for each doubling.
        field_powers: 1: a lattice also sums powers of its fields, and is told the Gaussian's own
            score (`models/powers.py`). For fields of strong long waves: phi^4 32x32 near its
            transition. 0 leaves it out.
        field_modes: Long waves along each axis that its blocks filter as wholes, each by a learned
            matrix (`models/spectral.py`); 0 leaves that out. Not over open edges.
        symmetry: `none`, or of `translation`, `sign` and `rotation` with commas. The first two are
            built into a lattice and its Gaussian (sign brings translation along). `rotation` (turns
            and reflections of the grid), and `sign` with the mlp, are had by averaging over all
            images, at so many times the cost. `auto` takes translation where the grid is periodic
            and the fossils' means and variances are the same at all sites.
        bounds: `auto` builds known bounds (radiation is not negative) into the energy, `off` does
            not.
        residual_weight: Above 0, known residuals (`models/laws.py`) are a term of the energy: 1
            takes each tolerance as a standard deviation. 0 leaves them to the data.
        clusters: Above 0, an mlp departs from a mixture of so many Gaussians in place of one,
            fitted to the fossils: for groups of unequal width in many dimensions
            (`models/clusters.py`).
        batch_size: Fossils for one step.
        microbatch: Rows in one pass of a process; a minibatch is computed in so many parts. 0 takes
            all at once. Where memory is short it is halved until a pass fits. The gradient is the
            same.
        precision: `fp32`, or `bf16` for the networks' layers; heads, sums and losses are float32 in
            any case, and whatever is measured is.
        compile: `on`, `off`, or `auto`: on CUDA. Twice the steps for the mlp, none more for the
            lattice on a CPU, after a minute or two (`training/compiled.py`).
        antithetic: `on`: half as many different fossils in a step, each with a noise and with its
            opposite. At small sigma what the noise does to the gradient cancels, so small sigma
            counts for more. `auto` is on for a lattice, off for the mlp.
        targets: `own`: each noisy fossil aims back at its own clean one. `shared`: at the mean over
            all fossils of the minibatch that it may have come from, which has the same optimum and
            fluctuates less (`losses.expected_noise`). `auto` shares where it can: without given
            fields and without a true score.
        learning_rate: Of AdamW, at its highest (after warm-up).
        warmup_steps: Steps over which the learning rate rises from 0.
        decay_steps: From here the learning rate falls like 1/sqrt(step) (EDM2, arXiv 2312.02696).
        cosine_steps: Instead of that, half a cosine down to 0 at this step (set `max_steps` to it);
            0 keeps the falling root, which needs to know no end.
        weight_decay: Of AdamW where fossils are few; it falls as fossils a number grow (see
            `weight_decay_for`).
        gradient_norm_max: Longer gradients are shortened to this.
        dual_weight: Weight of the time-score term against denoising; 0 gives energies without a
            normaliser.
        contrastive_seconds: Above 0, a second phase of contrastive divergence is tried at the end:
            two copies get so long each, and the better is kept (`training/contrastive.py`). On the
            systems measured it did not earn its place (docs/LOG.md), so it is off.
        contrastive_weight: Of its term against denoising.
        ema_gamma: Exponent of the power-function average of the weights (EDM2 eq. 8); 6.94 averages
            over about the last tenth of the run, however long it is.
        sigma_min: Smallest trained noise, in scales of the data.
        sigma_max: Largest.
        sigma_log_mean: Mean of ln sigma where most details are decided.
        sigma_log_std: Its spread.
        sigma_uniform_fraction: Share of noise levels drawn uniformly in ln sigma.
        score_sigma: Default sigma of `scf score`, in scales of the data.
        validation_fraction: Share of the training fossils (chosen by their CIDs) that no step sees:
            they choose which averaged weights are kept.
        validation_max: At most so many fossils.
        evaluate_every: Steps between looks at them.
        patience: Stop early once the step is this many times that of the best weights; 0 never.
        calibration_particles: Particles that measure the normaliser; fewer above 64 numbers, so
        that
            it stays a matter of seconds. 0 leaves the normaliser to the dual term alone.
        memory_max_bytes: Fossils that fit are loaded once; more are streamed.
        cache_share: What the shard cache may take of `system_cache`, on a drive of ours; 0 streams
            from NDJSON.
        max_seconds: Limit on training time over the whole life of a run, resumes included.
        max_steps: Limit on steps, likewise.
        checkpoint_every_s: Pause between checkpoints to resume from.
        seed: Same seed, same run, bit for bit on one CPU with one number of threads.
        device: `auto` takes cuda, then mps (large networks), then cpu.
        threads: CPU threads; 0 takes one for small models and all for large ones.
        sharding: Of several processes (torchrun): `none`: each holds all weights; `fsdp2`: weights
            at rest, gradients, moments and averages are dealt out.
        peer_limit_s: A process waits so long for the others, and no longer.
        weights: File that says how often each fossil is used (docs/formats/weights.md); "": all
            alike. A run that goes on must be given the same; another is refused.
        parent: Checkpoint to go on from: its weights and its frame; "" begins anew.
    """

    preset: str = "base"
    width: int = 192
    depth: int = 2
    site_width: int = 32
    body: str = "auto"
    field_width: int = 16
    field_depth: int = 1
    field_levels: int = 0
    field_modes: int = 0
    field_powers: int = 0
    symmetry: str = "auto"
    bounds: str = "auto"
    residual_weight: float = 0.0
    clusters: int = 0
    batch_size: int = 128
    microbatch: int = 0
    precision: str = "fp32"
    compile: str = "auto"
    antithetic: str = "auto"
    targets: str = "auto"
    learning_rate: float = 2e-3
    warmup_steps: int = 50
    decay_steps: int = 1000
    cosine_steps: int = 0
    weight_decay: float = 1.0
    gradient_norm_max: float = 1.0
    dual_weight: float = 0.05
    contrastive_seconds: float = 0.0
    contrastive_weight: float = 0.01
    ema_gamma: float = 6.94
    sigma_min: float = 0.01
    sigma_max: float = 30.0
    sigma_log_mean: float = -0.7
    sigma_log_std: float = 1.3
    sigma_uniform_fraction: float = 0.5
    score_sigma: float = 0.05
    validation_fraction: float = 0.1
    validation_max: int = 512
    evaluate_every: int = 100
    patience: float = 3.0
    calibration_particles: int = 1024
    memory_max_bytes: int = 2_000_000_000
    cache_share: float = 0.75
    max_seconds: float = 75.0
    max_steps: int = 200_000
    checkpoint_every_s: float = 60.0
    seed: int = 0
    device: str = "auto"
    threads: int = 0
    sharding: str = "none"
    peer_limit_s: float = 300.0
    weights: str = ""
    parent: str = ""

    def __post_init__(self) -> None:
        positive = (
            "width", "depth", "field_width", "field_depth", "batch_size", "learning_rate",
            "warmup_steps", "decay_steps", "gradient_norm_max", "sigma_min", "sigma_log_std",
            "score_sigma", "evaluate_every", "memory_max_bytes", "max_seconds", "max_steps",
            "checkpoint_every_s", "peer_limit_s",
        )  # fmt: skip
        for name in positive:
            if not getattr(self, name) > 0:
                raise UsageError(f"{name} = {getattr(self, name)} must be above 0")
        for name in (
            "site_width",
            "residual_weight",
            "clusters",
            "field_levels",
            "field_modes",
            "field_powers",
            "weight_decay",
            "dual_weight",
            "ema_gamma",
            "cosine_steps",
            "contrastive_seconds",
            "contrastive_weight",
            "threads",
            "microbatch",
            "patience",
            "calibration_particles",
        ):
            if not getattr(self, name) >= 0:
                raise UsageError(f"{name} = {getattr(self, name)} must not be below 0")
        if not 0 <= self.cache_share <= 1:
            raise UsageError(f"cache_share = {self.cache_share} must be a share of one")
        if not 0 <= self.validation_fraction < 1 or not 0 <= self.sigma_uniform_fraction <= 1:
            raise UsageError("validation_fraction and sigma_uniform_fraction are shares of one")
        if not self.sigma_min <= self.score_sigma < self.sigma_max:
            raise UsageError("noise levels must obey sigma_min <= score_sigma < sigma_max")
        for name, known in CHOICES.items():
            if getattr(self, name) not in known:
                raise UsageError(f"{name} {getattr(self, name)!r} is not one of {', '.join(known)}")
        if self.symmetry not in {"auto", "none"} and not self.symmetries <= set(SYMMETRIES):
            raise UsageError(
                f"symmetry {self.symmetry!r} is not auto, none or of {', '.join(SYMMETRIES)}"
            )

    @property
    def symmetries(self) -> set[str]:
        """What `symmetry` names, beside `auto` and `none`."""
        return {part.strip() for part in self.symmetry.split(",")} - {"auto", "none", ""}

    def learning_rate_at(self, step: int) -> float:
        """Learning rate of step `step`, counted from 1."""
        rise = min(1.0, step / self.warmup_steps)
        if self.cosine_steps:
            share = min(1.0, step / self.cosine_steps)
            return self.learning_rate * rise * 0.5 * (1 + math.cos(math.pi * share))
        return self.learning_rate * rise / math.sqrt(max(1.0, step / self.decay_steps))

    def weight_decay_for(self, size: int, num_fossils: int) -> float:
        """Weight decay for records of `size` numbers: all of it below 4 fossils a number.

        Measured (docs/LOG.md): 930 days of 192 numbers want 1.0, 4000 points of 2 numbers want 0.
        """
        return self.weight_decay * min(1.0, 4.0 * size / num_fossils)

    def particles_for(self, size: int, body: str = "mlp") -> int:
        """Particles for records of `size` numbers.

        A lattice costs more for each and lies nearer to its Gaussian: a quarter of them.
        """
        wanted = self.calibration_particles * 64 // size
        if body == "lattice":
            return min(max(1, self.calibration_particles // 4), max(128, wanted // 4))
        return min(self.calibration_particles, max(128, wanted))

    def to_json(self) -> dict[str, Any]:
        return dataclasses.asdict(self)

    @classmethod
    def from_json(cls, values: Mapping[str, Any]) -> "TrainConfig":
        """A config that was stored, every key present or at its default.

        Raises:
            UsageError: An unknown key, or a value of the wrong kind.
        """
        return cls(**_checked(values, "config"))


def preset_names() -> list[str]:
    """The presets that exist."""
    return sorted(path.name.removesuffix(".toml") for path in _PRESETS.iterdir()
                  if path.name.endswith(".toml"))  # fmt: skip


def build_config(*layers: Mapping[str, Any]) -> TrainConfig:
    """Preset, then each layer over it; the preset is the one that the last layer names.

    Raises:
        UsageError: An unknown preset or key, or a value of the wrong kind.
    """
    merged: dict[str, Any] = {}
    for layer in layers:
        merged |= layer
    name = merged.get("preset", "base")
    if name not in preset_names():
        raise UsageError(f"preset {name!r} is not one of {', '.join(preset_names())}")
    text = (_PRESETS / f"{name}.toml").read_text(encoding="utf-8")
    return TrainConfig(**_checked({**tomllib.loads(text), **merged, "preset": name}, "settings"))


def _checked(values: Mapping[str, Any], what: str) -> dict[str, Any]:
    known = {field.name: field.type for field in dataclasses.fields(TrainConfig)}
    checked: dict[str, Any] = {}
    for key, value in values.items():
        if key not in known:
            near = difflib.get_close_matches(key, known, n=1)
            meant = f"; did you mean {near[0]!r}?" if near else ""
            raise UsageError(
                f"{what}: unknown key {key!r}{meant}", remedy=f"Known keys: {', '.join(known)}."
            )
        kind = known[key]
        is_number = isinstance(value, int | float) and not isinstance(value, bool)
        fits = (
            isinstance(value, str)
            if kind is str
            else is_number and (kind is float or float(value).is_integer())
        )
        if not fits:
            raise UsageError(f"{what}: {key} = {value!r} is not {getattr(kind, '__name__', kind)}")
        checked[key] = value if kind is str else kind(value)  # type: ignore[operator]
    return checked
