//! The `task` runner: creates a task from a template, as the rule's owner.

use std::{fmt::Write as _, sync::Arc};

use serde_json::json;
use sha2::{Digest as _, Sha256};

use super::{Ended, Firing};
use crate::{
    authz::{self, Permit},
    domain::{
        Namespace, Permission, Principal, RequestId,
        audit::Origin,
        permission::right::TasksCreate,
        schedule::{Nanos, Runner},
        task::Labels,
    },
    engine::{self, Engine, tasks},
    schedule::Error,
};

/// What the audit says made the tasks.
const CALLER: &str = "scheduler";
/// What the tasks say about where they come from.
const SOURCE_SYSTEM: &str = "bailiwick-scheduler";
/// The longest idempotency key that the engine takes.
const KEY_BYTES_MAX: usize = 256;

/// Proof that the rule's owner may create the task.
pub(in crate::schedule) type MayCreate = Permit<TasksCreate>;

/// Decides whether a rule's owner may create its tasks.
pub(in crate::schedule) fn permit(
    owner: &Arc<Principal>,
    namespace: &Namespace,
) -> Option<MayCreate> {
    let request = RequestId::from_random(rand::random());
    let call = Origin {
        permission: Some(Permission::TasksCreate),
        ..Origin::new(Arc::clone(owner), CALLER.into(), request)
    };
    authz::task_for(&Arc::new(call), namespace)
}

/// Creates the task, once however often it is tried for one occurrence of one
/// setting of the job; a store that does not answer is no end of the run.
pub(in crate::schedule) async fn run(
    engine: &Engine,
    permit: MayCreate,
    firing: &Firing,
    version: i64,
) -> Result<Ended, Error> {
    let Runner::Task { template, version: pinned, .. } = &firing.rule.runner else {
        return Ok(Ended::failed("the rule is for another runner"));
    };
    let context = json!({
        "job_id": firing.job.as_str(),
        "execution": rfc3339(firing.execution),
        "attempt": firing.attempt,
    });
    let task = tasks::NewTask {
        name: template.to_string(),
        version: pinned.as_ref().map(ToString::to_string),
        context: context.to_string(),
        labels: Labels {
            source_system: Some(SOURCE_SYSTEM.to_owned()),
            reason: Some(format!("the job {} was due", firing.job)),
            idempotency_key: Some(key(firing, version)),
            ..Labels::default()
        },
        ..tasks::NewTask::default()
    };
    match tasks::create(engine, &permit, task).await {
        Ok(task) => {
            let output = Some(task.core.id.to_string());
            Ok(Ended { error: None, retryable: false, output })
        }
        Err(engine::Error::Storage(error)) => Err(Error::Storage(error)),
        // A template may be registered or mended meanwhile.
        Err(refused) => Ok(Ended::failed(refused.to_string())),
    }
}

/// One for each occurrence of each setting of a job.
fn key(firing: &Firing, version: i64) -> String {
    let Firing { job, execution: Nanos(nanos), .. } = firing;
    let key = format!("bailiwick-schedule/{job}/{nanos}/{version}");
    if key.len() <= KEY_BYTES_MAX {
        return key;
    }
    let digest = Sha256::digest(job.as_str().as_bytes());
    let digest = digest.iter().fold(String::new(), |mut text, byte| {
        // Writing to a string cannot fail.
        let _ = write!(text, "{byte:02x}");
        text
    });
    format!("bailiwick-schedule/sha256:{digest}/{nanos}/{version}")
}

/// UTC with nanoseconds.
fn rfc3339(at: Nanos) -> String {
    jiff::Timestamp::from_nanosecond(at.0.into())
        .map_or_else(|_| at.0.to_string(), |at| format!("{at:.9}"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_time_has_nine_digits() {
        assert_eq!(rfc3339(Nanos(1_605_457_800_000_000_000)), "2020-11-15T16:30:00.000000000Z");
        assert_eq!(rfc3339(Nanos(1)), "1970-01-01T00:00:00.000000001Z");
        assert!(rfc3339(Nanos(i64::MIN)).ends_with('Z'));
    }
}
