//! The REST gateway against hand-written axum routes.

use std::sync::{Arc, atomic::AtomicU64};

use super::{Bench, ROUNDS, access::some_tasks, middle, shown};
use crate::{
    callers::Orders,
    error::Result,
    figure::{Figure, Measured},
    load::Window,
    process::Process,
    rest::{Getter, Poster},
    server::{Access, Setup},
};

/// One of the two that answer REST.
struct Side {
    setup: Setup,
    process: Process,
    ids: Arc<[String]>,
    orders: Orders,
}

impl Side {
    async fn server(bench: &Bench) -> Result<Self> {
        let setup = Setup::new(&bench.places, Access::Secured, None)?;
        let (process, _) = setup.serve(&bench.places).await?;
        let (ids, orders) = prepare(&setup).await?;
        Ok(Self { setup, process, ids, orders })
    }

    /// The tasks are made by a server, which then leaves its folder to the
    /// axum routes.
    async fn axum(bench: &Bench) -> Result<Self> {
        let setup = Setup::new(&bench.places, Access::Secured, None)?;
        let (server, _) = setup.serve(&bench.places).await?;
        let (ids, orders) = prepare(&setup).await?;
        server.stop().await?;
        let process = setup.serve_axum(&bench.places).await?;
        Ok(Self { setup, process, ids, orders })
    }

    async fn window(&self, bench: &Bench, figure: Figure) -> Result<Window> {
        let (address, auth) = (self.setup.http(), self.setup.api_key());
        let (pid, counter) = (self.process.pid(), AtomicU64::new(0));
        if figure == Figure::RestGet {
            let callers = Getter::all(address, auth, &self.ids).await?;
            bench.window(callers, pid, &counter).await
        } else {
            let callers = Poster::all(address, auth, &self.orders).await?;
            bench.window(callers, pid, &counter).await
        }
    }
}

async fn prepare(setup: &Setup) -> Result<(Arc<[String]>, Orders)> {
    setup.register(setup.api_key()).await?;
    let orders = Orders::default();
    let client = setup.connect(setup.api_key()).await?;
    Ok((some_tasks(&client, &orders).await?, orders))
}

/// `rest_get` and `rest_post`.
pub(super) async fn measure(bench: &Bench, figure: Figure) -> Result<Measured> {
    let server = Side::server(bench).await?;
    let axum = Side::axum(bench).await?;
    let (mut base, mut real) = (Vec::new(), Vec::new());
    for _ in 0..ROUNDS {
        base.push(axum.window(bench, figure).await?);
        real.push(server.window(bench, figure).await?);
    }
    server.process.stop().await?;
    axum.process.stop().await?;
    let (value, baseline) = (middle(&real, |w| w.rate), middle(&base, |w| w.rate));
    Ok(Measured::new(figure, value, baseline)
        .note(shown("gateway", &real))
        .note(shown("axum", &base)))
}
