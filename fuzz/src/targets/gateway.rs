//! A verb and a target on the first line, and a body below, as a REST call
//! whose service says nothing.

use std::{convert::Infallible, sync::LazyLock, time::Duration};

use bailiwick::{
    gateway::{Body, Classified, Gateway, Limits, Routes},
    pb,
};
use bytes::Bytes;
use http::{Method, Request, Response, Uri};
use http_body_util::{BodyExt as _, Full};
use prost_reflect::DescriptorPool;
use tower::service_fn;

pub fn run(data: &[u8]) {
    static ALL: LazyLock<(Routes, Gateway)> = LazyLock::new(|| {
        let pool = DescriptorPool::decode(pb::FILE_DESCRIPTOR_SET).unwrap();
        let limits = Limits { body_bytes: 1 << 20, body_timeout: Duration::from_secs(10) };
        (Routes::from_pool(&pool).unwrap(), Gateway::new(&pool, limits).unwrap())
    });
    let (routes, gateway) = &*ALL;
    let end = data.iter().position(|byte| *byte == b'\n').unwrap_or(data.len());
    let (line, body) = data.split_at(end);
    let Some(blank) = line.iter().position(|byte| *byte == b' ') else { return };
    let Ok(verb) = Method::from_bytes(&line[..blank]) else { return };
    let Ok(uri) = Uri::try_from(&line[blank + 1..]) else { return };
    let Classified::Found(call) = routes.classify(&verb, &uri) else { return };

    let body = Full::new(Bytes::copy_from_slice(body.get(1..).unwrap_or_default()));
    let request = Request::builder().method(verb).uri(uri);
    let request = request.header("content-type", "application/json").body(body).unwrap();
    let service = service_fn(async |request: Request<Body>| {
        let frame = request.into_body().collect().await.unwrap().to_bytes();
        assert_eq!(frame[0], 0, "a frame that is compressed");
        let length = u32::from_be_bytes(frame[1..5].try_into().unwrap());
        assert_eq!(usize::try_from(length).unwrap(), frame.len() - 5);
        let answer = Response::builder().header("content-type", "application/grpc");
        let answer = answer.header("grpc-status", "0").body(Full::new(Bytes::new())).unwrap();
        Ok::<_, Infallible>(answer)
    });
    let runtime = tokio::runtime::Builder::new_current_thread().enable_time().build().unwrap();
    let answer = runtime.block_on(gateway.serve(call, request, service));
    assert!(answer.status().as_u16() >= 200, "{answer:?}");
}
