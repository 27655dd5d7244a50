-- The outbox of notices, and the cursor of the log up to which it was filled.
CREATE TABLE notices (
    id TEXT PRIMARY KEY,
    kind TEXT NOT NULL,
    target TEXT NOT NULL,
    subject TEXT NOT NULL,
    session_id TEXT,
    run_id TEXT,
    request_id TEXT,
    state TEXT NOT NULL,
    created_at TEXT NOT NULL,
    updated_at TEXT NOT NULL,
    principal TEXT,
    deadline TEXT,
    next_at TEXT,
    attempts INTEGER NOT NULL,
    is_fallback INTEGER NOT NULL,
    sent_at TEXT,
    shown_at TEXT,
    clicked_at TEXT,
    error TEXT
) STRICT, WITHOUT ROWID;

CREATE UNIQUE INDEX notices_about ON notices (subject, target);
CREATE INDEX notices_due ON notices (next_at) WHERE next_at IS NOT NULL;
CREATE INDEX notices_done ON notices (updated_at) WHERE next_at IS NULL;
CREATE INDEX notices_in_state ON notices (state, id);
CREATE INDEX notices_of_principal ON notices (principal, id) WHERE principal IS NOT NULL;

CREATE TABLE notice_cursor (
    id INTEGER PRIMARY KEY CHECK (id = 1),
    cursor TEXT NOT NULL
) STRICT;
