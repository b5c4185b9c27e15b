//! nftables: programs that know nothing of the mesh are led through it, by the rules of `examples/redirect.nft`.

use std::io::{Read, Write};
use std::net::TcpListener;
use std::process::{Command, Stdio};
use std::thread;

use crate::programs::{is_root, program, run};
use crate::support::{App, Certificates, Mesh, eventually};

const RULES: &str = include_str!("../../examples/redirect.nft");
/// What exempts the sidecar in them.
const EXEMPTION: &str = "meta skuid \"starling\" return";
/// Says that this process is in a network namespace that nobody else uses.
const INSIDE: &str = "STARLING_TEST_NAMESPACE";

/// Whether this test is in a network namespace of its own. If it is not, it is run again in one, to its end.
fn inside(test: &str) -> bool {
    if std::env::var_os(INSIDE).is_some() {
        return true;
    }
    let needed = ["unshare", "setpriv"].map(|name| program(name, "util-linux"));
    let others = [program("nft", "nftables"), program("ip", "iproute2"), program("curl", "curl")];
    if !is_root() || needed.iter().chain(&others).any(Option::is_none) {
        return false;
    }
    let mut again = Command::new("unshare");
    again.arg("--net").arg(std::env::current_exe().unwrap()).args(["--exact", test, "--nocapture"]).env(INSIDE, "1");
    let told = run(&mut again);
    assert!(told.contains("1 passed"), "{told}");
    false
}

/// Loopback that also has every address of 10.0.0.0/8 and fd00::/8.
fn network() {
    run(Command::new("ip").args(["link", "set", "lo", "up"]));
    run(Command::new("ip").args(["-6", "route", "add", "local", "fd00::/8", "dev", "lo"]));
    run(Command::new("ip").args(["route", "add", "local", "10.0.0.0/8", "dev", "lo"]));
}

/// Puts rules into force.
fn load(rules: &str) {
    let mut nft = Command::new("nft").args(["-f", "-"]).stdin(Stdio::piped()).spawn().unwrap();
    nft.stdin.take().unwrap().write_all(rules.as_bytes()).unwrap();
    assert!(nft.wait().unwrap().success(), "{rules}");
}

/// A program, run as somebody who is not the sidecar.
fn stranger(program: &str) -> Command {
    let mut command = Command::new("setpriv");
    command.args(["--reuid=65534", "--regid=65534", "--clear-groups", program]).current_dir("/");
    command
}

fn curl() -> Command {
    let mut curl = stranger("curl");
    curl.args(["--silent", "--show-error", "--include", "--max-time", "60"]);
    curl
}

/// A server of bytes that speaks first and then says everything back: where it listens.
fn parrot(at: &str) -> String {
    let listener = TcpListener::bind((at, 0)).unwrap();
    let address = listener.local_addr().unwrap();
    thread::spawn(move || {
        for stream in listener.incoming() {
            let mut stream = stream.unwrap();
            thread::spawn(move || -> std::io::Result<()> {
                stream.write_all(b"HELLO\n")?;
                let mut bytes = [0; 64];
                loop {
                    match stream.read(&mut bytes)? {
                        0 => return Ok(()),
                        n => stream.write_all(&bytes[..n])?,
                    }
                }
            });
        }
    });
    address.port().to_string()
}

/// Hears the server's greeting, and only then says something, which is said back.
fn talk(ip: &str, port: &str) -> String {
    let script = format!("exec 3<>/dev/tcp/{ip}/{port}; head -n 1 <&3; echo again >&3; head -n 1 <&3");
    run(stranger("bash").args(["-c", &script]))
}

/// A mesh of two nodes where `a` takes redirected connections.
fn mesh(settings: &str) -> Mesh {
    let mut mesh = Mesh::empty(Certificates::ThrownAway);
    mesh.settings("a", &format!("[proxy]\nredirect_listen = \"[::]:15006\"\n{settings}"));
    let seed = mesh.add("a", None).quic();
    mesh.add("b", Some(seed));
    mesh.all_know_each_other();
    mesh
}

/// How many redirected connections were led on by this, at `a`.
fn led(mesh: &Mesh, by: &str) -> u32 {
    let page = mesh.node("a").page("/metrics");
    let line = format!("starling_redirected_total{{by=\"{by}\"}} ");
    page.lines().find_map(|found| found.strip_prefix(&line)?.parse().ok()).unwrap()
}

#[test]
fn programs_that_know_nothing_of_the_mesh_are_led_through_it_and_else_to_where_they_want() {
    if !inside("redirect::programs_that_know_nothing_of_the_mesh_are_led_through_it_and_else_to_where_they_want") {
        return;
    }
    network();
    load(&RULES.replace(EXEMPTION, "meta skuid 0 return"));
    let mesh = mesh("");
    let (orders, other) = (App::start_at("10.1.0.1", "hello from afar"), App::start_at("10.3.0.1", "no mesh here"));
    let (bytes, elsewhere) = (parrot("10.2.0.1"), parrot("10.4.0.1"));
    let b = mesh.node("b");
    b.starling(&["register", "orders", "--address", "10.1.0.1", "--port", &orders.port()]);
    b.starling(&["register", "cache", "--address", "10.2.0.1", "--port", &bytes, "--protocol", "tcp"]);
    eventually("a knows the services", || {
        ["orders", "cache"].iter().all(|service| mesh.node("a").ready_instances(service).len() == 1)
    });
    let is_carried = |answer: &str| answer.contains("x-starling-trace");

    // By the address of an instance, whatever is spoken there.
    let answer = run(curl().arg(format!("http://10.1.0.1:{}/", orders.port())));
    assert!(answer.ends_with("hello from afar") && is_carried(&answer), "{answer}");
    assert_eq!(talk("10.2.0.1", &bytes), "HELLO\nagain\n");
    assert_eq!(led(&mesh, "address"), 2);
    let carried = r#"starling_tcp_connections_total{service="default/cache",direction="inbound",end="whole"} 1"#;
    eventually("its bytes went by the other node", || b.page("/metrics").contains(carried));

    // By name, to an address where nobody is.
    let answer = run(curl().args(["--header", "host: orders.mesh", "http://10.9.9.9/"]));
    assert!(answer.ends_with("hello from afar") && is_carried(&answer), "{answer}");
    let answer = run(curl().args(["--header", "host: nobody.mesh", "http://10.9.9.9/"]));
    assert!(answer.contains("no_such_service"), "{answer}");
    assert_eq!(led(&mesh, "name"), 2);

    // Everything else is left as it is, also where the server speaks first.
    let answer = run(curl().arg(format!("http://10.3.0.1:{}/", other.port())));
    assert!(answer.ends_with("no mesh here") && !is_carried(&answer), "{answer}");
    assert_eq!(talk("10.4.0.1", &elsewhere), "HELLO\nagain\n");
    let nobody = curl().arg("http://10.9.9.9:9/").output().unwrap();
    assert!(!nobody.status.success());
    assert_eq!((led(&mesh, "elsewhere"), led(&mesh, "refused")), (3, 0));
    let ended = |end: &str| {
        let line = r#"starling_tcp_connections_total{service="elsewhere",direction="outbound",end="#;
        format!("{line}\"{end}\"}} ")
    };
    eventually("what passed is counted", || {
        let page = mesh.node("a").page("/metrics");
        page.contains(&format!("{}2", ended("whole"))) && page.contains(&format!("{}1", ended("failed")))
    });
}

#[test]
fn programs_that_speak_ipv6_are_led_through_the_mesh_by_the_same_rules() {
    if !inside("redirect::programs_that_speak_ipv6_are_led_through_the_mesh_by_the_same_rules") {
        return;
    }
    network();
    // A route lets these be reached; to listen there, they must be this host's own.
    for ip in ["fd00:1::1", "fd00:2::1", "fd00:3::1", "fd00:4::1"] {
        run(Command::new("ip").args(["-6", "address", "add", &format!("{ip}/128"), "dev", "lo", "nodad"]));
    }
    load(&RULES.replace(EXEMPTION, "meta skuid 0 return"));
    let mesh = mesh("");
    let (orders, other) = (App::start_at("fd00:1::1", "hello from afar"), App::start_at("fd00:3::1", "no mesh here"));
    let (bytes, elsewhere) = (parrot("fd00:2::1"), parrot("fd00:4::1"));
    let b = mesh.node("b");
    b.starling(&["register", "orders", "--address", "fd00:1::1", "--port", &orders.port()]);
    b.starling(&["register", "cache", "--address", "fd00:2::1", "--port", &bytes, "--protocol", "tcp"]);
    eventually("a knows the services", || {
        ["orders", "cache"].iter().all(|service| mesh.node("a").ready_instances(service).len() == 1)
    });
    let answer = run(curl().args(["--globoff", &format!("http://[fd00:1::1]:{}/", orders.port())]));
    assert!(answer.ends_with("hello from afar") && answer.contains("x-starling-trace"), "{answer}");
    assert_eq!(talk("fd00:2::1", &bytes), "HELLO\nagain\n");
    assert_eq!(led(&mesh, "address"), 2);
    let answer = run(curl().args(["--globoff", "--header", "host: orders.mesh", "http://[fd00:9::9]/"]));
    assert!(answer.ends_with("hello from afar") && answer.contains("x-starling-trace"), "{answer}");
    let answer = run(curl().args(["--globoff", &format!("http://[fd00:3::1]:{}/", other.port())]));
    assert!(answer.ends_with("no mesh here") && !answer.contains("x-starling-trace"), "{answer}");
    assert_eq!(talk("fd00:4::1", &elsewhere), "HELLO\nagain\n");
    assert_eq!([led(&mesh, "name"), led(&mesh, "elsewhere"), led(&mesh, "refused")], [1, 2, 0]);
}

#[test]
fn what_means_nothing_of_the_mesh_is_refused_where_the_settings_say_so() {
    if !inside("redirect::what_means_nothing_of_the_mesh_is_refused_where_the_settings_say_so") {
        return;
    }
    network();
    load(&RULES.replace(EXEMPTION, "meta skuid 0 return"));
    let mesh = mesh("redirect_unknown = \"refuse\"\n");
    let (other, bytes) = (App::start_at("10.3.0.1", "no mesh here"), parrot("10.4.0.1"));
    let answer = run(curl().arg(format!("http://10.3.0.1:{}/", other.port())));
    assert!(answer.contains("421 ") && answer.contains("not_a_mesh_name"), "{answer}");
    let heard = stranger("bash").args(["-c", &format!("cat </dev/tcp/10.4.0.1/{bytes}")]).output().unwrap();
    assert!(!heard.status.success() && heard.stdout.is_empty(), "{heard:?}");
    assert_eq!((led(&mesh, "refused"), led(&mesh, "elsewhere")), (2, 0));
}

#[test]
fn a_rule_that_forgets_the_sidecar_makes_no_connection_that_goes_round_for_ever() {
    if !inside("redirect::a_rule_that_forgets_the_sidecar_makes_no_connection_that_goes_round_for_ever") {
        return;
    }
    network();
    load(&RULES.replace(EXEMPTION, "meta skuid 4000000 return"));
    let mesh = mesh("");
    let (other, bytes) = (App::start_at("10.3.0.1", "no mesh here"), parrot("10.2.0.1"));
    let a = mesh.node("a");
    a.starling(&["register", "cache", "--address", "10.2.0.1", "--port", &bytes, "--protocol", "tcp"]);
    eventually("a knows the service", || a.ready_instances("cache").len() == 1);
    let answer = curl().arg(format!("http://10.3.0.1:{}/", other.port())).output().unwrap();
    assert!(!answer.status.success(), "{answer:?}");
    let heard = stranger("bash").args(["-c", &format!("cat </dev/tcp/10.2.0.1/{bytes}")]).output().unwrap();
    assert!(heard.stdout.is_empty(), "{heard:?}");
    eventually("all have ended", || a.page("/metrics").contains(r#"kind="application"} 0"#));
    for meant in [format!("10.3.0.1:{}", other.port()), format!("10.2.0.1:{bytes}")] {
        let lines = a.lines(&format!("own connection to {meant} was redirected to it"));
        assert!(!lines.is_empty(), "{meant}");
    }
}
