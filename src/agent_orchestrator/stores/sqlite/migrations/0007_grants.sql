-- What others than its owner may do with a session.

CREATE TABLE grants (
    session_id TEXT NOT NULL REFERENCES sessions (id),
    principal TEXT NOT NULL,
    role TEXT NOT NULL,
    PRIMARY KEY (session_id, principal)
) STRICT, WITHOUT ROWID;

CREATE INDEX grants_of_principal ON grants (principal, session_id);
