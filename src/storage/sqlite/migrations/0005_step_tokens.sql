-- Keys that sign what the server itself vouches for. The private key is
-- encrypted by a key from elsewhere, of which `sealed_by` is the fingerprint;
-- it is gone once the key is retired.
CREATE TABLE signing_key (
    kid          TEXT PRIMARY KEY,
    purpose      TEXT NOT NULL,
    organisation TEXT NOT NULL,
    public_key   BLOB NOT NULL,
    private_key  BLOB NOT NULL,
    sealed_by    TEXT NOT NULL,
    created_by   TEXT NOT NULL,
    created_at   INTEGER NOT NULL,
    activated_at INTEGER NOT NULL,
    retired_at   INTEGER
) WITHOUT ROWID;

-- Who stands behind what the steps of a template ask for, as JSON.
CREATE TABLE template_registrar (
    ns       INTEGER NOT NULL,
    template INTEGER NOT NULL,
    owner    TEXT NOT NULL,
    PRIMARY KEY (ns, template)
) WITHOUT ROWID;

-- Tasks that steps made by their tokens. All of a root lie in its namespace.
CREATE TABLE lineage (
    ns     INTEGER NOT NULL,
    task   BLOB NOT NULL,
    parent BLOB NOT NULL,
    root   BLOB NOT NULL,
    depth  INTEGER NOT NULL,
    PRIMARY KEY (ns, task)
) WITHOUT ROWID;
CREATE INDEX lineage_parent ON lineage (ns, parent, task);
CREATE INDEX lineage_root ON lineage (ns, root, task);
