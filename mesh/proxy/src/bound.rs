//! Ports of this host that lead to one service each, for programs that know no proxy.

use std::fmt;
use std::net::SocketAddr;

use starling_core::id::ServiceKey;
use starling_core::registry::Protocol;

use crate::client::Client;
use crate::mesh::Stream;
use crate::stack::{self, Carrier, Wanted};
use crate::tcp;

/// A port that leads to one service.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct BoundPort {
    /// Where applications connect to.
    pub listen: SocketAddr,
    /// The service.
    pub service: ServiceKey,
    /// What is spoken there; `None`: what the service's instances say.
    pub protocol: Option<Protocol>,
    /// The service whose instance calls by it; `None`: as by the sidecar's own port.
    pub caller: Option<ServiceKey>,
}

impl fmt::Display for BoundPort {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} (to {})", self.listen, self.service)
    }
}

/// Whether connections to this port are carried as bytes, so that nobody waits for the client to speak first. Without a
/// word of the settings and without instances it is not known: then the client is listened to, and hears in HTTP what is
/// missing, if it speaks that.
pub(crate) fn leads_to_bytes(carrier: &Carrier, port: &BoundPort) -> bool {
    let said = || {
        let view = carrier.mesh.view();
        let service = view.service(&port.service)?;
        service.instances.iter().next().map(|instance| instance.instance.protocol)
    };
    port.protocol.or_else(said) == Some(Protocol::Tcp)
}

/// Carries the bytes of a client that came by such a port.
pub(crate) async fn carry<S: Stream>(client: &mut Client<S>, carrier: &Carrier, port: &BoundPort) {
    let mut known = None;
    let connected = match stack::find(carrier, Wanted::Service(&port.service), &mut known) {
        Ok(known) => tcp::connect(carrier, known, port.caller.as_ref()).await,
        Err(refused) => {
            tcp::note_refusal(carrier, None, &refused);
            Err(refused)
        }
    };
    match connected {
        Ok(connected) => connected.carry(carrier, client).await,
        // There is no other way to tell it that this is no ordinary end.
        Err(_) => tcp::copy::cut_off(&mut client.io),
    }
}
