//! Bytes that have come and have not gone on yet.
//!
//! A connection that waits holds no memory: its first bytes land in a buffer the thread shares, and only then does it
//! get one of its own, from those that others on the thread have given back.

use std::cell::RefCell;
use std::io;
use std::pin::Pin;
use std::task::{Context, Poll, ready};

use tokio::io::{AsyncRead, ReadBuf};

/// The size of a buffer: an ordinary head with a small body, twice over.
const SIZE: usize = 16 * 1024;
/// How far a buffer grows for a body that keeps filling it: fewer and larger reads.
pub(crate) const LARGE: usize = 64 * 1024;
/// How many unused buffers a thread keeps.
const SPARES: usize = 64;

thread_local! {
    static LANDING: RefCell<Box<[u8]>> = RefCell::new(vec![0; SIZE].into());
    static SPARE: RefCell<Vec<Box<[u8]>>> = const { RefCell::new(Vec::new()) };
}

/// A buffer between a connection and whoever uses its bytes.
#[derive(Default)]
pub(crate) struct Buffer {
    /// All of it; nothing while nothing has come.
    bytes: Box<[u8]>,
    start: usize,
    end: usize,
}

impl Buffer {
    /// What is there.
    pub(crate) fn data(&self) -> &[u8] {
        &self.bytes[self.start..self.end]
    }

    /// Whether nothing is there.
    pub(crate) fn is_empty(&self) -> bool {
        self.start == self.end
    }

    /// The first `n` bytes have been used.
    pub(crate) fn consume(&mut self, n: usize) {
        self.start += n;
        if self.start >= self.end {
            (self.start, self.end) = (0, 0);
        }
    }

    /// Nothing of it will be used.
    pub(crate) fn clear(&mut self) {
        (self.start, self.end) = (0, 0);
    }

    /// Gives its memory back while nothing is there.
    pub(crate) fn release(&mut self) {
        if self.is_empty() && !self.bytes.is_empty() {
            let bytes = std::mem::take(&mut self.bytes);
            if bytes.len() == SIZE {
                SPARE.with_borrow_mut(|spare| {
                    if spare.len() < SPARES {
                        spare.push(bytes);
                    }
                });
            }
        }
    }

    /// Takes in bytes that were read elsewhere; nothing may be there.
    pub(crate) fn keep(&mut self, bytes: &[u8]) {
        debug_assert!(self.is_empty(), "what is there would be lost");
        if bytes.len() > self.bytes.len() {
            self.release();
            let size = bytes.len().max(SIZE);
            let spare = SPARE.with_borrow_mut(|spare| if size == SIZE { spare.pop() } else { None });
            self.bytes = spare.unwrap_or_else(|| vec![0; size].into());
        }
        self.bytes[..bytes.len()].copy_from_slice(bytes);
        (self.start, self.end) = (0, bytes.len());
    }

    /// Reads at least one byte more, or 0 at the end. Grows up to `most`; full beyond that is an error.
    pub(crate) fn poll_fill<R: AsyncRead + Unpin>(
        &mut self,
        from: &mut R,
        cx: &mut Context<'_>,
        most: usize,
    ) -> Poll<io::Result<usize>> {
        if self.bytes.is_empty() {
            return self.poll_first(from, cx);
        }
        if self.end == self.bytes.len() {
            self.make_room(most)?;
        }
        let mut space = ReadBuf::new(&mut self.bytes[self.end..]);
        ready!(Pin::new(from).poll_read(cx, &mut space))?;
        let read = space.filled().len();
        self.end += read;
        Poll::Ready(Ok(read))
    }

    fn poll_first<R: AsyncRead + Unpin>(&mut self, from: &mut R, cx: &mut Context<'_>) -> Poll<io::Result<usize>> {
        LANDING.with_borrow_mut(|landing| {
            let mut space = ReadBuf::new(landing);
            ready!(Pin::new(from).poll_read(cx, &mut space))?;
            let read = space.filled();
            if !read.is_empty() {
                self.bytes = SPARE.with_borrow_mut(Vec::pop).unwrap_or_else(|| vec![0; SIZE].into());
                self.bytes[..read.len()].copy_from_slice(read);
                (self.start, self.end) = (0, read.len());
            }
            Poll::Ready(Ok(read.len()))
        })
    }

    fn make_room(&mut self, most: usize) -> io::Result<()> {
        if self.start > 0 {
            self.bytes.copy_within(self.start..self.end, 0);
            (self.start, self.end) = (0, self.end - self.start);
            return Ok(());
        }
        if self.bytes.len() >= most {
            return Err(io::Error::new(io::ErrorKind::QuotaExceeded, "more than fits came at once"));
        }
        let mut larger = vec![0; (2 * self.bytes.len()).min(most.max(SIZE))];
        larger[..self.end].copy_from_slice(&self.bytes[..self.end]);
        self.bytes = larger.into();
        Ok(())
    }
}

impl Drop for Buffer {
    fn drop(&mut self) {
        self.clear();
        self.release();
    }
}

#[cfg(test)]
mod tests {
    use std::future::poll_fn;

    use super::*;

    #[tokio::test]
    async fn a_buffer_holds_memory_only_while_it_holds_bytes() {
        let mut from: &[u8] = b"hello";
        let mut buffer = Buffer::default();
        assert_eq!(poll_fn(|cx| buffer.poll_fill(&mut from, cx, SIZE)).await.unwrap(), 5);
        buffer.consume(2);
        buffer.release();
        assert_eq!(buffer.data(), b"llo");
        buffer.consume(3);
        buffer.release();
        assert!(buffer.bytes.is_empty());
        assert_eq!(poll_fn(|cx| buffer.poll_fill(&mut from, cx, SIZE)).await.unwrap(), 0);
    }

    #[tokio::test]
    async fn a_buffer_grows_to_its_bound_and_says_so_there() {
        let bytes = vec![7; 3 * SIZE];
        let mut from: &[u8] = &bytes;
        let mut buffer = Buffer::default();
        while buffer.data().len() < 2 * SIZE {
            assert!(poll_fn(|cx| buffer.poll_fill(&mut from, cx, 2 * SIZE)).await.unwrap() > 0);
        }
        assert!(poll_fn(|cx| buffer.poll_fill(&mut from, cx, 2 * SIZE)).await.is_err());
        buffer.consume(10);
        assert_eq!(poll_fn(|cx| buffer.poll_fill(&mut from, cx, 2 * SIZE)).await.unwrap(), 10);
    }
}
