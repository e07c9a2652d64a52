-- Requests for more rights for a while, and what became of them.
CREATE TABLE elevation (
    id             TEXT PRIMARY KEY,
    requester      TEXT NOT NULL,
    requested_with TEXT NOT NULL,
    permissions    TEXT NOT NULL, -- a JSON array
    namespace      TEXT NOT NULL,
    seconds        INTEGER NOT NULL,
    reason         TEXT NOT NULL,
    requested_at   INTEGER NOT NULL,
    state          TEXT NOT NULL,
    decided_by     TEXT,
    decided_at     INTEGER,
    until          INTEGER,
    ended_at       INTEGER
) WITHOUT ROWID;
CREATE INDEX elevation_ended ON elevation (ended_at) WHERE ended_at IS NOT NULL;
