//! What it costs that everything is recorded and sealed, and that each step
//! has a token: two servers that take turns, one of them without.

use std::sync::atomic::AtomicU64;

use bailiwick_client::{Auth, Client};

use super::{
    Bench, middle, shown,
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

/// The difference is small: more turns than elsewhere.
const TURNS: usize = 6;

struct Side {
    setup: Setup,
    process: Process,
}

impl Side {
    async fn start(bench: &Bench, change: impl FnOnce(&Setup) -> Result) -> Result<Self> {
        let setup = Setup::new(&bench.places, Access::Open, None)?;
        change(&setup)?;
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

/// `audit_cost`: the dearer of the two.
pub(super) async fn cost(bench: &Bench) -> Result<Measured> {
    let (created, done) = (create(bench).await?, tasks(bench).await?);
    let ratios = format!("create_task_64: {:.3}; one_step_tasks: {:.3}", created.ratio, done.ratio);
    let (dearer, other) =
        if created.ratio <= done.ratio { (created, done) } else { (done, created) };
    let notes = other.notes().to_vec();
    Ok(notes.into_iter().fold(dearer.note(ratios), Measured::note))
}

/// `create_task_64` with everything recorded and without.
async fn create(bench: &Bench) -> Result<Measured> {
    let with = Side::start(bench, |_| Ok(())).await?;
    let without = Side::start(bench, Setup::without_audit).await?;
    let recorded = connect(&with.setup, &Auth::None).await?;
    let silent = connect(&without.setup, &Auth::None).await?;
    let orders = Orders::default();
    let (mut base, mut real) = (Vec::new(), Vec::new());
    for _ in 0..TURNS {
        base.push(without.created(bench, &silent, &orders).await?);
        real.push(with.created(bench, &recorded, &orders).await?);
    }
    with.process.stop().await?;
    without.process.stop().await?;
    let (value, baseline) = (middle(&real, |w| w.rate), middle(&base, |w| w.rate));
    Ok(Measured::new(Figure::AuditCost, value, baseline)
        .note(shown("recorded", &real))
        .note(shown("silent", &base)))
}

/// `one_step_tasks` with everything recorded and without.
async fn tasks(bench: &Bench) -> Result<Measured> {
    let with = Side::start(bench, |_| Ok(())).await?;
    let without = Side::start(bench, Setup::without_audit).await?;
    compare(bench, Figure::AuditCost, [with, without], ["recorded", "silent"]).await
}

/// `step_token_cost`.
pub(super) async fn step_tokens(bench: &Bench) -> Result<Measured> {
    let with = Side::start(bench, Setup::with_step_tokens).await?;
    let without = Side::start(bench, |_| Ok(())).await?;
    compare(bench, Figure::StepTokenCost, [with, without], ["with tokens", "without"]).await
}

/// `one_step_tasks` on one server and on another, in turns.
async fn compare(
    bench: &Bench,
    figure: Figure,
    [with, without]: [Side; 2],
    names: [&str; 2],
) -> Result<Measured> {
    let run = Run::start(&with.setup, figure == Figure::StepTokenCost).await?;
    let base_run = Run::start(&without.setup, false).await?;
    let orders = Orders::default();
    let (mut base, mut real) = (Vec::new(), Vec::new());
    for _ in 0..TURNS {
        base.push(without.done(bench, &base_run, &orders).await?);
        real.push(with.done(bench, &run, &orders).await?);
    }
    run.finish().await?;
    base_run.finish().await?;
    with.process.stop().await?;
    without.process.stop().await?;
    let rate = |window: &Window| window.counted_rate;
    let line = |name: &str, windows: &[Window]| {
        let rates: Vec<_> = windows.iter().map(|w| format!("{:.0}", w.counted_rate)).collect();
        let us = middle(windows, |w| w.server_us);
        format!("{name}: {} tasks/s; CPU per task: server {us:.1} us", rates.join(", "))
    };
    Ok(Measured::new(figure, middle(&real, rate), middle(&base, rate))
        .note(line(names[0], &real))
        .note(line(names[1], &base)))
}
