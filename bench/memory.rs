//! What a node holds in memory: idle, with a thousand services it knows and never calls, and for each idle connection of a
//! client.
//!
//! `cargo bench --bench memory [CONNECTIONS]`

#![allow(clippy::print_stdout)]

use std::io::{Read, Write};
use std::net::{SocketAddr, TcpStream};
use std::time::{Duration, Instant};

#[allow(dead_code)] // only the backend is needed
#[path = "load.rs"]
mod load;
#[path = "machine.rs"]
mod machine;
#[allow(dead_code)] // few of its words are needed
#[path = "processes.rs"]
mod processes;

use processes::{Process, wait_for};

/// Services that are known and never called.
const SERVICES: usize = 1_000;
/// Idle connections, unless told otherwise: as many as a node takes by default.
const CONNECTIONS: usize = 10_000;
/// How long a node may settle before it is looked at.
const SETTLING: Duration = Duration::from_secs(3);

fn main() -> Result<(), Box<dyn std::error::Error>> {
    let connections = std::env::args().skip(1).find_map(|arg| arg.parse().ok()).unwrap_or(CONNECTIONS);
    rlimit::increase_nofile_limit(u64::MAX)?;
    let dir = tempfile::tempdir()?;
    let nodes = Process::mesh(dir.path(), 2)?;
    let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(1).enable_all().build()?;
    let backend = runtime.block_on(load::backend())?;
    println!("bench memory: resident megabytes of a node of two (the one that is called)");
    println!("{}", machine::describe());
    std::thread::sleep(SETTLING);
    let idle = nodes[0].resident_megabytes();
    println!("\n{:>48} {idle:>8.1}", "idle, knowing nothing");

    for number in 0..SERVICES {
        nodes[1].register(&format!("service-{number}"), "1", backend.port())?;
    }
    nodes[0].register("near", "near-1", backend.port())?;
    let last = format!("http://{}/v1/services/service-{}", nodes[0].api, SERVICES - 1);
    while wait_for(&last)?.instance.is_none() {
        std::thread::sleep(Duration::from_millis(20));
    }
    std::thread::sleep(SETTLING);
    let knowing = nodes[0].resident_megabytes();
    println!("{:>48} {knowing:>8.1}", format!("idle, {SERVICES} services known, none called"));

    let begun = Instant::now();
    let held: Vec<TcpStream> = (0..connections).map(|_| used_once(nodes[0].proxy)).collect::<Result<_, _>>()?;
    let took = begun.elapsed();
    std::thread::sleep(SETTLING);
    let holding = nodes[0].resident_megabytes();
    println!("{:>48} {holding:>8.1}", format!("{connections} idle connections, each used once"));
    let each = (holding - knowing) * 1e6 / connections.max(1) as f64;
    println!("\nbytes a connection: {each:.0}; opened and used in {:.1} s", took.as_secs_f64());
    let mut good = 0;
    for stream in held.iter().step_by(97) {
        good += usize::from(exchange(stream).is_ok());
    }
    println!("of {} of them asked again, {good} answered", held.len().div_ceil(97));
    drop(held);
    std::thread::sleep(SETTLING);
    println!("{:>48} {:>8.1}", "when they are closed", nodes[0].resident_megabytes());
    Ok(())
}

fn used_once(proxy: SocketAddr) -> std::io::Result<TcpStream> {
    let stream = TcpStream::connect(proxy)?;
    stream.set_read_timeout(Some(Duration::from_secs(30)))?;
    exchange(&stream)?;
    Ok(stream)
}

/// One request and its answer.
fn exchange(mut stream: &TcpStream) -> std::io::Result<()> {
    stream.write_all(b"GET / HTTP/1.1\r\nhost: near\r\n\r\n")?;
    let (mut answer, mut buffer) = (Vec::new(), [0; 2_048]);
    loop {
        let read = stream.read(&mut buffer)?;
        answer.extend_from_slice(&buffer[..read]);
        if !answer.starts_with(&b"HTTP/1.1 200"[..answer.len().min(12)]) || read == 0 {
            return Err(std::io::Error::other(format!("not answered: {}", String::from_utf8_lossy(&answer))));
        }
        let head = answer.windows(4).position(|window| window == b"\r\n\r\n");
        if head.is_some_and(|head| answer.len() >= head + 4 + load::BODY_BYTES) {
            return Ok(());
        }
    }
}
