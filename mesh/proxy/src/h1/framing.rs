//! Where a body ends (RFC 9112, sections 6 and 7.1), strictly: sizes are hex digits, lines end with CR LF, and whatever
//! else some reader somewhere might accept is an error here. A chunked body is passed on byte for byte; being strict
//! is what makes sure that the next reader sees the same chunks.

use super::fields;

/// How a message's body is delimited.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Framing {
    /// There is none.
    Empty,
    /// So many bytes.
    Length(u64),
    /// Chunks, up to the last one.
    Chunked,
    /// All that comes before the connection ends (responses only).
    UntilClose,
}

/// The longest chunk extension that is passed on, in bytes; nobody is known to use any.
const MAX_EXTENSION: usize = 256;
/// The most bytes of trailers.
const MAX_TRAILERS: usize = 8 * 1024;

/// How much more than its body is gathered of a message that is kept whole: sizes of chunks and trailers.
pub(crate) const FRAMING_ROOM: usize = 16 * 1024;

/// The body breaks the rules.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("{0}")]
pub(crate) struct BadBody(&'static str);

/// A stretch of bytes at the beginning of what was shown.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Span {
    /// So many bytes of the body itself.
    Data(usize),
    /// So many bytes around it.
    Frame(usize),
    /// Nothing yet: more must come.
    More,
    /// The body has ended before these bytes.
    End,
}

/// Reads a body as it comes, and knows what part of it comes next.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum BodyReader {
    /// So many bytes are missing.
    Length(u64),
    /// Before or within a chunk's size: digits read, and their value.
    Size(u8, u64),
    /// Within the chunk's extension, so long already; then its size.
    Extension(usize, u64),
    /// The line feed after the size is missing.
    SizeEnd(u64),
    /// So many bytes of the chunk are missing.
    Chunk(u64),
    /// Two bytes (CR LF), or one, after the chunk's data are missing.
    ChunkEnd(u8),
    /// At the beginning of a trailer line; bytes of trailers so far.
    TrailerLine(usize),
    /// Within the name of a trailer.
    TrailerName(usize, Name),
    /// Within a trailer line, behind its name.
    Trailer(usize),
    /// A trailer line's line feed is missing.
    TrailerEnd(usize),
    /// The last line feed is missing.
    LastEnd,
    /// The end of the connection is missing.
    UntilClose,
    /// Nothing is missing.
    Done,
}

/// The name of a trailer, as far as it says what the field means.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Name {
    bytes: [u8; NAME],
    length: u8,
}

/// One byte more than the longest name that is known, but for those that are known by how they begin.
const NAME: usize = 23;

impl Name {
    fn new(first: u8) -> Self {
        Self { bytes: [0; NAME], length: 0 }.and(first)
    }

    fn and(mut self, byte: u8) -> Self {
        if let Some(place) = self.bytes.get_mut(usize::from(self.length)) {
            *place = byte;
            self.length += 1;
        }
        self
    }

    /// Whether such a field may stand behind a body.
    fn check(&self) -> Result<(), BadBody> {
        let name = std::str::from_utf8(&self.bytes[..usize::from(self.length)]).unwrap_or_default();
        if fields::is_trailer(name) { Ok(()) } else { Err(BadBody("a trailer says what only a head may")) }
    }
}

impl BodyReader {
    /// At the beginning of a body.
    pub(crate) fn new(framing: Framing) -> Self {
        match framing {
            Framing::Empty | Framing::Length(0) => Self::Done,
            Framing::Length(length) => Self::Length(length),
            Framing::Chunked => Self::Size(0, 0),
            Framing::UntilClose => Self::UntilClose,
        }
    }

    /// Whether the body is complete.
    pub(crate) fn is_done(self) -> bool {
        self == Self::Done
    }

    /// Whether the next byte is one of the body itself.
    pub(crate) fn is_in_data(self) -> bool {
        matches!(self, Self::Length(_) | Self::Chunk(_) | Self::UntilClose)
    }

    /// Whether the next byte stands behind the last chunk: a trailer's, or the empty line's at the end.
    pub(crate) fn is_in_trailers(self) -> bool {
        matches!(
            self,
            Self::TrailerLine(_) | Self::TrailerName(..) | Self::Trailer(_) | Self::TrailerEnd(_) | Self::LastEnd
        )
    }

    /// The connection has ended: whether the body may end so.
    pub(crate) fn may_end_here(self) -> bool {
        matches!(self, Self::UntilClose | Self::Done)
    }

    /// How much of the beginning of `data` belongs to the body, framing included.
    ///
    /// # Errors
    /// [`BadBody`] when it breaks the rules; nothing after that can be understood.
    pub(crate) fn take(&mut self, data: &[u8]) -> Result<usize, BadBody> {
        let mut taken = 0;
        loop {
            match self.next(&data[taken..])? {
                Span::Data(n) | Span::Frame(n) => taken += n,
                Span::More | Span::End => return Ok(taken),
            }
        }
    }

    /// What is at the beginning of `data`; the reader is behind it afterwards.
    ///
    /// # Errors
    /// As [`Self::take`].
    pub(crate) fn next(&mut self, data: &[u8]) -> Result<Span, BadBody> {
        if *self == Self::Done {
            return Ok(Span::End);
        }
        let Some(first) = data.first() else { return Ok(Span::More) };
        match self {
            Self::Length(missing) => {
                let n = (*missing).min(data.len() as u64);
                *self = if n == *missing { Self::Done } else { Self::Length(*missing - n) };
                Ok(Span::Data(n as usize))
            }
            Self::UntilClose => Ok(Span::Data(data.len())),
            Self::Chunk(missing) => {
                let n = (*missing).min(data.len() as u64);
                *self = if n == *missing { Self::ChunkEnd(2) } else { Self::Chunk(*missing - n) };
                Ok(Span::Data(n as usize))
            }
            _ => {
                *self = self.after(*first)?;
                Ok(Span::Frame(1))
            }
        }
    }

    /// One byte of framing.
    fn after(self, byte: u8) -> Result<Self, BadBody> {
        Ok(match (self, byte) {
            (Self::Size(digits, size), b'0'..=b'9' | b'a'..=b'f' | b'A'..=b'F') => {
                if digits == 15 {
                    return Err(BadBody("a chunk's size has too many digits"));
                }
                let digit = (byte as char).to_digit(16).map_or(0, u64::from);
                Self::Size(digits + 1, size << 4 | digit)
            }
            (Self::Size(1.., size), b';') => Self::Extension(0, size),
            (Self::Size(1.., size) | Self::Extension(_, size), b'\r') => Self::SizeEnd(size),
            (Self::Size(..), _) => return Err(BadBody("a chunk's size is no hexadecimal number")),
            (Self::Extension(MAX_EXTENSION.., _), _) => return Err(BadBody("a chunk's extension is too long")),
            (Self::Extension(length, size), b'\t' | b' '..=b'~' | 0x80..) => Self::Extension(length + 1, size),
            (Self::SizeEnd(0), b'\n') => Self::TrailerLine(0),
            (Self::SizeEnd(size), b'\n') => Self::Chunk(size),
            (Self::ChunkEnd(2), b'\r') => Self::ChunkEnd(1),
            (Self::ChunkEnd(1), b'\n') => Self::Size(0, 0),
            (Self::TrailerLine(_), b'\r') => Self::LastEnd,
            (
                Self::TrailerLine(MAX_TRAILERS..)
                | Self::TrailerName(MAX_TRAILERS.., _)
                | Self::Trailer(MAX_TRAILERS..),
                _,
            ) => {
                return Err(BadBody("the trailers are too long"));
            }
            (Self::Trailer(length), b'\r') => Self::TrailerEnd(length + 1),
            (Self::TrailerName(length, name), b':') => {
                name.check()?;
                Self::Trailer(length + 1)
            }
            (Self::TrailerName(length, name), byte) if is_token(byte) => Self::TrailerName(length + 1, name.and(byte)),
            (Self::TrailerLine(length), byte) if is_token(byte) => Self::TrailerName(length + 1, Name::new(byte)),
            (Self::Trailer(length), b'\t' | b' '..=b'~' | 0x80..) => Self::Trailer(length + 1),
            (Self::TrailerEnd(length), b'\n') => Self::TrailerLine(length + 1),
            (Self::LastEnd, b'\n') => Self::Done,
            _ => return Err(BadBody("the chunks are malformed")),
        })
    }
}

/// Whether a byte may be part of a field's name (RFC 9110, section 5.6.2).
fn is_token(byte: u8) -> bool {
    byte.is_ascii_alphanumeric() || b"!#$%&'*+-.^_`|~".contains(&byte)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn data_of(framing: Framing, bytes: &[u8], step: usize) -> Result<(Vec<u8>, usize, bool), BadBody> {
        let (mut reader, mut data, mut taken) = (BodyReader::new(framing), Vec::new(), 0);
        for end in (0..=bytes.len()).step_by(step).chain([bytes.len()]) {
            loop {
                match reader.next(&bytes[taken..end.max(taken)])? {
                    Span::Data(n) => {
                        data.extend(&bytes[taken..taken + n]);
                        taken += n;
                    }
                    Span::Frame(n) => taken += n,
                    Span::More | Span::End => break,
                }
            }
        }
        Ok((data, taken, reader.is_done()))
    }

    #[test]
    fn a_body_ends_where_its_framing_says_however_it_is_cut() {
        let chunked = b"5\r\nhello\r\n6;name=\"v\"\r\n world\r\n0\r\nx-sum: 1\r\n\r\nGET";
        for step in 1..=chunked.len() {
            let read = data_of(Framing::Chunked, chunked, step).unwrap();
            assert_eq!(read, (b"hello world".to_vec(), chunked.len() - 3, true));
            assert_eq!(data_of(Framing::Length(5), b"helloGET", step).unwrap(), (b"hello".to_vec(), 5, true));
        }
        assert_eq!(BodyReader::new(Framing::Chunked).take(chunked), Ok(chunked.len() - 3));
        assert_eq!(data_of(Framing::Length(5), b"hell", 1).unwrap(), (b"hell".to_vec(), 4, false));
    }

    #[test]
    fn whatever_two_readers_could_read_differently_is_refused() {
        for bad in [
            &b"\r\n"[..],
            b"-1\r\n",
            b"0x5\r\nhello\r\n",
            b"+5\r\nhello\r\n",
            b" 5\r\nhello\r\n",
            b"5 \r\nhello\r\n",
            b"5\nhello\n0\n\n",
            b"5\r\nhelloX\r\n",
            b"5\r\nhello\n\r\n",
            b"5;\x01\r\nhello\r\n",
            b"5;a\nb\r\nhello\r\n",
            b"fffffffffffffffff\r\n",
            b"0\r\n\n",
            b"0\r\nx: y\n\r\n",
            b"0\r\n folded\r\n\r\n",
            b"0\r\nno field\r\n\r\n",
            b"0\r\nno-field\r\n\r\n",
            b"0\r\nx : y\r\n\r\n",
            b"0\r\n: y\r\n\r\n",
        ] {
            assert!(data_of(Framing::Chunked, bad, 1).is_err(), "{:?}", String::from_utf8_lossy(bad));
        }
        for name in [
            "x-starling-caller-node",
            "X_Starling_Caller_Service",
            "x-starling-deadline-ms",
            "Content-Length",
            "transfer-encoding",
            "host",
            "forwarded",
            "X-Forwarded-For",
            "connection",
            "te",
        ] {
            let chunks = format!("5\r\nhello\r\n0\r\nx-fine: 1\r\n{name}: 1\r\n\r\n");
            assert!(data_of(Framing::Chunked, chunks.as_bytes(), 1).is_err(), "{name}");
        }
        for name in ["grpc-status", "grpc-retry-pushback-ms", "grpc-retry-pushback-msg", "x-checksum-of-all-that-came"]
        {
            let chunks = format!("5\r\nhello\r\n0\r\n{name}: 1\r\n\r\n");
            assert!(data_of(Framing::Chunked, chunks.as_bytes(), 1).unwrap().2, "{name}");
        }
        let endless = [b"0\r\n".to_vec(), vec![b'x'; 9_000]].concat();
        assert!(data_of(Framing::Chunked, &endless, 100).is_err());
        let extended = [b"5;".to_vec(), vec![b'x'; 300]].concat();
        assert!(data_of(Framing::Chunked, &extended, 100).is_err());
    }
}
