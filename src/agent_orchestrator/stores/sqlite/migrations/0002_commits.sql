-- How many commits this database has seen: behind its mirror (a file beside it), some were lost.

CREATE TABLE commits (
    one INTEGER PRIMARY KEY CHECK (one = 1),
    database TEXT NOT NULL,  -- names this database, so that a mirror of another is known as such
    count INTEGER NOT NULL,
    backup_of TEXT  -- the database this was copied from by a backup
) STRICT;

INSERT INTO commits (one, database, count) VALUES (1, lower(hex(randomblob(16))), 0);
