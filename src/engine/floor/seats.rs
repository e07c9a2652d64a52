//! Who waits for which handler's steps, in which order, and their mail.
//!
//! Each sitter stands in one line for each of its handlers, at most once;
//! its credit says how many seats it has. Who got a step goes to the end of
//! that line. A sitter without credit is taken out of a line when it comes to
//! the front: each entry is put in once and taken out once.

use std::{
    collections::{BTreeMap, HashMap, HashSet, VecDeque},
    sync::Arc,
};

use tokio::sync::Notify;

use crate::{
    domain::{Area, LeaseId, Namespace, principal::Identity},
    engine::session::{CREDIT_MAX, Offer},
    storage::{Leased, Revocation, Seat, WorkerRecord},
};

/// How many steps one dispatch gives out, so that it is short.
const DISPATCH_MAX: u32 = 100;

/// Who comes to wait.
pub(in crate::engine) struct Sitting {
    pub(in crate::engine) area: Area,
    pub(in crate::engine) handlers: Arc<[Arc<str>]>,
    pub(in crate::engine) holder: Identity,
    pub(in crate::engine) worker: Option<Arc<str>>,
    /// The worker of a session; none for a single call.
    pub(in crate::engine) session: Option<WorkerRecord>,
}

/// What to look for in the queues.
pub(in crate::engine) struct DispatchOrder {
    pub(in crate::engine) area: Area,
    pub(in crate::engine) handlers: Arc<[Arc<str>]>,
    pub(in crate::engine) limit: u32,
    begun: u64,
}

/// Seats that wait in an area.
pub(in crate::engine) struct Waiting {
    pub(in crate::engine) area: Area,
    pub(in crate::engine) handlers: Vec<Arc<str>>,
    pub(in crate::engine) seats: usize,
}

/// The line for one handler in one area. It stays while anybody offers it.
#[derive(Default)]
struct Line {
    places: BTreeMap<u64, u64>,
    sitters: u32,
    sessions: u32,
    /// When a step last found no seat here.
    backlog: u64,
}

struct Sitter {
    who: Sitting,
    bell: Arc<Notify>,
    credit: u32,
    /// Raised when all credit is taken back: seats taken before count no more.
    generation: u32,
    /// Its place in the line of each handler.
    places: Vec<Option<u64>>,
    mail: VecDeque<Offer>,
    leases_in_mail: u32,
    /// The leases that it is told about.
    held: HashSet<LeaseId>,
    /// A dispatch begun then left nothing for it in the queues.
    drained_at: Option<u64>,
    /// Its credit was used up since the last look, which then may have passed
    /// a step by for want of a seat.
    ran_dry: bool,
}

type WorkerKey = (Area, String, Identity);

fn worker_key(worker: &WorkerRecord) -> WorkerKey {
    (worker.area.clone(), worker.name.clone(), worker.identity.clone())
}

#[derive(Default)]
pub(super) struct Seats {
    /// Counts everything that has an order: sitters, places, seats, looks.
    counter: u64,
    sitters: HashMap<u64, Sitter>,
    lines: HashMap<Area, HashMap<Arc<str>, Line>>,
    /// How many of the areas are prefixes.
    prefixes: usize,
    /// Seats that the store has, by ticket: whose and of which generation.
    taken: HashMap<u64, (u64, u32)>,
    holders: HashMap<LeaseId, u64>,
    orphans: Vec<LeaseId>,
    workers: HashMap<WorkerKey, u32>,
}

impl Seats {
    fn count(&mut self) -> u64 {
        self.counter += 1;
        self.counter
    }

    pub(super) fn enter(&mut self, who: Sitting, bell: Arc<Notify>) -> u64 {
        let id = self.count();
        if !self.lines.contains_key(&who.area) {
            self.prefixes += usize::from(matches!(who.area, Area::Below(_)));
        }
        let lines = self.lines.entry(who.area.clone()).or_default();
        for handler in who.handlers.iter() {
            let line = lines.entry(Arc::clone(handler)).or_default();
            line.sitters += 1;
            line.sessions += u32::from(who.session.is_some());
        }
        if let Some(worker) = &who.session {
            *self.workers.entry(worker_key(worker)).or_default() += 1;
        }
        let places = vec![None; who.handlers.len()];
        let sitter = Sitter {
            who,
            bell,
            credit: 0,
            generation: 0,
            places,
            mail: VecDeque::new(),
            leases_in_mail: 0,
            held: HashSet::new(),
            drained_at: None,
            ran_dry: false,
        };
        self.sitters.insert(id, sitter);
        id
    }

    pub(super) fn leave(&mut self, id: u64) {
        let Some(sitter) = self.sitters.remove(&id) else { return };
        for offer in sitter.mail {
            if let Offer::Lease(lease) = offer {
                self.orphans.push(lease.id);
            }
        }
        for lease in &sitter.held {
            self.holders.remove(lease);
        }
        if let Some(worker) = &sitter.who.session {
            let key = worker_key(worker);
            if let Some(sessions) = self.workers.get_mut(&key) {
                *sessions -= 1;
                if *sessions == 0 {
                    self.workers.remove(&key);
                }
            }
        }
        let Some(lines) = self.lines.get_mut(&sitter.who.area) else { return };
        for (handler, place) in sitter.who.handlers.iter().zip(sitter.places) {
            let Some(line) = lines.get_mut(handler) else { continue };
            if let Some(place) = place {
                line.places.remove(&place);
            }
            line.sitters -= 1;
            line.sessions -= u32::from(sitter.who.session.is_some());
            if line.sitters == 0 {
                lines.remove(handler);
            }
        }
        if lines.is_empty() {
            self.lines.remove(&sitter.who.area);
            self.prefixes -= usize::from(matches!(sitter.who.area, Area::Below(_)));
        }
    }

    pub(super) fn credit(&mut self, id: u64, steps: u32) {
        let Some(sitter) = self.sitters.get_mut(&id) else { return };
        let room = CREDIT_MAX.saturating_sub(sitter.leases_in_mail);
        sitter.credit = sitter.credit.saturating_add(steps).min(room);
        self.line_up(id);
    }

    /// Puts a sitter with credit at the end of each line where it has no place.
    fn line_up(&mut self, id: u64) {
        let Some(sitter) = self.sitters.get_mut(&id) else { return };
        if sitter.credit == 0 {
            return;
        }
        let Some(lines) = self.lines.get_mut(&sitter.who.area) else { return };
        for (handler, place) in sitter.who.handlers.iter().zip(&mut sitter.places) {
            if place.is_none()
                && let Some(line) = lines.get_mut(handler)
            {
                self.counter += 1;
                line.places.insert(self.counter, id);
                *place = Some(self.counter);
            }
        }
    }

    /// Takes all credit back. What was leased and not fetched goes back.
    pub(super) fn recall(&mut self, id: u64) {
        let Some(sitter) = self.sitters.get_mut(&id) else { return };
        sitter.credit = 0;
        sitter.generation = sitter.generation.wrapping_add(1);
        sitter.leases_in_mail = 0;
        let (leases, rest): (VecDeque<_>, VecDeque<_>) =
            sitter.mail.drain(..).partition(|offer| matches!(offer, Offer::Lease(_)));
        sitter.mail = rest;
        for offer in leases {
            if let Offer::Lease(lease) = offer {
                sitter.held.remove(&lease.id);
                self.holders.remove(&lease.id);
                self.orphans.push(lease.id);
            }
        }
    }

    pub(super) fn take(&mut self, namespace: &Namespace, handler: &str) -> Option<Seat> {
        let area = areas_of(namespace, self.prefixes > 0)
            .filter_map(|area| Some((self.front(&area, handler)?, area)))
            .min_by_key(|(place, _)| *place)
            .map(|(_, area)| area)?;
        let line = self.lines.get_mut(&area)?.get_mut(handler)?;
        let (_, id) = line.places.pop_first()?;
        let sitter = self.sitters.get_mut(&id)?;
        sitter.credit -= 1;
        sitter.ran_dry |= sitter.credit == 0;
        let place = slot(&sitter.who.handlers, handler).and_then(|at| sitter.places.get_mut(at))?;
        *place = None;
        if sitter.credit > 0 {
            self.counter += 1;
            line.places.insert(self.counter, id);
            *place = Some(self.counter);
        }
        let (generation, holder) = (sitter.generation, sitter.who.holder.clone());
        let worker = sitter.who.worker.clone();
        let ticket = self.count();
        self.taken.insert(ticket, (id, generation));
        Some(Seat { ticket, holder, worker, entropy: rand::random() })
    }

    /// The first place in a line whose sitter has credit.
    fn front(&mut self, area: &Area, handler: &str) -> Option<u64> {
        let line = self.lines.get_mut(area)?.get_mut(handler)?;
        loop {
            let (&place, id) = line.places.first_key_value()?;
            let sitter = self.sitters.get_mut(id)?;
            if sitter.credit > 0 {
                return Some(place);
            }
            if let Some(slot) =
                slot(&sitter.who.handlers, handler).and_then(|at| sitter.places.get_mut(at))
            {
                *slot = None;
            }
            line.places.pop_first();
        }
    }

    /// The sitter of a seat that the store had, unless it has left or taken
    /// its credit back.
    fn returned(&mut self, seat: &Seat) -> Option<u64> {
        let (id, generation) = self.taken.remove(&seat.ticket)?;
        let sitter = self.sitters.get(&id)?;
        (sitter.generation == generation).then_some(id)
    }

    pub(super) fn give_back(&mut self, seat: &Seat) {
        let Some(id) = self.returned(seat) else { return };
        self.refund(id);
    }

    fn refund(&mut self, id: u64) {
        if let Some(sitter) = self.sitters.get_mut(&id) {
            sitter.credit += 1;
            // A step may have looked for the seat meanwhile.
            sitter.bell.notify_one();
        }
        self.line_up(id);
    }

    pub(super) fn grant(&mut self, seat: &Seat, leased: Leased) {
        let Some(id) = self.returned(seat) else {
            self.orphans.push(leased.id);
            return;
        };
        let Some(sitter) = self.sitters.get_mut(&id) else { return };
        self.holders.insert(leased.id, id);
        sitter.held.insert(leased.id);
        sitter.leases_in_mail += 1;
        sitter.mail.push_back(Offer::Lease(Box::new(leased)));
        sitter.bell.notify_one();
    }

    pub(super) fn revoke(&mut self, lease: LeaseId, why: Revocation) {
        self.orphans.retain(|orphan| *orphan != lease);
        let Some(id) = self.holders.remove(&lease) else { return };
        let Some(sitter) = self.sitters.get_mut(&id) else { return };
        sitter.held.remove(&lease);
        let unread = sitter
            .mail
            .iter()
            .position(|offer| matches!(offer, Offer::Lease(leased) if leased.id == lease));
        if let Some(unread) = unread {
            // Nobody knows of it yet: its seat is free again.
            sitter.mail.remove(unread);
            sitter.leases_in_mail -= 1;
            self.refund(id);
        } else {
            sitter.mail.push_back(Offer::Revoked(lease, why));
            sitter.bell.notify_one();
        }
    }

    pub(super) fn forget(&mut self, lease: LeaseId) {
        if let Some(id) = self.holders.remove(&lease)
            && let Some(sitter) = self.sitters.get_mut(&id)
        {
            sitter.held.remove(&lease);
        }
    }

    /// A ready step found no seat and lies in the queue. A seat that came
    /// meanwhile must look there.
    pub(super) fn unserved(&mut self, namespace: &Namespace, handler: &str) {
        let now = self.count();
        for area in areas_of(namespace, self.prefixes > 0) {
            if let Some(line) = self.lines.get_mut(&area).and_then(|lines| lines.get_mut(handler)) {
                line.backlog = now;
            }
            if let Some(line) = self.lines.get(&area).and_then(|lines| lines.get(handler)) {
                self.ring_first(line);
            }
        }
    }

    /// A sitter with credit looks in the queues unless they were empty when
    /// it last looked and no step was left there since.
    pub(super) fn order(&mut self, id: u64) -> Option<DispatchOrder> {
        let begun = self.count();
        let sitter = self.sitters.get_mut(&id)?;
        if sitter.credit == 0 {
            return None;
        }
        if let Some(drained_at) = sitter.drained_at {
            let lines = self.lines.get(&sitter.who.area)?;
            let left = |handler| lines.get(handler).is_some_and(|line| line.backlog > drained_at);
            if !sitter.who.handlers.iter().any(left) {
                return None;
            }
        }
        sitter.ran_dry = false;
        Some(DispatchOrder {
            area: sitter.who.area.clone(),
            handlers: Arc::clone(&sitter.who.handlers),
            limit: sitter.credit.min(DISPATCH_MAX),
            begun,
        })
    }

    pub(super) fn dispatched(&mut self, id: u64, order: &DispatchOrder, drained: bool) {
        if !drained {
            self.call_next(order);
        } else if let Some(sitter) = self.sitters.get_mut(&id)
            && !sitter.ran_dry
        {
            sitter.drained_at = Some(order.begun);
        }
    }

    /// There may be more steps than this look could take: the next in each
    /// line looks too.
    fn call_next(&self, order: &DispatchOrder) {
        let Some(lines) = self.lines.get(&order.area) else { return };
        for line in order.handlers.iter().filter_map(|handler| lines.get(handler)) {
            self.ring_first(line);
        }
    }

    fn ring_first(&self, line: &Line) {
        let mut sitters = line.places.values().filter_map(|id| self.sitters.get(id));
        if let Some(sitter) = sitters.find(|sitter| sitter.credit > 0) {
            sitter.bell.notify_one();
        }
    }

    pub(super) fn next_offer(&mut self, id: u64) -> Option<Offer> {
        let sitter = self.sitters.get_mut(&id)?;
        let offer = sitter.mail.pop_front()?;
        if let Offer::Lease(_) = offer {
            sitter.leases_in_mail -= 1;
        }
        Some(offer)
    }

    pub(super) fn has_lease(&self, id: u64) -> bool {
        self.sitters.get(&id).is_some_and(|sitter| sitter.leases_in_mail > 0)
    }

    pub(super) fn is_connected(&self, worker: &WorkerRecord) -> bool {
        self.workers.contains_key(&worker_key(worker))
    }

    pub(super) fn connected(&self) -> Vec<WorkerRecord> {
        self.sitters.values().filter_map(|sitter| sitter.who.session.clone()).collect()
    }

    pub(super) fn workers_offering(&self, namespace: &Namespace, handler: &str) -> u32 {
        areas_of(namespace, self.prefixes > 0)
            .filter_map(|area| self.lines.get(&area)?.get(handler))
            .map(|line| line.sessions)
            .sum()
    }

    pub(super) fn handlers_offered(
        &self,
        within: impl Fn(&Namespace) -> bool,
    ) -> BTreeMap<(String, String), Namespace> {
        let mut offered = BTreeMap::new();
        for (area, lines) in &self.lines {
            let Area::Exactly(namespace) = area else { continue };
            if !within(namespace) {
                continue;
            }
            for (handler, line) in lines {
                if line.sessions > 0 {
                    let key = (namespace.to_string(), handler.as_ref().to_owned());
                    offered.insert(key, namespace.clone());
                }
            }
        }
        offered
    }

    pub(super) fn waiting(&self) -> Vec<Waiting> {
        let mut areas: HashMap<&Area, Waiting> = HashMap::new();
        for sitter in self.sitters.values().filter(|sitter| sitter.credit > 0) {
            let area = &sitter.who.area;
            let waiting = areas.entry(area).or_insert_with(|| Waiting {
                area: area.clone(),
                handlers: Vec::new(),
                seats: 0,
            });
            waiting.handlers.extend(sitter.who.handlers.iter().cloned());
            waiting.seats += usize::try_from(sitter.credit).unwrap_or(0);
        }
        let mut waiting: Vec<_> = areas.into_values().collect();
        for area in &mut waiting {
            area.handlers.sort_unstable();
            area.handlers.dedup();
        }
        waiting
    }

    pub(super) fn figures(&self) -> (usize, usize) {
        let credit = self.sitters.values().map(|sitter| sitter.credit).sum::<u32>();
        let sessions = self.workers.values().sum::<u32>();
        (usize::try_from(sessions).unwrap_or(0), usize::try_from(credit).unwrap_or(0))
    }

    pub(super) fn is_empty(&self) -> bool {
        self.sitters.is_empty()
    }

    pub(super) fn has_orphans(&self) -> bool {
        !self.orphans.is_empty()
    }

    pub(super) fn take_orphans(&mut self) -> Vec<LeaseId> {
        std::mem::take(&mut self.orphans)
    }

    pub(super) fn keep_orphans(&mut self, leases: Vec<LeaseId>) {
        self.orphans.extend(leases);
    }
}

/// The place of a handler among a sitter's, which are sorted.
fn slot(handlers: &[Arc<str>], handler: &str) -> Option<usize> {
    handlers.binary_search_by(|known| known.as_ref().cmp(handler)).ok()
}

/// The areas that a namespace lies in: itself, and below each of its parents
/// when there are areas of that kind.
fn areas_of(namespace: &Namespace, prefixes: bool) -> impl Iterator<Item = Area> + use<'_> {
    let name = namespace.as_str();
    let dots = prefixes.then(|| name.match_indices('.').map(|(at, _)| at)).into_iter().flatten();
    let parents = dots.filter_map(|at| Namespace::parse(name.get(..at)?).ok()).map(Area::Below);
    std::iter::once(Area::Exactly(namespace.clone())).chain(parents)
}
