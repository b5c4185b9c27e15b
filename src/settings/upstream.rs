//! `[[upstream]]`: ports of this host that lead to one service each.

use std::net::{Ipv4Addr, SocketAddr};

use serde::{Deserialize, Deserializer, Serialize, de};
use starling_core::id::{Namespace, ServiceKey, ServiceName};
use starling_core::registry::Protocol;
use starling_proxy::BoundPort;

/// One `[[upstream]]`: a port for programs that know no proxy.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct UpstreamSettings {
    /// The service it leads to.
    pub service: ServiceName,
    /// Its namespace. Default "default".
    #[serde(default)]
    pub namespace: Namespace,
    /// A port of 127.0.0.1 (`5433`), or another address with its port (`"10.0.0.1:5433"`): then everybody who reaches that
    /// address calls as this host. Port 0 takes a free one.
    #[serde(deserialize_with = "port_or_address")]
    pub listen: SocketAddr,
    /// What is spoken there. http, http2, grpc: requests, whatever host they name; tcp: bytes. Default: what the
    /// service's instances say.
    #[serde(default)]
    pub protocol: Option<Protocol>,
    /// The service whose instance on this host calls by it, as SERVICE or NAMESPACE/SERVICE: what rules of access and policies
    /// know it by, where several share a node. Default: `proxy.identity`.
    #[serde(default, rename = "as", skip_serializing_if = "Option::is_none", deserialize_with = "caller")]
    pub caller: Option<ServiceKey>,
}

impl UpstreamSettings {
    /// As the sidecar wants it.
    pub fn bound_port(&self) -> BoundPort {
        let service = ServiceKey { namespace: self.namespace.clone(), service: self.service.clone() };
        BoundPort { listen: self.listen, service, protocol: self.protocol, caller: self.caller.clone() }
    }

    /// What is wrong with these lists, if anything: of two on one address only the first could listen.
    pub(super) fn check_all(upstreams: &[Self], others: &[(&str, SocketAddr)]) -> Vec<String> {
        let mut taken: Vec<(String, SocketAddr)> =
            others.iter().map(|(name, address)| ((*name).to_owned(), *address)).collect();
        let mut problems = Vec::new();
        for upstream in upstreams {
            let (name, listen) = (format!("upstream {}", upstream.service), upstream.listen);
            let other = taken.iter().find(|(_, address)| *address == listen && listen.port() != 0);
            if let Some((other, _)) = other {
                problems.push(format!("{name}: {listen} is taken by {other}; give each a port of its own"));
            }
            taken.push((name, listen));
        }
        problems
    }
}

/// `orders` or `shop/orders`.
fn caller<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Option<ServiceKey>, D::Error> {
    let text = String::deserialize(deserializer)?;
    let (namespace, service) = text.split_once('/').unzip();
    let namespace = namespace.map_or(Ok(Namespace::default()), str::parse).map_err(de::Error::custom)?;
    let service = service.unwrap_or(&text).parse().map_err(de::Error::custom)?;
    Ok(Some(ServiceKey { namespace, service }))
}

/// `5433` or `"127.0.0.1:5433"`.
fn port_or_address<'de, D: Deserializer<'de>>(deserializer: D) -> Result<SocketAddr, D::Error> {
    struct PortOrAddress;

    impl de::Visitor<'_> for PortOrAddress {
        type Value = SocketAddr;

        fn expecting(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
            f.write_str("a port of this host, like 5433, or an address to listen on, like \"127.0.0.1:5433\"")
        }

        fn visit_i64<E: de::Error>(self, port: i64) -> Result<SocketAddr, E> {
            let port = u16::try_from(port).map_err(|_| E::custom(format!("{port} is no port: 0 to 65535")))?;
            Ok(SocketAddr::from((Ipv4Addr::LOCALHOST, port)))
        }

        fn visit_u64<E: de::Error>(self, port: u64) -> Result<SocketAddr, E> {
            self.visit_i64(i64::try_from(port).unwrap_or(i64::MAX))
        }

        fn visit_str<E: de::Error>(self, text: &str) -> Result<SocketAddr, E> {
            text.parse().map_err(|_| {
                E::custom(format!("{text:?} is no address to listen on: write IP:PORT, like \"127.0.0.1:5433\""))
            })
        }
    }

    deserializer.deserialize_any(PortOrAddress)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn upstream(toml: &str) -> Result<UpstreamSettings, String> {
        toml::from_str(toml).map_err(|error| error.message().to_owned())
    }

    #[test]
    fn a_port_is_one_of_loopback_and_an_address_is_itself() {
        let port = upstream("service = \"Db\"\nlisten = 5433").unwrap().bound_port();
        assert_eq!(port.to_string(), "127.0.0.1:5433 (to default/db)");
        assert_eq!((port.protocol, port.caller), (None, None));
        let text = "service = \"db\"\nnamespace = \"pay\"\nlisten = \"[::1]:5433\"\nprotocol = \"tcp\"";
        let port = upstream(text).unwrap().bound_port();
        assert_eq!((port.to_string().as_str(), port.protocol), ("[::1]:5433 (to pay/db)", Some(Protocol::Tcp)));
        for (caller, shown) in [("shop", "default/shop"), ("web/shop", "web/shop")] {
            let port = upstream(&format!("service = \"db\"\nlisten = 1\nas = \"{caller}\"")).unwrap().bound_port();
            assert_eq!(port.caller.map(|caller| caller.to_string()).as_deref(), Some(shown));
        }
    }

    #[test]
    fn a_wrong_one_says_what_to_write() {
        for (text, why) in [
            ("service = \"db\"\nlisten = 70000", "70000 is no port"),
            ("service = \"db\"\nlisten = -1", "-1 is no port"),
            ("service = \"db\"\nlisten = \"localhost:1\"", "IP:PORT"),
            ("service = \"db\"\nlisten = true", "a port of this host"),
            ("service = \"d b\"\nlisten = 1", "service name"),
            ("service = \"db\"", "missing field `listen`"),
            ("service = \"db\"\nlisten = 1\nas = \"a b\"", "service name"),
            ("service = \"db\"\nlisten = 1\nprotocol = \"udp\"", "unknown variant `udp`"),
        ] {
            let error = upstream(text).unwrap_err();
            assert!(error.contains(why), "{text:?}: {error}");
        }
    }
}
