//! OTLP over gRPC: a log record for each record of the audit.

use std::{sync::Arc, time::Duration};

use async_trait::async_trait;
use opentelemetry_proto::tonic::{
    collector::logs::v1::{ExportLogsServiceRequest, logs_service_client::LogsServiceClient},
    common::v1::{AnyValue, ArrayValue, InstrumentationScope, KeyValue, any_value},
    logs::v1::{LogRecord, ResourceLogs, ScopeLogs, SeverityNumber},
    resource::v1::Resource,
};
use thiserror::Error;
use tonic::transport::{Certificate, Channel, ClientTlsConfig, Endpoint};

use super::{
    Format, Sealed, Sink, Unsent,
    format::{Actor, Fields, Weight},
};
use crate::{audit::chain::hex, domain::Clock};

/// How long a connection may take.
const CONNECT_MAX: Duration = Duration::from_secs(5);
/// How long one request may take.
const TIME_MAX: Duration = Duration::from_secs(30);

/// How many records are sent in one request.
const ROWS_MAX: usize = 250;
/// How many bytes of records are; with all that stands beside them they are
/// less than the 4 MiB that collectors take.
const BYTES_MAX: usize = 512 << 10;

/// The collector cannot be named like this.
#[derive(Debug, Error)]
#[error("{0}")]
pub struct OtlpError(#[from] tonic::transport::Error);

/// Sends to a collector.
#[derive(Debug)]
pub struct Otlp {
    client: LogsServiceClient<Channel>,
    format: Format,
    service: String,
    clock: Arc<dyn Clock>,
}

impl Otlp {
    /// Connects when there is something to send. `ca` is the PEM of who alone
    /// vouches for the collector; without, the system's authorities do.
    pub fn new(
        endpoint: &str,
        ca: Option<&str>,
        service: &str,
        format: Format,
        clock: Arc<dyn Clock>,
    ) -> Result<Self, OtlpError> {
        let mut to = Endpoint::from_shared(endpoint.to_owned())?
            .connect_timeout(CONNECT_MAX)
            .timeout(TIME_MAX);
        if endpoint.starts_with("https://") {
            let tls = ClientTlsConfig::new();
            to = to.tls_config(match ca {
                Some(pem) => tls.ca_certificate(Certificate::from_pem(pem)),
                None => tls.with_native_roots(),
            })?;
        }
        let client = LogsServiceClient::new(to.connect_lazy());
        Ok(Self { client, format, service: service.to_owned(), clock })
    }

    fn request(&self, records: &[Sealed]) -> ExportLogsServiceRequest {
        let now = nanos(self.clock.now().micros());
        let log_records = records.iter().map(|one| log_record(one, self.format, now)).collect();
        let service = vec![text("service.name", &self.service)];
        let version = env!("CARGO_PKG_VERSION").to_owned();
        let scope = InstrumentationScope {
            name: "bailiwick.audit".to_owned(),
            version,
            ..InstrumentationScope::default()
        };
        let logs = ScopeLogs { scope: Some(scope), log_records, ..ScopeLogs::default() };
        let resource = Resource { attributes: service, ..Resource::default() };
        let logs = ResourceLogs {
            resource: Some(resource),
            scope_logs: vec![logs],
            ..ResourceLogs::default()
        };
        ExportLogsServiceRequest { resource_logs: vec![logs] }
    }
}

#[async_trait]
impl Sink for Otlp {
    async fn send(&mut self, records: &[Sealed]) -> Result<(), Unsent> {
        for some in parts(records) {
            self.export(some).await?;
        }
        Ok(())
    }
}

impl Otlp {
    async fn export(&mut self, records: &[Sealed]) -> Result<(), Unsent> {
        let request = self.request(records);
        // What a collector says beside the code may repeat what it was sent.
        let answer = self.client.export(request).await;
        let answer = answer.map_err(|status| {
            Unsent::new(format_args!("the collector: {}", status.code().description()))
        })?;
        let rejected =
            answer.into_inner().partial_success.map_or(0, |some| some.rejected_log_records);
        if rejected > 0 {
            return Err(Unsent::new(format_args!("the collector took {rejected} records not")));
        }
        Ok(())
    }
}

/// Each no more than one message may be.
fn parts(records: &[Sealed]) -> impl Iterator<Item = &[Sealed]> {
    let mut rest = records;
    std::iter::from_fn(move || {
        let mut bytes = 0;
        let fits = rest.iter().take(ROWS_MAX).take_while(|record| {
            let before = bytes;
            bytes += record.body.len();
            before == 0 || bytes <= BYTES_MAX
        });
        let (some, more) = rest.split_at(fits.count());
        rest = more;
        (!some.is_empty()).then_some(some)
    })
}

fn nanos(micros: i64) -> u64 {
    u64::try_from(micros).unwrap_or_default().saturating_mul(1000)
}

fn log_record(record: &Sealed, format: Format, now: u64) -> LogRecord {
    let fields = Fields::of(record);
    let (severity, severity_text) = match fields.weight() {
        Weight::Allowed => (SeverityNumber::Info, "INFO"),
        Weight::Failed => (SeverityNumber::Info2, "NOTICE"),
        Weight::Denied => (SeverityNumber::Warn, "WARN"),
    };
    let kind = if record.place.is_some() { "record" } else { "checkpoint" };
    LogRecord {
        time_unix_nano: nanos(fields.micros()),
        observed_time_unix_nano: now,
        severity_number: severity.into(),
        severity_text: severity_text.to_owned(),
        body: Some(AnyValue { value: Some(any_value::Value::StringValue(format.text(record))) }),
        attributes: attributes(record, &fields),
        event_name: format!("bailiwick.audit.{kind}"),
        ..LogRecord::default()
    }
}

fn attributes(record: &Sealed, fields: &Fields) -> Vec<KeyValue> {
    let mut all = vec![number("bailiwick.audit.seq", record.seq)];
    let Some(place) = &record.place else { return all };
    all.push(text("bailiwick.audit.chain", &place.chain));
    all.push(number("bailiwick.audit.number", place.number));
    all.push(text("bailiwick.audit.hash", &hex(&place.hash)));
    all.push(text("bailiwick.audit.prev", &hex(&place.prev)));
    all.push(text("bailiwick.audit.outcome", &fields.outcome));
    let (service, method) = fields.operation();
    all.push(text("rpc.method", method));
    let actor = fields.actor.as_ref();
    let of_actor = |get: fn(&Actor) -> &String| actor.map(get).filter(|text| !text.is_empty());
    for (key, value) in [
        ("rpc.service", service),
        ("client.address", fields.peer.as_deref()),
        ("error.type", fields.reason.as_deref()),
        ("user.name", of_actor(|actor| &actor.subject).map(String::as_str)),
        ("bailiwick.credential.issuer", of_actor(|actor| &actor.issuer).map(String::as_str)),
        ("bailiwick.credential.id", of_actor(|actor| &actor.credential).map(String::as_str)),
        ("bailiwick.request_id", fields.request_id.as_deref()),
        ("bailiwick.permission", fields.permission.as_deref()),
        ("bailiwick.namespace", fields.namespace.as_deref()),
        ("bailiwick.object", fields.object.as_deref()),
    ] {
        if let Some(value) = value {
            all.push(text(key, value));
        }
    }
    if !fields.asked.is_empty() {
        let place = |place: &String| any_value::Value::StringValue(place.clone());
        let places = fields.asked.iter().map(place).map(|value| AnyValue { value: Some(value) });
        let places = ArrayValue { values: places.collect() };
        all.push(attribute("bailiwick.asked", any_value::Value::ArrayValue(places)));
    }
    all
}

fn text(key: &str, value: &str) -> KeyValue {
    attribute(key, any_value::Value::StringValue(value.to_owned()))
}

fn number(key: &str, value: i64) -> KeyValue {
    attribute(key, any_value::Value::IntValue(value))
}

fn attribute(key: &str, value: any_value::Value) -> KeyValue {
    let value = Some(AnyValue { value: Some(value) });
    KeyValue { key: key.to_owned(), value, ..KeyValue::default() }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::audit::sink::tests::{checkpoint, record};

    #[test]
    fn a_request_is_bounded_and_none_is_left_out() {
        let mut records: Vec<Sealed> =
            (1..=600).map(|seq| record(seq, "shop", "allowed")).collect();
        let lengths = |records: &[Sealed]| parts(records).map(<[Sealed]>::len).collect::<Vec<_>>();
        assert_eq!(lengths(&records), [250, 250, 100]);
        records[1].body = "x".repeat(BYTES_MAX * 3).into();
        assert_eq!(lengths(&records[..4]), [1, 1, 2]);
        assert_eq!(lengths(&[]), [0; 0]);
        assert_eq!(parts(&records).flatten().cloned().collect::<Vec<_>>(), records);
    }

    #[test]
    fn a_log_record_says_what_happened_by_its_attributes() {
        let one = log_record(&record(7, "shop", "denied"), Format::Lines, 5);
        assert_eq!(one.time_unix_nano, 1_775_044_800_000_001_000);
        assert_eq!((one.severity_number, one.severity_text.as_str()), (13, "WARN"));
        let keys: Vec<&str> = one.attributes.iter().map(|one| one.key.as_str()).collect();
        assert_eq!(
            keys,
            [
                "bailiwick.audit.seq",
                "bailiwick.audit.chain",
                "bailiwick.audit.number",
                "bailiwick.audit.hash",
                "bailiwick.audit.prev",
                "bailiwick.audit.outcome",
                "rpc.method",
                "rpc.service",
                "client.address",
                "error.type",
                "user.name",
                "bailiwick.credential.issuer",
                "bailiwick.credential.id",
                "bailiwick.request_id",
                "bailiwick.permission",
                "bailiwick.namespace",
                "bailiwick.object",
            ]
        );
        let checkpoint = log_record(&checkpoint(8), Format::Lines, 5);
        assert_eq!(checkpoint.event_name, "bailiwick.audit.checkpoint");
        assert_eq!((checkpoint.attributes.len(), checkpoint.severity_number), (1, 9));
    }
}
