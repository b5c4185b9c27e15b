//! An application that misbehaves as it is told, and may be told something else while it runs.

use std::io::{self, Read, Write};
use std::net::{Shutdown, SocketAddr, TcpListener, TcpStream};
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering::SeqCst};
use std::sync::{Arc, Condvar, Mutex, Weak};
use std::thread;
use std::time::Duration;

use socket2::SockRef;

/// How long a body is of which only a beginning is sent.
const WHOLE: usize = 1_000_000;

/// What a backend does with the next request.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Mood {
    /// Answers with its name.
    Well,
    /// Answers, but so much later.
    Slow(Duration),
    /// Answers 201 with the number of the request, counted from 1.
    Numbers,
    /// Answers when it is in another mood.
    Holds,
    /// Answers 200 and 500 in turn.
    Flapping,
    /// Answers with this status at once.
    Answers(u16),
    /// Has too much to do, for so many seconds.
    Refuses429 {
        /// The `Retry-After` of its answers.
        retry_after_s: u32,
    },
    /// Reads the request and resets the connection.
    Resets,
    /// Begins an answer and resets the connection in its body.
    ResetsMidBody,
    /// Begins an answer, sends so many bytes of its body, and says nothing any more.
    HangsHalfway {
        /// How many.
        after: usize,
    },
}

/// One request as it came.
#[derive(Debug, Clone)]
pub(crate) struct Heard {
    /// The head, names of fields in small letters, as sidecars write them.
    pub(crate) head: String,
    /// The body.
    pub(crate) body: Vec<u8>,
}

/// A backend on a port the system chose. Its threads end with their connections.
pub(crate) struct Backend {
    shared: Arc<Shared>,
    address: SocketAddr,
}

struct Shared {
    name: &'static str,
    mood: Mutex<Mood>,
    changed: Condvar,
    heard: Mutex<Vec<Heard>>,
    /// Connections that are open.
    open: AtomicUsize,
    /// Whoever connects is not served any more.
    is_dead: AtomicBool,
    /// To end them all at once.
    connections: Mutex<Vec<Weak<TcpStream>>>,
}

impl Backend {
    pub(crate) fn start(name: &'static str, mood: Mood) -> Backend {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let address = listener.local_addr().unwrap();
        let shared = Arc::new(Shared {
            name,
            mood: Mutex::new(mood),
            changed: Condvar::new(),
            heard: Mutex::new(Vec::new()),
            open: AtomicUsize::new(0),
            is_dead: AtomicBool::new(false),
            connections: Mutex::new(Vec::new()),
        });
        let door = shared.clone();
        thread::spawn(move || {
            for stream in listener.incoming().map_while(Result::ok) {
                if door.is_dead.load(SeqCst) {
                    return;
                }
                let stream = Arc::new(stream);
                door.connections.lock().unwrap().push(Arc::downgrade(&stream));
                door.open.fetch_add(1, SeqCst);
                let shared = door.clone();
                thread::spawn(move || {
                    let _ = shared.serve(&stream); // however it ended
                    drop(stream);
                    shared.open.fetch_sub(1, SeqCst);
                });
            }
        });
        Backend { shared, address }
    }

    /// What it does from the next request on; requests it holds are answered.
    pub(crate) fn becomes(&self, mood: Mood) {
        *self.shared.mood.lock().unwrap() = mood;
        self.shared.changed.notify_all();
    }

    /// Resets all its connections, and refuses new ones.
    pub(crate) fn dies(&self) {
        self.shared.is_dead.store(true, SeqCst);
        let _ = TcpStream::connect(self.address); // whoever waits for connections looks up
        for stream in self.shared.connections.lock().unwrap().drain(..).filter_map(|stream| stream.upgrade()) {
            reset(&stream);
            let _ = stream.shutdown(Shutdown::Both); // it may have ended
        }
        self.becomes(Mood::Resets);
    }

    /// Its port, as the command line wants it.
    pub(crate) fn port(&self) -> String {
        self.address.port().to_string()
    }

    /// How many requests have reached it.
    pub(crate) fn asked(&self) -> usize {
        self.shared.heard.lock().unwrap().len()
    }

    /// How many of them were of this method.
    pub(crate) fn asked_to(&self, method: &str) -> usize {
        let begins = format!("{method} ");
        self.shared.heard.lock().unwrap().iter().filter(|heard| heard.head.starts_with(&begins)).count()
    }

    /// All that has reached it.
    pub(crate) fn heard(&self) -> Vec<Heard> {
        self.shared.heard.lock().unwrap().clone()
    }

    /// How many connections to it are open.
    pub(crate) fn open(&self) -> usize {
        self.shared.open.load(SeqCst)
    }
}

impl Drop for Backend {
    fn drop(&mut self) {
        self.dies();
    }
}

impl Shared {
    fn serve(&self, stream: &TcpStream) -> io::Result<()> {
        let mut unread = Vec::new();
        while let Some(heard) = next_request(stream, &mut unread)? {
            let count = {
                let mut all = self.heard.lock().unwrap();
                all.push(heard);
                all.len()
            };
            let mood = *self.mood.lock().unwrap(); // not held while it answers
            if !self.answer(stream, mood, count)? {
                return Ok(());
            }
        }
        Ok(())
    }

    /// Does with a request what the mood says. Whether the connection goes on.
    fn answer(&self, mut stream: &TcpStream, mood: Mood, count: usize) -> io::Result<bool> {
        match mood {
            Mood::Well => say(stream, 200, "", self.name.as_bytes())?,
            Mood::Slow(delay) => {
                // Who is not waited for any more has nothing more to do.
                stream.set_read_timeout(Some(delay))?;
                let gone = matches!(stream.peek(&mut [0]), Ok(0));
                stream.set_read_timeout(None)?;
                if gone {
                    return Ok(false);
                }
                say(stream, 200, "", self.name.as_bytes())?;
            }
            Mood::Holds => {
                let held = self.mood.lock().unwrap();
                let next = *self.changed.wait_while(held, |mood| *mood == Mood::Holds).unwrap();
                return self.answer(stream, next, count);
            }
            Mood::Flapping if count.is_multiple_of(2) => say(stream, 200, "", self.name.as_bytes())?,
            Mood::Flapping => say(stream, 500, "", b"down")?,
            Mood::Numbers => say(stream, 201, "", format!("entry {count}").as_bytes())?,
            Mood::Answers(status) => say(stream, status, "", self.name.as_bytes())?,
            Mood::Refuses429 { retry_after_s } => {
                say(stream, 429, &format!("retry-after: {retry_after_s}\r\n"), b"too much")?;
            }
            Mood::Resets => {
                reset(stream);
                return Ok(false);
            }
            Mood::ResetsMidBody => {
                begin(stream, WHOLE / 2)?;
                reset(stream);
                return Ok(false);
            }
            Mood::HangsHalfway { after } => {
                begin(stream, after)?;
                // Until nobody waits for the rest.
                let _ = stream.read(&mut [0]);
                return Ok(false);
            }
        }
        Ok(true)
    }
}

/// The end of the connection is a reset, and whatever was not read is lost.
fn reset(stream: &TcpStream) {
    let _ = SockRef::from(stream).set_linger(Some(Duration::ZERO)); // it may have ended
}

fn say(mut stream: &TcpStream, status: u16, fields: &str, body: &[u8]) -> io::Result<()> {
    let head = format!("HTTP/1.1 {status} so\r\ncontent-length: {}\r\n{fields}\r\n", body.len());
    stream.write_all(&[head.as_bytes(), body].concat())
}

/// A long answer of which so much comes.
fn begin(mut stream: &TcpStream, sent: usize) -> io::Result<()> {
    let head = format!("HTTP/1.1 200 so\r\ncontent-length: {WHOLE}\r\n\r\n");
    stream.write_all(&[head.as_bytes(), &vec![b'x'; sent]].concat())
}

/// The next request with a body of a length that is given, or none; nothing when the connection has ended.
fn next_request(mut stream: &TcpStream, unread: &mut Vec<u8>) -> io::Result<Option<Heard>> {
    let mut buffer = [0; 16_384];
    loop {
        let end = unread.windows(4).position(|four| four == b"\r\n\r\n").map(|at| at + 4);
        if let Some(end) = end {
            let head = String::from_utf8_lossy(&unread[..end]).into_owned();
            let length = head.lines().find_map(|line| line.strip_prefix("content-length: ")?.parse().ok());
            let whole = end + length.unwrap_or(0);
            if unread.len() >= whole {
                let body = unread[end..whole].to_vec();
                unread.drain(..whole);
                return Ok(Some(Heard { head, body }));
            }
        }
        match stream.read(&mut buffer)? {
            0 => return Ok(None),
            n => unread.extend_from_slice(&buffer[..n]),
        }
    }
}
