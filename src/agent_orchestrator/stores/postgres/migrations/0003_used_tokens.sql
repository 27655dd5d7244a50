-- When tokens were used last, and on which device requests were decided.
ALTER TABLE access_tokens ADD COLUMN seen_at text COLLATE "C";
ALTER TABLE requests ADD COLUMN decided_on text COLLATE "C";
ALTER TABLE requests ADD COLUMN decided_on_id text COLLATE "C";
