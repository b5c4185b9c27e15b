//! What many threads write to and few read: each thread writes to a copy that it shares with few others or none, and whoever
//! reads looks at all of them. A line of memory that goes to and fro between two processors costs each more than all that is
//! counted in it (`bench/guards.rs` shows by how much).

use std::cell::Cell;
use std::sync::atomic::{AtomicUsize, Ordering::Relaxed};

/// How many copies there are: about as many as a sidecar has workers; more threads share.
const STRIPES: usize = 8;

thread_local! {
    /// The thread's own copy, by its number.
    static OWN: Cell<Option<usize>> = const { Cell::new(None) };
}

/// Some copies of a `T`.
#[derive(Debug, Default)]
pub(super) struct Striped<T>([Padded<T>; STRIPES]);

/// So far apart that no two are on one line, nor on a pair of lines that are fetched together.
#[derive(Debug, Default)]
#[repr(align(128))]
struct Padded<T>(T);

impl<T> Striped<T> {
    /// The one this thread writes to.
    pub(super) fn own(&self) -> &T {
        static NEXT: AtomicUsize = AtomicUsize::new(0);
        let own = OWN.get().unwrap_or_else(|| {
            let own = NEXT.fetch_add(1, Relaxed) % STRIPES;
            OWN.set(Some(own));
            own
        });
        &self.0[own].0
    }

    /// All of them.
    pub(super) fn all(&self) -> impl Iterator<Item = &T> + Clone {
        self.0.iter().map(|padded| &padded.0)
    }
}
