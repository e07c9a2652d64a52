use std::{fs, net::SocketAddr, num::NonZeroU32};

use super::*;
use crate::domain::Scope;

fn load(text: &str) -> Result<Settings, Error> {
    load_with(text, &[])
}

fn load_with(text: &str, environment: &[(&str, &str)]) -> Result<Settings, Error> {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("bailiwick.toml");
    fs::write(&path, text).unwrap();
    Settings::load(Some(&path), variables(environment))
}

fn variables(environment: &[(&str, &str)]) -> Vec<(OsString, OsString)> {
    environment.iter().map(|(name, value)| (name.into(), value.into())).collect()
}

fn problem(text: &str) -> String {
    load(text).unwrap_err().to_string()
}

fn credentials(settings: &Settings) -> &Credentials {
    match &settings.auth.mode {
        Mode::On(credentials) => credentials,
        Mode::Off => panic!("auth is off"),
    }
}

const KEY: &str = "[[auth.api_keys]]\nkey = \"k1-secret-value\"\npermissions = [\"tasks:read\"]\n";

#[test]
fn tk_01_defaults_are_loopback_with_auth_off() {
    let settings = Settings::load(None, variables(&[])).unwrap();
    assert!(matches!(settings.auth.mode, Mode::Off));
    assert_eq!(settings.server.grpc_listen, SocketAddr::from(([127, 0, 0, 1], 9190)));
    assert_eq!(settings.server.http_listen, SocketAddr::from(([127, 0, 0, 1], 8080)));
    assert_eq!(settings.storage, Storage::Sqlite("bailiwick-data/bailiwick.db".into()));
    assert!(!settings.server.config_endpoint_enabled);
    assert_eq!(settings.limits.body_bytes, 4 * 1024 * 1024);
}

#[test]
fn tk_01_auth_off_beyond_loopback_is_refused_unless_allowed() {
    for listen in ["grpc_listen = \"0.0.0.0:1\"", "http_listen = \"[::]:1\""] {
        let server = format!("[server]\n{listen}\n");
        assert!(problem(&server).contains("allow_unauthenticated_remote"), "{listen}");
        let allowed = format!("{server}[auth]\nallow_unauthenticated_remote = true\n");
        let settings = load(&allowed).unwrap();
        assert!(settings.warnings.iter().any(|line| line.contains("everybody")));
        assert!(load(&format!("{server}[auth]\nenabled = true\n")).is_ok());
    }
    for listen in ["127.0.0.2:1", "[::1]:1", "[::ffff:127.0.0.1]:1", "localhost:1"] {
        assert!(load(&format!("[server]\ngrpc_listen = \"{listen}\"\n")).is_ok(), "{listen}");
    }
}

#[test]
fn unknown_keys_name_the_nearest_known_one() {
    for (text, key, nearest) in [
        ("[auth]\nenable = true", "auth.enable", "auth.enabled"),
        ("[server]\ngrpc_liste = \"x\"", "server.grpc_liste", "server.grpc_listen"),
        ("[sever]\na = 1", "sever", "server"),
        ("[server]\ntls_crt = \"x\"", "server.tls_crt", "server.tls_cert"),
        ("[auth]\njwt_private_key = \"x\"", "auth.jwt_private_key", "auth.jwt_public_key"),
    ] {
        let Error::Unknown { key: found, nearest: proposed } = load(text).unwrap_err() else {
            panic!("{text}");
        };
        assert_eq!((found.as_str(), proposed.as_deref()), (key, Some(nearest)));
    }
    let Error::Unknown { nearest, .. } = load("[auth]\nzzzzzzzzzzzzzzzzzzzzzzzz = 1").unwrap_err()
    else {
        panic!("known");
    };
    assert_eq!(nearest, None);
    let entry = "[[auth.api_keys]]\nkey = \"a\"\npermissions = []\nnamespace = [\"shop\"]";
    assert!(problem(entry).contains("did you mean `namespaces`"));
    let variable = load_with("", &[("BAILIWICK__AUTH__ENABLE", "true")]).unwrap_err();
    assert!(variable.to_string().contains("auth.enabled"));
}

#[test]
fn what_comes_later_is_refused_by_name_and_what_is_off_does_no_harm() {
    for (text, name) in [
        ("[[auth.namespaces]]\nprefix = \"a\"", "auth.namespaces"),
        ("[storage]\nurl = \"postgres://x/y\"", "postgres://"),
    ] {
        let error = load(text).unwrap_err();
        assert!(matches!(error, Error::NotYet { .. }), "{text}: {error}");
        assert!(error.to_string().contains(name), "{error}");
        assert!(error.to_string().contains("not supported by this version yet"), "{error}");
    }
    let off = "[auth]\njwks_url = \"\"\njwks_url_allow_http = false\ntoken_store = \"database\"\n\
               jwks_refresh_interval_seconds = 3600\n[limits]\nrequests_per_second = 0\n\
               [scheduler]\nrunners = []\n";
    assert!(load(off).is_ok());
}

#[test]
fn se_60_a_controller_is_open_only_where_auth_is_off_and_on_loopback() {
    let alone = load("[controller]\n").unwrap().controller.unwrap();
    assert_eq!(alone.listen, SocketAddr::from(([127, 0, 0, 1], 5678)));
    assert!(alone.tokens.is_none() && alone.idle.is_none());
    assert_eq!(alone.rule_id_prefixes, ["rule."]);
    assert!((10_000..alone.connections).contains(&alone.connections_per_address));
    assert!(load("").unwrap().controller.is_none());
    let variable = load_with("", &[("BAILIWICK__CONTROLLER__LISTEN", "127.0.0.1:1")]).unwrap();
    assert_eq!(variable.controller.unwrap().listen.port(), 1);

    assert!(problem("[controller]\n[auth]\nenabled = true\n").contains("`controller.auth_file`"));
    let beyond = "[controller]\nlisten = \"0.0.0.0:5678\"\n";
    assert!(problem(beyond).contains("`controller.listen`"));
    let allowed = format!("{beyond}[auth]\nallow_unauthenticated_remote = true\n");
    assert!(load(&allowed).unwrap().warnings.iter().any(|line| line.contains("no auth file")));
    for (more, word) in [
        ("auth_file = \"absent.toml\"", "absent.toml"),
        ("tls_cert = \"c.pem\"", "controller.tls_key"),
        ("tls_key = \"k.pem\"", "controller.tls_cert"),
        ("rule_id_prefixes = [\"\"]", "rule_id_prefixes"),
        ("connections = 0", "controller.connections"),
        ("framerate = 512", "framerate"),
    ] {
        assert!(problem(&format!("[controller]\n{more}\n")).contains(word), "{more}");
    }
}

#[test]
fn zt_09_an_auth_file_counts_from_the_configuration_and_keeps_documented_secrets_at_home() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("bailiwick.toml");
    let token = |secret: &str| {
        let text = format!("[token.ci]\nsecret = \"{secret}\"\nnamespace = \"ci.\"\n");
        fs::write(folder.path().join("auth.toml"), text).unwrap();
    };
    let load = |rest: &str| {
        fs::write(&path, format!("[controller]\nauth_file = \"auth.toml\"\n{rest}")).unwrap();
        Settings::load(Some(&path), variables(&[]))
    };
    token("sk_deploy_a1b2c3d4e5f6");
    let tokens = load("").unwrap().controller.unwrap().tokens.unwrap();
    assert_eq!(tokens.len(), 1);
    for beyond in [
        "listen = \"0.0.0.0:1\"\n",
        "[server]\nhttp_listen = \"0.0.0.0:1\"\n[auth]\nenabled = true\n",
    ] {
        assert!(load(beyond).unwrap_err().to_string().contains("stands in documentation"));
    }
    token("another");
    let settings = load("listen = \"0.0.0.0:1\"\n").unwrap();
    assert!(settings.warnings.iter().any(|line| line.contains("without TLS")));
    assert!(load("rule_id_prefixes = [\"ci.\"]\n").is_err());
    let shown = load("[auth]\nenabled = true\n").unwrap().redacted();
    assert_eq!(shown["controller"]["auth_file"], true);
    assert!(!shown.to_string().contains("auth.toml"));
}

#[test]
fn tk_38_another_verification_method_stops_the_start() {
    assert!(problem("[auth]\njwt_verification_method = \"none\"").contains("neither"));
    assert!(load("[auth]\njwt_verification_method = \"public_key\"").is_ok());
}

#[test]
fn tk_37_the_environment_wins_over_the_file() {
    let file = "[auth]\nenabled = false\n[limits]\nbody_bytes = 5000\n";
    let settings = load_with(
        file,
        &[
            ("BAILIWICK__AUTH__ENABLED", "true"),
            ("BAILIWICK__LIMITS__BODY_BYTES", "6000"),
            ("BAILIWICK__SERVER__GRPC_LISTEN", "127.0.0.1:7"),
            ("BAILIWICK_URL", "http://elsewhere"),
            ("PATH", "/bin"),
        ],
    )
    .unwrap();
    assert!(matches!(settings.auth.mode, Mode::On(_)));
    assert_eq!(settings.limits.body_bytes, 6000);
    assert_eq!(settings.server.grpc_listen.port(), 7);
}

#[test]
fn leases_last_from_five_seconds_to_an_hour() {
    assert_eq!(load("").unwrap().limits.lease, Duration::from_secs(30));
    for seconds in [5, 3600] {
        let settings = load(&format!("[limits]\nlease_seconds = {seconds}")).unwrap();
        assert_eq!(settings.limits.lease, Duration::from_secs(seconds));
    }
    for seconds in ["0", "4", "3601"] {
        let problem = problem(&format!("[limits]\nlease_seconds = {seconds}"));
        assert!(problem.contains("limits.lease_seconds"), "{problem}");
        assert!(problem.contains("within 5 to 3600"), "{problem}");
    }
}

#[test]
fn tk_37_every_scalar_has_a_variable() {
    for table in ["server", "storage", "auth", "limits", "telemetry"] {
        for key in source::keys(table) {
            let variable = format!("BAILIWICK__{}__{}", table.to_uppercase(), key.to_uppercase());
            let outcome = load_with("", &[(&variable, "1")]);
            // The value may be wrong for it, but the key is understood.
            assert!(!matches!(outcome, Err(Error::Unknown { .. })), "{variable}");
        }
    }
    let list = load_with("", &[("BAILIWICK__AUTH__EXTRA_PERMISSIONS", "a:b")]).unwrap_err();
    assert!(list.to_string().contains("no form in the environment"), "{list}");
}

#[test]
fn tk_34_the_life_of_generated_tokens_needs_no_other_setting() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("bailiwick.toml");
    let text = "[auth]\nenabled = true\njwt_public_key_path = \"absent.pem\"\n\
                jwt_token_expiry_hours = 2\n";
    fs::write(&path, text).unwrap();
    let hours = |path: Option<&Path>, environment: &[(&str, &str)]| {
        Settings::token_expiry(path, variables(environment)).map(|life| life.as_secs() / 3600)
    };
    assert_eq!(hours(None, &[]).unwrap(), 24);
    assert_eq!(hours(Some(&path), &[]).unwrap(), 2);
    let name = "BAILIWICK__AUTH__JWT_TOKEN_EXPIRY_HOURS";
    assert_eq!(hours(Some(&path), &[(name, "3")]).unwrap(), 3);
    let error = hours(None, &[(name, "0")]).unwrap_err();
    assert!(error.to_string().contains("jwt_token_expiry_hours"), "{error}");
}

#[test]
fn tk_35_the_path_of_the_key_wins_and_counts_from_the_files_folder() {
    let folder = tempfile::tempdir().unwrap();
    fs::create_dir(folder.path().join("keys")).unwrap();
    fs::write(folder.path().join("keys/a.pem"), "from the file").unwrap();
    fs::write(folder.path().join("keys/b.pem"), "from the variable").unwrap();
    let path = folder.path().join("bailiwick.toml");
    let text = "[auth]\nenabled = true\njwt_issuer = \"i\"\njwt_audience = \"a\"\n\
                jwt_public_key_path = \"keys/a.pem\"\njwt_public_key = \"inline\"\n\
                [storage]\nurl = \"sqlite:data/x.db\"\n";
    fs::write(&path, text).unwrap();
    let settings = Settings::load(Some(&path), variables(&[])).unwrap();
    let pem = |settings: &Settings| match &credentials(settings).issuers[0].keys {
        Keys::Pem { text, .. } => text.clone(),
        Keys::Jwks(_) => panic!("a key set"),
    };
    assert_eq!(pem(&settings), "from the file");
    assert_eq!(settings.storage, Storage::Sqlite(folder.path().join("data/x.db")));

    let short = [("BAILIWICK_JWT_PUBLIC_KEY_PATH", "keys/b.pem")];
    let settings = Settings::load(Some(&path), variables(&short)).unwrap();
    assert_eq!(pem(&settings), "from the variable");
    let absent = [("BAILIWICK_JWT_PUBLIC_KEY_PATH", "keys/absent.pem")];
    let error = Settings::load(Some(&path), variables(&absent)).unwrap_err();
    assert!(matches!(error, Error::Read { .. }), "{error}");
}

#[test]
fn tk_31_tk_32_issuer_and_audience_are_required_with_a_jwt_key() {
    let key = "[auth]\nenabled = true\njwt_public_key = \"pem\"\n";
    assert!(problem(key).contains("auth.jwt_issuer"));
    assert!(problem(&format!("{key}jwt_issuer = \"i\"\n")).contains("auth.jwt_audience"));
    let empty = format!("{key}jwt_issuer = \"\"\njwt_audience = \"a\"\n");
    assert!(problem(&empty).contains("auth.jwt_issuer"));
    assert!(load(&format!("{key}jwt_issuer = \"i\"\njwt_audience = \"a\"\n")).is_ok());
}

#[test]
fn se_23_the_leeway_is_5_seconds_at_most() {
    assert!(load("[auth]\njwt_leeway_seconds = 5").is_ok());
    assert!(problem("[auth]\njwt_leeway_seconds = 6").contains("jwt_leeway_seconds"));
}

#[test]
fn only_bound_algorithms_can_be_allowed() {
    assert!(load("[auth]\njwt_allowed_algorithms = [\"RS256\", \"ES256\", \"EdDSA\"]").is_ok());
    for bad in ["[\"none\"]", "[\"HS256\"]", "[\"rs256\"]", "[]"] {
        let text = format!("[auth]\njwt_allowed_algorithms = {bad}");
        assert!(problem(&text).contains("jwt_allowed_algorithms"), "{bad}");
    }
}

#[test]
fn tk_46_keys_have_permissions_scope_and_a_subject() {
    let text = format!(
        "[auth]\nenabled = true\n{KEY}\n{}",
        "[[auth.api_keys]]\nkey = \"k2\"\npermissions = [\"*\"]\nnamespaces = [\"shop\", \"a.\"]\n\
         description = \"Ops\"\n"
    );
    let settings = load(&text).unwrap();
    let keys = &credentials(&settings).api_keys;
    assert_eq!(&*keys[0].subject, "api-key-1");
    assert_eq!(keys[0].scope, Scope::Everything);
    assert_eq!(keys[0].permissions.names(), ["tasks:read"]);
    assert_eq!(&*keys[1].subject, "Ops");
    assert_eq!(keys[1].scope.to_strings(), ["shop", "a."]);
}

#[test]
fn ze_45_a_key_may_have_a_limit_of_its_own() {
    let rate = |lines: &str| {
        let text = format!("[auth]\nenabled = true\n{KEY}{lines}\n");
        load(&text).map(|settings| credentials(&settings).api_keys[0].rate)
    };
    let limited = |per_second, burst| {
        let [per_second, burst] = [per_second, burst].map(|n| NonZeroU32::new(n).unwrap());
        OwnRate::Limited(Rate { per_second, burst })
    };
    assert_eq!(rate("").unwrap(), OwnRate::None);
    assert_eq!(rate("requests_per_second = 0").unwrap(), OwnRate::Unlimited);
    assert_eq!(rate("requests_per_second = 5").unwrap(), limited(5, 5));
    assert_eq!(rate("requests_per_second = 5\nburst = 9").unwrap(), limited(5, 9));
    for bad in ["burst = 9", "requests_per_second = 0\nburst = 9", "requests_per_second = 1000001"]
    {
        let problem = rate(bad).unwrap_err().to_string();
        assert!(problem.contains("auth.api_keys #1"), "{problem}");
        assert!(!problem.contains("secret"), "{problem}");
    }
}

#[test]
fn unused_credentials_are_disabled_only_where_that_is_said() {
    let days = |text: &str| load(text).map(|settings| settings.auth.disable_unused_after_days);
    assert_eq!(days("").unwrap(), None);
    assert_eq!(days("[auth]\ndisable_unused_after_days = 0").unwrap(), None);
    assert_eq!(days("[auth]\ndisable_unused_after_days = 90").unwrap(), NonZeroU32::new(90));
    let much = "[auth]\ndisable_unused_after_days = 36501";
    assert!(problem(much).contains("disable_unused_after_days"));
}

#[test]
fn tk_45_disabled_keys_do_not_count() {
    let text = format!("[auth]\nenabled = true\napi_keys_enabled = false\n{KEY}");
    assert!(credentials(&load(&text).unwrap()).api_keys.is_empty());
}

#[test]
fn se_06_odd_scopes_and_unknown_permissions_name_the_key_and_not_its_secret() {
    let entry = |lines: &str| format!("[[auth.api_keys]]\nkey = \"k1-secret-value\"\n{lines}\n");
    for lines in [
        "permissions = [\"tasks:raed\"]",
        "permissions = [\"tasks:*\"]\nnamespaces = [\"\"]",
        "permissions = [\"tasks:*\"]\nnamespaces = [\"deploy.*\"]",
        "permissions = [\"tasks:*\"]\nnamespaces = [\" shop\"]",
        "permissions = \"tasks:read\"",
        "description = \"no permissions\"",
        "permissions = []\ndescription = \"a\\nb\"",
    ] {
        let problem = problem(&format!("{KEY}{}", entry(lines).replace("k1-", "k2-")));
        assert!(problem.contains("api_keys"), "{problem}");
        assert!(!problem.contains("secret"), "{problem}");
    }
    let named = entry("permissions = [\"x:y\"]\ndescription = \"Monitoring\"");
    assert!(problem(&named).contains("#1 (Monitoring)"));
}

#[test]
fn two_entries_with_one_key_are_refused_without_showing_it() {
    let problem = problem(&format!("{KEY}{KEY}"));
    assert!(problem.contains("#2") && problem.contains("#1"), "{problem}");
    assert!(!problem.contains("secret"), "{problem}");
}

#[test]
fn se_14_keys_that_no_header_carries_are_refused() {
    for key in ["", "a b", "a,b", "\\u0007", "\u{e9}"] {
        let text = format!("[[auth.api_keys]]\nkey = \"{key}\"\npermissions = []\n");
        assert!(problem(&text).contains("visible ASCII"), "{key}");
    }
}

#[test]
fn se_21_documented_keys_open_nothing_beyond_loopback() {
    let key = |key: &str| {
        format!("[auth]\nenabled = true\n[[auth.api_keys]]\nkey = \"{key}\"\npermissions = []\n")
    };
    for documented in DOCUMENTED_KEYS {
        assert!(load(&key(documented)).is_ok());
        let remote = format!("[server]\nhttp_listen = \"0.0.0.0:1\"\n{}", key(documented));
        assert!(problem(&remote).contains("documentation"), "{documented}");
    }
    assert!(load(&format!("[server]\nhttp_listen = \"0.0.0.0:1\"\n{}", key("other"))).is_ok());
}

#[test]
fn se_42_se_03_foreign_permissions_stay_apart_from_the_vocabulary() {
    let extra = |name: &str| format!("[auth]\nextra_permissions = [\"{name}\"]");
    assert!(load(&extra("bundles:read")).is_ok());
    for bad in
        ["*", "bundles:*", "auth:read", "auth:x:read", "tasks:read", "tasks:fly", "bundles", ":a"]
    {
        assert!(problem(&extra(bad)).contains("extra_permissions"), "{bad}");
    }
    let key = "[[auth.api_keys]]\nkey = \"k\"\npermissions = [\"bundles:read\"]\n";
    assert!(load(&format!("{}\n{key}", extra("bundles:read"))).is_ok());
    assert!(load(key).is_err());
}

#[test]
fn tk_44_the_header_of_keys_cannot_have_another_meaning() {
    let header = |name: &str| format!("[auth]\nenabled = true\napi_key_header = \"{name}\"");
    let settings = load(&header("X-Team-Key")).unwrap();
    assert_eq!(credentials(&settings).api_key_header, "x-team-key");
    for bad in ["Authorization", "host", "grpc-timeout", "key-bin", "a b", "", "X-Request-Id"] {
        assert!(problem(&header(bad)).contains("api_key_header"), "{bad}");
    }
}

#[test]
fn errors_about_the_file_never_show_its_lines() {
    let broken = "[auth]\nenabled = true\n[[auth.api_keys]]\nkey = \"k1-secret-value\npermissions";
    let error = load(broken).unwrap_err();
    assert!(matches!(error, Error::Syntax { .. }), "{error}");
    assert!(!error.to_string().contains("secret"), "{error}");
    let error = load("[auth]\nenabled = = true").unwrap_err();
    assert!(matches!(error, Error::Syntax { line: 2, column: 11, .. }), "{error}");
    let typed = "[auth]\napi_keys = \"k1-secret-value\"";
    assert!(!problem(typed).contains("secret"));
    assert!(problem("[auth]\nenabled = \"perhaps\"").contains("auth.enabled"));
    assert!(problem("[limits]\nbody_bytes = 1024.5").contains("body_bytes"));
    assert!(problem("auth = 1").contains("table"));
}

#[test]
fn values_out_of_bounds_are_refused() {
    for text in [
        "[server]\ngrpc_listen = \"nowhere\"",
        "[server]\nallowed_hosts = [\"http://x\"]",
        "[server]\nallowed_hosts = [\"*\"]",
        "[server]\nallowed_origins = [\"*\"]",
        "[server]\nallowed_origins = [\"https://a.example/path\"]",
        "[server]\nallowed_origins = [\"https://u@a.example\"]",
        "[server]\npublic_url = \"ftp://x\"",
        "[storage]\nurl = \"sqlite::memory:\"",
        "[storage]\nurl = \"mysql://x\"",
        "[limits]\nbody_bytes = 0",
        "[limits]\nconcurrent_calls = -1",
        "[limits]\nrequest_timeout_seconds = 0",
        "[telemetry]\nlog_format = \"xml\"",
        "[telemetry]\nlog_level = \"a=b=c\"",
        "[telemetry]\notlp_endpoint = \"collector:4317\"",
        "[auth]\njwt_token_expiry_hours = 0",
        "[auth]\npermissions_claim = \"sub\"",
        "[auth]\njwt_namespaces = [\"\"]",
    ] {
        assert!(load(text).is_err(), "{text}");
    }
    let good = "[server]\nallowed_hosts = [\"Console.example\", \"10.0.0.1\"]\n\
                allowed_origins = [\"https://a.example:8443\"]\npublic_url = \"https://b.example/\"\n\
                [telemetry]\nlog_format = \"json\"\notlp_endpoint = \"http://127.0.0.1:4317\"\n";
    let settings = load(good).unwrap();
    assert_eq!(settings.server.allowed_hosts, ["console.example", "10.0.0.1"]);
    assert_eq!(settings.server.public_url.as_deref(), Some("https://b.example"));
}

#[test]
fn se_11_the_redacted_view_holds_no_secret_and_no_path() {
    let text = format!(
        "[auth]\nenabled = true\njwt_issuer = \"i\"\njwt_audience = \"a\"\n\
         jwt_public_key = \"the-pem\"\n{KEY}[telemetry]\notlp_endpoint = \"http://collector:1\"\n\
         [storage]\nurl = \"sqlite:/private/place/x.db\"\n"
    );
    let settings = load(&text).unwrap();
    let shown = settings.redacted().to_string();
    assert!(shown.contains("tasks:read") && shown.contains("\"issuer\":\"i\""), "{shown}");
    let debug = format!("{settings:?}");
    for hidden in ["secret", "the-pem", "private", "collector"] {
        assert!(!shown.contains(hidden), "{hidden} in {shown}");
    }
    assert!(!debug.contains("secret"), "{debug}");
}

#[test]
fn the_documented_configuration_loads_but_for_what_comes_later() {
    let text = r#"
[server]
grpc_listen = "127.0.0.1:9190"
http_listen = "127.0.0.1:8080"
config_endpoint_enabled = false

[storage]
url = "sqlite:bailiwick-data/bailiwick.db"

[auth]
enabled = true
jwt_public_key = "pem"
jwt_issuer = "bailiwick"
jwt_audience = "bailiwick-api"
jwt_token_expiry_hours = 24
jwt_verification_method = "public_key"
jwks_refresh_interval_seconds = 3600
permissions_claim = "permissions"
strict_validation = true
log_unknown_permissions = true
api_key_header = "X-API-Key"
api_keys_enabled = true
token_store = "database"
extra_permissions = ["bundles:read"]

[[auth.api_keys]]
key = "sk-prod-key-1"
permissions = ["tasks:read", "tasks:list", "steps:read"]
namespaces = ["*"]
description = "Read-only monitoring service"
"#;
    let settings = load(text).unwrap();
    assert_eq!(settings.auth.jwt_token_expiry, Duration::from_hours(24));
    assert_eq!(credentials(&settings).api_keys.len(), 1);
}

#[test]
fn ze_45_limits_are_off_by_default_and_each_class_may_have_its_own() {
    let rate = |per_second, burst| {
        let [per_second, burst] = [per_second, burst].map(|n| NonZeroU32::new(n).unwrap());
        Some(Rate { per_second, burst })
    };
    let default = load("").unwrap().limits;
    let failed_auth_per_minute = NonZeroU32::new(120);
    assert_eq!(default.rates, Rates { failed_auth_per_minute, ..Rates::default() });
    assert_eq!(default.trusted_proxies, []);

    let text = "[limits]\nrequests_per_second = 10\nburst = 30\nheavy_requests_per_second = 2\n\
                work_requests_per_second = 0\ncredentials_burst = 5\n\
                failed_auth_per_minute = 0\ntrusted_proxies = [\"10.0.0.0/8\", \"::1\"]\n";
    let limits = load(text).unwrap().limits;
    assert_eq!(limits.rates.standard, rate(10, 30));
    assert_eq!(limits.rates.heavy, rate(2, 2));
    assert_eq!(limits.rates.work, None);
    assert_eq!(limits.rates.credentials, rate(10, 5));
    assert_eq!(limits.rates.failed_auth_per_minute, None);
    let proxies: Vec<String> = limits.trusted_proxies.iter().map(ToString::to_string).collect();
    assert_eq!(proxies, ["10.0.0.0/8", "::1"]);

    let variables = [
        ("BAILIWICK__LIMITS__REQUESTS_PER_SECOND", "7"),
        ("BAILIWICK__LIMITS__HEAVY_REQUESTS_PER_SECOND", "3"),
        ("BAILIWICK__LIMITS__HEAVY_BURST", "9"),
    ];
    let settings = load_with("", &variables).unwrap();
    assert_eq!(settings.limits.rates.standard, rate(7, 7));
    assert_eq!(settings.limits.rates.heavy, rate(3, 9));
    let shown = settings.redacted();
    assert_eq!(shown["limits"]["requests_per_second"], 7);
    assert_eq!(shown["limits"]["heavy_burst"], 9);
    assert_eq!(shown["limits"]["failed_auth_per_minute"], 120);
}

#[test]
fn se_64_what_egress_may_reach_is_read_and_shown() {
    assert!(load("").unwrap().limits.egress.allow.is_empty());
    let text = "[limits]\negress_allow = [\"10.1.0.0/16\", \"::1\"]\negress_ca_path = \"\"\n";
    let settings = load(text).unwrap();
    let shown = settings.redacted();
    assert_eq!(shown["limits"]["egress_allow"], serde_json::json!(["10.1.0.0/16", "::1"]));
    assert!(settings.limits.egress.ca.is_none());
    let said = problem("[limits]\negress_ca_path = \"no-such-file.pem\"\n");
    assert!(said.contains("limits.egress_ca_path") && said.contains("no-such-file.pem"), "{said}");
}

#[test]
fn wrong_limits_are_refused_by_name() {
    for (line, name) in [
        ("requests_per_second = 1000001", "limits.requests_per_second"),
        ("requests_per_second = -1", "limits.requests_per_second"),
        ("requests_per_second = 0.5", "limits.requests_per_second"),
        ("burst = 5", "limits.requests_per_second"),
        ("work_burst = 5", "limits.work_requests_per_second"),
        ("heavy_requests_per_second = \"many\"", "limits.heavy_requests_per_second"),
        ("trusted_proxies = [\"10.0.0.1/8\"]", "limits.trusted_proxies"),
        ("trusted_proxies = [\"proxy.example\"]", "limits.trusted_proxies"),
        ("egress_allow = [\"10.0.0.1/8\"]", "limits.egress_allow"),
        ("egress_allow = [\"redis.example\"]", "limits.egress_allow"),
    ] {
        let said = problem(&format!("[limits]\n{line}\n"));
        assert!(said.contains(name), "{line}: {said}");
    }
}

#[test]
fn tls_is_whole_or_not_there() {
    for (text, key) in [
        ("tls_cert = \"c.pem\"", "server.tls_key"),
        ("tls_key = \"k.pem\"", "server.tls_cert"),
        ("client_ca = \"ca.pem\"", "server.client_ca"),
        ("client_trust_domains = [\"a\"]", "server.client_trust_domains"),
        ("client_ca = \"ca.pem\"\nclient_trust_domains = [\"A\"]", "server.client_trust_domains"),
        (
            "client_authorities = [{ ca = \"a\", trust_domains = [\"a\"] }]",
            "server.client_authorities",
        ),
    ] {
        let error = load(&format!("[server]\n{text}")).unwrap_err();
        assert!(matches!(&error, Error::Invalid { key: found, .. } if found == key), "{error}");
    }
    assert_eq!(load("[server]\ntls_cert = \"\"\ntls_key = \"\"").unwrap().server.tls, None);
}

#[test]
fn se_46_a_rule_for_certificates_is_checked() {
    let tls = "[server]\ntls_cert = \"c\"\ntls_key = \"k\"\nclient_ca = \"a\"\nclient_trust_domains = [\"shop\"]\n";
    let rule = |spiffe: &str, permission: &str| {
        format!("[[auth.certificates]]\nspiffe = \"{spiffe}\"\npermissions = [\"{permission}\"]\n")
    };
    let with = |rules: &str| load(&format!("{tls}{rules}[auth]\nenabled = true\n"));
    let settings = with(&rule("spiffe://shop/workers/*", "work:lease")).unwrap();
    let Mode::On(credentials) = settings.auth.mode else { panic!("off") };
    assert_eq!(&*credentials.certificates.rules[0].spiffe, "spiffe://shop/workers/*");
    for (rules, problem) in [
        (rule("spiffe://shop/*/a", "*"), "must be spiffe://"),
        (rule("spiffe://shop/a*", "*"), "must be spiffe://"),
        (rule("spiffe://*/a", "*"), "must be spiffe://"),
        (rule("spiffe://*", "*"), "must be spiffe://"),
        (rule("spiffe://other/a", "*"), "does not list `other`"),
        (rule("spiffe://shop/a", "tasks:fly"), "unknown permission `tasks:fly`"),
        (rule("spiffe://shop/a", "*").repeat(2), "has the same `spiffe` as #1"),
    ] {
        let error = with(&rules).unwrap_err().to_string();
        assert!(error.contains("auth.certificates #") && error.contains(problem), "{error}");
    }
    let error = load(&rule("spiffe://shop/a", "*")).unwrap_err().to_string();
    assert!(error.contains("auth.certificates") && error.contains("server.client_ca"), "{error}");
}

#[test]
fn se_46_an_authority_comes_with_its_trust_domains() {
    let with = |entries: &str| {
        let rule =
            "[[auth.certificates]]\nspiffe = \"spiffe://acme.example/a\"\npermissions = []\n";
        load(&format!(
            "[server]\ntls_cert = \"c\"\ntls_key = \"k\"\n{entries}[auth]\nenabled = true\n{rule}"
        ))
    };
    let clients = |entries: &str| {
        let settings = with(entries).unwrap();
        let shown = settings.redacted();
        let clients = settings.server.tls.unwrap().clients;
        let names = |entry: &ClientAuthority| {
            entry.trust_domains.iter().map(ToString::to_string).collect::<Vec<_>>()
        };
        let shown = shown["server"]["client_authorities"].as_array().unwrap().clone();
        for (entry, shown) in clients.iter().zip(&shown) {
            assert_eq!(shown, &serde_json::json!({ "trust_domains": names(entry) }));
        }
        assert_eq!(shown.len(), clients.len());
        let file =
            |entry: &ClientAuthority| entry.ca.file_name().unwrap().to_str().unwrap().to_owned();
        let all = clients.iter().map(|entry| (file(entry), names(entry), entry.shared));
        all.collect::<Vec<_>>()
    };
    let entry = |ca: &str, names: &str| {
        format!("[[server.client_authorities]]\nca = \"{ca}\"\ntrust_domains = [{names}]\n")
    };
    let (acme, partner) =
        (entry("a.pem", "\"acme.example\""), entry("p.pem", "\"partner.example\", \"p\""));
    assert_eq!(
        clients(&format!("{acme}{partner}")),
        [
            ("a.pem".to_owned(), vec!["acme.example".to_owned()], true),
            ("p.pem".to_owned(), vec!["p".to_owned(), "partner.example".to_owned()], true),
        ]
    );
    // The short form without a list: what has a rule.
    let short = "client_ca = \"a.pem\"\n";
    let ruled = ("a.pem".to_owned(), vec!["acme.example".to_owned()], false);
    assert_eq!(clients(short), [ruled]);
    let listed = "client_trust_domains = [\"acme.example\", \"b\"]\n";
    let names = vec!["acme.example".to_owned(), "b".to_owned()];
    assert_eq!(clients(&format!("{short}{listed}")), [("a.pem".to_owned(), names, false)]);

    for (entries, problem) in [
        (format!("{short}{acme}"), "takes the place of `server.client_ca`"),
        (format!("{listed}{acme}"), "`server.client_trust_domains`: is of no use without"),
        (partner, "`server.client_authorities` does not list `acme.example`"),
        (format!("{acme}{}", entry("b", "")), "#2`: `trust_domains` must list"),
        (format!("{acme}{}", entry("", "\"b\"")), "#2`: `ca` must be a PEM file"),
        (format!("{acme}{}", entry("b", "\"B\"")), "#2`: `B` is no trust domain"),
        (format!("{acme}crl = \"b\"\n"), "server.client_authorities #1: crl"),
        ("[[server.client_authorities]]\nca = \"b\"\n".to_owned(), "`trust_domains` is missing"),
        ("[[server.client_authorities]]\ntrust_domains = [\"b\"]\n".to_owned(), "`ca` is missing"),
        ("client_authorities = [\"b\"]\n".to_owned(), "server.client_authorities #1`: expected"),
    ] {
        let error = with(&entries).unwrap_err().to_string();
        assert!(error.contains(problem), "{entries}: {error}");
    }
}

#[test]
fn se_46_a_misspelt_scope_of_a_certificate_is_no_scope_of_everything() {
    let error = load(
        "[server]\ntls_cert = \"c\"\ntls_key = \"k\"\nclient_ca = \"a\"\n[[auth.certificates]]\n\
         spiffe = \"spiffe://a/b\"\npermissions = [\"*\"]\nnamespace = [\"shop\"]\n",
    );
    let error = error.unwrap_err().to_string();
    assert!(error.contains("did you mean `namespaces`?"), "{error}");
}

const ISSUER: &str = "[[auth.issuers]]\nissuer = \"https://b\"\naudience = \"x\"\n";

#[test]
fn tk_38_key_sets_need_https_an_issuer_and_an_audience() {
    let jwks = |lines: &str| {
        let auth = "[auth]\nenabled = true\njwt_verification_method = \"jwks\"\n";
        load(&format!("{auth}{lines}"))
    };
    let both = "jwt_issuer = \"https://idp\"\njwt_audience = \"a\"\n";
    let settings = jwks(both).unwrap();
    let Keys::Jwks(jwks_of) = &credentials(&settings).issuers[0].keys else { panic!("a PEM") };
    assert_eq!(jwks_of.url, None);
    for good in [
        "jwks_url = \"https://idp/keys\"\n",
        "jwks_url = \"http://10.0.0.1/keys\"\njwks_url_allow_http = true\n",
    ] {
        assert!(jwks(&format!("{both}{good}")).is_ok(), "{good}");
    }
    for (bad, key) in [
        ("jwks_url = \"http://localhost/keys\"\n", "plain http"),
        ("jwks_url = \"file:///keys\"\n", "auth.jwks_url"),
        ("jwks_url = \"https://a:b@idp/keys\"\n", "auth.jwks_url"),
        ("jwks_refresh_interval_seconds = 0\n", "jwks_refresh_interval_seconds"),
    ] {
        let said = jwks(&format!("{both}{bad}")).unwrap_err().to_string();
        assert!(said.contains(key), "{said}");
    }
    for (lines, key) in [
        ("jwt_audience = \"a\"\n", "auth.jwt_issuer"),
        ("jwt_issuer = \"https://idp\"\n", "auth.jwt_audience"),
        ("jwt_issuer = \"idp\"\njwt_audience = \"a\"\n", "auth.jwt_issuer"),
        ("jwt_issuer = \"http://idp\"\njwt_audience = \"a\"\n", "plain http"),
    ] {
        let said = jwks(lines).unwrap_err().to_string();
        assert!(said.contains(key), "{said}");
    }
    assert!(problem("[auth]\njwks_url = \"https://idp/keys\"").contains("auth.jwks_url"));
}

#[test]
fn se_02_issuers_rules_and_roles_are_checked_when_they_load() {
    let on = "[auth]\nenabled = true\n";
    assert!(problem(&format!("{on}{ISSUER}{ISSUER}")).contains("there twice"));
    for (line, says) in [
        ("jwks_uri = \"x\"\n", "did you mean `jwks_url`"),
        ("discovery = true\njwks_url = \"https://b/k\"\n", "give one of"),
        ("jwks_url = \"http://b/k\"\n", "plain http"),
        ("algorithms = [\"HS256\"]\n", "algorithms"),
        ("namespaces = [\"a.*\"]\n", "namespaces"),
        ("namespaces_ceiling = [\"\"]\n", "namespaces_ceiling"),
        ("permissions_ceiling = [\"tasks:fly\"]\n", "tasks:fly"),
        ("permissions_claim = \"sub\"\n", "permissions_claim"),
    ] {
        let said = problem(&format!("{on}{ISSUER}{line}"));
        assert!(said.contains(says) && said.contains("auth.issuers #1"), "{said}");
    }
    let rule = |lines: &str| {
        format!(
            "{on}{ISSUER}[[auth.claim_rules]]\npermissions = [\"role:own\"]\n{lines}\n\
                 [auth.roles.own]\npermissions = [\"tasks:read\"]\n"
        )
    };
    let good = "issuer = \"https://b\"\nclaims = { Repo = \"a/*\", \"k.io.x\" = \"y\" }";
    let settings = load(&rule(good)).unwrap();
    let names: Vec<&str> = credentials(&settings).issuers[0].rules[0]
        .claims
        .iter()
        .map(|(name, _)| name.as_str())
        .collect();
    assert_eq!(names, ["Repo", "k.io.x"]);
    for (lines, says) in [
        ("issuer = \"https://c\"\nclaims = { a = \"b\" }", "no issuer"),
        ("issuer = \"https://b\"\nclaims = {}", "empty"),
        ("issuer = \"https://b\"", "`claims` is missing"),
        ("issuer = \"https://b\"\nclaims = { a = \"b\" }\nnamespaces = [\"x{a}\"]", "x{a}"),
    ] {
        let said = problem(&rule(lines));
        assert!(said.contains(says), "{said}");
    }
    for (role, says) in [
        ("[auth.roles.superuser]\npermissions = []", "built in"),
        ("[auth.roles.Own]\npermissions = []", "a role's name"),
        ("[auth.roles.own]\npermissions = [\"tasks:fly\"]", "tasks:fly"),
        ("[auth.roles.own]\npermission = []", "permissions"),
        ("[[auth.api_keys]]\nkey = \"k\"\npermissions = [\"role:nobody\"]", "unknown role"),
    ] {
        assert!(problem(role).contains(says), "{}", problem(role));
    }
}

#[test]
fn the_token_file_is_named_with_its_store_or_not_at_all() {
    let store = |text: &str| load(text).unwrap().auth.token_store;
    assert_eq!(
        store("[auth]\ntoken_store = \"database\"\ntoken_file = \"\""),
        TokenStore::Database
    );
    let TokenStore::File(path) = store("[auth]\ntoken_store = \"file\"") else { panic!() };
    assert!(path.ends_with("auth.token"));
    let named = store("[auth]\ntoken_store = \"file\"\ntoken_file = \"/run/tokens\"");
    assert_eq!(named, TokenStore::File("/run/tokens".into()));
    assert!(problem("[auth]\ntoken_file = \"auth.token\"").contains("auth.token_store"));
    assert!(
        problem("[auth]\ntoken_store = \"file\"\ntoken_file = \"keys/\"")
            .contains("path of a file")
    );
    assert!(problem("[auth]\ntoken_store = \"memory\"").contains("neither"));
}
