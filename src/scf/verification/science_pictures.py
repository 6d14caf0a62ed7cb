"""One picture a system: energies against the truth, errors by noise level, samples and records."""

from collections.abc import Mapping
from typing import Any, BinaryIO

import numpy as np

from scf.verification.plotting import INK, REAL, SAMPLED, pyplot
from scf.verification.reference_systems import Array
from scf.verification.science_figures import Measured

_SHOWN = 0.1


def draw_science(
    file: BinaryIO, title: str, measured: Measured, *, is_field: bool, unit: str
) -> None:
    """Write a PNG.

    Args:
        file: Where to.
        title: Above all panels.
        measured: What is drawn.
        is_field: Records have a last axis with waves along it; else they are points.
        unit: What noise levels are counted in.

    Raises:
        MissingTool: matplotlib is not installed.
    """
    with pyplot() as plt:
        figure, (left, middle, right) = plt.subplots(1, 3, figsize=(12, 4), dpi=130)
        figure.suptitle(title, x=0.04, ha="left", fontsize=12, weight="bold", color=INK)
        if not measured.levels:
            _draw_fields((left, middle), measured)
            _draw_waves(right, measured.fresh, measured.sampled)
            _save(figure, file)
            plt.close(figure)
            return
        level = min(measured.levels, key=lambda found: abs(found.level - _SHOWN))
        ends = [float(level.true_N.min()), float(level.true_N.max())]
        left.plot(ends, ends, color="#999999", lw=1, zorder=0)
        left.plot(level.true_N, level.found_N, ".", ms=3, color=REAL, alpha=0.6)
        left.set_xlabel(f"true energy, sigma {level.level:g} [nats]")
        left.set_ylabel("model's energy [nats]")
        left.set_title("fresh records with noise")
        _draw_errors(middle, measured.figures, unit)
        (_draw_waves if is_field else _draw_points)(right, measured.fresh, measured.sampled)
        _save(figure, file)
        plt.close(figure)


def _save(figure: Any, file: BinaryIO) -> None:
    figure.tight_layout(rect=(0, 0, 1, 0.95))
    figure.savefig(file, format="png")


def _draw_fields(panels: tuple[Any, Any], measured: Measured) -> None:
    """Channels of a true and of a sampled record, one above the other."""
    for axes, x, label in zip(
        panels, (measured.fresh, measured.sampled), ("true", "sampled"), strict=True
    ):
        record = np.concatenate([(c - c.min()) / (np.ptp(c) + 1e-12) for c in x[0]], axis=0)
        axes.imshow(record, cmap="viridis")
        axes.set_title(f"{label}: channels of one record")
        axes.set_axis_off()


def _draw_errors(axes: Any, figures: Mapping[str, float], unit: str) -> None:
    for name, colour, label in (
        ("score_error", REAL, "score, relative"),
        ("energy_mae", SAMPLED, "energy, mean absolute [nats]"),
    ):
        found = {
            float(key.partition("@")[2]): value
            for key, value in figures.items()
            if key.startswith(f"{name}@")
        }
        axes.loglog(list(found), list(found.values()), "o-", color=colour, label=label)
    axes.set_xlabel(f"sigma [{unit}]")
    axes.set_ylabel("error")
    axes.set_title("errors by noise level")
    axes.legend(frameon=False)


def _draw_points(axes: Any, fresh: Array, sampled: Array) -> None:
    """Points in a plane; of more numbers, the two directions in which true records differ most."""
    name, turned = "records", (fresh, sampled)
    if fresh.shape[1] > 2:
        name = "records, first two principal axes"
        _, vectors = np.linalg.eigh(np.cov(fresh.T))
        turned = (fresh @ vectors[:, -2:], sampled @ vectors[:, -2:])
    for values, colour, label in zip(turned, (REAL, SAMPLED), ("true", "sampled"), strict=True):
        axes.plot(values[:, -1], values[:, -2], ".", ms=2, color=colour, alpha=0.6, label=label)
    axes.set_aspect("equal")
    axes.set_title(name)
    axes.legend(frameon=False, markerscale=5)


def _draw_waves(axes: Any, fresh: Array, sampled: Array) -> None:
    """Mean power of each wave along the last axis, all channels together."""
    for values, colour, label in ((fresh, REAL, "true"), (sampled, SAMPLED, "sampled")):
        modes = np.fft.fft(values, axis=-1, norm="ortho")
        power = (np.abs(modes) ** 2).mean(axis=tuple(range(values.ndim - 1)))
        axes.semilogy(power[: len(power) // 2 + 1], "o-", color=colour, label=label)
    axes.set_xlabel("wave number along the last axis")
    axes.set_ylabel("power")
    axes.set_title("spectrum of records")
    axes.legend(frameon=False)
