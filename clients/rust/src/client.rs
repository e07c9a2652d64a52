//! One channel to a server and the typed stubs over it.

use std::{fmt, time::Duration};

use tonic::{
    service::interceptor::InterceptedService,
    transport::{Certificate, Channel, ClientTlsConfig, Endpoint, Identity},
};

use crate::{
    auth::{Auth, CallHeaders},
    error::{Error, innermost},
    pb::v1::{
        access_service_client::AccessServiceClient, audit_service_client::AuditServiceClient,
        auth_admin_service_client::AuthAdminServiceClient,
        health_service_client::HealthServiceClient, schedule_service_client::ScheduleServiceClient,
        step_service_client::StepServiceClient, system_service_client::SystemServiceClient,
        task_service_client::TaskServiceClient, template_service_client::TemplateServiceClient,
        worker_process_service_client::WorkerProcessServiceClient,
        worker_service_client::WorkerServiceClient,
    },
};

/// How long the first connection may take.
const CONNECT_TIMEOUT: Duration = Duration::from_secs(5);
/// A dead connection is noticed before a lease of 30 s has run out.
const KEEP_ALIVE_INTERVAL: Duration = Duration::from_secs(10);
const KEEP_ALIVE_TIMEOUT: Duration = Duration::from_secs(5);
/// A lease carries up to 16 MiB of inputs, and the frame around them.
const DECODE_BYTES_MAX: usize = 20 * 1024 * 1024;
const STREAM_WINDOW_BYTES: u32 = 1024 * 1024;
const CONNECTION_WINDOW_BYTES: u32 = 4 * 1024 * 1024;
const USER_AGENT: &str = concat!("bailiwick-client/", env!("CARGO_PKG_VERSION"));

/// What the stubs send their calls through.
pub type Transport = InterceptedService<Channel, CallHeaders>;

/// A connection to a server: cheap to clone, all clones share one channel,
/// which reconnects by itself.
#[derive(Clone)]
pub struct Client {
    url: String,
    channel: Channel,
    headers: CallHeaders,
}

impl fmt::Debug for Client {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Client").field("url", &self.url).finish_non_exhaustive()
    }
}

/// Connects to the server at `url` (its gRPC address, with the scheme) and
/// sends the credential with every call.
///
/// ```no_run
/// # async fn example() -> Result<(), bailiwick_client::Error> {
/// use bailiwick_client::{Auth, connect_with_auth, pb::v1::ListTasksRequest};
///
/// let auth = Auth::Bearer(std::env::var("BAILIWICK_AUTH_TOKEN").unwrap_or_default());
/// let client = connect_with_auth("http://127.0.0.1:9190", auth).await?;
/// let tasks = client.tasks().list_tasks(ListTasksRequest::default()).await?.into_inner().tasks;
/// # let _ = tasks;
/// # Ok(())
/// # }
/// ```
pub async fn connect_with_auth(url: &str, auth: Auth) -> Result<Client, Error> {
    Client::builder(url).auth(auth).connect().await
}

/// What a connection is made of, before it is made.
#[derive(Clone)]
#[must_use]
pub struct ClientBuilder {
    url: String,
    auth: Auth,
    connect_timeout: Duration,
    product: Option<String>,
    ca_certificate: Option<Vec<u8>>,
    identity: Option<Identity>,
}

/// Shows where it connects to, never its secrets.
impl fmt::Debug for ClientBuilder {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("ClientBuilder").field("url", &self.url).finish_non_exhaustive()
    }
}

impl ClientBuilder {
    /// The credential; none by default.
    pub fn auth(mut self, auth: Auth) -> Self {
        self.auth = auth;
        self
    }

    /// How long connecting may take; 5 s by default.
    pub fn connect_timeout(mut self, timeout: Duration) -> Self {
        self.connect_timeout = timeout;
        self
    }

    /// Puts a product before the library's name in `User-Agent`.
    pub fn user_agent(mut self, product: impl Into<String>) -> Self {
        self.product = Some(product.into());
        self
    }

    /// Trusts this authority (PEM) instead of the system's for `https`.
    pub fn ca_certificate(mut self, pem: impl Into<Vec<u8>>) -> Self {
        self.ca_certificate = Some(pem.into());
        self
    }

    /// Shows this certificate (PEM) to an `https` server that asks for one;
    /// the private key (PEM) is its own.
    pub fn client_identity(mut self, cert: impl AsRef<[u8]>, key: impl AsRef<[u8]>) -> Self {
        self.identity = Some(Identity::from_pem(cert, key));
        self
    }

    /// Connects now, so that a server that is out of reach shows at once.
    pub async fn connect(self) -> Result<Client, Error> {
        let headers = CallHeaders::new(&self.auth)?;
        let channel = self
            .endpoint()?
            .connect()
            .await
            .map_err(|error| Error::unreachable(&self.url, error))?;
        Ok(Client { url: self.url, channel, headers })
    }

    /// Connects with the first call: for a worker, which waits for its server.
    pub fn connect_lazy(self) -> Result<Client, Error> {
        let headers = CallHeaders::new(&self.auth)?;
        let channel = self.endpoint()?.connect_lazy();
        Ok(Client { url: self.url, channel, headers })
    }

    fn endpoint(&self) -> Result<Endpoint, Error> {
        let scheme = check_url(&self.url)?;
        let user_agent = match &self.product {
            Some(product) => format!("{product} {USER_AGENT}"),
            None => USER_AGENT.to_owned(),
        };
        let refused = |error: tonic::transport::Error| {
            Error::Setting(format!("{} cannot be used: {}", self.url, innermost(&error)))
        };
        let endpoint = Endpoint::from_shared(self.url.clone())
            .map_err(refused)?
            .user_agent(user_agent)
            .map_err(refused)?
            .connect_timeout(self.connect_timeout)
            .tcp_nodelay(true)
            .http2_keep_alive_interval(KEEP_ALIVE_INTERVAL)
            .keep_alive_timeout(KEEP_ALIVE_TIMEOUT)
            .keep_alive_while_idle(true)
            .initial_stream_window_size(STREAM_WINDOW_BYTES)
            .initial_connection_window_size(CONNECTION_WINDOW_BYTES);
        match scheme {
            Scheme::Plain => Ok(endpoint),
            Scheme::Tls => {
                let tls = match &self.ca_certificate {
                    Some(pem) if !holds_certificate(pem) => {
                        return Err(Error::Setting(
                            "the authority's file holds no PEM certificate".to_owned(),
                        ));
                    }
                    Some(pem) => ClientTlsConfig::new().ca_certificate(Certificate::from_pem(pem)),
                    None => ClientTlsConfig::new().with_native_roots(),
                };
                let tls = match &self.identity {
                    Some(identity) => tls.identity(identity.clone()),
                    None => tls,
                };
                endpoint.tls_config(tls).map_err(refused)
            }
        }
    }
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Scheme {
    Plain,
    Tls,
}

/// Without one no server would be trusted, and the reason would show late.
fn holds_certificate(pem: &[u8]) -> bool {
    String::from_utf8_lossy(pem).contains("-----BEGIN CERTIFICATE-----")
}

/// Refuses what would be dropped in silence: a path, a query, a user.
fn check_url(url: &str) -> Result<Scheme, Error> {
    let fault = |what: &str| Err(Error::Setting(format!("`{url}` is not a server's url: {what}")));
    let (scheme, rest) = match url.split_once("://") {
        Some(("http", rest)) => (Scheme::Plain, rest),
        Some(("https", rest)) => (Scheme::Tls, rest),
        Some(_) => return fault("its scheme must be http or https"),
        None => return fault("it lacks its scheme, as in http://127.0.0.1:9190"),
    };
    if rest.contains('@') {
        // The text before the @ may be a password: not into an error.
        return Err(Error::Setting(
            "the server's url must not hold a user: credentials have settings of their own"
                .to_owned(),
        ));
    }
    let host = rest.strip_suffix('/').unwrap_or(rest);
    if host.is_empty() {
        return fault("it lacks a host");
    }
    if host.contains(['/', '?', '#']) {
        return fault("it must end after host and port");
    }
    Ok(scheme)
}

impl Client {
    /// Begins a connection to the server at `url`, which carries its scheme.
    pub fn builder(url: impl Into<String>) -> ClientBuilder {
        ClientBuilder {
            url: url.into(),
            auth: Auth::None,
            connect_timeout: CONNECT_TIMEOUT,
            product: None,
            ca_certificate: None,
            identity: None,
        }
    }

    /// The server's url.
    pub fn url(&self) -> &str {
        &self.url
    }

    /// The same connection, whose calls continue the trace of this W3C
    /// `traceparent`. One that no header can carry is left out.
    #[must_use]
    pub fn with_traceparent(&self, traceparent: &str) -> Self {
        Self { headers: self.headers.clone().with_traceparent(traceparent), ..self.clone() }
    }

    /// Tasks: create, read, list, watch, cancel.
    pub fn tasks(&self) -> TaskServiceClient<Transport> {
        TaskServiceClient::new(self.transport()).max_decoding_message_size(DECODE_BYTES_MAX)
    }

    /// Steps: list, read, resolve.
    pub fn steps(&self) -> StepServiceClient<Transport> {
        StepServiceClient::new(self.transport()).max_decoding_message_size(DECODE_BYTES_MAX)
    }

    /// Templates: register, list, read, validate.
    pub fn templates(&self) -> TemplateServiceClient<Transport> {
        TemplateServiceClient::new(self.transport()).max_decoding_message_size(DECODE_BYTES_MAX)
    }

    /// The scheduler: jobs and rules.
    pub fn schedules(&self) -> ScheduleServiceClient<Transport> {
        ScheduleServiceClient::new(self.transport()).max_decoding_message_size(DECODE_BYTES_MAX)
    }

    /// The calls of workers; [`Worker`](crate::Worker) makes them for you.
    pub fn workers(&self) -> WorkerServiceClient<Transport> {
        WorkerServiceClient::new(self.transport()).max_decoding_message_size(DECODE_BYTES_MAX)
    }

    /// Who am I, and what may I do.
    pub fn access(&self) -> AccessServiceClient<Transport> {
        AccessServiceClient::new(self.transport())
    }

    /// The audit: search, follow, export.
    pub fn audit(&self) -> AuditServiceClient<Transport> {
        AuditServiceClient::new(self.transport()).max_decoding_message_size(DECODE_BYTES_MAX)
    }

    /// Tokens and API keys that the server gives out.
    pub fn auth_admin(&self) -> AuthAdminServiceClient<Transport> {
        AuthAdminServiceClient::new(self.transport())
    }

    /// The server's configuration and handlers.
    pub fn system(&self) -> SystemServiceClient<Transport> {
        SystemServiceClient::new(self.transport())
    }

    /// The server's health.
    pub fn health(&self) -> HealthServiceClient<Transport> {
        HealthServiceClient::new(self.transport())
    }

    /// A worker process itself, by the address of its own listener.
    pub fn worker_process(&self) -> WorkerProcessServiceClient<Transport> {
        WorkerProcessServiceClient::new(self.transport())
            .max_decoding_message_size(DECODE_BYTES_MAX)
    }

    /// What stubs of other services over the same connection are made with.
    #[must_use]
    pub fn transport(&self) -> Transport {
        InterceptedService::new(self.channel.clone(), self.headers.clone())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_url_is_checked_before_anything_is_sent() {
        for (url, expected) in [
            ("127.0.0.1:9190", "lacks its scheme"),
            ("ftp://localhost", "must be http or https"),
            ("http://", "lacks a host"),
            ("http://localhost:9190/v1", "must end after host and port"),
            ("http://localhost?x=1", "must end after host and port"),
        ] {
            let error = check_url(url).unwrap_err().to_string();
            assert!(error.contains(expected), "{url}: {error}");
        }
        let error = check_url("http://me:s3cret@localhost").unwrap_err().to_string();
        assert!(!error.contains("s3cret"), "{error}");
        assert_eq!(check_url("http://localhost:9190").unwrap(), Scheme::Plain);
        assert_eq!(check_url("https://bailiwick.example/").unwrap(), Scheme::Tls);
    }

    #[tokio::test]
    async fn a_server_out_of_reach_is_named_with_the_cause() {
        let listener = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
        let url = format!("http://{}", listener.local_addr().unwrap());
        drop(listener);
        let error = connect_with_auth(&url, Auth::None).await.unwrap_err();
        assert!(matches!(error, Error::Unreachable { .. }), "{error:?}");
        assert!(error.to_string().contains(&url), "{error}");
        assert!(error.to_string().contains("refused"), "{error}");
    }

    #[tokio::test]
    async fn https_takes_the_roots_of_the_system_or_an_own_one() {
        assert!(Client::builder("https://127.0.0.1:1").connect_lazy().is_ok());
        let broken = Client::builder("https://127.0.0.1:1").ca_certificate("not a certificate");
        assert!(matches!(broken.connect_lazy(), Err(Error::Setting(_))));
    }
}
