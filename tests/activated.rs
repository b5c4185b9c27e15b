//! Sockets that are open before the node runs and after it ends, as systemd passes them: whoever connects meanwhile waits, and
//! is answered.

#![allow(clippy::unwrap_used, clippy::print_stderr, reason = "what a test relies on may panic, and says why")]

mod support;

use std::net::TcpListener;
use std::process::{Child, Command, Stdio};

use command_fds::{CommandFdExt, FdMapping};
use support::{App, Line, eventually};
use tempfile::TempDir;

/// What a socket unit and a service unit are together.
struct Unit {
    dir: TempDir,
    proxy: TcpListener,
    api: TcpListener,
}

/// The node a unit has started; it ends with this.
struct Started(Child);

impl Unit {
    fn open() -> Unit {
        let open = || TcpListener::bind("127.0.0.1:0").unwrap();
        Unit { dir: TempDir::new().unwrap(), proxy: open(), api: open() }
    }

    /// Starts the node and waits until it is ready.
    fn start(&self) -> Started {
        let ready = self.dir.path().join("ready");
        let _ = std::fs::remove_file(&ready);
        let [proxy, api] = [&self.proxy, &self.api].map(|socket| socket.local_addr().unwrap().to_string());
        // The process that is told of sockets is the one that becomes the node.
        let mut command = Command::new("sh");
        command.args(["-c", "LISTEN_PID=$$ exec \"$0\" \"$@\"", env!("CARGO_BIN_EXE_starling")]);
        command.args(["node", "--dev", "--name", "a", "--listen", "127.0.0.1:0", "--proxy", &proxy, "--api", &api]);
        command.arg("--ready-file").arg(&ready).current_dir(self.dir.path()).env("TMPDIR", self.dir.path());
        command.env("LISTEN_FDS", "2").env("LISTEN_FDNAMES", "proxy:api");
        let passed = |(child_fd, socket): (i32, &TcpListener)| FdMapping {
            parent_fd: socket.try_clone().unwrap().into(),
            child_fd,
        };
        command.fd_mappings([(3, &self.proxy), (4, &self.api)].map(passed).into()).unwrap();
        let log = std::fs::File::options().create(true).append(true).open(self.dir.path().join("log")).unwrap();
        let mut node = Started(command.stdin(Stdio::null()).stdout(Stdio::null()).stderr(log).spawn().unwrap());
        eventually("the node is ready, or has ended", || ready.exists() || node.0.try_wait().unwrap().is_some());
        assert!(ready.exists(), "{}", self.log());
        node
    }

    fn log(&self) -> String {
        std::fs::read_to_string(self.dir.path().join("log")).unwrap()
    }

    /// A request by a connection of its own that nobody may have taken yet.
    fn ask(&self) -> Line {
        let mut line = Line::to(self.proxy.local_addr().unwrap());
        line.send(b"GET / HTTP/1.1\r\nhost: orders.mesh\r\n\r\n").unwrap();
        line
    }
}

impl Started {
    fn stop(mut self) {
        assert!(Command::new("kill").arg(self.0.id().to_string()).status().unwrap().success());
        assert!(self.0.wait().unwrap().success());
    }
}

impl Drop for Started {
    fn drop(&mut self) {
        let _ = self.0.kill(); // it may have ended
        let _ = self.0.wait();
    }
}

#[test]
fn who_connects_before_the_node_runs_or_while_it_is_restarted_waits_and_is_answered() {
    let (unit, app) = (Unit::open(), App::start("hello"));
    let mut early = unit.ask();
    let node = unit.start();
    let said = early.hear().unwrap();
    assert!(said.reason().starts_with("no_such_service"), "the first node's word: {said:?}");
    let api = unit.api.local_addr().unwrap().to_string();
    let mut register = Command::new(env!("CARGO_BIN_EXE_starling"));
    register.args(["--peer", &api, "register", "orders", "--port", &app.port()]);
    assert!(register.stdout(Stdio::null()).status().unwrap().success());
    eventually("the service is called", || unit.ask().hear().unwrap().status == 200);
    node.stop();
    let mut between: Vec<Line> = (0..20).map(|_| unit.ask()).collect();
    let _again = unit.start();
    for line in &mut between {
        let said = line.hear().unwrap();
        assert_eq!((said.status, said.body.as_str()), (200, "hello"), "{said:?}");
    }
    assert!(!unit.log().contains("is not used"), "both sockets were taken: {}", unit.log());
}
