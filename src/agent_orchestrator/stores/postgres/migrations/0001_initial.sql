-- All texts are compared by bytes, whatever the database's collation: lists are paged by id. Times are RFC
-- 3339 text in UTC with microseconds, JSON is text. A text that PostgreSQL would refuse is stored encoded
-- (agent_orchestrator.stores.postgres.values). Times that are compared with the server's clock are timestamps.

-- The last position of the log. Every change locks this row, so that one change runs at a time and positions
-- have the order of the commits.
CREATE TABLE head (
    one integer PRIMARY KEY CHECK (one = 1),
    position bigint NOT NULL
) WITH (fillfactor = 10);
INSERT INTO head VALUES (1, 0);

-- Each daemon that has opened the database. The row of a daemon that ended, or that was taken over, has an
-- end. Without an end, the daemon may commit: every commit counts in its row.
CREATE TABLE daemons (
    id text COLLATE "C" NOT NULL PRIMARY KEY,
    host text COLLATE "C" NOT NULL,
    machine text COLLATE "C",
    pid bigint NOT NULL,
    process_start_id text COLLATE "C",
    started_at timestamptz NOT NULL DEFAULT clock_timestamp(),
    expires_at timestamptz NOT NULL,
    ended_at timestamptz,
    commits bigint NOT NULL DEFAULT 0
) WITH (fillfactor = 50);

-- Where this database is. A dump that was restored, or a standby that was promoted, is elsewhere, and may lack
-- commits that this one had.
CREATE TABLE origin (
    one integer PRIMARY KEY CHECK (one = 1),
    place text COLLATE "C" NOT NULL
);

CREATE TABLE epochs (
    number bigint PRIMARY KEY GENERATED ALWAYS AS IDENTITY,
    id text COLLATE "C" NOT NULL UNIQUE,
    timeline bigint NOT NULL,
    position bigint NOT NULL
);

CREATE TABLE sessions (
    number bigint NOT NULL UNIQUE GENERATED ALWAYS AS IDENTITY,
    id text COLLATE "C" NOT NULL PRIMARY KEY,
    title text COLLATE "C",
    owner text COLLATE "C" NOT NULL,
    provider text COLLATE "C",
    model text COLLATE "C",
    cwd text COLLATE "C" NOT NULL,
    status text COLLATE "C" NOT NULL,
    parent_session_id text COLLATE "C",
    parent_run_id text COLLATE "C",
    root_session_id text COLLATE "C" NOT NULL,
    depth bigint NOT NULL,
    metadata text COLLATE "C" NOT NULL,
    created_at text COLLATE "C" NOT NULL,
    updated_at text COLLATE "C" NOT NULL,
    notify_parent text COLLATE "C" NOT NULL,
    approvals text COLLATE "C",
    max_depth bigint,
    max_children bigint,
    max_descendants bigint,
    approval_policy text COLLATE "C",
    sandbox text COLLATE "C",
    notices text COLLATE "C" NOT NULL,
    last_seq bigint NOT NULL DEFAULT 0,
    last_position bigint NOT NULL DEFAULT 0,
    last_line text COLLATE "C"
) WITH (fillfactor = 70);

CREATE INDEX sessions_of_owner ON sessions (owner, id);
CREATE INDEX sessions_of_owner_by_status ON sessions (owner, status, id);
CREATE INDEX sessions_of_status ON sessions (status, id);
CREATE INDEX sessions_with_news ON sessions (owner, last_position);
CREATE INDEX sessions_of_parent ON sessions (parent_session_id, id) WHERE parent_session_id IS NOT NULL;
CREATE INDEX sessions_of_root ON sessions (root_session_id) WHERE parent_session_id IS NOT NULL;

CREATE TABLE messages (
    id text COLLATE "C" NOT NULL PRIMARY KEY,
    session_id text COLLATE "C" NOT NULL REFERENCES sessions (id),
    role text COLLATE "C" NOT NULL,
    text text COLLATE "C" NOT NULL,
    run_id text COLLATE "C",
    delivery text COLLATE "C" NOT NULL,
    created_at text COLLATE "C" NOT NULL,
    steers boolean NOT NULL,
    given_in bigint,
    own_run_id text COLLATE "C",
    request_id text COLLATE "C",
    images text COLLATE "C",
    source_kind text COLLATE "C" NOT NULL,
    source_session_id text COLLATE "C",
    source_run_id text COLLATE "C",
    source_principal text COLLATE "C"
);

CREATE INDEX messages_of_session ON messages (session_id, id);
CREATE INDEX messages_of_run ON messages (run_id, id) WHERE run_id IS NOT NULL;
CREATE INDEX messages_waiting ON messages (session_id, id) WHERE run_id IS NULL AND delivery = 'queued';
CREATE INDEX messages_from_child ON messages (source_run_id) WHERE source_kind = 'child';

CREATE TABLE images (
    digest text COLLATE "C" NOT NULL PRIMARY KEY,
    data bytea NOT NULL
);

CREATE TABLE image_uses (
    message_id text COLLATE "C" NOT NULL REFERENCES messages (id),
    digest text COLLATE "C" NOT NULL REFERENCES images (digest),
    PRIMARY KEY (message_id, digest)
);

CREATE INDEX image_uses_digest ON image_uses (digest);

CREATE TABLE image_space (
    id integer PRIMARY KEY CHECK (id = 1),
    bytes bigint NOT NULL
);
INSERT INTO image_space VALUES (1, 0);

CREATE TABLE runs (
    id text COLLATE "C" NOT NULL PRIMARY KEY,
    session_id text COLLATE "C" NOT NULL REFERENCES sessions (id),
    owner text COLLATE "C",
    message_id text COLLATE "C",
    parent_run_id text COLLATE "C",
    provider text COLLATE "C" NOT NULL,
    model text COLLATE "C",
    status text COLLATE "C" NOT NULL,
    waiting_on text COLLATE "C",
    attempt bigint NOT NULL,
    worker_id text COLLATE "C",
    thread_id text COLLATE "C",
    result text COLLATE "C",
    usage text COLLATE "C",
    exit_code bigint,
    cancel_requested_at text COLLATE "C",
    cancel_reason text COLLATE "C",
    created_at text COLLATE "C" NOT NULL,
    started_at text COLLATE "C",
    finished_at text COLLATE "C",
    interrupts boolean NOT NULL,
    approval_policy text COLLATE "C",
    sandbox text COLLATE "C",
    effort text COLLATE "C",
    output_schema text COLLATE "C",
    chosen text COLLATE "C",
    kind text COLLATE "C" NOT NULL,
    holder text COLLATE "C",
    error_code text COLLATE "C",
    error_message text COLLATE "C"
);

CREATE INDEX runs_of_session ON runs (session_id, id);
CREATE INDEX runs_of_session_by_status ON runs (session_id, status, id);
CREATE INDEX runs_of_status ON runs (status, id);
CREATE INDEX runs_of_owner ON runs (owner, id);
CREATE INDEX runs_of_owner_by_status ON runs (owner, status, id);
CREATE INDEX runs_of_parent ON runs (parent_run_id, id) WHERE parent_run_id IS NOT NULL;
CREATE INDEX runs_for_workers ON runs (id) WHERE status = 'queued' AND provider <> 'manual';
CREATE UNIQUE INDEX runs_active ON runs (session_id) WHERE status IN ('running', 'waiting');

CREATE TABLE long_results (
    run_id text COLLATE "C" NOT NULL PRIMARY KEY REFERENCES runs (id),
    result bytea NOT NULL
);

-- Without a foreign key: an event is added after its session's row was updated.
CREATE TABLE events (
    position bigint PRIMARY KEY,
    session bigint NOT NULL,
    seq bigint NOT NULL,
    run_id text COLLATE "C",
    attempt bigint,
    event_type text COLLATE "C" NOT NULL,
    created_at text COLLATE "C" NOT NULL,
    data text COLLATE "C" NOT NULL,
    long_data bytea,
    UNIQUE (session, seq)
);

CREATE TABLE attempts (
    run_id text COLLATE "C" NOT NULL REFERENCES runs (id),
    attempt bigint NOT NULL,
    worker_id text COLLATE "C" NOT NULL,
    provider text COLLATE "C" NOT NULL,
    started_at text COLLATE "C" NOT NULL,
    ended_at text COLLATE "C",
    outcome text COLLATE "C",
    pid bigint,
    pid_birth text COLLATE "C",
    invocation text COLLATE "C",
    delivered_at text COLLATE "C",
    stderr_tail text COLLATE "C" NOT NULL,
    steerable boolean NOT NULL,
    token_hash text COLLATE "C",
    writes bigint NOT NULL,
    host text COLLATE "C",
    PRIMARY KEY (run_id, attempt)
);

CREATE UNIQUE INDEX attempts_of_token ON attempts (token_hash) WHERE token_hash IS NOT NULL;

CREATE TABLE activity (
    run_id text COLLATE "C" NOT NULL,
    attempt bigint NOT NULL,
    last_seq bigint NOT NULL,
    event_at text COLLATE "C" NOT NULL,
    output_at text COLLATE "C",
    PRIMARY KEY (run_id, attempt)
) WITH (fillfactor = 70);

CREATE TABLE requests (
    id text COLLATE "C" NOT NULL PRIMARY KEY,
    session_id text COLLATE "C" NOT NULL REFERENCES sessions (id),
    run_id text COLLATE "C" NOT NULL REFERENCES runs (id),
    owner text COLLATE "C",
    attempt bigint NOT NULL,
    root_session_id text COLLATE "C" NOT NULL,
    parent_session_id text COLLATE "C",
    kind text COLLATE "C" NOT NULL,
    text text COLLATE "C" NOT NULL,
    detail text COLLATE "C" NOT NULL,
    options text COLLATE "C" NOT NULL,
    status text COLLATE "C" NOT NULL,
    decision text COLLATE "C",
    answer text COLLATE "C",
    scope text COLLATE "C",
    decided_by text COLLATE "C",
    created_at text COLLATE "C" NOT NULL,
    expires_at text COLLATE "C" NOT NULL,
    resolved_at text COLLATE "C",
    approvals text COLLATE "C" NOT NULL,
    audience text COLLATE "C",
    people_at text COLLATE "C",
    wait boolean NOT NULL,
    warn_at text COLLATE "C",
    warned boolean NOT NULL,
    option text COLLATE "C",
    deadline text COLLATE "C" GENERATED ALWAYS AS (expires_at || '/' || id) STORED
);

CREATE INDEX requests_of_status ON requests (status, id);
CREATE INDEX requests_of_session ON requests (session_id, id);
CREATE INDEX requests_of_session_by_status ON requests (session_id, status, id);
CREATE INDEX requests_of_root ON requests (root_session_id, id);
CREATE INDEX requests_of_root_by_status ON requests (root_session_id, status, id);
CREATE INDEX requests_of_run_by_status ON requests (run_id, status, id);
CREATE INDEX requests_of_owner ON requests (owner, id);
CREATE INDEX requests_of_owner_by_status ON requests (owner, status, id);
CREATE INDEX requests_to_expire ON requests (expires_at) WHERE status = 'pending';
CREATE INDEX requests_to_warn ON requests (warn_at) WHERE status = 'pending' AND NOT warned;
CREATE INDEX requests_for_people ON requests (people_at) WHERE status = 'pending' AND audience = 'parent';
CREATE INDEX requests_for_parent ON requests (parent_session_id, id)
    WHERE status = 'pending' AND audience = 'parent';
CREATE INDEX requests_by_deadline ON requests (deadline) WHERE status = 'pending';
CREATE INDEX requests_of_owner_by_deadline ON requests (owner, deadline) WHERE status = 'pending';
CREATE INDEX requests_of_session_by_deadline ON requests (session_id, deadline) WHERE status = 'pending';
CREATE INDEX requests_of_root_by_deadline ON requests (root_session_id, deadline) WHERE status = 'pending';
CREATE INDEX requests_resolved ON requests (run_id, attempt, resolved_at, id) WHERE resolved_at IS NOT NULL;

-- The owner of a run or request is the owner of its session.
CREATE FUNCTION owner_of_session() RETURNS trigger LANGUAGE plpgsql SET search_path FROM CURRENT AS $$
BEGIN
    UPDATE runs SET owner = new.owner WHERE session_id = new.id;
    UPDATE requests SET owner = new.owner WHERE session_id = new.id;
    RETURN NULL;
END $$;
CREATE TRIGGER owner_of_session AFTER UPDATE OF owner ON sessions
    FOR EACH ROW WHEN (new.owner <> old.owner) EXECUTE FUNCTION owner_of_session();

CREATE TABLE threads (
    session_id text COLLATE "C" NOT NULL REFERENCES sessions (id),
    provider text COLLATE "C" NOT NULL,
    thread_id text COLLATE "C" NOT NULL,
    state text COLLATE "C" NOT NULL,
    PRIMARY KEY (session_id, provider)
);

-- Ids of threads come from agents and can be long: a hash has no limit.
CREATE INDEX threads_by_id ON threads USING hash (thread_id);

CREATE TABLE grants (
    session_id text COLLATE "C" NOT NULL REFERENCES sessions (id),
    principal text COLLATE "C" NOT NULL,
    role text COLLATE "C" NOT NULL,
    PRIMARY KEY (session_id, principal)
);

CREATE INDEX grants_of_principal ON grants (principal, session_id);

CREATE TABLE access_tokens (
    id text COLLATE "C" NOT NULL PRIMARY KEY,
    name text COLLATE "C" NOT NULL,
    principal text COLLATE "C" NOT NULL,
    scopes text COLLATE "C" NOT NULL,
    created_by text COLLATE "C" NOT NULL,
    created_at text COLLATE "C" NOT NULL,
    expires_at text COLLATE "C",
    revoked_at text COLLATE "C",
    purpose text COLLATE "C" NOT NULL,
    session_id text COLLATE "C",
    token_hash text COLLATE "C" NOT NULL UNIQUE
);

CREATE TABLE idempotency (
    number bigint PRIMARY KEY GENERATED ALWAYS AS IDENTITY,
    caller text COLLATE "C" NOT NULL,
    call text COLLATE "C" NOT NULL,
    key text COLLATE "C" NOT NULL,
    fingerprint text COLLATE "C" NOT NULL,
    created_at text COLLATE "C" NOT NULL,
    place bigint NOT NULL,
    total bigint NOT NULL,
    answer text COLLATE "C" NOT NULL,
    UNIQUE (caller, call, key)
);

CREATE INDEX idempotency_of_caller ON idempotency (caller, place, total);

CREATE TABLE audit (
    seq bigint PRIMARY KEY,
    at text COLLATE "C" NOT NULL,
    principal text COLLATE "C" NOT NULL,
    token text COLLATE "C" NOT NULL,
    operation text COLLATE "C" NOT NULL,
    target text COLLATE "C",
    decision text COLLATE "C" NOT NULL,
    detail text COLLATE "C" NOT NULL,
    hash text COLLATE "C" NOT NULL
);

CREATE FUNCTION audit_in_order() RETURNS trigger LANGUAGE plpgsql SET search_path FROM CURRENT AS $$
BEGIN
    IF new.seq <> (SELECT coalesce(max(seq), 0) + 1 FROM audit) THEN
        RAISE integrity_constraint_violation USING MESSAGE = 'the audit trail has no gap';
    END IF;
    RETURN new;
END $$;
CREATE TRIGGER audit_in_order BEFORE INSERT ON audit FOR EACH ROW EXECUTE FUNCTION audit_in_order();

CREATE FUNCTION audit_unchanged() RETURNS trigger LANGUAGE plpgsql SET search_path FROM CURRENT AS $$
BEGIN
    RAISE integrity_constraint_violation USING MESSAGE = 'the audit trail is only added to';
END $$;
CREATE TRIGGER audit_unchanged BEFORE UPDATE OR DELETE OR TRUNCATE ON audit
    FOR EACH STATEMENT EXECUTE FUNCTION audit_unchanged();

-- How far each reader has read.
CREATE TABLE seen (
    reader text COLLATE "C" NOT NULL,
    session_id text COLLATE "C" NOT NULL REFERENCES sessions (id),
    seq bigint NOT NULL,
    PRIMARY KEY (reader, session_id)
);

-- The outbox of notices, and the cursor of the log up to which it was filled.
CREATE TABLE notices (
    id text COLLATE "C" NOT NULL PRIMARY KEY,
    kind text COLLATE "C" NOT NULL,
    target text COLLATE "C" NOT NULL,
    subject text COLLATE "C" NOT NULL,
    session_id text COLLATE "C",
    run_id text COLLATE "C",
    request_id text COLLATE "C",
    state text COLLATE "C" NOT NULL,
    created_at text COLLATE "C" NOT NULL,
    updated_at text COLLATE "C" NOT NULL,
    principal text COLLATE "C",
    deadline text COLLATE "C",
    next_at text COLLATE "C",
    attempts bigint NOT NULL,
    is_fallback boolean NOT NULL,
    sent_at text COLLATE "C",
    shown_at text COLLATE "C",
    clicked_at text COLLATE "C",
    error text COLLATE "C"
);

CREATE UNIQUE INDEX notices_about ON notices (subject, target);
CREATE INDEX notices_due ON notices (next_at) WHERE next_at IS NOT NULL;
CREATE INDEX notices_done ON notices (updated_at) WHERE next_at IS NULL;
CREATE INDEX notices_in_state ON notices (state, id);
CREATE INDEX notices_of_principal ON notices (principal, id) WHERE principal IS NOT NULL;

CREATE TABLE notice_cursor (
    id integer PRIMARY KEY CHECK (id = 1),
    cursor text COLLATE "C" NOT NULL
);

-- Browsers that are sent notices by Web Push.
CREATE TABLE push_subscriptions (
    id text COLLATE "C" NOT NULL PRIMARY KEY,
    principal text COLLATE "C" NOT NULL,
    admin boolean NOT NULL,
    token_id text COLLATE "C",
    name text COLLATE "C" NOT NULL,
    endpoint text COLLATE "C" NOT NULL UNIQUE,
    p256dh text COLLATE "C" NOT NULL,
    auth text COLLATE "C" NOT NULL,
    events text COLLATE "C" NOT NULL,
    created_at text COLLATE "C" NOT NULL,
    seen_at text COLLATE "C" NOT NULL
);

CREATE INDEX push_subscriptions_of_principal ON push_subscriptions (principal, id);
