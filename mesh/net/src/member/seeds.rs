//! Looking for the nodes to join through, again and again: names may point elsewhere tomorrow, and two halves of a mesh
//! that lost each other for longer than anybody remembers still have their seeds in common.

use std::collections::BTreeSet;
use std::net::SocketAddr;
use std::path::Path;
use std::time::Duration;

use tokio::io::AsyncReadExt;
use tokio::net::lookup_host;
use tokio::sync::{mpsc, watch};
use tokio::time::Instant;
use tracing::warn;

/// What a seed begins with that is the path of a file of seeds.
const FILE_MARK: char = '@';
/// How much of such a file is read: some thousand seeds.
const MAX_FILE_BYTES: u64 = 64 * 1024;
/// How long one lookup may take.
const LOOKUP_PATIENCE: Duration = Duration::from_secs(2);
/// How often seeds that nothing is heard of are tried, once somebody is.
const UNHURRIED: Duration = Duration::from_secs(10);
/// How long a node looks for its seeds in vain before it says so, and how often it then repeats it.
const COMPLAIN: (Duration, Duration) = (Duration::from_secs(10), Duration::from_secs(60));

/// Sends the addresses of seeds nothing is heard of, until nobody wants them any more.
pub(super) async fn seek(
    seeds: Vec<String>,
    hurried: Duration,
    own: SocketAddr,
    mut known: watch::Receiver<BTreeSet<SocketAddr>>,
    found: mpsc::Sender<Vec<SocketAddr>>,
) {
    if seeds.is_empty() {
        return;
    }
    let mut complain_at = Instant::now() + COMPLAIN.0;
    loop {
        let (addresses, problems) = look_up(&seeds).await;
        let alone = known.borrow_and_update().is_empty();
        let missing: Vec<SocketAddr> = {
            let known = known.borrow();
            addresses.into_iter().filter(|address| *address != own && !known.contains(address)).collect()
        };
        if (alone || !problems.is_empty()) && Instant::now() >= complain_at {
            complain_at = Instant::now() + COMPLAIN.1;
            for problem in &problems {
                warn!("a seed leads nowhere, it is tried again: {problem}");
            }
            if alone {
                warn!(?seeds, "no seed could be joined yet; this node goes on alone and keeps trying");
            }
        }
        if !missing.is_empty() && found.send(missing).await.is_err() {
            return;
        }
        tokio::time::sleep(if alone { hurried } else { UNHURRIED }).await;
    }
}

/// Checks one seed as written in the settings.
pub(super) fn check(seed: &str) -> Result<(), String> {
    if let Some(path) = seed.strip_prefix(FILE_MARK) {
        return if path.is_empty() { Err(format!("seed {seed:?} names no file")) } else { Ok(()) };
    }
    let port = seed.rsplit_once(':').filter(|(host, _)| !host.is_empty()).map(|(_, port)| port.parse::<u16>());
    if matches!(port, Some(Ok(1..))) {
        return Ok(());
    }
    Err(format!("seed {seed:?} is neither host:port nor @file"))
}

/// The addresses of all seeds, and what is wrong with those that have none.
async fn look_up(seeds: &[String]) -> (BTreeSet<SocketAddr>, Vec<String>) {
    let (mut addresses, mut problems, mut hosts) = (BTreeSet::new(), Vec::new(), Vec::new());
    for seed in seeds {
        match seed.strip_prefix(FILE_MARK) {
            None => hosts.push(seed.clone()),
            Some(path) => match read(Path::new(path)).await {
                Ok(found) => hosts.extend(found),
                Err(problem) => problems.push(format!("{path}: {problem}")),
            },
        }
    }
    for host in hosts {
        if let Ok(address) = host.parse() {
            addresses.insert(address);
            continue;
        }
        match tokio::time::timeout(LOOKUP_PATIENCE, lookup_host(host.as_str())).await {
            Ok(Ok(found)) => addresses.extend(found),
            Ok(Err(error)) => problems.push(format!("{host}: {error}")),
            Err(_) => problems.push(format!("{host}: looking it up takes too long")),
        }
    }
    (addresses, problems)
}

/// The seeds in a file: one `host:port` a line; what follows a `#` is for people.
async fn read(path: &Path) -> Result<Vec<String>, String> {
    let mut text = String::new();
    let file = tokio::fs::File::open(path).await.map_err(|error| error.to_string())?;
    file.take(MAX_FILE_BYTES).read_to_string(&mut text).await.map_err(|error| error.to_string())?;
    let lines = text.lines().map(|line| line.split('#').next().unwrap_or_default().trim());
    let mut seeds = Vec::new();
    for (line, number) in lines.zip(1..).filter(|(line, _)| !line.is_empty()) {
        if line.starts_with(FILE_MARK) || check(line).is_err() {
            return Err(format!("line {number}, {line:?}, is not host:port"));
        }
        seeds.push(line.to_owned());
    }
    Ok(seeds)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn strings(seeds: &[&str]) -> Vec<String> {
        seeds.iter().map(|seed| (*seed).to_owned()).collect()
    }

    #[tokio::test]
    async fn seeds_are_addresses_names_with_all_their_addresses_and_files_read_each_time() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("seeds");
        std::fs::write(&path, "# the first three\n10.0.0.2:1 # rack 2\n\nlocalhost:3\n").unwrap();
        let seeds = strings(&["10.0.0.1:1", &format!("@{}", path.display())]);
        let (found, problems) = look_up(&seeds).await;
        assert_eq!(problems, Vec::<String>::new());
        let local = found.iter().filter(|address| address.ip().is_loopback() && address.port() == 3).count();
        assert!(local >= 1 && found.len() == 2 + local, "{found:?}");
        std::fs::write(&path, "10.0.0.9:9").unwrap();
        let (found, _) = look_up(&seeds).await;
        assert_eq!(found, ["10.0.0.1:1".parse().unwrap(), "10.0.0.9:9".parse().unwrap()].into());
    }

    #[tokio::test]
    async fn a_seed_that_leads_nowhere_is_named_and_does_not_hide_the_others() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("seeds");
        std::fs::write(&path, "10.0.0.2:1\nnonsense\n").unwrap();
        let (in_file, missing) = (format!("@{}", path.display()), format!("@{}/no", dir.path().display()));
        let (found, problems) = look_up(&strings(&["no.such.host.invalid:1", &in_file, &missing, "10.0.0.1:1"])).await;
        assert_eq!(found, ["10.0.0.1:1".parse().unwrap()].into());
        assert_eq!(problems.len(), 3, "{problems:?}");
        assert!(problems.iter().any(|problem| problem.contains("line 2, \"nonsense\"")), "{problems:?}");
    }
}
