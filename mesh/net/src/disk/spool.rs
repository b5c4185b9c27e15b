//! What was taken and is to be sent later, on disk until it has been.
//!
//! One file of frames in the node's data directory (whose lock keeps other processes out): a parcel was put, a parcel is
//! done. A thread of its own writes it, many changes with one sync, so that nobody who carries requests waits for a disk
//! but the one whose parcel it is. All parcels are held in memory too, so the file is read at the start only, and written
//! anew from memory when most of it is done, when a write or a sync has failed (nothing in it is trusted then), or when
//! damage was found.
//!
//! What holds: a parcel whose `put` succeeded is found again after any crash, until it is done. It may be found once more
//! after it was done (the crash was quicker), and one whose `put` failed may be found too: at least once, never lost.

use std::collections::BTreeMap;
use std::io;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, PoisonError, mpsc};
use std::thread::JoinHandle;

use serde::{Deserialize, Serialize};
use starling_core::id::ServiceKey;
use starling_core::time::WallTime;
use tokio::sync::oneshot;

use super::file::{Appender, PushError, read_all};
use super::frame::{self, Stretch};
use super::layer::{Directory, Open, RawFile, RealDirectory, io_reason};

/// The file, and the one it is written anew to.
pub(super) const FILE: &str = "failback.spool";
const NEW: &str = "failback.spool.new";
/// The first bytes of the file: its name and the version of its format. As long as that of the log, which
/// [`frame::walk`] relies on.
const HEADER: [u8; 8] = *b"STARSPL\x01";
/// A file shorter than this is not written anew for being mostly done.
const COMPACT_BYTES: u64 = 1024 * 1024;

/// A request that waits.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Parcel {
    /// Greater than that of each one put before.
    pub id: u64,
    /// The service it is for.
    pub service: ServiceKey,
    /// When it was taken.
    pub queued: WallTime,
    /// From when on it is not to be sent any more.
    pub expires: WallTime,
    /// Its head, as it is sent.
    pub head: Vec<u8>,
    /// Its body.
    pub body: Vec<u8>,
}

/// The payload of a frame begins with this, as MessagePack; head and body follow as they are.
#[derive(Serialize, Deserialize)]
enum Note {
    Put { id: u64, service: ServiceKey, queued: WallTime, expires: WallTime, head_bytes: u32 },
    Done(u64),
}

/// What is to be written.
#[derive(Debug, Clone)]
pub(super) enum Change {
    Put(Arc<Parcel>),
    Done(u64),
}

impl Parcel {
    fn read(payload: &[u8]) -> Option<Result<Parcel, u64>> {
        let mut rest = payload;
        match Note::deserialize(&mut rmp_serde::Deserializer::new(&mut rest)).ok()? {
            Note::Put { id, service, queued, expires, head_bytes } => {
                let (head, body) = rest.split_at_checked(head_bytes as usize)?;
                Some(Ok(Parcel { id, service, queued, expires, head: head.to_vec(), body: body.to_vec() }))
            }
            Note::Done(id) => Some(Err(id)),
        }
    }
}

impl Change {
    fn push(&self, buffer: &mut Vec<u8>, base: u64) -> Result<(), String> {
        frame::push(buffer, base, |payload| match self {
            Change::Put(parcel) => {
                let Parcel { id, service, queued, expires, head, body } = &**parcel;
                let (service, head_bytes) = (service.clone(), head.len() as u32);
                let note = Note::Put { id: *id, service, queued: *queued, expires: *expires, head_bytes };
                rmp_serde::encode::write(payload, &note)?;
                payload.extend_from_slice(head);
                payload.extend_from_slice(body);
                Ok(())
            }
            Change::Done(id) => rmp_serde::encode::write(payload, &Note::Done(*id)),
        })
    }

    fn apply(&self, live: &mut BTreeMap<u64, Arc<Parcel>>) {
        match self {
            Change::Put(parcel) => _ = live.insert(parcel.id, parcel.clone()),
            Change::Done(id) => _ = live.remove(id),
        }
    }
}

/// The file, as the thread holds it.
#[derive(Debug)]
pub(super) struct Book {
    dir: Box<dyn Directory>,
    /// None where there is none, or none that can be trusted: the next change writes it anew.
    file: Option<Box<dyn RawFile>>,
    end: u64,
    /// Acknowledged and not done.
    live: BTreeMap<u64, Arc<Parcel>>,
    compact_at_bytes: u64,
    /// Why nothing is ever written, if so: what is there is not ours to replace.
    refuses: Option<String>,
}

impl Book {
    /// Reads what is there, in the order in which it was put, and what was wrong with it. No parcel is lost for another's
    /// damage, and an unfinished write at the end is as if it had never begun.
    pub(super) fn open(dir: Box<dyn Directory>) -> (Book, Vec<String>) {
        let mut problems = Vec::new();
        let path = dir.path().join(FILE);
        let mut book =
            Book { dir, file: None, end: 0, live: BTreeMap::new(), compact_at_bytes: COMPACT_BYTES, refuses: None };
        let read = match book.dir.open(FILE, Open::ToRead) {
            Err(error) if error.kind() == io::ErrorKind::NotFound => return (book, problems),
            opened => opened.and_then(|mut file| read_all(&mut *file)),
        };
        let (bytes, unreadable) = match read {
            Ok(read) => read,
            Err(error) => {
                problems.push(book.refuse(format!("{} cannot be read: {}", path.display(), io_reason(&error))));
                return (book, problems);
            }
        };
        let begins = bytes.len().min(HEADER.len());
        if bytes[..begins] != HEADER[..begins] && !unreadable.iter().any(|part| part.is_in(0, HEADER.len() as u64)) {
            let why = format!("{} is no spool of this version; move it away to have a new one", path.display());
            problems.push(book.refuse(why));
            return (book, problems);
        }
        problems.extend(unreadable.iter().map(|part| {
            let (at, n) = (part.offset, part.bytes);
            format!("{}: {n} bytes at {at} cannot be read: {}", path.display(), part.reason)
        }));
        let mut is_sound = bytes.len() >= HEADER.len() && problems.is_empty();
        frame::walk(&bytes, |at, end, stretch| {
            let (torn, n) = match stretch {
                Stretch::Sound(payload) => match Parcel::read(payload) {
                    Some(Ok(parcel)) => return Change::Put(Arc::new(parcel)).apply(&mut book.live),
                    Some(Err(id)) => return Change::Done(id).apply(&mut book.live),
                    None => (false, end - at),
                },
                Stretch::Damaged { torn_tail } => (torn_tail, end - at),
            };
            is_sound = false;
            let what = if torn { "an unfinished write was cut off" } else { "damage; what it held is lost" };
            problems.push(format!("{}: {n} bytes at {at}: {what}", path.display()));
        });
        if is_sound {
            // Where it cannot be opened to be written, it will be tried again with the first change.
            book.file = book.dir.open(FILE, Open::OrCreate).ok();
            book.end = bytes.len() as u64;
        }
        (book, problems)
    }

    fn refuse(&mut self, why: String) -> String {
        self.refuses = Some(why.clone());
        why
    }

    /// What is acknowledged and not done.
    pub(super) fn live(&self) -> impl Iterator<Item = &Arc<Parcel>> {
        self.live.values()
    }

    /// Writes all of these, in this order; when it returns they would survive a power cut. After an error none of what
    /// was put counts, and what is done is done all the same.
    pub(super) fn commit(&mut self, changes: &[Change]) -> Result<(), String> {
        let written = match (&self.refuses, &self.file) {
            (Some(why), _) => Err(why.clone()),
            (None, Some(_)) => self.append(changes),
            (None, None) => self.rewrite(changes),
        };
        let counts = |change: &&Change| written.is_ok() || matches!(change, Change::Done(_));
        changes.iter().filter(counts).for_each(|change| change.apply(&mut self.live));
        if written.is_ok() && self.end > self.compact_at_bytes && self.rewrite(&[]).is_err() {
            // All of it is on disk; there may be no room for a second copy now.
            self.compact_at_bytes = self.end * 2;
        }
        written
    }

    fn append(&mut self, changes: &[Change]) -> Result<(), String> {
        // What was begun and failed is not trusted any more.
        let Some(mut file) = self.file.take() else { return Err("there is no file".into()) };
        let end = write(&mut *file, self.end, changes).map_err(|error| error.to_string())?;
        (self.file, self.end) = (Some(file), end);
        Ok(())
    }

    /// Puts a new file with all that is live after these changes in the place of the old one.
    fn rewrite(&mut self, changes: &[Change]) -> Result<(), String> {
        let failed = |error: io::Error| format!("write {FILE} anew: {}", io_reason(&error));
        let mut live = self.live.clone();
        changes.iter().for_each(|change| change.apply(&mut live));
        let all: Vec<Change> = live.into_values().map(Change::Put).collect();
        let mut file = self.dir.open(NEW, Open::Anew).map_err(failed)?;
        super::layer::write_all_at(&mut *file, 0, &HEADER).map_err(failed)?;
        let end = write(&mut *file, HEADER.len() as u64, &all).map_err(|error| error.to_string())?;
        // From here on either file may be the one that is found.
        self.file = None;
        self.dir.rename(NEW, FILE).and_then(|()| self.dir.sync()).map_err(failed)?;
        (self.file, self.end, self.compact_at_bytes) = (Some(file), end, (end * 2).max(COMPACT_BYTES));
        Ok(())
    }
}

/// Writes these from there on, and syncs; where the file ends now.
fn write(file: &mut dyn RawFile, from: u64, changes: &[Change]) -> Result<u64, PushError> {
    let mut appender = Appender::at(file, from);
    for change in changes {
        appender.push(|buffer, base| change.push(buffer, base))?;
    }
    let end = appender.finish()?;
    file.sync().map_err(PushError::File)?;
    Ok(end)
}

/// What the thread is asked for. There are at most as many as parcels that wait, which whoever puts them bounds.
enum Job {
    Put(Arc<Parcel>, oneshot::Sender<Result<(), String>>),
    Done(u64),
}

/// The spool of a node. When it is dropped, what was handed over is still written; [`Spool::close`] waits for that.
#[derive(Debug)]
pub struct Spool {
    jobs: Mutex<Option<mpsc::Sender<Job>>>,
    thread: Mutex<Option<JoinHandle<()>>>,
}

impl Spool {
    /// Opens the spool in a node's data directory, which the node must have locked; with all that waits there, the
    /// oldest first. Blocks. What is wrong with the file is logged, and never keeps the node from starting.
    ///
    /// # Errors
    /// The system has no thread for it.
    pub fn open(dir: &Path) -> io::Result<(Spool, Vec<Arc<Parcel>>)> {
        let (book, problems) = Book::open(Box::new(RealDirectory(PathBuf::from(dir))));
        for problem in problems {
            tracing::warn!(%problem, "the spool of requests that wait");
        }
        let found = book.live().cloned().collect();
        let (jobs, todo) = mpsc::channel();
        let thread = std::thread::Builder::new().name("starling-spool".into()).spawn(move || run(book, &todo))?;
        Ok((Spool { jobs: Mutex::new(Some(jobs)), thread: Mutex::new(Some(thread)) }, found))
    }

    /// Returns when the parcel would survive a power cut.
    ///
    /// # Errors
    /// Why it is not certain that it would, in words for a person. It may be found after a restart all the same.
    pub async fn put(&self, parcel: Arc<Parcel>) -> Result<(), String> {
        let (done, written) = oneshot::channel();
        if !self.ask(Job::Put(parcel, done)) {
            return Err("the node is stopping".into());
        }
        written.await.unwrap_or_else(|_| Err("the thread that writes the spool has ended".into()))
    }

    /// The parcel needs not be kept any longer. Waits for nothing.
    pub fn done(&self, id: u64) {
        self.ask(Job::Done(id));
    }

    fn ask(&self, job: Job) -> bool {
        let jobs = self.jobs.lock().unwrap_or_else(PoisonError::into_inner);
        jobs.as_ref().is_some_and(|jobs| jobs.send(job).is_ok())
    }

    /// Writes what is left, and takes nothing more. Blocks.
    pub fn close(&self) {
        drop(self.jobs.lock().unwrap_or_else(PoisonError::into_inner).take());
        let thread = self.thread.lock().unwrap_or_else(PoisonError::into_inner).take();
        // It ends when nothing is left to do; if it had panicked, there is nothing more to wait for.
        thread.into_iter().for_each(|thread| _ = thread.join());
    }
}

/// Writes what comes, as much as has come at once.
fn run(mut book: Book, todo: &mpsc::Receiver<Job>) {
    let mut failing = false;
    while let Ok(first) = todo.recv() {
        let (mut changes, mut waiting) = (Vec::new(), Vec::new());
        for job in std::iter::once(first).chain(todo.try_iter()) {
            match job {
                Job::Put(parcel, done) => {
                    changes.push(Change::Put(parcel));
                    waiting.push(done);
                }
                Job::Done(id) => changes.push(Change::Done(id)),
            }
        }
        let written = book.commit(&changes);
        match &written {
            Err(error) if !failing => tracing::warn!(%error, "requests that were to be sent later cannot be kept"),
            Ok(()) if failing => tracing::info!("requests that are to be sent later can be kept again"),
            _ => {}
        }
        failing = written.is_err();
        // Whoever waits no more has been told otherwise.
        waiting.into_iter().for_each(|done| _ = done.send(written.clone()));
    }
}
