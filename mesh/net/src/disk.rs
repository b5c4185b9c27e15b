//! What a node must not forget: an append-only log of records with checksums, written by a thread of its own.
//!
//! "Acknowledged" means synced. The loop hands over changes together with whoever waits for them and never waits
//! itself; the thread takes all that has gathered, appends it, syncs once, and releases the waiters (group commit, so
//! the rate of acknowledged writes is not bound to the rate of syncs). A kill at any byte loses nothing acknowledged.
//!
//! # When the disk fails
//!
//! A disk that fails does not stop the node: it goes on serving and gossiping. What could not be written is kept in
//! memory (the newest change per key) and tried again every second, so the node recovers by itself when the disk does.
//! Until then [`Figures::failing`] says why, and the loop refuses what would be promised in vain.
//!
//! | At the start the data directory … | the node |
//! |---|---|
//! | is held by another process, belongs to another node, has another format | does not start |
//! | cannot be made, entered or read, or may not be written (permissions) | does not start: its settings are wrong |
//! | can be read but not written (full, read-only, failing disk) | starts, serves what it and its peers know, refuses new registrations, overrides and documents until the disk can be written |
//! | is damaged in places, or not readable there | starts without those entries and names them; what peers still hold for this node's own comes back from them |
//!
//! After a failed sync nothing written since the last good one is taken for durable, even if a second sync succeeds
//! (Linux reports such an error once and drops the pages: "fsyncgate", 2018): the log is written anew to another file.
//!
//! | Room | |
//! |---|---|
//! | `layer` | what is needed of an operating system, as traits; the real one |
//! | `frame` | bytes of one entry, and reading a log whatever has happened to it |
//! | `log` | open, repair, append, rewrite |
//! | [`spool`] | what waits to be sent later, in a file of its own, by a thread of its own |
//! | `file` | writing frames to a file, reading files with bad places |
//! | `figures` | what it has done, and whether it works |
//! | this file | the thread, its queue, and what others hold of it |

mod figures;
mod file;
pub(crate) mod frame;
mod layer;
mod log;
pub mod spool;
#[cfg(test)]
mod tests;

use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, Ordering::Relaxed};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant, SystemTime};

use starling_core::id::{Incarnation, MeshName, NodeId};
use starling_core::node::Memory;
use starling_core::record::{Key, Record};
use starling_core::time::WallTime;
use tokio::sync::oneshot;

pub(crate) use self::figures::{Failing, Figures};
use self::file::Unreadable;
use self::layer::{Directory, RealDirectory};
use self::log::{Changes, CommitError, Log};

/// How often the wall clock is noted, so that a clock set back over a restart is noticed.
const MARK_INTERVAL: Duration = Duration::from_secs(5);
/// How soon a failed write is tried again.
const RETRY_INTERVAL: Duration = Duration::from_secs(1);
/// How often a lasting failure is logged.
const COMPLAIN_INTERVAL: Duration = Duration::from_secs(60);
/// The most waiters. Above it the loop takes no further commands, and callers hear "busy".
const MAX_WAITERS: usize = 8_192;

/// Why a data directory cannot be used, and what to do.
#[derive(Debug, thiserror::Error)]
pub enum DiskError {
    /// Another process has it.
    #[error("data directory {} is in use by {}: stop that process, or give this node a data directory of its own",
        .dir.display(), match .pid { Some(pid) => format!("process {pid}"), None => "another process".into() })]
    InUse {
        /// The directory.
        dir: PathBuf,
        /// The process that has it, when its lock file says so.
        pid: Option<u32>,
    },
    /// It belongs to another node or mesh.
    #[error("data directory {} belongs to node {node} of mesh {mesh}: start as that node, or give another directory", .dir.display())]
    Foreign {
        /// The directory.
        dir: PathBuf,
        /// Whose it is.
        node: NodeId,
        /// The mesh of that node.
        mesh: MeshName,
    },
    /// It was written by another version.
    #[error("{} has format {theirs}, this version reads {}: use the version that wrote it, or move the file away \
        (the node then begins anew and takes the mesh's data from its peers)", .path.display(), frame::HEADER[7])]
    Version {
        /// The log.
        path: PathBuf,
        /// Its format.
        theirs: u8,
    },
    /// The operating system refused.
    #[error("data directory {} (node.data_dir): cannot {doing}: {reason}", .dir.display())]
    Open {
        /// The directory.
        dir: PathBuf,
        /// What was tried.
        doing: &'static str,
        /// What the operating system says.
        reason: String,
    },
}

/// Something found in a log that should not be there. Everything else in it was read.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Problem {
    /// A write that a crash cut short; it was not acknowledged, and is cut off.
    TornTail {
        /// The log.
        path: PathBuf,
        /// Where it began.
        offset: u64,
        /// How much was there.
        bytes: u64,
    },
    /// An entry whose checksum is wrong: the disk, the file system or somebody changed it.
    Corrupt {
        /// The log.
        path: PathBuf,
        /// Where the entry begins.
        offset: u64,
        /// How long it is.
        bytes: u64,
        /// What it was about, when that can still be read.
        key: Option<Key>,
        /// What the operating system says, when it did not give the bytes at all.
        unreadable: Option<String>,
        /// Where the damaged log is kept.
        copy: Option<PathBuf>,
    },
    /// The directory can be read but not written: the node serves, and refuses what it could not keep.
    Unwritable {
        /// The directory.
        dir: PathBuf,
        /// What the operating system says, and what to do.
        reason: String,
    },
}

impl std::fmt::Display for Problem {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Problem::TornTail { path, offset, bytes } => write!(
                f,
                "{}: dropped an unfinished write of {bytes} bytes at offset {offset}; it was never acknowledged, \
                 nothing needs to be done",
                path.display()
            ),
            Problem::Unwritable { dir, reason } => write!(
                f,
                "data directory {} cannot be written: {reason}. The node serves what it and its peers know, and \
                 refuses new registrations, overrides and documents until the directory can be written",
                dir.display()
            ),
            Problem::Corrupt { path, offset, bytes, key, unreadable, copy } => {
                match unreadable {
                    Some(reason) => {
                        write!(f, "{}: {bytes} bytes at offset {offset} cannot be read: {reason}", path.display())?;
                    }
                    None => write!(f, "{}: {bytes} bytes at offset {offset} are damaged", path.display())?,
                }
                match key {
                    Some(Key::Instance(key)) => {
                        write!(
                            f,
                            " (instance {key}: peers that have it give it back; register it again if none does)"
                        )?;
                    }
                    Some(Key::Override(key)) => write!(f, " (override of {key}: set it again if it is missing)")?,
                    Some(Key::Node(node)) => write!(f, " (what was told of node {node}: it will tell again)")?,
                    Some(Key::Config(key)) => write!(f, " (config {key}: peers have it, or write it again)")?,
                    None => write!(f, " (what they said is not readable; peers still have what they were told)")?,
                }
                write!(f, "; an older value may be in use until then. Check the disk")?;
                match copy {
                    Some(copy) => write!(f, "; the damaged log is kept as {}", copy.display()),
                    None => Ok(()),
                }
            }
        }
    }
}

impl Problem {
    fn of(damage: &frame::Damage, unreadable: &[Unreadable], path: &Path, copy: Option<&Path>) -> Self {
        let (path, offset, bytes) = (path.into(), damage.offset, damage.bytes);
        if damage.torn_tail {
            return Problem::TornTail { path, offset, bytes };
        }
        let part = unreadable.iter().find(|part| part.is_in(offset, bytes));
        let (key, copy) = (damage.key.clone(), copy.map(PathBuf::from));
        Problem::Corrupt { path, offset, bytes, key, unreadable: part.map(|part| part.reason.clone()), copy }
    }

    /// Whether something that was acknowledged may be gone.
    fn is_damage(&self) -> bool {
        matches!(self, Problem::Corrupt { .. })
    }
}

/// What a node knows when its disk has been opened.
pub(crate) struct Opened {
    /// Takes its changes.
    pub(crate) disk: Disk,
    /// What it remembers.
    pub(crate) memory: Memory,
    /// Which start of the node this is.
    pub(crate) incarnation: Incarnation,
    /// What was wrong with the log.
    pub(crate) problems: Vec<Problem>,
}

/// Is called once: when everything handed over before is on disk, or with the reason why it is not.
pub(crate) type Waiter = Box<dyn FnOnce(Result<(), String>) + Send>;

/// A node's disk. When it is dropped, what was handed over is still written; [`Disk::close`] waits for that.
pub(crate) struct Disk {
    queue: Option<Arc<Queue>>,
    figures: Arc<Figures>,
    closed: Option<oneshot::Receiver<()>>,
}

impl Disk {
    /// Opens the disk of `node` in `dir`. Blocks.
    pub(crate) fn open(dir: &Path, mesh: &MeshName, node: &NodeId) -> Result<Opened, DiskError> {
        Self::open_in(Box::new(RealDirectory(dir.into())), mesh, node)
    }

    fn open_in(dir: Box<dyn Directory>, mesh: &MeshName, node: &NodeId) -> Result<Opened, DiskError> {
        let figures = Arc::new(Figures::default());
        let path = dir.path().to_owned();
        let (log, found) = Log::open(dir, mesh, node, wall_now(), figures.clone())?;
        let queue = Arc::new(Queue::default());
        let (done, closed) = oneshot::channel();
        let (thread_queue, thread_figures) = (queue.clone(), figures.clone());
        let thread = std::thread::Builder::new().name("starling-disk".into());
        thread
            .spawn(move || {
                Writer::new(log, thread_queue, thread_figures).run();
                let _ = done.send(());
            })
            .map_err(|error| DiskError::Open { dir: path, doing: "start a thread", reason: error.to_string() })?;
        let disk = Disk { queue: Some(queue), figures, closed: Some(closed) };
        Ok(Opened { disk, memory: found.memory, incarnation: found.incarnation, problems: found.problems })
    }

    /// No disk at all: everything is "on disk" at once, and forgotten when the process ends.
    pub(crate) fn none(wall: WallTime) -> Opened {
        let disk = Disk { queue: None, figures: Arc::default(), closed: None };
        // Restarts must be told apart without anything remembered: the clock has to do.
        Opened { disk, memory: Memory::default(), incarnation: Incarnation(wall.0), problems: Vec::new() }
    }

    /// A disk that hangs, with room for this many waiters, until it is told what became of all it was given.
    #[cfg(test)]
    pub(crate) fn hanging(max_waiters: usize) -> (Disk, impl Fn(Result<(), String>)) {
        let queue = Arc::new(Queue { max_waiters, ..Queue::default() });
        let disk = Disk { queue: Some(queue.clone()), figures: Arc::default(), closed: None };
        let go_on = move |result: Result<(), String>| {
            let State { waiters, .. } = std::mem::take(&mut *queue.lock());
            waiters.into_iter().for_each(|waiter| waiter(result.clone()));
        };
        (disk, go_on)
    }

    /// What it has done so far.
    pub(crate) fn figures(&self) -> Arc<Figures> {
        self.figures.clone()
    }

    /// Whether everything handed over is on disk.
    pub(crate) fn is_settled(&self) -> bool {
        self.queue.as_ref().is_none_or(|queue| queue.lock().is_settled())
    }

    /// Why it takes no writes now, if it does not; counted as the refusal it is going to be.
    pub(crate) fn refuses(&self) -> Option<Failing> {
        self.figures.failing().inspect(|_| _ = self.figures.refused.fetch_add(1, Relaxed))
    }

    /// Keys whose records it has lost while the node ran. Whoever has them in memory hands them over again.
    pub(crate) fn take_lost(&self) -> Vec<Key> {
        let lost = self.queue.as_ref().filter(|queue| queue.has_lost.swap(false, Relaxed));
        lost.map_or_else(Vec::new, |queue| std::mem::take(&mut queue.lock().lost))
    }

    /// Whether there is room for the waiters of further commands.
    pub(crate) fn has_room(&self) -> bool {
        self.queue.as_ref().is_none_or(|queue| queue.lock().waiters.len() < queue.max_waiters)
    }

    /// Hands over changes, and those who wait for them and for all before them. Never blocks on the disk: what has
    /// gathered is bounded by the number of keys, since a newer change of a key takes the place of the older one.
    pub(crate) fn submit(&self, changes: Vec<(Key, Option<Record>)>, waiters: Vec<Waiter>) {
        let Some(queue) = &self.queue else {
            waiters.into_iter().for_each(|waiter| waiter(Ok(())));
            return;
        };
        if changes.is_empty() && waiters.is_empty() {
            return;
        }
        let mut state = queue.lock();
        state.changes.extend(changes);
        state.waiters.extend(waiters);
        drop(state);
        queue.wake.notify_one();
    }

    /// Writes what is left and waits until it is on disk and the directory is free for the next process.
    pub(crate) async fn close(mut self) {
        let closed = self.closed.take();
        drop(self);
        if let Some(closed) = closed {
            let _ = closed.await;
        }
    }
}

impl Drop for Disk {
    fn drop(&mut self) {
        if let Some(queue) = &self.queue {
            queue.lock().closing = true;
            queue.wake.notify_one();
        }
    }
}

struct Queue {
    state: Mutex<State>,
    wake: Condvar,
    max_waiters: usize,
    /// Something is in [`State::lost`]; looked at far more often than it is true.
    has_lost: AtomicBool,
}

impl Default for Queue {
    fn default() -> Self {
        Self {
            state: Mutex::default(),
            wake: Condvar::new(),
            max_waiters: MAX_WAITERS,
            has_lost: AtomicBool::new(false),
        }
    }
}

#[derive(Default)]
struct State {
    changes: Changes,
    waiters: Vec<Waiter>,
    /// The thread is writing, or could not write: not all is on disk even if nothing waits here.
    unsettled: bool,
    closing: bool,
    /// Keys whose records the disk has lost; not more than the log has.
    lost: Vec<Key>,
}

impl State {
    fn is_settled(&self) -> bool {
        self.changes.is_empty() && self.waiters.is_empty() && !self.unsettled
    }
}

impl Queue {
    fn lock(&self) -> MutexGuard<'_, State> {
        // The state is whole between any two statements that hold the lock.
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Waits until there is something to do, at most until `deadline`.
    fn wait(&self, deadline: Instant) -> MutexGuard<'_, State> {
        let left = deadline.saturating_duration_since(Instant::now());
        let idle = |state: &mut State| state.changes.is_empty() && state.waiters.is_empty() && !state.closing;
        self.wake.wait_timeout_while(self.lock(), left, idle).unwrap_or_else(PoisonError::into_inner).0
    }
}

/// A disk that takes no writes.
struct Fails {
    since: Instant,
    retry_at: Instant,
}

/// The thread that writes.
struct Writer {
    log: Log,
    queue: Arc<Queue>,
    figures: Arc<Figures>,
    /// What was handed over and is not on disk yet.
    unsaved: Changes,
    next_mark: Instant,
    failing: Option<Fails>,
    complain_at: Instant,
}

impl Writer {
    fn new(log: Log, queue: Arc<Queue>, figures: Arc<Figures>) -> Self {
        let now = Instant::now();
        let failing = figures.failing().map(|_| Fails { since: now, retry_at: now });
        let next_mark = now + MARK_INTERVAL;
        Self { log, queue, figures, unsaved: Changes::new(), next_mark, failing, complain_at: now }
    }

    fn run(mut self) {
        loop {
            let retry_at = self.failing.as_ref().map(|failing| failing.retry_at);
            let mut state = self.queue.wait(retry_at.unwrap_or(self.next_mark));
            let (waiters, closing) = (std::mem::take(&mut state.waiters), state.closing);
            self.unsaved.append(&mut state.changes);
            state.unsettled = !self.unsaved.is_empty();
            drop(state);

            // Gossip brings changes all the time; to write all that has gathered for each of them would be in vain.
            let too_soon = self.failing.as_ref().is_some_and(|failing| Instant::now() < failing.retry_at);
            if too_soon && waiters.is_empty() && !closing {
                continue;
            }
            let result = self.commit(closing);
            if self.unsaved.is_empty() {
                self.queue.lock().unsettled = false;
            }
            for waiter in waiters {
                waiter(result.clone().map_err(|error| error.to_string()));
            }
            if closing {
                return;
            }
            if self.failing.is_none()
                && let Err(reason) = self.log.compact_if_due()
            {
                tracing::error!("cannot rewrite the log in the data directory: {reason}. It goes on growing");
            }
            let lost = self.log.take_lost();
            if !lost.is_empty() {
                self.queue.lock().lost.extend(lost);
                self.queue.has_lost.store(true, Relaxed);
            }
        }
    }

    /// Writes what there is to write, and the time when that is due. While the disk fails it always is: whether the
    /// disk works again is found out by writing.
    fn commit(&mut self, closing: bool) -> Result<(), CommitError> {
        let begun = Instant::now();
        let mark = closing || self.failing.is_some() || begun >= self.next_mark;
        if self.unsaved.is_empty() && !mark {
            return Ok(());
        }
        let result = self.log.commit(&self.unsaved, mark.then(wall_now));
        match &result {
            Err(CommitError::Nothing(reason)) => self.failed(reason),
            Err(CommitError::LeftOut(why)) => {
                self.figures.failures.fetch_add(1, Relaxed);
                tracing::error!("cannot be saved, and would be missing here after a restart: {why}");
                self.worked();
            }
            Ok(()) => self.worked(),
        }
        if mark {
            self.next_mark = begun + MARK_INTERVAL;
        }
        self.figures.unsaved.store(self.unsaved.len() as u64, Relaxed);
        self.figures.longest_commit_us.fetch_max(begun.elapsed().as_micros() as u64, Relaxed);
        result
    }

    fn failed(&mut self, reason: &str) {
        self.figures.failures.fetch_add(1, Relaxed);
        self.figures.fails(reason, wall_now());
        let now = Instant::now();
        if now >= self.complain_at {
            self.complain_at = now + COMPLAIN_INTERVAL;
            tracing::error!(
                "cannot write to the data directory: {reason}. The node goes on serving, refuses what it could not \
                 keep, and tries again every {} s; {} changes would be lost if it stopped now",
                RETRY_INTERVAL.as_secs(),
                self.unsaved.len()
            );
        }
        let since = self.failing.as_ref().map_or(now, |failing| failing.since);
        self.failing = Some(Fails { since, retry_at: now + RETRY_INTERVAL });
    }

    fn worked(&mut self) {
        self.unsaved.clear();
        if let Some(Fails { since, .. }) = self.failing.take() {
            self.figures.works();
            self.complain_at = Instant::now();
            tracing::warn!("the data directory can be written again, after {} s", since.elapsed().as_secs());
        }
    }
}

/// The machine's wall clock.
pub(crate) fn wall_now() -> WallTime {
    let since = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH).unwrap_or_default();
    WallTime(since.as_millis() as u64)
}
