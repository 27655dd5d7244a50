-- The token an attempt's agent was given, as SHA-256: who presents it acts as the run.

ALTER TABLE attempts ADD COLUMN token_hash TEXT;

CREATE UNIQUE INDEX attempts_of_token ON attempts (token_hash) WHERE token_hash IS NOT NULL;
