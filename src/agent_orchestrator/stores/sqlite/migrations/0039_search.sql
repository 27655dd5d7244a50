-- The words of what can be searched, by the position of the event. The table has no texts: those are in the
-- events. Of long events, the beginning that can be searched is here, so that all of one need not be read.

CREATE VIRTUAL TABLE search_index USING fts5 (
    words, content = '', contentless_delete = 1, tokenize = 'ascii'
);

CREATE TABLE search_beginnings (
    position INTEGER PRIMARY KEY,
    text TEXT NOT NULL
) STRICT;

-- The last event whose words are not in the index yet, nor those of earlier ones. No row if all are.
CREATE TABLE search_backlog (
    id INTEGER PRIMARY KEY CHECK (id = 1),
    position INTEGER NOT NULL
) STRICT;

INSERT INTO search_backlog SELECT 1, max(position) FROM events HAVING max(position) > 0;

CREATE TRIGGER event_not_searched AFTER DELETE ON events
BEGIN
    DELETE FROM search_index WHERE rowid = old.position;
    DELETE FROM search_beginnings WHERE position = old.position;
END;
