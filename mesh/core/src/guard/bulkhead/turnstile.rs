//! So many at once, the others in a bounded queue: what every limit of concurrency is built on.
//!
//! How many are inside and how many wait is one word, so entering and leaving without a queue is one compare-and-swap.
//! Only who must wait, and who leaves while somebody waits, takes the lock of the queue. Who leaves hands its place
//! over, so nobody overtakes those who wait. A place handed to somebody who has gone meanwhile is handed on.
//!
//! The queue goes by one of two orders:
//!
//! - *first come, first served*;
//! - *adaptive*, as Facebook's ("Fail at Scale", ACM Queue 2015): while the queue has been empty within the last
//!   `interval`, first come first served, and who has waited longer than `interval` is turned away; otherwise the newest
//!   first, who has waited longer than `target` is turned away, and a full queue turns the oldest away to let a new one
//!   in. Under overload somebody who came just now still has a caller who waits; who came long ago has none.

use std::collections::VecDeque;
use std::future::Future;
use std::pin::Pin;
use std::sync::atomic::{AtomicU8, AtomicU32, AtomicU64, Ordering::AcqRel, Ordering::Acquire, Ordering::Relaxed};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::task::{Context, Poll, Waker};
use std::time::Duration;

use super::super::refusal::{Guard, Refusal};
use super::settings::{QueueOrder, QueueSettings};
use crate::time::Instant;

/// What every call changes comes first, on one line of memory: two processors that share it pass it on once, not for each
/// count.
#[derive(Debug)]
#[repr(C, align(64))]
pub(crate) struct Turnstile {
    /// How many are inside (32 bits), how many wait (32 bits).
    word: AtomicU64,
    entered: AtomicU64,
    limit: AtomicU32,
    guard: Guard,
    /// The latest time anybody came with, or left with while somebody waited.
    seen_us: AtomicU64,
    /// Since when the queue has not been empty.
    busy_since_us: AtomicU64,
    waited: AtomicU64,
    refused: AtomicU64,
    turned_away: AtomicU64,
    settings: QueueSettings,
    queue: Mutex<VecDeque<Arc<Waiter>>>,
}

/// A place inside; dropping it leaves.
#[derive(Debug)]
#[must_use = "a place is left at once when it is dropped"]
pub struct Pass {
    turnstile: Arc<Turnstile>,
}

/// A place in the queue. Resolves to a place inside, or to a refusal; dropping it gives it up.
#[derive(Debug)]
#[must_use = "a place in the queue is given up when it is dropped"]
pub struct Waiting {
    turnstile: Arc<Turnstile>,
    waiter: Arc<Waiter>,
}

/// What comes of asking to enter.
#[derive(Debug)]
pub enum Admission {
    /// Come in.
    Pass(Pass),
    /// Wait, no longer than the settings' `max_wait_ms` (whoever waits has the clock; then drop it, and say so by
    /// [`Waiting::give_up`]).
    Wait(Waiting),
}

#[derive(Debug)]
struct Waiter {
    state: AtomicU8,
    since: Instant,
    waker: Mutex<Option<Waker>>,
}

const WAITING: u8 = 0;
/// It has a place inside, which it has not seen yet.
const GRANTED: u8 = 1;
/// It has waited for too long.
const TURNED_AWAY: u8 = 2;
/// It has seen the outcome, or is gone.
const OVER: u8 = 3;

/// What can be shown of a turnstile.
#[derive(Debug, Clone, Copy, PartialEq, Eq, serde::Serialize)]
pub struct TurnstileSnapshot {
    /// How many may be inside.
    pub limit: u32,
    /// How many are.
    pub in_flight: u32,
    /// How many wait.
    pub waiting: u32,
    /// How many came in.
    pub entered: u64,
    /// How many of them waited first.
    pub waited: u64,
    /// How many were refused, since inside and the queue were full.
    pub refused: u64,
    /// How many waited in vain.
    pub turned_away: u64,
}

const ONE_INSIDE: u64 = 1 << 32;

fn inside(word: u64) -> u32 {
    (word >> 32) as u32
}

fn waiting(word: u64) -> u32 {
    word as u32
}

impl Turnstile {
    pub(crate) fn new(guard: Guard, limit: u32, settings: QueueSettings) -> Self {
        Self {
            guard,
            word: AtomicU64::new(0),
            limit: AtomicU32::new(limit),
            settings,
            queue: Mutex::default(),
            seen_us: AtomicU64::new(0),
            busy_since_us: AtomicU64::new(0),
            entered: AtomicU64::new(0),
            waited: AtomicU64::new(0),
            refused: AtomicU64::new(0),
            turned_away: AtomicU64::new(0),
        }
    }

    pub(crate) fn limit(&self) -> u32 {
        self.limit.load(Relaxed)
    }

    pub(crate) fn in_flight(&self) -> u32 {
        inside(self.word.load(Relaxed))
    }

    pub(crate) fn snapshot(&self) -> TurnstileSnapshot {
        let word = self.word.load(Relaxed);
        TurnstileSnapshot {
            limit: self.limit(),
            in_flight: inside(word),
            waiting: waiting(word),
            entered: self.entered.load(Relaxed),
            waited: self.waited.load(Relaxed),
            refused: self.refused.load(Relaxed),
            turned_away: self.turned_away.load(Relaxed),
        }
    }

    /// Enters, queues, or is refused.
    pub(crate) fn enter(self: &Arc<Self>, now: Instant) -> Result<Admission, Refusal> {
        if self.try_enter() {
            return Ok(Admission::Pass(Pass { turnstile: self.clone() }));
        }
        if self.settings.max_queue == 0 {
            return Err(self.refuse("full"));
        }
        self.seen_us.fetch_max(now.0, Relaxed);
        self.join(now)
    }

    /// Changes how many may be inside; more are let in at once, fewer only as others leave.
    pub(crate) fn set_limit(&self, limit: u32) {
        self.limit.store(limit, Relaxed);
        if waiting(self.word.load(Acquire)) == 0 {
            return;
        }
        let mut queue = self.queue();
        while waiting(self.word.load(Acquire)) > 0 && self.add_inside() {
            self.hand_over(&mut queue);
        }
    }

    fn try_enter(&self) -> bool {
        let mut word = self.word.load(Acquire);
        while waiting(word) == 0 && inside(word) < self.limit() {
            match self.word.compare_exchange_weak(word, word + ONE_INSIDE, AcqRel, Acquire) {
                Ok(_) => {
                    self.entered.fetch_add(1, Relaxed);
                    return true;
                }
                Err(changed) => word = changed,
            }
        }
        false
    }

    /// One more inside, if there is room, whoever waits.
    fn add_inside(&self) -> bool {
        let room = |word| (inside(word) < self.limit()).then(|| word + ONE_INSIDE);
        self.word.fetch_update(AcqRel, Acquire, room).is_ok()
    }

    fn join(self: &Arc<Self>, now: Instant) -> Result<Admission, Refusal> {
        let mut queue = self.queue();
        if queue.len() >= self.settings.max_queue as usize {
            let is_overloaded = self.settings.order == QueueOrder::Adaptive && self.is_overloaded();
            match queue.front().cloned().filter(|_| is_overloaded) {
                Some(oldest) => {
                    self.remove(&mut queue, &oldest);
                    self.turn_away(&oldest);
                }
                None => return Err(self.refuse("full, and its queue as well")),
            }
        }
        // Announced before looking once more: whoever leaves from now on sees that somebody waits.
        self.word.fetch_add(1, AcqRel);
        if queue.is_empty() {
            self.busy_since_us.store(now.0, Relaxed);
        }
        let waiter = Arc::new(Waiter { state: AtomicU8::new(WAITING), since: now, waker: Mutex::default() });
        queue.push_back(waiter.clone());
        if self.add_inside() {
            self.hand_over(&mut queue);
        }
        Ok(Admission::Wait(Waiting { turnstile: self.clone(), waiter }))
    }

    /// Gives a place that is counted inside to one who waits, or gives it up.
    fn hand_over(&self, queue: &mut VecDeque<Arc<Waiter>>) {
        if inside(self.word.load(Acquire)) <= self.limit() {
            while let Some(waiter) = self.next(queue) {
                self.word.fetch_sub(1, AcqRel);
                if waiter.since + self.patience() < self.seen() {
                    self.turn_away(&waiter);
                } else if waiter.tell(GRANTED) {
                    self.entered.fetch_add(1, Relaxed);
                    self.waited.fetch_add(1, Relaxed);
                    return;
                }
            }
        }
        self.word.fetch_sub(ONE_INSIDE, AcqRel);
    }

    fn next(&self, queue: &mut VecDeque<Arc<Waiter>>) -> Option<Arc<Waiter>> {
        match self.settings.order {
            QueueOrder::Adaptive if self.is_overloaded() => queue.pop_back(),
            _ => queue.pop_front(),
        }
    }

    fn leave(&self) {
        let mut word = self.word.load(Acquire);
        while waiting(word) == 0 {
            match self.word.compare_exchange_weak(word, word - ONE_INSIDE, AcqRel, Acquire) {
                Ok(_) => return,
                Err(changed) => word = changed,
            }
        }
        self.hand_over(&mut self.queue());
    }

    /// Whether the queue has not been empty for an interval.
    fn is_overloaded(&self) -> bool {
        let busy_for = self.seen().since(Instant(self.busy_since_us.load(Relaxed)));
        busy_for >= Duration::from_millis(self.settings.interval_ms)
    }

    /// How long somebody may have waited whose turn has come.
    fn patience(&self) -> Duration {
        match self.settings.order {
            QueueOrder::Fifo => Duration::from_millis(self.settings.max_wait_ms),
            QueueOrder::Adaptive if self.is_overloaded() => Duration::from_millis(self.settings.target_ms),
            QueueOrder::Adaptive => Duration::from_millis(self.settings.interval_ms),
        }
    }

    fn seen(&self) -> Instant {
        Instant(self.seen_us.load(Relaxed))
    }

    fn queue(&self) -> MutexGuard<'_, VecDeque<Arc<Waiter>>> {
        self.queue.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn remove(&self, queue: &mut VecDeque<Arc<Waiter>>, waiter: &Arc<Waiter>) {
        if let Some(place) = queue.iter().position(|other| Arc::ptr_eq(other, waiter)) {
            queue.remove(place);
            self.word.fetch_sub(1, AcqRel);
        }
    }

    fn turn_away(&self, waiter: &Waiter) {
        if waiter.tell(TURNED_AWAY) {
            self.turned_away.fetch_add(1, Relaxed);
        }
    }

    fn refuse(&self, reason: &'static str) -> Refusal {
        self.refused.fetch_add(1, Relaxed);
        Refusal::new(self.guard, reason)
    }
}

impl Pass {
    /// Leaves, and tells the time, by which the queue measures how long others have waited. Whoever comes to wait from now
    /// on brings a time of its own.
    pub fn end(self, now: Instant) {
        if waiting(self.turnstile.word.load(Acquire)) > 0 {
            self.turnstile.seen_us.fetch_max(now.0, Relaxed);
        }
    }
}

impl Drop for Pass {
    fn drop(&mut self) {
        self.turnstile.leave();
    }
}

impl Waiter {
    /// Tells it what has become of it, unless it has gone.
    fn tell(&self, state: u8) -> bool {
        let told = self.state.compare_exchange(WAITING, state, AcqRel, Acquire).is_ok();
        let waker = self.waker().take();
        if told {
            waker.into_iter().for_each(Waker::wake);
        }
        told
    }

    fn waker(&self) -> MutexGuard<'_, Option<Waker>> {
        self.waker.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Waiting {
    /// It has waited for as long as it may.
    pub fn give_up(self) -> Refusal {
        if self.waiter.state.load(Acquire) == WAITING {
            self.turnstile.turned_away.fetch_add(1, Relaxed);
        }
        Refusal::new(self.turnstile.guard, "waited too long for a place")
    }

    /// When it came.
    pub fn since(&self) -> Instant {
        self.waiter.since
    }
}

impl Future for Waiting {
    type Output = Result<Pass, Refusal>;

    fn poll(self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<Self::Output> {
        let waiter = &self.waiter;
        // The waker first, then the state: whoever changes the state looks for a waker afterwards.
        *waiter.waker() = Some(context.waker().clone());
        match waiter.state.load(Acquire) {
            WAITING => Poll::Pending,
            GRANTED => {
                waiter.state.store(OVER, Relaxed);
                Poll::Ready(Ok(Pass { turnstile: self.turnstile.clone() }))
            }
            _ => {
                waiter.state.store(OVER, Relaxed);
                Poll::Ready(Err(Refusal::new(self.turnstile.guard, "waited too long for a place")))
            }
        }
    }
}

impl Drop for Waiting {
    fn drop(&mut self) {
        match self.waiter.state.swap(OVER, AcqRel) {
            WAITING => self.turnstile.remove(&mut self.turnstile.queue(), &self.waiter),
            GRANTED => self.turnstile.leave(),
            _ => {}
        }
    }
}
