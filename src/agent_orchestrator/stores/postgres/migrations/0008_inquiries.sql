-- What a daemon asks another one about its machine, and the answer, as JSON. The rows are deleted within a minute.
CREATE TABLE inquiries (
    id text COLLATE "C" NOT NULL PRIMARY KEY,
    daemon_id text COLLATE "C" NOT NULL,
    question text COLLATE "C" NOT NULL,
    answer text COLLATE "C",
    asked_at timestamptz NOT NULL DEFAULT clock_timestamp()
);
