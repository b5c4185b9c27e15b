//! What the loop promises, as sentences.

use std::path::Path;
use std::sync::Mutex;

use starling_core::Settings;
use starling_core::id::{Incarnation, InstanceKey, MeshName, ServiceKey};
use starling_core::registry::{Address, Check, CheckKind, Instance, Registration};
use starling_core::view::{NodeFacts, Usability};
use starling_core::{Command, Refusal};
use tokio::net::TcpListener;
use tokio::task::JoinHandle;

use super::*;
use crate::disk::{Opened, wall_now};
use crate::handle::give;
use crate::quic::{Post, post};

/// A loop with a heart and a disk, and nothing real around it.
struct Loop {
    commands: mpsc::Sender<CommandRequest>,
    events: mpsc::Sender<PeerEvent>,
    _usage: watch::Sender<Vec<starling_core::quotas::QuotaUse>>,
    _messages: Post,
    sent: Arc<Mutex<Vec<(NodeId, Message)>>>,
    view: Arc<ArcSwap<View>>,
    changes: watch::Receiver<Revision>,
    stop: oneshot::Sender<()>,
    task: JoinHandle<Disk>,
}

/// How many commands a test's loop lets wait.
const QUEUE: usize = 8;

impl Loop {
    fn start(opened: Opened) -> Self {
        let clocks = Clocks::start(wall_now);
        let facts = facts(opened.incarnation);
        let node = Node::new("a".parse().unwrap(), facts, Settings::default(), opened.memory, 1, clocks.now());
        let (commands, command_queue) = mpsc::channel(QUEUE);
        let (messages, message_queue) = post(QUEUE);
        let (events, event_queue) = mpsc::channel(QUEUE);
        let (probes, probe_queue) = mpsc::channel(QUEUE);
        let (changed, changes) = watch::channel(Revision::default());
        let view = Arc::new(ArcSwap::new(node.view().clone()));
        let sent: Arc<Mutex<Vec<_>>> = Arc::default();
        let outbox = sent.clone();
        let world = World {
            send: Box::new(move |peer, message| outbox.lock().unwrap().push((peer.clone(), message))),
            fulfil: Box::new(|_| {}),
            disk: opened.disk,
            prober: Prober::new(probes),
            view: view.clone(),
            changes: changed,
            shares: watch::channel(Vec::new()).0,
            gauges: Arc::default(),
        };
        let (usage, used) = watch::channel(Vec::new());
        let queues = Queues::new(command_queue, message_queue, event_queue, probe_queue, used);
        let (stop, stopped) = oneshot::channel();
        let task = tokio::spawn(Driver::new(node, clocks, world).run(queues, stopped));
        Self { commands, events, _usage: usage, _messages: messages, sent, view, changes, stop, task }
    }

    fn give(&self, command: Command) -> oneshot::Receiver<Result<Answer, CommandError>> {
        give(&self.commands, command).unwrap()
    }

    async fn command(&self, command: Command) -> Result<Answer, CommandError> {
        self.give(command).await.unwrap()
    }

    async fn meet(&self, node: &str) {
        self.events.send(PeerEvent::Up(node.parse().unwrap(), facts(Incarnation(1)))).await.unwrap();
        self.sees(|view| view.member(&node.parse().unwrap()).is_some()).await;
    }

    /// Waits until the published picture is as wanted.
    async fn sees(&self, wanted: impl Fn(&View) -> bool) {
        let mut changes = self.changes.clone();
        let seen = async {
            while !wanted(&self.view.load()) {
                changes.changed().await.unwrap();
            }
        };
        tokio::time::timeout(Duration::from_secs(10), seen).await.expect("the picture should have changed");
    }

    async fn stop(self) {
        drop(self.stop);
        self.task.await.unwrap().close().await;
    }
}

fn facts(incarnation: Incarnation) -> NodeFacts {
    let address = "127.0.0.1:1".into();
    NodeFacts {
        incarnation,
        zone: Default::default(),
        region: Default::default(),
        cell: Default::default(),
        version: "test".into(),
        address,
    }
}

fn open(dir: &Path) -> Opened {
    Disk::open(dir, &MeshName::default(), &"a".parse().unwrap()).unwrap()
}

fn key(instance: &str) -> InstanceKey {
    let service = ServiceKey { namespace: Default::default(), service: "orders".parse().unwrap() };
    InstanceKey { service, instance: instance.parse().unwrap() }
}

fn register(instance: &str) -> Command {
    let address = Address { host: "127.0.0.1".into(), port: 80 };
    Command::Register(Registration { key: key(instance), instance: Instance::at(address) })
}

#[tokio::test]
async fn an_answered_command_is_on_disk_and_in_the_picture() {
    let (dir, copy) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
    let a = Loop::start(open(dir.path()));
    for i in 0..5 {
        let Answer::Done { revision, .. } = a.command(register(&i.to_string())).await.unwrap();
        assert!(a.view.load().revision >= revision);
        // What a kill at this moment would leave behind:
        std::fs::copy(dir.path().join("starling.log"), copy.path().join("starling.log")).unwrap();
        let found = open(copy.path());
        assert_eq!(found.memory.records.len(), i + 1);
        found.disk.close().await;
    }
    a.stop().await;
}

#[tokio::test]
async fn instances_are_back_after_a_restart() {
    let dir = tempfile::tempdir().unwrap();
    let a = Loop::start(open(dir.path()));
    a.command(register("o1")).await.unwrap();
    a.command(register("o2")).await.unwrap();
    a.command(Command::Deregister(key("o1"))).await.unwrap();
    a.stop().await;
    let a = Loop::start(open(dir.path()));
    let view = a.view.load_full(); // nothing has run yet, and it is there
    assert_eq!(view.instance(&key("o2")).unwrap().usability, Usability::Ready);
    assert!(view.instance(&key("o1")).is_none());
    a.stop().await;
}

#[tokio::test]
async fn a_hanging_disk_delays_answers_and_nothing_else() {
    let (disk, go_on) = Disk::hanging(100);
    let a = Loop::start(Opened { disk, ..Disk::none(wall_now()) });
    a.meet("b").await;
    let mut answer = a.give(register("o1"));
    a.sees(|view| view.instance(&key("o1")).is_some()).await;
    assert!(a.sent.lock().unwrap().iter().any(|(_, message)| matches!(message, Message::Push(_))));
    assert!(answer.try_recv().is_err(), "not on disk, not acknowledged");
    let refused = a.command(Command::Deregister(key("nobody"))).await;
    assert_eq!(refused, Err(CommandError::Refused(Refusal::NoInstance(key("nobody")))), "nothing to wait for");
    go_on(Ok(()));
    assert!(matches!(answer.await.unwrap(), Ok(Answer::Done { .. })));
}

#[tokio::test]
async fn an_answer_with_nothing_to_write_waits_for_what_was_written_before() {
    let (disk, go_on) = Disk::hanging(100);
    let a = Loop::start(Opened { disk, ..Disk::none(wall_now()) });
    let first = a.give(register("o1"));
    let mut same_again = a.give(register("o1"));
    a.sees(|view| view.instance(&key("o1")).is_some()).await;
    let refused = a.command(Command::Deregister(key("nobody"))).await;
    assert!(refused.is_err() && same_again.try_recv().is_err());
    go_on(Ok(()));
    assert!(first.await.unwrap().is_ok() && same_again.await.unwrap().is_ok());
}

#[tokio::test]
async fn a_disk_that_fails_is_told_to_the_caller_and_the_node_goes_on() {
    let (disk, go_on) = Disk::hanging(100);
    let a = Loop::start(Opened { disk, ..Disk::none(wall_now()) });
    let answer = a.give(register("o1"));
    a.sees(|view| view.instance(&key("o1")).is_some()).await;
    // Answered together with the picture, so the refusal shows that the disk has been given its work.
    assert!(a.command(Command::Deregister(key("nobody"))).await.is_err());
    go_on(Err("no space left".into()));
    assert_eq!(answer.await.unwrap(), Err(CommandError::Unsaved("no space left".into())));
    a.give(register("o2"));
    a.sees(|view| view.instance(&key("o2")).is_some()).await;
}

#[tokio::test]
async fn while_the_disk_takes_no_writes_nothing_is_promised_but_what_traffic_needs_is_done() {
    let (disk, go_on) = Disk::hanging(100);
    let figures = disk.figures();
    let a = Loop::start(Opened { disk, ..Disk::none(wall_now()) });
    let before = a.give(register("o1"));
    a.sees(|view| view.instance(&key("o1")).is_some()).await;
    figures.fails("no space left", WallTime(1));
    assert_eq!(a.command(register("o2")).await, Err(CommandError::Unwritable("no space left".into())));
    assert!(a.view.load().instance(&key("o2")).is_none(), "nothing was changed");
    let removal = a.give(Command::Deregister(key("o1")));
    a.sees(|view| view.instance(&key("o1")).is_none()).await;
    let Command::Register(mut registration) = register("declared") else { panic!("it registers") };
    registration.instance.declared = true;
    let declared = a.give(Command::Register(registration));
    a.sees(|view| view.instance(&key("declared")).is_some()).await;
    figures.works();
    let after = a.give(register("o2"));
    a.sees(|view| view.instance(&key("o2")).is_some()).await;
    go_on(Ok(()));
    for answer in [before, removal, declared, after] {
        assert!(answer.await.unwrap().is_ok());
    }
}

#[tokio::test]
async fn when_the_disk_is_too_far_behind_callers_hear_busy_until_it_is_not() {
    let (disk, go_on) = Disk::hanging(2);
    let a = Loop::start(Opened { disk, ..Disk::none(wall_now()) });
    let mut given = Vec::new();
    let busy = loop {
        match give(&a.commands, register(&given.len().to_string())) {
            Ok(answer) => given.push(answer),
            Err(error) if a.commands.capacity() == 0 && given.len() > QUEUE => break error,
            Err(error) => assert_eq!(error, CommandError::Busy),
        }
        tokio::task::yield_now().await;
        assert!(given.len() <= 2 + 3 * QUEUE, "somebody must hear that the node is busy");
    };
    assert_eq!(busy, CommandError::Busy);
    a.meet("b").await; // peers are heard all the same
    for answer in given {
        let answered = async {
            let mut answer = answer;
            while answer.try_recv().is_err() {
                go_on(Ok(()));
                tokio::time::sleep(Duration::from_millis(1)).await;
            }
        };
        tokio::time::timeout(Duration::from_secs(10), answered).await.expect("the disk works again");
    }
}

#[tokio::test]
async fn commands_and_messages_do_not_starve_each_other() {
    let (commands, command_queue) = mpsc::channel(100);
    let (messages, message_queue) = post(100);
    let (_events, event_queue) = mpsc::channel(1);
    let (_probes, probe_queue) = mpsc::channel(1);
    let (_usage, used) = watch::channel(Vec::new());
    let mut queues = Queues::new(command_queue, message_queue, event_queue, probe_queue, used);
    for _ in 0..100 {
        let _answer = give(&commands, register("o1")).unwrap();
        messages.put("b".parse().unwrap(), Message::Push(Vec::new()));
    }
    assert_eq!(give(&commands, register("o1")).unwrap_err(), CommandError::Busy);
    let taken: Vec<Taken> = (0..40).filter_map(|_| queues.ready()).collect();
    let of_commands = taken.iter().filter(|taken| matches!(taken, Taken::Command(_))).count();
    assert_eq!((taken.len(), of_commands), (40, 20));
}

#[tokio::test]
async fn a_checked_instance_takes_traffic_after_its_first_good_probe() {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = Address { host: "127.0.0.1".into(), port: listener.local_addr().unwrap().port() };
    let instance = Instance::at(address).checked(Check { interval_ms: 100, ..Check::new(CheckKind::Tcp) });
    let a = Loop::start(Disk::none(wall_now()));
    a.command(Command::Register(Registration { key: key("o1"), instance })).await.unwrap();
    assert_eq!(a.view.load().instance(&key("o1")).unwrap().usability, Usability::Health);
    a.sees(|view| view.instance(&key("o1")).unwrap().usability == Usability::Ready).await;
    drop(listener);
    a.sees(|view| view.instance(&key("o1")).unwrap().usability == Usability::Health).await;
    a.stop().await;
}

#[tokio::test]
async fn the_loop_ends_when_nobody_holds_it_any_more() {
    let a = Loop::start(Disk::none(wall_now()));
    drop(a.commands);
    a.task.await.unwrap();
}
