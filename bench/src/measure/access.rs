//! Calls with a credential against the same calls with auth off.

use std::sync::{
    Arc,
    atomic::{AtomicU64, Ordering},
};

use bailiwick_client::Client;

use super::{Bench, middle, shown, throughput::connect};
use crate::{
    callers::{Creator, Orders, Reader, created, new_task},
    error::{Result, refused, wrong},
    figure::{Figure, Measured},
    load::Window,
    process::Process,
    server::{Access, ONE_STEP, Setup},
};

/// The difference is small: more turns than elsewhere.
const ROUNDS: usize = 8;
/// Tasks that are read.
pub(super) const TASKS: u64 = 1_000;

/// A server, and what reads and creates on it.
struct Side {
    _setup: Setup,
    process: Process,
    connections: Vec<Client>,
    ids: Arc<[String]>,
    orders: Orders,
}

/// Which call.
#[derive(Clone, Copy)]
enum Call {
    Read,
    Create,
}

impl Side {
    async fn start(bench: &Bench, access: Access, figure: Figure) -> Result<Self> {
        let setup = Setup::new(&bench.places, access, None)?;
        let (process, _) = setup.serve(&bench.places).await?;
        let jwt = figure == Figure::AuthCachedJwt;
        let auth = if jwt { setup.jwt().clone() } else { setup.api_key().clone() };
        setup.register(&auth).await?;
        let connections = connect(&setup, &auth).await?;
        let orders = Orders::default();
        let first = connections.first().ok_or_else(|| wrong("no connection"))?;
        let ids = some_tasks(first, &orders).await?;
        Ok(Self { _setup: setup, process, connections, ids, orders })
    }

    async fn window(&self, bench: &Bench, call: Call) -> Result<Window> {
        let (pid, counter) = (self.process.pid(), AtomicU64::new(0));
        match call {
            Call::Read => {
                let callers = Reader::all(&self.connections, &self.ids);
                bench.window(callers, pid, &counter).await
            }
            Call::Create => {
                let callers = Creator::all(&self.connections, ONE_STEP, &self.orders, None);
                bench.window(callers, pid, &counter).await
            }
        }
    }
}

/// Creates the tasks that are read.
pub(super) async fn some_tasks(client: &Client, orders: &Orders) -> Result<Arc<[String]>> {
    let mut ids = Vec::new();
    for _ in 0..TASKS {
        let order = orders.fetch_add(1, Ordering::Relaxed);
        let reply = client.tasks().create_task(new_task(ONE_STEP, order)).await;
        ids.push(created(reply.map_err(refused("CreateTask"))?)?);
    }
    Ok(ids.into())
}

/// `auth_api_key` and `auth_cached_jwt`: `GetTask` and `CreateTask`, and of
/// the two the one that loses more.
pub(super) async fn measure(bench: &Bench, figure: Figure) -> Result<Measured> {
    let off = Side::start(bench, Access::Open, figure).await?;
    let on = Side::start(bench, Access::Secured, figure).await?;
    let get = compare(bench, figure, Call::Read, &off, &on).await?;
    let create = compare(bench, figure, Call::Create, &off, &on).await?;
    on.process.stop().await?;
    off.process.stop().await?;
    let (worse, other) = if get.ratio < create.ratio { (get, create) } else { (create, get) };
    let note = format!(
        "the other call: {:.0} of {:.0} {}, ratio {:.3}",
        other.value, other.baseline, other.unit, other.ratio
    );
    Ok(other.notes().iter().fold(worse.note(note), |worse, note| worse.note(note.as_str())))
}

async fn compare(
    bench: &Bench,
    figure: Figure,
    call: Call,
    off: &Side,
    on: &Side,
) -> Result<Measured> {
    let (mut base, mut real) = (Vec::new(), Vec::new());
    for round in 0..ROUNDS {
        // Off, on, on, off: a drift of the machine weighs on both alike.
        if round % 2 == 0 {
            base.push(off.window(bench, call).await?);
            real.push(on.window(bench, call).await?);
        } else {
            real.push(on.window(bench, call).await?);
            base.push(off.window(bench, call).await?);
        }
    }
    let name = match call {
        Call::Read => "GetTask",
        Call::Create => "CreateTask",
    };
    let (value, baseline) = (middle(&real, |w| w.rate), middle(&base, |w| w.rate));
    Ok(Measured::new(figure, value, baseline)
        .note(shown(&format!("{name}, auth on"), &real))
        .note(shown(&format!("{name}, auth off"), &base)))
}
