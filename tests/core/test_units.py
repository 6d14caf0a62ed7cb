"""Sizes and durations read and print as people write them."""

import pytest

from scf.core.errors import UsageError
from scf.core.units import format_bytes, format_duration, parse_size_bytes


@pytest.mark.parametrize(
    ("text", "size"), [("1500", 1500), ("1.5 TB", 1_500_000_000_000), ("256MiB", 2**28), (7, 7)]
)
def test_sizes(text: str | int, size: int) -> None:
    assert parse_size_bytes(text) == size


@pytest.mark.parametrize("text", ["", "many", "1 parsec", "-1 kB"])
def test_what_is_not_a_size_is_refused_with_the_units(text: str) -> None:
    with pytest.raises(UsageError) as caught:
        parse_size_bytes(text)
    assert "TIB" in (caught.value.remedy or "")


def test_prints() -> None:
    assert format_bytes(1_500_000_000_000) == "1.5 TB"
    assert format_bytes(17) == "17 B"
    assert format_duration(3725) == "1 h 02 min"
    assert format_duration(200) == "3 min 20 s"
    assert format_duration(4.21) == "4.2 s"
