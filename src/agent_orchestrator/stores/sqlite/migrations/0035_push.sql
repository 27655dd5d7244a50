-- Browsers that are sent notices by Web Push.
CREATE TABLE push_subscriptions (
    id TEXT PRIMARY KEY,
    principal TEXT NOT NULL,
    admin INTEGER NOT NULL,
    token_id TEXT,
    name TEXT NOT NULL,
    endpoint TEXT NOT NULL UNIQUE,
    p256dh TEXT NOT NULL,
    auth TEXT NOT NULL,
    events TEXT NOT NULL,
    created_at TEXT NOT NULL,
    seen_at TEXT NOT NULL
) STRICT, WITHOUT ROWID;

CREATE INDEX push_subscriptions_of_principal ON push_subscriptions (principal, id);
