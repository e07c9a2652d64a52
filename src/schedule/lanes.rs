//! Whose turn it is: jobs that are due wait in a lane for each first segment
//! of their names, and the lanes take turns.

use std::{
    collections::{HashMap, VecDeque},
    sync::Arc,
};

/// A lane may have this many times as many runs as places are free: one that
/// has no end of slow jobs leaves some places to the others.
const SHARE: usize = 4;
/// How many wait in all lanes together. One lane takes so many parts of the
/// room that is left, so that many names leave some to another one.
const WAITING_ALL: usize = 12_288;
const LANES: usize = 8;

/// The lanes to one kind of places.
#[derive(Debug)]
pub(super) struct Lanes<T> {
    places: usize,
    waiting_max: usize,
    lanes: HashMap<Arc<str>, Lane<T>>,
    /// The lanes in which somebody waits, the next one first.
    turns: VecDeque<Arc<str>>,
    running: usize,
    waiting: usize,
}

#[derive(Debug)]
struct Lane<T> {
    waiting: VecDeque<T>,
    running: usize,
    full: bool,
}

/// One whose turn it is.
#[derive(Debug)]
pub(super) struct Turn<T> {
    /// Who.
    pub(super) item: T,
    /// Whether a full lane has room again.
    pub(super) room: bool,
}

impl<T> Lanes<T> {
    /// With so many places and so much room in each lane.
    pub(super) fn new(places: usize, waiting_max: usize) -> Self {
        Self {
            places: places.max(1),
            waiting_max: waiting_max.max(1),
            lanes: HashMap::new(),
            turns: VecDeque::new(),
            running: 0,
            waiting: 0,
        }
    }

    /// Waits behind the others of its lane; not when that is full.
    pub(super) fn push(&mut self, segment: &str, item: T) -> bool {
        if !self.lanes.contains_key(segment) {
            let lane = Lane { waiting: VecDeque::new(), running: 0, full: false };
            self.lanes.insert(segment.into(), lane);
        }
        let Some(lane) = self.lanes.get_mut(segment) else { return false };
        if lane.full {
            return false;
        }
        let left = WAITING_ALL.saturating_sub(self.waiting);
        let room = self.waiting_max.min((left / LANES).max(1));
        if lane.waiting.is_empty() {
            self.turns.push_back(segment.into());
        }
        lane.waiting.push_back(item);
        lane.full = lane.waiting.len() >= room;
        self.waiting = self.waiting.saturating_add(1);
        true
    }

    /// The next one, which then has a place until [`Self::done`].
    pub(super) fn next(&mut self) -> Option<Turn<T>> {
        let free = self.places.saturating_sub(self.running);
        if free == 0 {
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
            // Not before half of it is empty: each time the store is asked.
            let half = self.waiting_max.min(WAITING_ALL / LANES) / 2;
            let room = lane.full && lane.waiting.len() <= half;
            lane.full &= !room;
            if !lane.waiting.is_empty() {
                self.turns.push_back(segment);
            }
            self.running = self.running.saturating_add(1);
            self.waiting = self.waiting.saturating_sub(1);
            return Some(Turn { item, room });
        }
        None
    }

    /// One of a lane has left its place.
    pub(super) fn done(&mut self, segment: &str) {
        self.running = self.running.saturating_sub(1);
        if let Some(lane) = self.lanes.get_mut(segment) {
            lane.running = lane.running.saturating_sub(1);
            if lane.running == 0 && lane.waiting.is_empty() {
                self.lanes.remove(segment);
            }
        }
    }

    /// The lanes that take nobody now.
    pub(super) fn full(&self) -> impl Iterator<Item = &Arc<str>> {
        self.lanes.iter().filter(|(_, lane)| lane.full).map(|(segment, _)| segment)
    }

    pub(super) fn waiting(&self) -> usize {
        self.waiting
    }

    pub(super) fn running(&self) -> usize {
        self.running
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn names(lanes: &mut Lanes<&'static str>) -> Vec<&'static str> {
        std::iter::from_fn(|| lanes.next()).map(|turn| turn.item).collect()
    }

    #[test]
    fn issue5_the_lanes_take_turns() {
        let mut lanes = Lanes::new(3, 10);
        for item in ["a1", "a2", "a3", "b1", "c1"] {
            assert!(lanes.push(&item[..1], item));
        }
        assert_eq!(names(&mut lanes), ["a1", "b1", "c1"]);
        assert_eq!((lanes.waiting(), lanes.running()), (2, 3));
        lanes.done("b");
        assert_eq!(names(&mut lanes), ["a2"]);
    }

    #[test]
    fn issue5_one_lane_never_has_all_of_many_places() {
        let mut lanes = Lanes::new(64, 1_000);
        for _ in 0..500 {
            assert!(lanes.push("hog", "slow"));
        }
        let hogged = names(&mut lanes).len();
        assert!((48..64).contains(&hogged), "{hogged}");
        assert!(lanes.push("other", "quick"));
        assert_eq!(names(&mut lanes), ["quick"]);
        // Few places are worth more used than kept.
        let mut few = Lanes::new(2, 10);
        assert!(few.push("hog", "1") && few.push("hog", "2"));
        assert_eq!(names(&mut few).len(), 2);
    }

    #[test]
    fn issue5_a_full_lane_says_when_it_has_room() {
        let mut lanes = Lanes::new(1, 4);
        for _ in 0..4 {
            assert!(lanes.push("a", "x"));
        }
        assert!(!lanes.push("a", "x"));
        assert_eq!(lanes.full().map(|segment| &**segment).collect::<Vec<_>>(), ["a"]);
        assert!(lanes.push("b", "y"));
        let mut rooms = Vec::new();
        while let Some(turn) = lanes.next() {
            rooms.push((turn.item, turn.room));
            lanes.done(if turn.item == "x" { "a" } else { "b" });
        }
        assert_eq!(rooms, [("x", false), ("y", false), ("x", true), ("x", false), ("x", false)]);
        assert_eq!((lanes.full().count(), lanes.lanes.len()), (0, 0));
    }
}
