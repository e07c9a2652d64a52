//! A server at rest, and a server that starts.

use std::{
    fs,
    path::{Path, PathBuf},
    time::Duration,
};

use bailiwick_client::Auth;
use tokio::{task::JoinSet, time::sleep};

use super::{
    Bench,
    throughput::{Echo, Run},
};
use crate::{
    callers::{Creator, Orders},
    error::{Error, Result, Tried as _, wrong},
    figure::{Figure, Measured, median},
    load::{CALLERS, Caller as _},
    report,
    server::{Access, ONE_STEP, Setup},
};

/// When an idle server is looked at.
const IDLE_AFTER: Duration = Duration::from_secs(5);
/// Finished tasks on disk.
const FINISHED: u64 = 100_000;
/// As many as each caller makes for it.
const EACH: usize = 100_000_usize.div_ceil(CALLERS);
/// Starts that are measured.
const STARTS: usize = 5;
/// Lies in a folder whose tasks are all there.
const WHOLE: &str = "whole";

/// `idle_resident_mib`.
pub(super) async fn idle(bench: &Bench) -> Result<Measured> {
    let echo = Echo::start(bench).await?;
    let setup = Setup::new(&bench.places, Access::Secured, None)?;
    let (server, _) = setup.serve(&bench.places).await?;
    sleep(IDLE_AFTER).await;
    let (value, baseline) = (server.resident_mib()?, echo.process.resident_mib()?);
    server.stop().await?;
    echo.process.stop().await?;
    Ok(Measured::new(Figure::IdleResident, value, baseline))
}

/// `start_ready_100k_ms`.
pub(super) async fn start(bench: &Bench) -> Result<Measured> {
    let folder = finished_tasks(bench).await?;
    let full = Setup::new(&bench.places, Access::Open, Some(&folder.join("data")))?;
    let empty = Setup::new(&bench.places, Access::Open, None)?;
    let (mut base, mut real) = (Vec::new(), Vec::new());
    for _ in 0..STARTS {
        for (setup, times) in [(&empty, &mut base), (&full, &mut real)] {
            let (server, took) = setup.serve(&bench.places).await?;
            times.push(took.as_secs_f64() * 1e3);
            server.stop().await?;
        }
    }
    let shown: Vec<_> = real.iter().map(|ms| format!("{ms:.0}")).collect();
    Ok(Measured::new(Figure::StartReady, median(&real), median(&base)).note(format!(
        "starts: {} ms; the files are in the page cache; {} MiB on disk",
        shown.join(", "),
        size_mib(&folder.join("data"))
    )))
}

/// A folder with finished tasks, made through the API once and kept for as
/// long as the schema stays as it is.
async fn finished_tasks(bench: &Bench) -> Result<PathBuf> {
    let folder = bench.target.join("bench-data").join(schema()?);
    if folder.join(WHOLE).exists() {
        return Ok(folder);
    }
    report::line(format!("  making {FINISHED} finished tasks in {}", folder.display()));
    if folder.exists() {
        // A run before was broken off in the middle.
        fs::remove_dir_all(&folder).tried(format!("remove {}", folder.display()))?;
    }
    fs::create_dir_all(&folder).tried(format!("make {}", folder.display()))?;
    let setup = Setup::new(&bench.places, Access::Open, Some(&folder.join("data")))?;
    let (server, _) = setup.serve(&bench.places).await?;
    setup.register(&Auth::None).await?;
    let run = Run::start(&setup, false).await?;
    let orders = Orders::default();
    let mut callers = JoinSet::new();
    for mut caller in Creator::all(&run.connections, ONE_STEP, &orders, Some(&run.tally.room)) {
        callers.spawn(async move {
            for _ in 0..EACH {
                caller.call().await?;
            }
            Ok::<(), Error>(())
        });
    }
    while let Some(done) = callers.join_next().await {
        done.map_err(|error| wrong(format!("a caller broke: {error}")))??;
    }
    run.drain().await?;
    let finished = run.acknowledged();
    run.finish().await?;
    server.stop().await?;
    if finished < FINISHED {
        return Err(wrong(format!("only {finished} tasks are finished")));
    }
    fs::write(folder.join(WHOLE), format!("{finished}\n")).tried("mark the folder as whole")?;
    Ok(folder)
}

/// What the folder is kept under: the migrations, byte by byte.
pub(super) fn schema() -> Result<String> {
    let migrations = Path::new(env!("CARGO_MANIFEST_DIR")).join("../src/storage/sqlite/migrations");
    let tried = || format!("read {}", migrations.display());
    let mut files = Vec::new();
    for entry in fs::read_dir(&migrations).tried(tried())? {
        files.push(entry.tried(tried())?.path());
    }
    files.sort();
    let mut all = Vec::new();
    for file in files {
        all.extend(fs::read(file).tried(tried())?);
    }
    Ok(format!("schema-{:016x}", fnv(&all)))
}

/// Fowler, Noll and Vo's hash: the same in every build.
fn fnv(bytes: &[u8]) -> u64 {
    bytes.iter().fold(0xcbf2_9ce4_8422_2325, |hash: u64, byte| {
        (hash ^ u64::from(*byte)).wrapping_mul(0x0100_0000_01b3)
    })
}

fn size_mib(folder: &Path) -> u64 {
    let sizes = fs::read_dir(folder).into_iter().flatten().flatten();
    sizes.filter_map(|entry| entry.metadata().ok()).map(|file| file.len()).sum::<u64>() >> 20
}
