//! Threads that carry: each with its own runtime, its own copy of the listener and its own connections, so that a
//! request stays on one core from its first byte to its last.

use std::cell::Cell;
use std::io;
use std::thread;

use tokio::sync::mpsc;

thread_local! {
    static WORKER: Cell<usize> = const { Cell::new(usize::MAX) };
}

/// This thread's number among the workers.
pub(crate) fn current() -> usize {
    WORKER.get()
}

/// How many there should be, if nobody has said: one for each core.
pub(crate) fn usual() -> usize {
    thread::available_parallelism().map_or(1, usize::from)
}

/// A worker that has been started; what is sent to it runs there.
pub(crate) struct Worker<T> {
    pub(crate) work: mpsc::Sender<T>,
}

/// Starts a thread that runs `life` in a runtime of its own until it ends; all that it has spawned ends with it.
pub(crate) fn start<T, F>(
    number: usize,
    queue: usize,
    life: impl FnOnce(mpsc::Receiver<T>) -> F + Send + 'static,
) -> io::Result<Worker<T>>
where
    T: Send + 'static,
    F: Future<Output = ()>,
{
    let (work, waiting) = mpsc::channel(queue);
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    thread::Builder::new().name(format!("carry-{number}")).spawn(move || {
        WORKER.set(number);
        runtime.block_on(life(waiting));
    })?;
    Ok(Worker { work })
}
