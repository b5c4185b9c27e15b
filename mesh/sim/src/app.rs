//! A program of your own under the mesh: run on every node by the same world, through the same cuts, crashes and clocks.
//!
//! Write the part of your program that decides as a state machine: inputs and the time go in, messages and writes come
//! out, and nothing else is touched (no socket, clock, thread or file). In production a small driver connects it to the
//! network, the disk and a Starling node; here the simulator does.
//!
//! ```
//! use starling_sim::app::{App, Input, Now, Outbox};
//! use starling_sim::{Mesh, millis};
//!
//! /// Remembers the largest number anybody was told.
//! #[derive(Debug, Default)]
//! struct Largest(u64);
//!
//! impl App for Largest {
//!     type Message = u64;
//!     type Command = u64;
//!     type Answer = u64;
//!
//!     fn handle(&mut self, _: Now, input: Input<Self>, out: &mut Outbox<Self>) {
//!         match input {
//!             Input::Command(ticket, number) => {
//!                 self.0 = self.0.max(number);
//!                 out.persist("largest", self.0.to_be_bytes());
//!                 out.tell_all(self.0);
//!                 out.reply(ticket, self.0); // once it is on disk
//!             }
//!             Input::Message(_, number) => self.0 = self.0.max(number),
//!             Input::View(_) | Input::Wake => {}
//!         }
//!     }
//! }
//!
//! let mut mesh = Mesh::builder(7).nodes(3).app(|start| {
//!     let kept = start.disk.get("largest").and_then(|bytes| bytes.as_slice().try_into().ok());
//!     Largest(kept.map_or(0, u64::from_be_bytes))
//! }).build();
//! mesh.cut(&["n3"], &["n1", "n2"]);
//! assert_eq!(mesh.tell::<Largest>("n1", 17).unwrap(), 17);
//! mesh.run_for(millis(10));
//! assert_eq!(mesh.app::<Largest>("n2").unwrap().0, 17);
//! assert_eq!(mesh.app::<Largest>("n3").unwrap().0, 0); // nobody tells it again: a protocol with a hole
//! ```
//!
//! [`Input::View`] brings what the node's heart shows whenever that changes: who is there, which instances are ready,
//! which documents are served. [`Outbox::mesh`] asks the heart for something, such as to register an instance.
//! With [`App::draw`], drawn runs ([`swarm`](crate::swarm)) include commands to the program.

use std::any::Any;
use std::collections::BTreeMap;
use std::fmt;
use std::sync::Arc;

use starling_core::Command;
use starling_core::id::Zone;

pub use starling_core::id::NodeId;
pub use starling_core::time::{Instant, Now};
pub use starling_core::view::View;

use crate::links::micros;
use crate::mesh::{CommandError, Mesh, PATIENCE};
use crate::options::{Builder, Options};

/// How many answers are kept to be looked at; older ones are forgotten.
const MAX_ANSWERED: usize = 100_000;

/// A program that runs on every node.
pub trait App: fmt::Debug + Send + Sized + 'static {
    /// What its copies say to each other. May be lost, doubled and overtaken.
    type Message: Clone + fmt::Debug + Send + Sync + 'static;
    /// What its users ask of it.
    type Command: fmt::Debug + Send + 'static;
    /// What its users are told.
    type Answer: Clone + fmt::Debug + Send + 'static;

    /// Takes one input; what follows from it goes into `out`.
    fn handle(&mut self, now: Now, input: Input<Self>, out: &mut Outbox<Self>);

    /// When [`Input::Wake`] is due, by the clock that does not jump ([`Now::elapsed`]). Asked after every input.
    fn next_wakeup(&self) -> Option<Instant> {
        None
    }

    /// How large a message is on the wire, in bytes: for bandwidth and figures. Default: its size in memory.
    fn wire_size(message: &Self::Message) -> usize {
        size_of_val(message)
    }

    /// A command drawn by chance, for runs that are drawn from a seed. Default: none.
    fn draw(chance: &mut fastrand::Rng) -> Option<Self::Command> {
        let _ = chance;
        None
    }
}

/// What can happen to a program.
#[derive(Debug)]
pub enum Input<A: App> {
    /// A copy of it on another node said something.
    Message(NodeId, A::Message),
    /// A user asks something; answer with [`Outbox::reply`], at once or later.
    Command(Ticket, A::Command),
    /// The node's heart shows something new.
    View(Arc<View>),
    /// It is time; due at [`App::next_wakeup`].
    Wake,
}

/// Which command an answer belongs to.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub struct Ticket(u64);

/// What a program starts with.
#[derive(Debug)]
pub struct Start<'a> {
    /// The node it runs on.
    pub node: &'a NodeId,
    /// Which start of the node this is, counted from 1; never the same twice, whatever its disk has kept.
    pub run: u64,
    /// All nodes there are, running or not, this one included.
    pub nodes: &'a [NodeId],
    /// The node's zone.
    pub zone: &'a Zone,
    /// What earlier starts have kept.
    pub disk: &'a BTreeMap<String, Vec<u8>>,
    /// Both its clocks.
    pub now: Now,
    /// Chance, if it needs any; another one at every start.
    pub seed: u64,
}

/// What a program wants from the world.
#[derive(Debug)]
pub struct Outbox<A: App> {
    wants: Vec<Want<A>>,
}

#[derive(Debug)]
enum Want<A: App> {
    Send(NodeId, A::Message),
    SendAll(A::Message),
    Keep(String, Option<Vec<u8>>),
    Reply(Ticket, A::Answer),
    Mesh(Command),
    Note(String),
}

impl<A: App> Outbox<A> {
    /// Sends something to the copy on another node. Nobody knows whether it arrives.
    pub fn send(&mut self, to: NodeId, message: A::Message) {
        self.wants.push(Want::Send(to, message));
    }

    /// Sends something to the copies on all other nodes.
    pub fn tell_all(&mut self, message: A::Message) {
        self.wants.push(Want::SendAll(message));
    }

    /// Keeps something on disk under a name. It is there once the disk has had its time.
    pub fn persist(&mut self, name: impl Into<String>, bytes: impl Into<Vec<u8>>) {
        self.wants.push(Want::Keep(name.into(), Some(bytes.into())));
    }

    /// Takes something off the disk.
    pub fn forget(&mut self, name: impl Into<String>) {
        self.wants.push(Want::Keep(name.into(), None));
    }

    /// Answers a command, once everything given to the disk before this is there.
    pub fn reply(&mut self, ticket: Ticket, answer: A::Answer) {
        self.wants.push(Want::Reply(ticket, answer));
    }

    /// Asks the node's heart for something; see [`ask`](crate::ask). What comes of it is seen in [`Input::View`].
    pub fn mesh(&mut self, command: Command) {
        self.wants.push(Want::Mesh(command));
    }

    /// Writes a line into the journal of the run.
    pub fn note(&mut self, what: impl Into<String>) {
        self.wants.push(Want::Note(what.into()));
    }
}

/// A message between two copies, whatever its type.
pub(crate) type Letter = Arc<dyn Any + Send + Sync>;

/// What an effect of any program is to the world.
#[derive(Debug)]
pub(crate) enum Effect {
    Send { to: Option<NodeId>, letter: Letter, bytes: usize },
    Keep(String, Option<Vec<u8>>),
    Reply(u64),
    Mesh(Command),
    Note(String),
}

/// What can happen to a program of any type.
#[derive(Debug)]
pub(crate) enum Event {
    Letter(NodeId, Letter),
    View(Arc<View>),
    Wake,
}

/// The copies of a program of any type, as the world runs them.
pub(crate) trait Guests: fmt::Debug + Send {
    fn start(&mut self, at: usize, start: Start<'_>);
    fn stop(&mut self, at: usize);
    fn handle(&mut self, at: usize, now: Now, event: Event) -> Vec<Effect>;
    /// A command drawn by chance: what it says and what it does.
    fn draw(&mut self, at: usize, now: Now, chance: &mut fastrand::Rng) -> Option<(String, Vec<Effect>)>;
    fn next_wakeup(&self, at: usize) -> Option<Instant>;
    /// The answer to this command is on its way to the user now.
    fn release(&mut self, ticket: u64);
    fn any(&self) -> &dyn Any;
    fn any_mut(&mut self) -> &mut dyn Any;
}

/// Makes a program at every start of a node.
type Factory<A> = Arc<dyn Fn(Start<'_>) -> A + Send + Sync>;

struct Copies<A: App> {
    make: Factory<A>,
    running: Vec<Option<A>>,
    /// Answers that wait for the disk, by command, each with its node.
    waiting: BTreeMap<u64, (usize, A::Answer)>,
    /// Answers that were given, to be picked up and to be looked at.
    answered: BTreeMap<u64, (usize, A::Answer)>,
    tickets: u64,
}

impl<A: App> fmt::Debug for Copies<A> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Copies").field("running", &self.running).finish_non_exhaustive()
    }
}

impl<A: App> Copies<A> {
    fn take(&mut self, at: usize, now: Now, input: Input<A>) -> Vec<Effect> {
        let mut out = Outbox { wants: Vec::new() };
        let Some(Some(app)) = self.running.get_mut(at) else { return Vec::new() };
        app.handle(now, input, &mut out);
        out.wants.into_iter().map(|want| self.effect(at, want)).collect()
    }

    fn effect(&mut self, at: usize, want: Want<A>) -> Effect {
        match want {
            Want::Send(to, message) => {
                let bytes = A::wire_size(&message);
                Effect::Send { to: Some(to), letter: Arc::new(message), bytes }
            }
            Want::SendAll(message) => {
                let bytes = A::wire_size(&message);
                Effect::Send { to: None, letter: Arc::new(message), bytes }
            }
            Want::Keep(name, bytes) => Effect::Keep(name, bytes),
            Want::Reply(Ticket(ticket), answer) => {
                self.waiting.insert(ticket, (at, answer));
                Effect::Reply(ticket)
            }
            Want::Mesh(command) => Effect::Mesh(command),
            Want::Note(what) => Effect::Note(what),
        }
    }

    fn command(&mut self, at: usize, now: Now, command: A::Command) -> (Ticket, Vec<Effect>) {
        self.tickets += 1;
        let ticket = Ticket(self.tickets);
        (ticket, self.take(at, now, Input::Command(ticket, command)))
    }
}

impl<A: App> Guests for Copies<A> {
    fn start(&mut self, at: usize, start: Start<'_>) {
        self.running[at] = Some((self.make)(start));
    }

    fn stop(&mut self, at: usize) {
        self.running[at] = None;
        self.waiting.retain(|_, (node, _)| *node != at);
    }

    fn handle(&mut self, at: usize, now: Now, event: Event) -> Vec<Effect> {
        let input = match event {
            Event::View(view) => Input::View(view),
            Event::Wake => Input::Wake,
            Event::Letter(from, letter) => match letter.downcast_ref::<A::Message>() {
                Some(message) => Input::Message(from, message.clone()),
                None => unreachable!("all copies in a mesh are of one type"),
            },
        };
        self.take(at, now, input)
    }

    fn draw(&mut self, at: usize, now: Now, chance: &mut fastrand::Rng) -> Option<(String, Vec<Effect>)> {
        let command = A::draw(chance)?;
        let told = format!("{command:?}");
        Some((told, self.command(at, now, command).1))
    }

    fn next_wakeup(&self, at: usize) -> Option<Instant> {
        self.running[at].as_ref()?.next_wakeup()
    }

    fn release(&mut self, ticket: u64) {
        let Some(answer) = self.waiting.remove(&ticket) else { return };
        if self.answered.len() >= MAX_ANSWERED {
            self.answered.pop_first();
        }
        self.answered.insert(ticket, answer);
    }

    fn any(&self) -> &dyn Any {
        self
    }

    fn any_mut(&mut self) -> &mut dyn Any {
        self
    }
}

/// Makes the copies of one mesh.
type MakeCopies = dyn Fn(&Options) -> Box<dyn Guests> + Send + Sync;

/// Which program runs on the nodes.
#[derive(Clone)]
pub(crate) struct Program(Arc<MakeCopies>);

impl Program {
    pub(crate) fn copies(&self, options: &Options) -> Box<dyn Guests> {
        (self.0)(options)
    }
}

impl fmt::Debug for Program {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Program")
    }
}

impl Builder {
    /// Runs a program of your own on every node; made anew at every start of a node, from what its disk has kept.
    pub fn app<A: App>(mut self, make: impl Fn(Start<'_>) -> A + Send + Sync + 'static) -> Self {
        let make: Factory<A> = Arc::new(make);
        self.program = Some(Program(Arc::new(move |options| {
            let running = options.nodes.iter().map(|_| None).collect();
            let (waiting, answered) = (BTreeMap::new(), BTreeMap::new());
            Box::new(Copies { make: make.clone(), running, waiting, answered, tickets: 0 })
        })));
        self
    }
}

/// A program of one's own.
impl Mesh {
    #[track_caller]
    fn copies<A: App>(&self) -> &Copies<A> {
        let copies = self.world.guests.as_ref().and_then(|guests| guests.any().downcast_ref());
        match copies {
            Some(copies) => copies,
            None => panic!("no {} runs in this mesh; give it to the builder", std::any::type_name::<A>()),
        }
    }

    /// The copy of the program on a node, if that is up.
    #[track_caller]
    pub fn app<A: App>(&self, node: &str) -> Option<&A> {
        self.copies().running[self.node(node)].as_ref()
    }

    /// Asks something of the copy on a node and lets time pass until it answers.
    ///
    /// # Errors
    /// [`CommandError`]; when it did not answer (within a minute, or it crashed), the command may have been done or not.
    #[track_caller]
    pub fn tell<A: App>(&mut self, node: &str, command: A::Command) -> Result<A::Answer, CommandError> {
        let ticket = self.tell_later::<A>(node, command)?;
        let deadline = self.world.now + micros(PATIENCE);
        loop {
            if let Some(answer) = self.told::<A>(ticket) {
                return Ok(answer);
            }
            if !self.world.step(deadline) {
                return Err(CommandError::Unanswered(self.world.hosts[self.node(node)].id.clone()));
            }
        }
    }

    /// Asks something of the copy on a node and does not wait.
    ///
    /// # Errors
    /// [`CommandError::NoNode`] and [`CommandError::NotRunning`].
    #[track_caller]
    pub fn tell_later<A: App>(&mut self, node: &str, command: A::Command) -> Result<Ticket, CommandError> {
        let at = self.world.find(node).ok_or_else(|| CommandError::NoNode(node.into()))?;
        if !self.world.hosts[at].is_running() {
            return Err(CommandError::NotRunning(self.world.hosts[at].id.clone()));
        }
        self.copies::<A>();
        self.world.note(format!("{node}: {command:?}"));
        let mut given = None;
        self.world.with_app(at, |guests, now| {
            let copies: &mut Copies<A> = guests.any_mut().downcast_mut()?;
            let (ticket, effects) = copies.command(at, now, command);
            given = Some(ticket);
            Some(effects)
        });
        Ok(given.expect("the program was there a moment ago"))
    }

    /// The answer to a command, if there is one by now.
    #[track_caller]
    pub fn told<A: App>(&self, ticket: Ticket) -> Option<A::Answer> {
        self.copies::<A>().answered.get(&ticket.0).map(|(_, answer)| answer.clone())
    }

    /// Every answer any user was given so far (the last 100,000), with the node that gave it: what a checker holds the
    /// program to.
    #[track_caller]
    pub fn answers<A: App>(&self) -> impl Iterator<Item = (&NodeId, &A::Answer)> {
        self.copies::<A>().answered.values().map(|(at, answer)| (&self.world.hosts[*at].id, answer))
    }
}
