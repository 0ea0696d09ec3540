//! Streams of events: each holds a connection for as long as its reader likes, so one caller has a few at most.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, PoisonError};

/// How many one caller has at once: windows of the dashboard.
const EACH: usize = 16;

/// How many streams each caller has.
#[derive(Debug, Default)]
pub struct Listeners {
    streams: Mutex<HashMap<String, usize>>,
}

/// One stream, until it is dropped.
#[derive(Debug)]
pub struct Listening {
    who: String,
    of: Arc<Listeners>,
}

impl Listeners {
    /// One more stream, unless that is too many.
    pub fn one_more(self: &Arc<Self>, who: &str) -> Option<Listening> {
        let mut streams = self.streams.lock().unwrap_or_else(PoisonError::into_inner);
        let count = streams.entry(who.to_owned()).or_default();
        if *count >= EACH {
            return None;
        }
        *count += 1;
        Some(Listening { who: who.to_owned(), of: Arc::clone(self) })
    }
}

impl Drop for Listening {
    fn drop(&mut self) {
        let mut streams = self.of.streams.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(count) = streams.get_mut(&self.who) {
            *count -= 1;
            if *count == 0 {
                streams.remove(&self.who);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_caller_has_a_few_streams_and_gets_another_for_one_that_ended() {
        let all = Arc::new(Listeners::default());
        let mut streams: Vec<Listening> = (0..EACH).map(|_| all.one_more("token anna").unwrap()).collect();
        assert!(all.one_more("token anna").is_none());
        assert!(all.one_more("token otto").is_some());
        streams.pop();
        streams.push(all.one_more("token anna").unwrap());
        assert!(all.one_more("token anna").is_none());
        drop(streams);
        assert!(all.streams.lock().unwrap().is_empty());
    }
}
