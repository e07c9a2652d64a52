//! More rights for a while, by a clock that moves when a test says so.

use std::sync::atomic::Ordering;

use tonic::Code;

use super::House;
use crate::pb::v1::{self, auth_admin_service_client::AuthAdminServiceClient};

impl House {
    async fn pass(&self, seconds: i64) {
        self.hands.0.fetch_add(seconds * 1_000_000, Ordering::SeqCst);
        self.elevating.sweep().await.unwrap();
    }
}

#[tokio::test]
async fn se_17_a_request_that_nobody_decides_is_over_after_a_day() {
    let house = House::new().await;
    let (alice, _) = house.caller_named("alice", &["steps:read"], &["shop"]);
    let (bob, _) = house.caller_named("bob", &["tasks:list", "api_keys:admin"], &["shop"]);
    let mut alice = AuthAdminServiceClient::new(house.through(Some(alice)));
    let mut bob = AuthAdminServiceClient::new(house.through(Some(bob)));
    let request = v1::RequestElevationRequest {
        permissions: vec!["tasks:list".to_owned()],
        namespace: "shop".to_owned(),
        seconds: 60,
        reason: "an incident".to_owned(),
    };
    let mut ids = Vec::new();
    for _ in 0..2 {
        let asked = alice.request_elevation(request.clone()).await.unwrap().into_inner();
        ids.push(asked.elevation.unwrap().id);
    }
    let state = async |id: &str| {
        let mut alice = alice.clone();
        let all = alice.list_elevations(v1::ListElevationsRequest {}).await.unwrap();
        let all = all.into_inner().elevations;
        let one = all.into_iter().find(|one| one.id == *id).unwrap();
        (one.state(), one.until.is_some(), one.ended_at.is_some())
    };
    house.pass(24 * 60 * 60 - 1).await;
    assert_eq!(state(&ids[0]).await, (v1::ElevationState::Pending, false, false));
    let approve = v1::ApproveElevationRequest { id: ids[0].clone() };
    bob.approve_elevation(approve).await.unwrap();
    house.pass(1).await;
    assert_eq!(
        state(&ids[0]).await,
        (v1::ElevationState::Active, true, false),
        "a minute from yes"
    );
    assert_eq!(state(&ids[1]).await, (v1::ElevationState::Expired, false, true));
    let approve = v1::ApproveElevationRequest { id: ids[1].clone() };
    let late = bob.approve_elevation(approve).await.unwrap_err();
    assert_eq!(late.code(), Code::FailedPrecondition, "{late:?}");
    house.pass(59).await;
    assert_eq!(state(&ids[0]).await, (v1::ElevationState::Expired, true, true));
}
