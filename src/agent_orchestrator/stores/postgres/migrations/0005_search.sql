-- The words of what can be searched, by the position of the event. The table has no texts: those are in the
-- events. Of long events, the beginning that can be searched is here, so that all of one need not be read.
--
-- An older program would add events without words.
-- min_reader: 5

CREATE TABLE search_index (
    position bigint PRIMARY KEY,
    words tsvector NOT NULL
);

CREATE INDEX search_words ON search_index USING gin (words);

CREATE TABLE search_beginnings (
    position bigint PRIMARY KEY,
    text text COLLATE "C" NOT NULL
);

-- The last event whose words are not in the index yet, nor those of earlier ones. No row if all are.
CREATE TABLE search_backlog (
    id integer PRIMARY KEY CHECK (id = 1),
    position bigint NOT NULL
);

INSERT INTO search_backlog SELECT 1, max(position) FROM events HAVING max(position) > 0;

CREATE FUNCTION remove_from_search() RETURNS trigger LANGUAGE plpgsql SET search_path FROM CURRENT AS $$
BEGIN
    DELETE FROM search_index WHERE position = old.position;
    DELETE FROM search_beginnings WHERE position = old.position;
    RETURN NULL;
END $$;

CREATE TRIGGER event_not_searched AFTER DELETE ON events FOR EACH ROW EXECUTE FUNCTION remove_from_search();
