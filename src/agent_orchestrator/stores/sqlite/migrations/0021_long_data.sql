-- Long data and results, in UTF-8, as blobs: they are written in slices, where SQLite makes several
-- copies of a text. The data of an event is empty then, the result of a run null.
--
-- Results have a table of their own: to find a row in a table without rowids, SQLite reads all of
-- each row that it compares.

ALTER TABLE events ADD COLUMN long_data BLOB;

CREATE TABLE long_results (
    number INTEGER PRIMARY KEY,
    run_id TEXT NOT NULL UNIQUE REFERENCES runs (id),
    result BLOB NOT NULL
) STRICT;

INSERT INTO long_results (run_id, result)
    SELECT id, CAST(result AS BLOB) FROM runs WHERE octet_length(result) > 65536;
UPDATE runs SET result = NULL WHERE octet_length(result) > 65536;
