//! Load in a closed loop: each caller has one call in flight and makes the
//! next one when its reply says that the last one is done.

use std::{
    sync::{
        Arc,
        atomic::{AtomicU8, AtomicU64, Ordering},
    },
    time::{Duration, Instant},
};

use tokio::{task::JoinSet, time::sleep};

use crate::{
    error::{Result, wrong},
    figure::float,
    process::cpu_time,
};

/// Callers at the same time.
pub(crate) const CALLERS: usize = 64;
/// Connections that they share.
pub(crate) const CONNECTIONS: usize = 4;

const WARM_UP: u8 = 0;
const MEASURED: u8 = 1;
const OVER: u8 = 2;

/// One caller. Answers when the reply has come and says that it is done.
pub(crate) trait Caller: Send + 'static {
    /// The caller's next call, unlike all before it.
    fn call(&mut self) -> impl Future<Output = Result> + Send;
}

/// How long to warm up and to measure, and which process answers.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Plan {
    /// Calls in it do not count.
    pub(crate) warm_up: Duration,
    /// Calls that end in it count.
    pub(crate) window: Duration,
    /// The process under measurement.
    pub(crate) server: u32,
}

/// What a window showed.
#[derive(Clone, Debug)]
pub(crate) struct Window {
    /// Calls for each second.
    pub(crate) rate: f64,
    /// What the caller's counter gained for each second.
    pub(crate) counted_rate: f64,
    /// The middle and the slowest hundredth of the calls, in milliseconds.
    pub(crate) p50_ms: f64,
    /// The slowest hundredth.
    pub(crate) p99_ms: f64,
    /// Time that the server computed for each call, in microseconds.
    pub(crate) server_us: f64,
    /// Time that the client computed for each call, in microseconds.
    pub(crate) client_us: f64,
}

/// Runs the callers. `counter` is read at both ends of the window.
pub(crate) async fn run<C: Caller>(
    callers: Vec<C>,
    plan: Plan,
    counter: &AtomicU64,
) -> Result<Window> {
    let phase = Arc::new(AtomicU8::new(WARM_UP));
    let mut lanes = JoinSet::new();
    for caller in callers {
        lanes.spawn(lane(caller, Arc::clone(&phase)));
    }
    sleep(plan.warm_up).await;
    let cpu = || (cpu_time(plan.server), cpu_time(std::process::id()));
    let (before, begun, counted) = (cpu(), Instant::now(), counter.load(Ordering::Relaxed));
    phase.store(MEASURED, Ordering::Relaxed);
    sleep(plan.window).await;
    phase.store(OVER, Ordering::Relaxed);
    let (elapsed, counted) = (begun.elapsed(), counter.load(Ordering::Relaxed) - counted);
    let after = cpu();

    let mut latencies = Vec::new();
    while let Some(done) = lanes.join_next().await {
        let lane = done.map_err(|error| wrong(format!("a caller broke: {error}")))?;
        latencies.extend(lane?);
    }
    if latencies.is_empty() {
        return Err(wrong("no call ended within the window"));
    }
    latencies.sort_unstable();
    let done = float(u64::try_from(latencies.len()).unwrap_or(u64::MAX));
    let seconds = elapsed.as_secs_f64();
    // Where tasks are counted the time is spent for them, not for the calls.
    let each = if counted > 0 { float(counted) } else { done };
    Ok(Window {
        rate: done / seconds,
        counted_rate: float(counted) / seconds,
        p50_ms: percentile_ms(&latencies, 50),
        p99_ms: percentile_ms(&latencies, 99),
        server_us: after.0.saturating_sub(before.0).as_secs_f64() * 1e6 / each,
        client_us: after.1.saturating_sub(before.1).as_secs_f64() * 1e6 / each,
    })
}

/// One caller's calls; answers how long each one in the window took.
async fn lane<C: Caller>(mut caller: C, phase: Arc<AtomicU8>) -> Result<Vec<Duration>> {
    let mut latencies = Vec::with_capacity(4096);
    loop {
        let begun = Instant::now();
        caller.call().await?;
        match phase.load(Ordering::Relaxed) {
            WARM_UP => {}
            MEASURED => latencies.push(begun.elapsed()),
            _ => return Ok(latencies),
        }
    }
}

/// A percentile of sorted times.
pub(crate) fn percentile_ms(sorted: &[Duration], percent: usize) -> f64 {
    let last = sorted.len().saturating_sub(1);
    let index = (sorted.len() * percent / 100).min(last);
    sorted.get(index).map_or(f64::NAN, |time| time.as_secs_f64() * 1e3)
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Every call takes a while and counts.
    struct Slow(Arc<AtomicU64>);

    impl Caller for Slow {
        async fn call(&mut self) -> Result {
            sleep(Duration::from_millis(1)).await;
            self.0.fetch_add(1, Ordering::Relaxed);
            Ok(())
        }
    }

    struct Broken;

    impl Caller for Broken {
        async fn call(&mut self) -> Result {
            Err(wrong("refused"))
        }
    }

    const PLAN: Plan =
        Plan { warm_up: Duration::from_millis(20), window: Duration::from_millis(100), server: 0 };

    #[tokio::test]
    async fn only_calls_of_the_window_count() {
        let counter = Arc::new(AtomicU64::new(0));
        let callers = (0..4).map(|_| Slow(Arc::clone(&counter))).collect();
        let window = run(callers, PLAN, &counter).await.unwrap();
        assert!(window.rate > 0.0 && window.rate <= 4_000.0, "{window:?}");
        assert!(window.p50_ms >= 1.0 && window.p99_ms >= window.p50_ms, "{window:?}");
        let all = float(counter.load(Ordering::Relaxed)) / 0.1;
        assert!(window.counted_rate < all, "the warm-up counts: {window:?}");
    }

    #[tokio::test]
    async fn a_refused_call_fails_the_measurement() {
        let error = run(vec![Broken], PLAN, &AtomicU64::new(0)).await.unwrap_err();
        assert_eq!(error.to_string(), "refused");
    }

    #[test]
    fn percentiles_are_of_the_sorted_times() {
        let times: Vec<_> = (1..=100).map(Duration::from_millis).collect();
        assert!((percentile_ms(&times, 50) - 51.0).abs() < 1e-9);
        assert!((percentile_ms(&times, 99) - 100.0).abs() < 1e-9);
        assert!(percentile_ms(&[], 50).is_nan());
    }
}
