//! How a command ends when it does not end well, and the exit code that says so.

use std::io;

/// Why a command failed.
#[derive(Debug, thiserror::Error)]
pub(crate) enum Failure {
    /// The mesh (or this machine) said no. Exit code 1.
    #[error("{0}")]
    Refused(String),
    /// The command line makes no sense. Exit code 2.
    #[error("{0}")]
    Usage(String),
    /// No peer could be reached. Exit code 3.
    #[error("{0}")]
    NoPeer(String),
    /// It cannot be done here: not with this machine, or not to real nodes. Exit code 4.
    #[error("{0}")]
    Unable(String),
    /// Nobody reads the output any more; not worth a word.
    #[error("the output was closed")]
    OutputClosed,
}

impl Failure {
    /// The process's exit code.
    pub(crate) fn exit_code(&self) -> u8 {
        match self {
            Failure::OutputClosed => 0,
            Failure::Refused(_) => 1,
            Failure::Usage(_) => 2,
            Failure::NoPeer(_) => 3,
            Failure::Unable(_) => 4,
        }
    }
}

impl From<io::Error> for Failure {
    fn from(error: io::Error) -> Self {
        match error.kind() {
            io::ErrorKind::BrokenPipe => Failure::OutputClosed,
            _ => Failure::Refused(error.to_string()),
        }
    }
}
