-- Images of messages whose run has not ended. The bytes of one digest are there once; who needs them
-- stands beside.
ALTER TABLE messages ADD COLUMN images TEXT;

CREATE TABLE images (
    number INTEGER PRIMARY KEY,
    digest TEXT NOT NULL UNIQUE,
    data BLOB NOT NULL
) STRICT;

CREATE TABLE image_uses (
    message_id TEXT NOT NULL REFERENCES messages (id),
    digest TEXT NOT NULL REFERENCES images (digest),
    PRIMARY KEY (message_id, digest)
) STRICT, WITHOUT ROWID;
CREATE INDEX image_uses_digest ON image_uses (digest);

-- Kept beside: a sum would read every row.
CREATE TABLE image_space (
    id INTEGER PRIMARY KEY CHECK (id = 1),
    bytes INTEGER NOT NULL
) STRICT;
INSERT INTO image_space (id, bytes) VALUES (1, 0);
