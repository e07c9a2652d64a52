#![expect(clippy::disallowed_methods, reason = "the runtime ends with the test")]

use std::{
    collections::BTreeSet,
    io,
    num::NonZeroU32,
    sync::{
        LazyLock, Mutex,
        atomic::{AtomicI64, Ordering},
    },
    time::Duration,
};

use http::{HeaderMap, HeaderName, HeaderValue};
use metrics_exporter_prometheus::PrometheusBuilder;
use prost_reflect::DescriptorPool;
use sha2::{Digest as _, Sha256};
use tracing::{Dispatch, subscriber::NoSubscriber};
use tracing_subscriber::fmt::MakeWriter;

use super::*;
use crate::{
    access::Table,
    authn::tokens::{self, KeyKind},
    config::{self, ApiKey, Auth, Credentials},
    domain::{Grant, Namespace, PermissionSet, Scope, principal::Identity, secret::Secret},
    pb::{self, v1},
    storage::{CredentialKind, CredentialRecord},
};

const NOW: i64 = 1_800_000_000;

#[derive(Debug)]
struct HeldClock(AtomicI64);

impl HeldClock {
    fn forward(&self, seconds: i64) {
        self.0.fetch_add(seconds, Ordering::Relaxed);
    }
}

impl Clock for HeldClock {
    fn now(&self) -> Timestamp {
        Timestamp::from_seconds(self.0.load(Ordering::Relaxed))
    }
}

fn key(key: &str, subject: &str, permissions: &[&str], namespaces: &[&str]) -> ApiKey {
    let mut set = PermissionSet::empty();
    for name in permissions {
        assert!(set.add(name, &BTreeSet::default()));
    }
    ApiKey {
        subject: subject.into(),
        digest: Sha256::digest(key.as_bytes()).into(),
        permissions: set,
        scope: Scope::parse(namespaces).unwrap(),
        rate: config::OwnRate::None,
    }
}

fn keys() -> Vec<ApiKey> {
    vec![
        key("k-root", "Root", &["*"], &["*"]),
        key("k-shop-star", "Shop admin", &["*"], &["shop"]),
        key("k-reader", "Monitoring", &["tasks:read", "tasks:list"], &["*"]),
        key("k-config", "Config here", &["system:config_read"], &["shop"]),
        key("k-config-all", "Config", &["system:config_read"], &["*"]),
        key("k-worker", "Worker", &["work:lease"], &["shop"]),
    ]
}

fn gate_with(mode: config::Mode, rates: &Rates) -> (Gate, Arc<HeldClock>) {
    let clock = Arc::new(HeldClock(AtomicI64::new(NOW)));
    let auth = Auth {
        mode,
        extra_permissions: BTreeSet::default(),
        jwt_token_expiry: Duration::from_hours(1),
        token_store: config::TokenStore::Database,
        disable_unused_after_days: None,
    };
    let authenticator = Authenticator::new(&auth).unwrap();
    (Gate::new(authenticator, None, rates, Arc::<HeldClock>::clone(&clock), None), clock)
}

fn with_keys() -> config::Mode {
    config::Mode::On(Box::new(Credentials {
        certificates: config::Certificates::default(),
        issuers: Vec::new(),
        api_key_header: HeaderName::from_static("x-api-key"),
        api_keys_enabled: true,
        api_keys: keys(),
    }))
}

fn gate() -> (Gate, Arc<HeldClock>) {
    gate_with(with_keys(), &Rates::default())
}

fn table() -> Table {
    let pool = DescriptorPool::decode(pb::FILE_DESCRIPTOR_SET).unwrap();
    Table::from_pool(&pool, &BTreeSet::default()).unwrap()
}

fn rule(path: &str) -> Arc<MethodRule> {
    Arc::clone(table().get(&format!("/bailiwick.v1.{path}")).unwrap())
}

fn headers(key: &str) -> HeaderMap {
    let mut headers = HeaderMap::new();
    if !key.is_empty() {
        headers.insert("x-api-key", HeaderValue::from_str(key).unwrap());
    }
    headers
}

fn request() -> RequestId {
    RequestId::from_random([7; 16])
}

fn admit(gate: &Gate, rule: &MethodRule, key: &str) -> Result<Option<Caller>, Refusal> {
    let peer = Some("192.0.2.7".parse().unwrap());
    let evidence = Evidence { headers: &headers(key), certificate: None, peer };
    gate.admit(rule, evidence, request())
        .map_err(|turned| turned.refusal)
        .map(|admitted| admitted.map(|(caller, _)| caller))
}

/// Headers without a certificate, from nowhere.
fn alone(headers: &HeaderMap) -> Evidence<'_> {
    Evidence { headers, certificate: None, peer: None }
}

fn refused(gate: &Gate, path: &str, key: &str) -> (Kind, Reason, String) {
    let refusal = admit(gate, &rule(path), key).unwrap_err();
    (refusal.kind, refusal.reason, refusal.message)
}

#[test]
fn tk_53_public_routes_need_nothing_and_mind_nothing() {
    let (gate, _) = gate();
    for presented in ["", "garbage", "k-root"] {
        assert!(admit(&gate, &rule("HealthService/CheckHealth"), presented).unwrap().is_none());
    }
}

#[test]
fn tk_02_tk_54_without_a_credential_it_is_401() {
    let (gate, _) = gate();
    let missing = refused(&gate, "TaskService/ListTasks", "");
    let says = "Missing authentication credentials".to_owned();
    assert_eq!(missing, (Kind::Unauthenticated, Reason::CredentialsMissing, says));
    let (kind, reason, _) = refused(&gate, "TaskService/ListTasks", "garbage");
    assert_eq!((kind, reason), (Kind::Unauthenticated, Reason::CredentialsInvalid));
}

#[test]
fn tk_46_tk_55_a_missing_permission_is_named() {
    let (gate, _) = gate();
    assert!(admit(&gate, &rule("TaskService/GetTask"), "k-reader").is_ok());
    let refusal = admit(&gate, &rule("TaskService/CreateTask"), "k-reader").unwrap_err();
    assert_eq!((refusal.kind, refusal.reason), (Kind::Forbidden, Reason::PermissionMissing));
    assert_eq!(refusal.message, "Missing required permission: tasks:create");
    assert_eq!(refusal.permission, Some(Permission::TasksCreate));
}

#[test]
fn every_rpc_answers_as_its_rule_says() {
    let (gate, _) = gate();
    for method in table().iter() {
        let root = admit(&gate, method, "k-root");
        let reader = admit(&gate, method, "k-reader");
        let none = admit(&gate, method, "");
        assert!(root.is_ok(), "{}", method.full_name);
        match &method.rule {
            Rule::Public(_) => assert!(none.unwrap().is_none()),
            Rule::Authenticated(_) => assert!(none.is_err() && reader.is_ok()),
            Rule::Permission { permission, .. } => {
                let held = [Permission::TasksRead, Permission::TasksList].contains(permission);
                assert!(none.is_err(), "{}", method.full_name);
                assert_eq!(reader.is_ok(), held, "{}", method.full_name);
            }
            Rule::Root => {
                assert!(none.is_err(), "{}", method.full_name);
                assert_eq!(reader.unwrap_err().reason, Reason::RootRequired);
            }
            Rule::Node => panic!("none yet: {}", method.full_name),
        }
    }
}

#[test]
fn se_04_a_global_rule_needs_a_grant_for_everything() {
    let (gate, _) = gate();
    let (kind, _, message) = refused(&gate, "SystemService/GetConfig", "k-config");
    assert_eq!(kind, Kind::Forbidden);
    assert_eq!(message, "Missing required permission: system:config_read");
    assert!(refused(&gate, "SystemService/GetConfig", "k-shop-star").2.contains("config_read"));
    assert!(admit(&gate, &rule("SystemService/GetConfig"), "k-config-all").is_ok());
}

fn made(rule: Rule, step: bool) -> MethodRule {
    MethodRule {
        full_name: "test.v1.S/M".into(),
        path: "/test.v1.S/M".into(),
        rule,
        identifier: false,
        step,
        rate_class: crate::access::table::RateClass::Standard,
        client_streaming: false,
        server_streaming: false,
    }
}

#[test]
fn se_05_root_rules_are_for_root_alone() {
    let (gate, _) = gate();
    let root_only = made(Rule::Root, false);
    assert!(admit(&gate, &root_only, "k-root").is_ok());
    for other in ["k-shop-star", "k-reader"] {
        let refusal = admit(&gate, &root_only, other).unwrap_err();
        assert_eq!((refusal.kind, refusal.reason), (Kind::Forbidden, Reason::RootRequired));
    }
    assert_eq!(admit(&gate, &root_only, "").unwrap_err().kind, Kind::Unauthenticated);
    assert_eq!(admit(&gate, &made(Rule::Node, false), "k-root").unwrap_err().kind, Kind::Forbidden);
}

#[test]
fn se_31_a_step_token_opens_only_what_says_so() {
    let mut principal = Principal::auth_off();
    principal.identity.source = Source::Lease;
    let permission = |step| {
        made(Rule::Permission { permission: Permission::TasksCreate, mode: Mode::Filtered }, step)
    };
    assert!(decide(&permission(true), &principal).is_ok());
    assert!(matches!(decide(&permission(false), &principal), Err(Denial::Step)));
    let authenticated = made(Rule::Authenticated("why".into()), false);
    assert!(matches!(decide(&authenticated, &principal), Err(Denial::Step)));
}

#[test]
fn se_01_the_gate_asks_for_any_grant_and_the_permit_for_one() {
    let (gate, _) = gate();
    let caller = admit(&gate, &rule("TaskService/CreateTask"), "k-shop-star").unwrap().unwrap();
    let create = |namespace: &str| v1::CreateTaskRequest {
        namespace: namespace.to_owned(),
        ..Default::default()
    };
    assert_eq!(caller.permit(&create("shop")).unwrap().namespace().as_str(), "shop");
    let hidden = caller.permit(&create("other")).unwrap_err();
    assert_eq!((hidden.kind, hidden.reason), (Kind::NotFound, Reason::NamespaceNotFound));
    assert_eq!(hidden.message, "namespace not found: other");
    assert_eq!(caller.permit(&create("a b")).unwrap_err().kind, Kind::Invalid);

    let mut principal = Principal::auth_off();
    let grant = |permission: &str, namespace: &str| {
        let mut permissions = PermissionSet::empty();
        assert!(permissions.add(permission, &BTreeSet::default()));
        Grant { permissions, scope: Scope::parse(&[namespace]).unwrap() }
    };
    principal.grants = vec![grant("tasks:create", "a"), grant("tasks:read", "b")];
    let namespace = Namespace::parse("b").unwrap();
    assert!(decide(&rule("TaskService/CreateTask"), &principal).is_ok());
    assert!(!principal.may(Permission::TasksCreate, &namespace));
}

#[test]
fn tk_01_auth_off_passes_the_same_gate() {
    let (gate, _) = gate_with(config::Mode::Off, &Rates::default());
    for method in table().iter() {
        let caller = admit(&gate, method, "").unwrap();
        assert_eq!(caller.is_none(), matches!(method.rule, Rule::Public(_)));
    }
    let caller = admit(&gate, &rule("AccessService/WhoAmI"), "").unwrap().unwrap();
    let principal = caller.authenticated(&v1::WhoAmIRequest {}).unwrap();
    assert_eq!(principal.identity.source, Source::Disabled);
    assert!(admit(&gate, &made(Rule::Root, false), "").is_ok());
}

/// A gate with one JWT that ends in ten seconds, and its headers.
fn gate_with_jwt() -> (Gate, Arc<HeldClock>, HeaderMap) {
    let pair = tokens::generate(KeyKind::Ed25519).unwrap();
    let token = tokens::sign(
        &pair.private,
        &tokens::Claims {
            sub: "alice".to_owned(),
            iss: "i".to_owned(),
            aud: "a".to_owned(),
            iat: NOW,
            exp: NOW + 10,
            permissions: vec!["tasks:create".to_owned()],
            namespaces: None,
            worker_namespaces: Vec::new(),
        },
    )
    .unwrap();
    let mode = config::Mode::On(Box::new(Credentials {
        certificates: config::Certificates::default(),
        issuers: vec![config::Jwt::new(
            config::Keys::Pem { text: pair.public, origin: "a test".to_owned() },
            "i",
            "a",
        )],
        api_key_header: HeaderName::from_static("x-api-key"),
        api_keys_enabled: true,
        api_keys: keys(),
    }));
    let (gate, clock) = gate_with(mode, &Rates::default());
    let mut headers = HeaderMap::new();
    headers.insert("authorization", format!("Bearer {token}").parse().unwrap());
    (gate, clock, headers)
}

#[test]
fn se_16_a_permit_is_refused_when_the_credential_ended_meanwhile() {
    let (gate, clock, jwt) = gate_with_jwt();
    let create = rule("TaskService/CreateTask");
    let body = v1::CreateTaskRequest { namespace: "shop".to_owned(), ..Default::default() };
    let caller = gate
        .admit(&create, alone(&jwt), request())
        .map_err(|turned| turned.refusal)
        .unwrap()
        .unwrap()
        .0;
    assert!(caller.permit(&body).is_ok());
    clock.forward(10);
    assert_eq!(caller.permit(&body).unwrap_err().reason, Reason::CredentialsExpired);
    let refusal =
        gate.admit(&create, alone(&jwt), request()).map_err(|turned| turned.refusal).unwrap_err();
    assert_eq!(refusal.reason, Reason::CredentialsExpired);

    let (gate, _, jwt) = gate_with_jwt();
    let caller = gate
        .admit(&create, alone(&jwt), request())
        .map_err(|turned| turned.refusal)
        .unwrap()
        .unwrap()
        .0;
    gate.revoke_all();
    assert_eq!(caller.permit(&body).unwrap_err().reason, Reason::CredentialsRevoked);
}

#[tokio::test]
async fn se_17_a_stream_hears_that_its_credential_ended() {
    let (gate, clock, jwt) = gate_with_jwt();
    let create = rule("TaskService/CreateTask");
    let caller = gate
        .admit(&create, alone(&jwt), request())
        .map_err(|turned| turned.refusal)
        .unwrap()
        .unwrap()
        .0;
    let waiting = tokio::spawn(async move { caller.ended().await });
    tokio::task::yield_now().await;
    assert!(!waiting.is_finished());
    clock.forward(10);
    assert_eq!(waiting.await.unwrap().reason, Reason::CredentialsExpired);

    let (gate, _, jwt) = gate_with_jwt();
    let caller = gate
        .admit(&create, alone(&jwt), request())
        .map_err(|turned| turned.refusal)
        .unwrap()
        .unwrap()
        .0;
    let waiting = tokio::spawn(async move { caller.ended().await });
    gate.revoke_all();
    assert_eq!(waiting.await.unwrap().reason, Reason::CredentialsRevoked);
}

/// A gate that knows a token for `tasks:*` in `shop`, and its headers.
fn gate_with_token() -> (Gate, Arc<HeldClock>, HeaderMap) {
    let (gate, clock) = gate();
    let secret = Secret::new(7, &[7; 32]);
    let nobody = Identity { source: Source::Config, issuer: "".into(), subject: "root".into() };
    gate.0.authenticator.issued().insert(CredentialRecord {
        id: secret.id(),
        digest: secret.digest(),
        kind: CredentialKind::Token,
        name: None,
        scopes: vec!["tasks:*".to_owned(), "work:lease".to_owned()],
        namespaces: vec!["shop".to_owned()],
        networks: Vec::new(),
        created_by: nobody,
        created_with: "with".into(),
        created_at: clock.now(),
        expires_at: None,
        max_uses: None,
        uses: 0,
        parent: None,
        family: secret.id(),
        descent: Vec::new(),
        revoked_at: None,
        last_used_at: None,
    });
    let mut headers = HeaderMap::new();
    let bearer = format!("Bearer {}", secret.expose());
    headers.insert("authorization", HeaderValue::from_str(&bearer).unwrap());
    (gate, clock, headers)
}

fn exercised(gate: &Gate) -> Vec<(Permission, Timestamp)> {
    let uses = gate.0.authenticator.issued().take_uses().permissions;
    uses.into_iter().map(|used| (used.permission, used.at)).collect()
}

#[tokio::test]
async fn only_what_was_allowed_was_exercised_and_an_open_stream_is_in_use() {
    let (gate, clock, token) = gate_with_token();
    let admit = |path: &str| {
        gate.admit(&rule(path), alone(&token), request()).map_err(|turned| turned.refusal)
    };
    assert!(admit("TemplateService/ListTemplates").is_err());
    let caller = admit("TaskService/CreateTask").unwrap().unwrap().0;
    let create = |namespace: &str| v1::CreateTaskRequest {
        namespace: namespace.to_owned(),
        ..v1::CreateTaskRequest::default()
    };
    assert!(caller.permit(&create("bank")).is_err());
    assert_eq!(exercised(&gate), []);
    assert!(caller.permit(&create("shop")).is_ok());
    assert_eq!(exercised(&gate), [(Permission::TasksCreate, clock.now())]);

    // A stream that has not been allowed yet uses nothing.
    let caller = admit("WorkerService/LeaseSteps").unwrap().unwrap().0;
    let open = |caller: Caller| async move {
        tokio::time::timeout(Duration::from_millis(700), caller.ended()).await.is_err()
    };
    assert!(open(caller.clone()).await);
    assert_eq!(exercised(&gate), []);
    let request = v1::LeaseStepsRequest { namespace: "shop".to_owned(), ..Default::default() };
    assert!(caller.area(&request).is_ok());
    assert_eq!(exercised(&gate), [(Permission::WorkLease, clock.now())]);
    clock.forward(86_400);
    assert!(open(caller).await);
    assert_eq!(exercised(&gate), [(Permission::WorkLease, clock.now())]);
    let used = gate.0.authenticator.issued().take_uses().credentials;
    assert_eq!(used.first().map(|(_, at)| *at), Some(clock.now()));
}

#[test]
fn tk_60_to_63_every_call_is_counted_once() {
    let recorder = PrometheusBuilder::new().build_recorder();
    let handle = recorder.handle();
    metrics::with_local_recorder(&recorder, || {
        let (gate, clock, jwt) = gate_with_jwt();
        let list = rule("TaskService/ListTasks");
        for key in ["", "", "garbage", "k-reader", "k-reader", "k-worker"] {
            let _ = admit(&gate, &list, key);
        }
        let create = rule("TaskService/CreateTask");
        for after in [0, 1, 9] {
            let _ = gate.admit(&create, alone(&jwt), request()).map_err(|turned| turned.refusal);
            clock.forward(after);
        }
        let _ = admit(&gate, &rule("HealthService/CheckHealth"), "garbage");
    });
    let text = handle.render();
    for line in [
        "bailiwick_auth_requests_total{method=\"none\",result=\"missing\"} 2",
        "bailiwick_auth_requests_total{method=\"api_key\",result=\"failure\"} 1",
        "bailiwick_auth_requests_total{method=\"api_key\",result=\"success\"} 3",
        "bailiwick_auth_requests_total{method=\"jwt\",result=\"success\"} 3",
        "bailiwick_auth_failures_total{reason=\"unknown_key\"} 1",
        "bailiwick_auth_failures_total{reason=\"expired\"} 0",
        "bailiwick_permission_denials_total{permission=\"tasks:list\"} 1",
        "bailiwick_permission_denials_total{permission=\"tasks:create\"} 0",
        "bailiwick_auth_jwt_verification_duration_seconds_count{result=\"success\"} 1",
    ] {
        assert!(text.contains(line), "{line} not in\n{text}");
    }
    assert!(!text.contains("Monitoring") && !text.contains("ListTasks"), "{text}");
}

#[derive(Clone, Default)]
struct Log(Arc<Mutex<Vec<u8>>>);

impl io::Write for Log {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        self.0.lock().unwrap().extend_from_slice(bytes);
        Ok(bytes.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

impl<'a> MakeWriter<'a> for Log {
    type Writer = Self;

    fn make_writer(&'a self) -> Self {
        self.clone()
    }
}

/// While `tracing` knows of one subscriber alone, it asks that of whichever
/// thread comes to a line of code first whether anybody is interested, and
/// remembers the answer for all: a test beside this one, which has none, would
/// silence the line for good. With two more that are always there, it asks all
/// that there are.
static ALWAYS_THERE: LazyLock<[Dispatch; 2]> =
    LazyLock::new(|| [Dispatch::new(NoSubscriber::new()), Dispatch::new(NoSubscriber::new())]);

/// The lines at `info` and above that a test causes on its own thread.
fn logged(work: impl FnOnce()) -> Vec<String> {
    LazyLock::force(&ALWAYS_THERE);
    let log = Log::default();
    let subscriber = tracing_subscriber::fmt()
        .with_writer(log.clone())
        .with_ansi(false)
        .with_max_level(tracing::Level::INFO)
        .finish();
    tracing::subscriber::with_default(subscriber, work);
    let text = String::from_utf8(log.0.lock().unwrap().clone()).unwrap();
    text.lines().map(str::to_owned).collect()
}

#[test]
fn tk_57_success_is_told_once_a_minute() {
    let lines = logged(|| {
        let (gate, clock) = gate();
        let list = rule("TaskService/ListTasks");
        for forward in [0, 30, 29, 1] {
            clock.forward(forward);
            admit(&gate, &list, "k-reader").unwrap();
        }
    });
    assert_eq!(lines.len(), 2, "{lines:#?}");
    for word in ["INFO", "subject=\"Monitoring\"", "method=\"api_key\"", "TaskService/ListTasks"] {
        assert!(lines[0].contains(word), "{word} not in {}", lines[0]);
    }
}

#[test]
fn tk_47_tk_58_a_failure_is_told_with_its_reason_and_no_secret() {
    let lines = logged(|| {
        let (gate, _) = gate();
        let list = rule("TaskService/ListTasks");
        let _ = admit(&gate, &list, "hidden-value");
        let _ = admit(&gate, &list, "");
    });
    assert_eq!(lines.len(), 1, "{lines:#?}");
    for word in ["WARN", "reason=\"unknown_key\"", "192.0.2.7", "07070707"] {
        assert!(lines[0].contains(word), "{word} not in {}", lines[0]);
    }
    assert!(!lines[0].contains("hidden-value"));
}

#[test]
fn tk_59_a_denial_is_told_with_subject_and_permission() {
    let lines = logged(|| {
        let (gate, _) = gate();
        let _ = admit(&gate, &rule("TaskService/CreateTask"), "k-reader");
    });
    let denial = lines.iter().find(|line| line.contains("WARN")).unwrap();
    for word in ["subject=\"Monitoring\"", "required=\"tasks:create\"", "permission denied"] {
        assert!(denial.contains(word), "{word} not in {denial}");
    }
    assert!(!lines.iter().any(|line| line.contains("k-reader")));
}

#[test]
fn tk_58_a_flood_of_failures_is_cut_and_counted() {
    let lines = logged(|| {
        let (gate, clock) = gate();
        let list = rule("TaskService/ListTasks");
        for _ in 0..500 {
            let refusal = admit(&gate, &list, "garbage").unwrap_err();
            // A detail would be logged once more where the refusal is
            // rendered, however many come.
            assert_eq!(refusal.detail, None);
        }
        clock.forward(60);
        let _ = admit(&gate, &list, "garbage");
    });
    assert_eq!(lines.len(), 101);
    assert!(lines[100].contains("suppressed=400"), "{}", lines[100]);
}

fn limited_gate() -> (Gate, Arc<HeldClock>) {
    let one = NonZeroU32::MIN;
    let rates = Rates {
        standard: Some(config::Rate { per_second: one, burst: one }),
        failed_auth_per_minute: Some(one),
        ..Rates::default()
    };
    gate_with(with_keys(), &rates)
}

#[test]
fn ze_48_the_order_is_credential_permission_rate() {
    let (gate, clock) = limited_gate();
    let (list, create) = ("TaskService/ListTasks", "TaskService/CreateTask");
    let rate = admit(&gate, &rule(list), "k-reader").unwrap().unwrap().rate().unwrap();
    assert_eq!((rate.limit, rate.remaining), (1, 0));
    assert_eq!(refused(&gate, list, "k-reader").1, Reason::RateLimited);
    // Forbidden stays forbidden with an empty bucket, and takes nothing.
    assert_eq!(refused(&gate, create, "k-reader").1, Reason::PermissionMissing);
    clock.forward(1);
    assert_eq!(refused(&gate, create, "k-reader").1, Reason::PermissionMissing);
    assert!(admit(&gate, &rule(list), "k-reader").is_ok());
    let public = rule("HealthService/CheckHealth");
    assert!((0..100).all(|_| admit(&gate, &public, "k-reader").is_ok()));
}

#[test]
fn se_43_failures_never_block_a_good_credential() {
    let (gate, clock) = limited_gate();
    let list = "TaskService/ListTasks";
    assert_eq!(refused(&gate, list, "garbage").1, Reason::CredentialsInvalid);
    let refusal = admit(&gate, &rule(list), "garbage").unwrap_err();
    assert_eq!((refusal.kind, refusal.reason), (Kind::TooMany, Reason::RateLimited));
    assert_eq!(refusal.retry_after, Some(Duration::from_mins(1)));
    // The same address all the time.
    assert!(admit(&gate, &rule(list), "k-root").is_ok());
    assert_eq!(refused(&gate, list, "").1, Reason::CredentialsMissing);
    clock.forward(60);
    assert!((0..10).all(|_| refused(&gate, list, "").1 == Reason::CredentialsMissing));
    assert_eq!(refused(&gate, list, "garbage").1, Reason::CredentialsInvalid);
}

/// A gate whose auth file has one token, and its mode otherwise.
fn gate_with_line(mode: config::Mode, commands: bool) -> Gate {
    let token = config::LineToken {
        name: "deploy".into(),
        digest: Sha256::digest("sk deploy").into(),
        scope: Scope::beginning_with("deploy."),
        documented: false,
    };
    let word = config::LineToken {
        name: "ci".into(),
        digest: Sha256::digest("sk.ci").into(),
        scope: Scope::Everything,
        documented: false,
    };
    let auth = Auth {
        mode,
        extra_permissions: BTreeSet::default(),
        jwt_token_expiry: Duration::from_hours(1),
        token_store: config::TokenStore::Database,
        disable_unused_after_days: None,
    };
    let authenticator = Authenticator::new(&auth).unwrap();
    let authenticator = authenticator.with_line_tokens(&[token, word], commands);
    let clock = Arc::new(HeldClock(AtomicI64::new(NOW)));
    Gate::new(authenticator, None, &Rates::default(), clock, None)
}

const PEER: IpAddr = IpAddr::V4(std::net::Ipv4Addr::new(192, 0, 2, 7));

fn bearer(secret: &str) -> HeaderMap {
    let mut headers = HeaderMap::new();
    headers.insert("authorization", format!("Bearer {secret}").parse().unwrap());
    headers
}

/// A rule about jobs, whatever RPC has it.
fn about(permission: Permission) -> MethodRule {
    made(Rule::Permission { permission, mode: Mode::Filtered }, false)
}

#[test]
fn zt_19_a_line_session_has_what_begins_with_its_namespace() {
    use crate::domain::schedule::Identifier;

    for mode in [config::Mode::Off, with_keys()] {
        let gate = gate_with_line(mode, false);
        assert!(!gate.line_is_open() && gate.line_open(request(), PEER).is_none());
        let session = gate.line(&["\"sk deploy\"", "sk deploy"], request(), PEER).unwrap();
        let claim = session.instructed::<line::Set>().unwrap();
        let identity = claim.identity();
        assert_eq!((identity.source, &*identity.subject), (Source::Line, "deploy"));
        for (job, inside) in [("deploy.daily", true), ("deploy", false), ("xdeploy.y", false)] {
            let job = Identifier::parse(job).unwrap();
            assert_eq!(claim.over(&job).is_some(), inside, "{job}");
        }
        assert!(session.instructed::<line::RuleSet>().is_ok());
        assert!(!claim.principal().holds(Permission::CommandsExecute));
        assert!(!claim.principal().holds(Permission::TasksCreate) && !claim.principal().is_root());
        let refused = gate.line(&["sk"], request(), PEER).unwrap_err();
        assert_eq!(refused.reason, Reason::CredentialsInvalid);
        // A key of the configuration is no secret of the line.
        assert!(gate.line(&["k-root"], request(), PEER).is_err());
        gate.revoke_all();
        assert!(session.instructed::<line::Set>().is_err());
    }
    let gate = gate_with_line(config::Mode::Off, true);
    let claim = gate.line(&["sk.ci"], request(), PEER).unwrap();
    let principal = claim.instructed::<line::Get>().unwrap().principal().clone();
    assert!(principal.holds(Permission::CommandsExecute) && !principal.is_root());
}

#[test]
fn zt_01_without_auth_and_auth_file_the_line_is_open() {
    let (gate, _) = gate_with(config::Mode::Off, &Rates::default());
    let session = gate.line_open(request(), PEER).unwrap();
    assert_eq!(*session.instructed::<line::RuleSet>().unwrap().scope(), Scope::Everything);
    let (gate, _) = self::gate();
    assert!(gate.line_open(request(), PEER).is_none());
}

#[test]
fn se_60_an_auth_file_guards_jobs_and_rules_on_every_surface() {
    let gate = gate_with_line(config::Mode::Off, false);
    let call = |permission, headers: &HeaderMap| {
        gate.admit(&about(permission), alone(headers), request())
            .map_err(|turned| turned.refusal)
            .map(|admitted| {
                let caller = admitted.unwrap().0;
                let origin = Arc::clone(caller.origin());
                caller.claimed::<crate::domain::permission::right::SchedulesRead>(origin)
            })
    };
    let reason = |permission, headers: &HeaderMap| call(permission, headers).unwrap_err().reason;
    let none = HeaderMap::new();
    for guarded in [
        Permission::SchedulesRead,
        Permission::SchedulesWrite,
        Permission::RulesRead,
        Permission::RulesWrite,
    ] {
        assert_eq!(reason(guarded, &none), Reason::CredentialsMissing);
        assert_eq!(reason(guarded, &bearer("wrong")), Reason::CredentialsInvalid);
        assert_eq!(reason(guarded, &bearer("a,b")), Reason::CredentialsAmbiguous);
        let claim = call(guarded, &bearer("sk.ci")).unwrap().unwrap();
        assert_eq!(claim.identity().source, Source::Line);
    }
    // All else is as open as it was, and a token is for jobs and rules only.
    assert!(call(Permission::TasksCreate, &none).is_ok());
    assert!(call(Permission::TasksCreate, &bearer("wrong")).is_ok());
    assert_eq!(reason(Permission::TasksCreate, &bearer("sk.ci")), Reason::PermissionMissing);

    let gate = gate_with_line(with_keys(), false);
    let call = |permission, headers: &HeaderMap| {
        gate.admit(&about(permission), alone(headers), request())
            .map_err(|turned| turned.refusal)
            .map(Option::unwrap)
    };
    assert!(call(Permission::RulesWrite, &bearer("sk.ci")).is_ok());
    assert!(call(Permission::RulesWrite, &bearer("k-root")).is_ok());
    assert_eq!(call(Permission::RulesWrite, &none).unwrap_err().reason, Reason::CredentialsMissing);
    let wide = call(Permission::TasksCreate, &bearer("sk.ci")).unwrap_err();
    assert_eq!(wide.reason, Reason::PermissionMissing);

    let (open, _) = gate_with(config::Mode::Off, &Rates::default());
    assert!(open.admit(&about(Permission::RulesWrite), alone(&none), request()).is_ok());
}

#[test]
fn zt_05_a_failed_auth_is_counted_and_told_without_the_secret() {
    let recorder = PrometheusBuilder::new().build_recorder();
    let handle = recorder.handle();
    let lines = logged(|| {
        metrics::with_local_recorder(&recorder, || {
            let gate = gate_with_line(config::Mode::Off, false);
            let _ = gate.line(&["hidden-value"], request(), PEER);
            gate.line(&["sk deploy"], request(), PEER).unwrap();
            gate.line(&["sk deploy"], request(), PEER).unwrap();
        });
    });
    assert_eq!(lines.len(), 2, "{lines:#?}");
    assert!(lines[0].contains("WARN") && lines[0].contains("192.0.2.7"), "{}", lines[0]);
    assert!(lines[1].contains("INFO") && lines[1].contains("source=\"line\""), "{}", lines[1]);
    assert!(!lines.concat().contains("hidden-value") && !lines.concat().contains("sk deploy"));
    let text = handle.render();
    for line in [
        "bailiwick_auth_requests_total{method=\"token\",result=\"failure\"} 1",
        "bailiwick_auth_requests_total{method=\"token\",result=\"success\"} 2",
        "bailiwick_auth_failures_total{reason=\"unknown_token\"} 1",
    ] {
        assert!(text.contains(line), "{line} not in\n{text}");
    }
}

#[tokio::test]
async fn se_41_each_instruction_is_a_decision_of_its_own() {
    let gate = gate_with_line(config::Mode::Off, false);
    let connection = request();
    let session = gate.line(&["sk deploy"], connection, PEER).unwrap();
    let mut ids = Vec::new();
    for (outcome, reason) in [
        (audit::Outcome::Denied, Some("permission_denied")),
        (audit::Outcome::Allowed, None),
        (audit::Outcome::Failed, Some("not_found")),
    ] {
        session.instructed::<line::Set>().unwrap();
        session.outside::<line::Set>("bank.x");
        let asked = session.take_asked();
        let id = asked.as_ref().unwrap().request();
        session
            .ended(asked, crate::access::call::Ending { outcome, reason, object: "deploy.x" })
            .await
            .unwrap();
        ids.push((id, outcome));
    }
    for (id, outcome) in ids {
        assert_ne!(id, connection);
        assert_eq!(gate.0.decisions.get(id).unwrap().outcome, outcome);
    }
}
