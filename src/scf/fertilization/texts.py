"""Texts that are made when somebody looks: a minibatch has thousands of names that few read."""

from collections.abc import Callable, Sequence
from typing import Any


class Texts(Sequence[str]):
    """A sequence of strings. Equal to a list of the same strings.

    Args:
        length: How many.
        make: Makes them all, the first time that one is looked at.
    """

    __slots__ = ("_length", "_made", "_make")
    __hash__ = None  # type: ignore[assignment]

    def __init__(self, length: int, make: Callable[[], list[str]]) -> None:
        self._length = length
        self._make: Callable[[], list[str]] | None = make
        self._made: list[str] = []

    def __len__(self) -> int:
        return self._length

    def __getitem__(self, at: Any) -> Any:
        return self._all()[at]

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Sequence) and self._all() == list(other)

    def __add__(self, other: Sequence[str]) -> list[str]:
        return self._all() + list(other)

    def __radd__(self, other: Sequence[str]) -> list[str]:
        return list(other) + self._all()

    def __repr__(self) -> str:
        return repr(self._all())

    def _all(self) -> list[str]:
        if self._make is not None:
            self._made, self._make = self._make(), None
        return self._made
