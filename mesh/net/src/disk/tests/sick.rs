//! A disk in memory that can do what real ones do at their worst: be full, be read-only, fail at any operation, write
//! a part, lose sectors, and forget at a power cut any of what was not synced.

use std::collections::BTreeMap;
use std::io::{self, ErrorKind};
use std::sync::{Arc, Mutex, MutexGuard};

use super::super::layer::{Directory, Lock, LockError, Open, RawFile};
use super::*;

/// What happens at an operation.
#[derive(Debug, Clone, Copy)]
pub(super) enum Trouble {
    /// It fails, and has no effect. (A sync that fails drops what it should have written: see [`RawFile::sync`].)
    Fails(ErrorKind),
    /// Only so many bytes are written, as the system may do at any time.
    Short(usize),
    /// So many bytes are written, and then the machine is dead.
    Dies(usize),
}

/// What a power cut leaves of what was not synced.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Left {
    /// All: only the process was killed.
    Everything,
    /// Nothing.
    Nothing,
    /// Any part of it, in sectors; this seed decides.
    Some(u64),
}

/// Decides about each operation that changes something, by its number and, if it is a write, its length.
type Script = Box<dyn FnMut(u64, Option<usize>) -> Option<Trouble> + Send>;

/// The disk. Clones are the same disk.
#[derive(Clone)]
pub(super) struct SickDisk(Arc<Mutex<State>>);

impl std::fmt::Debug for SickDisk {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("SickDisk")
    }
}

#[derive(Default)]
struct State {
    files: Vec<Content>,
    entries: BTreeMap<String, usize>,
    durable_entries: BTreeMap<String, usize>,
    unsynced_entries: Vec<Entries>,
    operations: u64,
    script: Option<Script>,
    dead: bool,
    read_only: bool,
    /// The most bytes all files have together.
    capacity: Option<usize>,
}

#[derive(Default, Clone)]
struct Content {
    /// Reading any of these bytes fails.
    bad: Vec<std::ops::Range<u64>>,
    /// As processes see it.
    seen: Vec<u8>,
    /// As it is on the platter.
    durable: Vec<u8>,
    unsynced: Vec<Change>,
}

#[derive(Clone)]
enum Change {
    Bytes(usize, Vec<u8>),
    Length(usize),
}

#[derive(Clone)]
enum Entries {
    Link(String, usize),
    Rename(String, String, usize),
    Unlink(String),
}

impl Change {
    fn onto(&self, bytes: &mut Vec<u8>) {
        match self {
            Change::Bytes(at, new) => {
                bytes.resize(bytes.len().max(at + new.len()), 0);
                bytes[*at..at + new.len()].copy_from_slice(new);
            }
            Change::Length(length) => bytes.resize(*length, 0),
        }
    }
}

impl Entries {
    fn onto(&self, entries: &mut BTreeMap<String, usize>) {
        match self {
            Entries::Link(name, file) => _ = entries.insert(name.clone(), *file),
            Entries::Rename(from, to, file) => {
                entries.remove(from);
                entries.insert(to.clone(), *file);
            }
            Entries::Unlink(name) => _ = entries.remove(name),
        }
    }
}

impl State {
    /// Before anything is changed.
    fn operation(&mut self, length: Option<usize>) -> io::Result<Option<usize>> {
        if self.dead {
            return Err(ErrorKind::NotConnected.into());
        }
        self.operations += 1;
        if self.read_only {
            return Err(ErrorKind::ReadOnlyFilesystem.into());
        }
        let number = self.operations - 1;
        match self.script.as_mut().and_then(|script| script(number, length)) {
            Some(Trouble::Fails(kind)) => Err(kind.into()),
            Some(Trouble::Short(bytes)) => Ok(Some(bytes)),
            Some(Trouble::Dies(bytes)) => {
                self.dead = true;
                Ok(Some(bytes))
            }
            None => Ok(None),
        }
    }

    /// An operation that is done at once or not at all.
    fn at_once(&mut self) -> io::Result<()> {
        self.operation(None)?;
        if self.dead { Err(ErrorKind::NotConnected.into()) } else { Ok(()) }
    }

    fn change_entries(&mut self, change: Entries) {
        change.onto(&mut self.entries);
        self.unsynced_entries.push(change);
    }

    fn room(&self) -> usize {
        let used: usize = self.entries.values().map(|file| self.files[*file].seen.len()).sum();
        self.capacity.map_or(usize::MAX, |capacity| capacity.saturating_sub(used))
    }
}

impl SickDisk {
    /// A sound and empty one.
    pub(super) fn new() -> Self {
        Self(Arc::default())
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.0.lock().unwrap()
    }

    /// From here on, operations are counted from 0 and this decides what happens at each.
    pub(super) fn script(&self, script: impl FnMut(u64, Option<usize>) -> Option<Trouble> + Send + 'static) {
        let mut state = self.state();
        state.operations = 0;
        state.script = Some(Box::new(script));
    }

    /// From here on all is well again.
    pub(super) fn heals(&self) {
        let mut state = self.state();
        (state.script, state.read_only, state.capacity) = (None, false, None);
    }

    pub(super) fn is_read_only(&self) {
        self.state().read_only = true;
    }

    /// There is room for so many bytes more.
    pub(super) fn has_room_for(&self, bytes: usize) {
        let mut state = self.state();
        let used: usize = state.entries.values().map(|file| state.files[*file].seen.len()).sum();
        state.capacity = Some(used + bytes);
    }

    /// These bytes of the log can no longer be read.
    pub(super) fn loses(&self, bytes: std::ops::Range<u64>) {
        let mut state = self.state();
        let file = state.entries[log::LOG];
        state.files[file].bad.push(bytes);
    }

    pub(super) fn is_dead(&self) -> bool {
        self.state().dead
    }

    /// The bytes of a file, as processes see them.
    pub(super) fn bytes(&self, name: &str) -> Vec<u8> {
        let state = self.state();
        state.files[state.entries[name]].seen.clone()
    }

    /// What a machine finds that starts with this disk after a power cut now. This disk goes on as it was.
    pub(super) fn after(&self, left: Left) -> SickDisk {
        let state = self.state();
        let mut survivor = State { files: state.files.clone(), ..State::default() };
        let mut random = fastrand::Rng::with_seed(if let Left::Some(seed) = left { seed } else { 0 });
        let mut survives = || match left {
            Left::Everything => true,
            Left::Nothing => false,
            Left::Some(_) => random.bool(),
        };
        survivor.durable_entries = state.durable_entries.clone();
        for change in state.unsynced_entries.iter().filter(|_| survives()) {
            change.onto(&mut survivor.durable_entries);
        }
        survivor.entries = survivor.durable_entries.clone();
        for file in &mut survivor.files {
            for change in std::mem::take(&mut file.unsynced) {
                match change {
                    // Small sectors, so that small tests have many.
                    Change::Bytes(at, bytes) => {
                        for (sector, bytes) in bytes.chunks(32).enumerate().filter(|_| survives()) {
                            Change::Bytes(at + sector * 32, bytes.to_vec()).onto(&mut file.durable);
                        }
                    }
                    change if survives() => change.onto(&mut file.durable),
                    _ => {}
                }
            }
            file.seen = file.durable.clone();
        }
        SickDisk(Arc::new(Mutex::new(survivor)))
    }
}

impl Directory for SickDisk {
    fn path(&self) -> &Path {
        Path::new("/sick")
    }

    fn create(&self) -> io::Result<()> {
        Ok(())
    }

    fn lock(&self) -> Result<Lock, LockError> {
        Ok(Box::new(()))
    }

    fn open(&self, name: &str, how: Open) -> io::Result<Box<dyn RawFile>> {
        let mut state = self.state();
        if how != Open::ToRead {
            state.at_once()?;
        }
        let known = state.entries.get(name).copied();
        let file = match known {
            Some(file) => file,
            None if how == Open::ToRead => return Err(ErrorKind::NotFound.into()),
            None => {
                let file = state.files.len();
                state.files.push(Content::default());
                state.change_entries(Entries::Link(name.into(), file));
                file
            }
        };
        if how == Open::Anew {
            state.files[file].seen.clear();
            state.files[file].unsynced.push(Change::Length(0));
        }
        drop(state);
        Ok(Box::new(SickFile { disk: self.clone(), file, writes: how != Open::ToRead }))
    }

    fn rename(&self, from: &str, to: &str) -> io::Result<()> {
        let mut state = self.state();
        state.at_once()?;
        let file = *state.entries.get(from).ok_or(ErrorKind::NotFound)?;
        state.change_entries(Entries::Rename(from.into(), to.into(), file));
        Ok(())
    }

    fn remove(&self, name: &str) -> io::Result<()> {
        let mut state = self.state();
        state.at_once()?;
        if !state.entries.contains_key(name) {
            return Err(ErrorKind::NotFound.into());
        }
        state.change_entries(Entries::Unlink(name.into()));
        Ok(())
    }

    fn sync(&self) -> io::Result<()> {
        let mut state = self.state();
        state.at_once()?;
        state.unsynced_entries.clear();
        state.durable_entries = state.entries.clone();
        Ok(())
    }
}

#[derive(Debug)]
struct SickFile {
    disk: SickDisk,
    file: usize,
    writes: bool,
}

impl SickFile {
    fn change(state: &mut State, file: usize, change: Change) {
        change.onto(&mut state.files[file].seen);
        state.files[file].unsynced.push(change);
    }
}

impl RawFile for SickFile {
    fn length(&mut self) -> io::Result<u64> {
        Ok(self.disk.state().files[self.file].seen.len() as u64)
    }

    fn read_at(&mut self, offset: u64, buffer: &mut [u8]) -> io::Result<usize> {
        let state = self.disk.state();
        let wanted = offset..offset + buffer.len() as u64;
        if state.files[self.file].bad.iter().any(|bad| bad.start < wanted.end && wanted.start < bad.end) {
            return Err(io::Error::other("Input/output error"));
        }
        let seen = &state.files[self.file].seen;
        let start = (offset as usize).min(seen.len());
        let length = buffer.len().min(seen.len() - start);
        buffer[..length].copy_from_slice(&seen[start..start + length]);
        Ok(length)
    }

    fn write_at(&mut self, offset: u64, bytes: &[u8]) -> io::Result<usize> {
        let mut state = self.disk.state();
        assert!(self.writes, "a file opened to be read is not written");
        let most = state.operation(Some(bytes.len()))?.unwrap_or(bytes.len()).min(bytes.len());
        let end = state.files[self.file].seen.len();
        let overwritten = end.saturating_sub(offset as usize);
        let fits = most.min(state.room().saturating_add(overwritten));
        if fits == 0 && !bytes.is_empty() && most > 0 {
            return Err(ErrorKind::StorageFull.into());
        }
        if fits > 0 {
            Self::change(&mut state, self.file, Change::Bytes(offset as usize, bytes[..fits].to_vec()));
        }
        if state.dead { Err(ErrorKind::NotConnected.into()) } else { Ok(fits) }
    }

    fn set_len(&mut self, length: u64) -> io::Result<()> {
        let mut state = self.disk.state();
        state.at_once()?;
        Self::change(&mut state, self.file, Change::Length(length as usize));
        Ok(())
    }

    fn sync(&mut self) -> io::Result<()> {
        let mut state = self.disk.state();
        let done = state.at_once();
        let dead = state.dead;
        let Content { durable, unsynced, .. } = &mut state.files[self.file];
        if !dead {
            unsynced.drain(..).filter(|_| done.is_ok()).for_each(|change| change.onto(durable));
        }
        done
    }
}
