"""Bytes on disk: durable writes, the drive and its partitions, NDJSON, SQLite, locks, failpoints."""
