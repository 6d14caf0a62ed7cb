"""What `scf ingest` says to a person: what it understood, how far it is, what came of it."""

import re
import sys
import time
from collections.abc import Callable, Iterable
from typing import TYPE_CHECKING

import click

from scf.cli.common import talk
from scf.core.errors import UsageError
from scf.core.units import format_bytes, format_duration

if TYPE_CHECKING:
    from scf.fertilization.ingest_report import IngestProgress, IngestReport, Understood
    from scf.fertilization.readers.options import ReadOptions

_REDRAW_S = 0.2
# Where stderr is no terminal: a line now and then, and none for what is quick.
_LINE_EVERY_S = 10.0
_UNDERSTOOD_MAX = 20
_PATCH = re.compile(r"[1-9][0-9]*(x[1-9][0-9]*)*")


def read_options(
    window: int | None,
    stride: int | None,
    fields: tuple[str, ...],
    mask_fields: tuple[str, ...],
    patch: str | None,
) -> "ReadOptions":
    """The settings that were given, as readers take them. Raises UsageError for a bad patch."""
    options: ReadOptions = {}
    if window is not None:
        options["window_steps"] = window
    if stride is not None:
        options["stride"] = stride
    if fields:
        options["fields"] = fields
    if mask_fields:
        options["mask_fields"] = mask_fields
    if patch is not None:
        if not _PATCH.fullmatch(patch):
            raise UsageError(f"patch {patch!r} is not understood", remedy="Write it as 64x64.")
        options["patch"] = tuple(int(length) for length in patch.split("x"))
    return options


def say_understood(found: "Iterable[Understood]") -> None:
    """What the readers understood, one paragraph an origin, to stdout."""
    num_more = 0
    for at, about in enumerate(found):
        if at >= _UNDERSTOOD_MAX:
            num_more += 1
            continue
        click.echo(f"{about.origin}: {format_bytes(about.size_bytes)}, reader {about.reader}")
        description = about.description
        if about.fault is not None:
            click.echo(f"  cannot be understood: {about.fault}")
        if description is None:
            continue
        click.echo(f"  {description.layout}")
        records = "unknown" if description.num_records is None else f"{description.num_records:,}"
        families = (
            "not stated: blocks of 64 records"
            if description.num_families is None
            else f"{description.num_families:,}"
        )
        click.echo(f"  records {records}; families {families}")
        for item in description.fields:
            shape = "varies" if item.shape is None else "x".join(map(str, item.shape)) or "scalar"
            role = "given" if item.is_given else "field"
            unit = item.unit or "no unit stated"
            click.echo(f"  {role}  {item.name:24} {item.dtype:8} {shape:14} {unit}")
        for note in description.notes:
            click.echo(f"  note   {note}")
    if num_more:
        click.echo(f"... and {num_more:,} more origins")


def say_report(report: "IngestReport", *, is_rehearsal: bool) -> None:
    """What became of everything, to stdout."""
    reader = f" ({report.reader})" if report.reader else ""
    click.echo(
        f"{report.origin}{reader}: {report.read:,} read = {report.accepted:,} accepted"
        f" + {report.duplicates:,} duplicates + {report.quarantined:,} quarantined"
    )
    for kind, count in report.reasons.most_common():
        click.echo(f"  {count:,} refused: {kind}")
    for path in report.quarantine:
        click.echo(f"  see fossil_vault/{path}")
    if report.skipped:
        shown = ", ".join(report.skipped[:5]) + (", ..." if len(report.skipped) > 5 else "")
        files = "one file" if len(report.skipped) == 1 else f"{len(report.skipped)} files"
        click.echo(f"  {files} left alone, which no reader knows: {shown}")
    click.echo(f"  fossils root {report.fossils_root}")
    if is_rehearsal:
        talk("Rehearsal: nothing was written.")


def progress_teller(
    *,
    is_terminal: bool | None = None,
    now: Callable[[], float] = time.monotonic,
    line_every_s: float = _LINE_EVERY_S,
) -> "Callable[[IngestProgress], None]":
    """A function that tells progress on stderr.

    On a terminal it is one line that rewrites itself; elsewhere a plain line every 10 seconds.
    """
    rewrites = sys.stderr.isatty() if is_terminal is None else is_terminal
    started = told = now()

    def tell(progress: "IngestProgress") -> None:
        nonlocal told
        moment = now()
        is_last = progress.files_done == progress.files_total
        if rewrites and is_last:
            click.echo("\r\x1b[K", nl=False, err=True)
        elif not is_last and moment - told >= (_REDRAW_S if rewrites else line_every_s):
            told = moment
            text = progress_text(progress, moment - started)
            click.echo(f"\r\x1b[K{text}" if rewrites else text, nl=not rewrites, err=True)

    return tell


def progress_text(progress: "IngestProgress", elapsed_s: float) -> str:
    """Records, bytes, rates and the time left, in one line.

    The time left is that of the bytes left at the mean rate so far; what was skipped counts as
    read, so that it is too short after a resume.
    """
    elapsed_s = max(elapsed_s, 1e-9)
    name = progress.origin if len(progress.origin) <= 40 else f"...{progress.origin[-37:]}"
    parts = [
        f"{progress.read:,} records, {progress.read / elapsed_s:,.0f}/s",
        f"{format_bytes(progress.bytes_done)} of {format_bytes(progress.bytes_total)}",
    ]
    if progress.bytes_done:
        rate = progress.bytes_done / elapsed_s
        left_s = (progress.bytes_total - progress.bytes_done) / rate
        parts.append(f"{format_bytes(rate)}/s, {format_duration(left_s)} left")
    parts.append(f"file {progress.files_done + 1} of {progress.files_total}: {name}")
    if progress.digested_bytes is not None:
        parts.append(f"digest {format_bytes(progress.digested_bytes)}")
    return "; ".join(parts)
