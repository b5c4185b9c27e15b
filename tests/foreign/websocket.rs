//! WebSocket as Python has it: the example's client and server, on one node and on two.

use std::process::Command;

use crate::programs::{Running, python, run};
use crate::support::{Mesh, eventually};

#[test]
fn a_python_client_of_websocket_talks_to_a_python_server_through_one_sidecar_and_two() {
    let Some(python) = python("websockets", "python3-websockets") else { return };
    let mesh = Mesh::start(["a", "b"]);
    let examples = concat!(env!("CARGO_MANIFEST_DIR"), "/examples/websocket");
    for (service, owner) in [("near", "a"), ("far", "b")] {
        let mut server = Command::new(&python);
        server.arg(format!("{examples}/server.py"));
        let (_server, port) =
            Running::start(&mut server, |line| Some(line.strip_prefix("listening on port ")?.trim().to_owned()));
        mesh.node(owner).starling(&["register", service, "--port", &port]);
        eventually("a knows the service", || mesh.node("a").ready_instances(service).len() == 1);
        let mut client = Command::new(&python);
        client.arg(format!("{examples}/client.py")).arg(mesh.node("a").proxy().to_string());
        let told = run(client.arg(format!("{service}.mesh")));
        assert_eq!(told, "HELLO\nb'\\x00BYTES'\n500000\npong\nclosed 1000\n", "{service}");
    }
}
