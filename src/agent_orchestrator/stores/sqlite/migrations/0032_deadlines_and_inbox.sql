-- Open requests in order of their deadlines, the rows of an inbox, and how far each reader has read.

ALTER TABLE requests ADD COLUMN deadline TEXT GENERATED ALWAYS AS (expires_at || '/' || id) VIRTUAL;

CREATE INDEX requests_by_deadline ON requests (deadline) WHERE status = 'pending';
CREATE INDEX requests_of_owner_by_deadline ON requests (owner, deadline) WHERE status = 'pending';
CREATE INDEX requests_of_session_by_deadline ON requests (session_id, deadline)
    WHERE status = 'pending';
CREATE INDEX requests_of_root_by_deadline ON requests (root_session_id, deadline)
    WHERE status = 'pending';

ALTER TABLE sessions ADD COLUMN last_line TEXT;

CREATE TABLE seen (
    reader TEXT NOT NULL,
    session_id TEXT NOT NULL REFERENCES sessions (id),
    seq INTEGER NOT NULL,
    PRIMARY KEY (reader, session_id)
) STRICT, WITHOUT ROWID;
