//! What nodes tell of themselves through chitchat: a handful of short strings.

use std::net::SocketAddr;

use chitchat::NodeState;
use starling_core::id::Incarnation;
use starling_core::view::NodeFacts;

const INCARNATION: &str = "incarnation";
const ZONE: &str = "zone";
const REGION: &str = "region";
const CELL: &str = "cell";
const VERSION: &str = "version";
const ADDRESS: &str = "address";
/// Present, with any value, when this start of the node is over.
const LEAVING: &str = "leaving";
/// The longest fact. chitchat blocks for ever on one over 64 KiB, and every node keeps three copies of all.
const MAX_FACT_BYTES: usize = 256;

/// What a node has told of itself.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Told {
    pub(crate) facts: NodeFacts,
    pub(crate) leaving: bool,
}

/// Checks this node's own facts and gives the address in them.
pub(super) fn check(facts: &NodeFacts) -> Result<SocketAddr, String> {
    for (key, value) in encode(facts) {
        if value.len() > MAX_FACT_BYTES {
            return Err(format!("{key} has {} bytes, at most {MAX_FACT_BYTES} can be told to others", value.len()));
        }
    }
    let address: SocketAddr =
        facts.address.parse().map_err(|_| format!("address {:?} is not IP:port", facts.address))?;
    if address.ip().is_unspecified() || address.port() == 0 {
        return Err(format!("address {address} does not tell other nodes where to reach this one"));
    }
    Ok(address)
}

pub(crate) fn encode(facts: &NodeFacts) -> Vec<(String, String)> {
    let pairs = [
        (INCARNATION, facts.incarnation.0.to_string()),
        (ZONE, facts.zone.to_string()),
        (REGION, facts.region.to_string()),
        (CELL, facts.cell.to_string()),
        (VERSION, facts.version.clone()),
        (ADDRESS, facts.address.clone()),
    ];
    pairs.into_iter().map(|(key, value)| (key.to_owned(), value)).collect()
}

/// Reads them back; `None` while some are missing or when one makes no sense.
pub(crate) fn decode<'a>(pairs: impl Iterator<Item = (&'a str, &'a str)>) -> Option<Told> {
    let (mut incarnation, mut zone, mut region, mut cell) = (None, None, None, None);
    let (mut version, mut address) = (None, None);
    let mut leaving = false;
    for (key, value) in pairs.filter(|(_, value)| value.len() <= MAX_FACT_BYTES) {
        match key {
            INCARNATION => incarnation = Some(Incarnation(value.parse().ok()?)),
            ZONE => zone = Some(value.parse().ok()?),
            REGION => region = Some(value.parse().ok()?),
            CELL => cell = Some(value.parse().ok()?),
            VERSION => version = Some(printable(value)?),
            // Written as we write it, so that a fact that is compared or shown has one form.
            ADDRESS => address = Some(value.parse::<SocketAddr>().ok()?.to_string()),
            LEAVING => leaving = true,
            _ => {} // of a newer version of Starling
        }
    }
    let facts = NodeFacts {
        incarnation: incarnation?,
        zone: zone?,
        region: region?,
        cell: cell?,
        version: version?,
        address: address?,
    };
    Some(Told { facts, leaving })
}

/// Facts are shown to people and printed on terminals: letters, digits and signs only.
fn printable(value: &str) -> Option<String> {
    value.bytes().all(|byte| byte.is_ascii_graphic()).then(|| value.to_owned())
}

pub(super) fn say_goodbye(state: &mut NodeState) {
    state.set(LEAVING, "1");
}

#[cfg(test)]
mod tests {
    use super::*;

    fn facts() -> NodeFacts {
        NodeFacts {
            incarnation: Incarnation(7),
            zone: "a".parse().unwrap(),
            region: Default::default(),
            cell: Default::default(),
            version: "1.2.3".into(),
            address: "10.0.0.1:7946".into(),
        }
    }

    #[test]
    fn facts_come_back_as_they_were_told() {
        let pairs = encode(&facts());
        let told = decode(pairs.iter().map(|(key, value)| (key.as_str(), value.as_str()))).unwrap();
        assert_eq!(told, Told { facts: facts(), leaving: false });
    }

    #[test]
    fn incomplete_or_senseless_facts_are_no_facts() {
        let pairs = encode(&facts());
        let some = || pairs.iter().map(|(key, value)| (key.as_str(), value.as_str()));
        assert_eq!(decode(some().skip(1)), None);
        assert_eq!(decode(some().chain([("zone", "no spaces please")])), None);
        assert_eq!(decode(some().chain([("address", "nowhere")])), None);
        assert_eq!(decode(some().chain([("version", "\u{1b}[2J")])), None, "terminals obey such versions");
    }

    #[test]
    fn own_facts_are_checked_before_they_are_told() {
        assert_eq!(check(&facts()).unwrap().port(), 7946);
        for address in ["nowhere", "0.0.0.0:1", "127.0.0.1:0"] {
            assert!(check(&NodeFacts { address: address.into(), ..facts() }).is_err(), "{address}");
        }
        assert!(check(&NodeFacts { version: "x".repeat(70_000), ..facts() }).unwrap_err().contains("version"));
    }
}
