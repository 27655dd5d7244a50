-- What a browser is notified of, and when; and which engine is sending a notice.
ALTER TABLE push_subscriptions ADD COLUMN push text COLLATE "C" NOT NULL DEFAULT 'on';
ALTER TABLE push_subscriptions ADD COLUMN quiet_hours text COLLATE "C" NOT NULL DEFAULT 'default';
ALTER TABLE push_subscriptions ADD COLUMN time_zone text COLLATE "C";
ALTER TABLE push_subscriptions ADD COLUMN muted text COLLATE "C";
ALTER TABLE notices ADD COLUMN claimed_by text COLLATE "C";
