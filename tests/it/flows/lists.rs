//! Namespaces and pages.

use bailiwick_client::Auth;

use super::*;
use crate::harness::credentials::Token;

#[tokio::test]
async fn namespaces_are_isolated() {
    let (server, api) = house(&[&api::one("work")]).await;
    let id = api.create("work").await.task_uuid;
    let all = ["tasks:*", "steps:*", "templates:*", "work:*"];
    let stranger = Token::new("stranger", &all).within(&["bakery"]).sign();
    let other = Api::of(&server, Auth::Bearer(stranger)).await;
    let hidden = refusal(other.try_task(&id).await);
    let absent = "01900000-0000-7000-8000-000000000000";
    let nowhere = refusal(other.try_task(absent).await);
    assert_eq!(hidden.code, Code::NotFound);
    assert_eq!(hidden.message.replace(&id, absent), nowhere.message);
    assert!(other.list(pb::ListTasksRequest::default()).await.is_empty());
    let filter = pb::ListTasksRequest { namespace: Some(NAMESPACE.into()), ..Default::default() };
    assert!(other.list(filter).await.is_empty());
    assert_eq!(reason(other.cancel(&id).await), "NOT_FOUND");
    assert_eq!(reason(other.try_create(api::request("work")).await), "NAMESPACE_NOT_FOUND");
    let lease = other.try_lease(&["work"], 1, Duration::ZERO).await;
    assert_eq!(reason(lease), "NAMESPACE_NOT_FOUND");

    // The same names live side by side.
    let request = pb::RegisterTemplateRequest {
        namespace: "bakery".into(),
        definition: api::one("work").replace("namespace_name: shop", "namespace_name: bakery"),
    };
    other.client.templates().register_template(request).await.unwrap();
    let request = pb::CreateTaskRequest { namespace: "bakery".into(), ..api::request("work") };
    let own = other.try_create(request).await.unwrap().task_uuid;
    assert_eq!(other.list(pb::ListTasksRequest::default()).await.len(), 1);
    assert_eq!(api.list(pb::ListTasksRequest::default()).await.len(), 2);
    assert_eq!(api.lease("work").await.task_uuid, id, "a worker of the shop gets its own");
    assert!(api.lease_now("work").await.is_empty(), "and no other: {own}");
}

#[tokio::test]
async fn pages_are_whole_and_bound_to_query_and_caller() {
    let (server, api) = house(&[&api::one("work"), &api::one("other")]).await;
    let mut created = Vec::new();
    for _ in 0..25 {
        created.push(api.create("work").await.task_uuid);
    }
    api.create("other").await;
    let filter =
        pb::ListTasksRequest { name: Some("work".into()), page_size: 10, ..Default::default() };
    let ids: Vec<_> =
        api.list(filter.clone()).await.into_iter().map(|task| task.task_uuid).collect();
    created.reverse();
    assert_eq!(ids, created, "newest first, each once");

    let list = async |api: &Api, request: pb::ListTasksRequest| {
        let answer = api.client.tasks().list_tasks(request).await;
        answer.map(tonic::Response::into_inner).map_err(Into::into)
    };
    let page = list(&api, filter.clone()).await.unwrap();
    assert_eq!(page.tasks.len(), 10);
    let page_token = page.next_page_token;
    let next = pb::ListTasksRequest { page_token: page_token.clone(), ..filter.clone() };
    // A task that is created meanwhile does not move the pages.
    api.create("work").await;
    let second = list(&api, next.clone()).await.unwrap();
    assert_eq!(second.tasks[0].task_uuid, created[10]);

    let of_another_query = pb::ListTasksRequest { name: None, ..next.clone() };
    assert_eq!(reason(list(&api, of_another_query).await), "PAGE_TOKEN_INVALID");
    let garbage = pb::ListTasksRequest { page_token: "bm9uc2Vuc2U".into(), ..filter.clone() };
    assert_eq!(reason(list(&api, garbage).await), "PAGE_TOKEN_INVALID");
    let token = Token::new("somebody-else", &["tasks:list"]).sign();
    let other = Api::of(&server, Auth::Bearer(token)).await;
    assert_eq!(reason(list(&other, next).await), "PAGE_TOKEN_INVALID");
    let much = pb::ListTasksRequest { page_size: 501, ..filter };
    assert_eq!(reason(list(&api, much).await), "FIELD_INVALID");
}
