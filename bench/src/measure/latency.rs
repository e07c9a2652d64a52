//! One task of four steps, one behind the other, against the disk.

use std::{
    sync::{Arc, atomic::Ordering},
    time::{Duration, Instant},
};

use bailiwick_client::{
    Auth, Client,
    pb::v1::{self as pb, watch_task_response::Event},
};
use tokio::{sync::Semaphore, time::sleep};

use super::{Bench, REST, ROUNDS, WARM_UP};
use crate::{
    callers::{Orders, created, new_task},
    disk::{self, Appends},
    error::{Result, refused, wrong},
    figure::{Figure, Measured, median},
    load::percentile_ms,
    server::{Access, LINEAR, Setup},
    worker::{Tally, Worker},
};

/// `linear_4_p50`.
pub(super) async fn linear(bench: &Bench) -> Result<Measured> {
    let setup = Setup::new(&bench.places, Access::Open, None)?;
    let (server, _) = setup.serve(&bench.places).await?;
    setup.register(&Auth::None).await?;
    let client = setup.connect(&Auth::None).await?;
    let tally =
        Tally { acknowledged: Arc::default(), room: Arc::new(Semaphore::new(0)), tokens: false };
    let of_worker = setup.connect(&Auth::None).await?;
    let worker = Worker::start(&of_worker, "bench".to_owned(), tally).await?;
    let folder = bench.places.folder()?;
    let orders = Orders::default();

    let (mut appends, mut medians, mut slowest) = (Vec::new(), Vec::new(), Vec::new());
    for _ in 0..ROUNDS {
        appends.push(disk::appends(folder.path(), bench.window).await?);
        sleep(REST).await;
        run_for(&client, &orders, WARM_UP).await?;
        let times = run_for(&client, &orders, bench.window).await?;
        medians.push(percentile_ms(&times, 50));
        slowest.push(percentile_ms(&times, 99));
        sleep(REST).await;
    }
    worker.stop().await?;
    server.stop().await?;
    let middle = |of: fn(&Appends) -> f64| median(&appends.iter().map(of).collect::<Vec<_>>());
    let shown: Vec<_> = medians.iter().map(|ms| format!("{ms:.2}")).collect();
    Ok(Measured::new(Figure::Linear, median(&medians), middle(|appends| appends.p50_ms))
        .note(format!("server: p50 {} ms, p99 {:.2} ms", shown.join(", "), median(&slowest)))
        .note(format!("disk: {:.0} appends each second", middle(|appends| appends.rate))))
}

/// One task after the other; how long each took, sorted.
async fn run_for(client: &Client, orders: &Orders, time: Duration) -> Result<Vec<Duration>> {
    let mut times = Vec::new();
    let begun = Instant::now();
    while begun.elapsed() < time {
        let order = orders.fetch_add(1, Ordering::Relaxed);
        times.push(run_one(client, order).await?);
    }
    times.sort_unstable();
    Ok(times)
}

/// From the call of `CreateTask` to the event that says that the task is
/// complete, which must be the watch's last one.
async fn run_one(client: &Client, order: u64) -> Result<Duration> {
    let begun = Instant::now();
    let reply = client.tasks().create_task(new_task(LINEAR, order)).await;
    let task_uuid = created(reply.map_err(refused("CreateTask"))?)?;
    let request = pb::WatchTaskRequest { task_uuid, after_seq: None };
    let watch = client.tasks().watch_task(request).await.map_err(refused("WatchTask"))?;
    let mut events = watch.into_inner();
    let (mut state, mut took) = (pb::TaskState::Unspecified, Duration::ZERO);
    while let Some(event) = events.message().await.map_err(refused("WatchTask"))? {
        took = begun.elapsed();
        match event.event {
            Some(Event::Snapshot(snapshot)) => {
                state = snapshot.task.map_or(state, |task| task.state());
            }
            Some(Event::Task(changed)) => state = changed.state(),
            Some(Event::Step(_)) | None => {}
        }
    }
    if state == pb::TaskState::Complete {
        return Ok(took);
    }
    Err(wrong(format!("the watch ended with the task {}", state.as_str_name())))
}
