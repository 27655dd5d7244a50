-- Reasoning effort of a run, where its message gives one.

ALTER TABLE runs ADD COLUMN effort TEXT;
