-- The number of runs that are not at their end, so that a long queue need not be counted for each message.

CREATE TABLE run_counts (
    provider text COLLATE "C" NOT NULL,
    status text COLLATE "C" NOT NULL,
    count bigint NOT NULL,
    PRIMARY KEY (provider, status)
);

INSERT INTO run_counts SELECT provider, status, count(*) FROM runs
    WHERE status IN ('queued', 'running', 'waiting') GROUP BY provider, status;

CREATE FUNCTION count_run() RETURNS trigger LANGUAGE plpgsql SET search_path FROM CURRENT AS $$
BEGIN
    IF TG_OP = 'UPDATE' THEN
        UPDATE run_counts SET count = count - 1 WHERE provider = old.provider AND status = old.status;
    END IF;
    IF new.status IN ('queued', 'running', 'waiting') THEN
        INSERT INTO run_counts VALUES (new.provider, new.status, 1)
            ON CONFLICT (provider, status) DO UPDATE SET count = run_counts.count + 1;
    END IF;
    RETURN NULL;
END $$;

CREATE TRIGGER run_counted AFTER INSERT ON runs FOR EACH ROW EXECUTE FUNCTION count_run();
CREATE TRIGGER run_counted_again AFTER UPDATE OF provider, status ON runs
    FOR EACH ROW WHEN (old.status <> new.status OR old.provider <> new.provider) EXECUTE FUNCTION count_run();
