//! The `amqp` runner: publishes one persistent message and waits until the
//! broker has confirmed it. Mandatory: what no queue takes is a failure.

mod wire;

use super::{
    Ended, Firing,
    remote::{body, named, target},
};
use crate::{
    egress::{Egress, Scheme, Target, decoded},
    schedule::Error,
};

const SCHEMES: &[Scheme] = &[
    Scheme { name: "amqp", tls: false, port: 5672 },
    Scheme { name: "amqps", tls: true, port: 5671 },
];

pub(super) fn check(
    egress: &Egress,
    dsn: &str,
    exchange: &str,
    routing_key: &str,
) -> Result<(), Error> {
    const DSN: &str = "runner.amqp.dsn";
    let target = named(egress, DSN, dsn, SCHEMES)?;
    let wrong = |field, message: &str| Err(Error::FieldInvalid { field, message: message.into() });
    if target.query().is_some() || target.path().matches('/').count() > 1 {
        return wrong(DSN, "amqp://[user:password@]host[:port][/vhost], a slash in it as %2F");
    }
    if let Some(field) = [
        ("runner.amqp.exchange", exchange),
        ("runner.amqp.routing_key", routing_key),
        (DSN, &vhost(&target)),
    ]
    .into_iter()
    .find_map(|(field, text)| (text.len() > wire::SHORT_MAX).then_some(field))
    {
        return wrong(field, "a name of AMQP has at most 255 bytes");
    }
    Ok(())
}

/// Publishes; a confirmation is a success.
pub(super) async fn run(
    egress: &Egress,
    firing: &Firing,
    dsn: &str,
    exchange: &str,
    routing_key: &str,
) -> Ended {
    let published = egress.exchange(async {
        let target = target(dsn, SCHEMES)?;
        // As everywhere with AMQP; a broker takes them from loopback alone.
        let guest = || ("guest".to_owned(), "guest".to_owned());
        let (user, password) = target.credentials().unwrap_or_else(guest);
        let mut broker = wire::Broker::new(egress.connect(&target).await?);
        broker.open(&user, &password, &vhost(&target)).await?;
        let confirmed = broker.publish(exchange, routing_key, &body(firing)).await;
        broker.close().await;
        confirmed
    });
    published.await.into()
}

/// The path without its slash, `/` when there is none.
fn vhost(target: &Target) -> String {
    match target.path().trim_start_matches('/') {
        "" => "/".to_owned(),
        path => decoded(path),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{domain::schedule::Runner, schedule::runners::remote::testing::tools};

    #[test]
    fn se_64_a_dsn_is_looked_at_when_it_is_set() {
        let tools = tools(&["10.1.0.0/16"], 9_000);
        let check = |dsn: &str, exchange: &str, routing_key: &str| {
            let (exchange, routing_key) = (exchange.into(), routing_key.into());
            tools.check(&Runner::Amqp { dsn: dsn.into(), exchange, routing_key })
        };
        for good in ["amqp://a", "amqps://u:s3cret@a:1/", "amqp://10.1.0.1/v%2Fh", "amqp://a/v"] {
            check(good, "", "key").unwrap();
        }
        let long = format!("amqp://a/{}", "v".repeat(256));
        for bad in [
            "",
            "http://a",
            "amqp://",
            "amqp://a/b/s3cret",
            "amqp://a/?heartbeat=s3cret",
            "amqp://a/#s3cret",
            "amqp://10.2.0.1",
            "amqp://u:s3cret@127.0.0.1",
            "amqp://[::1]",
            "amqp://s3cret@0.0.0.0",
            &long,
        ] {
            let refusal = check(bad, "", "key").unwrap_err();
            assert!(matches!(refusal, Error::FieldInvalid { field: "runner.amqp.dsn", .. }));
            assert!(!refusal.to_string().contains("s3cret"), "{bad}: {refusal}");
        }
        let long = "n".repeat(256);
        check("amqp://a", &long, "key").unwrap_err();
        check("amqp://a", "", &long).unwrap_err();
    }

    #[test]
    fn zt_amqp_vhosts_are_read() {
        for (dsn, name) in
            [("amqp://a", "/"), ("amqp://a/", "/"), ("amqp://a/%2F", "/"), ("amqp://a/v%20", "v ")]
        {
            assert_eq!(vhost(&Target::parse(dsn, SCHEMES).unwrap()), name, "{dsn}");
        }
    }
}
