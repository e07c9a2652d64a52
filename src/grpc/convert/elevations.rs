//! Elevations.

use super::{owned, time};
use crate::{
    admin::elevation::Wish,
    domain::elevation::{Elevation, ElevationState},
    pb::v1 as pb,
};

impl From<pb::RequestElevationRequest> for Wish {
    fn from(request: pb::RequestElevationRequest) -> Self {
        let pb::RequestElevationRequest { permissions, namespace, seconds, reason } = request;
        Self { permissions, namespace, seconds, reason }
    }
}

impl From<&Elevation> for pb::Elevation {
    fn from(elevation: &Elevation) -> Self {
        let state = match elevation.state {
            ElevationState::Pending => pb::ElevationState::Pending,
            ElevationState::Active => pb::ElevationState::Active,
            ElevationState::Denied => pb::ElevationState::Denied,
            ElevationState::Revoked => pb::ElevationState::Revoked,
            ElevationState::Expired => pb::ElevationState::Expired,
        };
        let names = elevation.permissions.iter().map(|permission| owned(permission.name()));
        Self {
            id: owned(&elevation.id),
            state: state.into(),
            requester: elevation.requester.to_string(),
            requested_with: owned(&elevation.requested_with),
            permissions: names.collect(),
            namespace: elevation.namespace.clone(),
            seconds: elevation.seconds,
            reason: elevation.reason.clone(),
            requested_at: Some(time(elevation.requested_at)),
            decided_by: elevation.decided_by.as_ref().map(ToString::to_string),
            decided_at: elevation.decided_at.map(time),
            until: elevation.until.map(time),
            ended_at: elevation.ended_at.map(time),
        }
    }
}
