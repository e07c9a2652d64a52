//! Refusals that come in floods: strangers without a good credential, and
//! callers beyond what they may call. Each kind has one record a minute, which
//! says how many there were; the table of kinds is bounded (SE-44).

use std::{
    collections::HashMap,
    net::{IpAddr, Ipv6Addr},
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    time::Duration,
};

use serde_json::value::to_raw_value;

use crate::{
    domain::{
        Timestamp,
        audit::{Detail, Origin, Outcome, Record, SERVER_CHAIN},
    },
    storage::AuditDraft,
};

/// How long alike refusals share a record.
const WINDOW: Duration = Duration::from_mins(1);
/// How many kinds are told apart; the rest counts by its reason alone.
const KINDS_MAX: usize = 4096;
/// The first 64 bits: what one customer of a network has.
const HOME_BITS: u32 = 64;

/// One of a flood.
#[derive(Clone, Debug)]
pub struct Repetition {
    /// The stable reason.
    pub reason: Arc<str>,
    /// What the log calls the fault.
    pub fault: &'static str,
    /// The full name of the RPC.
    pub rpc: Arc<str>,
    /// Where it came from.
    pub peer: Option<IpAddr>,
    /// The call of a caller that is known.
    pub origin: Option<Arc<Origin>>,
}

#[derive(Clone, PartialEq, Eq, Hash)]
struct Kind {
    reason: Arc<str>,
    fault: &'static str,
    /// None where too many kinds are told apart already.
    place: Option<(Arc<str>, Option<IpAddr>)>,
    credential: Option<Arc<str>>,
}

struct Flood {
    /// When its last record was made.
    told: Timestamp,
    /// How many came since.
    since: u64,
    origin: Option<Arc<Origin>>,
}

/// The kinds of the last minute.
#[derive(Default)]
pub(super) struct Repeated(Mutex<HashMap<Kind, Flood>>);

impl Repeated {
    /// The record of one, when it is the first of its kind for a minute.
    pub(super) fn note(&self, one: Repetition, now: Timestamp) -> Option<AuditDraft> {
        let mut kinds = self.kinds();
        let credential = one.origin.as_ref().map(|call| Arc::clone(&call.principal.credential_id));
        let place = Some((one.rpc, one.peer.map(home)));
        let mut kind = Kind { reason: one.reason, fault: one.fault, place, credential };
        let mut origin = one.origin;
        if kinds.len() >= KINDS_MAX && !kinds.contains_key(&kind) {
            kind = Kind { place: None, credential: None, ..kind };
            origin = None;
        }
        let due = |flood: &Flood| flood.told.until(now) >= WINDOW || now < flood.told;
        match kinds.get_mut(&kind) {
            Some(flood) if !due(flood) => {
                flood.since = flood.since.saturating_add(1);
                None
            }
            Some(flood) => {
                let count = flood.since.saturating_add(1);
                (flood.told, flood.since) = (now, 0);
                Some(draft(&kind, flood.origin.as_deref(), count, now))
            }
            None => {
                let told = draft(&kind, origin.as_deref(), 1, now);
                kinds.insert(kind, Flood { told: now, since: 0, origin });
                Some(told)
            }
        }
    }

    /// Records of what came since the last one, a minute ago; what did not go
    /// on is forgotten.
    pub(super) fn due(&self, now: Timestamp) -> Vec<AuditDraft> {
        let mut drafts = Vec::new();
        self.kinds().retain(|kind, flood| {
            if now >= flood.told && flood.told.until(now) < WINDOW {
                return true;
            }
            if flood.since == 0 {
                return false;
            }
            drafts.push(draft(kind, flood.origin.as_deref(), flood.since, now));
            (flood.told, flood.since) = (now, 0);
            true
        });
        drafts
    }

    /// Records of all that came since the last ones, for the end.
    pub(super) fn all(&self) -> Vec<AuditDraft> {
        let floods = std::mem::take(&mut *self.kinds());
        let open = floods.iter().filter(|(_, flood)| flood.since > 0);
        open.map(|(kind, flood)| draft(kind, flood.origin.as_deref(), flood.since, flood.told))
            .collect()
    }

    fn kinds(&self) -> MutexGuard<'_, HashMap<Kind, Flood>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

fn draft(kind: &Kind, origin: Option<&Origin>, count: u64, now: Timestamp) -> AuditDraft {
    let detail = match kind.fault {
        "" => serde_json::json!({ "count": count }),
        fault => serde_json::json!({ "count": count, "fault": fault }),
    };
    let detail = to_raw_value(&detail).ok();
    let (rpc, peer) = match &kind.place {
        Some((rpc, peer)) => (&**rpc, *peer),
        None => ("*", None),
    };
    let record = origin.map_or_else(|| Record::of_server(now), |origin| Record::of(origin, now));
    let record = Record {
        rpc,
        peer,
        outcome: Outcome::Denied,
        reason: Some(&kind.reason),
        detail: detail.as_deref().map(Detail::Object),
        ..record
    };
    let chain = origin.map_or_else(|| SERVER_CHAIN.into(), Origin::own_chain);
    AuditDraft::new(chain, &record)
}

/// An address, or the network of one that is of the sixth version: whoever has
/// one of its addresses has them all.
fn home(address: IpAddr) -> IpAddr {
    match address.to_canonical() {
        IpAddr::V6(address) => {
            let bits = address.to_bits() >> HOME_BITS << HOME_BITS;
            IpAddr::V6(Ipv6Addr::from_bits(bits))
        }
        v4 @ IpAddr::V4(_) => v4,
    }
}

#[cfg(test)]
mod tests {
    use serde_json::Value;

    use super::*;

    fn stranger(rpc: &str, peer: &str) -> Repetition {
        Repetition {
            reason: "CREDENTIALS_INVALID".into(),
            fault: "unknown_key",
            rpc: rpc.into(),
            peer: Some(peer.parse().unwrap()),
            origin: None,
        }
    }

    fn count(draft: &AuditDraft) -> u64 {
        let record: Value = serde_json::from_str(&draft.body).unwrap();
        record["detail"]["count"].as_u64().unwrap()
    }

    #[test]
    fn se_44_alike_refusals_of_a_minute_share_a_record() {
        let repeated = Repeated::default();
        let at = Timestamp::from_seconds;
        let first = repeated.note(stranger("a", "fd00::1"), at(100)).unwrap();
        assert_eq!((count(&first), &*first.chain), (1, SERVER_CHAIN));
        assert!(first.body.contains("\"peer\":\"fd00::\""), "{}", first.body);
        // The same network of addresses; others are kinds of their own.
        assert_eq!(repeated.note(stranger("a", "fd00::2"), at(101)), None);
        assert!(repeated.note(stranger("b", "fd00::2"), at(101)).is_some());
        assert!(repeated.note(stranger("a", "10.0.0.1"), at(101)).is_some());
        assert_eq!(repeated.note(stranger("a", "fd00::3"), at(159)), None);
        assert_eq!(repeated.due(at(159)), []);
        let due = repeated.due(at(160));
        assert_eq!(due.iter().map(count).collect::<Vec<_>>(), [2]);
        assert_eq!(repeated.note(stranger("a", "fd00::3"), at(161)), None);
        assert_eq!(repeated.all().iter().map(count).collect::<Vec<_>>(), [1]);
        assert_eq!(repeated.all(), []);
    }

    #[test]
    fn se_44_a_flood_of_kinds_is_counted_by_its_reason() {
        let repeated = Repeated::default();
        let now = Timestamp::from_seconds(100);
        for number in 0..KINDS_MAX {
            assert!(repeated.note(stranger(&number.to_string(), "10.0.0.1"), now).is_some());
        }
        let rest = repeated.note(stranger("x", "10.0.0.1"), now).unwrap();
        assert!(rest.body.contains("\"rpc\":\"*\"") && !rest.body.contains("peer"), "{rest:?}");
        assert_eq!(repeated.note(stranger("y", "10.0.0.1"), now), None);
        assert_eq!(repeated.kinds().len(), KINDS_MAX + 1);
        let later = Timestamp::from_seconds(161);
        assert_eq!(repeated.due(later).iter().map(count).collect::<Vec<_>>(), [1]);
        assert_eq!(repeated.kinds().len(), 1, "what did not go on is forgotten");
    }
}
