-- How far a session may spawn others, where that is less than the engine allows.

ALTER TABLE sessions ADD COLUMN max_depth INTEGER;
ALTER TABLE sessions ADD COLUMN max_children INTEGER;
ALTER TABLE sessions ADD COLUMN max_descendants INTEGER;
