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
        let well = parts.iter().all(|(_, health)| matches!(health, Health::Healthy(_)));
        let checks = parts.into_iter().map(|(name, health)| {
            let (status, message) = match health {
                Health::Healthy(message) => (HEALTHY, message),
                Health::Unhealthy(message) => (UNHEALTHY, message),
            };
            let (status, message) = (status.to_owned(), message.to_owned());
            (name.to_owned(), pb::ComponentHealth { status, message })
        });
        let uptime = self.started.elapsed().as_secs();
        Ok(Response::new(pb::CheckDetailedHealthResponse {
            status: if well { HEALTHY } else { UNHEALTHY }.to_owned(),
            version: VERSION.to_owned(),
            uptime_seconds: i64::try_from(uptime).unwrap_or(i64::MAX),
            checks: checks.collect(),
        }))
    }
}
