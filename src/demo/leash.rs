//! A child process from the demo's side: started, told what to be, given orders, killed.

use std::fs::OpenOptions;
use std::path::Path;
use std::process::Stdio;
use std::time::Duration;

use serde::Serialize;
use tokio::io::{AsyncBufReadExt, AsyncWriteExt, BufReader};
use tokio::process::{Child, ChildStdin, ChildStdout, Command};
use tokio::time::timeout;

use super::part::{Order, Part, Word, parse};

/// How long a child may take until it is ready; a debug build on a busy machine needs a second.
const READY_WITHIN: Duration = Duration::from_secs(20);

/// How long a child may take to carry out an order.
const DONE_WITHIN: Duration = Duration::from_secs(5);

/// Holds a child. Letting go of it ends the child.
pub(crate) struct Leash {
    name: String,
    child: Child,
    orders: ChildStdin,
    words: BufReader<ChildStdout>,
    pid: u32,
}

/// A child that is still getting ready.
pub(crate) struct Starting(Leash);

impl Starting {
    /// Starts this very program as `part`; what it logs goes to a file.
    pub(crate) async fn spawn(program: &Path, name: &str, part: &Part, log: &Path) -> Result<Self, String> {
        let failed = |error: std::io::Error| format!("{name} cannot be started: {error}");
        let log = OpenOptions::new().create(true).append(true).open(log).map_err(failed)?;
        let mut child = Command::new(program)
            .args(["demo", "--part", name])
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .stderr(log)
            .kill_on_drop(true)
            .spawn()
            .map_err(failed)?;
        let (Some(orders), Some(words), Some(pid)) = (child.stdin.take(), child.stdout.take(), child.id()) else {
            return Err(format!("{name} ended before it began"));
        };
        let mut leash = Leash { name: name.to_owned(), child, orders, words: BufReader::new(words), pid };
        leash.tell(part).await?;
        Ok(Self(leash))
    }

    /// Waits until it is ready; what it says of itself.
    pub(crate) async fn ready(mut self) -> Result<(Leash, Word), String> {
        let word = self.0.hear(READY_WITHIN).await?;
        Ok((self.0, word))
    }
}

impl Leash {
    pub(crate) fn pid(&self) -> u32 {
        self.pid
    }

    /// Gives an order and waits until it is carried out.
    pub(crate) async fn order(&mut self, order: &Order) -> Result<(), String> {
        self.tell(order).await?;
        match self.hear(DONE_WITHIN).await? {
            Word::Done => Ok(()),
            other => Err(format!("{} answered an order with {other:?}", self.name)),
        }
    }

    /// SIGKILL: no good-bye, no last write. Returns when the process is gone.
    pub(crate) async fn kill(mut self) -> Result<(), String> {
        self.child.kill().await.map_err(|error| format!("{} cannot be killed: {error}", self.name))
    }

    async fn tell<T: Serialize>(&mut self, what: &T) -> Result<(), String> {
        let mut line = serde_json::to_vec(what).map_err(|error| error.to_string())?;
        line.push(b'\n');
        let told = self.orders.write_all(&line).await;
        told.map_err(|error| format!("{} does not listen any more: {error}", self.name))
    }

    async fn hear(&mut self, within: Duration) -> Result<Word, String> {
        let mut line = String::new();
        let name = &self.name;
        match timeout(within, self.words.read_line(&mut line)).await {
            Err(_) => Err(format!("{name} said nothing for {} s", within.as_secs())),
            Ok(Err(error)) => Err(format!("{name} cannot be heard: {error}")),
            Ok(Ok(0)) => Err(format!("{name} has ended")),
            Ok(Ok(_)) => match parse(&line)? {
                Word::Failed(why) => Err(format!("{name} failed: {why}")),
                word => Ok(word),
            },
        }
    }
}
