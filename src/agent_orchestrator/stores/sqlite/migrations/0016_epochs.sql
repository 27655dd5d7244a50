-- One row for each time the database was opened, so that a cursor of a log that was read before a backup
-- was put back is told from one of this log.

CREATE TABLE epochs (
    number INTEGER PRIMARY KEY,
    id TEXT NOT NULL UNIQUE,
    timeline INTEGER NOT NULL,  -- one more where the database may lack what it once had
    position INTEGER NOT NULL  -- of the last event before it
) STRICT;
