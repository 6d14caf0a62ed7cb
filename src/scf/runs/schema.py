"""The tables of `runs.db`, as migrations: append, never edit."""

MIGRATIONS = (
    """
    CREATE TABLE runs (
        run_id TEXT PRIMARY KEY,
        intent_hash TEXT NOT NULL UNIQUE,
        intent TEXT NOT NULL,            -- JSON: what is to be made, and out of what
        plan TEXT NOT NULL,              -- JSON: the batch plan
        state TEXT NOT NULL,
        reason TEXT NOT NULL,            -- why it stands where it stands
        tries INTEGER NOT NULL,          -- failures since it last got further
        not_before TEXT,                 -- RFC 3339: leave it alone until then
        facts TEXT NOT NULL,             -- JSON: what its stages found out
        created_at TEXT NOT NULL,
        updated_at TEXT NOT NULL
    );
    CREATE INDEX runs_by_state ON runs (state);
    CREATE TABLE attempts (
        attempt_id TEXT PRIMARY KEY,     -- also the job's id
        run_id TEXT NOT NULL REFERENCES runs (run_id),
        kind TEXT NOT NULL,
        number INTEGER NOT NULL,
        door TEXT NOT NULL,
        spec TEXT NOT NULL,              -- JSON
        opened_at TEXT NOT NULL,
        closed_at TEXT,
        exit_reason TEXT,
        receipt TEXT,                    -- JSON: how it ended, where it was, what it took
        UNIQUE (run_id, kind, number)
    );
    CREATE UNIQUE INDEX one_open_attempt ON attempts (run_id, kind) WHERE closed_at IS NULL;
    CREATE TABLE transitions (
        seq INTEGER PRIMARY KEY AUTOINCREMENT,
        run_id TEXT NOT NULL REFERENCES runs (run_id),
        from_state TEXT,
        to_state TEXT NOT NULL,
        reason TEXT NOT NULL,
        details TEXT NOT NULL,           -- JSON
        at TEXT NOT NULL,
        audit_index INTEGER
    );
    CREATE INDEX transitions_by_run ON transitions (run_id);
    CREATE INDEX transitions_unaudited ON transitions (seq) WHERE audit_index IS NULL;
    CREATE TABLE acks (
        id TEXT PRIMARY KEY,
        seq INTEGER NOT NULL UNIQUE,
        status TEXT NOT NULL,
        message TEXT NOT NULL,
        at TEXT NOT NULL
    );
    CREATE TABLE origins (
        path TEXT PRIMARY KEY,           -- of a file that was ingested, relative to fossil_vault
        size_bytes INTEGER NOT NULL,
        mtime_ns INTEGER NOT NULL,
        sha256 TEXT NOT NULL,
        outcome TEXT NOT NULL,           -- JSON
        at TEXT NOT NULL
    );
    CREATE INDEX origins_by_digest ON origins (sha256);
    CREATE TABLE settings (key TEXT PRIMARY KEY, value TEXT NOT NULL);
    """,
)
