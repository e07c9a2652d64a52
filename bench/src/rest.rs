//! REST callers: one HTTP/1.1 connection each, kept alive, over hyper's own
//! client, so that they cost little.

use std::{
    net::SocketAddr,
    sync::{Arc, atomic::Ordering},
};

use bailiwick_client::{API_KEY_HEADER, Auth};
use bytes::Bytes;
use http::{HeaderName, HeaderValue, Method, Request, StatusCode, header};
use http_body_util::{BodyExt as _, Full};
use hyper::client::conn::http1::{SendRequest, handshake};
use hyper_util::rt::TokioIo;
use tokio::net::TcpStream;

use crate::{
    callers::{Orders, new_task},
    error::{Result, Tried as _, wrong},
    load::{CALLERS, Caller},
    server::ONE_STEP,
};

/// One connection with its credential.
#[derive(Debug)]
struct Connection {
    sender: SendRequest<Full<Bytes>>,
    host: HeaderValue,
    credential: (HeaderName, HeaderValue),
}

impl Connection {
    async fn open(address: SocketAddr, auth: &Auth) -> Result<Self> {
        let stream = TcpStream::connect(address).await.tried(format!("connect to {address}"))?;
        stream.set_nodelay(true).tried("set TCP_NODELAY")?;
        let (sender, connection) = handshake(TokioIo::new(stream)).await?;
        // It ends with its sender; a failed call tells why.
        tokio::spawn(connection);
        let (name, text) = match auth {
            Auth::ApiKey { key, header } => {
                (header.as_deref().unwrap_or(API_KEY_HEADER).to_owned(), key.clone())
            }
            Auth::Bearer(token) => (header::AUTHORIZATION.to_string(), format!("Bearer {token}")),
            Auth::None => return Err(wrong("the REST callers need a credential")),
        };
        let name = HeaderName::try_from(name).map_err(|error| wrong(error.to_string()))?;
        let value = HeaderValue::try_from(text).map_err(|error| wrong(error.to_string()))?;
        let host = HeaderValue::try_from(address.to_string());
        let host = host.map_err(|error| wrong(error.to_string()))?;
        Ok(Self { sender, host, credential: (name, value) })
    }

    /// One exchange; the reply counts with this status alone.
    async fn call(
        &mut self,
        method: Method,
        path: &str,
        body: Bytes,
        status: StatusCode,
    ) -> Result<Bytes> {
        let (name, credential) = &self.credential;
        let request = Request::builder()
            .method(method)
            .uri(path)
            .header(header::HOST, &self.host)
            .header(header::CONTENT_TYPE, "application/json")
            .header(name, credential)
            .body(Full::new(body))
            .map_err(|error| wrong(error.to_string()))?;
        self.sender.ready().await?;
        let response = self.sender.send_request(request).await?;
        let answered = response.status();
        let body = response.into_body().collect().await?.to_bytes();
        if answered == status {
            return Ok(body);
        }
        Err(wrong(format!("{path} answered {answered}: {}", String::from_utf8_lossy(&body))))
    }
}

/// Reads tasks, each time another one.
#[derive(Debug)]
pub(crate) struct Getter {
    connection: Connection,
    ids: Arc<[String]>,
    next: usize,
}

impl Getter {
    /// All callers, spread over the tasks.
    pub(crate) async fn all(
        address: SocketAddr,
        auth: &Auth,
        ids: &Arc<[String]>,
    ) -> Result<Vec<Self>> {
        let mut callers = Vec::with_capacity(CALLERS);
        for at in 0..CALLERS {
            let connection = Connection::open(address, auth).await?;
            let next = at * ids.len() / CALLERS;
            callers.push(Self { connection, ids: Arc::clone(ids), next });
        }
        Ok(callers)
    }
}

impl Caller for Getter {
    async fn call(&mut self) -> Result {
        let id = self.ids.get(self.next % self.ids.len()).map_or("", String::as_str);
        self.next += 1;
        let path = format!("/v1/tasks/{id}");
        let body = self.connection.call(Method::GET, &path, Bytes::new(), StatusCode::OK).await?;
        if shows(&body, id) { Ok(()) } else { Err(wrong(format!("{path} shows another task"))) }
    }
}

/// Creates tasks of one step.
#[derive(Debug)]
pub(crate) struct Poster {
    connection: Connection,
    orders: Orders,
}

impl Poster {
    /// All callers.
    pub(crate) async fn all(
        address: SocketAddr,
        auth: &Auth,
        orders: &Orders,
    ) -> Result<Vec<Self>> {
        let mut callers = Vec::with_capacity(CALLERS);
        for _ in 0..CALLERS {
            let connection = Connection::open(address, auth).await?;
            callers.push(Self { connection, orders: Arc::clone(orders) });
        }
        Ok(callers)
    }
}

impl Caller for Poster {
    async fn call(&mut self) -> Result {
        let task = new_task(ONE_STEP, self.orders.fetch_add(1, Ordering::Relaxed));
        let body = format!(
            r#"{{"namespace":"{}","name":"{}","context":{}}}"#,
            task.namespace, task.name, task.context
        );
        let status = StatusCode::CREATED;
        let reply = self.connection.call(Method::POST, "/v1/tasks", body.into(), status).await?;
        if shows(&reply, "task_uuid") { Ok(()) } else { Err(wrong("POST answered no task")) }
    }
}

/// Whether a reply holds a text.
fn shows(body: &[u8], text: &str) -> bool {
    !text.is_empty() && body.windows(text.len()).any(|part| part == text.as_bytes())
}
