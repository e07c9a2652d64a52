//! What is taken and what is refused. Not here: `auth`, `limits`, `tls`.

mod audit_sinks;
mod auth;
mod limits;
mod steps;
mod tls;

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
    let error = load("[storage]\nurl = \"postgres://x/y\"").unwrap_err();
    assert!(matches!(error, Error::NotYet { .. }), "{error}");
    assert!(error.to_string().contains("postgres://"), "{error}");
    assert!(error.to_string().contains("not supported by this version yet"), "{error}");
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
        "[server]\npublic_url = \"http://b.example\"",
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
