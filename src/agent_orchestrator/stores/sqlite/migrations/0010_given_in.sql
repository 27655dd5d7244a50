-- Which attempt gave a message to its agent; and when an agent's process started, whatever the clock says.

ALTER TABLE messages ADD COLUMN given_in INTEGER;

ALTER TABLE attempts ADD COLUMN pid_birth TEXT;
ALTER TABLE attempts DROP COLUMN pid_started_at;
