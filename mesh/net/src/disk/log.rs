//! The log file of one node: opened and repaired, appended to and synced, rewritten when mostly dead.
//!
//! All calls block; only the disk thread and the start of a node make them.
//!
//! A log that can be read but not written (a disk that is full or read-only) is opened all the same: the first commit
//! that succeeds brings this start's incarnation to it. Until then nothing is acknowledged.

use std::collections::BTreeMap;
use std::io;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::Ordering::Relaxed;
use std::time::Duration;

use starling_core::id::{Incarnation, MeshName, NodeId};
use starling_core::node::Memory;
use starling_core::record::{Key, Record};
use starling_core::time::{HybridTime, WallTime};

use super::figures::Figures;
use super::file::{Appender, Place, PushError, Unreadable, read_all, read_at};
use super::frame::{self, Damage, Entry, HEADER, Meta};
use super::layer::{Directory, Lock, LockError, Open, RawFile, io_reason, may_pass, write_all_at};
use super::{DiskError, Problem};

/// The log is rewritten when it is this many times as long as what it still says (so a rewrite copies at most a
/// third of what was written since the last one), and longer than [`COMPACT_MIN_BYTES`].
const COMPACT_FACTOR: u64 = 4;
/// Below this, rewriting saves nothing worth the sync.
pub(super) const COMPACT_MIN_BYTES: u64 = 4 * 1024 * 1024;
/// How far a stamp may be ahead of the last mark: marks are five seconds apart, and a hybrid clock runs at most the
/// allowed skew (five seconds unless set otherwise) ahead of the wall clock.
const MARK_MARGIN: Duration = Duration::from_secs(10);
/// How long after a damage what peers hold for this node's is believed: as long as tombstones are kept, by default.
const DAMAGE_REMEMBERED: Duration = Duration::from_secs(86_400);

pub(super) const LOG: &str = "starling.log";
pub(super) const NEW_LOG: &str = "starling.log.new";

/// What to put on disk: per key the newest record, or `None` to forget it.
pub(super) type Changes = BTreeMap<Key, Option<Record>>;

/// Why changes are not on disk.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub(super) enum CommitError {
    /// None of them is: give them again.
    #[error("{0}")]
    Nothing(String),
    /// All are but one, which never can be.
    #[error("{0}")]
    LeftOut(String),
}

impl From<PushError> for CommitError {
    fn from(error: PushError) -> Self {
        CommitError::Nothing(error.to_string())
    }
}

impl From<String> for CommitError {
    fn from(reason: String) -> Self {
        CommitError::Nothing(reason)
    }
}

/// An open log.
#[derive(Debug)]
pub(super) struct Log {
    dir: Box<dyn Directory>,
    /// None while there is none and none could be begun.
    file: Option<Box<dyn RawFile>>,
    /// Up to here the file is what it should be and on disk.
    sound_bytes: u64,
    live: BTreeMap<Key, Place>,
    live_bytes: u64,
    meta: Meta,
    /// This start's incarnation is on disk; it goes before anything else.
    introduced: bool,
    /// The file may hold something we did not mean; only a rewrite makes it trustworthy again.
    suspect: bool,
    /// Keys whose records the disk has lost while the node ran.
    lost: Vec<Key>,
    /// Not before the log is this long; moved up when a rewrite did not work.
    compact_at_bytes: u64,
    figures: Arc<Figures>,
    _lock: Lock,
}

/// What an opened log had to say.
#[derive(Debug)]
pub(super) struct Recovered {
    pub(super) memory: Memory,
    pub(super) incarnation: Incarnation,
    pub(super) problems: Vec<Problem>,
}

impl Log {
    /// Opens (or begins) the log in `dir`, drops what a crash left unfinished, reports and sets aside what is
    /// damaged, and begins a new incarnation, which is on disk when this returns, unless a [`Problem::Unwritable`]
    /// says that nothing can be written now.
    pub(super) fn open(
        dir: Box<dyn Directory>,
        mesh: &MeshName,
        node: &NodeId,
        now: WallTime,
        figures: Arc<Figures>,
    ) -> Result<(Log, Recovered), DiskError> {
        let lock = take(&*dir)?;
        let path = dir.path().join(LOG);
        let Begun { mut file, mut unwritable } = Begun::open(&*dir)?;
        let read = file.as_mut().map_or(Ok(Default::default()), |file| read_all(&mut **file));
        let (bytes, unreadable) = read.map_err(|error| refused(&*dir, "read its log", &error))?;

        let header = check_header(&path, &bytes)?;
        let mut contents = Contents::read(&bytes);
        contents.blame(&unreadable);
        if let Some(meta) = &contents.meta
            && (&meta.node != node || &meta.mesh != mesh)
        {
            let (node, mesh) = (meta.node.clone(), meta.mesh.clone());
            return Err(DiskError::Foreign { dir: dir.path().into(), node, mesh });
        }
        let torn = contents.damages.iter().find(|damage| damage.torn_tail).map(|damage| damage.offset);
        let damaged = header.is_some() || contents.damages.iter().any(|damage| !damage.torn_tail);
        let meta = contents.next_meta(mesh, node, now, damaged);
        let aside = if damaged { set_aside(&*dir, &bytes, meta.incarnation) } else { None };
        let mut problems: Vec<Problem> = header.into_iter().collect();
        problems
            .extend(contents.damages.iter().map(|damage| Problem::of(damage, &unreadable, &path, aside.as_deref())));
        figures.damages.store(problems.iter().filter(|problem| problem.is_damage()).count() as u64, Relaxed);
        let incomplete = meta.damaged.is_some();
        let memory = Memory { last_used: last_used(&contents, &meta, now), records: contents.records, incomplete };

        let live_bytes = contents.live.values().map(|place| place.bytes).sum();
        let mut log = Log {
            suspect: damaged || unwritable.is_some(),
            dir,
            file,
            sound_bytes: torn.unwrap_or(bytes.len() as u64).max(HEADER.len() as u64),
            live: contents.live,
            live_bytes,
            meta,
            introduced: false,
            lost: Vec::new(),
            compact_at_bytes: COMPACT_MIN_BYTES,
            figures,
            _lock: lock,
        };
        if !log.suspect {
            let _ = log.dir.remove(NEW_LOG); // of a rewrite that a crash interrupted; the old log is whole
            unwritable = log.mend(bytes.len() as u64, torn.is_some()).err();
        }
        if unwritable.is_none() {
            unwritable = log.commit(&Changes::new(), Some(now)).err().map(|error| error.to_string());
        }
        if let Some(reason) = unwritable {
            log.figures.fails(&reason, now);
            problems.push(Problem::Unwritable { dir: log.dir.path().into(), reason });
        }
        let incarnation = log.meta.incarnation;
        Ok((log, Recovered { memory, incarnation, problems }))
    }

    /// Cuts off what a crash left unfinished, or begins the file.
    fn mend(&mut self, length: u64, torn: bool) -> Result<(), String> {
        let Some(file) = &mut self.file else { return Ok(()) };
        let mended = if length < HEADER.len() as u64 {
            // New, or half a header: nothing in it yet.
            file.set_len(0)
                .and_then(|()| write_all_at(&mut **file, 0, &HEADER))
                .and_then(|()| file.sync())
                .and_then(|()| self.dir.sync())
        } else if torn {
            file.set_len(self.sound_bytes)
        } else {
            Ok(())
        };
        mended.map_err(|error| {
            self.suspect = true;
            format!("mend the log: {}", io_reason(&error))
        })
    }

    /// Puts changes (and with `mark` the wall time) on disk.
    pub(super) fn commit(&mut self, changes: &Changes, mark: Option<WallTime>) -> Result<(), CommitError> {
        if let Some(wall) = mark {
            self.meta.mark = self.meta.mark.max(wall);
        }
        if self.suspect {
            self.rewrite()?;
        }
        let written = self.append(changes, mark.is_some() || !self.introduced);
        if matches!(written, Err(CommitError::Nothing(_))) {
            self.roll_back();
        }
        self.figures.log_bytes.store(self.sound_bytes, Relaxed);
        self.figures.live_bytes.store(self.live_bytes, Relaxed);
        written
    }

    /// Rewrites the log if most of it is dead.
    pub(super) fn compact_if_due(&mut self) -> Result<(), String> {
        let due = self.sound_bytes > self.compact_at_bytes && self.sound_bytes > COMPACT_FACTOR * self.live_bytes;
        if !due {
            return Ok(());
        }
        self.compact_at_bytes = COMPACT_MIN_BYTES;
        self.rewrite().inspect_err(|_| self.compact_at_bytes = self.sound_bytes + COMPACT_MIN_BYTES)
    }

    /// Keys whose records the disk has lost since this was asked last; whoever has them in memory gives them again.
    pub(super) fn take_lost(&mut self) -> Vec<Key> {
        std::mem::take(&mut self.lost)
    }

    fn append(&mut self, changes: &Changes, with_meta: bool) -> Result<(), CommitError> {
        let file = self.file.as_mut().ok_or_else(|| "the log has not been begun".to_owned())?;
        let mut left_out = Ok(());
        let mut writer = Appender::at(&mut **file, self.sound_bytes);
        let written = changes.values().flatten().map(latest);
        let highest = written.fold(self.meta.highest, Ord::max);
        if with_meta {
            // First: whatever else of this write survives a crash, a start that wrote is known to have been.
            let meta = Meta { highest, ..self.meta.clone() };
            writer.push(|buffer, base| frame::push_meta(buffer, base, &meta))?;
        }
        let mut places = Vec::with_capacity(changes.len());
        for (key, record) in changes {
            let place = match record {
                Some(record) => match writer.push(|buffer, base| frame::push_record(buffer, base, record)) {
                    Ok(place) => Some(place),
                    Err(PushError::Frame(why)) => {
                        // One record that cannot be kept must not keep all others from the disk for ever.
                        left_out = Err(CommitError::LeftOut(format!("{key:?}: {why}")));
                        continue;
                    }
                    Err(error) => return Err(error.into()),
                },
                None if self.live.contains_key(key) => {
                    writer.push(|buffer, base| frame::push_forget(buffer, base, key))?;
                    None
                }
                None => None,
            };
            places.push((key, place));
        }
        let end = writer.finish()?;
        file.sync().map_err(|error| {
            // After a failed sync the kernel may have dropped what we wrote and will not say so again.
            self.suspect = true;
            format!("sync the log: {}", io_reason(&error))
        })?;
        self.figures.syncs.fetch_add(1, Relaxed);
        self.figures.entries.fetch_add(changes.len() as u64, Relaxed);
        self.sound_bytes = end;
        self.meta.highest = highest;
        self.introduced |= with_meta;
        for (key, place) in places {
            let before = match place {
                Some(place) => self.live.insert(key.clone(), place),
                None => self.live.remove(key),
            };
            self.live_bytes += place.map_or(0, |place| place.bytes);
            self.live_bytes -= before.map_or(0, |place| place.bytes);
        }
        left_out
    }

    /// Cuts off what a failed write left behind.
    fn roll_back(&mut self) {
        let cut = self.file.as_mut().map(|file| file.set_len(self.sound_bytes));
        if !matches!(cut, Some(Ok(()))) {
            self.suspect = true;
        }
    }

    /// Writes what the log still says to a new file and puts it in the place of the old one.
    pub(super) fn rewrite(&mut self) -> Result<(), String> {
        self.rewrite_file().inspect_err(|_| {
            // Half a new log must not take the room the old one needs: a full disk is why most rewrites fail.
            let _ = self.dir.remove(NEW_LOG);
        })
    }

    fn rewrite_file(&mut self) -> Result<(), String> {
        let doing = |what: &'static str| move |error: io::Error| format!("{what} {NEW_LOG}: {}", io_reason(&error));
        let mut file = self.dir.open(NEW_LOG, Open::Anew).map_err(doing("create"))?;
        write_all_at(&mut *file, 0, &HEADER).map_err(doing("write"))?;
        let (mut live, mut lost) = (BTreeMap::new(), Vec::new());
        let mut writer = Appender::at(&mut *file, HEADER.len() as u64);
        let now_lost = |why: &str, key: &Key, place: &Place, log: &Path| {
            tracing::error!(
                "the record of {key:?} at offset {} of {} {why}; it is written again from memory. Check the disk",
                place.offset,
                log.display()
            );
        };
        let log = self.dir.path().join(LOG);
        writer.push(|buffer, base| frame::push_meta(buffer, base, &self.meta))?;
        for (key, place) in &self.live {
            let read = self.file.as_mut().map(|file| read_at(&mut **file, *place));
            let bytes = read.unwrap_or_else(|| Err(io::ErrorKind::NotFound.into()));
            match bytes.as_ref().map(|bytes| frame::checked_payload(bytes)) {
                Ok(Some(payload)) => {
                    let place = writer.push(|buffer, base| frame::push_payload(buffer, base, payload));
                    live.insert(key.clone(), place?);
                }
                Ok(None) => {
                    now_lost("is damaged on disk", key, place, &log);
                    lost.push(key.clone());
                }
                Err(error) => {
                    now_lost(&format!("cannot be read ({error})"), key, place, &log);
                    lost.push(key.clone());
                }
            }
        }
        let end = writer.finish()?;
        file.sync().map_err(doing("sync"))?;
        self.dir.rename(NEW_LOG, LOG).map_err(doing("put into place"))?;
        // From here on the old file is gone by name; whatever happens, the new one is ours.
        self.file = Some(file);
        self.sound_bytes = end;
        self.live_bytes = live.values().map(|place| place.bytes).sum();
        self.live = live;
        self.lost.extend(lost);
        self.suspect = true;
        self.dir.sync().map_err(|error| format!("sync the directory: {}", io_reason(&error)))?;
        self.suspect = false;
        self.introduced = true;
        self.figures.compactions.fetch_add(1, Relaxed);
        Ok(())
    }
}

fn refused(dir: &dyn Directory, doing: &'static str, error: &io::Error) -> DiskError {
    DiskError::Open { dir: dir.path().into(), doing, reason: io_reason(error) }
}

/// Makes the directory, if there is none, and takes it for this process.
fn take(dir: &dyn Directory) -> Result<Lock, DiskError> {
    dir.create().map_err(|error| refused(dir, "create it", &error))?;
    dir.lock().map_err(|error| match error {
        LockError::Held(pid) => DiskError::InUse { dir: dir.path().into(), pid },
        LockError::Failed(error) => refused(dir, "lock it", &error),
    })
}

/// A log's file, as far as the disk lets us.
struct Begun {
    file: Option<Box<dyn RawFile>>,
    /// Why it cannot be written, if it cannot for now.
    unwritable: Option<String>,
}

impl Begun {
    /// What is a mistake in how the directory was set up is refused; what may pass is not.
    fn open(dir: &dyn Directory) -> Result<Begun, DiskError> {
        let error = match dir.open(LOG, Open::OrCreate) {
            Ok(file) => return Ok(Begun { file: Some(file), unwritable: None }),
            Err(error) => error,
        };
        if !may_pass(&error) {
            return Err(refused(dir, "open its log", &error));
        }
        let unwritable = Some(format!("open the log: {}", io_reason(&error)));
        match dir.open(LOG, Open::ToRead) {
            Ok(file) => Ok(Begun { file: Some(file), unwritable }),
            Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(Begun { file: None, unwritable }),
            Err(error) => Err(refused(dir, "read its log", &error)),
        }
    }
}

/// Keeps a damaged log for whoever wants to look at it, if there is room.
fn set_aside(dir: &dyn Directory, bytes: &[u8], incarnation: Incarnation) -> Option<PathBuf> {
    let name = format!("{LOG}.damaged-{}", incarnation.0);
    let copy = || {
        let mut copy = dir.open(&name, Open::Anew)?;
        write_all_at(&mut *copy, 0, bytes).and_then(|()| copy.sync()).and_then(|()| dir.sync())
    };
    match copy() {
        Ok(()) => Some(dir.path().join(name)),
        Err(error) => {
            let _ = dir.remove(&name); // half a copy helps nobody, and takes room
            tracing::warn!("no copy of the damaged log in {} is kept: {}", dir.path().display(), io_reason(&error));
            None
        }
    }
}

/// What was found in a log.
#[derive(Default)]
struct Contents {
    records: Vec<Record>,
    live: BTreeMap<Key, Place>,
    meta: Option<Meta>,
    highest: HybridTime,
    damages: Vec<Damage>,
}

impl Contents {
    fn read(bytes: &[u8]) -> Self {
        let mut contents = Contents::default();
        let mut records = BTreeMap::new();
        contents.damages = frame::scan(bytes, |offset, bytes, entry| match entry {
            Entry::Record(record) => {
                contents.highest = contents.highest.max(latest(&record));
                contents.live.insert(record.key.clone(), Place { offset, bytes });
                records.insert(record.key, record.cell);
            }
            Entry::Forget(key) => {
                contents.live.remove(&key);
                records.remove(&key);
            }
            Entry::Meta(meta) => {
                contents.highest = contents.highest.max(meta.highest);
                contents.meta = Some(meta);
            }
        });
        contents.records = records.into_iter().map(|(key, cell)| Record { key, cell }).collect();
        contents
    }

    /// What the disk did not give back is not a write that a crash cut short.
    fn blame(&mut self, unreadable: &[Unreadable]) {
        for damage in &mut self.damages {
            damage.torn_tail &= !unreadable.iter().any(|part| part.is_in(damage.offset, damage.bytes));
        }
    }

    /// What this start writes first. The incarnation follows the wall clock's milliseconds, so that it grows even
    /// when the directory was lost; it grows anyway when the clock is wrong, and steps over any start whose own entry
    /// may be among what is damaged.
    fn next_meta(&self, mesh: &MeshName, node: &NodeId, now: WallTime, damaged: bool) -> Meta {
        let lost = self.damages.len() as u64;
        let last = self.meta.as_ref().map_or(0, |meta| meta.incarnation.0);
        let remembered = self.meta.as_ref().and_then(|meta| meta.damaged);
        let recent = |at: &WallTime| now.0.saturating_sub(at.0) < DAMAGE_REMEMBERED.as_millis() as u64;
        Meta {
            mesh: mesh.clone(),
            node: node.clone(),
            incarnation: Incarnation(now.0.max(last.saturating_add(1 + lost))),
            mark: match &self.meta {
                // The clock runs behind: stamps will run ahead of it, from here on, and again after the next start.
                Some(meta) if now < meta.mark => WallTime(meta.mark.0.saturating_add(MARK_MARGIN.as_millis() as u64)),
                _ => now,
            },
            highest: self.highest,
            damaged: if damaged { Some(now) } else { remembered.filter(recent) },
        }
    }
}

/// The latest stamp of a record that a clock can go on from; what is beyond that no heart believes either.
fn latest(record: &Record) -> HybridTime {
    let times = record.cell.stamps().into_iter().map(|stamp| stamp.time);
    times.filter(|time| time.is_sane()).max().unwrap_or_default()
}

/// A hybrid time no stamp of an earlier start lies after. While the clock is not behind the last mark it suffices to
/// be later than every stamp kept: jumping ahead on every start would make peers refuse this node's stamps.
fn last_used(contents: &Contents, next: &Meta, now: WallTime) -> HybridTime {
    let behind = next.mark > now;
    if behind { contents.highest.max(HybridTime::from_wall(next.mark)) } else { contents.highest }
}

fn check_header(path: &Path, bytes: &[u8]) -> Result<Option<Problem>, DiskError> {
    let Some(header) = bytes.get(..HEADER.len()) else {
        return Ok(None); // new, or a crash while it was begun: nothing has been acknowledged yet
    };
    let (name, version) = header.split_at(HEADER.len() - 1);
    if header == HEADER {
        Ok(None)
    } else if name == &HEADER[..HEADER.len() - 1] {
        Err(DiskError::Version { path: path.into(), theirs: version[0] })
    } else {
        let damage = Damage { offset: 0, bytes: HEADER.len() as u64, key: None, torn_tail: false };
        Ok(Some(Problem::of(&damage, &[], path, None)))
    }
}
