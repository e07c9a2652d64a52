//! Who am I and what may I do; the configuration.

use tonic::Code;

use super::{House, reason};
use crate::pb::v1::{
    self, access_service_client::AccessServiceClient, system_service_client::SystemServiceClient,
};

#[tokio::test]
async fn a_caller_knows_itself() {
    let house = House::new().await;
    let (caller, revoke) = house.caller(&["tasks:*", "bundles:read"], &["shop", "deploy."]);
    let mut access = AccessServiceClient::new(house.through(Some(caller)));
    let me = access.who_am_i(v1::WhoAmIRequest {}).await.unwrap().into_inner();
    assert_eq!((me.subject.as_str(), me.source.as_str(), me.issuer), ("alice", "config", None));
    assert!(!me.root && me.expires_at.is_none());
    assert_eq!(me.grants[0].namespaces, ["shop", "deploy."]);
    assert_eq!(me.grants[0].permissions.len(), 6, "{:?}", me.grants);
    revoke.cancel();
    let status = access.who_am_i(v1::WhoAmIRequest {}).await.unwrap_err();
    assert_eq!(status.code(), Code::Unauthenticated);
}

#[tokio::test]
async fn can_i_answers_in_the_order_of_its_questions() {
    let house = House::new().await;
    let (caller, _) = house.caller(&["tasks:read", "bundles:read", "work:lease"], &["shop"]);
    let mut access = AccessServiceClient::new(house.through(Some(caller)));
    let cases = [
        ("tasks:read", None, true),
        ("tasks:read", Some("shop"), true),
        ("tasks:read", Some("shop.eu"), true),
        ("tasks:read", Some("shopX"), false),
        ("tasks:create", None, false),
        ("work:lease", Some("shop."), true),
        ("work:lease", Some("other."), false),
        ("bundles:read", Some("shop"), true),
        ("bundles:read", Some("other"), false),
        ("bundles:write", None, false),
        ("nonsense", None, false),
    ];
    let action = |(permission, namespace, _): &(&str, Option<&str>, bool)| v1::Action {
        permission: (*permission).to_owned(),
        namespace: namespace.map(str::to_owned),
    };
    let request = v1::CanIRequest { actions: cases.iter().map(action).collect(), as_subject: None };
    let answers = access.can_i(request).await.unwrap().into_inner().answers;
    for (case, answer) in cases.iter().zip(&answers) {
        let asked = (answer.permission.as_str(), answer.namespace.as_deref(), answer.allowed);
        assert_eq!(asked, *case);
    }
    assert_eq!(answers.len(), cases.len());

    let bad = v1::Action { permission: "tasks:read".to_owned(), namespace: Some("*".to_owned()) };
    for actions in [vec![], vec![bad.clone(); 101], vec![bad]] {
        let status = access.can_i(v1::CanIRequest { actions, as_subject: None }).await.unwrap_err();
        assert_eq!(
            (status.code(), reason(&status).as_str()),
            (Code::InvalidArgument, "FIELD_INVALID")
        );
    }
    // Even `*` does not hold what nobody declared.
    let mut root = AccessServiceClient::new(house.through(Some(house.root())));
    let unknown = v1::Action { permission: "nonsense".to_owned(), namespace: None };
    let answers =
        root.can_i(v1::CanIRequest { actions: vec![unknown], as_subject: None }).await.unwrap();
    assert!(!answers.into_inner().answers[0].allowed);
}

#[tokio::test]
async fn the_vocabulary_says_what_each_permission_opens() {
    let house = House::new().await;
    let (caller, _) = house.caller(&[], &["shop"]);
    let mut access = AccessServiceClient::new(house.through(Some(caller)));
    let list = access.list_permissions(v1::ListPermissionsRequest {}).await.unwrap().into_inner();
    let opens = |name: &str| {
        list.permissions.iter().find(|permission| permission.name == name).unwrap().methods.clone()
    };
    assert_eq!(opens("tasks:create"), ["bailiwick.v1.TaskService/CreateTask"]);
    assert_eq!(
        opens("tasks:read"),
        ["bailiwick.v1.TaskService/GetTask", "bailiwick.v1.TaskService/WatchTask"]
    );
    assert!(opens("dlq:read").is_empty());
    assert!(list.permissions.iter().all(|permission| !permission.description.is_empty()));
}

#[tokio::test]
async fn the_configuration_is_roots_and_may_be_off() {
    let (on, off) = (House::with_config(Some("{\"a\":1}")).await, House::new().await);
    let ask = v1::GetConfigRequest {};
    let mut allowed = SystemServiceClient::new(on.through(Some(on.root())));
    assert_eq!(allowed.get_config(ask).await.unwrap().into_inner().config, "{\"a\":1}");
    let mut disabled = SystemServiceClient::new(off.through(Some(off.root())));
    let status = disabled.get_config(ask).await.unwrap_err();
    assert_eq!((status.code(), reason(&status).as_str()), (Code::NotFound, "DISABLED"));
    // Who may not read it does not learn whether it is on.
    for house in [&on, &off] {
        let (narrow, _) = house.caller(&["system:config_read"], &["shop"]);
        let mut refused = SystemServiceClient::new(house.through(Some(narrow)));
        let status = refused.get_config(ask).await.unwrap_err();
        assert_eq!(status.code(), Code::PermissionDenied);
        assert_eq!(status.message(), "Missing required permission: system:config_read");
    }
}
