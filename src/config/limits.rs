//! How many calls are taken, and who may speak for others.

use std::{num::NonZeroU32, path::Path};

use super::{Authorities, Error, issuers, number, raw};
use crate::domain::Network;

/// The most calls a second that a limit may allow; more is no limit.
const PER_SECOND_MAX: u64 = 1_000_000;

/// A bucket of calls.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Rate {
    /// How many calls come back in a second.
    pub per_second: NonZeroU32,
    /// How many calls may come at once.
    pub burst: NonZeroU32,
}

/// The limit on the calls of one configured key, in place of the one of every
/// class.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum OwnRate {
    /// It has none: the limits of the classes hold.
    #[default]
    None,
    /// It may call without a limit.
    Unlimited,
    /// This one, for the calls of each class.
    Limited(Rate),
}

/// The limits on calls, each per credential; none means there is no limit.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Rates {
    /// Ordinary calls.
    pub standard: Option<Rate>,
    /// Calls that read a lot.
    pub heavy: Option<Rate>,
    /// A worker's calls.
    pub work: Option<Rate>,
    /// Calls about credentials.
    pub credentials: Option<Rate>,
    /// Failed authentications per address and minute.
    pub failed_auth_per_minute: Option<NonZeroU32>,
    /// Credentials per caller and minute that were asked about and do not
    /// count.
    pub failed_introspections_per_minute: Option<NonZeroU32>,
}

pub(super) fn rates(raw: &raw::Limits) -> Result<Rates, Error> {
    let common = (raw.requests_per_second, raw.burst);
    let class = |name: &str, own: Option<u64>, burst: Option<u64>| {
        // A class with a rate of its own has no other's burst.
        let default = if own.is_some() { 0 } else { common.1 };
        rate(&format!("limits.{name}"), own.unwrap_or(common.0), burst.unwrap_or(default))
    };
    Ok(Rates {
        standard: rate("limits.", common.0, common.1)?,
        heavy: class("heavy_", raw.heavy_requests_per_second, raw.heavy_burst)?,
        work: class("work_", raw.work_requests_per_second, raw.work_burst)?,
        credentials: class(
            "credentials_",
            raw.credentials_requests_per_second,
            raw.credentials_burst,
        )?,
        failed_auth_per_minute: number(
            "limits.failed_auth_per_minute",
            raw.failed_auth_per_minute,
            0,
            PER_SECOND_MAX,
        )
        .map(NonZeroU32::new)?,
        failed_introspections_per_minute: number(
            "limits.failed_introspections_per_minute",
            raw.failed_introspections_per_minute,
            0,
            PER_SECOND_MAX,
        )
        .map(NonZeroU32::new)?,
    })
}

/// Of a key; `place` is its table.
pub(super) fn own_rate(place: &str, raw: &raw::ApiKey) -> Result<OwnRate, Error> {
    let Some(per_second) = raw.requests_per_second else {
        return match raw.burst {
            None => Ok(OwnRate::None),
            Some(_) => Err(Error::invalid(
                format!("{place}: burst"),
                "limits nothing without requests_per_second beside it",
            )),
        };
    };
    let own = rate(&format!("{place}: "), per_second, raw.burst.unwrap_or(0))?;
    Ok(own.map_or(OwnRate::Unlimited, OwnRate::Limited))
}

/// `class` is what stands before the names of the two settings.
fn rate(class: &str, per_second: u64, burst: u64) -> Result<Option<Rate>, Error> {
    let key = format!("{class}requests_per_second");
    let per_second = NonZeroU32::new(number(&key, per_second, 0, PER_SECOND_MAX)?);
    let key = format!("{class}burst");
    let burst = NonZeroU32::new(number(&key, burst, 0, PER_SECOND_MAX)?);
    match (per_second, burst) {
        (Some(per_second), burst) => {
            Ok(Some(Rate { per_second, burst: burst.unwrap_or(per_second) }))
        }
        (None, None) => Ok(None),
        (None, Some(_)) => {
            Err(Error::invalid(&key, format!("limits nothing without {class}requests_per_second")))
        }
    }
}

/// Where requests to addresses that tenants name may go besides the public
/// internet (SE-64).
#[derive(Clone, Debug, Default)]
pub struct Egress {
    /// Networks of the inside that may be asked.
    pub allow: Vec<Network>,
    /// Who alone vouches for servers; the system's authorities when none.
    pub ca: Option<Authorities>,
}

pub(super) fn egress(raw: &raw::Limits, base: &Path) -> Result<Egress, Error> {
    let ca = "the certificates of authorities (limits.egress_ca_path)";
    Ok(Egress {
        allow: networks("limits.egress_allow", &raw.egress_allow)?,
        ca: issuers::authorities(ca, raw.egress_ca_path.as_ref(), base)?,
    })
}

pub(super) fn networks(key: &str, raw: &[String]) -> Result<Vec<Network>, Error> {
    let parsed = raw.iter().map(|text| {
        Network::parse(text).map_err(|wrong| Error::invalid(key, format!("`{text}`: {wrong}")))
    });
    parsed.collect()
}
