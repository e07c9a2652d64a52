//! What the audit is sent to, as the settings say.

use std::{error::Error as StdError, sync::Arc};

use super::Error;
use crate::{
    audit::{
        Sealer,
        sink::{FileSink, Format, Otlp, Outlet, Sink, Syslog, Transport},
    },
    config::{AuditFormat, AuditSink, AuditTarget, SyslogAddress},
    domain::Clock,
    egress,
    storage::Store,
};

/// What the sinks are built over.
pub(super) struct Base<'a> {
    pub(super) store: &'a Arc<dyn Store>,
    pub(super) sealer: &'a Sealer,
    pub(super) clock: &'a Arc<dyn Clock>,
    /// The service's name for collectors.
    pub(super) service: &'a str,
}

/// Each sink with what it is sent from.
pub(super) fn open(sinks: &[AuditSink], base: &Base<'_>) -> Result<Vec<Outlet>, Error> {
    let open = |sink: &AuditSink| match built(sink, base) {
        Ok(built) => Ok(Outlet::new(&sink.name, built, Arc::clone(base.store), base.sealer)),
        Err(source) => Err(Error::AuditSink { name: sink.name.clone(), source }),
    };
    sinks.iter().map(open).collect()
}

fn built(
    sink: &AuditSink,
    base: &Base<'_>,
) -> Result<Box<dyn Sink>, Box<dyn StdError + Send + Sync>> {
    let format = match sink.format {
        AuditFormat::Lines => Format::Lines,
        AuditFormat::Ocsf => Format::Ocsf,
    };
    Ok(match &sink.to {
        AuditTarget::File(path) => Box::new(FileSink::open(path.clone(), format)?),
        AuditTarget::Syslog { address, facility } => {
            let transport = match address {
                SyslogAddress::Udp(host, port) => Transport::Udp(host.clone(), *port),
                SyslogAddress::Tcp(host, port) => Transport::Tcp(host.clone(), *port),
                SyslogAddress::Tls(host, port, ca) => {
                    Transport::Tls(host.clone(), *port, egress::tls(ca.as_ref())?)
                }
                SyslogAddress::Unix(path) => Transport::Unix(path.clone()),
            };
            Box::new(Syslog::new(transport, *facility, format))
        }
        AuditTarget::Otlp { endpoint, ca } => {
            let ca = ca.as_ref().map(|ca| ca.pem.as_str());
            let clock = Arc::clone(base.clock);
            Box::new(Otlp::new(endpoint, ca, base.service, format, clock)?)
        }
    })
}
