//! What the disk can do: 4 KiB appended and flushed, again and again.

use std::{
    fs::OpenOptions,
    io::Write as _,
    path::Path,
    time::{Duration, Instant},
};

use crate::{
    error::{Result, Tried as _, wrong},
    figure::float,
    load::percentile_ms,
};

const BLOCK_BYTES: usize = 4096;

/// What the disk did.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Appends {
    /// The middle of all times, in milliseconds.
    pub(crate) p50_ms: f64,
    /// Appends for each second.
    pub(crate) rate: f64,
}

/// Appends and flushes for a while, one after the other.
pub(crate) async fn appends(folder: &Path, window: Duration) -> Result<Appends> {
    let path = folder.join("appends");
    let done = tokio::task::spawn_blocking(move || measure(&path, window)).await;
    done.map_err(|error| wrong(format!("the appends broke: {error}")))?
}

fn measure(path: &Path, window: Duration) -> Result<Appends> {
    let mut file =
        OpenOptions::new().create(true).append(true).open(path).tried("open a file to append")?;
    let mut times = Vec::new();
    let begun = Instant::now();
    let mut number: u64 = 0;
    while begun.elapsed() < window {
        let mut block = [0xa5; BLOCK_BYTES];
        // No two blocks are alike, as no two pages of a log are.
        for (at, byte) in block.iter_mut().zip(number.to_le_bytes()) {
            *at = byte;
        }
        let before = Instant::now();
        file.write_all(&block).tried("append")?;
        file.sync_data().tried("fdatasync")?;
        times.push(before.elapsed());
        number += 1;
    }
    let rate = float(number) / begun.elapsed().as_secs_f64();
    times.sort_unstable();
    Ok(Appends { p50_ms: percentile_ms(&times, 50), rate })
}
