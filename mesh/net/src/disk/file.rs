//! Writing frames to a file, and reading a file whatever its disk says.

use std::io;

use super::layer::{RawFile, io_reason, read_exact_at, write_all_at};

/// How much is gathered in memory between two writes to the file, and read at once.
const CHUNK_BYTES: usize = 1024 * 1024;
/// Where a chunk cannot be read, it is read in pieces of this size: the smallest a disk loses.
const SECTOR_BYTES: usize = 4096;

/// Where a frame is in its file.
#[derive(Debug, Clone, Copy)]
pub(super) struct Place {
    pub(super) offset: u64,
    pub(super) bytes: u64,
}

/// What stands at a place.
pub(super) fn read_at(file: &mut dyn RawFile, place: Place) -> io::Result<Vec<u8>> {
    let mut bytes = vec![0; place.bytes as usize];
    read_exact_at(file, place.offset, &mut bytes)?;
    Ok(bytes)
}

/// A stretch of a file that its disk does not give back.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Unreadable {
    pub(super) offset: u64,
    pub(super) bytes: u64,
    /// What the operating system says.
    pub(super) reason: String,
}

impl Unreadable {
    /// Whether any of it lies within these bytes.
    pub(super) fn is_in(&self, offset: u64, bytes: u64) -> bool {
        self.offset < offset + bytes && offset < self.offset + self.bytes
    }
}

/// Reads a whole file. What cannot be read is zeros, and told.
pub(super) fn read_all(file: &mut dyn RawFile) -> io::Result<(Vec<u8>, Vec<Unreadable>)> {
    let mut bytes = vec![0; file.length()? as usize];
    let mut unreadable: Vec<Unreadable> = Vec::new();
    for (at, chunk) in bytes.chunks_mut(CHUNK_BYTES).enumerate() {
        let start = (at * CHUNK_BYTES) as u64;
        if read_exact_at(file, start, chunk).is_err() {
            read_by_sector(file, start, chunk, &mut unreadable);
        }
    }
    Ok((bytes, unreadable))
}

/// Fills the chunk with what can be read of it.
fn read_by_sector(file: &mut dyn RawFile, start: u64, chunk: &mut [u8], unreadable: &mut Vec<Unreadable>) {
    for (at, sector) in chunk.chunks_mut(SECTOR_BYTES).enumerate() {
        let (offset, bytes) = (start + (at * SECTOR_BYTES) as u64, sector.len() as u64);
        let Err(error) = read_exact_at(file, offset, sector) else { continue };
        sector.fill(0);
        match unreadable.last_mut().filter(|last| last.offset + last.bytes == offset) {
            Some(last) => last.bytes += bytes,
            None => unreadable.push(Unreadable { offset, bytes, reason: io_reason(&error) }),
        }
    }
}

/// Writes frames to a file in large pieces.
pub(super) struct Appender<'a> {
    file: &'a mut dyn RawFile,
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
    File(io::Error),
}

impl From<PushError> for String {
    fn from(error: PushError) -> String {
        error.to_string()
    }
}

impl<'a> Appender<'a> {
    /// Writes from this offset on.
    pub(super) fn at(file: &'a mut dyn RawFile, base: u64) -> Self {
        Self { file, buffer: Vec::new(), base }
    }

    /// Appends one frame.
    pub(super) fn push(
        &mut self,
        frame: impl FnOnce(&mut Vec<u8>, u64) -> Result<(), String>,
    ) -> Result<Place, PushError> {
        let start = self.buffer.len();
        frame(&mut self.buffer, self.base).map_err(PushError::Frame)?;
        let place = Place { offset: self.base + start as u64, bytes: (self.buffer.len() - start) as u64 };
        if self.buffer.len() >= CHUNK_BYTES {
            self.write()?;
        }
        Ok(place)
    }

    fn write(&mut self) -> Result<(), PushError> {
        write_all_at(self.file, self.base, &self.buffer).map_err(PushError::File)?;
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
