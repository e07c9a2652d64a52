//! What it costs that everything is recorded and sealed: two servers that take
//! turns, one of them without the audit.

use std::sync::atomic::AtomicU64;

use bailiwick_client::{Auth, Client};

use super::{
    Bench, ROUNDS, middle, shown,
    throughput::{Run, connect},
};
use crate::{
    callers::{Creator, Orders},
    error::Result,
    figure::{Figure, Measured},
    load::Window,
    process::Process,
    server::{Access, ONE_STEP, Setup},
};

struct Side {
    setup: Setup,
    process: Process,
}

impl Side {
    async fn start(bench: &Bench, audited: bool) -> Result<Self> {
        let setup = Setup::new(&bench.places, Access::Open, None)?;
        if !audited {
            setup.without_audit()?;
        }
        let (process, _) = setup.serve(&bench.places).await?;
        setup.register(&Auth::None).await?;
        Ok(Self { setup, process })
    }

    async fn created(
        &self,
        bench: &Bench,
        connections: &[Client],
        orders: &Orders,
    ) -> Result<Window> {
        let callers = Creator::all(connections, ONE_STEP, orders, None);
        bench.window(callers, self.process.pid(), &AtomicU64::new(0)).await
    }

    async fn done(&self, bench: &Bench, run: &Run, orders: &Orders) -> Result<Window> {
        let callers = Creator::all(&run.connections, ONE_STEP, orders, Some(&run.tally.room));
        let window = bench.window(callers, self.process.pid(), &run.tally.acknowledged).await?;
        run.drain().await?;
        Ok(window)
    }
}

/// `audit_cost_create`.
pub(super) async fn create(bench: &Bench) -> Result<Measured> {
    let (with, without) = (Side::start(bench, true).await?, Side::start(bench, false).await?);
    let recorded = connect(&with.setup, &Auth::None).await?;
    let silent = connect(&without.setup, &Auth::None).await?;
    let orders = Orders::default();
    let (mut base, mut real) = (Vec::new(), Vec::new());
    for _ in 0..ROUNDS {
        base.push(without.created(bench, &silent, &orders).await?);
        real.push(with.created(bench, &recorded, &orders).await?);
    }
    with.process.stop().await?;
    without.process.stop().await?;
    let (value, baseline) = (middle(&real, |w| w.rate), middle(&base, |w| w.rate));
    Ok(Measured::new(Figure::AuditCostCreate, value, baseline)
        .note(shown("recorded", &real))
        .note(shown("silent", &base)))
}

/// `audit_cost_tasks`.
pub(super) async fn tasks(bench: &Bench) -> Result<Measured> {
    let (with, without) = (Side::start(bench, true).await?, Side::start(bench, false).await?);
    let (recorded, silent) = (Run::start(&with.setup).await?, Run::start(&without.setup).await?);
    let orders = Orders::default();
    let (mut base, mut real) = (Vec::new(), Vec::new());
    for _ in 0..ROUNDS {
        base.push(without.done(bench, &silent, &orders).await?);
        real.push(with.done(bench, &recorded, &orders).await?);
    }
    recorded.finish().await?;
    silent.finish().await?;
    with.process.stop().await?;
    without.process.stop().await?;
    let rate = |window: &Window| window.counted_rate;
    let rates = |windows: &[Window]| {
        let rates: Vec<_> = windows.iter().map(|w| format!("{:.0}", w.counted_rate)).collect();
        rates.join(", ")
    };
    Ok(Measured::new(Figure::AuditCostTasks, middle(&real, rate), middle(&base, rate))
        .note(format!("recorded: {} tasks/s; silent: {} tasks/s", rates(&real), rates(&base)))
        .note(format!(
            "CPU per task: recorded {:.1} us, silent {:.1} us",
            middle(&real, |w| w.server_us),
            middle(&base, |w| w.server_us)
        )))
}
