//! CONNECT (RFC 9110, section 9.3.6): a client asks for a way to `SERVICE.mesh:PORT` and speaks what it likes on it; by
//! HTTP/2, on a stream.
//!
//! A service of bytes gets the bytes. To one of HTTP the connection goes on as one that came by a port of that service:
//! what is spoken inside is told from its first bytes, and each request is carried like any other. The port in the target
//! is no address and is ignored, as everywhere; names that are not of this mesh are refused: this is no general proxy.

use std::sync::Arc;

use crate::bound::{self, BoundPort};
use crate::reason::Refused;
use crate::stack::{self, Carrier, Known, Wanted};
use crate::tcp::{self, Connected};

/// What the client is told before its own bytes begin.
pub(crate) const ESTABLISHED: &[u8] = b"HTTP/1.1 200 Connection Established\r\n\r\n";

/// Where such a way leads.
pub(crate) enum Through {
    /// To an instance that has been connected.
    Bytes(Box<Connected>),
    /// To a service of HTTP.
    Requests(Arc<BoundPort>),
}

/// Finds the service a target names, and connects to it if it is one of bytes.
///
/// # Errors
/// Why there is no way, for the client to be told.
pub(crate) async fn open(carrier: &Carrier, host: &[u8], known: &mut Option<Known>) -> Result<Through, Refused> {
    let known = stack::find(carrier, Wanted::Host(host), known)?;
    let (listen, service) = (carrier.settings.listen, known.key.clone());
    let port = BoundPort { listen, service, protocol: None, caller: None };
    if bound::leads_to_bytes(carrier, &port) {
        return Ok(Through::Bytes(Box::new(tcp::connect(carrier, known, None).await?)));
    }
    Ok(Through::Requests(Arc::new(port)))
}
