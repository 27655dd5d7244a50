-- Which requests their runs cannot go on without. Before, that was at most one of a run.

ALTER TABLE requests ADD COLUMN wait INTEGER NOT NULL DEFAULT 0;

UPDATE requests SET wait = 1
WHERE status = 'pending' AND id IN (SELECT waiting_on FROM runs WHERE waiting_on IS NOT NULL);
