CREATE TABLE organisation (
	id        INTEGER PRIMARY KEY CHECK (id = 1),
	seed      BLOB NOT NULL, -- sealed: of the Ed25519 key that signs grants and tickets
	recorder  BLOB NOT NULL, -- sealed: private key of recordings
	record_to BLOB NOT NULL  -- its public half
) STRICT;

CREATE TABLE remote_session (
	id         BLOB PRIMARY KEY,
	person     INTEGER NOT NULL,
	technician TEXT NOT NULL,
	source     TEXT NOT NULL,
	sign_in    INTEGER NOT NULL,      -- by which it was asked for, and with which it ends
	target_id  INTEGER NOT NULL,
	grant_     BLOB NOT NULL,         -- signed
	started    INTEGER NOT NULL,
	until      INTEGER NOT NULL,
	ended      INTEGER NOT NULL DEFAULT 0,
	reason     TEXT NOT NULL DEFAULT '',
	recorded   INTEGER NOT NULL DEFAULT 0
) STRICT;

CREATE INDEX remote_session_started ON remote_session (started);
