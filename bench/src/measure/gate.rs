//! What the gate costs: the figures of [`crate::gate`], in its own process.

use std::process::Stdio;

use tokio::process::Command;

use super::Bench;
use crate::{
    error::{Result, Tried as _, wrong},
    figure::{Figure, Measured, median},
    gate::{Looks, Part, SPREAD},
};

/// `gate_cached_us`: the dearest credential, against a call of nothing.
pub(super) async fn cached(bench: &Bench) -> Result<Measured> {
    let looks = looks(bench, Part::Cached).await?;
    worst(Figure::GateCached, &looks, |looks| middle(&looks.real))
}

/// `gate_jwt`: the algorithm that loses most.
pub(super) async fn jwt(bench: &Bench) -> Result<Measured> {
    let looks = looks(bench, Part::Jwt).await?;
    worst(Figure::GateJwt, &looks, ratio)
}

/// `gate_100k_tokens`: the call that loses most.
pub(super) async fn tokens(bench: &Bench) -> Result<Measured> {
    let (spread, looks): (Vec<_>, Vec<_>) =
        looks(bench, Part::Tokens).await?.into_iter().partition(|looks| looks.name == SPREAD);
    let measured = worst(Figure::GateTokens, &looks, ratio)?;
    Ok(spread
        .iter()
        .fold(measured, |measured, looks| measured.note(format!("no bound: {}", shown(looks)))))
}

/// The comparison that is worst is the figure; all of them stand below it.
fn worst(figure: Figure, looks: &[Looks], of: impl Fn(&Looks) -> f64) -> Result<Measured> {
    let worst = looks.iter().max_by(|one, other| of(one).total_cmp(&of(other)));
    let worst = worst.ok_or_else(|| wrong("nothing was measured"))?;
    let measured = Measured::new(figure, middle(&worst.real), middle(&worst.base));
    Ok(looks.iter().fold(measured, |measured, looks| measured.note(shown(looks))))
}

async fn looks(bench: &Bench, part: Part) -> Result<Vec<Looks>> {
    let folder = bench.places.folder()?;
    let log = folder.path().join("gate.log");
    let log = std::fs::File::create(&log).tried("make the log")?;
    let mut command = Command::new(&bench.places.bench);
    command.args(["gate", "--part", part.name(), "--folder"]).arg(folder.path());
    command.stdin(Stdio::null()).stdout(Stdio::piped()).stderr(log).kill_on_drop(true);
    let output = command.spawn().tried("start the gate")?.wait_with_output().await;
    let output = output.tried("wait for the gate")?;
    let text = String::from_utf8_lossy(&output.stdout);
    if !output.status.success() {
        return Err(wrong(format!("the gate ended with {}: {}", output.status, text.trim())));
    }
    serde_json::from_str(&text).map_err(|error| wrong(format!("the gate answered {error}")))
}

fn middle(looks: &[f64]) -> f64 {
    median(looks)
}

fn ratio(looks: &Looks) -> f64 {
    middle(&looks.real) / middle(&looks.base)
}

fn shown(looks: &Looks) -> String {
    format!(
        "{}: {:.3} us, against {:.3}, ratio {:.3}; quarter to three quarters {:.3} to {:.3}; {} looks",
        looks.name,
        middle(&looks.real),
        middle(&looks.base),
        ratio(looks),
        quarter(&looks.real, 1),
        quarter(&looks.real, 3),
        looks.real.len(),
    )
}

fn quarter(looks: &[f64], number: usize) -> f64 {
    let mut sorted = looks.to_vec();
    sorted.sort_by(f64::total_cmp);
    sorted.get(looks.len() * number / 4).copied().unwrap_or(f64::NAN)
}
