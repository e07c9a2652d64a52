//! The settings as they are written. The fields' names are the keys: which
//! keys are known is read from here and stands nowhere else.

use std::collections::BTreeMap;

use serde::Deserialize;

/// All tables.
#[derive(Default, Deserialize)]
#[serde(default)]
pub(super) struct Raw {
    pub(super) server: Server,
    pub(super) storage: Storage,
    pub(super) auth: Auth,
    pub(super) controller: Option<Controller>,
    pub(super) limits: Limits,
    pub(super) scheduler: Scheduler,
    pub(super) telemetry: Telemetry,
    pub(super) audit: Audit,
}

#[derive(Deserialize)]
#[serde(default)]
pub(super) struct Server {
    pub(super) grpc_listen: String,
    pub(super) http_listen: String,
    pub(super) config_endpoint_enabled: bool,
    pub(super) allowed_hosts: Vec<String>,
    pub(super) allowed_origins: Vec<String>,
    pub(super) public_url: Option<String>,
    pub(super) shutdown_grace_seconds: u64,
    pub(super) tls_cert: Option<String>,
    pub(super) tls_key: Option<String>,
    pub(super) client_ca: Option<String>,
    pub(super) client_trust_domains: Vec<String>,
    pub(super) client_authorities: Vec<ClientAuthority>,
}

impl Default for Server {
    fn default() -> Self {
        Self {
            grpc_listen: "127.0.0.1:9190".to_owned(),
            http_listen: "127.0.0.1:8080".to_owned(),
            config_endpoint_enabled: false,
            allowed_hosts: Vec::new(),
            allowed_origins: Vec::new(),
            public_url: None,
            shutdown_grace_seconds: 20,
            tls_cert: None,
            tls_key: None,
            client_ca: None,
            client_trust_domains: Vec::new(),
            client_authorities: Vec::new(),
        }
    }
}

/// One of `[[server.client_authorities]]`.
#[derive(Deserialize)]
pub(super) struct ClientAuthority {
    pub(super) ca: String,
    pub(super) trust_domains: Vec<String>,
}

#[derive(Deserialize)]
#[serde(default)]
pub(super) struct Storage {
    pub(super) url: String,
}

impl Default for Storage {
    fn default() -> Self {
        Self { url: "sqlite:bailiwick-data/bailiwick.db".to_owned() }
    }
}

#[derive(Deserialize)]
#[serde(default)]
#[expect(clippy::struct_excessive_bools, reason = "each is a key of its own in the file")]
pub(super) struct Auth {
    pub(super) enabled: bool,
    pub(super) allow_unauthenticated_remote: bool,
    pub(super) jwt_issuer: Option<String>,
    pub(super) jwt_audience: Option<String>,
    pub(super) jwt_namespaces: Vec<String>,
    pub(super) jwt_token_expiry_hours: u64,
    pub(super) jwt_public_key_path: Option<String>,
    pub(super) jwt_public_key: Option<String>,
    pub(super) jwt_verification_method: String,
    pub(super) jwt_allowed_algorithms: Option<Vec<String>>,
    pub(super) jwt_leeway_seconds: u64,
    pub(super) jwks_url: Option<String>,
    pub(super) jwks_url_allow_http: bool,
    pub(super) jwks_ca_path: Option<String>,
    pub(super) jwks_refresh_interval_seconds: u64,
    pub(super) jwks_max_stale_seconds: u64,
    pub(super) permissions_claim: String,
    pub(super) strict_validation: bool,
    pub(super) log_unknown_permissions: bool,
    pub(super) api_key_header: String,
    pub(super) api_keys_enabled: bool,
    pub(super) api_keys: Vec<ApiKey>,
    pub(super) certificates: Vec<CertificateRule>,
    pub(super) token_store: String,
    pub(super) token_file: Option<String>,
    pub(super) extra_permissions: Vec<String>,
    pub(super) issuers: Vec<Issuer>,
    pub(super) claim_rules: Vec<ClaimRule>,
    pub(super) roles: BTreeMap<String, Role>,
    pub(super) disable_unused_after_days: u64,
    pub(super) namespaces: Vec<NamespaceRights>,
    pub(super) key_encryption_key_file: Option<String>,
    pub(super) elevation_max_minutes: u64,
}

impl Default for Auth {
    fn default() -> Self {
        Self {
            enabled: false,
            allow_unauthenticated_remote: false,
            jwt_issuer: None,
            jwt_audience: None,
            jwt_namespaces: vec!["*".to_owned()],
            jwt_token_expiry_hours: 24,
            jwt_public_key_path: None,
            jwt_public_key: None,
            jwt_verification_method: "public_key".to_owned(),
            jwt_allowed_algorithms: None,
            jwt_leeway_seconds: 0,
            jwks_url: None,
            jwks_url_allow_http: false,
            jwks_ca_path: None,
            jwks_refresh_interval_seconds: 3600,
            jwks_max_stale_seconds: 86_400,
            permissions_claim: "permissions".to_owned(),
            strict_validation: true,
            log_unknown_permissions: true,
            api_key_header: "X-API-Key".to_owned(),
            api_keys_enabled: true,
            api_keys: Vec::new(),
            certificates: Vec::new(),
            token_store: "database".to_owned(),
            token_file: None,
            extra_permissions: Vec::new(),
            issuers: Vec::new(),
            claim_rules: Vec::new(),
            roles: BTreeMap::new(),
            disable_unused_after_days: 0,
            namespaces: Vec::new(),
            key_encryption_key_file: None,
            elevation_max_minutes: 60,
        }
    }
}

/// One of `[[auth.api_keys]]`. No `Debug`: it holds the key itself.
#[derive(Deserialize)]
pub(super) struct ApiKey {
    pub(super) key: String,
    pub(super) permissions: Vec<String>,
    #[serde(default)]
    pub(super) namespaces: Option<Vec<String>>,
    #[serde(default)]
    pub(super) description: Option<String>,
    #[serde(default)]
    pub(super) requests_per_second: Option<u64>,
    #[serde(default)]
    pub(super) burst: Option<u64>,
}

/// One of `[[auth.certificates]]`.
#[derive(Deserialize)]
pub(super) struct CertificateRule {
    pub(super) spiffe: String,
    pub(super) permissions: Vec<String>,
    #[serde(default)]
    pub(super) namespaces: Option<Vec<String>>,
    /// For whoever reads the file.
    #[serde(default)]
    #[expect(dead_code, reason = "a remark in the file; the subject is the SPIFFE ID")]
    pub(super) description: Option<String>,
}

/// One of `[[auth.issuers]]`.
#[derive(Deserialize)]
pub(super) struct Issuer {
    pub(super) issuer: String,
    pub(super) audience: String,
    pub(super) public_key_path: Option<String>,
    pub(super) jwks_url: Option<String>,
    #[serde(default)]
    pub(super) discovery: bool,
    pub(super) algorithms: Option<Vec<String>>,
    pub(super) permissions_claim: Option<String>,
    pub(super) namespaces: Option<Vec<String>>,
    pub(super) permissions_ceiling: Option<Vec<String>>,
    pub(super) namespaces_ceiling: Option<Vec<String>>,
    pub(super) strict: Option<bool>,
    pub(super) jwks_refresh_interval_seconds: Option<u64>,
    pub(super) jwks_max_stale_seconds: Option<u64>,
    #[serde(default)]
    pub(super) jwks_url_allow_http: bool,
    pub(super) jwks_ca_path: Option<String>,
}

/// One of `[[auth.claim_rules]]`.
#[derive(Deserialize)]
pub(super) struct ClaimRule {
    pub(super) issuer: String,
    pub(super) claims: BTreeMap<String, String>,
    pub(super) permissions: Vec<String>,
    pub(super) namespaces: Option<Vec<String>>,
}

/// One of `[[auth.namespaces]]`.
#[derive(Deserialize)]
pub(super) struct NamespaceRights {
    pub(super) prefix: String,
    pub(super) ceiling: Option<Vec<String>>,
    #[serde(default)]
    pub(super) audiences: BTreeMap<String, String>,
}

/// One `[auth.roles.NAME]`.
#[derive(Deserialize)]
pub(super) struct Role {
    pub(super) permissions: Vec<String>,
}

#[derive(Deserialize)]
#[serde(default)]
pub(super) struct Controller {
    pub(super) listen: String,
    pub(super) auth_file: Option<String>,
    pub(super) tls_cert: Option<String>,
    pub(super) tls_key: Option<String>,
    pub(super) strict_file_mode: bool,
    pub(super) rule_id_prefixes: Vec<String>,
    pub(super) connections: u64,
    pub(super) connections_per_address: u64,
    pub(super) connections_per_token: u64,
    pub(super) idle_seconds: u64,
}

impl Default for Controller {
    fn default() -> Self {
        Self {
            listen: "127.0.0.1:5678".to_owned(),
            auth_file: None,
            tls_cert: None,
            tls_key: None,
            strict_file_mode: false,
            rule_id_prefixes: vec![super::RULE_ID_PREFIX.to_owned()],
            connections: 16_384,
            connections_per_address: 0,
            connections_per_token: 0,
            idle_seconds: 0,
        }
    }
}

#[derive(Deserialize)]
#[serde(default)]
pub(super) struct Limits {
    pub(super) body_bytes: u64,
    pub(super) header_bytes: u64,
    pub(super) connections: u64,
    pub(super) concurrent_calls: u64,
    pub(super) concurrent_streams: u64,
    pub(super) request_timeout_seconds: u64,
    pub(super) body_timeout_seconds: u64,
    pub(super) header_timeout_seconds: u64,
    pub(super) lease_seconds: u64,
    pub(super) requests_per_second: u64,
    pub(super) burst: u64,
    pub(super) heavy_requests_per_second: Option<u64>,
    pub(super) heavy_burst: Option<u64>,
    pub(super) work_requests_per_second: Option<u64>,
    pub(super) work_burst: Option<u64>,
    pub(super) credentials_requests_per_second: Option<u64>,
    pub(super) credentials_burst: Option<u64>,
    pub(super) failed_auth_per_minute: u64,
    pub(super) failed_introspections_per_minute: u64,
    pub(super) trusted_proxies: Vec<String>,
    pub(super) egress_allow: Vec<String>,
    pub(super) egress_ca_path: Option<String>,
    pub(super) spawned_tasks_per_root: u64,
}

impl Default for Limits {
    fn default() -> Self {
        Self {
            body_bytes: 4 << 20,
            header_bytes: 32 << 10,
            connections: 8192,
            concurrent_calls: 4096,
            concurrent_streams: 256,
            // More than the longest long poll, which waits for 60 s.
            request_timeout_seconds: 90,
            body_timeout_seconds: 30,
            header_timeout_seconds: 10,
            lease_seconds: 30,
            requests_per_second: 0,
            burst: 0,
            heavy_requests_per_second: None,
            heavy_burst: None,
            work_requests_per_second: None,
            work_burst: None,
            credentials_requests_per_second: None,
            credentials_burst: None,
            failed_auth_per_minute: 120,
            failed_introspections_per_minute: 600,
            trusted_proxies: Vec::new(),
            egress_allow: Vec::new(),
            egress_ca_path: None,
            spawned_tasks_per_root: 1_000,
        }
    }
}

#[derive(Deserialize)]
#[serde(default)]
pub(super) struct Scheduler {
    pub(super) runners: Vec<String>,
    pub(super) run_as: Option<String>,
    pub(super) max_concurrent_runs: u64,
    pub(super) jwt_grant_hours: u64,
    pub(super) command_timeout_seconds: u64,
}

impl Default for Scheduler {
    fn default() -> Self {
        Self {
            runners: vec!["task".to_owned(), "http".to_owned()],
            run_as: None,
            max_concurrent_runs: 64,
            jwt_grant_hours: 0,
            command_timeout_seconds: 300,
        }
    }
}

#[derive(Deserialize)]
#[serde(default)]
pub(super) struct Telemetry {
    pub(super) log_format: String,
    pub(super) log_level: String,
    pub(super) otlp_endpoint: Option<String>,
    pub(super) service_name: String,
}

impl Default for Telemetry {
    fn default() -> Self {
        Self {
            log_format: "text".to_owned(),
            log_level: "info".to_owned(),
            otlp_endpoint: None,
            service_name: "bailiwick".to_owned(),
        }
    }
}

#[derive(Deserialize)]
#[serde(default)]
pub(super) struct Audit {
    pub(super) enabled: bool,
    pub(super) key_file: Option<String>,
    pub(super) fail_closed: bool,
    pub(super) record_reads: bool,
    pub(super) retention_days: u64,
    pub(super) retention_mb: u64,
    pub(super) retention_min_days: u64,
    pub(super) sinks: Vec<AuditSink>,
    pub(super) sinks_wait_days: u64,
}

impl Default for Audit {
    fn default() -> Self {
        Self {
            enabled: true,
            key_file: None,
            fail_closed: false,
            record_reads: true,
            retention_days: 0,
            retention_mb: 0,
            retention_min_days: 1,
            sinks: Vec::new(),
            sinks_wait_days: 7,
        }
    }
}

/// One of `[[audit.sinks]]`.
#[derive(Deserialize)]
pub(super) struct AuditSink {
    pub(super) name: String,
    pub(super) kind: String,
    pub(super) format: Option<String>,
    pub(super) path: Option<String>,
    pub(super) address: Option<String>,
    pub(super) facility: Option<String>,
    pub(super) endpoint: Option<String>,
    pub(super) ca_path: Option<String>,
}

/// Settings of later versions. One that is off (`false`, 0, empty) does no
/// harm; any other would be believed and not hold, so it stops the start.
pub(super) const LATER: &[(&str, &[&str])] = &[];
