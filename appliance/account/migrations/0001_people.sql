CREATE TABLE person (
	id           INTEGER PRIMARY KEY,
	lookup       BLOB NOT NULL UNIQUE,  -- keyed hash of the e-mail address
	email        BLOB NOT NULL,         -- sealed
	name         BLOB NOT NULL,         -- sealed
	role         TEXT NOT NULL,
	claim        TEXT NOT NULL CHECK (claim IN ('pending', 'claimed')),
	password     BLOB NOT NULL,         -- sealed argon2id hash
	totp         BLOB,                  -- sealed secret, once verified
	totp_step    INTEGER NOT NULL DEFAULT 0, -- newest step ever accepted
	totp_pending BLOB,                  -- sealed secret, not verified yet
	created      INTEGER NOT NULL
) STRICT;

CREATE TABLE recovery (
	person INTEGER NOT NULL REFERENCES person(id) ON DELETE CASCADE,
	hash   BLOB NOT NULL,
	used   INTEGER,
	PRIMARY KEY (person, hash)
) STRICT, WITHOUT ROWID;

CREATE TABLE session (
	id        INTEGER PRIMARY KEY AUTOINCREMENT,
	token     BLOB NOT NULL UNIQUE,     -- SHA-256 of the cookie
	person    INTEGER NOT NULL REFERENCES person(id) ON DELETE CASCADE,
	stage     TEXT NOT NULL CHECK (stage IN ('code', 'enrol', 'full')),
	created   INTEGER NOT NULL,
	seen      INTEGER NOT NULL,
	confirmed INTEGER NOT NULL,         -- when password and factor were last given
	tries     INTEGER NOT NULL DEFAULT 0,
	source    TEXT NOT NULL,
	agent     TEXT NOT NULL
) STRICT;

CREATE TABLE device (
	token    BLOB PRIMARY KEY,          -- SHA-256 of the cookie
	person   INTEGER NOT NULL REFERENCES person(id) ON DELETE CASCADE,
	created  INTEGER NOT NULL,
	failures INTEGER NOT NULL DEFAULT 0
) STRICT, WITHOUT ROWID;

-- Consecutive failures by browsers that the account has not used, kept for
-- addresses without an account too, so that both cost the same.
CREATE TABLE guess (
	lookup   BLOB PRIMARY KEY,
	failures INTEGER NOT NULL,
	at       INTEGER NOT NULL
) STRICT, WITHOUT ROWID;
