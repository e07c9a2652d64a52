//! How long an operator waits for the explanation of a refusal.

use std::time::Instant;

use bailiwick_client::{Client, pb::v1 as pb};

use super::{Bench, revoke::round_trip};
use crate::{
    callers::Orders,
    error::{Result, refused, wrong},
    figure::{Figure, Measured, median},
    measure::access::some_tasks,
    server::{Access, Setup},
};

/// Tokens that could be granters, or not.
const TOKENS: usize = 1_000;
/// Explanations of which the figure is the middle.
const CALLS: usize = 300;
/// Calls before, which do not count.
const WARM_UP: usize = 30;

/// `explain_us`: asked by one who is told everything, of another's refusal.
pub(super) async fn explain(bench: &Bench) -> Result<Measured> {
    let setup = Setup::new(&bench.places, Access::Secured, None)?;
    let (server, _) = setup.serve(&bench.places).await?;
    let root = setup.connect(setup.root()).await?;
    setup.register(setup.root()).await?;
    for number in 0..TOKENS {
        let request = pb::MintTokenRequest {
            scopes: vec!["tasks:read".to_owned()],
            name: Some(format!("bench {number}")),
            ..pb::MintTokenRequest::default()
        };
        root.auth_admin().mint_token(request).await.map_err(refused("MintToken"))?;
    }
    let id = a_refusal(&setup).await?;
    let mut times = Vec::with_capacity(CALLS);
    for round in 0..WARM_UP + CALLS {
        let begun = Instant::now();
        let told = ask(&root, &id).await?;
        if told.outcome != "denied" || told.granters.is_empty() {
            return Err(wrong(format!("not explained: {told:?}")));
        }
        if round >= WARM_UP {
            times.push(begun.elapsed().as_secs_f64() * 1e6);
        }
    }
    let tasks = some_tasks(&root, &Orders::default()).await?;
    let task = tasks.first().ok_or_else(|| wrong("no task"))?;
    let base = round_trip(&root, task).await? * 1e3;
    server.stop().await?;
    times.sort_by(f64::total_cmp);
    let last = times.last().copied().unwrap_or_default();
    Ok(Measured::new(Figure::Explain, median(&times), base)
        .note(format!("{CALLS} calls with {TOKENS} tokens in the store; the longest {last:.0} us")))
}

/// The id of a call that was refused.
async fn a_refusal(setup: &Setup) -> Result<String> {
    let client = setup.connect(setup.api_key()).await?;
    let elsewhere = pb::RegisterTemplateRequest {
        namespace: "elsewhere".to_owned(),
        definition: "name: never".to_owned(),
    };
    let Err(status) = client.templates().register_template(elsewhere).await else {
        return Err(wrong("a call in another namespace was let through"));
    };
    let id = status.metadata().get("x-request-id").and_then(|id| id.to_str().ok());
    id.map(str::to_owned).ok_or_else(|| wrong(format!("a refusal without an id: {status}")))
}

async fn ask(root: &Client, id: &str) -> Result<pb::ExplainDecisionResponse> {
    let request = pb::ExplainDecisionRequest { request_id: id.to_owned() };
    let told = root.access().explain_decision(request).await;
    told.map_err(refused("ExplainDecision")).map(tonic::Response::into_inner)
}
