//! What `GetConfig` shows. Each field is named here by hand: an allow-list.

use serde_json::{Value, json};

use super::{Auth, LogFormat, Mode, Settings, Storage};

pub(super) fn redacted(settings: &Settings) -> Value {
    let Settings { server, storage, auth, limits, telemetry, warnings: _ } = settings;
    json!({
        "server": {
            "grpc_listen": server.grpc_listen.to_string(),
            "http_listen": server.http_listen.to_string(),
            "config_endpoint_enabled": server.config_endpoint_enabled,
            "allowed_hosts": server.allowed_hosts,
            "allowed_origins": server.allowed_origins,
            "public_url": server.public_url,
            "shutdown_grace_seconds": server.shutdown_grace.as_secs(),
        },
        "storage": { "engine": match storage { Storage::Sqlite(_) => "sqlite" } },
        "auth": redacted_auth(auth),
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
        "telemetry": {
            "log_format": match telemetry.log_format {
                LogFormat::Text => "text",
                LogFormat::Json => "json",
            },
            "log_level": telemetry.log_level,
            "otlp_configured": telemetry.otlp_endpoint.is_some(),
            "service_name": telemetry.service_name,
        },
    })
}

fn redacted_auth(auth: &Auth) -> Value {
    let mut shown = json!({
        "enabled": matches!(auth.mode, Mode::On(_)),
        "extra_permissions": auth.extra_permissions.iter().map(AsRef::as_ref).collect::<Vec<&str>>(),
        "jwt_token_expiry_hours": auth.jwt_token_expiry.as_secs() / 3600,
    });
    let Mode::On(credentials) = &auth.mode else { return shown };
    let keys: Vec<Value> = credentials
        .api_keys
        .iter()
        .map(|key| {
            json!({
                "description": key.subject.as_ref(),
                "permissions": key.permissions.names(),
                "namespaces": key.scope.to_strings(),
            })
        })
        .collect();
    let jwt = credentials.jwt.as_ref().map(|jwt| {
        json!({
            "issuer": jwt.issuer.as_ref(),
            "audience": jwt.audience,
            "leeway_seconds": jwt.leeway.as_secs(),
            "permissions_claim": jwt.permissions_claim,
            "strict_validation": jwt.strict,
            "log_unknown_permissions": jwt.log_unknown,
        })
    });
    if let Some(shown) = shown.as_object_mut() {
        shown.insert("api_key_header".to_owned(), credentials.api_key_header.as_str().into());
        shown.insert("api_keys".to_owned(), keys.into());
        shown.insert("jwt".to_owned(), jwt.into());
    }
    shown
}
