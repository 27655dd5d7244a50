-- Runs that hold a session for a person's program, and those that read an agent's own record.
ALTER TABLE runs ADD COLUMN kind TEXT NOT NULL DEFAULT 'message';
ALTER TABLE runs ADD COLUMN holder TEXT;

CREATE INDEX threads_by_id ON threads (thread_id);
