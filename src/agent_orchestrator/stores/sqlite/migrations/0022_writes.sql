-- How many writes of an attempt are in. One whose commit was answered as failed is told by it from one
-- that was not made.
ALTER TABLE attempts ADD COLUMN writes INTEGER NOT NULL DEFAULT 0;
