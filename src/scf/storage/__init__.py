"""Bytes on disk: durable writes, the drive, NDJSON, SQLite, locks, failpoints."""
