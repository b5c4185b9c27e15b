//! curl, by every way an application may name a service.

use std::path::Path;
use std::process::Command;

use crate::programs::{Running, program, python, run};
use crate::support::{App, Mesh, eventually};

/// curl that says nothing but what it fetched, or why it did not.
fn quiet(curl: &Path) -> Command {
    let mut command = Command::new(curl);
    command.args(["--silent", "--show-error", "--fail", "--max-time", "60"]).env_clear();
    command
}

#[test]
fn curl_reaches_a_service_by_host_header_by_proxy_variable_and_by_proxy_option() {
    let Some(curl) = program("curl", "curl") else { return };
    let app = App::start("hello from afar");
    let mesh = Mesh::start(["a", "b"]);
    mesh.node("b").starling(&["register", "orders", "--port", &app.port()]);
    eventually("a knows the service", || mesh.node("a").ready_instances("orders").len() == 1);
    let sidecar = format!("http://{}/", mesh.node("a").proxy());
    let curl = || quiet(&curl);
    for host in ["orders", "orders.mesh", "orders.default.mesh"] {
        let said = run(curl().args(["--header", &format!("host: {host}"), &sidecar]));
        assert_eq!(said, "hello from afar", "{host}");
    }
    assert_eq!(run(curl().env("http_proxy", &sidecar).arg("http://orders.mesh/")), "hello from afar");
    assert_eq!(run(curl().args(["--proxy", &sidecar, "http://orders/"])), "hello from afar");
    // By CONNECT, as for any protocol.
    assert_eq!(run(curl().args(["--proxytunnel", "--proxy", &sidecar, "http://orders.mesh/"])), "hello from afar");
}

#[test]
fn files_served_by_python_are_fetched_whole_from_another_node() {
    let Some(curl) = program("curl", "curl") else { return };
    let Some(python) = python("http.server", "python3") else { return };
    let mesh = Mesh::start(["a", "b"]);
    let file = "0123456789abcdef".repeat(20_000);
    let files = mesh.dir().join("files");
    std::fs::create_dir(&files).unwrap();
    std::fs::write(files.join("large.txt"), &file).unwrap();
    let mut server = Command::new(python);
    server.args(["-u", "-m", "http.server", "0", "--bind", "127.0.0.1"]).current_dir(files);
    let port = |line: &str| line.split_once(" port ")?.1.split(' ').next().map(str::to_owned);
    let (_server, port) = Running::start(&mut server, port);
    mesh.node("b").starling(&["register", "files", "--port", &port]);
    eventually("a knows the service", || mesh.node("a").ready_instances("files").len() == 1);
    let sidecar = format!("http://{}/", mesh.node("a").proxy());
    let fetched = run(quiet(&curl).env("http_proxy", &sidecar).arg("http://files.mesh/large.txt"));
    assert!(fetched == file, "{} bytes of {} came", fetched.len(), file.len());
}
