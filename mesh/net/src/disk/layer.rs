//! What the log needs of an operating system: a directory and its files, as traits, so that tests can put a disk under
//! it that is full, read-only, or forgets at a power cut what was not synced.

use std::fmt::Debug;
use std::fs::{File, OpenOptions, TryLockError};
use std::io::{self, Read, Seek, SeekFrom, Write};
use std::path::{Path, PathBuf};

/// Its lock is held as long as a process uses the directory; the system lets go of it when the process ends, however
/// it ends.
const LOCK: &str = "lock";

/// How a file is opened.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Open {
    /// To be read and written; made if it is not there.
    OrCreate,
    /// To be read and written; whatever was there is gone.
    Anew,
    /// Only to be read.
    ToRead,
}

/// A directory of files.
pub(super) trait Directory: Debug + Send {
    /// Its path, for people.
    fn path(&self) -> &Path;
    /// Makes it, with all above it, where it does not exist.
    fn create(&self) -> io::Result<()>;
    /// Takes it for this process, until the lock is dropped.
    fn lock(&self) -> Result<Lock, LockError>;
    /// Opens a file in it.
    fn open(&self, name: &str, how: Open) -> io::Result<Box<dyn RawFile>>;
    /// Puts one file in the place of another.
    fn rename(&self, from: &str, to: &str) -> io::Result<()>;
    /// Removes a file.
    fn remove(&self, name: &str) -> io::Result<()>;
    /// Returns when all of the above would survive a power cut.
    fn sync(&self) -> io::Result<()>;
}

/// An open file.
pub(super) trait RawFile: Debug + Send {
    /// How long it is.
    fn length(&mut self) -> io::Result<u64>;
    /// Reads into `buffer` what stands at `offset`; how much, 0 at the end.
    fn read_at(&mut self, offset: u64, buffer: &mut [u8]) -> io::Result<usize>;
    /// Writes at `offset`, perhaps not all; how much.
    fn write_at(&mut self, offset: u64, bytes: &[u8]) -> io::Result<usize>;
    /// Cuts it off, or fills it up with zeros.
    fn set_len(&mut self, length: u64) -> io::Result<()>;
    /// Returns when what was written would survive a power cut. After an error that is true of nothing written since
    /// the last success, however often it is tried again: the kernel may have dropped it.
    fn sync(&mut self) -> io::Result<()>;
}

/// Keeps other processes out of a directory.
pub(super) type Lock = Box<dyn Debug + Send>;

/// Why a directory could not be locked.
pub(super) enum LockError {
    /// Another process has it; its id, when the lock file says so.
    Held(Option<u32>),
    /// The operating system refused.
    Failed(io::Error),
}

/// Reads exactly so much.
pub(super) fn read_exact_at(file: &mut dyn RawFile, offset: u64, buffer: &mut [u8]) -> io::Result<()> {
    let mut done = 0;
    while done < buffer.len() {
        match file.read_at(offset + done as u64, &mut buffer[done..]) {
            Ok(0) => return Err(io::ErrorKind::UnexpectedEof.into()),
            Ok(read) => done += read,
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
            Err(error) => return Err(error),
        }
    }
    Ok(())
}

/// Writes all of it, or fails with a part written.
pub(super) fn write_all_at(file: &mut dyn RawFile, offset: u64, bytes: &[u8]) -> io::Result<()> {
    let mut done = 0;
    while done < bytes.len() {
        match file.write_at(offset + done as u64, &bytes[done..]) {
            Ok(0) => return Err(io::ErrorKind::WriteZero.into()),
            Ok(written) => done += written,
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
            Err(error) => return Err(error),
        }
    }
    Ok(())
}

/// Whether an error speaks of the disk's state, which may pass, and not of a mistake in how it was set up.
pub(super) fn may_pass(error: &io::Error) -> bool {
    use io::ErrorKind as Kind;
    !matches!(error.kind(), Kind::PermissionDenied | Kind::NotADirectory | Kind::IsADirectory | Kind::InvalidInput)
}

/// The error in words a person can act on.
pub(super) fn io_reason(error: &io::Error) -> String {
    match error.kind() {
        io::ErrorKind::StorageFull | io::ErrorKind::QuotaExceeded => format!("{error}; make room on the disk"),
        io::ErrorKind::FileTooLarge => format!("{error}; raise the limit on file sizes (ulimit -f, LimitFSIZE)"),
        io::ErrorKind::ReadOnlyFilesystem => {
            format!("{error}; mount it to be written, after a look at the kernel's log: errors turn disks read-only")
        }
        io::ErrorKind::PermissionDenied => format!("{error}; this process must be able to write there"),
        _ => error.to_string(),
    }
}

/// A directory of the real file system.
#[derive(Debug)]
pub(super) struct RealDirectory(pub(super) PathBuf);

#[derive(Debug)]
struct RealFile(File);

impl RealDirectory {
    /// The file to lock. On a disk that takes no writes it may not be there: the directory itself does as well.
    fn lock_file(&self) -> io::Result<File> {
        let path = self.0.join(LOCK);
        let open = OpenOptions::new().read(true).write(true).create(true).truncate(false).open(&path);
        match open {
            Err(error) if may_pass(&error) => File::open(&path).or_else(|_| File::open(&self.0)),
            open => open,
        }
    }
}

impl Directory for RealDirectory {
    fn path(&self) -> &Path {
        &self.0
    }

    fn create(&self) -> io::Result<()> {
        std::fs::create_dir_all(&self.0)
    }

    fn lock(&self) -> Result<Lock, LockError> {
        let mut file = self.lock_file().map_err(LockError::Failed)?;
        match file.try_lock() {
            Ok(()) => {
                // For people only; a full disk has no room for it.
                let _ = file.set_len(0).and_then(|()| write!(file, "{}", std::process::id()));
                Ok(Box::new(file))
            }
            Err(TryLockError::WouldBlock) => {
                let mut holder = String::new();
                let _ = file.take(20).read_to_string(&mut holder);
                Err(LockError::Held(holder.trim().parse().ok()))
            }
            Err(TryLockError::Error(error)) => Err(LockError::Failed(error)),
        }
    }

    fn open(&self, name: &str, how: Open) -> io::Result<Box<dyn RawFile>> {
        let writes = how != Open::ToRead;
        let mut options = OpenOptions::new();
        options.read(true).write(writes).create(writes).truncate(how == Open::Anew);
        Ok(Box::new(RealFile(options.open(self.0.join(name))?)))
    }

    fn rename(&self, from: &str, to: &str) -> io::Result<()> {
        std::fs::rename(self.0.join(from), self.0.join(to))
    }

    fn remove(&self, name: &str) -> io::Result<()> {
        std::fs::remove_file(self.0.join(name))
    }

    fn sync(&self) -> io::Result<()> {
        // A directory can only be opened for syncing on Unix; elsewhere the rename itself is all there is.
        if cfg!(unix) { File::open(&self.0)?.sync_all() } else { Ok(()) }
    }
}

impl RawFile for RealFile {
    fn length(&mut self) -> io::Result<u64> {
        Ok(self.0.metadata()?.len())
    }

    fn read_at(&mut self, offset: u64, buffer: &mut [u8]) -> io::Result<usize> {
        self.0.seek(SeekFrom::Start(offset))?;
        self.0.read(buffer)
    }

    fn write_at(&mut self, offset: u64, bytes: &[u8]) -> io::Result<usize> {
        self.0.seek(SeekFrom::Start(offset))?;
        self.0.write(bytes)
    }

    fn set_len(&mut self, length: u64) -> io::Result<()> {
        self.0.set_len(length)
    }

    fn sync(&mut self) -> io::Result<()> {
        self.0.sync_data()
    }
}
