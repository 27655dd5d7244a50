-- A daemon says in which directory agents of other hosts may have children work on its host.

ALTER TABLE daemons ADD COLUMN spawn_directory text COLLATE "C";
