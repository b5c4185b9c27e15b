//! Files under a log: who may have the directory, where frames go, and errors in words a person can act on.

use std::fs::{File, OpenOptions, TryLockError};
use std::io::{Read, Seek, SeekFrom, Write};
use std::path::Path;

use super::DiskError;

/// Its lock is held as long as a process uses the directory; the system lets go of it when the process ends, however
/// it ends.
const LOCK: &str = "lock";
/// How much is gathered in memory between two writes to the file.
const WRITE_BYTES: usize = 1024 * 1024;

/// Where a frame is in its file.
#[derive(Debug, Clone, Copy)]
pub(super) struct Place {
    pub(super) offset: u64,
    pub(super) bytes: u64,
}

/// Takes the directory for this process.
pub(super) fn lock(dir: &Path) -> Result<File, DiskError> {
    let path = dir.join(LOCK);
    let failed = |error| DiskError::Open { dir: dir.into(), doing: "lock it", reason: io_reason(&error) };
    let open = OpenOptions::new().read(true).write(true).create(true).truncate(false).open(&path);
    let mut file = open.map_err(failed)?;
    match file.try_lock() {
        Ok(()) => {
            file.set_len(0).and_then(|()| write!(file, "{}", std::process::id())).map_err(failed)?;
            Ok(file)
        }
        Err(TryLockError::WouldBlock) => {
            let mut holder = String::new();
            let _ = file.take(20).read_to_string(&mut holder);
            Err(DiskError::InUse { dir: dir.into(), pid: holder.trim().parse().ok() })
        }
        Err(TryLockError::Error(error)) => Err(failed(error)),
    }
}

pub(super) fn sync_dir(dir: &Path) -> std::io::Result<()> {
    // A directory can only be opened for syncing on Unix; elsewhere the rename itself is all there is.
    if cfg!(unix) { File::open(dir)?.sync_all() } else { Ok(()) }
}

pub(super) fn read_at(file: &mut File, place: Place) -> std::io::Result<Vec<u8>> {
    let mut bytes = vec![0; place.bytes as usize];
    file.seek(SeekFrom::Start(place.offset))?;
    file.read_exact(&mut bytes)?;
    Ok(bytes)
}

/// The error in words a person can act on.
pub(super) fn io_reason(error: &std::io::Error) -> String {
    match error.kind() {
        std::io::ErrorKind::StorageFull => format!("{error}; make room on the disk"),
        std::io::ErrorKind::ReadOnlyFilesystem | std::io::ErrorKind::PermissionDenied => {
            format!("{error}; this process must be able to write there")
        }
        _ => error.to_string(),
    }
}

/// Writes frames to a file in large pieces.
pub(super) struct Appender<'a> {
    file: &'a mut File,
    buffer: Vec<u8>,
    /// Where the buffer's first byte goes.
    base: u64,
}

#[derive(Debug, thiserror::Error)]
pub(super) enum PushError {
    /// The entry cannot be a frame; nothing was written of it.
    #[error("{0}")]
    Frame(String),
    /// The file took nothing, or only a part.
    #[error("write the log: {}", io_reason(.0))]
    File(std::io::Error),
}

impl From<PushError> for String {
    fn from(error: PushError) -> String {
        error.to_string()
    }
}

impl<'a> Appender<'a> {
    /// Writes from this offset on.
    pub(super) fn at(file: &'a mut File, base: u64) -> Result<Self, String> {
        file.seek(SeekFrom::Start(base)).map_err(|error| format!("seek in the log: {error}"))?;
        Ok(Self { file, buffer: Vec::new(), base })
    }

    /// Appends one frame.
    pub(super) fn push(
        &mut self,
        frame: impl FnOnce(&mut Vec<u8>, u64) -> Result<(), String>,
    ) -> Result<Place, PushError> {
        let start = self.buffer.len();
        frame(&mut self.buffer, self.base).map_err(PushError::Frame)?;
        let place = Place { offset: self.base + start as u64, bytes: (self.buffer.len() - start) as u64 };
        if self.buffer.len() >= WRITE_BYTES {
            self.write()?;
        }
        Ok(place)
    }

    fn write(&mut self) -> Result<(), PushError> {
        self.file.write_all(&self.buffer).map_err(PushError::File)?;
        self.base += self.buffer.len() as u64;
        self.buffer.clear();
        Ok(())
    }

    /// Writes what is left and tells where the file ends now.
    pub(super) fn finish(mut self) -> Result<u64, PushError> {
        self.write()?;
        Ok(self.base)
    }
}
