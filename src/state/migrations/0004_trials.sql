-- Workers that a run made which was narrowed to their slots: other ones than the applied config asks for, on purpose.

ALTER TABLE worker ADD COLUMN tried_out INTEGER NOT NULL DEFAULT 0;  -- 1: it is one, until the whole pool is applied

CREATE INDEX worker_tried_out ON worker (pool) WHERE tried_out = 1;
