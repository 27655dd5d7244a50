-- Daemons of several machines share the database. Each serves one host, and starts only runs of its sessions.
-- Sessions that were made before get the host of the first daemon that joins.
--
-- An older program would start the runs of all hosts.
-- min_reader: 9

ALTER TABLE sessions ADD COLUMN host text COLLATE "C";

-- That of the session, so that runs of another host are not looked through.
ALTER TABLE runs ADD COLUMN host text COLLATE "C";

-- The column host has the name of the machine for people.
ALTER TABLE daemons
    ADD COLUMN serves text COLLATE "C",
    ADD COLUMN labels text COLLATE "C",
    ADD COLUMN draining bigint NOT NULL DEFAULT 0;

CREATE INDEX runs_for_workers_of_host ON runs (host, id) WHERE status = 'queued' AND provider <> 'manual';
CREATE INDEX sessions_without_host ON sessions (number) WHERE host IS NULL OR host = 'local';

CREATE FUNCTION place_run() RETURNS trigger LANGUAGE plpgsql SET search_path FROM CURRENT AS $$
BEGIN
    new.host := (SELECT host FROM sessions WHERE id = new.session_id);
    RETURN new;
END $$;

CREATE TRIGGER run_placed BEFORE INSERT ON runs FOR EACH ROW EXECUTE FUNCTION place_run();

CREATE FUNCTION move_runs() RETURNS trigger LANGUAGE plpgsql SET search_path FROM CURRENT AS $$
BEGIN
    UPDATE runs SET host = new.host
        WHERE session_id = new.id AND status IN ('queued', 'running', 'waiting');
    RETURN NULL;
END $$;

CREATE TRIGGER session_moved AFTER UPDATE OF host ON sessions
    FOR EACH ROW WHEN (old.host IS DISTINCT FROM new.host) EXECUTE FUNCTION move_runs();
