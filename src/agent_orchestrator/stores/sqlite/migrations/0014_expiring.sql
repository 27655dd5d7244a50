-- When a request warns that it is about to expire. Those of before do not.

ALTER TABLE requests ADD COLUMN warn_at TEXT;
ALTER TABLE requests ADD COLUMN warned INTEGER NOT NULL DEFAULT 0;

CREATE INDEX requests_to_warn ON requests (warn_at) WHERE status = 'pending' AND warned = 0;
