//! What there is little of, so that one of many cannot have all of it: connections of an address, streams of events of a caller.

use std::collections::HashMap;
use std::hash::Hash;
use std::sync::{Arc, Mutex, PoisonError};

/// How many each one has, of as many as each may have at once.
#[derive(Debug)]
pub(crate) struct Shares<K> {
    each: usize,
    taken: Mutex<HashMap<K, usize>>,
}

/// One of somebody's, until it is dropped.
#[derive(Debug)]
pub(crate) struct Share<K: Eq + Hash> {
    whose: K,
    of: Arc<Shares<K>>,
}

impl<K: Eq + Hash + Clone> Shares<K> {
    /// At most `each` for each one.
    pub(crate) fn of(each: usize) -> Self {
        Self { each, taken: Mutex::default() }
    }

    /// One more, unless that is too many.
    pub(crate) fn one_more(self: &Arc<Self>, whose: &K) -> Option<Share<K>> {
        let mut taken = self.taken.lock().unwrap_or_else(PoisonError::into_inner);
        let count = taken.entry(whose.clone()).or_default();
        if *count >= self.each {
            return None;
        }
        *count += 1;
        Some(Share { whose: whose.clone(), of: Arc::clone(self) })
    }
}

impl<K: Eq + Hash> Drop for Share<K> {
    fn drop(&mut self) {
        let mut taken = self.of.taken.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(count) = taken.get_mut(&self.whose) {
            *count -= 1;
            if *count == 0 {
                taken.remove(&self.whose);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_one_has_a_few_and_gets_another_for_one_that_ended() {
        const EACH: usize = 3;
        let (anna, otto) = ("token anna".to_owned(), "token otto".to_owned());
        let all = Arc::new(Shares::of(EACH));
        let mut shares: Vec<Share<String>> = (0..EACH).map(|_| all.one_more(&anna).unwrap()).collect();
        assert!(all.one_more(&anna).is_none());
        assert!(all.one_more(&otto).is_some());
        shares.pop();
        shares.push(all.one_more(&anna).unwrap());
        assert!(all.one_more(&anna).is_none());
        drop(shares);
        assert!(all.taken.lock().unwrap().is_empty());
    }
}
