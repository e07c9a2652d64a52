//! Health in our own words and in `grpc.health.v1`; reflection.

use tokio_stream::StreamExt as _;
use tonic::Code;
use tonic_health::pb::{
    HealthCheckRequest, health_check_response::ServingStatus, health_client::HealthClient,
};

use super::{House, SOON, reason};
use crate::{
    grpc::{Phase, SERVICES, WORKER_SERVICES},
    pb::v1::{self, health_service_client::HealthServiceClient},
};

async fn serving(house: &House, service: &str) -> Result<ServingStatus, Code> {
    let mut health = HealthClient::new(house.through(None));
    let request = HealthCheckRequest { service: service.to_owned() };
    let reply = health.check(request).await.map_err(|status| status.code())?;
    Ok(reply.into_inner().status())
}

#[tokio::test]
async fn readiness_follows_the_life_of_the_process() {
    use ServingStatus::{NotServing, Serving};
    let house = House::new().await;
    // Each part has said once that it is well.
    tokio::time::timeout(SOON, async {
        while house.readiness.check().is_err() {
            tokio::task::yield_now().await;
        }
    })
    .await
    .unwrap();
    let mut health = HealthServiceClient::new(house.through(None));
    for (phase, expected, ready, started) in [
        (Phase::Starting, Some("NOT_READY"), NotServing, NotServing),
        (Phase::Serving, None, Serving, Serving),
        (Phase::Draining, Some("SHUTTING_DOWN"), NotServing, Serving),
    ] {
        house.readiness.set(phase);
        house.readiness.report().await;
        let reply = health.check_readiness(v1::CheckReadinessRequest {}).await;
        match expected {
            None => assert_eq!(reply.unwrap().into_inner().status, "ready"),
            Some(expected) => {
                let status = reply.unwrap_err();
                let found = (status.code(), reason(&status));
                assert_eq!(found, (Code::Unavailable, expected.to_owned()));
            }
        }
        for name in ["", "readiness"].into_iter().chain(SERVICES) {
            assert_eq!(serving(&house, name).await, Ok(ready), "{phase:?} {name}");
        }
        assert_eq!(serving(&house, "liveness").await, Ok(Serving));
        assert_eq!(serving(&house, "startup").await, Ok(started));
        assert_eq!(serving(&house, "other").await, Err(Code::NotFound));
        let alive = health.check_liveness(v1::CheckLivenessRequest {}).await.unwrap();
        assert_eq!(alive.into_inner().status, "alive");
        let healthy = health.check_health(v1::CheckHealthRequest {}).await.unwrap();
        assert_eq!(healthy.into_inner().status, "healthy");
    }
    let detailed = health.check_detailed_health(v1::CheckDetailedHealthRequest {}).await.unwrap();
    let detailed = detailed.into_inner();
    let mut parts: Vec<_> = detailed.checks.keys().map(String::as_str).collect();
    parts.sort_unstable();
    assert_eq!(parts, ["dispatcher", "storage", "timer"]);
    assert_eq!(detailed.status, "healthy");
}

#[test]
fn every_service_of_ours_has_a_health_name() {
    for (set, known) in [
        (crate::pb::FILE_DESCRIPTOR_SET, &SERVICES[..]),
        (crate::pb::WORKER_FILE_DESCRIPTOR_SET, &WORKER_SERVICES[..]),
    ] {
        let pool = prost_reflect::DescriptorPool::decode(set).unwrap();
        let mut ours: Vec<_> =
            pool.services().map(|service| service.full_name().to_owned()).collect();
        ours.sort_unstable();
        let mut known = known.to_vec();
        known.sort_unstable();
        assert_eq!(known, ours);
    }
}

macro_rules! reflection {
    ($house:expr, $version:ident) => {{
        use tonic_reflection::pb::$version::{
            ServerReflectionRequest, server_reflection_client::ServerReflectionClient,
            server_reflection_request::MessageRequest, server_reflection_response::MessageResponse,
        };
        let mut client = ServerReflectionClient::new($house.through(None));
        let ask = |request| ServerReflectionRequest {
            host: String::new(),
            message_request: Some(request),
        };
        let requests = tokio_stream::iter([
            ask(MessageRequest::ListServices(String::new())),
            ask(MessageRequest::FileContainingSymbol("google.rpc.ErrorInfo".to_owned())),
        ]);
        let mut replies = client.server_reflection_info(requests).await.unwrap().into_inner();
        let Some(MessageResponse::ListServicesResponse(services)) =
            replies.next().await.unwrap().unwrap().message_response
        else {
            panic!("no services")
        };
        let names: Vec<_> = services.service.into_iter().map(|service| service.name).collect();
        for name in SERVICES.into_iter().chain(["grpc.health.v1.Health"]) {
            assert!(names.iter().any(|known| known == name), "{name}: {names:?}");
        }
        let Some(MessageResponse::FileDescriptorResponse(file)) =
            replies.next().await.unwrap().unwrap().message_response
        else {
            panic!("no file")
        };
        assert_eq!(file.file_descriptor_proto.len(), 1);
    }};
}

#[tokio::test]
async fn reflection_serves_the_services_and_error_details() {
    let house = House::new().await;
    reflection!(house, v1);
    reflection!(house, v1alpha);
}
