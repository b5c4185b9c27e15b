//! Datagrams between places in memory: late, lost or cut as told.

use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::fmt;
use std::io::{self, IoSliceMut};
use std::net::SocketAddr;
use std::pin::Pin;
use std::sync::{Arc, Mutex, MutexGuard};
use std::task::{Context, Poll, Waker};
use std::time::Duration;

use quinn::udp::{RecvMeta, Transmit};
use quinn::{AsyncUdpSocket, UdpPoller};

/// What a receiving socket holds: the four megabytes a node asks of its kernel.
const BUFFER_BYTES: usize = 4 * 1024 * 1024;
/// The headers of UDP and IPv4, counted with every datagram.
const HEADER_BYTES: u64 = 28;

/// The network between all places.
pub struct Network {
    inside: Mutex<Inside>,
}

struct Inside {
    now: Duration,
    random: fastrand::Rng,
    loss: f64,
    /// The way takes at least the first, at most the second, evenly.
    latency: (Duration, Duration),
    cuts: BTreeSet<(SocketAddr, SocketAddr)>,
    ports: BTreeMap<SocketAddr, Port>,
    sequence: u64,
    trace: u64,
    carried: u64,
}

#[derive(Default)]
struct Port {
    /// On the way here, by arrival.
    coming: BTreeMap<(Duration, u64), Datagram>,
    arrived: VecDeque<Datagram>,
    arrived_bytes: usize,
    waker: Option<Waker>,
    /// Which of the sockets opened here is the one.
    life: u64,
    sent_bytes: u64,
    sent: u64,
}

struct Datagram {
    from: SocketAddr,
    bytes: Vec<u8>,
    ecn: Option<quinn::udp::EcnCodepoint>,
}

impl Network {
    pub fn new(seed: u64) -> Self {
        let inside = Inside {
            now: Duration::ZERO,
            random: fastrand::Rng::with_seed(seed ^ 0x0E7),
            loss: 0.0,
            latency: (super::STEP, super::STEP),
            cuts: BTreeSet::new(),
            ports: BTreeMap::new(),
            sequence: 0,
            trace: 0,
            carried: 0,
        };
        Self { inside: Mutex::new(inside) }
    }

    fn inside(&self) -> MutexGuard<'_, Inside> {
        self.inside.lock().unwrap()
    }

    /// Opens a socket; an earlier one at the same place is deaf and dumb from now on.
    pub fn plug_in(self: &Arc<Self>, address: SocketAddr) -> Arc<dyn AsyncUdpSocket> {
        let mut inside = self.inside();
        inside.sequence += 1;
        let life = inside.sequence;
        let port = Port { life, ..Port::default() };
        inside.ports.insert(address, port);
        Arc::new(MemorySocket { network: self.clone(), address, life })
    }

    /// From now on nobody listens there.
    pub fn unplug(&self, address: SocketAddr) {
        self.inside().ports.remove(&address);
    }

    pub fn set_now(&self, now: Duration) {
        self.inside().now = now;
    }

    /// Every datagram is lost with this probability.
    pub fn set_loss(&self, loss: f64) {
        self.inside().loss = loss;
    }

    pub fn set_latency(&self, least: Duration, most: Duration) {
        self.inside().latency = (least, most);
    }

    pub fn cut(&self, from: SocketAddr, to: SocketAddr) {
        self.inside().cuts.insert((from, to));
    }

    pub fn heal(&self) {
        self.inside().cuts.clear();
    }

    /// Hands over what has arrived at a place by now.
    pub fn deliver(&self, address: SocketAddr, now: Duration) {
        let mut inside = self.inside();
        let Some(port) = inside.ports.get_mut(&address) else { return };
        while let Some(first) = port.coming.first_entry().filter(|first| first.key().0 <= now) {
            let datagram = first.remove();
            if port.arrived_bytes + datagram.bytes.len() <= BUFFER_BYTES {
                port.arrived_bytes += datagram.bytes.len();
                port.arrived.push_back(datagram);
            }
        }
        let waker = if port.arrived.is_empty() { None } else { port.waker.take() };
        drop(inside);
        if let Some(waker) = waker {
            waker.wake();
        }
    }

    /// Datagrams and bytes (headers included) a place has sent since its node started.
    pub fn sent(&self, address: SocketAddr) -> (u64, u64) {
        self.inside().ports.get(&address).map_or((0, 0), |port| (port.sent, port.sent_bytes))
    }

    /// A fingerprint of everything carried so far: when, from where, to where, how long.
    pub fn trace(&self) -> (u64, u64) {
        let inside = self.inside();
        (inside.carried, inside.trace)
    }
}

impl Inside {
    fn send(&mut self, from: SocketAddr, life: u64, to: SocketAddr, datagram: Datagram) {
        let Some(port) = self.ports.get_mut(&from).filter(|port| port.life == life) else { return };
        port.sent += 1;
        port.sent_bytes += datagram.bytes.len() as u64 + HEADER_BYTES;
        self.carried += 1;
        for part in [self.now.as_micros() as u64, number(from), number(to), datagram.bytes.len() as u64] {
            self.trace = (self.trace ^ part).wrapping_mul(0x0000_0100_0000_01B3).rotate_left(23);
        }
        if self.cuts.contains(&(from, to)) || (self.loss > 0.0 && self.random.f64() < self.loss) {
            return;
        }
        let (least, most) = self.latency;
        let spread = most.saturating_sub(least).as_micros() as u64;
        let way = least + Duration::from_micros(if spread == 0 { 0 } else { self.random.u64(0..=spread) });
        self.sequence += 1;
        let sequence = self.sequence;
        let arrival = self.now + way.max(super::STEP);
        if let Some(port) = self.ports.get_mut(&to) {
            port.coming.insert((arrival, sequence), datagram);
        }
    }
}

fn number(address: SocketAddr) -> u64 {
    let SocketAddr::V4(address) = address else { return 0 };
    u64::from(address.ip().to_bits()) << 16 | u64::from(address.port())
}

/// What quinn takes for a UDP socket.
struct MemorySocket {
    network: Arc<Network>,
    address: SocketAddr,
    life: u64,
}

impl fmt::Debug for MemorySocket {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "memory:{}", self.address)
    }
}

impl AsyncUdpSocket for MemorySocket {
    fn create_io_poller(self: Arc<Self>) -> Pin<Box<dyn UdpPoller>> {
        Box::pin(AlwaysWritable)
    }

    fn try_send(&self, transmit: &Transmit<'_>) -> io::Result<()> {
        let datagram = Datagram { from: self.address, bytes: transmit.contents.to_vec(), ecn: transmit.ecn };
        self.network.inside().send(self.address, self.life, transmit.destination, datagram);
        Ok(())
    }

    fn poll_recv(
        &self,
        cx: &mut Context<'_>,
        bufs: &mut [IoSliceMut<'_>],
        meta: &mut [RecvMeta],
    ) -> Poll<io::Result<usize>> {
        let mut inside = self.network.inside();
        let Some(port) = inside.ports.get_mut(&self.address).filter(|port| port.life == self.life) else {
            return Poll::Pending; // unplugged
        };
        let mut count = 0;
        for (buf, meta) in bufs.iter_mut().zip(meta.iter_mut()) {
            let Some(datagram) = port.arrived.pop_front() else { break };
            let len = datagram.bytes.len();
            port.arrived_bytes -= len;
            buf[..len].copy_from_slice(&datagram.bytes);
            *meta = RecvMeta { addr: datagram.from, len, stride: len, ecn: datagram.ecn, dst_ip: None };
            count += 1;
        }
        if count == 0 {
            port.waker = Some(cx.waker().clone());
            return Poll::Pending;
        }
        Poll::Ready(Ok(count))
    }

    fn local_addr(&self) -> io::Result<SocketAddr> {
        Ok(self.address)
    }

    fn may_fragment(&self) -> bool {
        false
    }
}

#[derive(Debug)]
struct AlwaysWritable;

impl UdpPoller for AlwaysWritable {
    fn poll_writable(self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<io::Result<()>> {
        Poll::Ready(Ok(()))
    }
}
