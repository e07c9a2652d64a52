//! How many connections there are, and whose.

use std::{
    collections::HashMap,
    hash::Hash,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
};

/// So many places, of which nobody has more than so many.
#[derive(Debug)]
pub struct Shares<K: Clone + Eq + Hash> {
    all: usize,
    each: usize,
    taken: Mutex<Taken<K>>,
}

#[derive(Debug)]
struct Taken<K> {
    all: usize,
    by_key: HashMap<K, usize>,
}

/// A place, until it is dropped.
#[derive(Debug)]
pub struct Share<K: Clone + Eq + Hash> {
    shares: Arc<Shares<K>>,
    key: K,
}

impl<K: Clone + Eq + Hash> Shares<K> {
    /// So many in all, and of each.
    #[must_use]
    pub fn new(all: usize, each: usize) -> Self {
        let taken = Taken { all: 0, by_key: HashMap::new() };
        Self { all, each, taken: Mutex::new(taken) }
    }

    fn taken(&self) -> MutexGuard<'_, Taken<K>> {
        self.taken.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// A place, if there is one left.
    pub fn take(shares: &Arc<Self>, key: K) -> Option<Share<K>> {
        let mut taken = shares.taken();
        let of_key = taken.by_key.get(&key).copied().unwrap_or(0);
        if taken.all >= shares.all || of_key >= shares.each {
            return None;
        }
        taken.all += 1;
        taken.by_key.insert(key.clone(), of_key + 1);
        Some(Share { shares: Arc::clone(shares), key })
    }
}

impl<K: Clone + Eq + Hash> Drop for Share<K> {
    fn drop(&mut self) {
        let mut taken = self.shares.taken();
        taken.all = taken.all.saturating_sub(1);
        if let Some(of_key) = taken.by_key.get_mut(&self.key) {
            *of_key = of_key.saturating_sub(1);
            if *of_key == 0 {
                taken.by_key.remove(&self.key);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn nobody_ever_takes_all_places_and_each_gives_its_own_back() {
        let shares = Arc::new(Shares::new(3, 2));
        let first = Shares::take(&shares, "a").unwrap();
        let second = Shares::take(&shares, "a").unwrap();
        assert!(Shares::take(&shares, "a").is_none());
        let third = Shares::take(&shares, "b").unwrap();
        assert!(Shares::take(&shares, "b").is_none());
        drop(first);
        let again = Shares::take(&shares, "b").unwrap();
        drop((second, third, again));
        assert!(shares.taken().by_key.is_empty() && shares.taken().all == 0);
    }
}
