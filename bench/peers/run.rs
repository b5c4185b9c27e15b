//! Starting the proxies that are compared, and their accounts.

use std::fs;
use std::io;
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use crate::load;

/// How long a proxy may take until it answers.
const PATIENCE: Duration = Duration::from_secs(20);
/// The host that means the backends; whoever ignores hosts ignores it.
pub(crate) const HOST: &str = "backend.test";
pub(crate) const CORE_OF_LOAD: &str = "0";
const CORE_OF_PROXY: &str = "1";

pub(crate) type Failure = Box<dyn std::error::Error>;

/// What is measured, by itself or as two sidecars that trust each other's certificates.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(crate) enum Peer {
    Direct,
    Starling,
    Nginx,
    Haproxy,
    Envoy,
    StarlingPair,
    EnvoyPair,
    StarlingHttp2,
    EnvoyHttp2,
    StarlingPairHttp2,
}

impl Peer {
    pub(crate) fn all() -> Vec<Self> {
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

    /// Those that are compared in HTTP/2.
    pub(crate) fn http2() -> Vec<Self> {
        let mut peers = vec![Self::Direct, Self::StarlingHttp2];
        peers.extend(std::env::var_os("ENVOY").map(|_| Self::EnvoyHttp2));
        peers.push(Self::StarlingPairHttp2);
        peers
    }

    pub(crate) fn name(self) -> &'static str {
        match self {
            Self::Direct => "no proxy",
            Self::Starling | Self::StarlingHttp2 => "starling",
            Self::Nginx => "nginx",
            Self::Haproxy => "HAProxy",
            Self::Envoy | Self::EnvoyHttp2 => "Envoy",
            Self::StarlingPair | Self::StarlingPairHttp2 => "two starlings",
            Self::EnvoyPair => "two Envoys",
        }
    }
}

/// A proxy that answers; it ends when dropped.
pub(crate) struct Running {
    children: Vec<Child>,
    pub(crate) address: SocketAddr,
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
    pub(crate) fn start(peer: Peer, dir: &Path, backends: &[SocketAddr; 2]) -> Result<Self, Failure> {
        let address = if peer == Peer::Direct { backends[0] } else { free_address()? };
        let setup = Setup { dir, address, inner: free_address()?, backends };
        let children = match peer {
            Peer::Direct => Vec::new(),
            Peer::Nginx => {
                let file = setup.write("nginx.conf", include_str!("nginx.conf"))?;
                vec![setup.run("nginx", &["-p", &setup.dir_text(), "-c", &file])?]
            }
            Peer::Haproxy => {
                let file = setup.write("haproxy.cfg", include_str!("haproxy.cfg"))?;
                vec![setup.run("haproxy", &["-db", "-f", &file])?]
            }
            Peer::Envoy => vec![setup.envoy(include_str!("envoy.yaml"))?],
            Peer::EnvoyHttp2 => vec![setup.envoy(&http2_upstream(include_str!("envoy.yaml")))?],
            Peer::EnvoyPair => {
                setup.certificate()?;
                vec![setup.envoy(include_str!("envoy-pair.yaml"))?]
            }
            Peer::Starling | Peer::StarlingHttp2 => {
                let settings = include_str!("starling.toml").to_owned() + &services(peer);
                vec![setup.starling("near", &settings, None)?.0]
            }
            Peer::StarlingPair | Peer::StarlingPairHttp2 => {
                let near = include_str!("starling.toml");
                let far = near.replace("@PORT@", "0") + &services(peer);
                let (far, quic) = setup.starling("far", &far, None)?;
                vec![far, setup.starling("near", near, Some(&quic))?.0]
            }
        };
        let running = Self { children, address };
        running.wait(peer).map_err(|error| setup.tell_log(&error.to_string()))?;
        Ok(running)
    }

    /// Until a request is answered with 200.
    fn wait(&self, peer: Peer) -> Result<(), Failure> {
        let begun = Instant::now();
        // A backend of HTTP/2 has no answer to HTTP/1.1; a proxy in front of it translates, or listens at least.
        let ready = || match peer {
            Peer::Direct | Peer::EnvoyHttp2 => TcpStream::connect(self.address).is_ok(),
            _ => load::once(self.address, HOST).is_some(),
        };
        while !ready() {
            if begun.elapsed() > PATIENCE {
                return Err(format!("the proxy at {} does not answer", self.address).into());
            }
            std::thread::sleep(Duration::from_millis(20));
        }
        Ok(())
    }

    pub(crate) fn cpu_seconds(&self) -> f64 {
        let tasks = self.processes().into_iter().filter_map(|pid| fs::read_dir(format!("/proc/{pid}/task")).ok());
        let accounts = tasks.flatten().flatten();
        let texts = accounts.filter_map(|task| fs::read_to_string(task.path().join("schedstat")).ok());
        let nanos: u64 = texts.filter_map(|text| text.split_whitespace().next()?.parse::<u64>().ok()).sum();
        nanos as f64 / 1e9
    }

    pub(crate) fn resident_megabytes(&self) -> f64 {
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

/// The services of the node that has the backends.
fn services(peer: Peer) -> String {
    let services = include_str!("backend.toml");
    match peer {
        Peer::StarlingHttp2 | Peer::StarlingPairHttp2 => services.replace("port =", "protocol = \"http2\"\nport ="),
        _ => services.to_owned(),
    }
}

/// Envoy's settings for backends that speak HTTP/2.
fn http2_upstream(settings: &str) -> String {
    settings.replace(
        "    lb_policy:",
        concat!(
            "    typed_extension_protocol_options:\n",
            "      envoy.extensions.upstreams.http.v3.HttpProtocolOptions:\n",
            "        \"@type\": type.googleapis.com/envoy.extensions.upstreams.http.v3.HttpProtocolOptions\n",
            "        explicit_http_config: { http2_protocol_options: {} }\n",
            "    lb_policy:",
        ),
    )
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

/// One that nobody listens on. Another program may take it before the proxy does, which then says so.
fn free_address() -> io::Result<SocketAddr> {
    let address = TcpListener::bind("127.0.0.1:0")?.local_addr()?;
    Ok(address)
}
