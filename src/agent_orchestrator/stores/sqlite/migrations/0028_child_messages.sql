-- How many messages a child's run has sent to its parent, without a look at the others.
CREATE INDEX messages_from_child ON messages (source_run_id) WHERE source_kind = 'child';
