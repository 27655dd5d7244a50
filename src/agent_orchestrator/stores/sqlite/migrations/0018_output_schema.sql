-- JSON Schema of a run's answer, where its message gives one.

ALTER TABLE runs ADD COLUMN output_schema TEXT;
