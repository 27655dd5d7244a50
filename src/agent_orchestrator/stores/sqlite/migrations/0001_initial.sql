-- Times are RFC 3339 text in UTC with microseconds, so that text order is time order. JSON is text.

CREATE TABLE sessions (
    number INTEGER PRIMARY KEY,  -- what events refer to: small, where the id is thirty characters
    id TEXT NOT NULL UNIQUE,
    title TEXT,
    owner TEXT NOT NULL,
    provider TEXT,
    model TEXT,
    cwd TEXT NOT NULL,
    status TEXT NOT NULL,
    parent_session_id TEXT,
    parent_run_id TEXT,
    root_session_id TEXT NOT NULL,
    depth INTEGER NOT NULL,
    notify_parent TEXT NOT NULL,
    metadata TEXT NOT NULL,
    last_seq INTEGER NOT NULL DEFAULT 0,
    last_position INTEGER NOT NULL DEFAULT 0,  -- of its newest event in the log of all sessions
    created_at TEXT NOT NULL,
    updated_at TEXT NOT NULL
) STRICT;

CREATE INDEX sessions_of_owner ON sessions (owner, id);
CREATE INDEX sessions_with_news ON sessions (owner, last_position);
CREATE INDEX sessions_of_parent ON sessions (parent_session_id, id)
    WHERE parent_session_id IS NOT NULL;
CREATE INDEX sessions_of_root ON sessions (root_session_id) WHERE parent_session_id IS NOT NULL;

CREATE TABLE messages (
    id TEXT PRIMARY KEY NOT NULL,
    session_id TEXT NOT NULL REFERENCES sessions (id),
    role TEXT NOT NULL,
    source_kind TEXT NOT NULL,
    source_session_id TEXT,
    source_run_id TEXT,
    source_principal TEXT,
    run_id TEXT,
    delivery TEXT NOT NULL,
    created_at TEXT NOT NULL,
    steers INTEGER NOT NULL,
    text TEXT NOT NULL
) STRICT;

CREATE INDEX messages_of_session ON messages (session_id, id);
CREATE INDEX messages_of_run ON messages (run_id, id) WHERE run_id IS NOT NULL;
CREATE INDEX messages_waiting ON messages (session_id, id)
    WHERE run_id IS NULL AND delivery = 'queued';

CREATE TABLE runs (
    id TEXT PRIMARY KEY NOT NULL,
    session_id TEXT NOT NULL REFERENCES sessions (id),
    message_id TEXT,
    parent_run_id TEXT,
    provider TEXT NOT NULL,
    model TEXT,
    status TEXT NOT NULL,
    waiting_on TEXT,
    attempt INTEGER NOT NULL,
    worker_id TEXT,
    thread_id TEXT,
    result TEXT,
    error_code TEXT,
    error_message TEXT,
    usage TEXT,
    exit_code INTEGER,
    cancel_requested_at TEXT,
    cancel_reason TEXT,
    created_at TEXT NOT NULL,
    started_at TEXT,
    interrupts INTEGER NOT NULL,  -- goes before what the session has queued
    finished_at TEXT
) STRICT, WITHOUT ROWID;

CREATE INDEX runs_of_session ON runs (session_id, id);
CREATE INDEX runs_of_status ON runs (status, id);
CREATE INDEX runs_of_parent ON runs (parent_run_id, id) WHERE parent_run_id IS NOT NULL;
CREATE INDEX runs_for_workers ON runs (id) WHERE status = 'queued' AND provider <> 'manual';
CREATE INDEX runs_queued ON runs (session_id, id) WHERE status = 'queued';
CREATE UNIQUE INDEX runs_active ON runs (session_id) WHERE status IN ('running', 'waiting');

CREATE TABLE events (
    position INTEGER PRIMARY KEY,  -- 1, 2, 3 … over all sessions, in the order of the commits
    session INTEGER NOT NULL REFERENCES sessions (number),
    seq INTEGER NOT NULL,
    run_id TEXT,
    attempt INTEGER,
    event_type TEXT NOT NULL,
    created_at TEXT NOT NULL,
    data TEXT NOT NULL
) STRICT;

CREATE UNIQUE INDEX events_of_session ON events (session, seq);

CREATE TABLE attempts (
    run_id TEXT NOT NULL REFERENCES runs (id),
    attempt INTEGER NOT NULL,
    worker_id TEXT NOT NULL,
    provider TEXT NOT NULL,
    started_at TEXT NOT NULL,
    ended_at TEXT,
    outcome TEXT,
    pid INTEGER,
    pid_started_at REAL,
    invocation TEXT,
    delivered_at TEXT,
    stderr_tail TEXT NOT NULL,
    steerable INTEGER NOT NULL,
    PRIMARY KEY (run_id, attempt)
) STRICT;

CREATE TABLE requests (
    id TEXT PRIMARY KEY NOT NULL,
    session_id TEXT NOT NULL REFERENCES sessions (id),
    run_id TEXT NOT NULL REFERENCES runs (id),
    attempt INTEGER NOT NULL,
    root_session_id TEXT NOT NULL,
    parent_session_id TEXT,
    kind TEXT NOT NULL,
    text TEXT NOT NULL,
    detail TEXT NOT NULL,
    options TEXT NOT NULL,
    status TEXT NOT NULL,
    decision TEXT,
    answer TEXT,
    scope TEXT,
    decided_by TEXT,
    created_at TEXT NOT NULL,
    expires_at TEXT NOT NULL,
    resolved_at TEXT
) STRICT;

CREATE INDEX requests_of_status ON requests (status, id);
CREATE INDEX requests_of_session ON requests (session_id, id);
CREATE INDEX requests_of_root ON requests (root_session_id, id);
CREATE INDEX requests_of_run ON requests (run_id);
CREATE INDEX requests_to_expire ON requests (expires_at) WHERE status = 'pending';

CREATE TABLE threads (
    session_id TEXT NOT NULL REFERENCES sessions (id),
    provider TEXT NOT NULL,
    thread_id TEXT NOT NULL,
    state TEXT NOT NULL,
    PRIMARY KEY (session_id, provider)
) STRICT, WITHOUT ROWID;

CREATE TABLE idempotency (
    number INTEGER PRIMARY KEY,  -- by age, near enough to forget the oldest first
    caller TEXT NOT NULL,
    call TEXT NOT NULL,
    key TEXT NOT NULL,
    fingerprint TEXT NOT NULL,
    answer TEXT NOT NULL,
    created_at TEXT NOT NULL,
    UNIQUE (caller, call, key)
) STRICT;
