-- The audit: every decision and change in one row of numbers. Records are
-- written once and never changed; a checkpoint has no chain.

CREATE TABLE audit (
    seq   INTEGER PRIMARY KEY,
    chain TEXT,
    body  TEXT NOT NULL
);

-- What a checkpoint covers, and the hash of each record there. `last` comes
-- first: a record is found under the first checkpoint that reaches it.
CREATE TABLE audit_seal (
    last   INTEGER PRIMARY KEY,
    first  INTEGER NOT NULL,
    number INTEGER NOT NULL UNIQUE,
    seq    INTEGER NOT NULL, -- the checkpoint's own number in `audit`
    bytes  INTEGER NOT NULL, -- what the records it covers take
    links  BLOB NOT NULL
);

-- How much is kept, without a look at the hashes.
CREATE INDEX audit_seal_bytes ON audit_seal (bytes);

-- Where each chain stands, and where it stood before the first record that is
-- still kept.
CREATE TABLE audit_head (
    chain       TEXT PRIMARY KEY,
    number      INTEGER NOT NULL,
    hash        BLOB NOT NULL,
    base_number INTEGER NOT NULL DEFAULT 0,
    base_hash   BLOB
) WITHOUT ROWID;

-- Up to which number each sink outside has been told.
CREATE TABLE audit_sink (
    name TEXT PRIMARY KEY,
    seq  INTEGER NOT NULL
) WITHOUT ROWID;
