-- When agents ask, and what their commands may do without, where that is not their provider's setting.

ALTER TABLE sessions ADD COLUMN approval_policy TEXT;
ALTER TABLE sessions ADD COLUMN sandbox TEXT;
ALTER TABLE runs ADD COLUMN approval_policy TEXT;
ALTER TABLE runs ADD COLUMN sandbox TEXT;
