-- The machine that the agent of an attempt works on; none for attempts that were made before.
ALTER TABLE attempts ADD COLUMN host TEXT;
