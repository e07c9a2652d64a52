//! What the line protocol answered is on disk: the server is killed while it
//! works through a long pipeline, and started again.

use std::{collections::BTreeMap, fmt::Write as _, time::Duration};

use rusqlite::Connection;
use tokio::{
    io::{AsyncBufReadExt as _, AsyncWriteExt as _, BufReader},
    net::TcpStream,
    time::{sleep, timeout},
};

use crate::{
    harness::PATIENCE,
    line::{LATER_NS, Lines},
};

/// How many jobs a pipeline has.
const JOBS: usize = 12_000;
/// After how many answers, and how many milliseconds more, the server is
/// killed in each round: many commands are one commit, and it is to be hit at
/// different places.
const KILLS: [(usize, u64); 3] = [(150, 0), (3_500, 7), (6_000, 20)];

/// What one connection sends at once.
#[derive(Default)]
struct Pipeline {
    text: String,
    commands: usize,
    /// What becomes of each job: the command, and the time that it sets; none
    /// removes the job.
    changes: BTreeMap<String, Vec<(usize, Option<i64>)>>,
}

impl Pipeline {
    /// Of a round: each job is set, some of them twice, some are removed, and
    /// some of these are set once more.
    fn of(round: usize) -> Self {
        let mut this = Self::default();
        let first: i64 = LATER_NS.parse().unwrap();
        let time = |number: usize| Some(first + i64::try_from(number).unwrap());
        for number in 0..JOBS {
            let job = |back: usize| format!("r{round}.{}", number - back);
            this.add(job(0), time(number));
            match number % 20 {
                7 | 17 => this.add(job(3), None),
                9 => this.add(job(4), time(JOBS + number)),
                19 => this.add(job(5), time(JOBS + number)),
                _ => {}
            }
        }
        this
    }

    fn add(&mut self, job: String, time: Option<i64>) {
        let command = self.commands;
        let _ = match time {
            Some(time) => writeln!(self.text, "c{command} SET {job} {time}"),
            None => writeln!(self.text, "c{command} REMOVE {job}"),
        };
        self.changes.entry(job).or_default().push((command, time));
        self.commands += 1;
    }

    /// Sends all of it and kills the server after so many answers; says how
    /// many came, those that were on the way included.
    async fn sent(&self, server: &mut Lines, (kill, pause): (usize, u64)) -> usize {
        let (reader, mut writer) = TcpStream::connect(server.at).await.unwrap().into_split();
        let writing = async {
            // The server may be gone before it has taken all of it.
            let _ = writer.write_all(self.text.as_bytes()).await;
            std::future::pending::<()>().await;
        };
        let reading = async {
            let (mut reader, mut line, mut answered) = (BufReader::new(reader), String::new(), 0);
            loop {
                line.clear();
                let read = timeout(PATIENCE, reader.read_line(&mut line)).await;
                if read.expect("an answer or an end").is_err() || !line.ends_with('\n') {
                    return answered;
                }
                assert_eq!(line, format!("c{answered} OK\n"));
                answered += 1;
                if answered == kill {
                    sleep(Duration::from_millis(pause)).await;
                    server.process.kill();
                }
            }
        };
        tokio::select! { answered = reading => answered, () = writing => unreachable!() }
    }

    /// Takes its jobs out of those that are there: each is as the last answer
    /// left it, or as one of the commands did that were not answered any more.
    fn assert_kept(&self, answered: usize, there: &mut BTreeMap<String, i64>) {
        for (job, changes) in &self.changes {
            let found = there.remove(job);
            let sure = changes.iter().rfind(|(command, _)| *command < answered);
            let open = changes.iter().filter(|(command, _)| *command >= answered);
            let mut may = open.map(|(_, time)| *time).chain([sure.and_then(|(_, time)| *time)]);
            assert!(
                may.any(|time| time == found),
                "{job} is at {found:?} after {answered} answers: {changes:?}"
            );
        }
    }
}

/// All jobs, each of them planned.
async fn planned(server: &Lines) -> BTreeMap<String, i64> {
    let mut wire = server.wire().await;
    let rows = wire.rows("QUERY").await;
    let read = |row: &String| {
        let [job, "planned", time] = row.split(' ').collect::<Vec<_>>()[..] else {
            panic!("half a job: {row}")
        };
        (job.to_owned(), time.parse().unwrap())
    };
    let jobs: BTreeMap<String, i64> = rows.iter().map(read).collect();
    assert_eq!(jobs.len(), rows.len(), "no job is there twice");
    let stat = wire.rows("STAT").await;
    for figure in ["jobs_total", "jobs_planned"] {
        assert!(stat.contains(&format!("{figure} {}", jobs.len())), "{stat:?}");
    }
    jobs
}

#[tokio::test]
async fn zt_34_and_issue5_what_was_answered_ok_survives_sigkill() {
    let mut server = Lines::open().await;
    let mut rounds: Vec<(Pipeline, usize)> = Vec::new();
    for (round, kill) in KILLS.into_iter().enumerate() {
        let pipeline = Pipeline::of(round);
        let answered = pipeline.sent(&mut server, kill).await;
        let all = pipeline.commands;
        assert!((kill.0..all).contains(&answered), "{answered} of {all} answered before the kill");
        rounds.push((pipeline, answered));

        server = server.again("").await;
        let mut there = planned(&server).await;
        let disk = Connection::open(server.folder.path().join("data/bailiwick.db")).unwrap();
        let count = |query: &str| disk.query_row(query, [], |row| row.get::<_, isize>(0)).unwrap();
        assert_eq!(count("SELECT count(*) FROM job"), isize::try_from(there.len()).unwrap());
        let sound = disk.query_row("PRAGMA integrity_check", [], |row| row.get::<_, String>(0));
        assert_eq!(sound.unwrap(), "ok");
        // Those of the rounds before too, after each of the kills.
        for (pipeline, answered) in &rounds {
            pipeline.assert_kept(*answered, &mut there);
        }
        assert!(there.is_empty(), "nobody set {there:?}");
    }
}
