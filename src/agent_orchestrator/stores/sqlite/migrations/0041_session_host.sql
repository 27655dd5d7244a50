-- The machine that a session's directory is on; none for sessions that were made before.
ALTER TABLE sessions ADD COLUMN host TEXT;
