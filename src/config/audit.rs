//! `[audit]`: what is recorded, by which key it is sealed, and how long it is
//! kept.

use std::{
    num::NonZeroU32,
    path::{Path, PathBuf},
};

use super::{
    AuditSink, Error, Storage, audit_sinks::audit_sinks, given, number, raw,
    step_tokens::lies_within,
};

/// Where the key lies, beside the configuration file, when no setting says.
const KEY_FILE: &str = "keys/audit.key";

/// A hundred years.
const DAYS: u64 = 36_500;

/// `[audit]`.
#[derive(Clone, Debug)]
pub struct Audit {
    /// Whether anything is recorded at all.
    pub enabled: bool,
    /// The private key that seals, PKCS#8; made at first need.
    pub key_file: PathBuf,
    /// Whether a call waits until its record is on disk, and is refused when
    /// it cannot be.
    pub fail_closed: bool,
    /// Whether calls that only read are recorded too.
    pub record_reads: bool,
    /// For how many days records are kept; for ever by default.
    pub retention_days: Option<NonZeroU32>,
    /// How many MiB of records are kept; all by default.
    pub retention_mb: Option<NonZeroU32>,
    /// For how many days they are kept at least, whatever their size.
    pub retention_min_days: u32,
    /// Where it is sent.
    pub sinks: Vec<AuditSink>,
    /// For how many days a record is kept at least when a sink does not have
    /// it yet.
    pub sinks_wait_days: u32,
}

/// Validates it.
pub(super) fn audit(
    raw: raw::Audit,
    base: &Path,
    storage: &Storage,
    warnings: &mut Vec<String>,
) -> Result<Audit, Error> {
    let raw::Audit {
        enabled,
        key_file,
        fail_closed,
        record_reads,
        retention_days,
        retention_mb,
        retention_min_days,
        sinks,
        sinks_wait_days,
    } = raw;
    if fail_closed && !enabled {
        let problem = "says that nothing is done without a record, and `audit.enabled` is false";
        return Err(Error::invalid("audit.fail_closed", problem));
    }
    if !sinks.is_empty() && !enabled {
        let problem = "have nothing to send while `audit.enabled` is false";
        return Err(Error::invalid("audit.sinks", problem));
    }
    let named = given(key_file);
    let key_file = base.join(named.as_deref().unwrap_or(KEY_FILE));
    let Storage::Sqlite(store) = storage;
    if enabled && store.parent().is_some_and(|data| lies_within(&key_file, data)) {
        let problem = "lies within the data folder: who has a copy of the data could seal \
                       another past";
        if named.is_some() {
            return Err(Error::invalid("audit.key_file", format!("{problem}; put it elsewhere")));
        }
        warnings.push(format!(
            "`{}` {problem}; set `audit.key_file`, or give the data a folder of its own",
            key_file.display()
        ));
    }
    let most = u64::from(u32::MAX);
    Ok(Audit {
        enabled,
        key_file,
        fail_closed,
        record_reads,
        retention_days: NonZeroU32::new(number("audit.retention_days", retention_days, 0, DAYS)?),
        retention_mb: NonZeroU32::new(number("audit.retention_mb", retention_mb, 0, most)?),
        retention_min_days: number("audit.retention_min_days", retention_min_days, 0, DAYS)?,
        sinks: audit_sinks(sinks, base)?,
        sinks_wait_days: number("audit.sinks_wait_days", sinks_wait_days, 0, DAYS)?,
    })
}
