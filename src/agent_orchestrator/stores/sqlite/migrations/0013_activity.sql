-- When each attempt of a run wrote its last event and its last output: looked up, never searched for in the
-- log. Attempt 0 stands for events of a run that no attempt wrote.

CREATE TABLE activity (
    run_id TEXT NOT NULL,
    attempt INTEGER NOT NULL,
    last_seq INTEGER NOT NULL,
    event_at TEXT NOT NULL,
    output_at TEXT,
    PRIMARY KEY (run_id, attempt)
) STRICT, WITHOUT ROWID;

INSERT INTO activity (run_id, attempt, last_seq, event_at)
SELECT run_id, coalesce(attempt, 0), max(seq), created_at FROM events
WHERE run_id IS NOT NULL GROUP BY 1, 2;

UPDATE activity SET output_at = said.created_at
FROM (
    SELECT run_id, coalesce(attempt, 0) AS attempt, max(seq), created_at FROM events
    WHERE run_id IS NOT NULL AND event_type IN (
        'agent.message', 'agent.message.delta', 'agent.reasoning', 'tool.started', 'tool.output',
        'tool.completed', 'file.changed', 'plan.updated', 'backend.event'
    )
    GROUP BY 1, 2
) AS said
WHERE said.run_id = activity.run_id AND said.attempt = activity.attempt;

-- What is open is found without passing what was asked before.
CREATE INDEX requests_open_of_run ON requests (run_id, id) WHERE status = 'pending';
CREATE INDEX requests_open_of_session ON requests (session_id, id) WHERE status = 'pending';
