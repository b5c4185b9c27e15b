//! The readers, and samples of what each takes.

use std::fs;
use std::path::{Path, PathBuf};

use starling::settings::{Sources, load};
use starling::sim::scenario::Scenario;
use starling_api::model::Backup;
use starling_core::observe::TraceId;
use starling_core::route::route;
use starling_core::time::Stamp;
use starling_core::view::View;
use starling_core::wire::{self, MAX_MESSAGE_BYTES, Message, Question, Reply};
use starling_net::decoders;

/// One reader.
pub(crate) struct Reader {
    pub(crate) name: &'static str,
    /// What it must take.
    pub(crate) samples: fn() -> Vec<Vec<u8>>,
    /// Whether it takes this; panics when what it took is not what it should be.
    pub(crate) read: fn(&[u8]) -> bool,
}

/// The files below a directory of the project whose names end so.
fn files(dir: &str, ending: &str) -> Vec<Vec<u8>> {
    let dir = Path::new(env!("CARGO_MANIFEST_DIR")).join(dir);
    let entries = fs::read_dir(&dir).unwrap_or_else(|error| panic!("{}: {error}", dir.display()));
    let mut paths: Vec<PathBuf> = entries.map(|entry| entry.unwrap().path()).collect();
    paths.retain(|path| path.to_string_lossy().ends_with(ending));
    paths.sort();
    assert!(!paths.is_empty(), "{} has files that end in {ending}", dir.display());
    paths.iter().map(|path| fs::read(path).unwrap()).collect()
}

fn texts(texts: &[&str]) -> Vec<Vec<u8>> {
    texts.iter().map(|text| text.as_bytes().to_vec()).collect()
}

pub(crate) const MESSAGES: Reader = Reader {
    name: "messages",
    samples: || files("mesh/core/tests/wire", ".message"),
    read: |bytes| {
        let Ok(received) = Message::decode(bytes) else { return false };
        if let Some(message) = &received.message {
            let again = Message::decode(&message.encode()).expect("what was read can be written");
            assert_eq!(again.message.as_ref(), Some(message), "and is read as the same");
            assert_eq!(again.skipped, 0, "and nothing of it is skipped");
        }
        true
    },
};

pub(crate) const QUESTIONS: Reader = Reader {
    name: "questions",
    samples: || files("mesh/core/tests/wire", ".question"),
    read: |bytes| {
        let Ok(question) = wire::decode::<Question>(bytes) else { return false };
        assert_eq!(wire::decode::<Question>(&wire::encode(&question)).unwrap(), question);
        true
    },
};

pub(crate) const REPLIES: Reader = Reader {
    name: "replies",
    samples: || files("mesh/core/tests/wire", ".reply"),
    read: |bytes| {
        let Ok(reply) = wire::decode::<Reply>(bytes) else { return false };
        assert_eq!(wire::decode::<Reply>(&wire::encode(&reply)).unwrap(), reply);
        true
    },
};

pub(crate) const LOGS: Reader = Reader {
    name: "logs",
    samples: || files("mesh/net/tests/disk", ".log"),
    read: |bytes| {
        let (entries, damages) = decoders::log(bytes);
        assert!(entries * 16 <= bytes.len() && damages <= bytes.len(), "no more than there is room for");
        entries > 0 && damages == 0
    },
};

pub(crate) const FRAMES: Reader = Reader {
    name: "frames",
    samples: || vec![vec![0, 0, 0, 3, 1, 2, 3], [vec![0, 0, 1, 0], vec![7; 256]].concat(), vec![0, 0, 0, 0]],
    read: |bytes| {
        let at_once = decoders::frames(bytes, bytes.len(), MAX_MESSAGE_BYTES);
        assert_eq!(decoders::frames(bytes, 1, MAX_MESSAGE_BYTES), at_once, "whatever the pieces it comes in");
        let whole: usize = at_once.iter().map(|length| length + 4).sum();
        assert!(whole <= bytes.len());
        whole == bytes.len() && whole > 0
    },
};

pub(crate) const FACTS: Reader = Reader {
    name: "facts",
    samples: || {
        let facts = "incarnation=7\nzone=west\nregion=eu\ncell=c1\nversion=1.2.3\naddress=10.0.0.1:7946\n";
        texts(&[facts, &format!("{facts}leaving=1\n"), &format!("{facts}unknown=x\n")])
    },
    read: |bytes| match decoders::told(bytes) {
        Some(address) => address.parse::<std::net::SocketAddr>().is_ok(),
        None => false,
    },
};

pub(crate) const SETTINGS: Reader = Reader {
    name: "settings",
    samples: || files("examples", "starling.toml"),
    read: |bytes| {
        let Ok(text) = String::from_utf8(bytes.to_vec()) else { return false };
        load(&Sources { dev: true, file: Some(("starling.toml".into(), text)), ..Sources::default() }).is_ok()
    },
};

pub(crate) const SCENARIOS: Reader = Reader {
    name: "scenarios",
    samples: || files("examples/scenarios", ".toml"),
    read: |bytes| std::str::from_utf8(bytes).is_ok_and(|text| text.parse::<Scenario>().is_ok()),
};

pub(crate) const BACKUPS: Reader = Reader {
    name: "backups",
    samples: || files("mesh/api/tests/backup", ".jsonl"),
    read: |bytes| Backup::read(bytes).is_ok(),
};

pub(crate) const HOSTS: Reader = Reader {
    name: "hosts",
    samples: || texts(&["orders", "orders.mesh", "orders.pay.mesh:80", "orders.mesh."]),
    read: |bytes| {
        let view = View::empty("a".parse().unwrap(), Default::default());
        std::str::from_utf8(bytes).is_ok_and(|host| route(host, "mesh", &view).is_ok())
    },
};

pub(crate) const NAMES: Reader = Reader {
    name: "stamps",
    samples: || texts(&["1700000000000.3@a", "0.0@node-a.west", "0af7651916cd43dd8448eb211c80319c"]),
    read: |bytes| {
        let Ok(text) = std::str::from_utf8(bytes) else { return false };
        let stamp = text.parse::<Stamp>().ok();
        if let Some(stamp) = &stamp {
            assert_eq!(stamp.to_string().parse::<Stamp>().as_ref(), Ok(stamp));
        }
        stamp.is_some() || text.parse::<TraceId>().is_ok()
    },
};
