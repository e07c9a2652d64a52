//! Recent decisions in memory, so that each can be explained from the moment
//! of its reply. Bounded by number and by bytes, and shared fairly: who has
//! the most loses its oldest, so nobody pushes out everybody else's (SE-41).

use std::{
    collections::{BTreeSet, HashMap, VecDeque},
    fmt,
    mem::size_of,
    net::IpAddr,
    sync::{Arc, Mutex, PoisonError},
};

use crate::domain::{
    Principal, RequestId, Timestamp,
    audit::{Origin, Outcome},
    principal::{Identity, Method},
};

/// The most decisions.
const DECISIONS_MAX: usize = 100_000;
/// The most bytes that they have together, as far as they are counted.
const BYTES_MAX: usize = 64 << 20;
/// What a decision costs beside its texts: itself, its origin, its places in
/// the maps.
const DECISION_BYTES: usize = size_of::<Decision>() + size_of::<Origin>() + 160;

/// What became of a call.
#[derive(Clone, Debug)]
pub(super) struct Decision {
    /// When it was decided.
    pub(super) at: Timestamp,
    /// Whose call it was.
    pub(super) by: By,
    /// How it ended.
    pub(super) outcome: Outcome,
    /// The stable reason of a refusal or failure.
    pub(super) reason: Option<Box<str>>,
    /// What it was about.
    pub(super) object: Option<Box<str>>,
}

/// Whose call it was.
#[derive(Clone, Debug)]
pub(super) enum By {
    /// A caller's that is known.
    Caller(Arc<Origin>),
    /// Somebody's whose credential was refused.
    Stranger(Arc<Stranger>),
}

/// A call whose credential was refused.
#[derive(Clone, Debug)]
pub(super) struct Stranger {
    /// The call's id.
    pub(super) request: RequestId,
    /// The full name of the RPC.
    pub(super) rpc: Arc<str>,
    /// How a credential was presented.
    pub(super) method: Method,
    /// What was wrong with it, as the log says it.
    pub(super) fault: &'static str,
    /// The client's address.
    pub(super) peer: Option<IpAddr>,
}

impl Stranger {
    /// What was wrong, how it was presented and from where.
    pub(super) fn shown(&self) -> String {
        let peer = self.peer.map(|peer| format!(" from {peer}")).unwrap_or_default();
        format!("{} ({}{peer})", self.fault, self.method.as_str())
    }
}

impl Decision {
    pub(super) fn request(&self) -> RequestId {
        match &self.by {
            By::Caller(origin) => origin.request,
            By::Stranger(stranger) => stranger.request,
        }
    }

    /// Whose share it counts in; all strangers have one.
    fn whose(&self) -> Option<&Identity> {
        match &self.by {
            By::Caller(origin) => Some(&origin.principal.identity),
            By::Stranger(_) => None,
        }
    }

    /// What is kept of credentials that it answered about.
    fn judged_bytes(&self) -> usize {
        let By::Caller(origin) = &self.by else { return 0 };
        let Some(judgement) = origin.judged() else { return 0 };
        let about = judgement.about().iter();
        let held = about.filter_map(|one| one.principal.as_deref()).map(principal_bytes);
        judgement.bytes() + held.sum::<usize>()
    }

    fn bytes(&self) -> usize {
        let text = |text: &Option<Box<str>>| text.as_ref().map_or(0, |text| text.len());
        let asked = match &self.by {
            By::Caller(origin) => origin.asked().iter().map(|place| place.len()).sum(),
            By::Stranger(_) => 0,
        };
        DECISION_BYTES + text(&self.reason) + text(&self.object) + asked + self.judged_bytes()
    }
}

/// The decisions.
#[derive(Default)]
pub(super) struct Decisions(Mutex<Inner>);

#[derive(Default)]
struct Inner {
    by_id: HashMap<RequestId, (u64, Decision)>,
    rings: HashMap<u64, Ring>,
    /// The number of each caller's ring.
    numbers: HashMap<Option<Identity>, u64>,
    /// Every ring by what it has; among equals the oldest is the last one.
    by_bytes: BTreeSet<(usize, std::cmp::Reverse<u64>)>,
    next: u64,
    bytes: usize,
}

/// One caller's decisions, the oldest first.
#[derive(Default)]
struct Ring {
    kept: VecDeque<Kept>,
    bytes: usize,
    whose: Option<Identity>,
    /// What its latest decision holds, which most of its others hold too.
    principal: Option<Arc<Principal>>,
}

/// A decision in its ring, with what it weighs.
struct Kept {
    id: RequestId,
    bytes: usize,
    /// What its caller's principal weighs; none where the decision before it
    /// holds the same one.
    principal: usize,
}

impl Decisions {
    /// Keeps a decision. The last word about a call counts, but what was
    /// refused stays so.
    pub(super) fn note(&self, decision: Decision) {
        let mut inner = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        inner.note(decision);
        while inner.by_id.len() > DECISIONS_MAX || inner.bytes > BYTES_MAX {
            if !inner.let_go() {
                break;
            }
        }
    }

    /// The decision about a call; none when it was never here or has been let
    /// go.
    pub(super) fn get(&self, id: RequestId) -> Option<Decision> {
        let inner = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        inner.by_id.get(&id).map(|(_, decision)| decision.clone())
    }
}

impl Inner {
    fn note(&mut self, decision: Decision) {
        let id = decision.request();
        if let Some((_, known)) = self.by_id.get_mut(&id) {
            if known.outcome != Outcome::Denied || decision.outcome == Outcome::Denied {
                *known = decision;
            }
            return;
        }
        let number = match self.numbers.get(&decision.whose().cloned()) {
            Some(number) => *number,
            None => self.begin(decision.whose().cloned()),
        };
        let (bytes, mut principal) = (decision.bytes(), 0);
        let Some(ring) = self.rings.get_mut(&number) else { return };
        if let By::Caller(origin) = &decision.by {
            let same = ring.principal.as_ref().is_some_and(|p| Arc::ptr_eq(p, &origin.principal));
            if !same {
                principal = principal_bytes(&origin.principal);
                ring.principal = Some(Arc::clone(&origin.principal));
            }
        }
        self.by_bytes.remove(&(ring.bytes, std::cmp::Reverse(number)));
        ring.kept.push_back(Kept { id, bytes, principal });
        ring.bytes += bytes + principal;
        self.bytes += bytes + principal;
        self.by_bytes.insert((ring.bytes, std::cmp::Reverse(number)));
        self.by_id.insert(id, (number, decision));
    }

    fn begin(&mut self, whose: Option<Identity>) -> u64 {
        let number = self.next;
        self.next += 1;
        self.rings.insert(number, Ring { whose: whose.clone(), ..Ring::default() });
        self.numbers.insert(whose, number);
        self.by_bytes.insert((0, std::cmp::Reverse(number)));
        number
    }

    /// Lets the oldest go of whoever has the most; false when nobody has any.
    fn let_go(&mut self) -> bool {
        let Some((_, std::cmp::Reverse(number))) = self.by_bytes.pop_last() else { return false };
        let Some(ring) = self.rings.get_mut(&number) else { return false };
        let Some(Kept { id, bytes, principal }) = ring.kept.pop_front() else { return false };
        self.by_id.remove(&id);
        // A principal stays as long as a decision holds it.
        let freed = match ring.kept.front_mut().filter(|next| next.principal == 0) {
            Some(next) => {
                next.principal = principal;
                bytes
            }
            None => bytes + principal,
        };
        ring.bytes = ring.bytes.saturating_sub(freed);
        self.bytes = self.bytes.saturating_sub(freed);
        if ring.kept.is_empty() {
            if let Some(ring) = self.rings.remove(&number) {
                self.numbers.remove(&ring.whose);
            }
        } else {
            self.by_bytes.insert((ring.bytes, std::cmp::Reverse(number)));
        }
        true
    }
}

/// What a principal weighs, about.
fn principal_bytes(principal: &Principal) -> usize {
    let grants = principal.grants.iter().map(|grant| {
        let foreign: usize = grant.permissions.foreign().map(|name| name.len() + 64).sum();
        let places = match &grant.scope {
            crate::domain::Scope::Everything => 0,
            crate::domain::Scope::Under(prefixes) => prefixes.len() * 96,
        };
        64 + foreign + places
    });
    size_of::<Principal>() + principal.identity.subject.len() + grants.sum::<usize>()
}

impl fmt::Debug for Decisions {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Decisions")
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::domain::principal::Source;

    fn id(number: u32) -> RequestId {
        let mut bytes = [0; 16];
        bytes[..4].copy_from_slice(&number.to_be_bytes());
        RequestId::from_random(bytes)
    }

    fn decision(number: u32, principal: &Arc<Principal>, object: usize) -> Decision {
        let origin = Origin::new(Arc::clone(principal), "rpc".into(), id(number));
        Decision {
            at: Timestamp::from_seconds(1),
            by: By::Caller(Arc::new(origin)),
            outcome: Outcome::Allowed,
            reason: None,
            object: Some("x".repeat(object).into()),
        }
    }

    fn who(subject: &str) -> Arc<Principal> {
        let mut principal = Principal::auth_off();
        principal.identity.source = Source::Config;
        principal.identity.subject = subject.into();
        Arc::new(principal)
    }

    #[test]
    fn se_41_nobody_pushes_out_the_decisions_of_others() {
        let decisions = Decisions::default();
        let (quiet, loud) = (who("quiet"), who("loud"));
        for number in 0..100 {
            decisions.note(decision(number, &quiet, 36));
        }
        let more = u32::try_from(DECISIONS_MAX).unwrap() + 5_000;
        for number in 1_000..1_000 + more {
            decisions.note(decision(number, &loud, 36));
        }
        assert!((0..100).all(|number| decisions.get(id(number)).is_some()));
        assert!(decisions.get(id(1_000)).is_none(), "the oldest of the loudest goes");
        assert!(decisions.get(id(1_000 + more - 1)).is_some());
        let inner = decisions.0.lock().unwrap();
        assert!(inner.by_id.len() <= DECISIONS_MAX && inner.bytes <= BYTES_MAX);
        assert_eq!(
            inner.by_id.len(),
            inner.rings.values().map(|ring| ring.kept.len()).sum::<usize>()
        );
        assert_eq!(inner.bytes, inner.rings.values().map(|ring| ring.bytes).sum::<usize>());
    }

    #[test]
    fn se_41_bytes_are_bounded_and_callers_without_decisions_are_forgotten() {
        let decisions = Decisions::default();
        for number in 0..1_000 {
            decisions.note(decision(number, &who(&number.to_string()), 100_000));
        }
        let inner = decisions.0.lock().unwrap();
        assert!(inner.bytes <= BYTES_MAX, "{}", inner.bytes);
        assert!(inner.by_id.len() < 700);
        assert_eq!(inner.rings.len(), inner.by_id.len());
        assert_eq!(inner.numbers.len(), inner.rings.len());
        assert_eq!(inner.by_bytes.len(), inner.rings.len());
    }

    #[test]
    fn se_41_light_decisions_do_not_make_room_for_heavy_ones() {
        let (decisions, caller) = (Decisions::default(), who("caller"));
        for number in 0..50_000 {
            decisions.note(decision(number, &caller, 36));
        }
        for number in 50_000..52_000 {
            decisions.note(decision(number, &caller, 100_000));
        }
        let inner = decisions.0.lock().unwrap();
        let held: usize = inner.by_id.values().map(|(_, decision)| decision.bytes()).sum();
        assert!(held + principal_bytes(&caller) <= BYTES_MAX, "{held}");
        assert_eq!(inner.bytes, held + principal_bytes(&caller));
    }

    #[test]
    fn the_last_word_about_a_call_counts() {
        let (decisions, caller) = (Decisions::default(), who("caller"));
        decisions.note(decision(1, &caller, 0));
        let refused = Decision { outcome: Outcome::Denied, ..decision(1, &caller, 0) };
        decisions.note(refused);
        assert_eq!(decisions.get(id(1)).unwrap().outcome, Outcome::Denied);
        assert!(decisions.get(id(2)).is_none());
        for later in [Outcome::Allowed, Outcome::Failed] {
            decisions.note(Decision { outcome: later, ..decision(1, &caller, 0) });
            assert_eq!(decisions.get(id(1)).unwrap().outcome, Outcome::Denied, "it stays refused");
        }
    }
}
