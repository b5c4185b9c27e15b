//! What the sidecar costs beside the proxies people use today: the same load, the same backend, the same run.
//!
//! `cargo bench --bench peers [SECONDS] [ROUNDS]`. Each proxy has one worker on a core of its own; the load and two
//! backends share another. Rounds are interleaved, figures are medians with the lowest and highest. nginx and HAProxy are
//! taken from the path and left out where they are not installed; `ENVOY=FILE` names Envoy's binary. CPU per request is
//! the scheduler's account of the proxy's processes.

#![allow(clippy::print_stdout)]

use std::fs;
use std::io;
use std::net::{SocketAddr, TcpListener};
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

#[path = "load.rs"]
mod load;
#[path = "machine.rs"]
mod machine;

/// Keep-alive connections when as much is sent as fits.
const MANY: u32 = 64;
/// Keep-alive connections of the paced run.
const FEW: u32 = 16;
/// Requests a second of the paced run.
const RATE: u32 = 5_000;
/// Before each figure.
const WARM_UP: Duration = Duration::from_secs(1);
/// How long a proxy may take until it answers.
const PATIENCE: Duration = Duration::from_secs(20);
/// The host that means the backends; whoever ignores hosts ignores it.
const HOST: &str = "backend.test";
const CORE_OF_LOAD: &str = "0";
const CORE_OF_PROXY: &str = "1";

type Failure = Box<dyn std::error::Error>;

fn main() -> Result<(), Failure> {
    let numbers: Vec<u64> = std::env::args().skip(1).filter_map(|arg| arg.parse().ok()).collect();
    let seconds = numbers.first().copied().unwrap_or(5);
    let rounds = numbers.get(1).copied().unwrap_or(5);
    let time = Duration::from_secs(seconds);
    let machine = machine::describe();
    // Threads started from here on stay on this core too.
    pin(std::process::id())?;
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    let backends = [backend()?, backend()?];
    println!("bench peers: GET, {}-byte answers, {seconds} s a figure, {rounds} rounds", load::BODY_BYTES);
    println!("{machine}\n");
    let mut rows: Vec<Row> = Peer::all().into_iter().map(|peer| Row { peer, figures: Vec::new() }).collect();
    for _ in 0..rounds {
        for row in &mut rows {
            let dir = tempfile::tempdir()?;
            let running = Running::start(row.peer, dir.path(), &backends)?;
            row.figures.push(measure(&running, &runtime, time));
        }
    }
    println!(
        "At saturation: {MANY} connections. Latency: {RATE} requests/s over {FEW} connections, from when each was due.\n"
    );
    println!(
        "{:>15} {:>22} {:>7} {:>20} {:>16} {:>18} {:>18} {:>11} {:>6}",
        "", "requests/s", "core %", "CPU µs/request", "at 5,000/s", "p50 µs", "p99 µs", "RSS MB", "failed"
    );
    rows.iter().for_each(Row::print);
    Ok(())
}

/// What is measured, by itself or as two sidecars that trust each other's certificates.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Peer {
    Direct,
    Starling,
    Nginx,
    Haproxy,
    Envoy,
    StarlingPair,
    EnvoyPair,
}

impl Peer {
    fn all() -> Vec<Self> {
        let found = |program: &str| {
            let works = Command::new(program).arg("-v").stdout(Stdio::null()).stderr(Stdio::null()).status();
            works.is_ok_and(|status| status.success())
        };
        let mut peers = vec![Self::Direct, Self::Starling];
        peers.extend(found("nginx").then_some(Self::Nginx));
        peers.extend(found("haproxy").then_some(Self::Haproxy));
        let envoy = std::env::var_os("ENVOY").is_some();
        peers.extend(envoy.then_some(Self::Envoy));
        peers.push(Self::StarlingPair);
        peers.extend(envoy.then_some(Self::EnvoyPair));
        peers
    }

    fn name(self) -> &'static str {
        match self {
            Self::Direct => "no proxy",
            Self::Starling => "starling",
            Self::Nginx => "nginx",
            Self::Haproxy => "HAProxy",
            Self::Envoy => "Envoy",
            Self::StarlingPair => "two starlings",
            Self::EnvoyPair => "two Envoys",
        }
    }
}

/// A proxy that answers; it ends when dropped.
struct Running {
    children: Vec<Child>,
    address: SocketAddr,
}

impl Drop for Running {
    fn drop(&mut self) {
        for child in &mut self.children {
            let _ = child.kill();
            let _ = child.wait();
        }
    }
}

impl Running {
    fn start(peer: Peer, dir: &Path, backends: &[SocketAddr; 2]) -> Result<Self, Failure> {
        let address = if peer == Peer::Direct { backends[0] } else { free_address()? };
        let setup = Setup { dir, address, inner: free_address()?, backends };
        let children = match peer {
            Peer::Direct => Vec::new(),
            Peer::Nginx => {
                let file = setup.write("nginx.conf", include_str!("peers/nginx.conf"))?;
                vec![setup.run("nginx", &["-p", &setup.dir_text(), "-c", &file])?]
            }
            Peer::Haproxy => {
                let file = setup.write("haproxy.cfg", include_str!("peers/haproxy.cfg"))?;
                vec![setup.run("haproxy", &["-db", "-f", &file])?]
            }
            Peer::Envoy => vec![setup.envoy(include_str!("peers/envoy.yaml"))?],
            Peer::EnvoyPair => {
                setup.certificate()?;
                vec![setup.envoy(include_str!("peers/envoy-pair.yaml"))?]
            }
            Peer::Starling => {
                let settings = [include_str!("peers/starling.toml"), include_str!("peers/backend.toml")].concat();
                vec![setup.starling("near", &settings, None)?.0]
            }
            Peer::StarlingPair => {
                let near = include_str!("peers/starling.toml");
                let far = near.replace("@PORT@", "0") + include_str!("peers/backend.toml");
                let (far, quic) = setup.starling("far", &far, None)?;
                vec![far, setup.starling("near", near, Some(&quic))?.0]
            }
        };
        let running = Self { children, address };
        running.wait().map_err(|error| setup.tell_log(&error.to_string()))?;
        Ok(running)
    }

    /// Until a request is answered with 200.
    fn wait(&self) -> Result<(), Failure> {
        let begun = Instant::now();
        while load::once(self.address, HOST).is_none() {
            if begun.elapsed() > PATIENCE {
                return Err(format!("the proxy at {} does not answer", self.address).into());
            }
            std::thread::sleep(Duration::from_millis(20));
        }
        Ok(())
    }

    fn cpu_seconds(&self) -> f64 {
        let tasks = self.processes().into_iter().filter_map(|pid| fs::read_dir(format!("/proc/{pid}/task")).ok());
        let accounts = tasks.flatten().flatten();
        let texts = accounts.filter_map(|task| fs::read_to_string(task.path().join("schedstat")).ok());
        let nanos: u64 = texts.filter_map(|text| text.split_whitespace().next()?.parse::<u64>().ok()).sum();
        nanos as f64 / 1e9
    }

    fn resident_megabytes(&self) -> f64 {
        let texts =
            self.processes().into_iter().filter_map(|pid| fs::read_to_string(format!("/proc/{pid}/statm")).ok());
        let pages: u64 = texts.filter_map(|text| text.split_whitespace().nth(1)?.parse::<u64>().ok()).sum();
        pages as f64 * 4096.0 / 1e6
    }

    /// Those started here and their children (nginx works in one).
    fn processes(&self) -> Vec<u32> {
        let mut all: Vec<u32> = self.children.iter().map(Child::id).collect();
        let mut at = 0;
        while let Some(pid) = all.get(at) {
            let children = fs::read_to_string(format!("/proc/{pid}/task/{pid}/children")).unwrap_or_default();
            all.extend(children.split_whitespace().filter_map(|pid| pid.parse::<u32>().ok()));
            at += 1;
        }
        all
    }
}

/// Where a proxy is to listen and what is behind it.
struct Setup<'a> {
    dir: &'a Path,
    address: SocketAddr,
    /// Between two sidecars in one process.
    inner: SocketAddr,
    backends: &'a [SocketAddr; 2],
}

impl Setup<'_> {
    fn dir_text(&self) -> String {
        self.dir.display().to_string()
    }

    fn write(&self, name: &str, template: &str) -> io::Result<String> {
        let text = template
            .replace("@DIR@", &self.dir_text())
            .replace("@PORT@", &self.address.port().to_string())
            .replace("@PORT2@", &self.inner.port().to_string())
            .replace("@B1@", &self.backends[0].port().to_string())
            .replace("@B2@", &self.backends[1].port().to_string());
        let file = self.dir.join(name);
        fs::write(&file, text)?;
        Ok(file.display().to_string())
    }

    fn run(&self, program: &str, args: &[&str]) -> io::Result<Child> {
        let log = fs::File::options().create(true).append(true).open(self.dir.join("log"))?;
        let mut command = Command::new("taskset");
        command.args(["-c", CORE_OF_PROXY, program]).args(args).env("HOME", self.dir);
        command.stdin(Stdio::null()).stdout(log.try_clone()?).stderr(log).spawn()
    }

    /// With what the proxy wrote: the directory is gone soon.
    fn tell_log(&self, error: &str) -> String {
        let log = fs::read_to_string(self.dir.join("log")).unwrap_or_default();
        format!("{error}; it wrote: {log}")
    }

    fn envoy(&self, template: &str) -> Result<Child, Failure> {
        let binary = std::env::var("ENVOY")?;
        let file = self.write("envoy.yaml", template)?;
        Ok(self.run(&binary, &["-c", &file, "--concurrency", "1", "--disable-hot-restart", "-l", "error"])?)
    }

    /// One certificate that both sidecars show and trust. Envoy does not read ours: its TLS library wants older keys.
    fn certificate(&self) -> Result<(), Failure> {
        let file = |name: &str| self.dir.join(name).display().to_string();
        let (key, certificate) = (file("node.key"), file("node.crt"));
        let mut openssl = Command::new("openssl");
        openssl.args(["req", "-x509", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:prime256v1", "-nodes"]);
        openssl.args(["-subj", "/CN=mesh.test", "-days", "2", "-keyout", &key, "-out", &certificate]);
        let output = openssl.output().map_err(|error| format!("openssl makes Envoy's certificate: {error}"))?;
        if !output.status.success() {
            return Err(String::from_utf8_lossy(&output.stderr).into_owned().into());
        }
        Ok(())
    }

    /// A node and where its peers find it.
    fn starling(&self, name: &str, settings: &str, seed: Option<&str>) -> Result<(Child, String), Failure> {
        let file = self.write(&format!("{name}.toml"), settings)?;
        let ready = self.dir.join(format!("{name}.json"));
        let (data, ready_text) = (self.dir.join(name).display().to_string(), ready.display().to_string());
        let mut args = vec!["node", "--dev", "--config", &file, "--name", name, "--listen", "127.0.0.1:0"];
        args.extend(["--data-dir", &data, "--log", "warn", "--ready-file", &ready_text]);
        args.extend(seed.iter().flat_map(|seed| ["--seed", seed]));
        let child = self.run(env!("CARGO_BIN_EXE_starling"), &args)?;
        let begun = Instant::now();
        while !ready.exists() {
            if begun.elapsed() > PATIENCE {
                return Err(format!("node {name} is not ready").into());
            }
            std::thread::sleep(Duration::from_millis(5));
        }
        let told: serde_json::Value = serde_json::from_str(&fs::read_to_string(&ready)?)?;
        Ok((child, told["addresses"]["quic"].as_str().unwrap_or_default().to_owned()))
    }
}

/// One round's figures.
struct Figures {
    rate: f64,
    /// Share of the proxy's core that it used at saturation, in percent.
    core: f64,
    micros_each: f64,
    micros_each_paced: f64,
    p50: f64,
    p99: f64,
    idle_megabytes: f64,
    megabytes: f64,
    failed: u64,
}

fn measure(running: &Running, runtime: &tokio::runtime::Runtime, time: Duration) -> Figures {
    let saturate = |time| runtime.block_on(load::saturate(running.address, HOST, MANY, time));
    let pace = |time| load::pace(running.address, HOST, FEW, RATE, time);
    let cost = |load: &dyn Fn(Duration) -> load::Outcome| {
        load(WARM_UP);
        let before = running.cpu_seconds();
        let outcome = load(time);
        let used = running.cpu_seconds() - before;
        (outcome, used)
    };
    let idle_megabytes = running.resident_megabytes();
    let (full, full_cpu) = cost(&saturate);
    let (paced, paced_cpu) = cost(&pace);
    Figures {
        rate: full.rate(),
        core: full_cpu * 100.0 / full.elapsed.as_secs_f64(),
        micros_each: full_cpu * 1e6 / full.latency.len().max(1) as f64,
        micros_each_paced: paced_cpu * 1e6 / paced.latency.len().max(1) as f64,
        p50: paced.micros(0.5),
        p99: paced.micros(0.99),
        idle_megabytes,
        megabytes: running.resident_megabytes(),
        failed: full.failed + paced.failed,
    }
}

/// A peer and all its rounds.
struct Row {
    peer: Peer,
    figures: Vec<Figures>,
}

impl Row {
    fn print(&self) {
        let sorted = |of: fn(&Figures) -> f64| {
            let mut values: Vec<f64> = self.figures.iter().map(of).collect();
            values.sort_by(f64::total_cmp);
            values
        };
        let median = |of: fn(&Figures) -> f64| sorted(of)[self.figures.len() / 2];
        let spread = |of: fn(&Figures) -> f64, decimals: usize| {
            let values = sorted(of);
            let (lowest, highest) = (values[0], values[values.len() - 1]);
            format!("{:.decimals$} ({lowest:.decimals$}-{highest:.decimals$})", median(of))
        };
        let failed: u64 = self.figures.iter().map(|figures| figures.failed).sum();
        let memory = format!("{:.1}→{:.1}", median(|f| f.idle_megabytes), median(|f| f.megabytes));
        println!(
            "{:>15} {:>22} {:>7.0} {:>20} {:>16.1} {:>18} {:>18} {memory:>11} {failed:>6}",
            self.peer.name(),
            spread(|f| f.rate, 0),
            median(|f| f.core),
            spread(|f| f.micros_each, 1),
            median(|f| f.micros_each_paced),
            spread(|f| f.p50, 0),
            spread(|f| f.p99, 0),
        );
    }
}

/// A backend on a thread of its own.
fn backend() -> Result<SocketAddr, Failure> {
    let (told, hears) = std::sync::mpsc::channel();
    std::thread::spawn(move || {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().expect("a runtime starts");
        runtime.block_on(async {
            told.send(load::backend().await).expect("somebody waits for the address");
            std::future::pending::<()>().await;
        });
    });
    Ok(hears.recv()??)
}

fn pin(pid: u32) -> Result<(), Failure> {
    let pinned = Command::new("taskset").args(["-cp", CORE_OF_LOAD, &pid.to_string()]).output();
    match pinned {
        Ok(output) if output.status.success() => Ok(()),
        Ok(output) => Err(String::from_utf8_lossy(&output.stderr).into_owned().into()),
        Err(error) => Err(format!("taskset (util-linux) keeps load and proxy apart: {error}").into()),
    }
}

/// One that nobody listens on. Another program may take it before the proxy does, which then says so.
fn free_address() -> io::Result<SocketAddr> {
    let address = TcpListener::bind("127.0.0.1:0")?.local_addr()?;
    Ok(address)
}
