-- Who decides what agents ask for. Requests of before were everybody's to answer.

ALTER TABLE sessions ADD COLUMN approvals TEXT;

ALTER TABLE requests ADD COLUMN approvals TEXT NOT NULL DEFAULT 'ask-parent';
ALTER TABLE requests ADD COLUMN audience TEXT DEFAULT 'people';
ALTER TABLE requests ADD COLUMN people_at TEXT;

CREATE INDEX requests_for_people ON requests (people_at)
    WHERE status = 'pending' AND audience = 'parent';
CREATE INDEX requests_for_parent ON requests (parent_session_id, id)
    WHERE status = 'pending' AND audience = 'parent';
