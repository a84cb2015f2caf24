CREATE TABLE target (
	id         INTEGER PRIMARY KEY AUTOINCREMENT,
	name       TEXT NOT NULL UNIQUE COLLATE NOCASE,
	kind       TEXT NOT NULL,
	host       TEXT NOT NULL,
	port       INTEGER NOT NULL,
	recording  TEXT NOT NULL,
	idle       INTEGER NOT NULL,      -- minutes; 0: never
	created    INTEGER NOT NULL,
	credential BLOB                   -- sealed; NULL: none
) STRICT;

CREATE TABLE host_key (
	target INTEGER NOT NULL,          -- 0 is never here: the box has none
	key    BLOB NOT NULL,             -- SSH's wire form
	added  INTEGER NOT NULL,
	UNIQUE (target, key),
	FOREIGN KEY (target) REFERENCES target(id) ON DELETE CASCADE
) STRICT;
