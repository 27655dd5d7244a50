-- Devices, and the codes with which they are let in, are tokens too.

ALTER TABLE access_tokens ADD COLUMN purpose TEXT NOT NULL DEFAULT 'token';
ALTER TABLE access_tokens ADD COLUMN session_id TEXT;
