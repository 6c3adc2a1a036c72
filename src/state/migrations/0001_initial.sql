-- Times are milliseconds since the Unix epoch, rounded down, unless a comment says otherwise.

-- Facts about this state as a whole.
CREATE TABLE meta (
    key   TEXT PRIMARY KEY,            -- 'deployment': 32 hex digits; 'secret_key': 32 random bytes
    value BLOB NOT NULL
) STRICT, WITHOUT ROWID;

-- What workers are made from; workers that are made alike share a row.
CREATE TABLE spec (
    id      INTEGER PRIMARY KEY,
    digest  TEXT NOT NULL UNIQUE,      -- SHA-256 of body and secrets, hex
    hash    TEXT NOT NULL,             -- the spec hash that objects carry
    body    TEXT NOT NULL,             -- JSON; secrets are references
    secrets TEXT NOT NULL              -- JSON: variable name to keyed hash or null
) STRICT;

CREATE TABLE pool (
    id         TEXT PRIMARY KEY,
    serial     INTEGER NOT NULL,       -- moved by every change of the inventory
    config     TEXT,                   -- JSON as last applied; NULL once the pool is gone
    applied_at INTEGER,
    origin     TEXT,                   -- file:line:column of the applied config
    live       INTEGER NOT NULL DEFAULT 0,  -- workers that are not tombstones; kept by triggers
    ready      INTEGER NOT NULL DEFAULT 0   -- workers in phase ready; kept by triggers
) STRICT, WITHOUT ROWID;

-- The last generation of each slot. Never deleted: a generation is never used twice.
CREATE TABLE slot (
    pool            TEXT NOT NULL,
    slot            INTEGER NOT NULL,
    last_generation INTEGER NOT NULL,
    PRIMARY KEY (pool, slot)
) STRICT, WITHOUT ROWID;

CREATE TABLE worker (
    id              INTEGER PRIMARY KEY,
    pool            TEXT NOT NULL,
    slot            INTEGER NOT NULL,
    generation      INTEGER NOT NULL,
    phase           TEXT NOT NULL,
    phase_since     INTEGER NOT NULL,
    phase_deadline  INTEGER,           -- NULL for phases without one
    provider        TEXT NOT NULL,
    provider_id     TEXT,              -- NULL until the provider answered
    spec            INTEGER NOT NULL REFERENCES spec (id),
    attempt         INTEGER NOT NULL,  -- of its latest create operation; 0 for an adopted orphan
    addresses       TEXT NOT NULL DEFAULT '[]',  -- JSON list
    attributes      TEXT NOT NULL DEFAULT '{}',  -- JSON mapping
    failure_code    TEXT,
    failure_message TEXT,
    created_at      INTEGER NOT NULL,
    UNIQUE (pool, slot, generation)
) STRICT;

CREATE INDEX worker_live ON worker (pool, slot, generation) WHERE phase <> 'deleted';

-- The processes that opened operations.
CREATE TABLE holder (
    id   INTEGER PRIMARY KEY,
    body TEXT NOT NULL UNIQUE          -- JSON: machine, boot, PID namespace, pid, start time, what it did
) STRICT;

-- The write-ahead record of one provider call.
CREATE TABLE operation (
    id          INTEGER PRIMARY KEY AUTOINCREMENT,  -- never reused: it is a tag on objects
    worker      INTEGER NOT NULL REFERENCES worker (id),
    pool        TEXT NOT NULL,
    slot        INTEGER NOT NULL,
    kind        TEXT NOT NULL,         -- create, update, delete
    state       TEXT NOT NULL,         -- intended, unknown, done, failed
    attempt     INTEGER NOT NULL,
    token       TEXT NOT NULL,         -- the idempotency token
    sent_at     INTEGER NOT NULL,      -- when the call was last sent, or about to be
    deadline    INTEGER NOT NULL,      -- when its caller gives up on it
    fence       INTEGER NOT NULL,      -- of the pool lock that it was opened under
    holder      INTEGER NOT NULL REFERENCES holder (id),
    finished_at INTEGER,
    error       TEXT                   -- the error's code and message
) STRICT;

CREATE INDEX operation_by_worker ON operation (worker);
CREATE UNIQUE INDEX operation_open_per_worker ON operation (worker)
    WHERE state IN ('intended', 'unknown');
CREATE UNIQUE INDEX operation_open_create_per_slot ON operation (pool, slot)
    WHERE state IN ('intended', 'unknown') AND kind = 'create';

-- Who, when, why, from where to where. Append-only.
CREATE TABLE event (
    seq        INTEGER PRIMARY KEY AUTOINCREMENT,
    at         INTEGER NOT NULL,
    pool       TEXT NOT NULL,
    slot       INTEGER,                -- NULL for events of a whole pool
    generation INTEGER,
    kind       TEXT NOT NULL,
    who        TEXT NOT NULL,
    why        TEXT NOT NULL,          -- the step's reason, or the error
    from_phase TEXT,
    to_phase   TEXT
) STRICT;

CREATE INDEX event_by_worker ON event (pool, slot, seq);

-- Who applies to a pool. The row stays when the lock is free, so that the fence only grows.
CREATE TABLE lock (
    pool         TEXT PRIMARY KEY,
    fence        INTEGER NOT NULL,
    holder       TEXT,                 -- JSON; NULL when it is free
    heartbeat_at INTEGER NOT NULL
) STRICT, WITHOUT ROWID;

CREATE TRIGGER worker_inserted AFTER INSERT ON worker BEGIN
    UPDATE pool SET live = live + (NEW.phase <> 'deleted'), ready = ready + (NEW.phase = 'ready')
    WHERE id = NEW.pool;
END;

CREATE TRIGGER worker_moved AFTER UPDATE OF phase ON worker WHEN OLD.phase <> NEW.phase BEGIN
    UPDATE pool SET
        live = live + (NEW.phase <> 'deleted') - (OLD.phase <> 'deleted'),
        ready = ready + (NEW.phase = 'ready') - (OLD.phase = 'ready')
    WHERE id = NEW.pool;
END;
