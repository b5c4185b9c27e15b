use super::*;

fn mesh(name: &str) -> MeshName {
    name.parse().unwrap()
}

fn node(name: &str) -> NodeId {
    name.parse().unwrap()
}

fn days(count: u64) -> Duration {
    Duration::from_secs(count * 86_400)
}

#[test]
fn a_certificate_says_who_and_where_and_until_when() {
    let authority = Authority::create(&mesh("shop")).unwrap();
    let identity = Identity::from_pem(&authority.issue(&node("alpha.eu"), days(90)).unwrap()).unwrap();
    assert_eq!((identity.mesh().as_str(), identity.node().as_str()), ("shop", "alpha.eu"));
    let left = identity.expires().duration_since(SystemTime::now()).unwrap();
    assert!(left > days(89) && left <= days(90), "{left:?}");
}

#[test]
fn an_authority_and_a_node_survive_their_files() {
    let dir = tempfile::tempdir().unwrap();
    Authority::create(&mesh("shop")).unwrap().save(dir.path()).unwrap();
    let authority = Authority::load(dir.path()).unwrap();
    assert_eq!(authority.mesh().as_str(), "shop");
    let place = dir.path().join("alpha");
    authority.issue(&node("alpha"), days(90)).unwrap().save(&place).unwrap();
    assert_eq!(Identity::load(&place).unwrap().node().as_str(), "alpha");
    assert!(Authority::create(&mesh("shop")).unwrap().save(dir.path()).is_err(), "an authority is never overwritten");
}

#[cfg(unix)]
#[test]
fn keys_are_readable_by_their_owner_only() {
    use std::os::unix::fs::PermissionsExt;
    let dir = tempfile::tempdir().unwrap();
    let authority = Authority::create(&mesh("shop")).unwrap();
    authority.save(dir.path()).unwrap();
    authority.issue(&node("a"), days(1)).unwrap().save(dir.path()).unwrap();
    for file in [CA_KEY_FILE, NODE_KEY_FILE] {
        let mode = fs::metadata(dir.path().join(file)).unwrap().permissions().mode();
        assert_eq!(mode & 0o777, 0o600, "{file}");
    }
}

#[test]
fn what_peers_would_refuse_is_refused_at_the_start_with_the_reason() {
    let (ours, theirs) = (Authority::create(&mesh("shop")).unwrap(), Authority::create(&mesh("shop")).unwrap());
    let good = ours.issue(&node("a"), days(90)).unwrap();
    let other = ours.issue(&node("a"), days(90)).unwrap();
    let now = SystemTime::now();
    let expired = ours.issue_between(&mesh("shop"), &node("a"), now - days(9), now - days(1)).unwrap();
    let cases = [
        (NodeCertificate { ca_pem: theirs.certificate_pem().to_owned(), ..good.clone() }, "another authority"),
        (NodeCertificate { key_pem: other.key_pem, ..good.clone() }, "is not the key"),
        (NodeCertificate { key_pem: "junk".into(), ..good.clone() }, "not a private key"),
        (NodeCertificate { certificate_pem: "junk".into(), ..good.clone() }, "not a certificate"),
        (NodeCertificate { certificate_pem: good.ca_pem.clone(), ..good }, "names no node"),
        (expired, "expired on"),
    ];
    for (pem, expected) in cases {
        let error = Identity::from_pem(&pem).unwrap_err().to_string();
        assert!(error.contains(expected), "{error:?} does not say {expected:?}");
    }
}

#[test]
fn a_missing_file_is_named() {
    let error = Identity::load(Path::new("/nonexistent")).unwrap_err().to_string();
    assert!(error.contains("/nonexistent/ca.crt"), "{error}");
}

#[test]
fn processes_that_start_at_once_share_one_throw_away_authority() {
    let dir = tempfile::tempdir().unwrap();
    let begin = std::sync::Barrier::new(8);
    let authorities: Vec<_> = std::thread::scope(|scope| {
        let start = |i: usize| {
            let (begin, dir) = (&begin, dir.path());
            scope.spawn(move || {
                begin.wait();
                Identity::dev(dir, &mesh("dev"), &node(&format!("n{i}"))).unwrap().inner.authority.clone()
            })
        };
        let threads: Vec<_> = (0..8).map(start).collect();
        threads.into_iter().map(|thread| thread.join().unwrap()).collect()
    });
    assert!(authorities.windows(2).all(|pair| pair[0] == pair[1]));
    assert_eq!(fs::read_dir(dir.path().join("dev")).unwrap().count(), 1, "nothing is left over");
    let other = Identity::dev(dir.path(), &mesh("other"), &node("a")).unwrap();
    assert!(other.inner.authority != authorities[0], "every mesh has an authority of its own");
}

#[test]
fn the_refused_side_reads_the_objection_of_the_refusing_side() {
    for refusal in [Refusal::OtherMesh { theirs: mesh("a"), ours: mesh("b") }, Refusal::OtherAuthority, Refusal::NoName]
    {
        let (text, advice) = refused_by_peer(&rustls::Error::from(refusal.clone()).to_string(), Some(46));
        assert_eq!(text, refusal.to_string());
        assert_eq!(advice, refusal.advice());
    }
    assert!(refused_by_peer("", Some(116)).0.contains("no certificate"));
    assert!(refused_by_peer("boo\u{7}", None).0.ends_with("boo"));
}
