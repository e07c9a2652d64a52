//! Use cases about more rights for a while: somebody asks with a reason,
//! somebody else who holds them approves, and they end by themselves. What is
//! on disk changes first, then what the gate sees.

use std::{collections::BTreeMap, sync::Arc, time::Duration};

use rand::Rng as _;
use tokio::sync::Mutex;
use tokio_util::sync::CancellationToken;

use super::{Error, Result, invalid};
use crate::{
    access::{Caller, Kind, Reason, Refusal},
    authn::{Elevations, Issued},
    authz::System,
    domain::{
        Clock, Grant, Permission, Principal, Scope, Timestamp,
        elevation::{Elevation, ElevationState},
        history::Stamp,
        principal::{Identity, Source},
    },
    storage::{self, Store},
};

/// The most permissions of one request.
const PERMISSIONS_MAX: usize = 20;
/// How many requests somebody has open at once.
const OPEN_MAX: usize = 10;
/// How many there are at once in all.
const ALL_MAX: usize = 10_000;
/// How many of somebody are kept, those that are over among them.
const KEPT_MAX: usize = 100;
/// The longest reason, in bytes.
const REASON_BYTES_MAX: usize = 500;
/// How long a request waits for a decision.
const DECIDE_WITHIN: Duration = Duration::from_hours(24);
/// How long those that are over are shown.
const SHOWN_FOR_DAYS: i64 = 30;
/// How often it is looked which ones are over; calls look by themselves.
const SWEEP_EVERY: Duration = Duration::from_secs(1);
const DAY_MS: i64 = 24 * 60 * 60 * 1_000;
/// Whoever signs for an issuer could act in the name of the requester.
const BEYOND_ISSUER: &str = "The ceiling of the issuer of your tokens does not reach so far";

/// What the use cases work with.
#[derive(Debug)]
pub struct Elevating {
    store: Arc<dyn Store>,
    raised: Arc<Elevations>,
    issued: Arc<Issued>,
    clock: Arc<dyn Clock>,
    bounds: Bounds,
    /// All that are shown, by id. Disk and memory change in the same order.
    all: Mutex<BTreeMap<Arc<str>, Elevation>>,
}

/// What no approver can go beyond.
#[derive(Clone, Debug)]
pub struct Bounds {
    /// How long one lasts at most.
    pub longest: Duration,
    /// What the JWTs of each issuer hold at most (SE-02).
    pub issuers: BTreeMap<Arc<str>, Grant>,
}

/// What is asked for.
#[derive(Clone, Debug, Default)]
pub struct Wish {
    /// The permissions.
    pub permissions: Vec<String>,
    /// Where.
    pub namespace: String,
    /// For how many seconds.
    pub seconds: u32,
    /// Why.
    pub reason: String,
}

/// What somebody else says to a request.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Decision {
    /// Yes.
    Approve,
    /// No.
    Deny,
}

impl Elevating {
    /// With what the store holds taken up.
    pub async fn open(
        store: Arc<dyn Store>,
        raised: Arc<Elevations>,
        issued: Arc<Issued>,
        clock: Arc<dyn Clock>,
        bounds: Bounds,
    ) -> Result<Arc<Self>> {
        let kept = store.elevations().await?;
        let kept: BTreeMap<Arc<str>, Elevation> =
            kept.into_iter().map(|one| (Arc::clone(&one.id), one)).collect();
        let now = clock.now();
        for one in kept.values().filter(|one| one.state == ElevationState::Active) {
            if one.until.is_some_and(|until| now < until) && bounds.allow(one) {
                raised.begin(one);
            }
        }
        let this = Self { store, raised, issued, clock, bounds, all: Mutex::new(kept) };
        this.sweep().await?;
        Ok(Arc::new(this))
    }

    /// Asks for more rights.
    pub async fn request(&self, caller: &Caller, wish: Wish) -> Result<Elevation> {
        let principal = caller.lasting();
        self.may_ask(principal)?;
        let permissions = self.check(&wish)?;
        let mut all = self.all.lock().await;
        caller.still_valid()?;
        let now = self.clock.now();
        let open = all.values().filter(|one| is_open(one));
        let own = |one: &&Elevation| one.requester == principal.identity;
        let too_many = if open.clone().filter(own).count() >= OPEN_MAX {
            Some(format!("There are {OPEN_MAX} open requests of yours at most"))
        } else if open.count() >= ALL_MAX {
            Some(format!("There are {ALL_MAX} open requests at most"))
        } else if all.values().filter(own).count() >= KEPT_MAX {
            Some(format!("You asked {KEPT_MAX} times within {SHOWN_FOR_DAYS} days"))
        } else {
            None
        };
        if let Some(message) = too_many {
            return Err(Refusal::new(Kind::TooMany, Reason::RateLimited, message).into());
        }
        let id: u64 = rand::rng().random();
        let elevation = Elevation {
            id: format!("{id:016x}").into(),
            requester: principal.identity.clone(),
            requested_with: Arc::clone(&principal.credential_id),
            permissions,
            namespace: wish.namespace,
            seconds: wish.seconds,
            reason: wish.reason,
            requested_at: now,
            state: ElevationState::Pending,
            decided_by: None,
            decided_at: None,
            until: None,
            ended_at: None,
        };
        if !self.bounds.allow(&elevation) {
            return Err(forbidden(BEYOND_ISSUER));
        }
        let forget = now.plus_ms(-SHOWN_FOR_DAYS * DAY_MS);
        if !self.store.add_elevation(&elevation, forget, &stamp(caller)).await? {
            return Err(storage::Error::Unavailable("the id is taken".into()).into());
        }
        all.retain(|_, one| one.ended_at.is_none_or(|end| end >= forget));
        all.insert(Arc::clone(&elevation.id), elevation.clone());
        tracing::info!(elevation = &*elevation.id, by = %elevation.requester, "elevation requested");
        Ok(elevation)
    }

    /// Those that the caller may see, the newest first.
    pub async fn list(&self, caller: &Caller) -> Result<Vec<Elevation>> {
        let all = self.all.lock().await;
        caller.still_valid()?;
        let principal = caller.lasting();
        let mut seen: Vec<Elevation> =
            all.values().filter(|one| self.may_see(principal, one)).cloned().collect();
        seen.sort_by(|a, b| (b.requested_at, &b.id).cmp(&(a.requested_at, &a.id)));
        Ok(seen)
    }

    /// Says yes or no to somebody else's request.
    pub async fn decide(&self, caller: &Caller, id: &str, decision: Decision) -> Result<Elevation> {
        let mut all = self.all.lock().await;
        caller.still_valid()?;
        let principal = caller.lasting();
        let one = self.visible(&all, principal, id)?;
        self.may_decide(principal, one)?;
        let now = self.clock.now();
        if one.state != ElevationState::Pending {
            return Err(state(one.state));
        }
        if one.requested_at.plus(DECIDE_WITHIN) <= now {
            return Err(state(ElevationState::Expired));
        }
        let mut moved = one.clone();
        moved.decided_by = Some(principal.identity.clone());
        moved.decided_at = Some(now);
        match decision {
            Decision::Approve => {
                self.may_lend(principal)?;
                if !self.bounds.allow(one) {
                    return Err(forbidden(BEYOND_ISSUER));
                }
                moved.state = ElevationState::Active;
                // Nobody lends for longer than it has something itself.
                let until = now.plus(Duration::from_secs(moved.seconds.into()));
                moved.until = Some(principal.not_after.map_or(until, |end| end.min(until)));
            }
            Decision::Deny => {
                moved.state = ElevationState::Denied;
                moved.ended_at = Some(now);
            }
        }
        self.keep(&mut all, ElevationState::Pending, &moved, &stamp(caller), now).await?;
        if moved.state == ElevationState::Active {
            self.raised.begin(&moved);
        }
        tracing::info!(
            elevation = &*moved.id,
            by = %principal.identity,
            requester = %moved.requester,
            state = moved.state.as_str(),
            "elevation decided"
        );
        Ok(moved)
    }

    /// Ends one, or takes a request back: its requester, who approved it, who
    /// could have, and root.
    pub async fn revoke(&self, caller: &Caller, id: &str) -> Result<Elevation> {
        let mut all = self.all.lock().await;
        caller.still_valid()?;
        let principal = caller.lasting();
        let one = self.visible(&all, principal, id)?;
        let identity = &principal.identity;
        let involved = one.requester == *identity || one.decided_by.as_ref() == Some(identity);
        if !involved && !principal.is_root() {
            self.may_decide(principal, one)?;
        }
        if !is_open(one) {
            return Err(state(one.state));
        }
        let (from, now) = (one.state, self.clock.now());
        let moved =
            Elevation { state: ElevationState::Revoked, ended_at: Some(now), ..one.clone() };
        // Whatever becomes of it on disk, it is over.
        self.raised.end(&moved);
        self.keep(&mut all, from, &moved, &stamp(caller), now).await?;
        tracing::info!(elevation = &*moved.id, by = %identity, "elevation revoked");
        Ok(moved)
    }

    /// Notes which ones are over, until the shutdown.
    pub async fn run(self: Arc<Self>, _: System, shutdown: CancellationToken) {
        while tokio::time::timeout(SWEEP_EVERY, shutdown.cancelled()).await.is_err() {
            if let Err(error) = self.sweep().await {
                tracing::warn!(%error, "elevations that are over were not noted");
            }
        }
    }

    pub(crate) async fn sweep(&self) -> Result<()> {
        let mut all = self.all.lock().await;
        let now = self.clock.now();
        let over = |one: &&Elevation| match one.state {
            ElevationState::Active => {
                one.until.is_none_or(|until| until <= now) || !self.bounds.allow(one)
            }
            ElevationState::Pending => one.requested_at.plus(DECIDE_WITHIN) <= now,
            ElevationState::Denied | ElevationState::Revoked | ElevationState::Expired => false,
        };
        let over: Vec<Elevation> = all.values().filter(over).cloned().collect();
        let mut done = Ok(());
        for one in over {
            let moved =
                Elevation { state: ElevationState::Expired, ended_at: Some(now), ..one.clone() };
            self.raised.end(&moved);
            // One that cannot be noted does not hold up the others.
            done = self.keep(&mut all, one.state, &moved, &Stamp::system(), now).await.and(done);
        }
        done
    }

    async fn keep(
        &self,
        all: &mut BTreeMap<Arc<str>, Elevation>,
        from: ElevationState,
        moved: &Elevation,
        stamp: &Stamp,
        now: Timestamp,
    ) -> Result<()> {
        if !self.store.move_elevation(from, moved, stamp, now).await? {
            let broken = "an elevation on disk is in another state than in memory";
            return Err(storage::Error::Broken(broken.into()).into());
        }
        all.insert(Arc::clone(&moved.id), moved.clone());
        Ok(())
    }

    fn check(&self, wish: &Wish) -> Result<Vec<Permission>> {
        if wish.permissions.is_empty() || wish.permissions.len() > PERMISSIONS_MAX {
            return Err(invalid("permissions", format!("name 1 to {PERMISSIONS_MAX}")));
        }
        let mut permissions = Vec::with_capacity(wish.permissions.len());
        for name in &wish.permissions {
            // SE-40: no wildcard, and nothing that root alone may do has a name.
            let permission = Permission::parse(name).ok_or_else(|| {
                let name: String = name.chars().take(80).flat_map(char::escape_default).collect();
                invalid("permissions", format!("`{name}` is no single permission of this server"))
            })?;
            if !permissions.contains(&permission) {
                permissions.push(permission);
            }
        }
        Scope::parse(&[&wish.namespace]).map_err(|error| invalid("namespace", error))?;
        let longest = self.bounds.longest.as_secs();
        if wish.seconds == 0 || u64::from(wish.seconds) > longest {
            let what = format!("must be 1 to {longest} seconds (`auth.elevation_max_minutes`)");
            return Err(invalid("seconds", what));
        }
        let reason = wish.reason.trim();
        let good = !reason.is_empty()
            && wish.reason.len() <= REASON_BYTES_MAX
            && !reason.chars().any(char::is_control);
        if !good {
            let what =
                format!("say why in 1 to {REASON_BYTES_MAX} bytes without control characters");
            return Err(invalid("reason", what));
        }
        Ok(permissions)
    }

    fn visible<'a>(
        &self,
        all: &'a BTreeMap<Arc<str>, Elevation>,
        principal: &Principal,
        id: &str,
    ) -> Result<&'a Elevation> {
        let seen = all.get(id).filter(|one| self.may_see(principal, one));
        let shown: String = id.chars().take(40).flat_map(char::escape_default).collect();
        seen.ok_or_else(|| Refusal::not_found("elevation", &shown).into())
    }

    /// One's own, those that one could decide or has decided, and all of a
    /// namespace with `audit:read` there.
    fn may_see(&self, principal: &Principal, one: &Elevation) -> bool {
        one.requester == principal.identity
            || one.decided_by.as_ref() == Some(&principal.identity)
            || principal.scope_of(Permission::AuditRead).covers(&one.scope())
            || self.may_decide(principal, one).is_ok()
    }

    /// Somebody else, who holds all of it there.
    fn may_decide(&self, principal: &Principal, one: &Elevation) -> Result<()> {
        let scope = one.scope();
        let held = |permission: Permission| principal.scope_of(permission).covers(&scope);
        let held = one.permissions.iter().all(|permission| held(*permission));
        if scope == Scope::NOWHERE || one.permissions.is_empty() || !held {
            let message = "Only who holds these permissions in that whole namespace \
                           decides about it";
            return Err(forbidden(message));
        }
        match principal.identity.source {
            Source::Lease | Source::Agent | Source::Session | Source::Disabled => {
                return Err(forbidden("A credential of this kind decides about nothing"));
            }
            Source::Config
            | Source::Idp
            | Source::Database
            | Source::File
            | Source::Line
            | Source::Certificate => {}
        }
        if self.is_same(principal, one) {
            return Err(forbidden("Somebody else must decide about it"));
        }
        // Whoever it was handed to got a part of a caller's rights, for a while.
        if self.is_traded(principal) {
            return Err(forbidden("A token that was traded for another decides about nothing"));
        }
        Ok(())
    }

    fn is_traded(&self, principal: &Principal) -> bool {
        let issue = self.issued.get(&principal.credential_id);
        issue.is_some_and(|issue| issue.exchanged_by().is_some())
    }

    /// What is bound to places or to a number of uses would be so no longer.
    fn may_lend(&self, principal: &Principal) -> Result<()> {
        let bound = self
            .issued
            .get(&principal.credential_id)
            .is_some_and(|issue| issue.record.max_uses.is_some() || issue.network_limits() > 0);
        if bound {
            let message = "A credential that is bound to networks or to a number of uses lends \
                           nothing";
            return Err(forbidden(message));
        }
        Ok(())
    }

    fn may_ask(&self, principal: &Principal) -> Result<()> {
        let traded = self.is_traded(principal);
        match principal.identity.source {
            Source::Config
            | Source::Idp
            | Source::Database
            | Source::File
            | Source::Certificate
                if !traded =>
            {
                Ok(())
            }
            Source::Config
            | Source::Idp
            | Source::Database
            | Source::File
            | Source::Certificate
            | Source::Line
            | Source::Agent
            | Source::Lease
            | Source::Session
            | Source::Disabled => {
                let message = "A credential of this kind gets no more rights";
                Err(Refusal::new(Kind::Invalid, Reason::CredentialState, message).into())
            }
        }
    }

    /// Whether one stands behind both: the same identity or subject, one made
    /// the other's credential, or somebody made both. Root may have made
    /// everybody's, and is a key of the configuration or of the token file.
    fn is_same(&self, principal: &Principal, one: &Elevation) -> bool {
        let (identity, requester) = (&principal.identity, &one.requester);
        let named = |identity: &&Identity| {
            matches!(identity.source, Source::Config | Source::Idp | Source::Certificate)
        };
        let theirs = self.makers(&one.requested_with);
        let own = self.makers(&principal.credential_id);
        let rooted = |maker: &Identity| {
            matches!(maker.source, Source::Config | Source::File | Source::Disabled)
        };
        let behind = |last, makers| {
            let makers: &[Identity] = makers;
            let makers = makers.iter().filter(|maker| !rooted(maker));
            makers.chain([last]).filter(named).map(|one| &*one.subject).collect::<Vec<_>>()
        };
        let names = behind(requester, &theirs);
        let same_name = behind(identity, &own).iter().any(|name| names.contains(name));
        let shared = own.iter().any(|maker| !rooted(maker) && theirs.contains(maker));
        identity == requester
            || same_name
            || shared
            || own.contains(requester)
            || (!principal.is_root() && theirs.contains(identity))
    }

    /// Who made a credential of ours, and who made the one that it was made
    /// with.
    fn makers(&self, credential: &str) -> Vec<Identity> {
        let maker = |id: &Arc<str>| {
            let record = &self.issued.get(id)?.record;
            Some((record.created_by.clone(), Arc::clone(&record.created_with)))
        };
        let mut makers = Vec::new();
        let mut next: Option<Arc<str>> = Some(credential.into());
        for _ in 0..crate::authn::ANCESTORS_MAX {
            let Some((by, with)) = next.as_ref().and_then(maker) else { break };
            makers.push(by);
            next = Some(with);
        }
        makers
    }
}

impl Bounds {
    /// Whether the requester's issuer may vouch for so much.
    fn allow(&self, one: &Elevation) -> bool {
        one.requester.source != Source::Idp
            || self.issuers.get(&one.requester.issuer).is_some_and(|ceiling| {
                let holds = |permission: &Permission| ceiling.permissions.contains(*permission);
                ceiling.scope.covers(&one.scope()) && one.permissions.iter().all(holds)
            })
    }
}

fn is_open(one: &Elevation) -> bool {
    matches!(one.state, ElevationState::Pending | ElevationState::Active)
}

fn stamp(caller: &Caller) -> Stamp {
    Stamp::of(Arc::clone(caller.origin()))
}

fn forbidden(message: &str) -> Error {
    Refusal::new(Kind::Forbidden, Reason::PermissionMissing, message).into()
}

fn state(state: ElevationState) -> Error {
    let message = format!("The elevation is {}", state.as_str());
    Refusal::new(Kind::Precondition, Reason::CredentialState, message).into()
}
