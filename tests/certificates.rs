//! Real node processes with certificates of `starling ca`, and what happens to those who should not be there.

#![allow(clippy::unwrap_used, clippy::print_stderr, reason = "what a test relies on may panic, and says why")]

mod support;

use std::fs;
use std::path::Path;
use std::time::{Duration, SystemTime};

use starling_net::{Authority, Identity};
use support::{Certificates, Mesh, NodeProcess, eventually};

/// A mesh whose authority was made by the command line.
fn mesh_named(name: &str) -> Mesh {
    let mesh = Mesh::empty(Certificates::InSettings);
    mesh.run(&["ca", "init", "--mesh", name, "--dir", "ca"]).unwrap();
    mesh
}

/// Issues a node's certificate from the authority in `ca`, and names it in the node's settings as the command says.
fn issue(mesh: &Mesh, ca: &str, mesh_name: &str, node: &str) {
    let printed = mesh.run(&["ca", "issue", node, "--dir", ca]).unwrap();
    let tls = printed.split_once("[tls]").expect("it prints what belongs into the settings").1;
    mesh.settings(node, &format!("[node]\nmesh = \"{mesh_name}\"\n[tls]{tls}"));
}

/// Both have said why, and only once although the one that is refused tries again and again.
fn both_say_once(one: &NodeProcess, other: &NodeProcess, why: &str) {
    for node in [one, other] {
        eventually(&format!("the log says {why:?}"), || !node.lines(why).is_empty());
        eventually("it was tried some times more", || node.metric("starling_link_refusals_total") > 4.0);
        let said = node.lines(why);
        assert!(said.len() <= 2, "said again and again: {said:#?}"); // the second after a minute, on a busy machine
        assert!(said[0].contains(" WARN ") && said[0].contains("refused"), "{}", said[0]);
    }
    let refusing = [one, other].iter().any(|node| !node.lines("this node refused").is_empty());
    let refused = [one, other].iter().any(|node| !node.lines("refused this node").is_empty());
    assert!(refusing && refused, "one refuses, the other is refused, and both say which they are");
}

#[test]
fn three_nodes_with_certificates_form_a_mesh() {
    let mut mesh = mesh_named("shop");
    for node in ["a", "b", "c"] {
        issue(&mesh, "ca", "shop", node);
    }
    let seed = mesh.add("a", None).quic();
    mesh.add("b", Some(seed));
    mesh.add("c", Some(seed));
    mesh.all_know_each_other();
    mesh.node("a").starling(&["register", "orders", "--port", "9", "--id", "o1"]);
    eventually("c sees o1", || mesh.node("c").ready_instances("orders") == ["o1"]);
    for node in ["a", "b", "c"] {
        assert!(mesh.node(node).lines("refused").is_empty(), "nobody is refused");
    }
}

#[test]
fn a_node_of_another_authority_is_refused_and_both_logs_say_so() {
    let mut mesh = mesh_named("shop");
    mesh.run(&["ca", "init", "--mesh", "shop", "--dir", "stolen-name"]).unwrap();
    issue(&mesh, "ca", "shop", "a");
    issue(&mesh, "stolen-name", "shop", "x");
    let seed = mesh.add("a", None).quic();
    mesh.add("x", Some(seed));
    both_say_once(mesh.node("a"), mesh.node("x"), "the certificate is of another authority (CA)");
    assert_eq!(mesh.node("a").alive_members(), ["a"]);
}

#[test]
fn a_node_of_another_mesh_is_refused_and_both_logs_name_the_meshes() {
    let mut mesh = mesh_named("shop");
    mesh.run(&["ca", "init", "--mesh", "bank", "--dir", "bank-ca"]).unwrap();
    issue(&mesh, "ca", "shop", "a");
    issue(&mesh, "bank-ca", "bank", "x");
    let seed = mesh.add("a", None).quic();
    mesh.add("x", Some(seed));
    // Which of the two looks first depends on who dials; each names its own mesh and the other's.
    both_say_once(mesh.node("a"), mesh.node("x"), "the node that checked it is in mesh");
    for node in ["a", "x"] {
        let said = mesh.node(node).lines("the node that checked it");
        assert!(said[0].contains("mesh shop") && said[0].contains("mesh bank"), "{}", said[0]);
    }
}

#[test]
fn a_node_whose_certificate_expires_while_it_runs_is_refused_and_both_logs_say_so() {
    let mut mesh = mesh_named("shop");
    issue(&mesh, "ca", "shop", "a");
    issue(&mesh, "ca", "shop", "old");
    let dir = mesh.dir().to_owned();
    // Long enough to start with, which a busy machine needs more time for.
    let expires = [4, 8, 16, 32].into_iter().find_map(|seconds| {
        let expires = issue_for(&dir, "old", Duration::from_secs(seconds));
        mesh.try_add("old", None).is_ok().then_some(expires)
    });
    let expires = expires.expect("the node starts while its certificate is valid");
    eventually("the certificate has expired", || SystemTime::now() > expires + Duration::from_secs(1));
    let seed = mesh.node("old").quic();
    mesh.add("a", Some(seed));
    both_say_once(mesh.node("a"), mesh.node("old"), "the certificate has expired on");
    assert_eq!(mesh.node("a").alive_members(), ["a"]);

    mesh.node_mut("old").kill();
    let log = mesh.try_add("old", None).map(NodeProcess::log).unwrap_err();
    assert!(log.contains("expired on") && log.contains("starling ca issue"), "{log}");
}

#[test]
fn a_node_whose_certificate_is_renewed_in_time_stays_in_the_mesh_without_a_restart() {
    let mut mesh = mesh_named("shop");
    issue(&mesh, "ca", "shop", "a");
    issue(&mesh, "ca", "shop", "b");
    let dir = mesh.dir().to_owned();
    let expires = [8, 16, 32].into_iter().find_map(|seconds| {
        let expires = issue_for(&dir, "b", Duration::from_secs(seconds));
        mesh.try_add("b", None).is_ok().then_some(expires)
    });
    let expires = expires.expect("the node starts while its certificate is valid");
    let b = mesh.node("b");
    let shown = |node: &NodeProcess| node.metric("starling_certificate_expires_seconds");
    let first = shown(b);
    assert!(b.starling(&["status"]).contains("certificate: that of node b ends"), "it is warned of");
    issue_for(&dir, "b", Duration::from_secs(30 * 24 * 3600));
    eventually("the new certificate is taken", || shown(b) > first);
    assert_eq!(b.metric("starling_certificate_renewals_total"), 1.0);
    assert_eq!(b.lines("was renewed").len(), 1);
    eventually("the first has expired", || SystemTime::now() > expires + Duration::from_secs(1));
    let seed = b.quic();
    mesh.add("a", Some(seed));
    mesh.all_know_each_other();
}

#[test]
fn a_new_certificate_that_cannot_be_used_leaves_the_one_before_and_the_node_says_why() {
    let mut mesh = mesh_named("shop");
    issue(&mesh, "ca", "shop", "a");
    issue(&mesh, "ca", "shop", "b");
    let seed = mesh.add("b", None).quic();
    let place = mesh.dir().join("ca").join("b");
    let (b, good) = (mesh.node("b"), fs::read(place.join("node.crt")).unwrap());
    let others = fs::read(mesh.dir().join("ca/a/node.crt")).unwrap();
    for (bad, why) in [(&b"no certificate"[..], "is not a certificate in PEM"), (&others, "is not the key of")] {
        fs::write(place.join("node.crt"), bad).unwrap();
        eventually("it says why", || b.starling(&["status"]).contains(why));
        assert_eq!(b.metric("starling_certificate_refused"), 1.0);
        let said = b.lines(why);
        assert!(
            said.len() == 1 && said[0].contains("ERROR") && said[0].contains("the one before it stays"),
            "{said:?}"
        );
    }
    mesh.add("a", Some(seed));
    mesh.all_know_each_other();
    fs::write(place.join("node.crt"), good).unwrap();
    eventually("all is well again", || mesh.node("b").metric("starling_certificate_refused") == 0.0);
}

#[test]
fn the_certificate_for_applications_is_renewed_too() {
    let mut mesh = Mesh::empty(Certificates::ThrownAway);
    let (cert, key) = (mesh.dir().join("app.crt"), mesh.dir().join("app.key"));
    let make = |year| {
        let mut wanted = rcgen::CertificateParams::new(["orders.mesh".to_owned()]).unwrap();
        wanted.not_after = rcgen::date_time_ymd(year, 1, 1);
        let pair = rcgen::KeyPair::generate().unwrap();
        fs::write(&key, pair.serialize_pem()).unwrap();
        fs::write(&cert, wanted.self_signed(&pair).unwrap().pem()).unwrap();
    };
    make(2098);
    mesh.settings("a", &format!("[proxy.tls]\ncert = \"{}\"\nkey = \"{}\"\n", cert.display(), key.display()));
    let a = mesh.add("a", None);
    let shown = || a.metric("starling_proxy_certificate_expires_seconds");
    let first = shown();
    make(2099);
    eventually("the new one is shown", || shown() > first);
    assert_eq!(a.lines("the certificate for applications was renewed").len(), 1);
}

/// Puts a certificate of so short a life in the place of a node's own; when it ends.
fn issue_for(dir: &Path, node: &str, validity: Duration) -> SystemTime {
    let place = dir.join("ca").join(node);
    let authority = Authority::load(&dir.join("ca")).unwrap();
    authority.issue(&node.parse().unwrap(), validity).unwrap().save(&place).unwrap();
    Identity::load(&place).unwrap().expires()
}

#[test]
fn settings_that_do_not_fit_the_certificate_are_refused_before_the_start() {
    let mesh = mesh_named("shop");
    issue(&mesh, "ca", "shop", "a");
    issue(&mesh, "ca", "shop", "b");
    let check = |arguments: &[&str]| {
        let always = ["node", "--check", "--config", "a.toml", "--listen", "127.0.0.1:0"];
        mesh.run(&[&always[..], arguments].concat())
    };
    check(&["--name", "a"]).unwrap();
    for (arguments, why) in [
        (&["--name", "b"][..], "node.name is b, but the certificate was issued for a"),
        (&["--name", "a", "--mesh", "bank"], "node.mesh is bank, but the certificate is of mesh shop"),
        (&["--name", "a", "--set", "tls.key=ca/b/node.key"], "is not the key of the node certificate"),
        (&["--name", "a", "--set", "tls.cert=ca/none.crt"], "ca/none.crt"),
    ] {
        let said = check(arguments).unwrap_err();
        assert!(said.contains(why), "{said}");
    }
    let key = fs::metadata(mesh.dir().join("ca/a/node.key")).unwrap();
    assert_eq!(std::os::unix::fs::PermissionsExt::mode(&key.permissions()) & 0o777, 0o600);
}
