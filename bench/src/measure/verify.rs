//! How fast an export of the audit is verified, offline, by one thread.

use std::{
    collections::BTreeMap,
    fmt::Write as _,
    fs::File,
    io::{BufRead as _, BufReader},
    path::Path,
    time::Instant,
};

use bailiwick::audit::{
    chain::{self, BEGINNING, CHECKPOINT_TAG, CLOSING_TAG, Checkpoint, Closing, Hash, hex},
    key::AuditKey,
    line,
    verify::verify,
};
use sha2::{Digest as _, Sha256};

use super::{Bench, ROUNDS};
use crate::{
    error::{Result, Tried as _, wrong},
    figure::{Figure, Measured, median},
};

/// How many records the export has.
const RECORDS: u32 = 400_000;
/// How many records one checkpoint covers.
const COVERED: u32 = 1_000;
/// How many chains there are.
const CHAINS: u32 = 50;
/// When all of it was.
const AT: &str = "2026-11-23T21:00:00.000000Z";
/// How much is read at once, as the command does.
const READ_BYTES: usize = 1 << 18;

/// `verify_rate`, against the same lines read as JSON values.
pub(super) async fn rate(bench: &Bench) -> Result<Measured> {
    let folder = bench.places.folder()?;
    let path = folder.path().join("audit.jsonl");
    let work = tokio::task::spawn_blocking(move || measure(&path));
    work.await.map_err(|error| wrong(format!("the measurement ended: {error}")))?
}

fn measure(path: &Path) -> Result<Measured> {
    let key = AuditKey::from_seed(&[1; 32]).map_err(|error| wrong(error.to_string()))?;
    std::fs::write(path, export(&key)).tried("write the export")?;
    let (mut real, mut base) = (Vec::new(), Vec::new());
    for _ in 0..ROUNDS {
        let begun = Instant::now();
        let held = verify(open(path)?, key.public(), None);
        let held = held.map_err(|error| wrong(format!("the export does not hold: {error}")))?;
        if held.records != u64::from(RECORDS) {
            return Err(wrong(format!("{} records were verified", held.records)));
        }
        real.push(f64::from(RECORDS) / begun.elapsed().as_secs_f64());
        let begun = Instant::now();
        for line in open(path)?.lines() {
            let read = serde_json::from_str(&line.tried("read the export")?);
            let _: serde_json::Value = read.map_err(|error| wrong(error.to_string()))?;
        }
        base.push(f64::from(RECORDS) / begun.elapsed().as_secs_f64());
    }
    Ok(Measured::new(Figure::VerifyRate, median(&real), median(&base)))
}

fn open(path: &Path) -> Result<BufReader<File>> {
    Ok(BufReader::with_capacity(READ_BYTES, File::open(path).tried("open the export")?))
}

/// An export of records as calls leave them.
fn export(key: &AuditKey) -> String {
    let mut text = String::new();
    let mut heads = BTreeMap::<String, (i64, Hash)>::new();
    let mut grown = BTreeMap::<String, (i64, Hash)>::new();
    let (mut seq, mut first, mut number, mut before) = (0_i64, 1_i64, 0_i64, BEGINNING);
    let id = key.public().id();
    for place in 0..RECORDS {
        seq += 1;
        let chain = format!("namespace{}", place % CHAINS);
        let body = body(place, &chain);
        let (last, prev) = heads.get(&chain).copied().unwrap_or((0, BEGINNING));
        let hash = chain::record(seq, &chain, last + 1, &prev, &body);
        line::write_record(&mut text, (seq, &chain, last + 1), &hex(&prev), &hex(&hash), &body);
        heads.insert(chain.clone(), (last + 1, hash));
        grown.insert(chain, (last + 1, hash));
        if (place + 1) % COVERED == 0 {
            number += 1;
            let leaves = std::mem::take(&mut grown);
            let leaf = |(chain, (number, hash)): (&String, &(i64, Hash))| {
                hex(&chain::leaf(chain, *number, hash))
            };
            let (at, prev, key_id) = (AT.to_owned(), hex(&before), id.to_owned());
            let leaves = leaves.iter().map(leaf).collect();
            let said = Checkpoint { number, at, first, last: seq, prev, leaves, key: key_id };
            let json = serde_json::to_string(&said).unwrap_or_default();
            before = chain::checkpoint(&json);
            first = seq + 1;
            seq += 1;
            let signature = key.sign(CHECKPOINT_TAG, &json);
            let row = format!("{{\"checkpoint\":{json},\"signature\":\"{signature}\"}}");
            line::write_checkpoint(&mut text, seq, &row);
        }
    }
    let closing = Closing {
        at: AT.to_owned(),
        lines: u64::try_from(text.lines().count()).unwrap_or_default(),
        sha256: hex(&Hash::from(Sha256::digest(&text))),
        first: 1,
        last: seq,
        chains: Vec::new(),
        checkpoint: format!("{number}:{}", hex(&before)),
        key: id.to_owned(),
    };
    let json = serde_json::to_string(&closing).unwrap_or_default();
    line::write_closing(&mut text, &json, &key.sign(CLOSING_TAG, &json));
    text
}

fn body(place: u32, chain: &str) -> String {
    let mut body = String::new();
    // Writing to a string cannot fail.
    let _ = write!(
        body,
        "{{\"at\":\"{AT}\",\"rpc\":\"bailiwick.v1.TaskService/CreateTask\",\
         \"outcome\":\"allowed\",\"request_id\":\"01010101-0101-4101-8101-{place:012}\",\
         \"actor\":{{\"source\":\"config\",\"subject\":\"service-account-{}\",\
         \"method\":\"api_key\",\"credential\":\"bwk_1a2b3c4d\",\
         \"fingerprint\":\"0123456789abcdef\"}},\"permission\":\"tasks:create\",\
         \"namespace\":\"{chain}\",\"object\":\"0192f0c1-2345-7abc-8def-{place:012}\",\
         \"peer\":\"10.1.2.3\"}}",
        place % 100
    );
    body
}
