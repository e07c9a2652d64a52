//! The credentials that the server gave out, as the gate sees them: all of
//! them in memory, found by digest, so that a call asks no disk and takes the
//! same time however many there are. What is on disk is changed first.
//!
//! Not here: making and revoking them (`admin`).

mod traded;

use std::{
    cmp::Reverse,
    collections::{BTreeSet, HashMap},
    fmt,
    net::IpAddr,
    sync::{
        Arc, PoisonError, RwLock, RwLockReadGuard, RwLockWriteGuard,
        atomic::{AtomicI64, AtomicU32, Ordering},
    },
};

use tokio_util::sync::CancellationToken;

use super::{
    Accepted, Fault, LOGGED_EVERY_SECONDS, Recalls, Session,
    digest::Digest,
    usage::{Line, Usage},
};
use crate::{
    domain::{
        Grant, Network, Permission, PermissionSet, Principal, Scope, Timestamp,
        principal::{Identity, Method, Source},
    },
    storage::{CredentialKind, CredentialRecord, LastUses, PermissionUse},
};

/// How many ancestors a credential has at most.
pub const ANCESTORS_MAX: usize = 32;

/// A credential with the session that it makes.
pub struct Issue {
    /// As it is kept.
    pub record: CredentialRecord,
    session: Arc<Session>,
    /// Its own networks and those of its ancestors, where they have any: an
    /// address must lie in each.
    networks: Vec<Vec<Network>>,
    logged_at: AtomicI64,
    usage: Arc<Usage>,
    /// What its scopes name, whatever its ancestors leave of it.
    named: PermissionSet,
    uses: AtomicU32,
}

impl Issue {
    /// Who calls with it.
    #[must_use]
    pub fn principal(&self) -> &Arc<Principal> {
        &self.session.principal
    }

    /// What a call with it gets.
    #[must_use]
    pub fn session(&self) -> &Arc<Session> {
        &self.session
    }

    /// Whether a call with it would be let in, wherever it came from.
    fn is_usable(&self, now: Timestamp) -> bool {
        let used_up = self.record.max_uses.is_some_and(|most| self.uses() >= most);
        self.is_live(now) && !self.session.is_revoked() && !used_up
    }

    /// In how many generations its networks are limited.
    #[must_use]
    pub fn network_limits(&self) -> usize {
        self.networks.len()
    }

    /// Whether it counts now.
    #[must_use]
    pub fn is_live(&self, now: Timestamp) -> bool {
        self.record.revoked_at.is_none() && !self.is_over(now)
    }

    fn is_over(&self, now: Timestamp) -> bool {
        self.principal().not_after.is_some_and(|end| end <= now)
    }

    /// Whether it counts, and as this record says.
    fn stands_as(&self, other: &CredentialRecord) -> bool {
        let record = &self.record;
        record.revoked_at.is_none()
            && (record.digest, &record.scopes, &record.name, record.created_at)
                == (other.digest, &other.scopes, &other.name, other.created_at)
    }

    /// How many calls it has opened, where they are counted.
    #[must_use]
    pub fn uses(&self) -> u32 {
        self.uses.load(Ordering::Relaxed)
    }

    /// When it was last used.
    #[must_use]
    pub fn last_used_at(&self) -> Option<Timestamp> {
        self.usage.last().max(self.record.last_used_at)
    }

    /// Since when it has not been used; since it was made, when never.
    #[must_use]
    pub fn idle_since(&self) -> Timestamp {
        self.last_used_at().map_or(self.record.created_at, |at| at.max(self.record.created_at))
    }

    /// When it, or what it was rotated from, last exercised a permission.
    #[must_use]
    pub fn exercised_at(&self, permission: Permission) -> Option<Timestamp> {
        self.usage.line.last(permission)
    }

    /// The permissions that its scopes name, whatever its ancestors leave of
    /// them. What is exercised of those of other services is not seen here.
    #[must_use]
    pub fn named(&self) -> &PermissionSet {
        &self.named
    }

    /// A use was counted on disk, or there was none left.
    pub(super) fn counted(&self, counted: bool) {
        let most = self.record.max_uses.unwrap_or(u32::MAX);
        // Answers come in any order: one that was counted may come after one
        // that said that none was left.
        let count = |uses: u32| if counted { uses.saturating_add(1).min(most) } else { most };
        let _ =
            self.uses.fetch_update(Ordering::Relaxed, Ordering::Relaxed, |uses| Some(count(uses)));
    }
}

impl fmt::Debug for Issue {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.record.fmt(f)
    }
}

/// All of them.
pub struct Issued {
    index: RwLock<Index>,
    foreign: BTreeSet<Arc<str>>,
    /// Where tokens come from; API keys are always in the database.
    tokens: Source,
    /// By which tokens end that JWTs were traded for.
    recalls: Arc<Recalls>,
    revoked: CancellationToken,
}

#[derive(Default)]
struct Index {
    by_id: HashMap<Arc<str>, Arc<Issue>>,
    by_digest: HashMap<Digest, Arc<Issue>>,
    /// The member of each line of rotations that descendants go by.
    newest: HashMap<Arc<str>, Arc<str>>,
    /// What each line of rotations exercised.
    lines: HashMap<Arc<str>, Arc<Line>>,
}

impl Issued {
    /// None yet. `foreign` are the permissions of other services, `tokens`
    /// where tokens come from; every session ends with `revoked`.
    #[must_use]
    pub(super) fn new(
        foreign: BTreeSet<Arc<str>>,
        tokens: Source,
        recalls: Arc<Recalls>,
        revoked: CancellationToken,
    ) -> Self {
        Self { index: RwLock::default(), foreign, tokens, recalls, revoked }
    }

    /// Takes up what the store holds; its tokens only where they count.
    pub fn load(&self, mut records: Vec<CredentialRecord>, uses: &[PermissionUse]) {
        records.retain(|record| self.source(record.kind) == Source::Database);
        // Ancestors before those that descend from them.
        records.sort_by_key(|record| record.created_at);
        let mut index = self.write();
        *index = Index::default();
        for record in records.clone() {
            self.put(&mut index, record);
        }
        // Again: those that were bounded by what is no more the newest.
        for record in records.into_iter().filter(|record| record.parent.is_some()) {
            self.put(&mut index, record);
        }
        for PermissionUse { family, permission, at } in uses {
            if let Some(line) = index.lines.get(family) {
                line.restore(*permission, *at);
            }
        }
    }

    /// Takes up one that is on disk now.
    pub fn insert(&self, record: CredentialRecord) {
        self.put(&mut self.write(), record);
    }

    /// Changes one as it was changed on disk. Its open streams end: they ask
    /// again with what it is now.
    pub fn change(&self, id: &str, change: impl FnOnce(&mut CredentialRecord)) {
        self.renew(&mut self.write(), id, change);
    }

    /// Works out again what descends from a line of rotations, after its
    /// newest member holds less than those before it.
    pub fn bound_below(&self, family: &str) {
        let mut index = self.write();
        let below = index.by_id.values().map(|issue| &issue.record).filter(|record| {
            lineage(&index, record).skip(1).any(|ancestor| *ancestor.family == *family)
        });
        let below: Vec<Arc<str>> = below.map(|record| Arc::clone(&record.id)).collect();
        for id in below {
            self.renew(&mut index, &id, |_| {});
        }
    }

    fn renew(&self, index: &mut Index, id: &str, change: impl FnOnce(&mut CredentialRecord)) {
        let Some(issue) = index.by_id.get(id).cloned() else { return };
        let mut record = issue.record.clone();
        record.uses = issue.uses();
        record.last_used_at = issue.last_used_at();
        change(&mut record);
        self.put(index, record);
        issue.session.revoked.cancel();
        self.renew_traded(index, id);
    }

    /// Forgets one.
    pub fn remove(&self, id: &str) {
        let mut index = self.write();
        if let Some(issue) = index.by_id.remove(id) {
            index.by_digest.remove(&Digest::from(&issue.record.digest));
            let family = &issue.record.family;
            if index.newest.get(family).is_some_and(|newest| **newest == *id) {
                index.newest.remove(family);
                index.lines.remove(family);
            }
            issue.session.revoked.cancel();
            self.renew_traded(&mut index, id);
        }
    }

    /// Takes these for all tokens that there are, where they do not come from
    /// the database. Those that are gone are revoked from `now` on; open
    /// streams of what is gone or has changed end. Answers the ids that other
    /// credentials have already, whose tokens do not count.
    pub fn replace_tokens(&self, records: Vec<CredentialRecord>, now: Timestamp) -> Vec<Arc<str>> {
        let mut index = self.write();
        let mut wanted: HashMap<_, _> =
            records.into_iter().map(|record| (Arc::clone(&record.id), record)).collect();
        let here: Vec<Arc<Issue>> = index.by_id.values().cloned().collect();
        let mut taken = Vec::new();
        for issue in here {
            let found = wanted.remove(&issue.record.id);
            if issue.record.kind != CredentialKind::Token {
                taken.extend(found.map(|record| record.id));
                continue;
            }
            let record = match found {
                Some(record) if issue.stands_as(&record) => continue,
                Some(record) => record,
                None if issue.record.revoked_at.is_some() => continue,
                None => CredentialRecord { revoked_at: Some(now), ..issue.record.clone() },
            };
            index.by_digest.remove(&Digest::from(&issue.record.digest));
            let last_used_at = issue.last_used_at();
            self.put(&mut index, CredentialRecord { last_used_at, ..record });
            issue.session.revoked.cancel();
        }
        for record in wanted.into_values() {
            self.put(&mut index, record);
        }
        taken
    }

    /// Forgets every token.
    pub fn remove_tokens(&self) {
        for issue in self.all(CredentialKind::Token) {
            self.remove(&issue.record.id);
        }
    }

    /// The one of this id.
    #[must_use]
    pub fn get(&self, id: &str) -> Option<Arc<Issue>> {
        self.read().by_id.get(id).cloned()
    }

    /// A credential that counts now, or the newest of its line of rotations
    /// where its own time is over.
    pub(super) fn standing(&self, id: &str, now: Timestamp) -> Option<Arc<Issue>> {
        let index = self.read();
        let issue = index.by_id.get(id)?;
        if issue.is_usable(now) {
            return Some(Arc::clone(issue));
        }
        if issue.record.revoked_at.is_some() {
            return None;
        }
        let newest = index.newest.get(&issue.record.family)?;
        index.by_id.get(newest).filter(|newest| newest.is_usable(now)).cloned()
    }

    /// All of a kind, newest first.
    #[must_use]
    pub fn all(&self, kind: CredentialKind) -> Vec<Arc<Issue>> {
        let index = self.read();
        let mut all: Vec<_> =
            index.by_id.values().filter(|issue| issue.record.kind == kind).cloned().collect();
        drop(index);
        all.sort_by_key(|issue| (Reverse(issue.record.created_at), Arc::clone(&issue.record.id)));
        all
    }

    /// All that count now.
    #[must_use]
    pub fn live(&self, now: Timestamp) -> Vec<Arc<Issue>> {
        self.read().by_id.values().filter(|issue| issue.is_live(now)).cloned().collect()
    }

    /// What was not taken back yet of these lines of rotations, and of all
    /// that descends from them or was made by them.
    #[must_use]
    pub fn below(&self, families: &[Arc<str>]) -> Vec<Arc<str>> {
        let descends = |record: &CredentialRecord| {
            record.revoked_at.is_none()
                && (families.contains(&record.family)
                    || record.descent.iter().any(|ancestor| families.contains(ancestor)))
        };
        self.ids(descends, |record| &record.id)
    }

    /// The lines of rotations that such a principal made.
    #[must_use]
    pub fn made_by(&self, maker: impl Fn(&Identity) -> bool) -> Vec<Arc<str>> {
        self.ids(|record| maker(&record.created_by), |record| &record.family)
    }

    fn ids(
        &self,
        wanted: impl Fn(&CredentialRecord) -> bool,
        id: impl Fn(&CredentialRecord) -> &Arc<str>,
    ) -> Vec<Arc<str>> {
        let index = self.read();
        let records = index.by_id.values().map(|issue| &issue.record);
        records.filter(|record| wanted(record)).map(|record| Arc::clone(id(record))).collect()
    }

    /// When credentials of the database were used since they were taken up,
    /// and permissions exercised since the last call.
    #[must_use]
    pub fn take_uses(&self) -> LastUses {
        let index = self.read();
        let used = index.by_id.values().filter_map(|issue| {
            let at = issue.last_used_at()?;
            let kept = self.source(issue.record.kind) == Source::Database;
            (kept && Some(at) > issue.record.last_used_at)
                .then(|| (Arc::clone(&issue.record.id), at))
        });
        let lines = index.lines.iter().filter(|(family, _)| {
            let first = index.by_id.get(*family);
            first.is_none_or(|first| self.source(first.record.kind) == Source::Database)
        });
        let exercised = lines.flat_map(|(family, line)| {
            let used =
                |(permission, at)| PermissionUse { family: Arc::clone(family), permission, at };
            line.take().map(used)
        });
        LastUses { credentials: used.collect(), permissions: exercised.collect() }
    }

    /// Permissions whose uses could not be written down; they are taken again.
    pub fn put_back(&self, uses: &[PermissionUse]) {
        let index = self.read();
        for PermissionUse { family, permission, .. } in uses {
            if let Some(line) = index.lines.get(family) {
                line.put_back(*permission);
            }
        }
    }

    /// When a token, or what descends from it and is bounded by it, last
    /// exercised a permission.
    #[must_use]
    pub fn exercised_below(&self, issue: &Issue, permission: Permission) -> Option<Timestamp> {
        let index = self.read();
        let family = &issue.record.family;
        let below = index.by_id.values().filter(|other| {
            other.record.parent.is_some()
                && other.record.revoked_at.is_none()
                && lineage(&index, &other.record).any(|record| record.family == *family)
        });
        below
            .filter_map(|other| other.exercised_at(permission))
            .max()
            .max(issue.exercised_at(permission))
    }

    /// The holder of a secret; none when no credential of a kind that is
    /// taken here has this digest.
    pub(super) fn accept(
        &self,
        digest: &[u8; 32],
        taken: impl FnOnce(CredentialKind) -> bool,
        peer: Option<IpAddr>,
        now: Timestamp,
    ) -> Option<Result<Accepted, Fault>> {
        let issue = self.read().by_digest.get(&Digest::from(digest)).cloned()?;
        taken(issue.record.kind).then(|| issue.accept(peer, now))
    }

    /// The same for one who only asks: nothing is noted (SE-42).
    pub(super) fn inspect(
        &self,
        digest: &[u8; 32],
        taken: impl FnOnce(CredentialKind) -> bool,
        client: Option<IpAddr>,
        now: Timestamp,
    ) -> Option<Result<Arc<Issue>, Fault>> {
        let issue = self.read().by_digest.get(&Digest::from(digest)).cloned()?;
        taken(issue.record.kind).then(|| issue.check(client, now).map(|()| issue))
    }

    /// Whether tokens may have another form than ours.
    pub(super) fn has_strangers(&self) -> bool {
        self.tokens == Source::File
    }

    /// Whether this is the digest of a token, where those may have another
    /// form than ours, as that of a JWT.
    pub(super) fn knows_stranger(&self, digest: &[u8; 32]) -> bool {
        self.has_strangers() && self.read().by_digest.contains_key(&Digest::from(digest))
    }

    fn source(&self, kind: CredentialKind) -> Source {
        match kind {
            CredentialKind::Token => self.tokens,
            CredentialKind::ApiKey | CredentialKind::Exchanged => Source::Database,
        }
    }

    fn put(&self, index: &mut Index, record: CredentialRecord) {
        let grant = self.grant(index, &record);
        let not_after = traded::end(index, &record);
        let principal = Principal {
            identity: Identity {
                source: self.source(record.kind),
                issuer: "".into(),
                subject: Arc::clone(&record.family),
            },
            method: match record.kind {
                CredentialKind::Token | CredentialKind::Exchanged => Method::Token,
                CredentialKind::ApiKey => Method::ApiKey,
            },
            grants: vec![grant],
            not_after,
            credential_id: Arc::clone(&record.id),
            worker_scope: None,
            issued_at: None,
        };
        let line = index.lines.entry(Arc::clone(&record.family)).or_default();
        let usage = Arc::new(Usage::new(Arc::clone(line)));
        let (recall, traded_for) = self.recall_of(index, &record);
        let session = Session {
            usage: Some(Arc::clone(&usage)),
            recall,
            traded_for,
            ..Session::new(Arc::new(principal), self.revoked.child_token())
                .with_digest(&record.digest)
        };
        if record.revoked_at.is_some() || traded::lost_parent(index, &record) {
            session.revoked.cancel();
        }
        let networks = lineage(index, &record)
            .filter(|record| !record.networks.is_empty())
            .map(|record| record.networks.iter().filter_map(|it| Network::parse(it).ok()).collect())
            .collect();
        let issue = Arc::new(Issue {
            session: Arc::new(session),
            networks,
            logged_at: AtomicI64::new(i64::MIN),
            usage,
            named: self.named(&record),
            uses: AtomicU32::new(record.uses),
            record,
        });
        let record = &issue.record;
        let newest = index.newest.get(&record.family).and_then(|id| index.by_id.get(id));
        if newest.is_none_or(|newest| precedes(&newest.record, record)) {
            index.newest.insert(Arc::clone(&record.family), Arc::clone(&record.id));
        }
        index.by_digest.insert(Digest::from(&record.digest), Arc::clone(&issue));
        index.by_id.insert(Arc::clone(&record.id), issue);
    }

    /// What it holds: its own rights within those of all its ancestors
    /// (SE-39). What cannot be read any more counts for nothing.
    fn grant(&self, index: &Index, record: &CredentialRecord) -> Grant {
        let whole = Grant { permissions: PermissionSet::star(), scope: Scope::Everything };
        let grant = lineage(index, record).fold(whole, |grant, record| {
            let permissions = self.named(record);
            let scope = Scope::parse(&record.namespaces).unwrap_or(Scope::NOWHERE);
            Grant {
                permissions: grant.permissions.intersection(&permissions),
                scope: grant.scope.intersection(&scope),
            }
        });
        let orphan = lineage(index, record).last().is_some_and(|last| last.parent.is_some());
        if orphan {
            return Grant { permissions: PermissionSet::empty(), scope: Scope::NOWHERE };
        }
        grant
    }

    fn named(&self, record: &CredentialRecord) -> PermissionSet {
        let mut permissions = PermissionSet::empty();
        for name in &record.scopes {
            permissions.add(name, &self.foreign);
        }
        permissions
    }

    fn read(&self) -> RwLockReadGuard<'_, Index> {
        self.index.read().unwrap_or_else(PoisonError::into_inner)
    }

    fn write(&self) -> RwLockWriteGuard<'_, Index> {
        self.index.write().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Which of two of one line its descendants go by: the one that lives longer,
/// then the newer one.
fn precedes(one: &CredentialRecord, other: &CredentialRecord) -> bool {
    let rank = |record: &CredentialRecord| {
        let end = record.expires_at.map_or(i64::MAX, Timestamp::micros);
        (end, record.created_at)
    };
    rank(one) <= rank(other)
}

/// A credential and its ancestors, each as the newest of its rotations.
fn lineage<'i>(
    index: &'i Index,
    record: &'i CredentialRecord,
) -> impl Iterator<Item = &'i CredentialRecord> {
    let parent = move |record: &&'i CredentialRecord| {
        let parent = index.by_id.get(record.parent.as_ref()?)?;
        let newest = index.newest.get(&parent.record.family)?;
        index.by_id.get(newest).map(|issue| &issue.record)
    };
    std::iter::successors(Some(record), parent).take(ANCESTORS_MAX)
}

impl Issue {
    /// Whether a call with it is let in that comes from there.
    fn check(&self, peer: Option<IpAddr>, now: Timestamp) -> Result<(), Fault> {
        if self.session.is_revoked() {
            return Err(Fault::Revoked);
        }
        if self.is_over(now) {
            return Err(Fault::Expired);
        }
        if self.record.max_uses.is_some_and(|most| self.uses() >= most) {
            return Err(Fault::UsedUp);
        }
        let within = |peer: IpAddr| {
            self.networks.iter().all(|one| one.iter().any(|network| network.contains(peer)))
        };
        if !self.networks.is_empty() && !peer.is_some_and(within) {
            return Err(Fault::Network);
        }
        Ok(())
    }

    fn accept(self: Arc<Self>, peer: Option<IpAddr>, now: Timestamp) -> Result<Accepted, Fault> {
        self.check(peer, now)?;
        self.usage.used(now);
        let fresh = super::is_due(&self.logged_at, now, LOGGED_EVERY_SECONDS);
        Ok(Accepted {
            session: Arc::clone(&self.session),
            fresh,
            unknown_permissions: Vec::new(),
            counted: self.record.max_uses.is_some().then_some(self),
            tie: None,
        })
    }
}

impl fmt::Debug for Issued {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Issued({})", self.read().by_id.len())
    }
}
