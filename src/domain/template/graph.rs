//! How steps wait for each other.

use super::findings::{Findings, Path, Place, shown};

/// How many steps of a cycle are shown.
const CYCLE_SHOWN_MAX: usize = 20;

/// That a step waits for another, and where this is written.
#[derive(Clone, Debug)]
pub(super) struct Reference {
    pub(super) step: usize,
    pub(super) place: Place,
    pub(super) path: Path,
}

#[derive(Clone, Copy, PartialEq, Eq)]
enum Seen {
    Never,
    OnTheWay,
    Left,
}

/// Complains of every reference that closes a cycle.
///
/// A walk in depth with its own stack: a chain may be as long as a template.
pub(super) fn refuse_cycles(graph: &[Vec<Reference>], names: &[&str], findings: &mut Findings) {
    let mut seen = vec![Seen::Never; graph.len()];
    for start in 0..graph.len() {
        if seen.get(start) != Some(&Seen::Never) {
            continue;
        }
        // The way so far: each step with its references that are still to go.
        let mut way = vec![(start, references(graph, start).iter())];
        mark(&mut seen, start, Seen::OnTheWay);
        while let Some((step, left)) = way.last_mut() {
            let Some(reference) = left.next() else {
                mark(&mut seen, *step, Seen::Left);
                way.pop();
                continue;
            };
            match seen.get(reference.step) {
                Some(Seen::Never) => {
                    mark(&mut seen, reference.step, Seen::OnTheWay);
                    way.push((reference.step, references(graph, reference.step).iter()));
                }
                // A dense graph closes very many.
                Some(Seen::OnTheWay) if findings.full() => return,
                Some(Seen::OnTheWay) => {
                    let cycle = way
                        .iter()
                        .map(|(step, _)| *step)
                        .skip_while(|step| *step != reference.step);
                    let message = format!(
                        "steps wait for each other in a cycle: {}",
                        written(cycle, reference.step, names)
                    );
                    findings.error(reference.place, &reference.path, message);
                }
                Some(Seen::Left) | None => {}
            }
        }
    }
}

fn references(graph: &[Vec<Reference>], step: usize) -> &[Reference] {
    graph.get(step).map_or(&[], Vec::as_slice)
}

fn mark(seen: &mut [Seen], step: usize, now: Seen) {
    if let Some(entry) = seen.get_mut(step) {
        *entry = now;
    }
}

/// `a -> b -> a`, shortened in the middle.
fn written(cycle: impl Iterator<Item = usize>, first: usize, names: &[&str]) -> String {
    let name = |step: usize| shown(names.get(step).copied().unwrap_or_default());
    let steps: Vec<usize> = cycle.collect();
    let mut words: Vec<String> =
        steps.iter().take(CYCLE_SHOWN_MAX).map(|step| name(*step)).collect();
    if steps.len() > CYCLE_SHOWN_MAX {
        words.push(format!("… {} more …", steps.len() - CYCLE_SHOWN_MAX));
    }
    words.push(name(first));
    words.join(" -> ")
}
