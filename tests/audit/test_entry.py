"""An entry is canonical JSON, and only what could have been written is read."""

import pytest

from scf.audit.entry import SIZE_MAX_BYTES, Entry, EntryInvalid
from scf.core.errors import InputError, UsageError

AT = "2026-11-18T12:00:01Z"


def test_round_trip() -> None:
    entry = Entry(AT, "run.transition", "run-1", {"to": "PLANNED", "n": 3}, key="run-1/2")

    assert Entry.decode(entry.encode()) == entry
    assert entry.encode().startswith(b'{"at":"2026-11-18T12:00:01Z","details":')


def test_an_event_too_large_for_the_log_says_so() -> None:
    with pytest.raises(UsageError, match="at most 65535 fit") as caught:
        Entry(AT, "e", "s", {"x": "y" * SIZE_MAX_BYTES}).encode()
    assert "digest" in str(caught.value.remedy)


def test_details_must_be_json() -> None:
    with pytest.raises(InputError):
        Entry(AT, "e", "s", {"x": float("nan")}).encode()


@pytest.mark.parametrize(
    "data",
    [
        b"",
        b"[]",
        b'{"schema":"scf.audit/2"}',
        b'{"schema":"scf.audit/1","at":"2026-11-18T12:00:01Z","event":"e"}',
        b'{"at":"2026-11-18T12:00:01Z","details":{},"event":"e","schema":"scf.audit/1","subject":3}',
        b'{"at":"yesterday","details":{},"event":"e","schema":"scf.audit/1","subject":"s"}',
        b'{"at":"2026-11-18T12:00:01Z","details":{},"event":"e","schema":"scf.audit/1","subject":"s"} ',
    ],
)
def test_other_bytes_are_refused(data: bytes) -> None:
    """A missing key, another schema, another type, no time, not canonical."""
    with pytest.raises(EntryInvalid):
        Entry.decode(data)
