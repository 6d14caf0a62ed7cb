"""Limits are read as people write them, and refused with what would be right."""

import pytest

from scf.control.budget import LIMITS, check_limit
from scf.core.errors import UsageError
from scf.storage.partitions import DEFAULT_BUDGETS_BYTES


@pytest.mark.parametrize(
    ("name", "text", "value"),
    [("fossil_vault", "1.2 TB", 1.2e12), ("system_cache", "200000000000", 2e11),
     ("usd_month", "$40.50", 40.5), ("usd_month", "0", 0), ("generations_kept", "7", 7),
     ("jobs_kept", "1", 1)],
)  # fmt: skip
def test_a_limit_is_read_and_shown(name: str, text: str, value: float) -> None:
    limit, read = check_limit(name, text)

    assert read == value
    assert limit.show(read)


@pytest.mark.parametrize(
    ("name", "text"),
    [("moon", "1"), (None, "1"), ("fossil_vault", "0"), ("fossil_vault", "-1"),
     ("fossil_vault", "much"), ("usd_month", "-1"), ("usd_month", "nan"), ("usd_month", "1e99"),
     ("generations_kept", "0"), ("generations_kept", "2.5"), ("jobs_kept", ""),
     ("jobs_kept", 3)],
)  # fmt: skip
def test_what_is_no_limit_is_refused(name: object, text: object) -> None:
    with pytest.raises(UsageError):
        check_limit(name, text)


def test_every_partition_has_a_limit_and_everything_else_a_default() -> None:
    assert {name for name, limit in LIMITS.items() if limit.is_partition} == set(
        DEFAULT_BUDGETS_BYTES
    )
    assert all((limit.default is None) == limit.is_partition for limit in LIMITS.values())
