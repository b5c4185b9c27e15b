//! A private directory for what a command needs while it runs.

use std::fs::DirBuilder;
use std::os::unix::fs::DirBuilderExt;
use std::path::{Path, PathBuf};

/// A directory that goes with this value, unless it is told to stay.
#[derive(Debug)]
pub(crate) struct Scratch {
    path: PathBuf,
    keep: bool,
}

impl Scratch {
    /// Makes one in the system's place for such things; only this user can look into it: there are keys in it.
    pub(crate) fn make(what: &str) -> Result<Self, String> {
        Self::make_in(&std::env::temp_dir(), what)
    }

    /// Makes one in this directory.
    pub(crate) fn make_in(dir: &Path, what: &str) -> Result<Self, String> {
        // The number keeps it apart from what a killed process with the same id has left behind.
        let path = dir.join(format!("starling-{what}-{}-{:04x}", std::process::id(), fastrand::u16(..)));
        DirBuilder::new().mode(0o700).create(&path).map_err(|error| format!("{}: {error}", path.display()))?;
        Ok(Self { path, keep: false })
    }

    pub(crate) fn path(&self) -> &Path {
        &self.path
    }

    /// Lets it stay when this value goes.
    pub(crate) fn keep(&mut self) {
        self.keep = true;
    }
}

impl Drop for Scratch {
    fn drop(&mut self) {
        if !self.keep {
            let _ = std::fs::remove_dir_all(&self.path);
        }
    }
}
