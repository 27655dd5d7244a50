-- What was deleted of the logs of sessions: all events up to a seq, whose last position is given, and pieces of
-- messages after it. The mark numbers the deletions, so that a reader of several logs learns of later ones.
CREATE TABLE pruned_logs (
    session INTEGER PRIMARY KEY REFERENCES sessions (number),
    seq INTEGER NOT NULL DEFAULT 0,
    position INTEGER NOT NULL DEFAULT 0,
    count INTEGER NOT NULL,
    mark INTEGER NOT NULL DEFAULT 0,
    digest TEXT NOT NULL DEFAULT '',
    audited_count INTEGER NOT NULL DEFAULT 0
) STRICT;

CREATE INDEX pruned_logs_by_mark ON pruned_logs (mark);
CREATE INDEX pruned_logs_unaudited ON pruned_logs (session) WHERE count <> audited_count;

-- How long the events of a session are kept.
ALTER TABLE sessions ADD COLUMN retain_days INTEGER;
ALTER TABLE sessions ADD COLUMN retain_events INTEGER;
ALTER TABLE sessions ADD COLUMN retain_bytes INTEGER;

CREATE INDEX sessions_limited ON sessions (id)
    WHERE retain_days > 0 OR retain_events > 0 OR retain_bytes > 0;

-- Work that one engine of the store does at a time, and when it is due.
CREATE TABLE jobs (
    name TEXT PRIMARY KEY,
    next_at TEXT NOT NULL
) STRICT, WITHOUT ROWID;
