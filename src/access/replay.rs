//! What a changed configuration would have decided: recorded decisions are
//! run through its credentials and rules, to see who would lose or gain what.
//!
//! Not here: where the records come from, and how it is shown (`cli`).

mod stored;

use std::{
    collections::{BTreeMap, HashMap},
    sync::Arc,
};

use serde_json::{Map, Value};

use self::stored::Stored;
use super::{
    explain::{
        Actor,
        past::{CREDENTIAL, Recorded, RecordedOutcome, read_time},
    },
    gate::decide,
    refusal::{Reason, reason_name},
    table::{Rule, Table},
};
use crate::{
    authn::{Authenticator, known},
    config::Settings,
    domain::{
        Permission, Principal, Timestamp,
        principal::{Identity, Method, Source},
    },
};

/// How an exchange of tokens is called.
const EXCHANGE: &str = "bailiwick.v1.AuthAdminService/ExchangeToken";

/// A changed configuration, and what was recorded under the present one.
#[derive(Debug)]
pub struct Replay {
    authenticator: Authenticator,
    table: Table,
    stored: Stored,
    acts: HashMap<Act, Count>,
    /// What each JWT claimed, by its credential's id; and by its identity
    /// what its latest one did.
    claims: HashMap<Arc<str>, Map<String, Value>>,
    latest: HashMap<Identity, (Timestamp, Arc<str>)>,
}

/// What somebody did, or was refused.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
struct Act {
    actor: Identity,
    method: Method,
    credential: Arc<str>,
    rpc: Arc<str>,
    permission: Option<Permission>,
    place: Option<Arc<str>>,
    allowed: bool,
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
    /// Where; none is no single place.
    pub place: Option<Arc<str>>,
    /// How often it was recorded.
    pub times: u64,
    /// When it was recorded last.
    pub last_at: Timestamp,
    /// Why.
    pub why: String,
}

impl Replay {
    /// Under the credentials and rules of a configuration.
    #[must_use]
    pub fn new(authenticator: Authenticator, table: Table, settings: &Settings) -> Self {
        Self {
            authenticator,
            table,
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
        self.stored.trade(token, by);
        true
    }

    /// Takes a record of the audit, in any order; false when it says nothing
    /// about a decision.
    pub fn take(&mut self, record: &str) -> bool {
        let Ok(record) = serde_json::from_str::<Recorded>(record) else { return false };
        let actor = record.actor.as_ref().and_then(Actor::read);
        let (Some(actor), Some(at)) = (actor, read_time(&record.at)) else { return false };
        self.exchanged(&record);
        let Actor { identity, method, credential_id } = actor;
        if record.rpc == CREDENTIAL {
            let Some(claims) = record.detail.and_then(|detail| detail.claims) else { return false };
            let latest =
                self.latest.entry(identity).or_insert_with(|| (at, Arc::clone(&credential_id)));
            if latest.0 <= at {
                *latest = (at, Arc::clone(&credential_id));
            }
            self.claims.insert(credential_id, claims);
            return true;
        }
        // It went by rights that had an end, and no configuration gives them.
        if record.elevated {
            return false;
        }
        let refused_by_rule = || {
            [Reason::PermissionMissing, Reason::RootRequired]
                .into_iter()
                .any(|reason| record.reason.as_deref() == Some(reason_name(reason)))
        };
        let allowed = match record.outcome {
            RecordedOutcome::Allowed | RecordedOutcome::Failed => true,
            RecordedOutcome::Denied if refused_by_rule() => false,
            RecordedOutcome::Denied => return false,
        };
        let act = Act {
            actor: identity,
            method,
            credential: credential_id,
            rpc: record.rpc.into(),
            permission: record.permission.as_deref().and_then(Permission::parse),
            place: record.namespace.map(Into::into),
            allowed,
        };
        let count = self.acts.entry(act).or_insert(Count { times: 0, last_at: at });
        count.times += 1;
        count.last_at = count.last_at.max(at);
        true
    }

    /// Who would lose or gain what: what is lost first, then by identity.
    #[must_use]
    pub fn changes(&self) -> Vec<Change> {
        let mut changes: BTreeMap<_, Change> = BTreeMap::new();
        for (act, count) in &self.acts {
            let (fate, why) = match (self.holder(act, count.last_at), act.allowed) {
                (Holder::Same, _) | (Holder::Unknown(_) | Holder::Gone(_), false) => continue,
                (Holder::Unknown(why), true) => (Fate::Unknown, why),
                (Holder::Gone(why), true) => (Fate::Lost, why),
                (Holder::Now(principal), allowed) => match (self.verdict(act, &principal), allowed)
                {
                    (Ok(()), true) | (Err(_), false) => continue,
                    (Ok(()), false) => (Fate::Gained, "its grants have it now".to_owned()),
                    (Err(why), true) => (Fate::Lost, why),
                },
            };
            let what = act.permission.map_or_else(|| Arc::clone(&act.rpc), |one| one.name().into());
            let identity = shown_as(&act.actor);
            let key = (fate, identity.clone(), Arc::clone(&what), act.place.clone(), why.clone());
            let change = changes.entry(key).or_insert_with(|| Change {
                fate,
                identity,
                what,
                place: act.place.clone(),
                times: 0,
                last_at: count.last_at,
                why,
            });
            change.times += count.times;
            change.last_at = change.last_at.max(count.last_at);
        }
        changes.into_values().collect()
    }

    /// Who somebody would be.
    fn holder(&self, act: &Act, at: Timestamp) -> Holder {
        let identity = &act.actor;
        let gone = |what: &str| Holder::Gone(format!("{what} is not in the configuration"));
        match identity.source {
            Source::Disabled if self.authenticator.is_off() => Holder::Same,
            Source::Disabled => Holder::Gone("callers need a credential".to_owned()),
            // Everybody may do everything.
            _ if self.authenticator.is_off() => Holder::Now(Arc::new(Principal::auth_off())),
            Source::Config => {
                let keys = self.authenticator.configured_keys();
                let key = keys.into_iter().find(|key| key.id == act.credential);
                key.map_or_else(|| gone("the API key"), |key| Holder::Now(key.principal))
            }
            Source::Line => self
                .authenticator
                .line_principal(&identity.subject)
                .map_or_else(|| gone("the token"), Holder::Now),
            Source::Certificate => self
                .authenticator
                .certificate_principal(&identity.subject)
                .map_or_else(|| gone("a rule for the certificate's name"), Holder::Now),
            Source::Idp => {
                let last = || self.claims.get(&self.latest.get(identity)?.1);
                let Some(claims) = self.claims.get(&act.credential).or_else(last) else {
                    let why = "the claims of its token are not in these records";
                    return Holder::Unknown(why.to_owned());
                };
                match self.authenticator.judged(claims, Arc::clone(&act.credential), at) {
                    Ok(principal) => Holder::Now(Arc::new(principal)),
                    Err(fault) => Holder::Gone(format!("its tokens are refused: {fault}")),
                }
            }
            Source::Database => self.stored.given_out(&self.authenticator, act),
            Source::File => self.stored.of_file(act),
            Source::Lease => self.stored.of_step(act),
            // Their grants lie in the store, which stays as it is.
            Source::Agent | Source::Session => Holder::Same,
        }
    }

    /// What the rules would say, and why not.
    fn verdict(&self, act: &Act, principal: &Principal) -> Result<(), String> {
        let rule = self.table.get(&format!("/{}", act.rpc));
        if let Some(rule) = rule
            && decide(rule, principal).is_err()
        {
            return Err(match (&rule.rule, act.permission) {
                (Rule::Root, _) => "it is not root".to_owned(),
                (_, Some(permission)) => format!("it does not hold `{permission}`"),
                (_, None) => "the rule refuses it".to_owned(),
            });
        }
        let (Some(permission), Some(place)) = (act.permission, &act.place) else { return Ok(()) };
        if known::covers(&principal.scope_of(permission), place) {
            Ok(())
        } else {
            Err(format!("it does not hold `{permission}` in `{place}`"))
        }
    }
}

/// Who somebody would be under the changed configuration.
enum Holder {
    /// It does not depend on the configuration.
    Same,
    /// This one.
    Now(Arc<Principal>),
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
        for (auth, by, wanted) in [
            (issuer("idp", ""), &ada, 0),
            (issuer("other", ""), &ada, 1),
            (bounded("namespaces_ceiling = [\"till\"]"), &ada, 1),
            (bounded("permissions_ceiling = [\"tasks:create\"]"), &ada, 1),
            (bounded(""), &ada, 0),
            (issuer("idp", ""), &ci, 1),
            (issuer("idp", &keys("[\"tasks:read\"]")), &ci, 0),
            (issuer("idp", &keys("[\"tasks:list\"]")), &ci, 1),
        ] {
            let mut replay = replay(&auth);
            assert!(replay.take_exchange(&trade("traded", by)));
            let actor = given_out("token", "traded");
            assert!(replay.take(&record(
                &actor,
                "GetTask",
                "tasks:read",
                "allowed",
                &json!("shop")
            )));
            let changes = replay.changes();
            assert_eq!(changes.len(), wanted, "{auth}: {changes:?}");
            assert!(changes.iter().all(|one| one.why.contains("traded for")), "{changes:?}");
        }
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
