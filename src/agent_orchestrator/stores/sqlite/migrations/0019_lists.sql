-- What a caller may list is found from what is its own, never by a look at everybody's rows. The owner of a
-- run or request is the owner of its session; the trigger keeps it so.

ALTER TABLE runs ADD COLUMN owner TEXT;
ALTER TABLE requests ADD COLUMN owner TEXT;

UPDATE runs SET owner = (SELECT owner FROM sessions WHERE sessions.id = runs.session_id);
UPDATE requests SET owner = (SELECT owner FROM sessions WHERE sessions.id = requests.session_id);

CREATE TRIGGER owner_of_session AFTER UPDATE OF owner ON sessions WHEN new.owner <> old.owner
BEGIN
    UPDATE runs SET owner = new.owner WHERE session_id = new.id;
    UPDATE requests SET owner = new.owner WHERE session_id = new.id;
END;

CREATE INDEX runs_of_owner ON runs (owner, id);
CREATE INDEX runs_of_owner_by_status ON runs (owner, status, id);
CREATE INDEX requests_of_owner ON requests (owner, id);
CREATE INDEX requests_of_owner_by_status ON requests (owner, status, id);
CREATE INDEX sessions_of_status ON sessions (status, id);
CREATE INDEX sessions_of_owner_by_status ON sessions (owner, status, id);

-- With a status: these replace indexes of single statuses.
CREATE INDEX runs_of_session_by_status ON runs (session_id, status, id);
CREATE INDEX requests_of_session_by_status ON requests (session_id, status, id);
CREATE INDEX requests_of_root_by_status ON requests (root_session_id, status, id);
CREATE INDEX requests_of_run_by_status ON requests (run_id, status, id);
DROP INDEX runs_queued;
DROP INDEX requests_open_of_session;
DROP INDEX requests_open_of_run;
DROP INDEX requests_of_run;
