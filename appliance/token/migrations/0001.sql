CREATE TABLE token (
	id      INTEGER PRIMARY KEY AUTOINCREMENT,
	lookup  BLOB NOT NULL UNIQUE,     -- keyed hash of the token
	name    TEXT NOT NULL,
	scope   TEXT NOT NULL,
	person  INTEGER NOT NULL REFERENCES person(id) ON DELETE CASCADE,
	created INTEGER NOT NULL,
	expires INTEGER NOT NULL,         -- 0: never
	used    INTEGER NOT NULL DEFAULT 0,
	source  TEXT NOT NULL DEFAULT ''  -- of the last use
) STRICT;
