//! A cell of real nodes in one process, on a network and a clock of the test's own.
//!
//! Every node is what production runs: `starling_net::start_on` with its certificate, quinn, chitchat, heart and loop. Only
//! what it stands on differs: an in-memory [`network`] for the socket, and a tokio runtime of its own with a paused
//! clock. The cell moves all clocks on together, step by step, and carries datagrams between two steps. So a node can be
//! killed (its runtime is dropped), or stand still while the others go on (its runtime is not run), exactly as the
//! system would do it to a process; and hours pass in seconds.

#![allow(dead_code, unreachable_pub, clippy::unwrap_used)] // each program uses a part; helpers of tests fail by panicking

pub mod network;

use std::cell::Cell as Slot;
use std::io::{self, Write};
use std::net::SocketAddr;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use network::Network;
use starling_core::id::{InstanceKey, NodeId, ServiceKey};
use starling_core::observe::{Exposition, MetricSource};
use starling_core::registry::{Address, Instance, Registration};
use starling_core::time::WallTime;
use starling_core::view::{MemberState, View};
use starling_core::{Answer, Command};
use starling_net::quic::Limits;
use starling_net::{Authority, CommandError, Ground, Identity, MemberSettings, NetSettings, Running, start_on};
use tokio::runtime::Runtime;
use tokio::time::Instant;

/// How far all clocks go at a time, and so the shortest time on the way.
pub const STEP: Duration = Duration::from_millis(5);
/// When every run begins, in milliseconds since 1970: some day in 2027.
const EPOCH_MS: u64 = 1_800_000_000_000;

thread_local! {
    /// The wall clock of the node that runs now.
    static WALL_MS: Slot<u64> = const { Slot::new(EPOCH_MS) };
}

fn wall() -> WallTime {
    WallTime(WALL_MS.get())
}

/// What a cell is made of.
#[derive(Debug, Clone)]
pub struct Plan {
    pub seed: u64,
    /// The setting of all nodes.
    pub members: MemberSettings,
    /// How many nodes, beginning with the first, everybody has for seeds.
    pub seeds: usize,
    /// How many cells they are dealt to, in turn.
    pub cells: usize,
}

impl Default for Plan {
    fn default() -> Self {
        Self { seed: 1, members: MemberSettings::default(), seeds: 3, cells: 1 }
    }
}

/// Real nodes, an in-memory network, and one clock.
pub struct Cell {
    pub plan: Plan,
    pub network: Arc<Network>,
    pub now: Duration,
    pub seats: Vec<Seat>,
    authority: Authority,
    random: fastrand::Rng,
}

/// A place on the network, and the node that runs there, if one does.
pub struct Seat {
    pub name: NodeId,
    pub address: SocketAddr,
    process: Option<Process>,
    frozen_until: Duration,
    /// How far its wall clock is ahead, in milliseconds.
    pub skew_ms: i64,
}

struct Process {
    running: Running,
    runtime: Runtime,
    /// Its monotonic clock at the cell's time zero.
    origin: Instant,
}

pub fn name(number: usize) -> NodeId {
    format!("n{number}").parse().unwrap()
}

pub fn address(number: usize) -> SocketAddr {
    SocketAddr::from(([10, 0, (number / 200) as u8, 1 + (number % 200) as u8], 7_000))
}

pub fn key(instance: &str) -> InstanceKey {
    let service = ServiceKey { namespace: Default::default(), service: "orders".parse().unwrap() };
    InstanceKey { service, instance: instance.parse().unwrap() }
}

impl Cell {
    /// A cell without nodes.
    pub fn empty(plan: Plan) -> Self {
        fastrand::seed(plan.seed);
        Self {
            network: Arc::new(Network::new(plan.seed)),
            now: Duration::ZERO,
            seats: Vec::new(),
            authority: Authority::throw_away(&"memory".parse().unwrap()).unwrap(),
            random: fastrand::Rng::with_seed(plan.seed ^ 0x5EA7),
            plan,
        }
    }

    /// So many nodes, all started within a second.
    pub fn of(size: usize, plan: Plan) -> Self {
        let mut cell = Self::empty(plan);
        let starts: Vec<Duration> = {
            let mut starts: Vec<_> = (0..size).map(|_| Duration::from_micros(cell.random.u64(0..1_000_000))).collect();
            starts.sort();
            starts
        };
        for (number, at) in starts.into_iter().enumerate() {
            cell.run_until(at);
            cell.start(number, name(number));
        }
        cell
    }

    /// Starts a node of this name at a place: a new process with an empty disk. Places are made in order.
    pub fn start(&mut self, place: usize, name: NodeId) {
        let settings = self.plan.members.clone();
        self.start_with(place, name, settings);
    }

    /// As [`Self::start`], with settings of its own.
    pub fn start_with(&mut self, place: usize, name: NodeId, mut members: MemberSettings) {
        let address = address(place);
        if place == self.seats.len() {
            self.seats.push(Seat {
                name: name.clone(),
                address,
                process: None,
                frozen_until: Duration::ZERO,
                skew_ms: 0,
            });
        }
        members.seeds.extend((0..self.plan.seeds).map(self::address).filter(|a| *a != address).map(|a| a.to_string()));
        let pem = self.authority.issue(&name, Duration::from_secs(3600)).unwrap();
        let identity = Identity::from_pem(&pem).unwrap();
        let mut quic_seed = [0; 32];
        self.random.fill(&mut quic_seed);
        let ground = Ground { socket: Some(self.network.plug_in(address)), wall, quic_seed: Some(quic_seed) };
        let settings = NetSettings {
            listen: address,
            seed: Some(self.random.u64(..)),
            span_capacity: 1,
            cell: format!("c{}", place % self.plan.cells).parse().unwrap(),
            members,
            links: Limits::default(),
            ..NetSettings::default()
        };
        let runtime = tokio::runtime::Builder::new_current_thread().enable_time().start_paused(true).build().unwrap();
        let seat = &mut self.seats[place];
        assert!(seat.process.is_none(), "a node runs at place {place}");
        WALL_MS.set(wall_ms(self.now, seat.skew_ms));
        let (origin, running) = runtime
            .block_on(async { (Instant::now() - self.now, start_on(&identity, settings, ground).await.unwrap()) });
        seat.name = name;
        seat.frozen_until = self.now;
        seat.process = Some(Process { running, runtime, origin });
    }

    /// Ends a process without a word, as `kill -9` does.
    pub fn kill(&mut self, place: usize) {
        self.network.unplug(self.seats[place].address);
        if let Some(Process { running, runtime, .. }) = self.seats[place].process.take() {
            drop(runtime); // before what it ran is let go of, which would say good-bye
            drop(running);
        }
    }

    /// Ends it politely, while the others go on.
    pub fn stop(&mut self, place: usize) {
        let Some(Process { running, runtime, origin }) = self.seats[place].process.take() else { return };
        let stopping = runtime.spawn(running.stop(Duration::from_secs(5)));
        let address = self.seats[place].address;
        while !stopping.is_finished() {
            let end = self.now + STEP;
            self.network.deliver(address, self.now);
            // Made inside: a timer belongs to the runtime it is made in.
            runtime.block_on(async { tokio::time::sleep_until(origin + end).await });
            self.step();
        }
        self.network.unplug(address);
    }

    /// A node stands still for so long: nothing of it runs, and what is sent to it waits.
    pub fn freeze(&mut self, place: usize, span: Duration) {
        self.seats[place].frozen_until = self.now + span;
    }

    /// Moves every clock on by one step.
    pub fn step(&mut self) {
        let end = self.now + STEP;
        for seat in &mut self.seats {
            let Some(process) = &seat.process else { continue };
            if seat.frozen_until > self.now {
                continue;
            }
            self.network.deliver(seat.address, self.now);
            WALL_MS.set(wall_ms(self.now, seat.skew_ms));
            let (begin, end) = (process.origin + self.now, process.origin + end);
            process.runtime.block_on(async {
                // After standing still: time has passed at once, as for a process that was stopped.
                let missed = begin.saturating_duration_since(Instant::now());
                if missed > STEP {
                    tokio::time::advance(missed).await;
                }
                tokio::time::sleep_until(end).await;
            });
        }
        self.now = end;
        self.network.set_now(end);
    }

    pub fn run_for(&mut self, span: Duration) {
        self.run_until(self.now + span);
    }

    fn run_until(&mut self, end: Duration) {
        while self.now < end {
            self.step();
        }
    }

    /// Runs until something is so, and says how long that took; fails when it is not so in time.
    pub fn until(&mut self, what: &str, within: Duration, condition: impl Fn(&Self) -> bool) -> Duration {
        let begun = self.now;
        while !condition(self) {
            assert!(self.now - begun < within, "not within {within:?}: {what}\n{}", self.show());
            for _ in 0..4 {
                self.step();
            }
        }
        self.now - begun
    }

    /// Who has how many members, for a test that fails.
    fn show(&self) -> String {
        let line = |seat: &Seat| {
            let alive: Vec<String> = self.view(seat).map(|view| view.alive().map(|m| m.node.to_string()).collect())?;
            Some(format!(
                "{}: {} {}\n",
                seat.name,
                alive.len(),
                if alive.len() < 12 { alive.join(" ") } else { String::new() }
            ))
        };
        self.seats.iter().filter_map(line).collect()
    }

    fn view(&self, seat: &Seat) -> Option<Arc<View>> {
        Some(seat.process.as_ref()?.running.handle.view())
    }

    /// The places where nodes run.
    pub fn running(&self) -> Vec<usize> {
        (0..self.seats.len()).filter(|place| self.seats[*place].process.is_some()).collect()
    }

    /// What the node at one place thinks of a node.
    pub fn state(&self, at: usize, of: &NodeId) -> Option<MemberState> {
        Some(self.view(&self.seats[at])?.member(of)?.state)
    }

    /// Where the node at a place thinks a node is.
    pub fn address_of(&self, at: usize, of: &NodeId) -> Option<SocketAddr> {
        self.view(&self.seats[at])?.member(of)?.facts.address.parse().ok()
    }

    /// How many nodes the node at a place counts as alive, itself included.
    pub fn alive_at(&self, place: usize) -> usize {
        self.view(&self.seats[place]).map_or(0, |view| view.alive().count())
    }

    /// Whether all these see each other and nobody else.
    pub fn are_one(&self, places: &[usize]) -> bool {
        places.iter().all(|at| self.are_alive(*at, places))
    }

    /// Whether a node counts exactly these as alive.
    pub fn are_alive(&self, at: usize, places: &[usize]) -> bool {
        let alive = |of: &usize| self.state(at, &self.seats[*of].name) == Some(MemberState::Alive);
        self.alive_at(at) == places.len() && places.iter().all(alive)
    }

    /// Whether all of these think so of a node.
    pub fn all_think(&self, places: &[usize], of: &NodeId, state: MemberState) -> bool {
        places.iter().all(|at| self.state(*at, of) == Some(state))
    }

    pub fn command(&self, at: usize, command: Command) -> Result<Answer, CommandError> {
        let process = self.seats[at].process.as_ref().unwrap();
        process.runtime.block_on(process.running.handle.command(command))
    }

    pub fn register(&self, at: usize, instance: &str) {
        let address = Address { host: "10.9.9.9".into(), port: 80 };
        self.command(at, Command::Register(Registration { key: key(instance), instance: Instance::at(address) }))
            .unwrap();
    }

    /// Whether a node has an instance in its picture.
    pub fn knows(&self, at: usize, instance: &str) -> bool {
        self.view(&self.seats[at]).is_some_and(|view| view.instance(&key(instance)).is_some())
    }

    /// The sum of all samples of a metric of one node.
    pub fn metric(&self, at: usize, metric: &str) -> f64 {
        let Some(process) = &self.seats[at].process else { return 0.0 };
        let mut text = Exposition::default();
        process.running.handle.collect(&mut text);
        let value = |line: &str| {
            let (name, value) = line.rsplit_once(' ')?;
            let (plain, _) = name.split_once('{').unwrap_or((name, ""));
            (plain == metric || name == metric).then(|| value.parse::<f64>().ok())?
        };
        text.finish().lines().filter_map(value).sum()
    }

    /// Cuts every line between these and those, both ways.
    pub fn cut(&self, these: &[usize], those: &[usize]) {
        for one in these {
            for other in those {
                self.cut_one_way(*one, *other);
                self.cut_one_way(*other, *one);
            }
        }
    }

    pub fn cut_one_way(&self, from: usize, to: usize) {
        self.network.cut(self.seats[from].address, self.seats[to].address);
    }

    pub fn heal(&self) {
        self.network.heal();
    }
}

fn wall_ms(now: Duration, skew_ms: i64) -> u64 {
    (EPOCH_MS + now.as_millis() as u64).saturating_add_signed(skew_ms)
}

/// Collects what is logged on this thread, on which a whole cell lives.
#[derive(Clone, Default)]
pub struct Log(Arc<Mutex<Vec<u8>>>);

impl Log {
    /// Until the guard is dropped.
    pub fn capture() -> (Self, tracing::subscriber::DefaultGuard) {
        let log = Self::default();
        let writer = log.clone();
        let subscriber = tracing_subscriber::fmt()
            .with_max_level(tracing::Level::WARN)
            .with_ansi(false)
            .with_writer(move || writer.clone())
            .finish();
        (log, tracing::subscriber::set_default(subscriber))
    }

    /// Fails unless one line has all these words.
    pub fn says(&self, words: &[&str]) {
        let text = String::from_utf8_lossy(&self.0.lock().unwrap()).into_owned();
        let said = text.lines().any(|line| words.iter().all(|word| line.contains(word)));
        assert!(said, "no line says {words:?} in:\n{text}");
    }
}

impl Write for Log {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        self.0.lock().unwrap().extend_from_slice(bytes);
        Ok(bytes.len())
    }
    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}
