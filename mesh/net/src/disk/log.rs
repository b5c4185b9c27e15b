//! The log file of one node: opened and repaired, appended to and synced, rewritten when mostly dead.
//!
//! All calls block; only the disk thread and the start of a node make them.

use std::collections::BTreeMap;
use std::fs::{self, File, OpenOptions};
use std::io::{Read, Seek, Write};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering::Relaxed};
use std::time::Duration;

use starling_core::id::{Incarnation, MeshName, NodeId};
use starling_core::node::Memory;
use starling_core::observe::Exposition;
use starling_core::record::{Key, Record};
use starling_core::time::{HybridTime, WallTime};

use super::file::{Appender, Place, PushError, io_reason, lock, read_at, sync_dir};
use super::frame::{self, Damage, Entry, HEADER, Meta};
use super::{DiskError, Problem};

/// The log is rewritten when it is this many times as long as what it still says (so a rewrite copies at most a
/// third of what was written since the last one), and longer than [`COMPACT_MIN_BYTES`].
const COMPACT_FACTOR: u64 = 4;
/// Below this, rewriting saves nothing worth the sync.
pub(super) const COMPACT_MIN_BYTES: u64 = 4 * 1024 * 1024;
/// How far a stamp may be ahead of the last mark: marks are five seconds apart, and a hybrid clock runs at most the
/// allowed skew (five seconds unless set otherwise) ahead of the wall clock.
const MARK_MARGIN: Duration = Duration::from_secs(10);

const LOG: &str = "starling.log";
const NEW_LOG: &str = "starling.log.new";

/// What the disk has done; read by metrics.
#[derive(Debug, Default)]
pub(crate) struct Figures {
    /// Entries written.
    pub(crate) entries: AtomicU64,
    /// Syncs; fewer than entries when the writers are many.
    pub(crate) syncs: AtomicU64,
    /// Commits that failed.
    pub(crate) failures: AtomicU64,
    /// Rewrites of the log.
    pub(crate) compactions: AtomicU64,
    /// The log's length now.
    pub(crate) log_bytes: AtomicU64,
    /// How much of it still says something.
    pub(crate) live_bytes: AtomicU64,
    /// The longest commit so far, in microseconds.
    pub(crate) longest_commit_us: AtomicU64,
}

impl Figures {
    /// Writes them.
    pub(crate) fn collect(&self, out: &mut Exposition) {
        let mut single = |name: &str, kind: &str, help: &str, figure: &AtomicU64, scale: f64| {
            out.single(name, kind, help, figure.load(Relaxed) as f64 / scale);
        };
        single("starling_disk_entries_total", "counter", "Entries written to the log.", &self.entries, 1.0);
        single("starling_disk_syncs_total", "counter", "Syncs of the log.", &self.syncs, 1.0);
        single("starling_disk_failures_total", "counter", "Writes of the log that failed.", &self.failures, 1.0);
        single("starling_disk_compactions_total", "counter", "Rewrites of the log.", &self.compactions, 1.0);
        single("starling_disk_log_bytes", "gauge", "Length of the log.", &self.log_bytes, 1.0);
        single("starling_disk_live_bytes", "gauge", "How much of the log still counts.", &self.live_bytes, 1.0);
        let longest = "The longest write with its sync so far.";
        single("starling_disk_longest_commit_seconds", "gauge", longest, &self.longest_commit_us, 1e6);
    }
}

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
    dir: PathBuf,
    file: File,
    /// Up to here the file is what it should be and on disk.
    sound_bytes: u64,
    live: BTreeMap<Key, Place>,
    live_bytes: u64,
    meta: Meta,
    /// The file may hold something we did not mean; only a rewrite makes it trustworthy again.
    suspect: bool,
    /// Not before the log is this long; moved up when a rewrite did not work.
    compact_at_bytes: u64,
    figures: Arc<Figures>,
    _lock: File,
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
    /// damaged, and begins a new incarnation, which is on disk when this returns.
    pub(super) fn open(
        dir: &Path,
        mesh: &MeshName,
        node: &NodeId,
        now: WallTime,
        figures: Arc<Figures>,
    ) -> Result<(Log, Recovered), DiskError> {
        let failed =
            |doing: &'static str| move |error| DiskError::Open { dir: dir.into(), doing, reason: io_reason(&error) };
        fs::create_dir_all(dir).map_err(failed("create it"))?;
        let lock = lock(dir)?;
        let _ = fs::remove_file(dir.join(NEW_LOG)); // a rewrite that a crash interrupted; the old log is whole
        let path = dir.join(LOG);
        let open = OpenOptions::new().read(true).write(true).create(true).truncate(false).open(&path);
        let mut file = open.map_err(failed("open its log"))?;
        let mut bytes = Vec::new();
        file.read_to_end(&mut bytes).map_err(failed("read its log"))?;

        let header = check_header(&path, &bytes)?;
        let contents = Contents::read(&bytes);
        if let Some(meta) = &contents.meta
            && (&meta.node != node || &meta.mesh != mesh)
        {
            return Err(DiskError::Foreign { dir: dir.into(), node: meta.node.clone(), mesh: meta.mesh.clone() });
        }
        let meta = contents.next_meta(mesh, node, now);
        let torn = contents.damages.iter().find(|damage| damage.torn_tail).map(|damage| damage.offset);
        let damaged = header.is_some() || contents.damages.iter().any(|damage| !damage.torn_tail);
        let sound_bytes = torn.unwrap_or(bytes.len() as u64).max(HEADER.len() as u64);
        let aside = damaged.then(|| dir.join(format!("{LOG}.damaged-{}", meta.incarnation.0)));
        if let Some(aside) = &aside {
            fs::copy(&path, aside).map_err(failed("set its damaged log aside"))?;
        }
        let mut problems: Vec<Problem> = header.into_iter().collect();
        problems.extend(contents.damages.iter().map(|damage| Problem::of(damage, &path, aside.as_deref())));
        let memory = Memory { last_used: last_used(&contents, &meta, now), records: contents.records };

        let live_bytes = contents.live.values().map(|place| place.bytes).sum();
        let mut log = Log {
            dir: dir.into(),
            file,
            sound_bytes,
            live: contents.live,
            live_bytes,
            meta,
            suspect: damaged,
            compact_at_bytes: COMPACT_MIN_BYTES,
            figures,
            _lock: lock,
        };
        if torn.is_some() {
            log.file.set_len(sound_bytes).map_err(failed("cut off an unfinished write"))?;
        }
        if bytes.len() < HEADER.len() {
            log.begin().map_err(failed("begin its log"))?;
        }
        log.commit(&Changes::new(), Some(now)).map_err(|error| DiskError::Open {
            dir: dir.into(),
            doing: "write this start's incarnation",
            reason: error.to_string(),
        })?;
        let incarnation = log.meta.incarnation;
        Ok((log, Recovered { memory, incarnation, problems }))
    }

    /// Puts changes (and with `mark` the wall time) on disk.
    pub(super) fn commit(&mut self, changes: &Changes, mark: Option<WallTime>) -> Result<(), CommitError> {
        if let Some(wall) = mark {
            self.meta.mark = self.meta.mark.max(wall);
        }
        if self.suspect {
            self.rewrite()?;
        }
        let written = self.append(changes, mark.is_some());
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

    fn append(&mut self, changes: &Changes, with_meta: bool) -> Result<(), CommitError> {
        let mut left_out = Ok(());
        let mut writer = Appender::at(&mut self.file, self.sound_bytes)?;
        let mut highest = self.meta.highest;
        let mut places = Vec::with_capacity(changes.len());
        for (key, record) in changes {
            let place = match record {
                Some(record) => {
                    highest = highest.max(latest(record));
                    match writer.push(|buffer, base| frame::push_record(buffer, base, record)) {
                        Ok(place) => Some(place),
                        Err(PushError::Frame(why)) => {
                            // One record that cannot be kept must not keep all others from the disk for ever.
                            left_out = Err(CommitError::LeftOut(format!("{key:?}: {why}")));
                            continue;
                        }
                        Err(error) => return Err(error.into()),
                    }
                }
                None if self.live.contains_key(key) => {
                    writer.push(|buffer, base| frame::push_forget(buffer, base, key))?;
                    None
                }
                None => None,
            };
            places.push((key, place));
        }
        if with_meta {
            let meta = Meta { highest, ..self.meta.clone() };
            writer.push(|buffer, base| frame::push_meta(buffer, base, &meta))?;
        }
        let end = writer.finish()?;
        self.file.sync_data().map_err(|error| {
            // After a failed sync the kernel may have dropped what we wrote and will not say so again.
            self.suspect = true;
            format!("sync the log: {}", io_reason(&error))
        })?;
        self.figures.syncs.fetch_add(1, Relaxed);
        self.figures.entries.fetch_add(changes.len() as u64, Relaxed);
        self.sound_bytes = end;
        self.meta.highest = highest;
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
        if self.file.set_len(self.sound_bytes).is_err() {
            self.suspect = true;
        }
    }

    /// Makes every further write fail, as a disk does that went read-only.
    #[cfg(test)]
    pub(super) fn break_file(&mut self) {
        self.file = File::open(self.dir.join(LOG)).unwrap();
    }

    fn begin(&mut self) -> std::io::Result<()> {
        self.file.set_len(0)?;
        self.file.rewind()?; // half a header may have been read
        self.file.write_all(&HEADER)?;
        self.file.sync_all()?;
        sync_dir(&self.dir)
    }

    /// Writes what the log still says to a new file and puts it in the place of the old one.
    pub(super) fn rewrite(&mut self) -> Result<(), String> {
        let path = self.dir.join(NEW_LOG);
        self.rewrite_at(&path).inspect_err(|_| {
            // Half a new log must not take the room the old one needs: a full disk is why most rewrites fail.
            let _ = fs::remove_file(&path);
        })
    }

    fn rewrite_at(&mut self, path: &Path) -> Result<(), String> {
        let doing = |what: &'static str| move |error| format!("{what} {NEW_LOG}: {}", io_reason(&error));
        let open = OpenOptions::new().read(true).write(true).create(true).truncate(true).open(path);
        let mut file = open.map_err(doing("create"))?;
        file.write_all(&HEADER).map_err(doing("write"))?;
        let mut live = BTreeMap::new();
        let mut writer = Appender::at(&mut file, HEADER.len() as u64)?;
        writer.push(|buffer, base| frame::push_meta(buffer, base, &self.meta))?;
        for (key, place) in &self.live {
            let bytes = read_at(&mut self.file, *place).map_err(|error| format!("read the log: {error}"))?;
            match frame::checked_payload(&bytes) {
                Some(payload) => {
                    let place = writer.push(|buffer, base| frame::push_payload(buffer, base, payload));
                    live.insert(key.clone(), place?);
                }
                None => tracing::error!(
                    "the record of {key:?} at offset {} of {} is damaged on disk and no longer saved; peers and this \
                     node's memory still have it: write it again, and check the disk",
                    place.offset,
                    self.dir.join(LOG).display()
                ),
            }
        }
        let end = writer.finish()?;
        file.sync_all().map_err(doing("sync"))?;
        fs::rename(path, self.dir.join(LOG)).map_err(doing("put into place"))?;
        // From here on the old file is gone by name; whatever happens, the new one is ours.
        self.file = file;
        self.sound_bytes = end;
        self.live_bytes = live.values().map(|place| place.bytes).sum();
        self.live = live;
        self.suspect = true;
        sync_dir(&self.dir).map_err(|error| format!("sync the directory: {}", io_reason(&error)))?;
        self.suspect = false;
        self.figures.compactions.fetch_add(1, Relaxed);
        Ok(())
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

    /// What this start writes first. The incarnation follows the wall clock's milliseconds, so that it grows even
    /// when the directory was lost; it grows anyway when the clock is wrong, and steps over any start whose own entry
    /// may be among what is damaged.
    fn next_meta(&self, mesh: &MeshName, node: &NodeId, now: WallTime) -> Meta {
        let lost = self.damages.len() as u64;
        let last = self.meta.as_ref().map_or(0, |meta| meta.incarnation.0);
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
        Ok(Some(Problem::of(
            &Damage { offset: 0, bytes: HEADER.len() as u64, key: None, torn_tail: false },
            path,
            None,
        )))
    }
}
