-- The run that a message becomes which the agent at work does not take: named when the message came, so
-- that it stands before what came later.

ALTER TABLE messages ADD COLUMN own_run_id TEXT;
