-- Several daemons share the database. A row without a version is of an earlier program, which shares it with
-- no other. The rest is what the daemon says of itself; it is missing while it starts.

ALTER TABLE daemons
    ADD COLUMN version text COLLATE "C",
    ADD COLUMN url text COLLATE "C",
    ADD COLUMN capacity bigint,
    ADD COLUMN providers text COLLATE "C";

CREATE INDEX daemons_alive ON daemons (id) WHERE ended_at IS NULL;
