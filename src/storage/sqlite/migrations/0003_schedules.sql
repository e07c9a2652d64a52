-- The scheduler: jobs, rules and the history of runs. A job's name begins with
-- its namespace, so the keys do.

CREATE TABLE job (
    id         TEXT PRIMARY KEY,
    execution  INTEGER NOT NULL, -- nanoseconds, as due
    due        INTEGER NOT NULL,
    status     INTEGER NOT NULL,
    recurrence TEXT,
    reason     TEXT,
    attempts   INTEGER NOT NULL,
    version    INTEGER NOT NULL,
    set_by     TEXT NOT NULL,
    set_at     INTEGER NOT NULL
) WITHOUT ROWID;

CREATE INDEX job_due ON job (due) WHERE status = 0;
CREATE INDEX job_triggered ON job (id) WHERE status = 1;

CREATE TABLE job_run (
    job        TEXT NOT NULL,
    number     INTEGER NOT NULL,
    execution  INTEGER NOT NULL,
    attempt    INTEGER NOT NULL,
    rule       TEXT NOT NULL,
    started_at INTEGER NOT NULL,
    ended_at   INTEGER,
    outcome    TEXT NOT NULL,
    error      TEXT,
    output     TEXT,
    PRIMARY KEY (job, number)
) WITHOUT ROWID;

CREATE TABLE schedule_rule (
    id      TEXT PRIMARY KEY,
    pattern TEXT NOT NULL,
    runner  TEXT NOT NULL, -- JSON, as are the two below
    retry   TEXT NOT NULL,
    owner   TEXT NOT NULL
) WITHOUT ROWID;
