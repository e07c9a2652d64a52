use std::{
    collections::{BTreeMap, BTreeSet},
    time::Duration,
};

use proptest::prelude::*;
use prost_reflect::DescriptorPool;

use super::*;
use crate::{
    access::decisions::{By, Decision},
    authn::Authenticator,
    authz,
    config::{self, Auth, Rates},
    domain::{
        Clock, Namespace, PermissionSet, audit::Origin, permission::right::TasksCreate,
        principal::Source,
    },
    engine::Floor,
    pb,
    storage::{
        AuditDraft, AuditStore as _, LeaseTerms, Store,
        sqlite::{Settings, Sqlite},
    },
};

const PLACES: [&str; 6] = ["shop", "shop.eu", "shop.eu.vat", "shopping", "till", "till.a"];
const SCOPES: [&str; 8] = ["*", "shop", "shop.", "shop.eu", "till", "till.", "shopping", "other"];

#[derive(Debug)]
struct Still;

impl Clock for Still {
    fn now(&self) -> Timestamp {
        Timestamp::from_seconds(1_800_000_000)
    }
}

fn explainer() -> Explainer {
    explainer_over(None)
}

fn explainer_over(store: Option<Arc<dyn Store>>) -> Explainer {
    let auth = Auth {
        mode: config::Mode::Off,
        extra_permissions: BTreeSet::new(),
        jwt_token_expiry: Duration::from_hours(1),
        token_store: config::TokenStore::Database,
        disable_unused_after_days: None,
    };
    let authenticator = Authenticator::new(&auth).unwrap();
    let gate = Gate::new(authenticator, store, &Rates::default(), Arc::new(Still), None);
    let pool = DescriptorPool::decode(pb::FILE_DESCRIPTOR_SET).unwrap();
    let table = Table::from_pool(&pool, &BTreeSet::default()).unwrap();
    Explainer::new(gate, Arc::new(table), Roles::default())
}

fn grant(permissions: &[Permission], scope: &str) -> Grant {
    let mut set = PermissionSet::empty();
    for permission in permissions {
        assert!(set.add(permission.name(), &BTreeSet::new()));
    }
    Grant { permissions: set, scope: Scope::parse(&[scope]).unwrap() }
}

fn principals() -> impl Strategy<Value = Principal> {
    let permissions = prop::collection::vec(prop::sample::select(Permission::ALL), 0..4);
    let one = (permissions, prop::sample::select(&SCOPES[..]))
        .prop_map(|(permissions, scope)| grant(&permissions, scope));
    let worker = prop::option::weighted(0.2, prop::sample::select(&SCOPES[1..]));
    (prop::collection::vec(one, 0..4), worker).prop_map(|(grants, worker)| {
        let mut principal = Principal::auth_off();
        principal.identity = Identity {
            source: Source::Idp,
            issuer: "https://idp.example".into(),
            subject: "ada".into(),
        };
        principal.grants = grants;
        principal.worker_scope = worker.map(|scope| Scope::parse(&[scope]).unwrap());
        principal
    })
}

/// Whether a call passes: at the gate, and where it aims.
fn refusal(rule: &MethodRule, principal: &Principal, place: &Namespace) -> Option<Reason> {
    if let Err(denial) = decide(rule, principal) {
        return Some(match denial {
            Denial::Root => Reason::RootRequired,
            Denial::Permission(_) | Denial::Node | Denial::Step => Reason::PermissionMissing,
        });
    }
    let Rule::Permission { permission, mode: Mode::Namespace(_) } = &rule.rule else { return None };
    let may = principal.may(*permission, place);
    if *permission == Permission::TasksCreate {
        let (principal, id) = (Arc::new(principal.clone()), RequestId::from_random([3; 16]));
        let origin = Arc::new(Origin::new(principal, "rpc".into(), id));
        let proof = authz::claim::<TasksCreate>(&origin).and_then(|claim| claim.permit(place));
        assert_eq!(proof.is_some(), may, "the proof says the same");
    }
    (!may).then_some(Reason::NamespaceNotFound)
}

fn explained(
    explainer: &Explainer,
    rule: &MethodRule,
    principal: &Principal,
    place: &Namespace,
    reason: Reason,
) -> Explanation {
    let request = RequestId::from_random(rand::random());
    let permission = match rule.rule {
        Rule::Permission { permission, .. } => Some(permission),
        Rule::Public(_) | Rule::Authenticated(_) | Rule::Root | Rule::Node => None,
    };
    let principal = Arc::new(principal.clone());
    let origin =
        Origin { permission, ..Origin::new(principal, Arc::clone(&rule.full_name), request) };
    if reason == Reason::NamespaceNotFound {
        origin.asked_for([place.as_str()]);
    }
    explainer.gate.0.decisions.note(Decision {
        at: Timestamp::from_seconds(1),
        by: By::Caller(Arc::new(origin)),
        outcome: Outcome::Denied,
        reason: Some(reason_name(reason).into()),
        object: None,
    });
    let runtime = tokio::runtime::Builder::new_current_thread().enable_time().build().unwrap();
    let root = Principal::auth_off();
    runtime.block_on(explainer.explain(&root, &request.to_string())).unwrap()
}

fn with(principal: &Principal, permission: Permission, places: &[String]) -> Principal {
    let mut wider = principal.clone();
    let mut given = grant(&[permission], "*");
    given.scope = Scope::parse(places).unwrap();
    wider.grants.push(given);
    wider
}

/// Follows the proposals until the call passes; each must be the smallest.
fn follow(
    explainer: &Explainer,
    rule: &MethodRule,
    principal: Principal,
    place: &Namespace,
) -> Result<(), TestCaseError> {
    let mut principal = principal;
    for _ in 0..2 {
        let Some(reason) = refusal(rule, &principal, place) else { return Ok(()) };
        let told = explained(explainer, rule, &principal, place, reason);
        prop_assert!(told.complete);
        let Some(suggestion) = told.suggestion else {
            let cut = !told.limits.is_empty();
            prop_assert!(cut || matches!(told.decider, Decider::Root | Decider::Node), "{told:?}");
            return Ok(());
        };
        let named = suggestion.namespaces.clone();
        let permission = Permission::parse(&suggestion.permission).unwrap();
        let places = if named.is_empty() { vec![place.to_string()] } else { named };
        let helped = |wider: &Principal| {
            let passes = refusal(rule, wider, place).is_none();
            passes || suggestion.assumed && decide(rule, wider).is_ok()
        };
        let wider = with(&principal, permission, &places);
        // The claim `worker_namespaces` is seen once the namespace is.
        let narrowed = wider.worker_scope.is_some() && permission == Permission::WorkLease;
        prop_assert!(helped(&wider) || narrowed, "{told:?}", told = suggestion);
        for other in Permission::ALL.iter().filter(|other| **other != permission) {
            prop_assert!(!helped(&with(&principal, *other, &places)), "{other} would do");
        }
        if !suggestion.assumed && rule_aims(rule) {
            for smaller in [format!("{place}."), format!("{place}.x")] {
                prop_assert!(!helped(&with(&principal, permission, &[smaller])));
            }
        }
        if places == ["*"] {
            for scope in &SCOPES[1..] {
                let scope = [(*scope).to_owned()];
                prop_assert!(!helped(&with(&principal, permission, &scope)));
            }
        }
        if !suggestion.assumed || narrowed {
            return Ok(());
        }
        principal = wider;
    }
    prop_assert!(refusal(rule, &principal, place).is_none(), "two proposals were not enough");
    Ok(())
}

fn rule_aims(rule: &MethodRule) -> bool {
    matches!(&rule.rule, Rule::Permission { mode: Mode::Namespace(_), .. })
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 1_000, ..ProptestConfig::default() })]

    #[test]
    fn se_41_the_proposed_grant_is_the_smallest_that_lets_the_call_pass(
        principal in principals(),
        method in any::<prop::sample::Index>(),
        place in prop::sample::select(&PLACES[..]),
    ) {
        thread_local! { static EXPLAINER: Explainer = explainer(); }
        EXPLAINER.with(|explainer| {
            let rules: Vec<_> = explainer.table.iter().cloned().collect();
            let place = Namespace::parse(place).unwrap();
            let rule: &Arc<MethodRule> = method.get(&rules);
            follow(explainer, rule, principal, &place)
        })?;
    }
}

#[test]
fn the_smallest_scope_of_a_job_ends_before_its_last_dot_that_can_be_a_namespace() {
    let cases = BTreeMap::from([
        ("shop", "shop"),
        ("shop.eu", "shop.eu"),
        ("shop.", "shop."),
        ("shop.eu/job 1", "shop."),
        ("shop.eu.a b", "shop.eu."),
        ("a b", "*"),
        ("*", "*"),
    ]);
    let nobody = Principal { grants: Vec::new(), ..Principal::auth_off() };
    for (place, wanted) in cases {
        let places = [Arc::from(place)];
        let found = missing(&nobody, "schedules:read", &places, false).unwrap();
        assert_eq!(found.namespaces, [wanted], "{place}");
        let scope = Scope::parse(&found.namespaces).unwrap();
        assert!(known::covers(&scope, place), "{place}");
    }
}

#[tokio::test]
async fn se_41_one_look_through_the_audit_at_a_time_and_none_is_waited_for_long() {
    let folder = tempfile::tempdir().unwrap();
    let settings = Settings::new(folder.path().join("bailiwick.db"))
        .with_terms(LeaseTerms::lasting(Duration::from_mins(1)));
    let store = Sqlite::open(settings, Floor::new(), Arc::new(Still)).await.unwrap();
    let request = RequestId::from_random([7; 16]);
    let body = format!(
        "{{\"at\":\"2026-01-01T00:00:00.000000Z\",\"rpc\":\"bailiwick.v1.TaskService/ListTasks\",\
         \"outcome\":\"denied\",\"request_id\":\"{request}\"}}"
    );
    let draft = AuditDraft { chain: "*".into(), otherwise: None, body: body.into() };
    store.append_audit(vec![draft]).await.unwrap();
    let explainer = explainer_over(Some(store));
    let asker = Principal::auth_off();
    assert!(explainer.recorded(&asker, request).await.unwrap().is_some());
    // Somebody else's goes on and on.
    let held = explainer.scans.acquire().await.unwrap();
    let patience = Duration::from_secs(5);
    let (found, seen) = tokio::join!(
        tokio::time::timeout(patience, explainer.recorded(&asker, request)),
        tokio::time::timeout(patience, explainer.seen("alice")),
    );
    assert!(found.unwrap().unwrap().is_none(), "not known, as when time is up");
    assert!(seen.unwrap().unwrap().is_none());
    drop(held);
    assert!(explainer.recorded(&asker, request).await.unwrap().is_some());
}
