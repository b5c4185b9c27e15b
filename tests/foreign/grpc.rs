//! gRPC as Python has it: the example's client and server, on one node and on two; and HTTP/2 by curl.

use std::process::Command;

use crate::programs::{Running, program, python, run};
use crate::support::{App, Mesh, eventually};

/// What the example's client prints when all is well.
const ALL_WELL: &str = "\
unary: hello you why 7
large: 3000006
server streaming: 500500
client streaming: 500500
both: 100 LINE 99
status: NOT_FOUND 50 % of it went wrong
status: PERMISSION_DENIED 50 % of it went wrong
deadline: DEADLINE_EXCEEDED
cancelled: CANCELLED
no method: UNIMPLEMENTED
no service: UNAVAILABLE no_such_service: no service default/nobody is registered
";

#[test]
fn a_python_client_of_grpc_calls_a_python_server_in_every_way_through_one_sidecar_and_two() {
    let Some(python) = python("grpc", "python3-grpcio") else { return };
    let mesh = Mesh::start(["a", "b"]);
    let examples = concat!(env!("CARGO_MANIFEST_DIR"), "/examples/grpc");
    for (service, owner) in [("near", "a"), ("far", "b")] {
        let mut server = Command::new(&python);
        server.arg(format!("{examples}/server.py"));
        let (_server, port) =
            Running::start(&mut server, |line| Some(line.strip_prefix("listening on port ")?.trim().to_owned()));
        mesh.node(owner).starling(&["register", service, "--port", &port, "--protocol", "grpc"]);
        eventually("a knows the service", || mesh.node("a").ready_instances(service).len() == 1);
        let mut client = Command::new(&python);
        client.arg(format!("{examples}/client.py")).arg(mesh.node("a").proxy().to_string());
        assert_eq!(run(client.arg(format!("{service}.mesh"))), ALL_WELL, "{service}");
    }
}

#[test]
fn a_python_client_of_grpc_may_encrypt_what_it_sends_to_the_sidecar() {
    let Some(python) = python("grpc", "python3-grpcio") else { return };
    let mut mesh = Mesh::start(["a"]);
    let made = rcgen::generate_simple_self_signed(["greeter.mesh".to_owned(), "nobody.mesh".to_owned()]).unwrap();
    let file = |name: &str, text: String| {
        let path = mesh.dir().join(name);
        std::fs::write(&path, text).unwrap();
        path.display().to_string()
    };
    let (cert, key) = (file("app.crt", made.cert.pem()), file("app.key", made.signing_key.serialize_pem()));
    mesh.settings("a", &format!("[proxy.tls]\ncert = {cert:?}\nkey = {key:?}\n"));
    mesh.node_mut("a").terminate();
    mesh.restart("a");
    let examples = concat!(env!("CARGO_MANIFEST_DIR"), "/examples/grpc");
    let mut server = Command::new(&python);
    server.arg(format!("{examples}/server.py"));
    let port = |line: &str| Some(line.strip_prefix("listening on port ")?.trim().to_owned());
    let (_server, port) = Running::start(&mut server, port);
    mesh.node("a").starling(&["register", "greeter", "--port", &port, "--protocol", "grpc"]);
    let mut client = Command::new(&python);
    client.arg(format!("{examples}/client.py")).arg(mesh.node("a").proxy().to_string());
    assert_eq!(run(client.args(["greeter.mesh", &cert])), ALL_WELL);
}

#[test]
fn curl_speaks_http2_by_prior_knowledge_to_an_application_that_does_not() {
    let Some(curl) = program("curl", "curl") else { return };
    let app = App::start("hello from afar");
    let mesh = Mesh::start(["a", "b"]);
    mesh.node("b").starling(&["register", "orders", "--port", &app.port()]);
    eventually("a knows the service", || mesh.node("a").ready_instances("orders").len() == 1);
    let mut command = Command::new(curl);
    command.args(["--silent", "--show-error", "--max-time", "60", "--http2-prior-knowledge", "--header"]).env_clear();
    command.args(["host: orders.mesh", "--write-out", " by HTTP/%{http_version}"]);
    assert_eq!(run(command.arg(format!("http://{}/", mesh.node("a").proxy()))), "hello from afar by HTTP/2");
}
