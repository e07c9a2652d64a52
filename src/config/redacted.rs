//! What `GetConfig` shows. Each field is named here by hand: an allow-list.

use std::{
    num::{NonZeroU32, NonZeroU64},
    time::Duration,
};

use serde_json::{Value, json};

use super::{
    Audit, AuditSink, Auth, ClientAuthority, Controller, Jwt, Keys, LogFormat, Mode, OwnRate,
    Rates, Scheduler, Settings, Storage, TokenStore,
};

pub(super) fn redacted(settings: &Settings) -> Value {
    let Settings {
        server,
        storage,
        auth,
        step_tokens: _,
        elevation_max,
        roles: _,
        controller,
        limits,
        scheduler,
        telemetry,
        audit,
        warnings: _,
    } = settings;
    let mut shown = json!({
        "server": {
            "grpc_listen": server.grpc_listen.to_string(),
            "http_listen": server.http_listen.to_string(),
            "config_endpoint_enabled": server.config_endpoint_enabled,
            "allowed_hosts": server.allowed_hosts,
            "allowed_origins": server.allowed_origins,
            "public_url": server.public_url,
            "shutdown_grace_seconds": server.shutdown_grace.as_secs(),
            "tls": server.tls.is_some(),
            "client_certificates": server.tls.as_ref().is_some_and(|tls| !tls.clients.is_empty()),
            "client_authorities": server.tls.iter().flat_map(|tls| &tls.clients)
                .map(redacted_authority).collect::<Vec<_>>(),
        },
        "storage": { "engine": match storage { Storage::Sqlite(_) => "sqlite" } },
        "auth": redacted_auth(auth, *elevation_max),
        "controller": controller.as_ref().map(redacted_controller),
        "limits": {
            "body_bytes": limits.body_bytes,
            "header_bytes": limits.header_bytes,
            "connections": limits.connections,
            "concurrent_calls": limits.concurrent_calls,
            "concurrent_streams": limits.concurrent_streams,
            "request_timeout_seconds": limits.request_timeout.as_secs(),
            "body_timeout_seconds": limits.body_timeout.as_secs(),
            "header_timeout_seconds": limits.header_timeout.as_secs(),
            "lease_seconds": limits.lease.as_secs(),
        },
        "scheduler": redacted_scheduler(scheduler),
        "telemetry": {
            "log_format": match telemetry.log_format {
                LogFormat::Text => "text",
                LogFormat::Json => "json",
            },
            "log_level": telemetry.log_level,
            "otlp_configured": telemetry.otlp_endpoint.is_some(),
            "service_name": telemetry.service_name,
        },
        "audit": redacted_audit(audit),
    });
    if let Some(shown) = shown.pointer_mut("/limits").and_then(Value::as_object_mut) {
        shown.extend(redacted_rates(&limits.rates));
        let proxies = limits.trusted_proxies.iter().map(ToString::to_string);
        shown.insert("trusted_proxies".to_owned(), proxies.collect());
        let allowed = limits.egress.allow.iter().map(ToString::to_string);
        shown.insert("egress_allow".to_owned(), allowed.collect());
    }
    shown
}

fn redacted_audit(audit: &Audit) -> Value {
    json!({
        "enabled": audit.enabled,
        "fail_closed": audit.fail_closed,
        "record_reads": audit.record_reads,
        "retention_days": audit.retention_days.map_or(0, NonZeroU32::get),
        "retention_mb": audit.retention_mb.map_or(0, NonZeroU32::get),
        "retention_min_days": audit.retention_min_days,
        "sinks": audit.sinks.iter().map(redacted_sink).collect::<Vec<_>>(),
        "sinks_wait_days": audit.sinks_wait_days,
    })
}

fn redacted_controller(controller: &Controller) -> Value {
    json!({
        "listen": controller.listen.to_string(),
        "auth_file": controller.tokens.is_some(),
        "tls": controller.tls.is_some(),
        "rule_id_prefixes": controller.rule_id_prefixes,
        "connections": controller.connections,
        "connections_per_address": controller.connections_per_address,
        "connections_per_token": controller.connections_per_token,
        "idle_seconds": controller.idle.map_or(0, |idle| idle.as_secs()),
    })
}

/// Where the audit goes is nobody's concern, only that it does.
fn redacted_sink(sink: &AuditSink) -> Value {
    json!({ "name": sink.name, "kind": sink.to.kind() })
}

/// As whom commands run is nobody's concern, only whether they do.
fn redacted_scheduler(scheduler: &Scheduler) -> Value {
    let runners: Vec<&str> = scheduler.runners.iter().map(|kind| kind.as_str()).collect();
    json!({
        "runners": runners,
        "max_concurrent_runs": scheduler.max_concurrent_runs,
        "jwt_grant_hours": scheduler.jwt_grant_hours.map_or(0, NonZeroU64::get),
        "command_timeout_seconds": scheduler.command_timeout.as_secs(),
    })
}

/// Where the files are is nobody's concern.
fn redacted_authority(authority: &ClientAuthority) -> Value {
    let names: Vec<&str> = authority.trust_domains.iter().map(AsRef::as_ref).collect();
    json!({ "trust_domains": names })
}

/// What is in force, under the names of the settings; 0 is off.
fn redacted_rates(rates: &Rates) -> impl Iterator<Item = (String, Value)> {
    let Rates {
        standard,
        heavy,
        work,
        credentials,
        failed_auth_per_minute,
        failed_introspections_per_minute,
    } = *rates;
    let classes =
        [("", standard), ("heavy_", heavy), ("work_", work), ("credentials_", credentials)];
    let failed = failed_auth_per_minute.map_or(0, NonZeroU32::get);
    let bad = failed_introspections_per_minute.map_or(0, NonZeroU32::get);
    classes
        .into_iter()
        .flat_map(|(class, rate)| {
            let (rate, burst) = rate.map_or((0, 0), |r| (r.per_second.get(), r.burst.get()));
            [
                (format!("{class}requests_per_second"), rate.into()),
                (format!("{class}burst"), burst.into()),
            ]
        })
        .chain([
            ("failed_auth_per_minute".to_owned(), failed.into()),
            ("failed_introspections_per_minute".to_owned(), bad.into()),
        ])
}

fn redacted_auth(auth: &Auth, elevation_max: Duration) -> Value {
    let mut shown = json!({
        "enabled": matches!(auth.mode, Mode::On(_)),
        "extra_permissions": auth.extra_permissions.iter().map(AsRef::as_ref).collect::<Vec<&str>>(),
        "token_store": match auth.token_store {
            TokenStore::Database => "database",
            TokenStore::File(_) => "file",
        },
        "disable_unused_after_days": auth.disable_unused_after_days.map_or(0, NonZeroU32::get),
        "elevation_max_minutes": elevation_max.as_secs() / 60,
        "jwt_token_expiry_hours": auth.jwt_token_expiry.as_secs() / 3600,
    });
    let Mode::On(credentials) = &auth.mode else { return shown };
    let keys: Vec<Value> = credentials
        .api_keys
        .iter()
        .map(|key| {
            let (per_second, burst) = match key.rate {
                OwnRate::None => (None, None),
                OwnRate::Unlimited => (Some(0), Some(0)),
                OwnRate::Limited(rate) => (Some(rate.per_second.get()), Some(rate.burst.get())),
            };
            json!({
                "description": key.subject.as_ref(),
                "permissions": key.permissions.names(),
                "namespaces": key.scope.to_strings(),
                "requests_per_second": per_second,
                "burst": burst,
            })
        })
        .collect();
    let issuers: Vec<Value> = credentials.issuers.iter().map(redacted_issuer).collect();
    if let Some(shown) = shown.as_object_mut() {
        shown.insert("api_key_header".to_owned(), credentials.api_key_header.as_str().into());
        shown.insert("api_keys".to_owned(), keys.into());
        shown.insert("issuers".to_owned(), issuers.into());
    }
    shown
}

/// A JWKS URL is not shown: its query may hold a key.
fn redacted_issuer(jwt: &Jwt) -> Value {
    json!({
        "issuer": jwt.issuer.as_ref(),
        "audience": jwt.audience,
        "keys": match &jwt.keys {
            Keys::Pem { .. } => "public_key",
            Keys::Jwks(_) => "jwks",
        },
        "leeway_seconds": jwt.leeway.as_secs(),
        "permissions_claim": jwt.permissions_claim,
        "permissions_ceiling": jwt.permissions_ceiling.names(),
        "namespaces_ceiling": jwt.namespaces_ceiling.to_strings(),
        "strict_validation": jwt.strict,
        "log_unknown_permissions": jwt.log_unknown,
        "claim_rules": jwt.rules.len(),
    })
}
