//! The templates that a worker knows: those of its namespaces that name one of
//! its handlers, asked of the server with the worker's own credential.
//!
//! Not here: who may see which of them (`grpc`).

use std::{fmt, sync::Arc, time::Duration};

use bailiwick_client::Client;
use futures::future::BoxFuture;
use tokio::{
    sync::Mutex,
    time::{Instant, timeout},
};
use tonic::{Code, Status};
use tracing::warn;

use crate::{
    access::{Kind, Reason, Refusal},
    grpc::KnownTemplates,
    pb::v1 as pb,
};

/// How old an answer may be.
const FRESH: Duration = Duration::from_secs(5);
/// How long the server may take for all pages.
const PATIENCE: Duration = Duration::from_secs(10);
const PAGE_SIZE: u32 = 500;
/// More templates than this are not looked at.
const PAGES_MAX: usize = 20;

type Known = Arc<[pb::WorkerTemplate]>;

/// Asks the server, and remembers the answer for some seconds.
pub struct Templates {
    client: Client,
    namespace: String,
    handlers: Vec<String>,
    latest: Mutex<Option<(Instant, Known)>>,
}

impl fmt::Debug for Templates {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Templates({})", self.namespace)
    }
}

impl Templates {
    /// Of a worker for this namespace, or what is below it when it ends in a
    /// dot, with these handlers.
    #[must_use]
    pub fn new(client: Client, namespace: String, handlers: Vec<String>) -> Self {
        Self { client, namespace, handlers, latest: Mutex::new(None) }
    }

    async fn latest(&self) -> Result<Known, Refusal> {
        // Held while the server is asked: many callers cost one question.
        let mut latest = self.latest.lock().await;
        if let Some((at, known)) = &*latest
            && at.elapsed() < FRESH
        {
            return Ok(Arc::clone(known));
        }
        let asked = timeout(PATIENCE, self.ask()).await;
        let known = asked
            .map_err(|_| away("the server does not answer"))?
            .map_err(|status| refused(&status))?;
        *latest = Some((Instant::now(), Arc::clone(&known)));
        Ok(known)
    }

    async fn ask(&self) -> Result<Known, Status> {
        let below = self.namespace.ends_with('.');
        let mut request = pb::ListTemplatesRequest {
            namespace: (!below).then(|| self.namespace.clone()),
            page_size: PAGE_SIZE,
            ..pb::ListTemplatesRequest::default()
        };
        let mut known = Vec::new();
        for _ in 0..PAGES_MAX {
            let page = self.client.templates().list_templates(request.clone()).await?.into_inner();
            known.extend(page.templates.into_iter().filter_map(|template| self.known(template)));
            if page.next_page_token.is_empty() {
                return Ok(known.into());
            }
            request.page_token = page.next_page_token;
        }
        warn!(pages = PAGES_MAX, "there are more templates than the worker looks at");
        Ok(known.into())
    }

    fn known(&self, template: pb::Template) -> Option<pb::WorkerTemplate> {
        let pb::Template { namespace, name, version, mut handlers, .. } = template;
        let below = self.namespace.ends_with('.') && namespace.starts_with(&self.namespace);
        if namespace != self.namespace && !below {
            return None;
        }
        handlers.retain(|handler| self.handlers.contains(handler));
        (!handlers.is_empty()).then_some(pb::WorkerTemplate { namespace, name, version, handlers })
    }
}

impl KnownTemplates for Templates {
    fn all(&self) -> BoxFuture<'_, Result<Known, Refusal>> {
        Box::pin(self.latest())
    }
}

fn away(message: &str) -> Refusal {
    Refusal {
        retry_after: Some(FRESH),
        ..Refusal::new(Kind::Unavailable, Reason::NotReady, message)
    }
}

/// What the server said is for the log: it names the worker's own credential.
fn refused(status: &Status) -> Refusal {
    let message = match status.code() {
        Code::PermissionDenied | Code::NotFound | Code::Unauthenticated => {
            "the server does not let this worker list templates: its credential needs \
             templates:read in the worker's namespace"
        }
        Code::Ok
        | Code::Cancelled
        | Code::Unknown
        | Code::InvalidArgument
        | Code::DeadlineExceeded
        | Code::AlreadyExists
        | Code::ResourceExhausted
        | Code::FailedPrecondition
        | Code::Aborted
        | Code::OutOfRange
        | Code::Unimplemented
        | Code::Internal
        | Code::Unavailable
        | Code::DataLoss => "the worker cannot reach the server",
    };
    Refusal { detail: Some(status.to_string()), ..away(message) }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn template(namespace: &str, handlers: &[&str]) -> pb::Template {
        pb::Template {
            namespace: namespace.to_owned(),
            handlers: handlers.iter().map(|handler| (*handler).to_owned()).collect(),
            ..pb::Template::default()
        }
    }

    #[tokio::test]
    async fn tk_26_a_worker_knows_what_it_could_be_given() {
        let client = Client::builder("http://127.0.0.1:1").connect_lazy().unwrap();
        let worker = |namespace: &str| {
            Templates::new(client.clone(), namespace.to_owned(), vec!["a".into(), "b".into()])
        };
        let known = |worker: &Templates, namespace: &str, handlers: &[&str]| {
            worker.known(template(namespace, handlers)).map(|known| known.handlers)
        };
        let exact = worker("shop");
        assert_eq!(known(&exact, "shop", &["a", "x"]).unwrap(), ["a"]);
        assert_eq!(known(&exact, "shop", &["x"]), None);
        assert_eq!(known(&exact, "shop.eu", &["a"]), None);
        assert_eq!(known(&exact, "shopping", &["a"]), None);
        let below = worker("shop.");
        assert_eq!(known(&below, "shop.eu", &["b"]).unwrap(), ["b"]);
        for other in ["shop", "shopping.eu", "bank"] {
            assert_eq!(known(&below, other, &["a"]), None, "{other}");
        }
    }

    #[tokio::test]
    async fn a_server_out_of_reach_is_no_empty_list() {
        let listener = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
        let url = format!("http://{}", listener.local_addr().unwrap());
        drop(listener);
        let client = Client::builder(url).connect_lazy().unwrap();
        let templates = Templates::new(client, "shop".to_owned(), vec!["a".to_owned()]);
        let refusal = templates.all().await.unwrap_err();
        assert_eq!((refusal.kind, refusal.reason), (Kind::Unavailable, Reason::NotReady));
    }
}
