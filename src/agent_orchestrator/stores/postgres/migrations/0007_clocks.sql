-- The clocks of several daemons may differ. An id that any of them makes sorts after those of all earlier changes.
ALTER TABLE head ADD COLUMN newest_id text COLLATE "C" NOT NULL DEFAULT '';

-- How far a daemon's clock is ahead of the server's, in seconds; and whether another daemon has ended the row.
ALTER TABLE daemons ADD COLUMN clock_offset_s double precision;
ALTER TABLE daemons ADD COLUMN is_lost boolean NOT NULL DEFAULT false;
