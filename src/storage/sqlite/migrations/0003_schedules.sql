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
    set_by     INTEGER NOT NULL, -- of job_setter: identities are long and few
    set_at     INTEGER NOT NULL,
    -- What stands before the first dot; not stored.
    segment    TEXT NOT NULL AS
        (CASE instr(id, '.') WHEN 0 THEN id ELSE substr(id, 1, instr(id, '.') - 1) END) VIRTUAL
) WITHOUT ROWID;

-- What waits, by time. A job that is triggered, over or held is in neither
-- index, and the key's name is in both: they answer alone.
CREATE INDEX job_due ON job (due) WHERE status = 0;
-- The same by segment. Where one that has used up its share of the runners
-- floods the first index, the others are found here by a seek for each of
-- them; it costs every change an entry more, in a page that the jobs of one
-- namespace share. Without it one tenant's 100,000 due jobs would be passed
-- again at each run of another's.
CREATE INDEX job_share ON job (segment, due) WHERE status = 0;

CREATE TABLE job_setter (
    no       INTEGER PRIMARY KEY,
    identity TEXT NOT NULL UNIQUE
);

-- How many jobs stand where: to count a million takes a second. The jobs of
-- one segment share a row for each status, in one page. Each commit brings it
-- up to date at its end: triggers would do so for each job.
CREATE TABLE job_count (
    segment TEXT NOT NULL,
    status  INTEGER NOT NULL,
    jobs    INTEGER NOT NULL,
    PRIMARY KEY (segment, status)
) WITHOUT ROWID;

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
    version    INTEGER NOT NULL, -- of the job; numbers begin again after a removal
    PRIMARY KEY (job, number)
) WITHOUT ROWID;
-- What is under way: one page, as many entries as there are runs at once. At
-- start it is all that is read; the jobs need no index of those triggered.
CREATE INDEX job_run_open ON job_run (job, number) WHERE ended_at IS NULL;

CREATE TABLE schedule_rule (
    id      TEXT PRIMARY KEY,
    pattern TEXT NOT NULL,
    runner  TEXT NOT NULL, -- JSON, as are the two below
    retry   TEXT NOT NULL,
    owner   TEXT NOT NULL
) WITHOUT ROWID;
