//! Whom a request was sent by first, told to the application: `Forwarded` (RFC 7239) and the `X-Forwarded-*` fields that were
//! there before it. Written by the sidecar of the caller, which is the one that sees the client's address.

use std::io::Write;
use std::net::IpAddr;

use httparse::Header;
use serde::{Deserialize, Serialize};

use super::fields::{self, Connection, Field, field};

/// Which fields tell an application whom a request came from.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Forwarded {
    /// The sidecar writes none; what an application wrote itself passes as it is.
    #[default]
    Off,
    /// `Forwarded: for=...;host=...;proto=...`, after those that are there.
    Append,
    /// `X-Forwarded-For`, with this client after those that are there, `X-Forwarded-Host` and `X-Forwarded-Proto`.
    XForwarded,
    /// All of them.
    Both,
}

/// What to write, and of whom.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Forward {
    pub(crate) how: Forwarded,
    /// Whether what the client wrote itself is believed and kept.
    pub(crate) keep: bool,
    pub(crate) peer: Peer,
}

/// A client, as its sidecar sees it.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Peer {
    pub(crate) ip: IpAddr,
    /// Whether it speaks TLS.
    pub(crate) encrypted: bool,
}

/// Whether a field is one of those [`Forward::write`] writes, or leaves out.
pub(crate) fn is_one(known: Field) -> bool {
    matches!(known, Field::Forwarded | Field::ForwardedFor | Field::ForwardedHost | Field::ForwardedProto)
}

impl Forward {
    /// Writes the fields anew, from those the client sent and what is known of it.
    pub(crate) fn write(self, headers: &[Header<'_>], connection: &Connection<'_>, host: &[u8], out: &mut Vec<u8>) {
        let client = self.peer.ip.to_canonical();
        let scheme = if self.peer.encrypted { &b"https"[..] } else { b"http" };
        let before = |wanted: Field| {
            let kept = headers.iter().filter(move |header| self.keep && field(header.name) == wanted);
            kept.filter(|header| !connection.ends(header)).map(|header| header.value)
        };
        if matches!(self.how, Forwarded::Append | Forwarded::Both) {
            list(out, b"forwarded", before(Field::Forwarded));
            // Writing to memory does not fail.
            let _ = match client {
                IpAddr::V4(v4) => write!(out, "for={v4};host="),
                IpAddr::V6(v6) => write!(out, "for=\"[{v6}]\";host="),
            };
            write_value(host, out);
            out.extend_from_slice(b";proto=");
            out.extend_from_slice(scheme);
            out.extend_from_slice(b"\r\n");
        } else {
            before(Field::Forwarded).for_each(|value| fields::write(out, b"forwarded", value));
        }
        let in_x = matches!(self.how, Forwarded::XForwarded | Forwarded::Both);
        if in_x {
            list(out, b"x-forwarded-for", before(Field::ForwardedFor));
            let _ = write!(out, "{client}\r\n");
        } else {
            before(Field::ForwardedFor).for_each(|value| fields::write(out, b"x-forwarded-for", value));
        }
        // Whoever saw the client first knows best what it asked for.
        let once = [
            (&b"x-forwarded-host"[..], Field::ForwardedHost, host),
            (&b"x-forwarded-proto"[..], Field::ForwardedProto, scheme),
        ];
        for (name, known, value) in once {
            if let Some(value) = before(known).next().or(in_x.then_some(value)) {
                fields::write(out, name, value);
            }
        }
    }
}

/// Begins a field with what it held before.
fn list<'a>(out: &mut Vec<u8>, name: &[u8], before: impl Iterator<Item = &'a [u8]>) {
    out.extend_from_slice(name);
    out.extend_from_slice(b": ");
    for value in before.filter(|value| !value.is_empty()) {
        out.extend_from_slice(value);
        out.extend_from_slice(b", ");
    }
}

/// A token as it is, anything else in quotes (RFC 7239, section 4).
fn write_value(value: &[u8], out: &mut Vec<u8>) {
    let is_token = |byte: &u8| byte.is_ascii_alphanumeric() || b"!#$%&'*+-.^_`|~".contains(byte);
    if !value.is_empty() && value.iter().all(is_token) {
        return out.extend_from_slice(value);
    }
    out.push(b'"');
    for byte in value {
        if matches!(byte, b'"' | b'\\') {
            out.push(b'\\');
        }
        out.push(*byte);
    }
    out.push(b'"');
}

#[cfg(test)]
mod tests {
    use super::*;

    const SENT: [(&str, &str); 5] = [
        ("Forwarded", "for=198.51.100.1"),
        ("X-Forwarded-For", "198.51.100.1"),
        ("x-forwarded-for", "198.51.100.2"),
        ("X-Forwarded-Host", "shop.example"),
        ("X-Forwarded-Proto", "https"),
    ];

    fn written(how: Forwarded, keep: bool, client: &str, host: &str, sent: &[(&str, &str)]) -> Vec<String> {
        let headers: Vec<Header<'_>> =
            sent.iter().map(|(name, value)| Header { name, value: value.as_bytes() }).collect();
        let mut out = Vec::new();
        let forward = Forward { how, keep, peer: Peer { ip: client.parse().unwrap(), encrypted: false } };
        forward.write(&headers, &Connection::default(), host.as_bytes(), &mut out);
        String::from_utf8(out).unwrap().lines().map(str::to_owned).collect()
    }

    #[test]
    fn addresses_and_hosts_are_written_as_the_standard_has_them() {
        for (client, host, expected) in [
            ("192.0.2.7", "orders.mesh", "for=192.0.2.7;host=orders.mesh;proto=http"),
            ("192.0.2.7", "orders.mesh:80", "for=192.0.2.7;host=\"orders.mesh:80\";proto=http"),
            ("2001:db8::7", "orders", "for=\"[2001:db8::7]\";host=orders;proto=http"),
            ("::ffff:192.0.2.7", "a\"b\\", "for=192.0.2.7;host=\"a\\\"b\\\\\";proto=http"),
        ] {
            assert_eq!(written(Forwarded::Append, true, client, host, &[]), [format!("forwarded: {expected}")]);
        }
    }

    #[test]
    fn what_the_client_wrote_is_kept_and_added_to_or_dropped() {
        let expected = [
            "forwarded: for=198.51.100.1, for=192.0.2.7;host=orders;proto=http",
            "x-forwarded-for: 198.51.100.1, 198.51.100.2, 192.0.2.7",
            "x-forwarded-host: shop.example",
            "x-forwarded-proto: https",
        ];
        assert_eq!(written(Forwarded::Both, true, "192.0.2.7", "orders", &SENT), expected);
        let expected = ["x-forwarded-for: ::1", "x-forwarded-host: orders", "x-forwarded-proto: http"];
        assert_eq!(written(Forwarded::XForwarded, false, "::1", "orders", &SENT), expected);
        let kept = written(Forwarded::Append, true, "192.0.2.7", "orders", &SENT);
        assert_eq!(kept[1..3], ["x-forwarded-for: 198.51.100.1", "x-forwarded-for: 198.51.100.2"]);
        assert_eq!(written(Forwarded::Off, false, "192.0.2.7", "orders", &SENT), Vec::<String>::new());
    }
}
