-- The request whose decision a message tells its agent.

ALTER TABLE messages ADD COLUMN request_id TEXT;
