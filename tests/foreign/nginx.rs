//! nginx: an application as many are served, behind the sidecar of another node.

use std::fs;
use std::io::Read;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering::SeqCst};
use std::thread;

use tempfile::TempDir;

use crate::programs::{program, run};
use crate::support::{Mesh, eventually};

/// How long the big file is.
const BIG: usize = 5_000_000;
/// How often the server is told to begin anew while it is called.
const RELOADS: usize = 5;

/// A server with some files, on a port of its own; it ends with the test.
struct Nginx {
    program: PathBuf,
    dir: TempDir,
    child: Child,
    port: u16,
}

impl Nginx {
    fn start(program: &Path) -> Nginx {
        for _ in 0..10 {
            let port = std::net::TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap().port();
            let dir = TempDir::new().unwrap();
            let at = dir.path();
            fs::create_dir(at.join("www")).unwrap();
            fs::write(at.join("www/big"), big()).unwrap();
            fs::write(at.join("www/page.html"), "<p>bird</p>".repeat(1_000)).unwrap();
            fs::write(at.join("nginx.conf"), settings(at, port, 1)).unwrap();
            let mut command = Self::command(program, at);
            let child = command.stdin(Stdio::null()).stderr(Stdio::null()).spawn().unwrap();
            let mut server = Nginx { program: program.to_owned(), dir, child, port };
            let listens = || std::net::TcpStream::connect(("127.0.0.1", port)).is_ok();
            let mut ended = false;
            eventually("nginx listens, or its port was taken", || {
                ended = server.child.try_wait().unwrap().is_some();
                ended || listens()
            });
            if !ended {
                return server;
            }
        }
        panic!("nginx does not start");
    }

    fn command(program: &Path, dir: &Path) -> Command {
        let mut command = Command::new(program);
        command.arg("-p").arg(dir).arg("-c").arg(dir.join("nginx.conf")).arg("-e").arg(dir.join("error.log"));
        command
    }

    /// Lets new workers take over with new settings, while the old ones finish what they have begun.
    fn reload(&self, version: usize) {
        fs::write(self.dir.path().join("nginx.conf"), settings(self.dir.path(), self.port, version)).unwrap();
        run(Self::command(&self.program, self.dir.path()).args(["-s", "reload"]));
    }
}

impl Drop for Nginx {
    fn drop(&mut self) {
        // Its workers end with it only if it is asked.
        let _ = Command::new("kill").arg(self.child.id().to_string()).status();
        let _ = self.child.wait();
    }
}

fn big() -> Vec<u8> {
    (0..BIG).map(|at| (at * 7 % 251) as u8).collect()
}

fn settings(dir: &Path, port: u16, version: usize) -> String {
    let dir = dir.display();
    let temporary: String = ["client_body", "proxy", "fastcgi", "uwsgi", "scgi"]
        .map(|kind| format!("{kind}_temp_path {dir}/{kind};\n"))
        .concat();
    format!(
        "daemon off;\nworker_processes 2;\npid {dir}/pid;\nevents {{ worker_connections 256; }}\n\
        http {{\naccess_log off;\n{temporary}root {dir}/www;\ndefault_type text/html;\nkeepalive_timeout 60;\n\
        server {{\nlisten 127.0.0.1:{port};\ngzip on;\ngzip_proxied any;\n\
        location = /version {{ return 200 \"version {version}\"; }}\n\
        location = /gone {{ return 410 \"gone\"; }}\n\
        location = /nothing {{ return 204; }}\n}}\n}}\n"
    )
}

/// A mesh of two nodes; `web` is at `b`.
fn mesh_with(server: &Nginx) -> Mesh {
    let mesh = Mesh::start(["a", "b"]);
    mesh.node("b").starling(&["register", "web", "--port", &server.port.to_string()]);
    eventually("a knows the service", || mesh.node("a").ready_instances("web").len() == 1);
    mesh
}

/// What curl prints when it asks `a` for these, one after the other.
fn curl(mesh: &Mesh, arguments: &[&str], paths: &[&str]) -> Vec<u8> {
    let address = mesh.node("a").proxy();
    let mut curl = Command::new("curl");
    curl.args(["--silent", "--show-error", "--max-time", "60", "--header", "host: web.mesh"]).args(arguments);
    curl.args(paths.iter().map(|path| format!("http://{address}{path}")));
    let mut child = curl.stdin(Stdio::null()).stdout(Stdio::piped()).spawn().unwrap();
    let mut told = Vec::new();
    child.stdout.take().unwrap().read_to_end(&mut told).unwrap();
    assert!(child.wait().unwrap().success(), "{arguments:?} {paths:?}");
    told
}

fn told(mesh: &Mesh, arguments: &[&str], paths: &[&str]) -> String {
    String::from_utf8(curl(mesh, arguments, paths)).unwrap()
}

#[test]
fn files_come_through_whole_compressed_in_parts_and_not_at_all() {
    let (Some(nginx), Some(_)) = (program("nginx", "nginx-light"), program("curl", "curl")) else { return };
    let server = Nginx::start(&nginx);
    let mesh = mesh_with(&server);
    assert!(curl(&mesh, &[], &["/big"]) == big(), "a file larger than any buffer");
    assert!(curl(&mesh, &["--range", "4000000-4000999"], &["/big"]) == big()[4_000_000..4_001_000]);
    let part = told(&mesh, &["--range", "0-0", "--include"], &["/page.html"]).to_ascii_lowercase();
    assert!(part.starts_with("http/1.1 206 ") && part.contains("content-range: bytes 0-0/11000\r\n"), "{part}");

    // What is compressed on the way has no length that is known before: it comes in chunks.
    let head = told(&mesh, &["--compressed", "--include"], &["/page.html"]);
    assert!(head.to_ascii_lowercase().contains("content-encoding: gzip"), "{head}");
    assert!(head.to_ascii_lowercase().contains("transfer-encoding: chunked"), "{head}");
    assert!(head.ends_with(&"<p>bird</p>".repeat(1_000)), "{head}");

    let head = told(&mesh, &["--head"], &["/big"]).to_ascii_lowercase();
    assert!(head.starts_with("http/1.1 200 ") && head.contains(&format!("content-length: {BIG}\r\n")), "{head}");
    let tag = head.lines().find_map(|line| line.strip_prefix("etag: ")).expect("nginx tags files").trim();
    // By the same connection: nobody waits for the body that a length seems to announce.
    let unchanged = format!("if-none-match: {tag}");
    let twice = told(&mesh, &["--include", "--header", &unchanged], &["/big", "/big"]);
    assert_eq!(twice.matches("HTTP/1.1 304 ").count(), 2, "{twice}");
    let codes = ["--write-out", "%{http_code} %{num_connects} ", "--output", "/dev/null"];
    let outputs: Vec<&str> = codes.iter().copied().chain(["--output", "/dev/null"].repeat(3)).collect();
    let codes = told(&mesh, &outputs, &["/nothing", "/gone", "/page.html", "/none"]);
    assert_eq!(codes, "204 1 410 0 200 0 404 0 ", "all by one connection");
}

#[test]
fn a_server_that_begins_anew_again_and_again_loses_no_request() {
    let (Some(nginx), Some(_)) = (program("nginx", "nginx-light"), program("curl", "curl")) else { return };
    let server = Nginx::start(&nginx);
    let mesh = mesh_with(&server);
    let (done, asked) = (AtomicBool::new(false), AtomicUsize::new(0));
    thread::scope(|scope| {
        for _ in 0..4 {
            scope.spawn(|| {
                let mut line = mesh.node("a").line();
                while !done.load(SeqCst) {
                    let said = line.tell("GET", "web", "/version", "", "").unwrap();
                    assert!(said.status == 200 && said.body.starts_with("version "), "{said:?}");
                    asked.fetch_add(1, SeqCst);
                }
            });
        }
        let reloading = scope.spawn(|| {
            for version in 2..2 + RELOADS {
                server.reload(version);
                let now = format!("version {version}");
                eventually("the new workers answer", || told(&mesh, &[], &["/version"]) == now);
                let before = asked.load(SeqCst);
                eventually("some requests were made meanwhile", || asked.load(SeqCst) > before + 50);
            }
        });
        let reloaded = reloading.join();
        done.store(true, SeqCst);
        reloaded.unwrap();
    });
}
