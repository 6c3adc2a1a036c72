-- Leases: the exclusive right to a worker, for a time.

ALTER TABLE worker ADD COLUMN cordoned INTEGER NOT NULL DEFAULT 0;  -- not 0: gets no new lease; 1: a person says so, 2: an update, 3: both
ALTER TABLE worker ADD COLUMN draining INTEGER NOT NULL DEFAULT 0;  -- 1: somebody wants it without a lease; 2: an update does
ALTER TABLE worker ADD COLUMN suspect  INTEGER NOT NULL DEFAULT 0;  -- 1: its latest probe failed
ALTER TABLE worker ADD COLUMN lease    INTEGER;                     -- its open lease; NULL when it is free
ALTER TABLE worker ADD COLUMN uses     INTEGER NOT NULL DEFAULT 0;  -- how many leases it ever had
ALTER TABLE worker ADD COLUMN blames   INTEGER NOT NULL DEFAULT 0;  -- infra_failed outcomes in a row
ALTER TABLE worker ADD COLUMN retired  TEXT;                        -- why it goes, when a lease's end decided it
ALTER TABLE worker ADD COLUMN rank     INTEGER NOT NULL DEFAULT 0;  -- who is picked first: the lowest

UPDATE worker SET rank = slot;

-- Whoever acquires finds the first free worker of a pool here, whatever the pool's size.
CREATE INDEX worker_free ON worker (pool, rank)
    WHERE phase = 'ready' AND cordoned = 0 AND suspect = 0 AND lease IS NULL;

CREATE INDEX worker_recycling ON worker (id) WHERE phase = 'recycling';

-- Which specs a pool's workers have, one probe a spec.
CREATE INDEX worker_by_spec ON worker (pool, spec) WHERE phase <> 'deleted';

ALTER TABLE pool ADD COLUMN config_version INTEGER NOT NULL DEFAULT 0;  -- moved whenever config is written
ALTER TABLE pool ADD COLUMN spec_hash TEXT;   -- of the applied config; NULL when it was applied before leases
ALTER TABLE pool ADD COLUMN changes INTEGER NOT NULL DEFAULT 0;  -- moved whenever a worker comes, goes or moves

CREATE TABLE lease (
    id          INTEGER PRIMARY KEY AUTOINCREMENT,  -- never reused: it is the fence as well
    nonce       INTEGER NOT NULL,      -- random, part of the lease's name: names of other states do not match
    worker      INTEGER NOT NULL,      -- worker.id; the lease outlives the worker's row
    pool        TEXT NOT NULL,
    slot        INTEGER NOT NULL,
    generation  INTEGER NOT NULL,
    holder      TEXT NOT NULL,
    purpose     TEXT,
    metadata    TEXT NOT NULL,         -- JSON mapping
    granted_at  INTEGER NOT NULL,
    expires_at  INTEGER NOT NULL,      -- rounded up: never earlier than what its holder was told
    verified_at INTEGER NOT NULL,      -- when the worker was last known to be well, at the grant
    verified_by TEXT NOT NULL,
    uses        INTEGER NOT NULL,      -- how many leases the worker had, this one included
    trouble     TEXT,                  -- what became of the worker meanwhile
    ended_at    INTEGER,               -- NULL while it is open
    ending      TEXT                   -- ok, job_failed, infra_failed, expired, abandoned
) STRICT;

CREATE UNIQUE INDEX lease_open ON lease (worker) WHERE ended_at IS NULL;
CREATE INDEX lease_expiry ON lease (expires_at) WHERE ended_at IS NULL;

-- Answers to requests that may be repeated.
CREATE TABLE request_key (
    id     INTEGER PRIMARY KEY,
    at     INTEGER NOT NULL,
    key    BLOB NOT NULL UNIQUE,       -- 16 bytes of the SHA-256 of caller and key
    body   BLOB NOT NULL,              -- 16 bytes of the SHA-256 of the request
    leases TEXT NOT NULL               -- JSON list of lease.id
) STRICT;

-- Leases come and go by the thousand, each in another slot: their events would dirty a page of this index
-- each. They are found among the latest events instead.
DROP INDEX event_by_worker;
CREATE INDEX event_by_worker ON event (pool, slot, seq)
    WHERE kind <> 'lease_granted' AND kind <> 'lease_ended';

-- Replacements that a server made by itself: the pause before the next one grows.
CREATE TABLE remedy (
    pool  TEXT NOT NULL,
    slot  INTEGER NOT NULL,
    tries INTEGER NOT NULL,            -- since the latest rest
    at    INTEGER NOT NULL,            -- when the latest one began
    PRIMARY KEY (pool, slot)
) STRICT, WITHOUT ROWID;

DROP TRIGGER worker_inserted;
DROP TRIGGER worker_moved;

CREATE TRIGGER worker_inserted AFTER INSERT ON worker BEGIN
    UPDATE pool SET live = live + (NEW.phase <> 'deleted'), ready = ready + (NEW.phase = 'ready'),
        changes = changes + 1
    WHERE id = NEW.pool;
END;

CREATE TRIGGER worker_moved AFTER UPDATE OF phase ON worker WHEN OLD.phase <> NEW.phase BEGIN
    UPDATE pool SET
        live = live + (NEW.phase <> 'deleted') - (OLD.phase <> 'deleted'),
        ready = ready + (NEW.phase = 'ready') - (OLD.phase = 'ready'),
        changes = changes + 1
    WHERE id = NEW.pool;
END;

CREATE TRIGGER worker_marked AFTER UPDATE OF cordoned, draining, suspect ON worker
WHEN OLD.cordoned <> NEW.cordoned OR OLD.draining <> NEW.draining OR OLD.suspect <> NEW.suspect BEGIN
    UPDATE pool SET changes = changes + 1 WHERE id = NEW.pool;
END;
