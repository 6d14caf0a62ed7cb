"""The picture of a report: real against sampled records, and what the energy makes of each.

Blue is real, orange is sampled, grey and red are corrupted: the colours of Okabe and Ito, which
people with any colour vision can tell apart. matplotlib is imported when a picture is drawn.
"""

from collections.abc import Mapping
from typing import Any, BinaryIO

import numpy as np

from scf.models.record import FieldLayout, Floats
from scf.models.record_energy import RecordEnergy
from scf.verification.denoising import HeldOut
from scf.verification.plotting import INK, REAL, SAMPLED, pyplot

_CORRUPTED, _FAINT = ("#D55E00", "#CC79A7", "#999999"), "#DDDDDD"
_EXAMPLES = 3
_PANELS_MAX = 8

# The corruptions worth a curve, most telling first; the others are in the report's numbers.
_FIRST = ("ghi_shuffled", "ghi_scaled_1.1", "halves_spliced")


def draw_report(
    file: BinaryIO,
    energy: RecordEnergy,
    held_out: HeldOut,
    sampled: tuple[Floats, Floats],
    energies: Mapping[str, Floats],
    report: Mapping[str, Any],
) -> None:
    """Write a PNG.

    Raises:
        MissingTool: matplotlib is not installed.
    """
    style: Any = {
        "axes.edgecolor": INK,
        "axes.titlesize": 9.5,
        "axes.titlelocation": "left",
        "axes.linewidth": 0.8,
        "xtick.color": INK,
        "ytick.color": INK,
    }
    with pyplot(style) as plt:
        panels = _panels(energy)
        columns = min(4, max(2, len(panels)))
        rows = -(-len(panels) // columns)
        height = 2.2 * rows + 3.9
        figure = plt.figure(figsize=(12, height), dpi=130)
        grid = figure.add_gridspec(
            rows + 1,
            columns,
            height_ratios=[1.0] * rows + [1.35],
            hspace=0.5,
            wspace=0.26,
            left=0.045,
            right=0.98,
            top=1 - 1.05 / height,
            bottom=0.6 / height,
        )
        for index, field in enumerate(panels):
            axes = figure.add_subplot(grid[index // columns, index % columns])
            place = energy.layout.slices()[field.name]
            _draw_field(axes, field, held_out.x_ND[:, place], sampled[0][:, place])
            if index == 0:
                axes.legend(frameon=False, fontsize=7.5, loc="upper left", handlelength=1.4)
        _draw_energies(figure.add_subplot(grid[rows, :-1]), energies, report)
        _draw_aurocs(figure.add_subplot(grid[rows, -1]), report["auroc"])
        figure.text(
            0.045,
            1 - 0.14 / height,
            "Held-out records and samples of the model",
            va="top",
            fontsize=13,
            weight="bold",
        )
        loss, baseline = report["dsm_loss"], report["baseline_dsm_loss"]
        told = "not finite" if loss is None else f"{loss['mean']:.3f}"
        figure.text(
            0.045,
            1 - 0.46 / height,
            f"{report['held_out']['fossils']} records of {report['held_out']['families']} families "
            f"that no run trains on; denoising loss {told}, independent Gaussians "
            f"{baseline['mean']:.3f}",
            ha="left",
            va="top",
            color=INK,
        )
        figure.savefig(file, format="png")
        plt.close(figure)


def _panels(energy: RecordEnergy) -> list[FieldLayout]:
    return list(energy.layout.modelled)[:_PANELS_MAX]


def _draw_field(axes: Any, field: FieldLayout, real: Floats, sampled: Floats) -> None:
    """One field: a band over time where it is a series, else distributions or a scatter."""
    unit = f" [{field.unit}]" if field.unit else ""
    axes.set_title(f"{field.name}{unit}", color=INK)
    if field.size == 1:
        edges = np.histogram_bin_edges(np.concatenate([real[:, 0], sampled[:, 0]]), 40)
        axes.hist(real[:, 0], edges, density=True, color=REAL, alpha=0.35, label="real")
        axes.hist(
            sampled[:, 0], edges, density=True, histtype="step", color=SAMPLED, lw=1.6,
            label="sampled",
        )  # fmt: skip
        axes.set_yticks([])
        return
    if field.size == 2:
        kept = min(len(real), len(sampled))
        for values, colour, label in ((real, REAL, "real"), (sampled, SAMPLED, "sampled")):
            axes.plot(values[:kept, 0], values[:kept, 1], ".", ms=2.5, alpha=0.6, color=colour,
                      label=label)  # fmt: skip
        return
    place = np.arange(field.size)
    low, middle, high = np.quantile(real, [0.05, 0.5, 0.95], axis=0)
    axes.fill_between(place, low, high, color=REAL, alpha=0.16, lw=0, label="real, 90 %")
    axes.plot(place, middle, color=REAL, lw=1.8, label="real, median")
    low, middle, high = np.quantile(sampled, [0.05, 0.5, 0.95], axis=0)
    axes.plot(place, middle, color=SAMPLED, lw=1.8, label="sampled, median")
    axes.plot(place, low, color=SAMPLED, lw=0.9, ls=(0, (4, 2)), label="sampled, 90 %")
    axes.plot(place, high, color=SAMPLED, lw=0.9, ls=(0, (4, 2)))
    for row in np.linspace(0, len(sampled) - 1, _EXAMPLES + 2).astype(int)[1:-1]:
        axes.plot(place, sampled[row], color=SAMPLED, lw=0.8, alpha=0.55)
    axes.set_xlim(0, field.size - 1)
    if field.size == 24:
        axes.set_xticks([0, 6, 12, 18, 23], ["0", "6", "12", "18", "23 h"])


def _draw_energies(axes: Any, energies: Mapping[str, Floats], report: Mapping[str, Any]) -> None:
    """Histograms of energy above the real median; the axis is linear near it, log beyond."""
    spoiled = [name for name in _FIRST if name in energies]
    spoiled = spoiled or [name for name in energies if name not in {"real", "sampled"}][:3]
    middle = float(np.median(energies["real"]))
    spread = max(float(np.quantile(energies["real"], 0.9)) - middle, 1e-6)

    def squeezed(values: Floats) -> Floats:
        # Linear within the spread of real records, logarithmic beyond: corrupted records lie at
        # thousands of nats.
        squeezed_N: Floats = np.arcsinh((values - middle) / spread)
        return squeezed_N

    parts = {name: squeezed(energies[name]) for name in ("real", "sampled", *spoiled)}
    axes.set_title(
        f"Energy above the median of real records, sigma = {report['sigma']:.3g} "
        f"({report['sigma_unit']}): further right is less likely"
    )
    axes.set_yticks([])
    axes.spines["left"].set_visible(False)
    axes.set_xlabel("nats above the median of real records")
    everything = np.concatenate(list(parts.values()))
    if not np.isfinite(everything).all():
        return
    edges = np.linspace(float(everything.min()), float(everything.max()) + 1e-6, 80)
    axes.hist(parts["real"], edges, density=True, color=REAL, alpha=0.4, label="real")
    for name, colour in (("sampled", SAMPLED), *zip(spoiled, _CORRUPTED, strict=False)):
        axes.hist(
            parts[name],
            edges,
            density=True,
            histtype="step",
            lw=1.7,
            color=colour,
            label=name.replace("_", " "),
        )
    ticks = [
        value
        for value in (-1000, -100, -30, -10, 0, 10, 30, 100, 300, 1000, 3000, 10_000, 100_000)
        if edges[0] <= float(np.arcsinh(value / spread)) <= edges[-1]
        and (value == 0 or abs(value) >= 0.6 * spread)
    ]
    axes.set_xticks(
        [float(np.arcsinh(value / spread)) for value in ticks], [f"{v:,}" for v in ticks]
    )
    axes.legend(frameon=False, fontsize=8.5, loc="upper right")


def _draw_aurocs(axes: Any, aurocs: Mapping[str, float]) -> None:
    """One bar a corruption, from chance to certainty."""
    axes.set_title("Told from real [AUROC]")
    names = list(aurocs)[::-1]
    axes.axvline(0.9, color=_FAINT, lw=1, zorder=0)
    axes.hlines(names, 0.5, [aurocs[name] for name in names], color=_FAINT, lw=5)
    axes.plot([aurocs[name] for name in names], names, "o", ms=6, color=_CORRUPTED[0])
    for name in names:
        axes.text(
            0.505, name, name.replace("_", " ").replace("radiation channel ", ""), fontsize=7.5,
            va="bottom", ha="left", color=INK, transform=axes.transData,
        )  # fmt: skip
        axes.annotate(
            f"{aurocs[name]:.3f}", (max(aurocs[name], 0.5), name), (0, -5),
            textcoords="offset points", ha="center", va="top", fontsize=7.5, color=INK,
        )  # fmt: skip
    axes.set_yticks([])
    axes.spines["left"].set_visible(False)
    axes.set_xlim(min([0.48, *aurocs.values()]), 1.03)
    axes.set_ylim(-0.8, max(len(names), 1) - 0.2)
