CREATE TABLE organisation (
	id        INTEGER PRIMARY KEY CHECK (id = 1),
	seed      BLOB NOT NULL, -- sealed: of the Ed25519 key that signs grants and tickets
	recorder  BLOB NOT NULL, -- sealed: private key of recordings
	record_to BLOB NOT NULL  -- its public half
) STRICT;

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

CREATE TABLE remote_session (
	id         BLOB PRIMARY KEY,
	person     INTEGER NOT NULL,
	technician TEXT NOT NULL,
	source     TEXT NOT NULL,
	target_id  INTEGER NOT NULL,
	grant_     BLOB NOT NULL,         -- signed
	started    INTEGER NOT NULL,
	until      INTEGER NOT NULL,
	ended      INTEGER NOT NULL DEFAULT 0,
	reason     TEXT NOT NULL DEFAULT '',
	recorded   INTEGER NOT NULL DEFAULT 0
) STRICT;

CREATE INDEX remote_session_started ON remote_session (started);
