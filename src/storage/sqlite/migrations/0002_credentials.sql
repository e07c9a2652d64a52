-- Credentials that the server gave out. Of a secret only its digest is kept.

CREATE TABLE credential (
    id           TEXT PRIMARY KEY,
    digest       BLOB NOT NULL UNIQUE,
    kind         TEXT NOT NULL,
    name         TEXT,
    scopes       TEXT NOT NULL, -- JSON, as are the two lists below
    namespaces   TEXT NOT NULL,
    networks     TEXT NOT NULL,
    created_by   TEXT NOT NULL,
    created_with TEXT NOT NULL,
    created_at   INTEGER NOT NULL,
    expires_at   INTEGER,
    max_uses     INTEGER,
    uses         INTEGER NOT NULL,
    parent       TEXT,
    family       TEXT NOT NULL,
    descent      TEXT NOT NULL, -- JSON
    revoked_at   INTEGER,
    last_used_at INTEGER
) WITHOUT ROWID;

CREATE INDEX credential_family ON credential (family);

-- When each permission was last exercised, by the line of rotations.
CREATE TABLE credential_use (
    family     TEXT NOT NULL,
    permission TEXT NOT NULL,
    at         INTEGER NOT NULL,
    PRIMARY KEY (family, permission)
) WITHOUT ROWID;

-- JWTs of an issuer, or of one subject, that count no more. An empty subject
-- is every one: no token has an empty subject.
CREATE TABLE recall (
    issuer  TEXT NOT NULL,
    subject TEXT NOT NULL,
    until   INTEGER NOT NULL,
    PRIMARY KEY (issuer, subject)
) WITHOUT ROWID;
