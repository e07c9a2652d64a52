//! Requests for more rights for a while.

use super::{
    Engine,
    house::{House, who},
};
use crate::domain::{
    Permission,
    elevation::{Elevation, ElevationState},
    history::Stamp,
};

pub(crate) async fn elevations_move_on_from_the_state_they_are_in<E: Engine>(house: &mut House<E>) {
    let now = house.now();
    let stamp = Stamp::system();
    let one = Elevation {
        id: "one".into(),
        requester: who("alice"),
        requested_with: "with".into(),
        permissions: vec![Permission::TasksList, Permission::StepsRead],
        namespace: "shop".to_owned(),
        seconds: 60,
        reason: "an incident".to_owned(),
        requested_at: now,
        state: ElevationState::Pending,
        decided_by: None,
        decided_at: None,
        until: None,
        ended_at: None,
    };
    assert!(house.store().add_elevation(&one, now, &stamp).await.unwrap());
    assert!(!house.store().add_elevation(&one, now, &stamp).await.unwrap(), "the id is taken");
    let active = Elevation {
        state: ElevationState::Active,
        decided_by: Some(who("bob")),
        decided_at: Some(now),
        until: Some(now.plus_ms(60_000)),
        ..one.clone()
    };
    let moved = async |house: &House<E>, from, to: &Elevation| {
        house.store().move_elevation(from, to, &Stamp::system(), now).await.unwrap()
    };
    assert!(moved(house, ElevationState::Pending, &active).await);
    assert!(!moved(house, ElevationState::Pending, &active).await, "it was decided");
    house.reopen().await;
    assert_eq!(house.store().elevations().await.unwrap(), std::slice::from_ref(&active));
    let over = Elevation { state: ElevationState::Expired, ended_at: Some(now), ..active.clone() };
    assert!(moved(house, ElevationState::Active, &over).await);
    let two = Elevation { id: "two".into(), ..one };
    let later = now.plus_ms(1);
    assert!(house.store().add_elevation(&two, later, &stamp).await.unwrap());
    assert_eq!(house.store().elevations().await.unwrap(), [two], "what is over is forgotten");
}
