-- Providers: how the workers of a state are reached, and how much is asked of whom.

-- As last applied. Nothing in it is secret: credentials are found where each engine's own tools find them.
CREATE TABLE provider (
    name       TEXT PRIMARY KEY,
    config     TEXT NOT NULL,          -- JSON
    applied_at INTEGER NOT NULL
) STRICT, WITHOUT ROWID;

-- The same for each pool: what its workers were made with. Another pool's apply does not change it.
ALTER TABLE pool ADD COLUMN provider TEXT;  -- JSON; NULL when the pool was applied before providers had settings

-- When the next call of a provider with a rate limit may be made.
CREATE TABLE provider_pace (
    name    TEXT PRIMARY KEY,
    next_at INTEGER NOT NULL           -- in microseconds since the Unix epoch
) STRICT, WITHOUT ROWID;

-- The calls that are under way at a provider that takes only so many at a time.
CREATE TABLE provider_call (
    id     INTEGER PRIMARY KEY,
    name   TEXT NOT NULL,
    holder TEXT NOT NULL,              -- JSON, as of a lock
    since  INTEGER NOT NULL            -- when it was counted
) STRICT;

CREATE INDEX provider_call_by_name ON provider_call (name);
