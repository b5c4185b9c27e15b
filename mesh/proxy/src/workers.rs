//! Threads that carry: each with its own runtime and its own connections, so that a request stays on one core from its
//! first byte to its last.
//!
//! Connections are dealt to whoever has the fewest. Left to themselves, workers that all accept from one queue share them
//! as they happen to wake, and one may get all: then its core is the whole sidecar. The kernel's own dealing
//! (`SO_REUSEPORT`) goes by a hash, which is even over thousands of connections and not over the dozen a host has.

use std::cell::Cell;
use std::io;
use std::sync::Arc;
use std::thread;

use tokio::sync::mpsc;

use crate::pool::{Counted, Gauge};

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

/// All workers; what is dealt to one runs there.
pub(crate) struct Crew<T> {
    hands: Vec<Hand<T>>,
    threads: Vec<thread::JoinHandle<()>>,
}

struct Hand<T> {
    work: mpsc::Sender<T>,
    /// How many connections it has.
    load: Arc<Gauge>,
}

/// A place in the queue of the worker that has the fewest connections.
pub(crate) struct Place<'a, T> {
    pub(crate) queue: mpsc::Permit<'a, T>,
    /// Counts as one of its connections until dropped.
    pub(crate) share: Counted,
}

impl<T: Send + 'static> Crew<T> {
    /// Starts so many threads, each of which runs a `life` in a runtime of its own until it ends; all that it has spawned
    /// ends with it. At most `queue` things wait for one worker. What it takes on by itself is counted by the gauge.
    pub(crate) fn start<L, F>(count: usize, queue: usize, mut life: impl FnMut() -> L) -> io::Result<Self>
    where
        L: FnOnce(mpsc::Receiver<T>, Arc<Gauge>) -> F + Send + 'static,
        F: Future<Output = ()>,
    {
        let (mut hands, mut threads) = (Vec::with_capacity(count), Vec::with_capacity(count));
        for number in 0..count {
            let (work, waiting) = mpsc::channel(queue);
            let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
            let load = Arc::<Gauge>::default();
            let (life, its_load) = (life(), load.clone());
            threads.push(thread::Builder::new().name(format!("carry-{number}")).spawn(move || {
                WORKER.set(number);
                runtime.block_on(life(waiting, its_load));
            })?);
            hands.push(Hand { work, load });
        }
        Ok(Self { hands, threads })
    }

    /// The threads, to wait for their end.
    pub(crate) fn take_threads(&mut self) -> Vec<thread::JoinHandle<()>> {
        std::mem::take(&mut self.threads)
    }

    /// The worker with the fewest connections; of several, the first.
    fn freest(&self) -> &Hand<T> {
        // A crew has at least one: the setting's range says so.
        self.hands.iter().min_by_key(|hand| hand.load.value()).expect("a crew is never empty")
    }

    /// A place with the worker that has the fewest connections, if its queue is not full.
    pub(crate) fn try_place(&self) -> Option<Place<'_, T>> {
        let hand = self.freest();
        Some(Place { queue: hand.work.try_reserve().ok()?, share: Gauge::count(&hand.load) })
    }

    /// The same; waits while the queue is full. None when the workers are gone.
    pub(crate) async fn place(&self) -> Option<Place<'_, T>> {
        let hand = self.freest();
        // Counted before the wait: whoever asks meanwhile goes to another.
        let share = Gauge::count(&hand.load);
        Some(Place { queue: hand.work.reserve().await.ok()?, share })
    }

    /// Gives something that is no connection to a worker of one's choice.
    pub(crate) async fn tell(&self, number: usize, what: T) {
        // Fails only when that worker has ended, and with it the proxy.
        let _ = self.hands[number % self.hands.len()].work.send(what).await;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn connections_are_dealt_to_whoever_has_the_fewest() {
        let (told, mut heard) = mpsc::unbounded_channel();
        let crew = Crew::start(3, 8, || {
            let told = told.clone();
            move |mut work: mpsc::Receiver<Counted>, _| async move {
                while let Some(share) = work.recv().await {
                    let _ = told.send((current(), share));
                }
            }
        })
        .unwrap();
        let mut held = Vec::new();
        for _ in 0..9 {
            let Place { queue, share } = crew.place().await.unwrap();
            queue.send(share);
            held.push(heard.recv().await.unwrap());
        }
        let of = |worker| held.iter().filter(|(at, _)| *at == worker).count();
        assert_eq!([of(0), of(1), of(2)], [3, 3, 3]);
        held.retain(|(at, _)| *at != 1);
        for _ in 0..3 {
            let Place { queue, share } = crew.try_place().unwrap();
            queue.send(share);
            assert_eq!(heard.recv().await.unwrap().0, 1, "it has lost all its connections");
        }
    }
}
