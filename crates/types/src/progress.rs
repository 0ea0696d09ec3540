//! Whom to tell how long work goes on.

/// Told how an operation goes on. Called from several threads, often; must return at once.
pub trait Progress: Send + Sync {
    /// A new part has begun.
    fn step(&self, what: &str);
    /// So many bytes of a known total are done.
    fn bytes(&self, done: u64, total: u64);
    /// Something a person should know; not an error.
    fn note(&self, text: &str);
}

/// Tells nobody.
#[derive(Debug, Clone, Copy, Default)]
pub struct Silent;

impl Progress for Silent {
    fn step(&self, _what: &str) {}
    fn bytes(&self, _done: u64, _total: u64) {}
    fn note(&self, _text: &str) {}
}
