-- How many idempotency records a caller has, and how long their answers are, without a look at them. The
-- answer is the last column: to read one behind it, SQLite reads all of it. Nobody can call as a run that
-- has ended, so its records go.

ALTER TABLE idempotency RENAME TO idempotency_before;

CREATE TABLE idempotency (
    number INTEGER PRIMARY KEY,  -- by age, near enough to forget the oldest first
    caller TEXT NOT NULL,
    call TEXT NOT NULL,
    key TEXT NOT NULL,
    fingerprint TEXT NOT NULL,
    created_at TEXT NOT NULL,
    place INTEGER NOT NULL,  -- 1, 2, 3 … of each caller
    total INTEGER NOT NULL,  -- bytes of the caller's answers up to this one
    answer TEXT NOT NULL,
    UNIQUE (caller, call, key)
) STRICT;

INSERT INTO idempotency
    SELECT b.number, b.caller, b.call, b.key, b.fingerprint, b.created_at, s.place, s.total, b.answer
    FROM (
        SELECT number, row_number() OVER of_caller AS place,
            sum(octet_length(answer)) OVER of_caller AS total
        FROM idempotency_before
        WHERE caller NOT IN (SELECT id FROM runs WHERE status IN ('completed', 'failed', 'canceled'))
        WINDOW of_caller AS (PARTITION BY caller ORDER BY number)
    ) AS s JOIN idempotency_before AS b USING (number)
    ORDER BY b.number;

DROP TABLE idempotency_before;

CREATE INDEX idempotency_of_caller ON idempotency (caller, place, total);
