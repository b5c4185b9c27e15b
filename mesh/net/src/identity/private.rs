//! What other users of this host must not read or replace: keys, and the directory of a throw-away authority.

use std::fs;
use std::io;
use std::path::Path;

use super::IdentityError;

/// Makes a directory for this user alone, or checks that the one there is: whoever else could write to it could put
/// an authority of their own into it.
pub(super) fn directory(dir: &Path) -> Result<(), IdentityError> {
    if let Some(above) = dir.parent() {
        fs::create_dir_all(above).map_err(|error| IdentityError::file(above, error))?;
    }
    match make(dir) {
        Ok(()) => Ok(()),
        Err(error) if error.kind() == io::ErrorKind::AlreadyExists => check(dir),
        Err(error) => Err(IdentityError::file(dir, error)),
    }
}

#[cfg(unix)]
fn make(dir: &Path) -> io::Result<()> {
    use std::os::unix::fs::DirBuilderExt;
    fs::DirBuilder::new().mode(0o700).create(dir)
}

#[cfg(unix)]
fn check(dir: &Path) -> Result<(), IdentityError> {
    use std::os::unix::fs::{MetadataExt, PermissionsExt};
    let failed = |error| IdentityError::file(dir, error);
    let wrong = |why: String| Err(IdentityError::invalid(&dir.display().to_string(), why));
    let found = fs::symlink_metadata(dir).map_err(failed)?;
    if !found.is_dir() {
        return wrong("is not a directory (a link to one will not do): remove it, or set TMPDIR elsewhere".into());
    }
    let (theirs, ours) = (found.uid(), own_uid(dir)?);
    if theirs != ours {
        return wrong(format!(
            "belongs to user {theirs}, this process runs as user {ours}: have it removed, or set TMPDIR to a directory of your own"
        ));
    }
    if found.mode() & 0o077 != 0 {
        // Ours, so nobody but a careless mask has opened it; what others may have put there meanwhile is not trusted.
        if found.mode() & 0o022 != 0 {
            return wrong(format!("can be written to by other users (mode {:o}): remove it", found.mode() & 0o777));
        }
        fs::set_permissions(dir, fs::Permissions::from_mode(0o700)).map_err(failed)?;
    }
    Ok(())
}

/// The user this process makes files as, found by making one: the system's own word for it needs no unsafe code.
#[cfg(unix)]
fn own_uid(beside: &Path) -> Result<u32, IdentityError> {
    use std::os::unix::fs::MetadataExt;
    let name = format!("starling-who-{}-{:08x}.tmp", std::process::id(), fastrand::u32(..));
    let path = beside.with_file_name(name);
    let made = fs::OpenOptions::new().write(true).create_new(true).open(&path).and_then(|file| file.metadata());
    let _ = fs::remove_file(&path); // it may not even exist
    made.map(|found| found.uid()).map_err(|error| IdentityError::file(&path, error))
}

/// Says so when a key can be read by others than its owner. Not refused: some ways of handing secrets to a program
/// leave it no choice.
#[cfg(unix)]
pub(super) fn warn_of_readers(key: &Path) {
    use std::os::unix::fs::PermissionsExt;
    let Ok(found) = fs::metadata(key) else { return };
    let mode = found.permissions().mode() & 0o777;
    if mode & 0o044 != 0 {
        tracing::warn!(
            "{}: other users of this host can read this node's key (mode {mode:o}) and pose as it: chmod 600",
            key.display()
        );
    }
}

#[cfg(not(unix))]
fn make(dir: &Path) -> io::Result<()> {
    fs::create_dir(dir)
}

#[cfg(not(unix))]
fn check(_: &Path) -> Result<(), IdentityError> {
    Ok(()) // elsewhere a temporary directory is its user's own
}

#[cfg(not(unix))]
pub(super) fn warn_of_readers(_: &Path) {}

#[cfg(test)]
#[cfg(unix)]
mod tests {
    use std::os::unix::fs::{PermissionsExt, symlink};

    use super::*;

    fn mode(path: &Path) -> u32 {
        fs::symlink_metadata(path).unwrap().permissions().mode() & 0o777
    }

    fn set_mode(path: &Path, mode: u32) {
        fs::set_permissions(path, fs::Permissions::from_mode(mode)).unwrap();
    }

    #[test]
    fn a_directory_is_made_for_this_user_alone_and_found_again() {
        let above = tempfile::tempdir().unwrap();
        let dir = above.path().join("deep/dev");
        directory(&dir).unwrap();
        assert_eq!(mode(&dir), 0o700);
        set_mode(&dir, 0o755); // as an earlier version made it
        directory(&dir).unwrap();
        assert_eq!(mode(&dir), 0o700);
        assert_eq!(fs::read_dir(dir.parent().unwrap()).unwrap().count(), 1, "nothing is left over");
    }

    #[test]
    fn what_somebody_else_could_have_put_there_is_refused() {
        let above = tempfile::tempdir().unwrap();
        let (open, link, file) = (above.path().join("open"), above.path().join("link"), above.path().join("file"));
        fs::create_dir(&open).unwrap();
        set_mode(&open, 0o777);
        symlink(above.path(), &link).unwrap();
        fs::write(&file, "").unwrap();
        for (path, why) in [(&open, "other users"), (&link, "is not a directory"), (&file, "is not a directory")] {
            let error = directory(path).unwrap_err().to_string();
            assert!(error.contains(why), "{error}");
        }
        // Only the system's own user can make something that belongs to somebody else.
        let foreign = above.path().join("foreign");
        directory(&foreign).unwrap();
        if std::os::unix::fs::chown(&foreign, Some(12_345), None).is_ok() {
            let error = directory(&foreign).unwrap_err().to_string();
            assert!(error.contains("belongs to user 12345"), "{error}");
        }
    }
}
