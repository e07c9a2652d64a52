//! What credentials were used for: written down in batches, and those that
//! nobody uses taken back.

use std::{collections::HashMap, sync::Arc, time::Duration};

use tokio_util::sync::CancellationToken;

use super::Admin;
use crate::{
    authn::Issue,
    authz::System,
    domain::{Permission, Timestamp, history::Stamp, principal::Source},
    storage,
};

/// How often it is written down when credentials were last used.
const NOTE_EVERY: Duration = Duration::from_secs(5);
/// After how many of these it is asked which ones nobody uses: every hour.
const ROUNDS_PER_SWEEP: u32 = 720;
/// How many are taken back in one step.
const DISABLED_AT_ONCE: usize = 500;
const DAY: Duration = Duration::from_hours(24);

/// What is known about the uses of a credential.
#[derive(Clone, Debug)]
pub struct Uses {
    /// Of each permission that its scopes name.
    pub permissions: Vec<Exercised>,
    /// Those that were never exercised.
    pub unused: Vec<Permission>,
    /// How long it was not used; since it was made, when never.
    pub idle: Duration,
}

/// When a permission was last exercised.
#[derive(Clone, Debug)]
pub struct Exercised {
    /// The permission.
    pub permission: String,
    /// When.
    pub at: Option<Timestamp>,
    /// Whether that is seen here: not of other services' permissions.
    pub observable: bool,
}

impl Uses {
    /// Of this credential, seen at this moment.
    #[must_use]
    pub fn of(issue: &Issue, now: Timestamp) -> Self {
        let named = issue.named();
        let own = named.own().map(|permission| Exercised {
            permission: permission.name().to_owned(),
            at: issue.exercised_at(permission),
            observable: true,
        });
        let foreign = named.foreign().map(|name| Exercised {
            permission: name.as_ref().to_owned(),
            at: None,
            observable: false,
        });
        let never = |permission: &Permission| issue.exercised_at(*permission).is_none();
        Self {
            permissions: own.chain(foreign).collect(),
            unused: named.own().filter(never).collect(),
            idle: issue.idle_since().until(now),
        }
    }
}

/// Writes down when credentials were last used, in batches, until the
/// shutdown and once more then. Takes back those that are not used any more.
pub async fn note_uses(admin: Arc<Admin>, _: System, shutdown: CancellationToken) {
    let mut noted = HashMap::new();
    let mut rounds: u32 = 0;
    loop {
        let ended = tokio::time::timeout(NOTE_EVERY, shutdown.cancelled()).await.is_ok();
        admin.note_uses(&mut noted).await;
        if ended {
            return;
        }
        if let Err(error) = admin.forget_exchanged().await {
            tracing::warn!(%error, "exchanged tokens that are over were not removed");
        }
        rounds = (rounds + 1) % ROUNDS_PER_SWEEP;
        if rounds == 0
            && let Err(error) = admin.disable_unused().await
        {
            tracing::warn!(%error, "unused credentials were not disabled");
        }
    }
}

impl Admin {
    /// Writes one batch; `noted` is what was written before.
    async fn note_uses(&self, noted: &mut HashMap<Arc<str>, Timestamp>) {
        let mut uses = self.issued.take_uses();
        uses.credentials.retain(|(id, at)| noted.get(id) != Some(at));
        if uses.credentials.is_empty() && uses.permissions.is_empty() {
            return;
        }
        match self.store.credentials_used(uses.clone()).await {
            Ok(()) => noted.extend(uses.credentials),
            Err(error) => {
                self.issued.put_back(&uses.permissions);
                tracing::warn!(%error, "last uses of credentials were not noted");
            }
        }
    }

    /// Takes back the credentials that nobody has used for the days that the
    /// settings say. One with a moment in the future is not judged: then one
    /// of the two clocks was wrong.
    pub(super) async fn disable_unused(&self) -> storage::Result<()> {
        let Some(days) = self.unused_after_days else { return Ok(()) };
        let limit = DAY * days.get();
        let _order = self.order.lock().await;
        let now = self.now();
        let unused: Vec<Arc<str>> = self
            .issued
            .live(now)
            .into_iter()
            // What a file holds is taken back there.
            .filter(|issue| issue.principal().identity.source == Source::Database)
            .filter(|issue| issue.idle_since().until(now) >= limit)
            .map(|issue| Arc::clone(&issue.record.id))
            .collect();
        for ids in unused.chunks(DISABLED_AT_ONCE) {
            self.store.revoke_credentials(ids, &Stamp::system(), now).await?;
            for id in ids {
                self.issued
                    .change(id, |record| record.revoked_at = record.revoked_at.or(Some(now)));
                tracing::info!(credential = &**id, "token disabled: unused for {days} days");
            }
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use std::{
        collections::BTreeSet,
        num::NonZeroU32,
        sync::atomic::{AtomicI64, Ordering},
    };

    use tempfile::TempDir;

    use super::*;
    use crate::signing;
    use crate::{
        admin::Tokens,
        authn::Authenticator,
        config::{Auth, Mode, TokenStore},
        domain::{Clock, principal::Identity},
        engine::Floor,
        storage::{CredentialKind, CredentialRecord, Desk, sqlite},
    };

    const START: Timestamp = Timestamp::from_seconds(1_800_000_000);
    const DAY_MS: i64 = 24 * 60 * 60 * 1000;

    #[derive(Debug)]
    struct Hands(AtomicI64);

    impl Clock for Hands {
        fn now(&self) -> Timestamp {
            Timestamp::from_micros(self.0.load(Ordering::SeqCst))
        }
    }

    struct House {
        admin: Admin,
        hands: Arc<Hands>,
        _folder: TempDir,
    }

    impl House {
        async fn new(days: u32) -> Self {
            let hands = Arc::new(Hands(AtomicI64::new(START.micros())));
            let clock: Arc<dyn Clock> = Arc::<Hands>::clone(&hands);
            let folder = tempfile::tempdir().unwrap();
            let settings = sqlite::Settings::new(folder.path().join("bailiwick.db"));
            let desk: Arc<dyn Desk> = Floor::new();
            let store = sqlite::Sqlite::open(settings, desk, Arc::clone(&clock)).await.unwrap();
            let off = Auth {
                mode: Mode::Off,
                extra_permissions: BTreeSet::new(),
                jwt_token_expiry: DAY,
                token_store: TokenStore::Database,
                disable_unused_after_days: None,
            };
            let authenticator = Authenticator::new(&off).unwrap();
            let keys = signing::SigningKeys::none(store.clone(), Arc::clone(&clock));
            let admin = Admin {
                keys,
                store,
                issued: Arc::clone(authenticator.issued()),
                recalls: Arc::clone(authenticator.recalls()),
                configured: Vec::new(),
                tokens: Tokens::Database,
                foreign: BTreeSet::new(),
                issuers: std::collections::BTreeMap::new(),
                api_keys_enabled: true,
                auth_on: false,
                roles: std::collections::BTreeMap::new(),
                unused_after_days: NonZeroU32::new(days),
                clock,
                order: tokio::sync::Mutex::default(),
            };
            Self { admin, hands, _folder: folder }
        }

        /// The clock stands so many milliseconds after the start.
        fn at(&self, ms: i64) {
            self.hands.0.store(START.plus_ms(ms).micros(), Ordering::SeqCst);
        }

        async fn keep(&self, id: &str, used: Option<Timestamp>) {
            let mut digest = [0; 32];
            digest.iter_mut().zip(id.bytes()).for_each(|(place, byte)| *place = byte);
            let record = CredentialRecord {
                id: id.into(),
                digest,
                kind: CredentialKind::Token,
                name: None,
                scopes: vec!["tasks:*".to_owned()],
                namespaces: vec!["*".to_owned()],
                networks: Vec::new(),
                created_by: Identity {
                    source: Source::Config,
                    issuer: "".into(),
                    subject: "root".into(),
                },
                created_with: "with".into(),
                created_at: START,
                expires_at: None,
                max_uses: None,
                uses: 0,
                parent: None,
                family: id.into(),
                descent: Vec::new(),
                revoked_at: None,
                last_used_at: used,
            };
            assert!(
                self.admin
                    .store
                    .add_credential(record.clone(), None, &Stamp::system())
                    .await
                    .unwrap()
                    .is_some()
            );
            self.admin.issued.insert(record);
        }

        /// What still counts after a sweep, in the store and for the gate.
        async fn swept(&self) -> Vec<String> {
            self.admin.disable_unused().await.unwrap();
            let kept = self.admin.store.credentials().await.unwrap().into_iter();
            let mut kept: Vec<String> = kept
                .filter(|record| record.revoked_at.is_none())
                .map(|record| record.id.to_string())
                .collect();
            kept.sort();
            let mut live: Vec<String> = self
                .admin
                .issued
                .live(self.admin.now())
                .iter()
                .map(|issue| issue.record.id.to_string())
                .collect();
            live.sort();
            assert_eq!(kept, live);
            kept
        }
    }

    #[tokio::test]
    async fn what_nobody_used_for_the_days_is_disabled_to_the_moment() {
        let house = House::new(30).await;
        house.keep("never", None).await;
        house.keep("used", Some(START.plus_ms(DAY_MS))).await;
        // By a clock that was ahead.
        house.keep("ahead", Some(START.plus_ms(90 * DAY_MS))).await;
        house.at(30 * DAY_MS - 1);
        assert_eq!(house.swept().await, ["ahead", "never", "used"]);
        house.at(30 * DAY_MS);
        assert_eq!(house.swept().await, ["ahead", "used"]);
        house.at(31 * DAY_MS - 1);
        assert_eq!(house.swept().await, ["ahead", "used"]);
        house.at(31 * DAY_MS);
        assert_eq!(house.swept().await, ["ahead"]);
        // Back to before anything was made: nothing is judged.
        house.at(-400 * DAY_MS);
        assert_eq!(house.swept().await, ["ahead"]);
        house.at(120 * DAY_MS - 1);
        assert_eq!(house.swept().await, ["ahead"]);
        house.at(120 * DAY_MS);
        assert!(house.swept().await.is_empty());
    }

    #[tokio::test]
    async fn nothing_is_disabled_where_it_is_off() {
        let house = House::new(0).await;
        house.keep("never", None).await;
        house.at(40_000 * DAY_MS);
        assert_eq!(house.swept().await, ["never"]);
    }

    #[tokio::test]
    async fn uses_are_written_once_and_again_only_when_they_move() {
        let house = House::new(0).await;
        house.keep("one", None).await;
        let issue = house.admin.issued.get("one").unwrap();
        let mut noted = HashMap::new();
        let written = async |noted: &mut _| {
            house.admin.note_uses(noted).await;
            house.admin.store.permission_uses().await.unwrap()
        };
        assert_eq!(written(&mut noted).await, []);
        issue.session().exercised(Permission::TasksRead, &*house.hands);
        let [first] = &written(&mut noted).await[..] else { panic!("one use") };
        assert_eq!((&*first.family, first.permission), ("one", Permission::TasksRead));
        assert_eq!(first.at, START);
        assert_eq!(house.admin.issued.take_uses().permissions, []);
        house.at(5_000);
        issue.session().exercised(Permission::TasksRead, &*house.hands);
        let [second] = &written(&mut noted).await[..] else { panic!("one use") };
        assert_eq!(second.at, START.plus_ms(5_000));
        let uses = Uses::of(&issue, START.plus_ms(6_500));
        assert_eq!(uses.idle, Duration::from_millis(1_500));
        assert!(!uses.unused.contains(&Permission::TasksRead));
        assert_eq!(uses.unused.len(), uses.permissions.len() - 1);
    }
}
