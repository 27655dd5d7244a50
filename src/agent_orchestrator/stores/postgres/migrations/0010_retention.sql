-- What was deleted of the logs of sessions: all events up to a seq, whose last position is given, and pieces of
-- messages after it. The mark numbers the deletions, so that a reader of several logs learns of later ones.
--
-- An older program would let readers pass over what was deleted.
-- min_reader: 10

CREATE TABLE pruned_logs (
    session bigint PRIMARY KEY REFERENCES sessions (number),
    seq bigint NOT NULL DEFAULT 0,
    position bigint NOT NULL DEFAULT 0,
    count bigint NOT NULL,
    mark bigint NOT NULL DEFAULT 0,
    digest text COLLATE "C" NOT NULL DEFAULT '',
    audited_count bigint NOT NULL DEFAULT 0
);

CREATE INDEX pruned_logs_by_mark ON pruned_logs (mark);
CREATE INDEX pruned_logs_unaudited ON pruned_logs (session) WHERE count <> audited_count;

-- How long the events of a session are kept.
ALTER TABLE sessions ADD COLUMN retain_days bigint;
ALTER TABLE sessions ADD COLUMN retain_events bigint;
ALTER TABLE sessions ADD COLUMN retain_bytes bigint;

CREATE INDEX sessions_limited ON sessions (id)
    WHERE retain_days > 0 OR retain_events > 0 OR retain_bytes > 0;

-- Work that one engine of the store does at a time, and when it is due.
CREATE TABLE jobs (
    name text COLLATE "C" PRIMARY KEY,
    next_at text COLLATE "C" NOT NULL
);
