//! Whose turn it is: jobs that are due wait in a lane for each first segment
//! of their names. The owners of the rules take turns, whatever many segments
//! they have, and then the lanes of each.

use std::{
    collections::{HashMap, HashSet, VecDeque},
    sync::Arc,
};

use crate::domain::principal::Identity;

/// A lane may have this many times as many runs as places are free: one that
/// has no end of slow jobs leaves some places to the others.
const SHARE: usize = 4;
/// The same for all lanes of an owner.
const OWNER_SHARE: usize = 8;
/// How many wait in all lanes together. Each owner leaves so many parts of the
/// room for the others, and each of its lanes for its other ones.
const WAITING_ALL: usize = 12_288;
const OWNERS: usize = 2;
const LANES: usize = 4;
/// How many segments are remembered that an owner had no room for.
const REFUSED_MAX: usize = 10_000;

/// The lanes to one kind of places.
#[derive(Debug)]
pub(super) struct Lanes<T> {
    waiting_max: usize,
    owners: HashMap<Identity, Owner<T>>,
    /// The owners for whom somebody waits, the next one first.
    turns: VecDeque<Identity>,
    running: usize,
    waiting: usize,
}

#[derive(Debug)]
struct Owner<T> {
    lanes: HashMap<Arc<str>, Lane<T>>,
    /// The lanes in which somebody waits, the next one first.
    turns: VecDeque<Arc<str>>,
    running: usize,
    waiting: usize,
    /// Full until no more than so many wait.
    full: Option<usize>,
    /// The segments that found it full.
    refused: HashSet<Arc<str>>,
}

#[derive(Debug)]
struct Lane<T> {
    waiting: VecDeque<T>,
    running: usize,
    /// Full until no more than so many wait: not before half of them are gone,
    /// as the store is asked each time.
    full: Option<usize>,
}

/// Whose place it is.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Place {
    owner: Identity,
    segment: Arc<str>,
}

/// One whose turn it is.
#[derive(Debug)]
pub(super) struct Turn<T> {
    /// Who.
    pub(super) item: T,
    /// What it gives back.
    pub(super) place: Place,
    /// Whether there is room again where there was none.
    pub(super) room: bool,
}

impl<T> Lanes<T> {
    /// With so much room in each lane.
    pub(super) fn new(waiting_max: usize) -> Self {
        Self {
            waiting_max: waiting_max.max(1),
            owners: HashMap::new(),
            turns: VecDeque::new(),
            running: 0,
            waiting: 0,
        }
    }

    /// Waits behind the others of its lane; not when that is full, or the
    /// owner has too many.
    pub(super) fn push(&mut self, owner: &Identity, segment: &str, item: T) -> bool {
        if !self.owners.contains_key(owner) {
            self.owners.insert(owner.clone(), Owner::default());
        }
        let Some(of) = self.owners.get_mut(owner) else { return false };
        let others = self.waiting.saturating_sub(of.waiting);
        let room = (WAITING_ALL.saturating_sub(others) / OWNERS).max(1);
        let idle = of.turns.is_empty();
        if !of.push(segment, item, room, self.waiting_max) {
            return false;
        }
        if idle {
            self.turns.push_back(owner.clone());
        }
        self.waiting = self.waiting.saturating_add(1);
        true
    }

    /// The next one, when so many places are free; it has its place until
    /// [`Self::done`].
    pub(super) fn next(&mut self, free: usize) -> Option<Turn<T>> {
        if free == 0 {
            return None;
        }
        for _ in 0..self.turns.len() {
            let owner = self.turns.pop_front()?;
            let Some(of) = self.owners.get_mut(&owner) else { continue };
            let next = of.next(free);
            if !of.turns.is_empty() {
                self.turns.push_back(owner.clone());
            }
            if let Some((segment, item, room)) = next {
                self.running = self.running.saturating_add(1);
                self.waiting = self.waiting.saturating_sub(1);
                return Some(Turn { item, place: Place { owner, segment }, room });
            }
        }
        None
    }

    /// A place is free again.
    pub(super) fn done(&mut self, place: &Place) {
        self.running = self.running.saturating_sub(1);
        if let Some(of) = self.owners.get_mut(&place.owner) {
            of.done(&place.segment);
            if of.lanes.is_empty() {
                self.owners.remove(&place.owner);
            }
        }
    }

    /// The segments whose jobs find no room now.
    pub(super) fn full(&self) -> impl Iterator<Item = &Arc<str>> {
        self.owners.values().flat_map(|of| {
            let full = of.lanes.iter().filter(|(_, lane)| lane.full.is_some());
            full.map(|(segment, _)| segment).chain(&of.refused)
        })
    }

    pub(super) fn waiting(&self) -> usize {
        self.waiting
    }

    pub(super) fn running(&self) -> usize {
        self.running
    }
}

impl<T> Default for Owner<T> {
    fn default() -> Self {
        Self {
            lanes: HashMap::new(),
            turns: VecDeque::new(),
            running: 0,
            waiting: 0,
            full: None,
            refused: HashSet::new(),
        }
    }
}

impl<T> Owner<T> {
    fn push(&mut self, segment: &str, item: T, room: usize, waiting_max: usize) -> bool {
        if self.full.is_some() {
            if self.refused.len() < REFUSED_MAX && !self.refused.contains(segment) {
                self.refused.insert(segment.into());
            }
            return false;
        }
        if !self.lanes.contains_key(segment) {
            let lane = Lane { waiting: VecDeque::new(), running: 0, full: None };
            self.lanes.insert(segment.into(), lane);
        }
        let Some(lane) = self.lanes.get_mut(segment) else { return false };
        if lane.full.is_some() {
            return false;
        }
        if lane.waiting.is_empty() {
            self.turns.push_back(segment.into());
        }
        let share = (room.saturating_sub(self.waiting) / LANES).clamp(1, waiting_max);
        lane.waiting.push_back(item);
        let waits = lane.waiting.len();
        lane.full = (waits >= share).then_some(waits / 2);
        self.waiting = self.waiting.saturating_add(1);
        self.full = (self.waiting >= room).then_some(self.waiting / 2);
        true
    }

    /// The next one, its segment, and whether there is room again.
    fn next(&mut self, free: usize) -> Option<(Arc<str>, T, bool)> {
        if self.running >= free.saturating_mul(OWNER_SHARE) {
            return None;
        }
        for _ in 0..self.turns.len() {
            let segment = self.turns.pop_front()?;
            let Some(lane) = self.lanes.get_mut(&segment) else { continue };
            if lane.running >= free.saturating_mul(SHARE) {
                self.turns.push_back(segment);
                continue;
            }
            let Some(item) = lane.waiting.pop_front() else { continue };
            lane.running = lane.running.saturating_add(1);
            let mut room = lane.full.take_if(|left| lane.waiting.len() <= *left).is_some();
            if !lane.waiting.is_empty() {
                self.turns.push_back(Arc::clone(&segment));
            }
            self.running = self.running.saturating_add(1);
            self.waiting = self.waiting.saturating_sub(1);
            if self.full.take_if(|left| self.waiting <= *left).is_some() {
                self.refused = HashSet::new();
                room = true;
            }
            return Some((segment, item, room));
        }
        None
    }

    fn done(&mut self, segment: &str) {
        self.running = self.running.saturating_sub(1);
        if let Some(lane) = self.lanes.get_mut(segment) {
            lane.running = lane.running.saturating_sub(1);
            if lane.running == 0 && lane.waiting.is_empty() {
                self.lanes.remove(segment);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::domain::principal::Source;

    fn owner(name: &str) -> Identity {
        Identity { source: Source::Config, issuer: "".into(), subject: name.into() }
    }

    /// Lanes to some places, which give back all that they took.
    struct Hall {
        places: usize,
        lanes: Lanes<String>,
        taken: Vec<(String, Place)>,
        rooms: Vec<String>,
    }

    impl Hall {
        fn new(places: usize, waiting_max: usize) -> Self {
            let (lanes, taken, rooms) = (Lanes::new(waiting_max), Vec::new(), Vec::new());
            Self { places, lanes, taken, rooms }
        }

        fn push(&mut self, of: &str, segment: &str, item: &str) -> bool {
            self.lanes.push(&owner(of), segment, item.to_owned())
        }

        fn next(&mut self) -> Option<String> {
            let turn = self.lanes.next(self.places - self.lanes.running())?;
            if turn.room {
                self.rooms.push(turn.item.clone());
            }
            self.taken.push((turn.item.clone(), turn.place));
            Some(turn.item)
        }

        fn names(&mut self) -> Vec<String> {
            std::iter::from_fn(|| self.next()).collect()
        }

        fn done(&mut self, item: &str) {
            let at = self.taken.iter().position(|(taken, _)| taken == item).unwrap();
            self.lanes.done(&self.taken.swap_remove(at).1);
        }
    }

    #[test]
    fn issue5_the_lanes_take_turns() {
        let mut hall = Hall::new(3, 10);
        for item in ["a1", "a2", "a3", "b1", "c1"] {
            assert!(hall.push("o", &item[..1], item));
        }
        assert_eq!(hall.names(), ["a1", "b1", "c1"]);
        assert_eq!((hall.lanes.waiting(), hall.lanes.running()), (2, 3));
        hall.done("b1");
        assert_eq!(hall.names(), ["a2"]);
    }

    #[test]
    fn issue5_the_owners_take_turns_however_many_lanes_they_have() {
        let mut hall = Hall::new(6, 10);
        for segment in 0..50 {
            let name = format!("hog{segment}");
            assert!(hall.push("hog", &name, &name) && hall.push("hog", &name, "more"));
        }
        for item in ["x1", "x2", "x3"] {
            assert!(hall.push("other", "x", item));
        }
        // In one segment, too, each owner has its turn.
        assert!(hall.push("third", "x", "y1"));
        assert_eq!(hall.names(), ["hog0", "x1", "y1", "hog1", "x2", "hog2"]);
    }

    #[test]
    fn issue5_one_lane_and_one_owner_never_have_all_of_many_places() {
        let mut hall = Hall::new(64, 1_000);
        for _ in 0..500 {
            assert!(hall.push("hog", "hog", "slow"));
        }
        let hogged = hall.names().len();
        assert!((48..54).contains(&hogged), "{hogged}");
        for segment in 0..100 {
            assert!(hall.push("hog", &segment.to_string(), "slow"));
        }
        let more = hogged + hall.names().len();
        assert!((55..60).contains(&more), "{more}");
        assert!(hall.push("other", "other", "quick"));
        assert_eq!(hall.names(), ["quick"]);
        // Few places are worth more used than kept.
        let mut few = Hall::new(2, 10);
        assert!(few.push("hog", "hog", "1") && few.push("hog", "hog", "2"));
        assert_eq!(few.names().len(), 2);
    }

    #[test]
    fn issue5_an_owner_of_many_lanes_leaves_room_to_others() {
        let mut hall = Hall::new(1, 1_000);
        let mut waiting = 0;
        for segment in 0..20_000 {
            waiting += usize::from(hall.push("hog", &format!("s{segment}"), "x"));
        }
        assert_eq!(waiting, WAITING_ALL / OWNERS);
        // The store is told which are to be left out, as far as that goes.
        assert!(hall.lanes.full().any(|segment| **segment == *"s6144"));
        assert_eq!(hall.lanes.owners[&owner("hog")].refused.len(), REFUSED_MAX);
        for _ in 0..600 {
            assert!(hall.push("other", "mine", "y"));
        }
        // Once half of them are gone there is room again for all.
        let mut rooms = 0;
        while hall.lanes.owners[&owner("hog")].full.is_some() {
            let turn = hall.lanes.next(1).unwrap();
            hall.lanes.done(&turn.place);
            rooms += usize::from(turn.room);
        }
        assert!(hall.lanes.owners[&owner("hog")].refused.is_empty());
        assert!(rooms > 0);
        assert!(hall.push("hog", "s19999", "x"));
    }

    #[test]
    fn issue5_a_full_lane_says_when_it_has_room() {
        let mut hall = Hall::new(1, 4);
        for item in ["x1", "x2", "x3", "x4"] {
            assert!(hall.push("o", "a", item));
        }
        assert!(!hall.push("o", "a", "x5"));
        assert_eq!(hall.lanes.full().map(|segment| &**segment).collect::<Vec<_>>(), ["a"]);
        assert!(hall.push("o", "b", "y"));
        let mut order = Vec::new();
        while let Some(item) = hall.next() {
            hall.done(&item);
            order.push(item);
        }
        assert_eq!(order, ["x1", "y", "x2", "x3", "x4"]);
        assert_eq!(hall.rooms, ["x2"]);
        assert_eq!((hall.lanes.full().count(), hall.lanes.owners.len()), (0, 0));
    }
}
