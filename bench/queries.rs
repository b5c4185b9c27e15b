//! What it costs to ask a node: in its memory, and over HTTP on loopback.
//!
//! `cargo bench --bench queries`. The node runs in this process, on threads of its own, and their processor time alone is
//! counted; the clients (a thread per core, each with some connections that are kept alive, one request at a time on
//! each) share the processors with it. So *queries/s* is what this machine reached with both on it, and *per core* what
//! a core would do that had the node to itself.

#![allow(clippy::print_stdout)]

use std::error::Error;
use std::io::{Read, Write};
use std::net::{SocketAddr, TcpStream};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering::Relaxed};
use std::time::{Duration, Instant};

use starling_api::{Api, ApiSettings};
use starling_core::Command;
use starling_core::id::{InstanceKey, ServiceKey};
use starling_core::registry::{Address, Instance, Registration};
use starling_core::view::View;
use starling_net::{Authority, Handle, Identity, NetSettings, start};

#[path = "machine.rs"]
mod machine;

/// How long each row is measured.
const ROW: Duration = Duration::from_secs(3);
/// Connections of each client thread.
const CONNECTIONS: usize = 16;
/// Services in the registry, of each size.
const SERVICES: usize = 300;
/// Their sizes, in instances.
const SIZES: [usize; 3] = [1, 10, 100];
/// How the node's threads are called.
const THREAD: &str = "bench-node";

fn main() -> Result<(), Box<dyn Error>> {
    let instances = SERVICES * SIZES.iter().sum::<usize>();
    println!("bench queries: one node, {instances} instances in {} services, {} s a row", 3 * SERVICES, ROW.as_secs());
    println!("{}\n", machine::describe());
    let runtime = tokio::runtime::Builder::new_multi_thread().thread_name(THREAD).enable_all().build()?;
    let (handle, api) = runtime.block_on(node())?;
    println!("{:>44} {:>13} {:>12} {:>14} {:>12}", "", "answer bytes", "queries/s", "CPU µs/query", "per core");
    in_memory(&handle.view());
    for (what, path) in [
        ("list a service of 1, over HTTP", "/v1/services/of-1-SERVICE/instances"),
        ("list a service of 10", "/v1/services/of-10-SERVICE/instances"),
        ("list a service of 100", "/v1/services/of-100-SERVICE/instances"),
        ("list a service of 10, those of one zone", "/v1/services/of-10-SERVICE/instances?zone=default"),
        ("look up an instance", "/v1/services/of-100-SERVICE/instances/host-7.example:8080"),
        ("list all services", "/v1/services"),
    ] {
        over_http(what, path, api)?;
    }
    Ok(())
}

/// A node with its control surface, and a registry.
async fn node() -> Result<(Handle, SocketAddr), Box<dyn Error>> {
    let authority = Authority::throw_away(&"bench".parse()?)?;
    let identity = Identity::from_pem(&authority.issue(&"a".parse()?, Duration::from_secs(3_600))?)?;
    let running = start(&identity, NetSettings { data_dir: None, ..NetSettings::default() }).await?;
    let handle = running.handle.clone();
    std::mem::forget(running); // it lives as long as the process
    for service in 0..SERVICES {
        for size in SIZES {
            for number in 0..size {
                let service =
                    ServiceKey { namespace: Default::default(), service: format!("of-{size}-{service}").parse()? };
                let key = InstanceKey { service, instance: format!("host-{number}.example:8080").parse()? };
                let address = Address { host: format!("10.0.0.{number}").into(), port: 8080 };
                let instance = Instance { version: "1.4.2".into(), ..Instance::at(address) };
                handle.command(Command::Register(Registration { key, instance })).await?;
            }
        }
    }
    let settings = ApiSettings { listen: "127.0.0.1:0".parse()?, ..ApiSettings::default() };
    let api = Api::bind(settings, handle.clone(), Vec::new(), Arc::new(AtomicBool::new(true))).await?;
    let address = api.local_addr();
    tokio::spawn(api.serve(std::future::pending()));
    Ok((handle, address))
}

/// What a sidecar does: find the service, look at what may take traffic.
fn in_memory(view: &View) {
    let keys: Vec<ServiceKey> =
        view.services.keys().filter(|key| key.service.as_str().starts_with("of-100-")).cloned().collect();
    let (begun, cpu) = (Instant::now(), machine::cpu_time());
    let mut queries = 0u64;
    while begun.elapsed() < ROW {
        for key in &keys {
            let service = view.service(key).expect("it is there");
            assert_eq!(service.instances.iter().filter(|shown| shown.weight() > 0).count(), 100);
            queries += 1;
        }
    }
    row("walk a service of 100, in memory", None, queries, begun.elapsed(), machine::cpu_time() - cpu);
}

fn over_http(what: &str, path: &str, api: SocketAddr) -> Result<(), Box<dyn Error>> {
    let (until, answers, bytes) = (Instant::now() + ROW, AtomicU64::new(0), AtomicU64::new(0));
    let (begun, cpu) = (Instant::now(), cpu_of_node());
    std::thread::scope(|scope| {
        let clients: Vec<_> = (0..std::thread::available_parallelism().map_or(1, usize::from))
            .map(|client| {
                let (answers, bytes) = (&answers, &bytes);
                scope.spawn(move || ask(path, api, client, until, answers, bytes))
            })
            .collect();
        clients.into_iter().try_for_each(|client| client.join().expect("clients do not panic"))
    })?;
    let answers = answers.load(Relaxed);
    let size = bytes.load(Relaxed) / answers.max(1);
    row(what, Some(size), answers, begun.elapsed(), cpu_of_node() - cpu);
    Ok(())
}

/// One client: a request on each connection, then the answers, over and over.
fn ask(
    path: &str,
    api: SocketAddr,
    client: usize,
    until: Instant,
    answers: &AtomicU64,
    bytes: &AtomicU64,
) -> std::io::Result<()> {
    let mut connections: Vec<TcpStream> =
        (0..CONNECTIONS).map(|_| TcpStream::connect(api)).collect::<std::io::Result<_>>()?;
    connections.iter().try_for_each(|connection| connection.set_nodelay(true))?;
    let mut buffer = vec![0; 1 << 20];
    for round in client.. {
        if Instant::now() >= until {
            return Ok(());
        }
        for (at, connection) in connections.iter_mut().enumerate() {
            let service = ((round * CONNECTIONS + at) * 7_919 % SERVICES).to_string();
            let path = path.replace("SERVICE", &service);
            connection.write_all(format!("GET {path} HTTP/1.1\r\nhost: {api}\r\n\r\n").as_bytes())?;
        }
        for connection in &mut connections {
            bytes.fetch_add(read_answer(connection, &mut buffer)? as u64, Relaxed);
            answers.fetch_add(1, Relaxed);
        }
    }
    Ok(())
}

/// Reads one answer and tells how many bytes its body has.
fn read_answer(connection: &mut TcpStream, buffer: &mut Vec<u8>) -> std::io::Result<usize> {
    let mut filled = 0;
    loop {
        if filled == buffer.len() {
            buffer.resize(2 * filled, 0);
        }
        match connection.read(&mut buffer[filled..])? {
            0 => return Err(std::io::ErrorKind::UnexpectedEof.into()),
            read => filled += read,
        }
        let Some(head) = buffer[..filled].windows(4).take(4_096).position(|four| four == b"\r\n\r\n") else { continue };
        let text = String::from_utf8_lossy(&buffer[..head]);
        assert!(text.starts_with("HTTP/1.1 200"), "{text}");
        let length = text.lines().find_map(|line| line.strip_prefix("content-length: "));
        let length: usize = length.and_then(|length| length.parse().ok()).expect("answers have a length");
        if filled >= head + 4 + length {
            return Ok(length);
        }
    }
}

fn row(what: &str, bytes: Option<u64>, queries: u64, took: Duration, cpu: Duration) {
    let each = cpu.as_secs_f64() / queries as f64;
    let bytes = bytes.map_or_else(|| "-".into(), |bytes| bytes.to_string());
    println!(
        "{what:>44} {bytes:>13} {:>12.0} {:>14.1} {:>12.0}",
        queries as f64 / took.as_secs_f64(),
        each * 1e6,
        1.0 / each
    );
}

/// The time the node's threads have spent on a processor.
fn cpu_of_node() -> Duration {
    let tasks = std::fs::read_dir("/proc/self/task").into_iter().flatten().flatten();
    let read =
        |task: &std::fs::DirEntry, what: &str| std::fs::read_to_string(task.path().join(what)).unwrap_or_default();
    let nodes = tasks.filter(|task| read(task, "comm").trim() == THREAD);
    let nanos = nodes.filter_map(|task| read(&task, "schedstat").split_whitespace().next()?.parse::<u64>().ok());
    Duration::from_nanos(nanos.sum())
}
