-- What people are notified of a session.
ALTER TABLE sessions ADD COLUMN notices TEXT NOT NULL DEFAULT 'default';
