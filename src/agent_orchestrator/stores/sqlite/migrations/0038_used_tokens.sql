-- When tokens were used last, and on which device requests were decided.
ALTER TABLE access_tokens ADD COLUMN seen_at TEXT;
ALTER TABLE requests ADD COLUMN decided_on TEXT;
ALTER TABLE requests ADD COLUMN decided_on_id TEXT;
