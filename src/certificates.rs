//! Certificates that are renewed while the node runs: their files are read again when they change, and what begins after
//! that shows the new ones. Nobody has to be told, so a certificate may live for minutes.
//!
//! New files that cannot be used change nothing: the log says why, once, and they are tried again, for time may be all that
//! is wrong with them.

use std::fs;
use std::hash::{DefaultHasher, Hash, Hasher};
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use starling_net::Handle;
use starling_proxy::AppTls;
use tokio::task::AbortHandle;

use crate::node;
use crate::settings::Settings;

/// How often the files are looked at. They are small, and a certificate and its key are not written in one moment: a change
/// counts when the next look finds it the same.
const LOOK: Duration = Duration::from_secs(2);
/// After how many looks files that could not be used are tried again: after a minute.
const AGAIN: u32 = 30;

/// The files, as they were before they were read for the start.
pub(crate) struct Files {
    node: Watched,
    apps: Watched,
}

/// A task that renews certificates, until this is dropped.
pub(crate) struct Renewing(AbortHandle);

impl Files {
    pub(crate) fn of(settings: &Settings) -> Self {
        let tls = &settings.tls;
        let apps = &settings.proxy.tls;
        Self {
            node: Watched::new([&tls.ca, &tls.cert, &tls.key].into_iter().flatten().cloned().collect()),
            apps: Watched::new(
                [&apps.cert, &apps.key].into_iter().filter(|path| !path.is_empty()).map(PathBuf::from).collect(),
            ),
        }
    }

    /// Looks at them again and again.
    pub(crate) fn watch(self, settings: Settings, handle: Handle, apps: Option<Arc<AppTls>>) -> Renewing {
        let Self { node: mut node_files, apps: mut app_files } = self;
        let mut look = move || {
            node_files.look("this node's certificate", || {
                handle.renew(node::identity(&settings).map_err(|error| error.to_string()))
            });
            if let Some(tls) = &apps {
                app_files.look("the certificate for applications", || tls.renew());
            }
        };
        let task = tokio::spawn(async move {
            loop {
                tokio::time::sleep(LOOK).await;
                // A disk may be slow.
                let looking = tokio::task::spawn_blocking(move || {
                    look();
                    look
                });
                look = match looking.await {
                    Ok(look) => look,
                    Err(error) => return tracing::error!("certificates are not renewed any more: {error}"),
                };
            }
        });
        Renewing(task.abort_handle())
    }
}

impl Drop for Renewing {
    fn drop(&mut self) {
        self.0.abort();
    }
}

/// Files that make one certificate.
struct Watched {
    files: Vec<PathBuf>,
    /// What of them was last read.
    read: u64,
    /// What they hold by now, if that is something else.
    settling: Option<u64>,
    /// Why they could not be used, and the looks since.
    refused: Option<(String, u32)>,
}

impl Watched {
    fn new(files: Vec<PathBuf>) -> Self {
        let read = digest(&files);
        Self { files, read, settling: None, refused: None }
    }

    fn look(&mut self, what: &str, renew: impl FnOnce() -> Result<(), String>) {
        if self.files.is_empty() || !self.is_due(digest(&self.files)) {
            return;
        }
        match renew() {
            Ok(()) => {
                tracing::info!("{what} was renewed: what begins from now on shows the new one");
                self.refused = None;
            }
            Err(why) => {
                if self.refused.as_ref().is_none_or(|(before, _)| *before != why) {
                    tracing::error!("{what} cannot be renewed, the one before it stays: {why}");
                }
                self.refused = Some((why, 0));
            }
        }
    }

    /// Whether files that hold this now should be read.
    fn is_due(&mut self, now: u64) -> bool {
        if now != self.read {
            let settled = self.settling.replace(now) == Some(now);
            if settled {
                (self.read, self.settling) = (now, None);
            }
            return settled;
        }
        self.settling = None;
        let Some((_, looks)) = &mut self.refused else { return false };
        *looks += 1;
        *looks >= AGAIN
    }
}

/// Tells what files hold from what they held, missing ones included.
fn digest(files: &[PathBuf]) -> u64 {
    let mut hasher = DefaultHasher::new();
    for file in files {
        fs::read(file).ok().hash(&mut hasher);
    }
    hasher.finish()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn files_are_read_when_they_have_changed_and_settled() {
        let mut files = Watched { files: Vec::new(), read: 1, settling: None, refused: None };
        let due = [1, 2, 3, 3, 3, 4, 3, 4, 4].map(|now| files.is_due(now));
        assert_eq!(due, [false, false, false, true, false, false, false, false, true]);
    }

    #[test]
    fn files_that_could_not_be_used_are_tried_again() {
        let mut files = Watched { files: Vec::new(), read: 1, settling: None, refused: Some(("why".into(), 0)) };
        let looks = (1..=AGAIN).filter(|_| files.is_due(1)).count();
        assert_eq!(looks, 1, "at the last of them");
        assert!(!files.is_due(2) && files.is_due(2), "and when they change");
    }
}
