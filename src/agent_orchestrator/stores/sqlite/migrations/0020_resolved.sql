-- The request that was resolved last in an attempt, without a look at the others.

CREATE INDEX requests_resolved ON requests (run_id, attempt, resolved_at, id, status)
    WHERE resolved_at IS NOT NULL;
