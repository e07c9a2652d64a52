//! `HealthService`: public, so nothing here carries a text that a tenant chose.

use std::time::Instant;

use tonic::{Request, Response, Status};

use super::{call::request_id, readiness::Readiness, status::Error};
use crate::{
    engine::Health,
    pb::v1::{self as pb, health_service_server},
};

const VERSION: &str = env!("CARGO_PKG_VERSION");
const HEALTHY: &str = "healthy";
const DEGRADED: &str = "degraded";
const UNHEALTHY: &str = "unhealthy";

/// Is the server well.
#[derive(Clone, Debug)]
pub(super) struct HealthService {
    readiness: Readiness,
    started: Instant,
}

impl HealthService {
    pub(super) fn new(readiness: Readiness, started: Instant) -> Self {
        Self { readiness, started }
    }
}

/// The status and the message of a part.
const fn shown(health: Health) -> (&'static str, &'static str) {
    match health {
        Health::Healthy(message) => (HEALTHY, message),
        Health::Degraded(message) => (DEGRADED, message),
        Health::Unhealthy(message) => (UNHEALTHY, message),
    }
}

#[tonic::async_trait]
impl health_service_server::HealthService for HealthService {
    async fn check_health(
        &self,
        _: Request<pb::CheckHealthRequest>,
    ) -> Result<Response<pb::CheckHealthResponse>, Status> {
        let (status, version) = (HEALTHY.to_owned(), VERSION.to_owned());
        Ok(Response::new(pb::CheckHealthResponse { status, version }))
    }

    async fn check_liveness(
        &self,
        _: Request<pb::CheckLivenessRequest>,
    ) -> Result<Response<pb::CheckLivenessResponse>, Status> {
        Ok(Response::new(pb::CheckLivenessResponse { status: "alive".to_owned() }))
    }

    async fn check_readiness(
        &self,
        request: Request<pb::CheckReadinessRequest>,
    ) -> Result<Response<pb::CheckReadinessResponse>, Status> {
        match self.readiness.check() {
            Ok(()) => Ok(Response::new(pb::CheckReadinessResponse { status: "ready".to_owned() })),
            Err(refusal) => Err(Error::from(refusal).status(request_id(request.extensions()))),
        }
    }

    async fn check_detailed_health(
        &self,
        _: Request<pb::CheckDetailedHealthRequest>,
    ) -> Result<Response<pb::CheckDetailedHealthResponse>, Status> {
        let parts = self.readiness.parts();
        let some = |status: &str| parts.iter().any(|(_, health)| shown(*health).0 == status);
        let worst = [UNHEALTHY, DEGRADED].into_iter().find(|status| some(status));
        let status = worst.unwrap_or(HEALTHY).to_owned();
        let checks = parts.into_iter().map(|(name, health)| {
            let (status, message) = shown(health);
            let (status, message) = (status.to_owned(), message.to_owned());
            (name.to_owned(), pb::ComponentHealth { status, message })
        });
        let uptime = self.started.elapsed().as_secs();
        Ok(Response::new(pb::CheckDetailedHealthResponse {
            status,
            version: VERSION.to_owned(),
            uptime_seconds: i64::try_from(uptime).unwrap_or(i64::MAX),
            checks: checks.collect(),
        }))
    }
}
