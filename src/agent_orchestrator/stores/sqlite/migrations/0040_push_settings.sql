-- What a browser is notified of, and when; and which engine is sending a notice.
ALTER TABLE push_subscriptions ADD COLUMN push TEXT NOT NULL DEFAULT 'on';
ALTER TABLE push_subscriptions ADD COLUMN quiet_hours TEXT NOT NULL DEFAULT 'default';
ALTER TABLE push_subscriptions ADD COLUMN time_zone TEXT;
ALTER TABLE push_subscriptions ADD COLUMN muted TEXT;
ALTER TABLE notices ADD COLUMN claimed_by TEXT;
