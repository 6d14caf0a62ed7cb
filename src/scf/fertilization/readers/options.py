"""Settings of readers: which steps, fields and patches become fossils.

A reader that takes settings says so by `options`, and makes a reader with other settings by
`configured`. What differs from the defaults is part of a fossil's provenance: another window gives
other fossils of the same origin.
"""

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any, ClassVar, Protocol, Self, TypedDict, Unpack, runtime_checkable

from scf.core.errors import InputError, UsageError
from scf.fertilization.readers.base import Reader

# The word on the command line for each setting.
FLAGS = {
    "window_steps": "--window",
    "stride": "--stride",
    "fields": "--field",
    "patch": "--patch",
    "mask_fields": "--mask-field",
}


class UnknownField(InputError):
    """A field was asked for that the file has not."""

    kind = "fields"


class ReadOptions(TypedDict, total=False):
    """Settings as `Windows` takes them; only those that were given."""

    window_steps: int
    stride: int | None
    fields: tuple[str, ...] | None
    patch: tuple[int, ...] | None
    mask_fields: tuple[str, ...]


@dataclass(frozen=True)
class Windows:
    """How steps become fossils.

    Attributes:
        window_steps: Steps in a fossil. With 1 the fields have no step axis, otherwise it leads.
        stride: Steps from the beginning of a fossil to that of the next; None for
            `window_steps`, so that every step is in one fossil.
        fields: Names of the fields to read; None for all.
        patch: Lengths, in grid points, of the patches into which the last space axes of each field
            are cut; None for whole fields.
        mask_fields: Fields that may have gaps (NaN over land): each gets a given field
            `NAME.valid`, true where there is a value; the gaps themselves become 0. A gap in any
            other field refuses the record.
    """

    window_steps: int = 1
    stride: int | None = None
    fields: tuple[str, ...] | None = None
    patch: tuple[int, ...] | None = None
    mask_fields: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        numbers = [("window_steps", self.window_steps), ("stride", self.stride)]
        numbers += [("patch", length) for length in self.patch or ()]
        for name, value in numbers:
            if value is not None and value < 1:
                raise UsageError(f"{name} is {value}; it must be 1 or more")
        if self.fields is not None and not self.fields:
            raise UsageError("fields names no field", remedy="Leave it out to read all of them.")
        if self.patch is not None and not 1 <= len(self.patch) <= 3:
            raise UsageError("patch needs 1 to 3 lengths, such as 64x64")
        apart = [name for name in self.mask_fields if not self.keeps(name)]
        if apart:
            raise UsageError(f"a mask is asked for {apart[0]!r}, which is not among the fields")

    def starts(self, num_steps: int) -> range:
        """The first step of each window; empty where there are fewer steps than a window has."""
        return range(0, num_steps - self.window_steps + 1, self.stride or self.window_steps)

    def keeps(self, name: str) -> bool:
        """Whether a field is to be read."""
        return self.fields is None or name in self.fields

    def check_fields(self, known: Iterable[str]) -> None:
        """Raises UnknownField for a name that is not among `known`."""
        names = list(known)
        wanted = (*(self.fields or ()), *self.mask_fields)
        missing = [name for name in dict.fromkeys(wanted) if name not in names]
        if missing:
            raise UnknownField(
                f"no field {', '.join(map(repr, missing))}; the file has {', '.join(names)}"
            )

    def to_json(self) -> dict[str, Any]:
        """What differs from the defaults, as it stands in provenance."""
        stride = None if self.stride == self.window_steps else self.stride
        values = {
            "window_steps": None if self.window_steps == 1 else self.window_steps,
            "stride": stride,
            "fields": None if self.fields is None else sorted(set(self.fields)),
            "patch": None if self.patch is None else list(self.patch),
            "mask_fields": sorted(set(self.mask_fields)) or None,
        }
        return {name: value for name, value in values.items() if value is not None}


@runtime_checkable
class Configurable(Protocol):
    """A reader that takes settings.

    Attributes:
        options: Names of those that it knows, of the keys of `ReadOptions`.
        windows: Those that it has.
    """

    options: ClassVar[frozenset[str]]
    windows: Windows

    def configured(self, options: ReadOptions) -> Reader:
        """The same reader with these settings."""


class WindowedReader:
    """A reader whose settings are those of `Windows`, all of them unless `options` says less.

    Args:
        options: See `Windows`.
    """

    options: ClassVar[frozenset[str]] = frozenset(FLAGS)

    def __init__(self, **options: Unpack[ReadOptions]) -> None:
        self.windows = Windows(**options)

    def configured(self, options: ReadOptions) -> Self:
        """The same reader with these settings."""
        return type(self)(**options)


def configured(reader: Reader, options: ReadOptions) -> Reader:
    """The reader with these settings; itself where there are none.

    Raises:
        UsageError: The reader does not know one of them.
    """
    if not options:
        return reader
    known = reader.options if isinstance(reader, Configurable) else frozenset()
    unknown = [FLAGS[name] for name in options if name not in known]
    if unknown:
        told = ", ".join(FLAGS[name] for name in FLAGS if name in known) or "no options"
        raise UsageError(
            f"reader {reader.name!r} does not know {', '.join(unknown)}; it knows {told}",
            remedy="Leave it out, or name the files that it is for (see docs/readers.md).",
        )
    assert isinstance(reader, Configurable)
    return reader.configured(options)


def options_of(reader: Reader) -> dict[str, Any]:
    """What differs from the defaults in a reader's settings, in JSON."""
    return reader.windows.to_json() if isinstance(reader, Configurable) else {}
