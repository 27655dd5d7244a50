-- The number of runs that are not at their end, so that a long queue need not be counted for each message.

CREATE TABLE run_counts (
    provider TEXT NOT NULL,
    status TEXT NOT NULL,
    count INTEGER NOT NULL,
    PRIMARY KEY (provider, status)
) STRICT, WITHOUT ROWID;

INSERT INTO run_counts SELECT provider, status, count(*) FROM runs
    WHERE status IN ('queued', 'running', 'waiting') GROUP BY provider, status;

CREATE TRIGGER run_counted AFTER INSERT ON runs WHEN new.status IN ('queued', 'running', 'waiting')
BEGIN
    INSERT INTO run_counts VALUES (new.provider, new.status, 1)
        ON CONFLICT (provider, status) DO UPDATE SET count = count + 1;
END;

CREATE TRIGGER run_counted_again AFTER UPDATE OF provider, status ON runs
    WHEN old.status <> new.status OR old.provider <> new.provider
BEGIN
    UPDATE run_counts SET count = count - 1 WHERE provider = old.provider AND status = old.status;
    INSERT INTO run_counts SELECT new.provider, new.status, 1
        WHERE new.status IN ('queued', 'running', 'waiting')
        ON CONFLICT (provider, status) DO UPDATE SET count = count + 1;
END;
