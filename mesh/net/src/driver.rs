//! The one loop that owns the heart: inputs in, outputs carried out.
//!
//! The loop never waits for anybody. Peers are told through bounded mailboxes that drop when full, the disk is a
//! thread with a queue that coalesces, readers take the last published picture. What it is given waits in bounded
//! queues, which it empties in turn, so that no kind of input can starve another; a full queue pushes back on
//! whoever fills it.
//!
//! Inputs are taken in small batches. Peers are told of each change at once; the picture is published, and the disk
//! told, once per batch. A caller hears of its command after the picture shows it and the disk has it.

#[cfg(test)]
mod tests;

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use arc_swap::ArcSwap;
use starling_core::id::{CommandId, NodeId};
use starling_core::quotas::{QuotaId, QuotaUse};
use starling_core::record::{Key, Record};
use starling_core::time::{Instant, Now, WallTime};
use starling_core::view::{Revision, View};
use starling_core::wire::Message;
use starling_core::{Answer, Command, Input, Node, Output, PeerEvent, Refusal};
use tokio::sync::{mpsc, oneshot, watch};

use crate::disk::{Disk, Waiter};
use crate::gauges::{Gauges, InputKind};
use crate::handle::{CommandError, CommandRequest};
use crate::probe::{ProbeResult, Prober};
use crate::quic::Messages;

/// The most inputs between two publications.
const BATCH_INPUTS: usize = 64;
/// And the most time: what was published late is no use to anybody.
const BATCH_TIME: Duration = Duration::from_micros(500);
/// How soon the loop looks again when the disk is so far behind that no commands are taken.
const DISK_RECHECK: Duration = Duration::from_millis(2);
/// The longest sleep; any bound will do, the heart's own timers are far shorter.
const LONGEST_SLEEP: Duration = Duration::from_secs(60);

/// Where the heart's inputs come from.
pub(crate) struct Queues {
    commands: mpsc::Receiver<CommandRequest>,
    messages: Messages,
    events: mpsc::Receiver<PeerEvent>,
    probes: mpsc::Receiver<ProbeResult>,
    /// What is asked of the mesh's quotas: only the last word counts.
    usage: watch::Receiver<Vec<QuotaUse>>,
    /// Whether commands are taken now; when not, their queue fills and callers hear "busy".
    takes_commands: bool,
    /// Whose turn it was last.
    turn: usize,
}

/// Gives a message to a peer if it can; never waits. What does not fit is dropped, and repaired later.
pub(crate) type Outbox = Box<dyn Fn(&NodeId, Message) + Send>;

/// What the heart wants of links and membership besides sending.
pub(crate) enum Wish {
    /// Keep a link to this node of another cell.
    Link(NodeId, String),
    /// Let go of it.
    Unlink(NodeId),
    /// Gossip with whoever is at this address.
    Introduce(String),
}

/// Carries a wish out; never waits.
pub(crate) type Fulfil = Box<dyn Fn(Wish) + Send>;

/// Where its outputs go.
pub(crate) struct World {
    pub(crate) send: Outbox,
    pub(crate) fulfil: Fulfil,
    pub(crate) disk: Disk,
    pub(crate) prober: Prober,
    pub(crate) view: Arc<ArcSwap<View>>,
    pub(crate) changes: watch::Sender<Revision>,
    pub(crate) shares: watch::Sender<Vec<(QuotaId, u64)>>,
    pub(crate) gauges: Arc<Gauges>,
}

/// Both clocks of this process, with the monotonic one counted from a common origin.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Clocks {
    origin: tokio::time::Instant,
    wall: fn() -> WallTime,
}

impl Clocks {
    pub(crate) fn start(wall: fn() -> WallTime) -> Self {
        Self { origin: tokio::time::Instant::now(), wall }
    }

    pub(crate) fn now(&self) -> Now {
        Now { elapsed: Instant(self.origin.elapsed().as_micros() as u64), wall: (self.wall)() }
    }

    fn at(&self, instant: Instant) -> tokio::time::Instant {
        self.origin + Duration::from_micros(instant.0)
    }
}

/// The loop.
pub(crate) struct Driver {
    node: Node,
    clocks: Clocks,
    world: World,
    commands_taken: u64,
    batch: Batch,
}

/// What a batch of inputs has led to so far.
#[derive(Default)]
struct Batch {
    callers: BTreeMap<CommandId, oneshot::Sender<Result<Answer, CommandError>>>,
    replies: Vec<(CommandId, Result<Answer, Refusal>)>,
    changes: Vec<(Key, Option<Record>)>,
    view: Option<Arc<View>>,
}

enum Taken {
    Command(CommandRequest),
    Message(NodeId, Message),
    Event(PeerEvent),
    Probe(ProbeResult),
    Usage(Vec<QuotaUse>),
    Tick,
}

impl Driver {
    /// A loop whose first picture is published already: nobody shall find an empty registry after a restart.
    pub(crate) fn new(node: Node, clocks: Clocks, world: World) -> Self {
        let mut driver = Self { node, clocks, world, commands_taken: 0, batch: Batch::default() };
        driver.take(Taken::Tick, &mut Vec::new());
        driver.finish();
        driver
    }

    /// Runs until told to stop, or until nobody can give it commands any more. Gives back the disk, to be closed.
    pub(crate) async fn run(mut self, mut queues: Queues, mut stop: oneshot::Receiver<()>) -> Disk {
        let mut out = Vec::new();
        loop {
            queues.takes_commands = self.world.disk.has_room();
            let first = match queues.ready() {
                Some(taken) => {
                    // Under load the loop never has to wait; others on this thread shall run all the same.
                    tokio::task::yield_now().await;
                    // The word, or the end of whoever could say it, as below.
                    if stop.try_recv() != Err(oneshot::error::TryRecvError::Empty) {
                        break;
                    }
                    Some(taken)
                }
                None => {
                    let wakeup = self.wakeup(queues.takes_commands);
                    tokio::select! {
                        biased; // whichever is first, the others follow in the same batch
                        _ = &mut stop => break,
                        taken = queues.next() => taken,
                        () = tokio::time::sleep_until(wakeup) => Some(Taken::Tick),
                    }
                }
            };
            let Some(first) = first else { break };
            self.batch(first, &mut queues, &mut out);
        }
        self.world.disk
    }

    fn wakeup(&self, takes_commands: bool) -> tokio::time::Instant {
        let now = tokio::time::Instant::now();
        let due = self.node.next_wakeup().map_or(now + LONGEST_SLEEP, |due| self.clocks.at(due));
        due.min(now + if takes_commands { LONGEST_SLEEP } else { DISK_RECHECK })
    }

    fn batch(&mut self, first: Taken, queues: &mut Queues, out: &mut Vec<Output>) {
        let begun = tokio::time::Instant::now();
        let mut next = Some(first);
        let mut taken = 0;
        while let Some(input) = next {
            self.take(input, out);
            taken += 1;
            let full = taken == BATCH_INPUTS || begun.elapsed() > BATCH_TIME;
            next = if full { None } else { queues.ready() };
        }
        self.finish();
        let [messages, events, probes] = [queues.messages.waiting(), queues.events.len(), queues.probes.len()];
        self.world.gauges.batch(self.node.counters(), messages, events, probes);
    }

    /// Gives the heart one input and carries out what cannot or need not wait for the end of the batch.
    fn take(&mut self, taken: Taken, out: &mut Vec<Output>) {
        let (kind, input) = match taken {
            Taken::Command(request) => {
                if needs_disk(&request.command)
                    && let Some(failing) = self.world.disk.refuses()
                {
                    let _ = request.reply.send(Err(CommandError::Unwritable(failing.reason)));
                    return;
                }
                self.commands_taken += 1;
                let id = CommandId(self.commands_taken);
                self.batch.callers.insert(id, request.reply);
                (InputKind::Command, Input::Command(id, request.command))
            }
            Taken::Message(from, message) => (InputKind::Message, Input::Message(from, message)),
            Taken::Event(event) => (InputKind::Event, Input::Peer(event)),
            Taken::Probe((key, result)) => (InputKind::Probe, Input::Probe(key, result)),
            Taken::Usage(uses) => (InputKind::Usage, Input::Usage(uses)),
            Taken::Tick => (InputKind::Tick, Input::Tick),
        };
        let now = self.clocks.now();
        self.node.handle(now, input, out);
        self.world.gauges.handled(kind, self.clocks.now().elapsed.since(now.elapsed));
        for output in out.drain(..) {
            match output {
                Output::Send(peer, message) => (self.world.send)(&peer, message),
                Output::Persist(record) => self.batch.changes.push((record.key.clone(), Some(record))),
                Output::Forget(key) => self.batch.changes.push((key, None)),
                Output::Reply(id, result) => self.batch.replies.push((id, result)),
                Output::Probe(key, address, check) => self.world.prober.start(key, address, check),
                Output::StopProbe(key) => self.world.prober.stop(&key),
                Output::Link(peer, address) => (self.world.fulfil)(Wish::Link(peer, address)),
                Output::Unlink(peer) => (self.world.fulfil)(Wish::Unlink(peer)),
                Output::Introduce(address) => (self.world.fulfil)(Wish::Introduce(address)),
                Output::Shares(shares) => _ = self.world.shares.send_replace(shares),
                Output::Publish(view) => self.batch.view = Some(view),
            }
        }
    }

    /// Publishes, then hands over to the disk, then answers who need not wait for it.
    fn finish(&mut self) {
        let Batch { mut callers, replies, mut changes, view } = std::mem::take(&mut self.batch);
        if let Some(view) = view {
            let revision = view.revision;
            self.world.view.store(view);
            self.world.changes.send_replace(revision);
        }
        let settled = changes.is_empty() && self.world.disk.is_settled();
        let mut waiters: Vec<Waiter> = Vec::new();
        for (id, result) in replies {
            let Some(caller) = callers.remove(&id) else { continue };
            match result {
                Ok(answer) if !settled => waiters.push(Box::new(move |saved| {
                    // The caller may have gone; the command is carried out all the same.
                    let _ = caller.send(saved.map(|()| answer).map_err(CommandError::Unsaved));
                })),
                result => _ = caller.send(result.map_err(CommandError::Refused)),
            }
        }
        for key in self.world.disk.take_lost() {
            changes.extend(self.node.record(&key).map(|record| (key, Some(record))));
        }
        self.world.disk.submit(changes, waiters);
    }
}

/// Whether a command promises something that only this node's disk can keep. What takes an instance out or tells how it
/// is goes on without: traffic depends on it now, and peers keep it. So does what the settings declare: they are on
/// disk already.
fn needs_disk(command: &Command) -> bool {
    match command {
        Command::Register(registration) => !registration.instance.declared,
        Command::SetOverride(_, value) => value.is_some(),
        Command::WriteConfig(_) => true,
        _ => false,
    }
}

impl Queues {
    pub(crate) fn new(
        commands: mpsc::Receiver<CommandRequest>,
        messages: Messages,
        events: mpsc::Receiver<PeerEvent>,
        probes: mpsc::Receiver<ProbeResult>,
        usage: watch::Receiver<Vec<QuotaUse>>,
    ) -> Self {
        Self { commands, messages, events, probes, usage, takes_commands: true, turn: 0 }
    }

    /// The next input; `None` when nobody is left who could give a command.
    async fn next(&mut self) -> Option<Taken> {
        tokio::select! {
            biased;
            Some(event) = self.events.recv() => Some(Taken::Event(event)),
            request = self.commands.recv(), if self.takes_commands => request.map(Taken::Command),
            Some((from, message)) = self.messages.recv() => Some(Taken::Message(from, message)),
            Some(result) = self.probes.recv() => Some(Taken::Probe(result)),
            Ok(()) = self.usage.changed() => Some(Taken::Usage(self.usage.borrow_and_update().clone())),
            else => std::future::pending().await,
        }
    }

    /// An input that waits already, each queue in its turn.
    fn ready(&mut self) -> Option<Taken> {
        (0..5).find_map(|_| {
            self.turn = (self.turn + 1) % 5;
            match self.turn {
                0 if self.takes_commands => self.commands.try_recv().ok().map(Taken::Command),
                1 => self.messages.try_recv().map(|(from, message)| Taken::Message(from, message)),
                2 => self.events.try_recv().ok().map(Taken::Event),
                3 => self.probes.try_recv().ok().map(Taken::Probe),
                4 if self.usage.has_changed().unwrap_or(false) => {
                    Some(Taken::Usage(self.usage.borrow_and_update().clone()))
                }
                _ => None,
            }
        })
    }
}
