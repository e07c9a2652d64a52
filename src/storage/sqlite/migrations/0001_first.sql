-- The first schema. Keys begin with the namespace's number; ids of tasks sort
-- by time, so that new rows go to the right edge of their tree. Times are
-- microseconds since 1970 in UTC. A released migration is never edited.

-- What the store knows about itself.
CREATE TABLE store (
    one   INTEGER PRIMARY KEY CHECK (one = 1),
    epoch INTEGER NOT NULL, -- raised at each start; part of every lease's id
    beat  INTEGER NOT NULL  -- written to prove that a change reaches the disk
);
INSERT INTO store (one, epoch, beat) VALUES (1, 0, 0);

CREATE TABLE namespace (
    no   INTEGER PRIMARY KEY,
    name TEXT NOT NULL UNIQUE
);

-- Immutable.
CREATE TABLE template (
    ns            INTEGER NOT NULL,
    no            INTEGER NOT NULL,
    name          TEXT NOT NULL,
    version       TEXT NOT NULL,
    registered_by TEXT NOT NULL,
    registered_at INTEGER NOT NULL,
    credential    TEXT NOT NULL,
    request       TEXT,
    definition    TEXT NOT NULL,
    PRIMARY KEY (ns, no)
) WITHOUT ROWID;
CREATE UNIQUE INDEX template_name ON template (ns, name, version);
CREATE INDEX template_age ON template (registered_at, ns, no, name);

-- Which templates name a handler.
CREATE TABLE template_handler (
    ns       INTEGER NOT NULL,
    handler  TEXT NOT NULL,
    template INTEGER NOT NULL,
    PRIMARY KEY (ns, handler, template)
) WITHOUT ROWID;

-- Narrow and mutable; what a tenant brings lies in `payload`.
CREATE TABLE task (
    ns           INTEGER NOT NULL,
    task         BLOB NOT NULL,
    state        INTEGER NOT NULL,
    counts       BLOB NOT NULL, -- steps by state: 32 bits each, big end first
    started      INTEGER NOT NULL,
    last_seq     INTEGER NOT NULL,
    template     INTEGER NOT NULL,
    priority     INTEGER NOT NULL,
    created_by   TEXT NOT NULL,
    created_at   INTEGER NOT NULL,
    updated_at   INTEGER NOT NULL,
    completed_at INTEGER,
    traceparent  TEXT,
    PRIMARY KEY (ns, task)
) WITHOUT ROWID;
-- What is unfinished.
CREATE INDEX task_open ON task (ns, task) WHERE state <= 4;

-- Insert-only. Slot -1 holds a task's labels, slot 0 its context, slot n + 1
-- the result of step n. `key_id` names the key of an encrypted body.
CREATE TABLE payload (
    ns     INTEGER NOT NULL,
    task   BLOB NOT NULL,
    slot   INTEGER NOT NULL,
    key_id INTEGER,
    body   BLOB NOT NULL,
    PRIMARY KEY (ns, task, slot)
) WITHOUT ROWID;

CREATE TABLE step (
    ns               INTEGER NOT NULL,
    task             BLOB NOT NULL,
    no               INTEGER NOT NULL,
    state            INTEGER NOT NULL,
    name             TEXT NOT NULL,
    handler          TEXT NOT NULL,
    rank             INTEGER NOT NULL, -- the priority with its sign turned
    deps_left        INTEGER NOT NULL,
    dependants       BLOB NOT NULL,    -- step numbers: 16 bits each, big end first
    parents          BLOB NOT NULL,
    attempts         INTEGER NOT NULL,
    attempts_allowed INTEGER NOT NULL,
    retryable        INTEGER NOT NULL,
    max_attempts     INTEGER NOT NULL,
    backoff          INTEGER NOT NULL,
    base_ms          INTEGER NOT NULL,
    max_ms           INTEGER NOT NULL,
    timeout_ms       INTEGER NOT NULL,
    created_at       INTEGER NOT NULL,
    ready_at         INTEGER,
    due_at           INTEGER, -- when the timer must look at it
    retry_at         INTEGER,
    -- The lease: the present one, or the one under which it was completed.
    epoch            INTEGER,
    counter          INTEGER,
    random           INTEGER,
    holder           TEXT,
    worker           TEXT,
    orphaned         INTEGER NOT NULL,
    started_at       INTEGER,
    expires_at       INTEGER,
    timeout_at       INTEGER,
    completed_at     INTEGER,
    PRIMARY KEY (ns, task, no)
) WITHOUT ROWID;
-- The queues: by priority, then age.
CREATE INDEX step_ready ON step (ns, handler, rank, ready_at, task, no) WHERE state = 2;
-- Leases and retries by the moment at which the timer must look at them.
CREATE INDEX step_due ON step (due_at) WHERE due_at IS NOT NULL;

-- Attempts that ended other than by completion.
CREATE TABLE attempt (
    ns         INTEGER NOT NULL,
    task       BLOB NOT NULL,
    no         INTEGER NOT NULL,
    attempt    INTEGER NOT NULL,
    epoch      INTEGER NOT NULL,
    counter    INTEGER NOT NULL,
    random     INTEGER NOT NULL,
    holder     TEXT NOT NULL,
    worker     TEXT,
    started_at INTEGER NOT NULL,
    ended_at   INTEGER NOT NULL,
    outcome    TEXT NOT NULL,
    error      TEXT,
    refused    INTEGER NOT NULL, -- whether a stale result is in the history
    PRIMARY KEY (ns, task, no, attempt)
) WITHOUT ROWID;

-- The history: one row for each operation on a task, with all its changes.
CREATE TABLE event (
    ns         INTEGER NOT NULL,
    task       BLOB NOT NULL,
    last_seq   INTEGER NOT NULL,
    at         INTEGER NOT NULL,
    actor      TEXT,
    credential TEXT NOT NULL,
    request    TEXT,
    reason     TEXT,
    changes    TEXT NOT NULL,
    PRIMARY KEY (ns, task, last_seq)
) WITHOUT ROWID;

CREATE TABLE idempotency (
    ns          INTEGER NOT NULL,
    name        TEXT NOT NULL,
    key         TEXT NOT NULL,
    task        BLOB NOT NULL,
    fingerprint BLOB NOT NULL,
    PRIMARY KEY (ns, name, key)
) WITHOUT ROWID;

CREATE TABLE worker (
    area          TEXT NOT NULL,
    name          TEXT NOT NULL,
    identity      TEXT NOT NULL,
    handlers      TEXT NOT NULL,
    version       TEXT,
    registered_at INTEGER NOT NULL,
    last_seen_at  INTEGER NOT NULL,
    PRIMARY KEY (area, name, identity)
) WITHOUT ROWID;
