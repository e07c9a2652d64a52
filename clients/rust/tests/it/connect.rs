use bailiwick_client::{Auth, Client, Error, connect_with_auth, pb::v1::ListWorkersRequest};
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::TcpListener,
};
use tonic::Code;

use crate::fake::Fake;

/// The header names and values of the first call, as they are on the wire:
/// the stream's metadata at the fake server.
async fn headers_of(auth: Auth) -> tonic::metadata::MetadataMap {
    let mut fake = Fake::start().await;
    let client = Client::builder(fake.url()).auth(auth).user_agent("shop/2").connect().await;
    let client = client.unwrap().with_traceparent("00-aa-bb-01");
    let (up, messages) = tokio::sync::mpsc::channel(1);
    let _stream = client
        .workers()
        .stream_work(tokio_stream::wrappers::ReceiverStream::new(messages))
        .await
        .unwrap();
    drop(up);
    fake.stream().await.metadata
}

#[tokio::test]
async fn tk_68_connect_with_auth_sends_the_credential() {
    let headers = headers_of(Auth::Bearer("token-1".to_owned())).await;
    assert_eq!(headers.get("authorization").unwrap(), "Bearer token-1");
    assert!(headers.get("x-api-key").is_none());
    assert_eq!(headers.get("traceparent").unwrap(), "00-aa-bb-01");
    let agent = headers.get("user-agent").unwrap().to_str().unwrap();
    assert!(agent.starts_with("shop/2 bailiwick-client/"), "{agent}");

    let headers = headers_of(Auth::None).await;
    assert!(headers.get("authorization").is_none());
}

#[tokio::test]
async fn tk_50_the_api_key_goes_into_its_header() {
    let key = |header: Option<&str>| Auth::ApiKey {
        key: "key-1".to_owned(),
        header: header.map(str::to_owned),
    };
    let headers = headers_of(key(None)).await;
    assert_eq!(headers.get("x-api-key").unwrap(), "key-1");
    assert!(headers.get("authorization").is_none());

    let headers = headers_of(key(Some("X-Corp-Key"))).await;
    assert_eq!(headers.get("x-corp-key").unwrap(), "key-1");
    assert!(headers.get("x-api-key").is_none());
}

#[tokio::test]
async fn every_stub_shares_the_connection() {
    let fake = Fake::start().await;
    let client = connect_with_auth(&fake.url(), Auth::None).await.unwrap();
    client.workers().list_workers(ListWorkersRequest::default()).await.unwrap();
    // The fake has no other service: the answers prove that the calls went out.
    let codes = [
        client
            .tasks()
            .list_tasks(bailiwick_client::pb::v1::ListTasksRequest::default())
            .await
            .err(),
        client
            .steps()
            .list_steps(bailiwick_client::pb::v1::ListStepsRequest::default())
            .await
            .err(),
        client.access().who_am_i(bailiwick_client::pb::v1::WhoAmIRequest::default()).await.err(),
    ];
    for status in codes {
        let error = Error::from(status.unwrap());
        assert_eq!(error.code(), Some(Code::Unimplemented), "{error}");
    }
}

#[tokio::test]
async fn a_peer_that_is_no_server_is_out_of_reach() {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let url = format!("http://{}", listener.local_addr().unwrap());
    tokio::spawn(async move {
        while let Ok((mut peer, _)) = listener.accept().await {
            let mut first = [0; 16];
            let _read = peer.read(&mut first).await;
            let _written = peer.write_all(b"220 mail.example ESMTP\r\n").await;
        }
    });
    let client = Client::builder(&url).connect_lazy().unwrap();
    let status = client.workers().list_workers(ListWorkersRequest::default()).await.unwrap_err();
    let error = Error::from(status);
    assert!(matches!(error, Error::Unreachable { .. }), "{error:?}");
}
