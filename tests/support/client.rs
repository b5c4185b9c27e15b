//! A client of one connection that is kept, as most programs have them.

use std::io::{self, Read, Write};
use std::net::{SocketAddr, TcpStream};

use super::DEADLINE;

/// A client's connection that is kept.
pub(crate) struct Line {
    stream: TcpStream,
    unread: Vec<u8>,
}

/// An answer, whole.
#[derive(Debug)]
pub(crate) struct Said {
    pub(crate) status: u16,
    head: String,
    pub(crate) body: String,
}

impl Line {
    pub(crate) fn to(address: SocketAddr) -> Line {
        let stream = TcpStream::connect(address).unwrap();
        stream.set_read_timeout(Some(DEADLINE)).unwrap();
        Line { stream, unread: Vec::new() }
    }

    /// One request without a body, and its answer, head and body.
    pub(crate) fn ask(&mut self, method: &str, service: &str) -> Result<String, String> {
        self.tell(method, service, "/", "", "").map(|said| said.head + &said.body)
    }

    /// A GET of `/`: its answer. It must come whole.
    pub(crate) fn get(&mut self, service: &str) -> Said {
        self.tell("GET", service, "/", "", "").unwrap_or_else(|error| panic!("GET of {service}: {error}"))
    }

    /// One request, with these lines among its fields, and its answer.
    pub(crate) fn tell(
        &mut self,
        method: &str,
        service: &str,
        path: &str,
        fields: &str,
        body: &str,
    ) -> Result<Said, String> {
        let length = body.len();
        let head =
            format!("{method} {path} HTTP/1.1\r\nhost: {service}.mesh\r\n{fields}content-length: {length}\r\n\r\n");
        self.send(&[head.as_bytes(), body.as_bytes()].concat()).map_err(|error| error.to_string())?;
        self.hear()
    }

    /// Sends these bytes.
    pub(crate) fn send(&mut self, bytes: &[u8]) -> io::Result<()> {
        self.stream.write_all(bytes)
    }

    /// Waits for the next answer of a length that is given.
    pub(crate) fn hear(&mut self) -> Result<Said, String> {
        let mut buffer = [0; 16_384];
        loop {
            if let Some((said, length)) = whole(&self.unread) {
                self.unread.drain(..length);
                return Ok(said);
            }
            match self.stream.read(&mut buffer) {
                Ok(0) => return Err(format!("closed after {:?}", String::from_utf8_lossy(&self.unread))),
                Ok(n) => self.unread.extend_from_slice(&buffer[..n]),
                Err(error) => return Err(error.to_string()),
            }
        }
    }
}

/// The answer at the beginning of these bytes and how long it is, if it is all there.
fn whole(bytes: &[u8]) -> Option<(Said, usize)> {
    let end = bytes.windows(4).position(|four| four == b"\r\n\r\n")? + 4;
    let head = String::from_utf8_lossy(&bytes[..end]).into_owned();
    let length = head.lines().find_map(|line| line.strip_prefix("content-length: ")?.parse().ok()).unwrap_or(0);
    let body = String::from_utf8_lossy(bytes.get(end..end + length)?).into_owned();
    let status = head.split(' ').nth(1).and_then(|status| status.parse().ok()).unwrap_or_default();
    Some((Said { status, head, body }, end + length))
}

impl Said {
    /// A field of it, named in small letters; empty without it.
    pub(crate) fn field(&self, name: &str) -> &str {
        self.head.lines().find_map(|line| line.strip_prefix(name)?.strip_prefix(": ")).unwrap_or_default()
    }

    /// Which guard or hop answered in the place of an application, and why.
    pub(crate) fn reason(&self) -> &str {
        self.field("x-starling-reason")
    }
}
