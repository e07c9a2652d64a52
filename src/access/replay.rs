//! What a changed configuration would have decided: recorded decisions are
//! run through its credentials and rules, to see who would lose or gain what.
//!
//! Not here: where the records come from, and how it is shown (`cli`).

mod act;
mod stored;

use std::{
    collections::{BTreeMap, HashMap},
    sync::Arc,
};

use serde_json::{Map, Value};

use self::{
    act::{Act, Miss, Rules},
    stored::Stored,
};
use super::{
    explain::{
        Actor,
        past::{CREDENTIAL, Recorded, RecordedDetail, RecordedOutcome, read_time},
    },
    table::Table,
};
use crate::{
    authn::Authenticator,
    config::Settings,
    domain::{
        Principal, Timestamp,
        principal::{Identity, Source},
    },
};

/// How an exchange of tokens is called.
const EXCHANGE: &str = "bailiwick.v1.AuthAdminService/ExchangeToken";

/// A changed configuration, and what was recorded under the present one.
#[derive(Debug)]
pub struct Replay {
    authenticator: Authenticator,
    rules: Rules,
    stored: Stored,
    acts: HashMap<Act, Count>,
    /// What each JWT claimed, by its credential's id; and by its identity
    /// what its latest one did.
    claims: HashMap<Arc<str>, Map<String, Value>>,
    latest: HashMap<Identity, (Timestamp, Arc<str>)>,
}

#[derive(Clone, Copy, Debug)]
struct Count {
    times: u64,
    last_at: Timestamp,
}

/// What becomes of it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Fate {
    /// It was allowed, and would be refused.
    Lost,
    /// It was refused, and would be allowed.
    Gained,
    /// It was allowed, and what it went by is not recorded here.
    Unknown,
}

impl Fate {
    /// As it is shown.
    #[must_use]
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Lost => "lost",
            Self::Gained => "gained",
            Self::Unknown => "unknown",
        }
    }
}

/// What changes for somebody.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Change {
    /// What becomes of it.
    pub fate: Fate,
    /// Who.
    pub identity: Identity,
    /// What: the permission, or else the RPC.
    pub what: Arc<str>,
    /// Where, of jobs and rules the first segment of their names; none is no
    /// single place.
    pub place: Option<Arc<str>>,
    /// How often it was recorded.
    pub times: u64,
    /// When it was recorded last.
    pub last_at: Timestamp,
    /// Why; where many names of a place have the same fate, the first of them.
    pub why: String,
}

impl Replay {
    /// Under the credentials and rules of a configuration.
    #[must_use]
    pub fn new(authenticator: Authenticator, table: Table, settings: &Settings) -> Self {
        let (declared, prefixes) =
            (settings.auth.extra_permissions.clone(), settings.rule_id_prefixes());
        Self {
            authenticator,
            rules: Rules { table, declared, prefixes },
            stored: Stored::new(settings),
            acts: HashMap::new(),
            claims: HashMap::new(),
            latest: HashMap::new(),
        }
    }

    /// Takes a record of an exchange of tokens alone: what came of it may have
    /// acted in the time that is replayed. False when it is none.
    pub fn take_exchange(&mut self, record: &str) -> bool {
        let Ok(record) = serde_json::from_str::<Recorded>(record) else { return false };
        self.exchanged(&record)
    }

    fn exchanged(&mut self, record: &Recorded) -> bool {
        let done = matches!(record.outcome, RecordedOutcome::Allowed) && record.rpc == EXCHANGE;
        let by = record.actor.as_ref().and_then(Actor::read).filter(|_| done);
        let (Some(by), Some(token)) = (by, &record.object) else { return false };
        let held = record.detail.as_ref().and_then(RecordedDetail::held);
        self.stored.trade(token, by, held);
        true
    }

    /// Takes a record of the audit, in any order; false when it says nothing
    /// about a decision.
    pub fn take(&mut self, record: &str) -> bool {
        let Ok(record) = serde_json::from_str::<Recorded>(record) else { return false };
        let actor = record.actor.as_ref().and_then(Actor::read);
        let (Some(actor), Some(at)) = (actor, read_time(&record.at)) else { return false };
        self.exchanged(&record);
        if record.rpc == CREDENTIAL {
            let claims = record.detail.and_then(|detail| detail.claims);
            return claims.is_some_and(|claims| {
                self.claimed(actor, claims, at);
                true
            });
        }
        let mut acts = Rules::questions(&record);
        acts.extend(self.rules.call(&record, &actor));
        let any = !acts.is_empty();
        for act in acts {
            let count = self.acts.entry(act).or_insert(Count { times: 0, last_at: at });
            count.times += 1;
            count.last_at = count.last_at.max(at);
        }
        any
    }

    fn claimed(&mut self, actor: Actor, claims: Map<String, Value>, at: Timestamp) {
        let Actor { identity, credential_id, .. } = actor;
        let latest =
            self.latest.entry(identity).or_insert_with(|| (at, Arc::clone(&credential_id)));
        if latest.0 <= at {
            *latest = (at, Arc::clone(&credential_id));
        }
        self.claims.insert(credential_id, claims);
    }

    /// Who would lose or gain what: what is lost first, then by identity.
    #[must_use]
    pub fn changes(&self) -> Vec<Change> {
        let mut changes: BTreeMap<_, Change> = BTreeMap::new();
        for (act, count) in &self.acts {
            let Some((fate, Miss { why, of_one })) = self.fate(act, count.last_at) else {
                continue;
            };
            let (what, identity, place) = (act.what(), shown_as(&act.actor), act.place.shown());
            // Names of one place are one change.
            let cause = if of_one { String::new() } else { why.clone() };
            let key = (fate, identity.clone(), Arc::clone(&what), place.clone(), cause);
            let change = changes.entry(key).or_insert_with(|| Change {
                fate,
                identity,
                what,
                place,
                times: 0,
                last_at: count.last_at,
                why: why.clone(),
            });
            change.times += count.times;
            change.last_at = change.last_at.max(count.last_at);
            if why < change.why {
                change.why = why;
            }
        }
        changes.into_values().collect()
    }

    /// What becomes of an act, and why; none where nothing does.
    fn fate(&self, act: &Act, at: Timestamp) -> Option<(Fate, Miss)> {
        let plain = |why: String| Miss { why, of_one: false };
        let gained = || plain("its grants have it now".to_owned());
        match (self.holder(act, at), act.was_allowed()) {
            (Holder::Same, _)
            | (Holder::Unknown(_) | Holder::Gone(_) | Holder::Perhaps(_), false) => None,
            (Holder::Unknown(why), true) => Some((Fate::Unknown, plain(why))),
            (Holder::Gone(why), true) => Some((Fate::Lost, plain(why))),
            (Holder::Now(principal), true) => {
                self.rules.judge(act, &principal).err().map(|miss| (Fate::Lost, miss))
            }
            (Holder::Now(principal), false) => {
                self.rules.judge(act, &principal).is_ok().then(|| (Fate::Gained, gained()))
            }
            (Holder::Perhaps(principal), true) => {
                let miss = self.rules.judge(act, &principal).err()?;
                let why = "the claims of its token are not in these records, and those of its \
                           latest one would not do";
                Some((Fate::Unknown, Miss { why: why.to_owned(), ..miss }))
            }
        }
    }

    /// Who somebody would be.
    fn holder(&self, act: &Act, at: Timestamp) -> Holder {
        let (identity, authenticator) = (&act.actor, &self.authenticator);
        let gone = |what: &str| Holder::Gone(format!("{what} is not in the configuration"));
        match identity.source {
            // They count whether authentication is on or off.
            Source::Line => match authenticator.line_principal(&identity.subject) {
                Some(principal) => Holder::Now(principal),
                None if authenticator.line_open().is_some() => {
                    Holder::Now(Arc::new(Principal::auth_off()))
                }
                None => gone("the token"),
            },
            Source::Disabled if !authenticator.is_off() => {
                Holder::Gone("callers need a credential".to_owned())
            }
            Source::Disabled if authenticator.has_line_tokens() && act.is_of_scheduler() => {
                Holder::Gone("jobs and rules need a token of `controller.auth_file`".to_owned())
            }
            Source::Disabled => Holder::Same,
            // Everybody may do everything.
            _ if authenticator.is_off() => Holder::Now(Arc::new(Principal::auth_off())),
            Source::Config => {
                let keys = authenticator.configured_keys();
                let key = keys.into_iter().find(|key| key.id == act.credential);
                key.map_or_else(|| gone("the API key"), |key| Holder::Now(key.principal))
            }
            Source::Certificate => authenticator
                .certificate_principal(&identity.subject)
                .map_or_else(|| gone("a rule for the certificate's name"), Holder::Now),
            Source::Idp => self.claimant(act, at),
            Source::Database => self.stored.given_out(authenticator, act),
            Source::File => self.stored.of_file(act),
            Source::Lease => self.stored.of_step(act),
            // Their grants lie in the store, which stays as it is.
            Source::Agent | Source::Session => Holder::Same,
        }
    }

    /// Who calls with a JWT: by what it claimed, or else what its subject's
    /// latest one did.
    fn claimant(&self, act: &Act, at: Timestamp) -> Holder {
        let own = self.claims.get(&act.credential);
        let last = || self.claims.get(&self.latest.get(&act.actor)?.1);
        let Some(claims) = own.or_else(last) else {
            return Holder::Unknown("the claims of its token are not in these records".to_owned());
        };
        match self.authenticator.judged(claims, Arc::clone(&act.credential), at) {
            Ok(principal) if own.is_some() => Holder::Now(Arc::new(principal)),
            Ok(principal) => Holder::Perhaps(Arc::new(principal)),
            Err(fault) => Holder::Gone(format!("its tokens are refused: {fault}")),
        }
    }
}

/// Who somebody would be under the changed configuration.
enum Holder {
    /// It does not depend on the configuration.
    Same,
    /// This one.
    Now(Arc<Principal>),
    /// This one, unless the credential was another than its latest.
    Perhaps(Arc<Principal>),
    /// Nobody; why.
    Gone(String),
    /// That cannot be told; why.
    Unknown(String),
}

/// Each attempt of each step is somebody of its own; what they lose, those of
/// a namespace lose together.
fn shown_as(actor: &Identity) -> Identity {
    let place = actor.subject.split_once('/').filter(|_| actor.source == Source::Lease);
    let subject = place.map_or_else(|| Arc::clone(&actor.subject), |(place, _)| place.into());
    Identity { subject, ..actor.clone() }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use prost_reflect::DescriptorPool;
    use serde_json::json;

    use super::*;
    use crate::{config::Settings, pb};

    const AT: &str = "2026-11-20T08:00:00.000000Z";

    fn replay(auth: &str) -> Replay {
        let folder = tempfile::tempdir().unwrap();
        let pair = crate::authn::tokens::generate(crate::authn::tokens::KeyKind::Ed25519).unwrap();
        std::fs::write(folder.path().join("key.pem"), pair.public).unwrap();
        let path = folder.path().join("new.toml");
        std::fs::write(&path, auth).unwrap();
        let settings = Settings::load(Some(&path), []).unwrap();
        let pool = DescriptorPool::decode(pb::FILE_DESCRIPTOR_SET).unwrap();
        let table = Table::from_pool(&pool, &BTreeSet::default()).unwrap();
        Replay::new(Authenticator::new(&settings.auth).unwrap(), table, &settings)
    }

    fn key_id(key: &str) -> String {
        use sha2::Digest as _;
        let digest: [u8; 32] = sha2::Sha256::digest(key.as_bytes()).into();
        crate::domain::secret::id_of_stranger(&digest).to_string()
    }

    fn record(
        actor: &Value,
        rpc: &str,
        permission: &str,
        outcome: &str,
        namespace: &Value,
    ) -> String {
        let reason = (outcome == "denied").then_some("PERMISSION_MISSING");
        json!({
            "at": AT, "rpc": format!("bailiwick.v1.TaskService/{rpc}"), "outcome": outcome,
            "reason": reason, "actor": actor, "permission": permission, "namespace": namespace,
        })
        .to_string()
    }

    fn config_key(key: &str) -> Value {
        json!({"source": "config", "subject": "ci", "method": "api_key", "credential": key_id(key)})
    }

    fn shown(replay: &Replay) -> Vec<String> {
        let place = |change: &Change| change.place.as_deref().unwrap_or("-").to_owned();
        let changes = replay.changes();
        let line = |one: &Change| {
            format!(
                "{} {} {} {} x{}",
                one.fate.as_str(),
                one.identity,
                one.what,
                place(one),
                one.times
            )
        };
        changes.iter().map(line).collect()
    }

    #[test]
    fn se_41_what_went_by_rights_for_a_while_is_no_loss() {
        let mut replay = replay(
            "[auth]\nenabled = true\n[[auth.api_keys]]\nkey = \"k-ci\"\ndescription = \"ci\"\n\
             permissions = [\"steps:read\"]\n",
        );
        let whole = record(&config_key("k-ci"), "ListTasks", "tasks:list", "allowed", &Value::Null);
        let mut elevated: Value = serde_json::from_str(&whole).unwrap();
        elevated["elevated"] = json!(true);
        assert!(!replay.take(&elevated.to_string()));
        assert!(shown(&replay).is_empty());
        assert!(replay.take(&whole));
        assert_eq!(shown(&replay), ["lost config:ci tasks:list - x1"]);
    }

    #[test]
    fn se_41_a_key_that_holds_less_loses_and_one_that_holds_more_gains() {
        let mut replay = replay(
            "[auth]\nenabled = true\n[[auth.api_keys]]\nkey = \"k-ci\"\ndescription = \"renamed\"\n\
             permissions = [\"tasks:read\", \"tasks:list\"]\nnamespaces = [\"shop\"]\n",
        );
        let ci = config_key("k-ci");
        for (rpc, permission, outcome, place) in [
            ("GetTask", "tasks:read", "allowed", json!("shop")),
            ("GetTask", "tasks:read", "allowed", json!("till")),
            ("GetTask", "tasks:read", "allowed", json!("till")),
            ("CreateTask", "tasks:create", "allowed", json!("shop")),
            ("ListTasks", "tasks:list", "denied", Value::Null),
            ("CancelTask", "tasks:cancel", "denied", Value::Null),
        ] {
            assert!(replay.take(&record(&ci, rpc, permission, outcome, &place)));
        }
        let gone = config_key("k-gone");
        assert!(replay.take(&record(&gone, "GetTask", "tasks:read", "allowed", &json!("shop"))));
        assert_eq!(
            shown(&replay),
            [
                "lost config:ci tasks:create shop x1",
                "lost config:ci tasks:read shop x1",
                "lost config:ci tasks:read till x2",
                "gained config:ci tasks:list - x1",
            ]
        );
    }

    #[test]
    fn se_41_tokens_are_judged_by_the_claims_that_were_recorded() {
        let mut replay = replay(
            "[auth]\nenabled = true\njwt_public_key_path = \"key.pem\"\njwt_issuer = \"idp\"\n\
             jwt_audience = \"api\"\n[auth.roles.clerk]\npermissions = [\"tasks:read\"]\n",
        );
        let actor = |subject: &str, id: &str| {
            json!({"source": "idp", "issuer": "idp", "subject": subject, "method": "jwt",
                   "credential": id})
        };
        let claims = json!({"iss": "idp", "sub": "ada", "aud": "api", "iat": 1_795_161_500,
            "exp": 1_795_165_500, "permissions": ["role:clerk"], "namespaces": ["shop"]});
        let seen = json!({"at": AT, "rpc": "credential", "outcome": "allowed",
            "actor": actor("ada", "t1"), "detail": {"claims": claims}});
        assert!(replay.take(&seen.to_string()));
        let ada = actor("ada", "t1");
        assert!(replay.take(&record(&ada, "GetTask", "tasks:read", "allowed", &json!("shop"))));
        assert!(replay.take(&record(
            &ada,
            "CreateTask",
            "tasks:create",
            "allowed",
            &json!("shop")
        )));
        let eve = actor("eve", "t2");
        assert!(replay.take(&record(&eve, "GetTask", "tasks:read", "allowed", &json!("shop"))));
        assert_eq!(
            shown(&replay),
            ["lost idp:idp#ada tasks:create shop x1", "unknown idp:idp#eve tasks:read shop x1"]
        );
    }

    fn given_out(method: &str, id: &str) -> Value {
        json!({"source": "database", "subject": id, "method": method, "credential": id})
    }

    fn trade(token: &str, by: &Value) -> String {
        json!({"at": AT, "rpc": EXCHANGE, "outcome": "allowed", "actor": by, "object": token})
            .to_string()
    }

    /// The same with what it holds.
    fn traded(by: &Value, scopes: &[&str], places: &[&str]) -> String {
        let mut record: Value = serde_json::from_str(&trade("traded", by)).unwrap();
        record["detail"] = json!({"change": "given out", "scopes": scopes, "namespaces": places});
        record.to_string()
    }

    #[test]
    fn se_41_keys_that_were_given_out_count_where_the_settings_take_them() {
        for (setting, wanted) in [
            ("", &[][..]),
            (
                "api_keys_enabled = false\n",
                &["lost database:key tasks:read shop x1", "lost database:later tasks:read shop x1"],
            ),
            (
                "token_store = \"file\"\ntoken_file = \"tokens\"\n",
                &["lost database:minted tasks:read shop x1"],
            ),
        ] {
            let mut replay = replay(&format!("[auth]\nenabled = true\n{setting}"));
            // What a key was traded for, twice, ends with it.
            assert!(replay.take_exchange(&trade("first", &given_out("api_key", "key"))));
            assert!(replay.take_exchange(&trade("later", &given_out("token", "first"))));
            for (method, id) in [("api_key", "key"), ("token", "minted"), ("token", "later")] {
                let actor = given_out(method, id);
                let one = record(&actor, "GetTask", "tasks:read", "allowed", &json!("shop"));
                assert!(!replay.take_exchange(&one));
                assert!(replay.take(&one));
            }
            assert_eq!(shown(&replay), wanted, "{setting}");
        }
    }

    #[test]
    fn se_41_what_was_traded_counts_within_what_its_origin_may_have() {
        let jwt = "jwt_public_key_path = \"key.pem\"\njwt_audience = \"api\"\n";
        let issuer = |name: &str, more: &str| {
            format!("[auth]\nenabled = true\n{jwt}jwt_issuer = \"{name}\"\n{more}")
        };
        let bounded = |more: &str| {
            format!(
                "[auth]\nenabled = true\n[[auth.issuers]]\nissuer = \"idp\"\naudience = \"api\"\n\
                 public_key_path = \"key.pem\"\n{more}\n"
            )
        };
        let ada = json!({"source": "idp", "issuer": "idp", "subject": "ada", "method": "jwt",
                         "credential": "t1"});
        let ci = config_key("k-ci");
        let keys = |permissions: &str| {
            format!(
                "[[auth.api_keys]]\nkey = \"k-ci\"\ndescription = \"ci\"\npermissions = {permissions}\n"
            )
        };
        let (used, more) = (&["tasks:read"][..], &["tasks:read", "tasks:list"][..]);
        let (shop, both) = (&["shop"][..], &["shop", "till"][..]);
        for (auth, by, held, wanted) in [
            (issuer("idp", ""), &ada, Some((used, shop)), ""),
            (issuer("idp", ""), &ada, None, ""),
            (issuer("other", ""), &ada, Some((used, shop)), "lost"),
            (bounded("namespaces_ceiling = [\"till\"]"), &ada, Some((used, shop)), "lost"),
            (bounded("namespaces_ceiling = [\"till\"]"), &ada, None, "lost"),
            (bounded("permissions_ceiling = [\"tasks:create\"]"), &ada, None, "lost"),
            (bounded("permissions_ceiling = [\"tasks:read\"]"), &ada, Some((used, shop)), ""),
            // It ends as a whole, by what it never used.
            (bounded("permissions_ceiling = [\"tasks:read\"]"), &ada, Some((more, shop)), "lost"),
            (bounded("permissions_ceiling = [\"tasks:read\"]"), &ada, None, "unknown"),
            (bounded("namespaces_ceiling = [\"shop\"]"), &ada, Some((used, both)), "lost"),
            (bounded(""), &ada, None, ""),
            (issuer("idp", ""), &ci, Some((used, shop)), "lost"),
            (issuer("idp", &keys("[\"tasks:read\"]")), &ci, Some((used, shop)), ""),
            (issuer("idp", &keys("[\"tasks:read\"]")), &ci, Some((more, shop)), "lost"),
            (issuer("idp", &keys("[\"tasks:read\"]")), &ci, None, "unknown"),
            (issuer("idp", &keys("[\"*\"]")), &ci, None, ""),
            (issuer("idp", &keys("[\"tasks:list\"]")), &ci, None, "lost"),
            (issuer("idp", &keys("[\"*\"]")), &ci, Some((&["x:y"][..], shop)), "lost"),
        ] {
            let mut replay = replay(&auth);
            let exchange = held
                .map_or_else(|| trade("traded", by), |(scopes, places)| traded(by, scopes, places));
            assert!(replay.take_exchange(&exchange));
            let actor = given_out("token", "traded");
            let one = record(&actor, "GetTask", "tasks:read", "allowed", &json!("shop"));
            assert!(replay.take(&one));
            let changes = replay.changes();
            let fates: Vec<&str> = changes.iter().map(|one| one.fate.as_str()).collect();
            assert_eq!(fates.concat(), wanted, "{auth} {held:?}: {changes:?}");
        }
    }

    /// A record of the scheduler, with what else it says.
    fn of_jobs(actor: &Value, rpc: &str, permission: &str, more: &Value) -> String {
        let mut record = json!({"at": AT, "rpc": rpc, "actor": actor, "permission": permission,
                                "outcome": "allowed"});
        for (name, value) in more.as_object().unwrap() {
            record[name] = value.clone();
        }
        record.to_string()
    }

    fn deploy_key(places: &str, permissions: &str) -> String {
        format!(
            "[auth]\nenabled = true\nextra_permissions = [\"bundles:read\"]\n\
             [[auth.api_keys]]\nkey = \"k-ci\"\ndescription = \"ci\"\n\
             namespaces = [{places}]\npermissions = [{permissions}]\n"
        )
    }

    const SCHEDULE: &str = "bailiwick.v1.ScheduleService/";

    #[test]
    fn se_41_jobs_and_rules_are_judged_by_their_names() {
        let all = "\"schedules:*\", \"rules:*\"";
        let ci = config_key("k-ci");
        let job = |id: &str| json!({"namespace": id.split('.').next(), "object": id});
        let set =
            |id: &str| of_jobs(&ci, &format!("{SCHEDULE}SetJob"), "schedules:write", &job(id));
        let read = of_jobs(
            &ci,
            &format!("{SCHEDULE}GetJob"),
            "schedules:read",
            &json!({"namespace": "deploy"}),
        );
        let rule = of_jobs(
            &ci,
            &format!("{SCHEDULE}SetRule"),
            "rules:write",
            &json!({"namespace": "rule", "object": "rule.deploy.r"}),
        );
        let invalid = of_jobs(
            &ci,
            &format!("{SCHEDULE}SetJob"),
            "schedules:write",
            &json!({"outcome": "failed", "reason": "FIELD_INVALID", "object": "away"}),
        );
        for (places, wanted) in [
            ("\"deploy.\"", &[][..]),
            (
                "\"deploy.web\"",
                &[
                    "lost config:ci rules:write deploy x1",
                    "lost config:ci schedules:write deploy x2",
                ],
            ),
            (
                "\"ship.\"",
                &[
                    "lost config:ci rules:write deploy x1",
                    "lost config:ci schedules:read deploy x1",
                    "lost config:ci schedules:write deploy x3",
                ],
            ),
        ] {
            let mut replay = replay(&deploy_key(places, all));
            for one in [&set("deploy.web.1"), &set("deploy.b"), &set("deploy.a"), &read, &rule] {
                assert!(replay.take(one));
            }
            assert!(replay.take(&invalid));
            assert_eq!(shown(&replay), wanted, "{places}");
            let first = replay.changes().into_iter().find(|one| &*one.what == "schedules:write");
            assert!(first.is_none_or(|one| one.why.contains("over `deploy.a`")), "{places}");
        }
    }

    #[test]
    fn se_41_what_was_refused_is_gained_where_that_very_thing_is_held_now() {
        let ci = config_key("k-ci");
        let refused = |rpc: &str, permission: &str, reason: &str, more: Value| {
            let mut more = more;
            more["outcome"] = json!("denied");
            more["reason"] = json!(reason);
            of_jobs(&ci, rpc, permission, &more)
        };
        let (set_job, set_rule) = (format!("{SCHEDULE}SetJob"), format!("{SCHEDULE}SetRule"));
        let outside = "NAMESPACE_NOT_FOUND";
        let missing = "PERMISSION_MISSING";
        let job = json!({"asked": ["backup.x"], "object": "backup.x"});
        let rule = |asked: &str| json!({"asked": [asked], "object": "rule.deploy.r"});
        let create = "bailiwick.v1.TaskService/CreateTask";
        let records = [
            refused(&set_job, "schedules:write", outside, job),
            refused(&set_rule, "tasks:create", missing, rule("shop")),
            refused(&set_rule, "commands:execute", missing, rule("deploy.web")),
            // By who set it before, which no record says.
            refused(&set_rule, "rules:write", outside, rule("deploy.r")),
            refused(&set_rule, "rules:write", outside, rule("backup.")),
            refused(create, "tasks:create", outside, json!({"asked": ["shop"]})),
            refused(create, "tasks:update", missing, json!({})),
            refused("bailiwick.v1.AccessService/WhoAmI", "audit:read", missing, json!({})),
        ];
        let all = "\"schedules:*\", \"rules:*\", \"tasks:create\", \"commands:execute\"";
        for (places, permissions, wanted) in [
            ("\"deploy.\"", "\"schedules:*\", \"rules:*\", \"tasks:list\"", &[][..]),
            ("\"deploy.\"", all, &["gained config:ci commands:execute deploy.web x1"]),
            (
                "\"deploy.\", \"shop\", \"backup.\"",
                all,
                &[
                    "gained config:ci commands:execute deploy.web x1",
                    "gained config:ci rules:write backup. x1",
                    "gained config:ci schedules:write backup x1",
                    "gained config:ci tasks:create shop x2",
                ],
            ),
        ] {
            let mut replay = replay(&deploy_key(places, permissions));
            for one in &records {
                assert!(replay.take(one), "{one}");
            }
            assert_eq!(shown(&replay), wanted, "{places} {permissions}");
        }
        let mut silent = replay(&deploy_key("\"*\"", "\"*\""));
        assert!(!silent.take(&refused(&set_job, "schedules:write", outside, json!({}))));
        assert!(!silent.take(&refused(&set_job, "schedules:write", "NOT_FOUND", json!({}))));
    }

    #[test]
    fn se_41_whom_a_proxy_would_shut_out_is_listed() {
        let asked = |permission: &str, place: Value, verdict: &str| {
            let mut question = json!({"permission": permission, "verdict": verdict});
            if !place.is_null() {
                question["namespace"] = place;
            }
            question
        };
        let key = config_key("k-ci");
        let judged = json!({
            "source": "config", "subject": "ci", "method": "api_key",
            "credential": key["credential"], "active": true,
            "questions": [
                asked("bundles:read", json!("shop"), "allowed"),
                asked("tasks:read", Value::Null, "allowed"),
                asked("tasks:list", json!("till"), "namespace_not_held"),
                asked("maps:read", Value::Null, "permission_unknown"),
                asked("bundles:read", json!("shop"), "route_invalid"),
            ],
        });
        let unknown = json!({"active": false, "questions": [
            asked("bundles:read", json!("shop"), "token_inactive")]});
        let asker = given_out("token", "gateway");
        let record = json!({"at": AT, "rpc": "envoy.service.auth.v3.Authorization/Check",
            "outcome": "allowed", "actor": asker, "permission": "tokens:introspect",
            "detail": {"judged": [judged, unknown]}});
        for (places, permissions, wanted) in [
            ("\"shop\"", "\"bundles:read\", \"tasks:read\"", &[][..]),
            (
                "\"till\"",
                "\"bundles:read\", \"tasks:list\"",
                &[
                    "lost config:ci bundles:read shop x1",
                    "lost config:ci tasks:read - x1",
                    "gained config:ci tasks:list till x1",
                ],
            ),
        ] {
            let mut replay = replay(&deploy_key(places, permissions));
            assert!(replay.take(&record.to_string()));
            assert_eq!(shown(&replay), wanted, "{places} {permissions}");
        }
        let mut without = replay("[auth]\nenabled = true\n");
        assert!(without.take(&record.to_string()));
        assert_eq!(shown(&without).len(), 2, "{:?}", shown(&without));
        // A credential that counted when it was looked at.
        let seen = json!({"at": AT, "rpc": "bailiwick.v1.AccessService/Introspect",
            "outcome": "allowed", "actor": asker, "permission": "tokens:introspect",
            "detail": {"judged": [{"source": "config", "subject": "ci", "method": "api_key",
                "credential": key["credential"], "active": true}]}});
        let mut gone = replay("[auth]\nenabled = true\n");
        assert!(gone.take(&seen.to_string()));
        let wanted = "lost config:ci bailiwick.v1.AccessService/Introspect - x1";
        assert_eq!(shown(&gone), [wanted]);
    }

    #[test]
    fn se_41_a_later_token_says_nothing_certain_of_an_earlier_one() {
        let jwt =
            "jwt_public_key_path = \"key.pem\"\njwt_issuer = \"idp\"\njwt_audience = \"api\"\n";
        let mut replay = replay(&format!("[auth]\nenabled = true\n{jwt}"));
        let actor = |id: &str| {
            json!({"source": "idp", "issuer": "idp", "subject": "ada",
                                      "method": "jwt", "credential": id})
        };
        let claims = json!({"iss": "idp", "sub": "ada", "aud": "api", "iat": 1_795_161_500,
            "exp": 1_795_165_500, "permissions": ["tasks:read"], "namespaces": ["shop"]});
        let seen = json!({"at": AT, "rpc": "credential", "outcome": "allowed",
            "actor": actor("late"), "detail": {"claims": claims}});
        assert!(replay.take(&seen.to_string()));
        for (permission, outcome) in
            [("tasks:read", "allowed"), ("tasks:create", "allowed"), ("tasks:read", "denied")]
        {
            let one = record(&actor("early"), "GetTask", permission, outcome, &json!("shop"));
            assert!(replay.take(&one));
        }
        assert_eq!(shown(&replay), ["unknown idp:idp#ada tasks:create shop x1"]);
    }

    #[test]
    fn se_41_tokens_of_steps_count_within_the_settings_and_are_unknown_beyond() {
        let url = "[server]\npublic_url = \"https://b.example\"\n[auth]\nenabled = true\n";
        let ceiling =
            format!("{url}[[auth.namespaces]]\nprefix = \"shop\"\nceiling = [\"tasks:create\"]\n");
        for (settings, wanted) in [
            ("[auth]\nenabled = true\n", "lost lease:step:shop tasks:read shop x2"),
            (url, "unknown lease:step:shop tasks:read shop x2"),
            (&ceiling, "lost lease:step:shop tasks:read shop x2"),
        ] {
            let mut replay = replay(settings);
            for task in ["t1", "t2"] {
                let subject = format!("step:shop/{task}/charge");
                let actor = json!({"source": "lease", "subject": subject, "method": "jwt",
                                   "credential": format!("{task}#1")});
                let one = record(&actor, "GetTask", "tasks:read", "allowed", &json!("shop"));
                assert!(replay.take(&one));
            }
            assert_eq!(shown(&replay), [wanted], "{settings}");
        }
    }

    #[test]
    fn se_41_lines_of_the_token_file_are_read_where_it_is() {
        let actor = |id: &str| json!({"source": "file", "subject": id, "method": "token", "credential": id});
        let take = |replay: &mut Replay, id: &str| {
            replay.take(&record(&actor(id), "GetTask", "tasks:read", "allowed", &json!("shop")))
        };
        let mut gone = replay("[auth]\nenabled = true\n");
        assert!(take(&mut gone, "old"));
        assert_eq!(shown(&gone), ["lost file:old tasks:read shop x1"]);
        let file = "[auth]\nenabled = true\ntoken_store = \"file\"\ntoken_file = \"tokens\"\n";
        let mut elsewhere = replay(file);
        assert!(take(&mut elsewhere, "old"));
        assert_eq!(shown(&elsewhere), ["unknown file:old tasks:read shop x1"]);

        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("tokens");
        let line = crate::storage::token_file::line(
            "swordfish",
            &["tasks:list".to_owned()],
            None,
            Timestamp::from_seconds(1),
        );
        std::fs::write(&path, line).unwrap();
        let here = file.replace("\"tokens\"", &format!("{:?}", path.to_str().unwrap()));
        let mut here = replay(&here);
        for id in ["old", &key_id("swordfish")] {
            assert!(take(&mut here, id));
        }
        let changes = here.changes();
        let whys: Vec<&str> = changes.iter().map(|one| one.why.as_str()).collect();
        assert!(whys.contains(&"the token is not in the token file"), "{whys:?}");
        assert!(whys.iter().any(|why| why.contains("does not hold `tasks:read`")), "{whys:?}");
    }

    #[test]
    fn se_41_turning_authentication_on_takes_all_from_everybody() {
        let mut replay = replay("[auth]\nenabled = true\n");
        let nobody = json!({"source": "disabled", "subject": "anonymous", "method": "none"});
        assert!(replay.take(&record(&nobody, "GetTask", "tasks:read", "allowed", &json!("shop"))));
        assert!(!replay.take("{\"at\":\"x\"}"));
        assert!(!replay.take("no JSON"));
        assert_eq!(shown(&replay), ["lost disabled:anonymous tasks:read shop x1"]);
    }
}
