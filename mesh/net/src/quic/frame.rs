//! Frames on a stream: a length of four bytes, big-endian, then that many bytes.

use bytes::{Buf, Bytes, BytesMut};
use quinn::{ReadError, RecvStream};

/// The bytes of the length in front of every frame.
const HEADER: usize = 4;
/// The most that is taken from a stream at once.
const READ_CHUNK: usize = 64 * 1024;

/// A frame with its length in front.
pub(super) fn framed(body: &[u8]) -> Bytes {
    let mut frame = Vec::with_capacity(HEADER + body.len());
    // Bodies are far below 4 GiB: senders refuse what is over the message limit.
    frame.extend_from_slice(&(body.len() as u32).to_be_bytes());
    frame.extend_from_slice(body);
    frame.into()
}

/// Why no frame came.
#[derive(Debug, thiserror::Error)]
pub(crate) enum FrameError {
    /// The stream or its connection ended.
    #[error(transparent)]
    Read(#[from] ReadError),
    /// The sender announces more than is allowed; nothing of it was kept.
    #[error("a frame of {bytes} bytes was announced, {limit} are allowed")]
    TooLong { bytes: usize, limit: usize },
    /// The stream ended within a frame: the sender was interrupted.
    #[error("the stream ended within a frame")]
    CutOff,
}

/// Cuts a stream into frames. Memory grows with what has arrived, not with what is announced.
pub(super) struct Frames {
    stream: RecvStream,
    buffer: BytesMut,
    limit: usize,
}

impl Frames {
    pub(super) fn new(stream: RecvStream, limit: usize) -> Self {
        Self { stream, buffer: BytesMut::new(), limit }
    }

    /// The next frame; `None` at the end of the stream.
    pub(super) async fn next(&mut self) -> Result<Option<Bytes>, FrameError> {
        loop {
            if let Some(frame) = cut(&mut self.buffer, self.limit)? {
                return Ok(Some(frame));
            }
            match self.stream.read_chunk(READ_CHUNK, true).await? {
                Some(chunk) => self.buffer.extend_from_slice(&chunk.bytes),
                None if self.buffer.is_empty() => return Ok(None),
                None => return Err(FrameError::CutOff),
            }
        }
    }
}

/// The first frame of what has arrived, once it is whole.
pub(crate) fn cut(buffer: &mut BytesMut, limit: usize) -> Result<Option<Bytes>, FrameError> {
    let Some(header) = buffer.first_chunk::<HEADER>() else { return Ok(None) };
    let bytes = u32::from_be_bytes(*header) as usize;
    if bytes > limit {
        return Err(FrameError::TooLong { bytes, limit });
    }
    if buffer.len() < HEADER + bytes {
        return Ok(None);
    }
    buffer.advance(HEADER);
    Ok(Some(buffer.split_to(bytes).freeze()))
}

/// Reads one frame from the beginning of a stream and leaves the rest of it alone.
pub(super) async fn read_one(stream: &mut RecvStream, limit: usize) -> Result<Vec<u8>, FrameError> {
    let mut header = [0; HEADER];
    read_exact(stream, &mut header).await?;
    let bytes = u32::from_be_bytes(header) as usize;
    if bytes > limit {
        return Err(FrameError::TooLong { bytes, limit });
    }
    let mut body = Vec::new();
    while body.len() < bytes {
        let chunk = stream.read_chunk((bytes - body.len()).min(READ_CHUNK), true).await?;
        body.extend_from_slice(&chunk.ok_or(FrameError::CutOff)?.bytes);
    }
    Ok(body)
}

async fn read_exact(stream: &mut RecvStream, into: &mut [u8]) -> Result<(), FrameError> {
    stream.read_exact(into).await.map_err(|error| match error {
        quinn::ReadExactError::FinishedEarly(_) => FrameError::CutOff,
        quinn::ReadExactError::ReadError(error) => FrameError::Read(error),
    })
}
