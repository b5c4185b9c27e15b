//! redis: a server and a client that know nothing of proxies, joined by a port of the client's node.

use std::io::Write;
use std::process::{Command, Stdio};

use crate::programs::{Running, program, run};
use crate::support::{Certificates, Mesh, eventually};

/// A mesh of two nodes where `a` has a port to `service`, which `b` has registered as one of bytes on `port`.
fn joined(service: &str, port: u16) -> Mesh {
    let mut mesh = Mesh::empty(Certificates::ThrownAway);
    mesh.settings("a", &format!("[[upstream]]\nservice = \"{service}\"\nlisten = 0\n"));
    let seed = mesh.add("a", None).quic();
    mesh.add("b", Some(seed));
    mesh.all_know_each_other();
    mesh.node("b").starling(&["register", service, "--port", &port.to_string(), "--protocol", "tcp"]);
    eventually("a knows the service", || mesh.node("a").ready_instances(service).len() == 1);
    mesh
}

#[test]
fn redis_answers_through_a_port_of_another_node() {
    let Some(server) = program("redis-server", "redis-server") else { return };
    let Some(client) = program("redis-cli", "redis-tools") else { return };
    let serve = |port: u16| {
        let mut command = Command::new(&server);
        command.args(["--port", &port.to_string(), "--bind", "127.0.0.1", "--save", "", "--appendonly", "no"]);
        command
    };
    let (_server, port) = Running::on_a_port(serve, |line| line.contains("Ready to accept connections"));
    let mesh = joined("cache", port);
    let redis = || {
        let mut command = Command::new(&client);
        command.args(["-h", "127.0.0.1", "-p", &mesh.node("a").port_to("cache").port().to_string()]);
        command
    };
    assert_eq!(run(redis().args(["set", "bird", "starling"])), "OK\n");
    assert_eq!(run(redis().args(["get", "bird"])), "starling\n");
    // Many commands at once, and their answers all at once.
    let commands: String = (0..5_000).map(|i| format!("SET key:{i} {i}\r\n")).collect();
    let mut piped = redis().arg("--pipe").stdin(Stdio::piped()).stdout(Stdio::piped()).spawn().unwrap();
    piped.stdin.take().unwrap().write_all(commands.as_bytes()).unwrap();
    let told = String::from_utf8(piped.wait_with_output().unwrap().stdout).unwrap();
    assert!(told.contains("errors: 0, replies: 5000"), "{told}");
    assert_eq!(run(redis().arg("dbsize")), "5001\n");
    let counted = |line: &str| mesh.node("a").page("/metrics").contains(line);
    eventually("its connections are over and counted", || {
        counted(r#"starling_tcp_connections_open{service="default/cache",direction="outbound"} 0"#)
    });
    assert!(counted(r#"starling_tcp_connections_total{service="default/cache",direction="outbound",end="failed"} 0"#));
}
