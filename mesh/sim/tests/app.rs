//! A program of one's own under the mesh: it suffers what its host suffers.

use starling_sim::app::{App, Input, Instant, NodeId, Now, Outbox, Start, Ticket};
use starling_sim::{CommandError, Latency, Mesh, ask, millis, secs};

/// Writes down all that happens to it.
#[derive(Debug)]
struct Diary {
    run: u64,
    kept: Vec<String>,
    heard: Vec<(NodeId, String)>,
    woken: Vec<Instant>,
    wake_at: Instant,
    instances: usize,
    late: Option<Ticket>,
}

impl Diary {
    fn start(start: Start<'_>) -> Self {
        Self {
            run: start.run,
            kept: start.disk.keys().cloned().collect(),
            heard: Vec::new(),
            woken: Vec::new(),
            wake_at: start.now.elapsed + secs(1),
            instances: 0,
            late: None,
        }
    }
}

impl App for Diary {
    type Message = String;
    type Command = &'static str;
    type Answer = String;

    fn handle(&mut self, now: Now, input: Input<Self>, out: &mut Outbox<Self>) {
        match input {
            Input::Command(ticket, "later") => self.late = Some(ticket),
            Input::Command(ticket, "register") => {
                out.mesh(ask::register("orders/o1"));
                out.reply(ticket, "asked".into());
            }
            Input::Command(ticket, word) => {
                out.tell_all(word.into());
                out.persist(word, []);
                out.reply(ticket, format!("kept {word}"));
            }
            Input::Message(from, word) => self.heard.push((from, word)),
            Input::View(view) => {
                self.instances = view.services.values().map(|service| service.instances.iter().count()).sum()
            }
            Input::Wake => {
                self.woken.push(now.elapsed);
                self.wake_at = now.elapsed + secs(1);
                if let Some(ticket) = self.late.take() {
                    out.reply(ticket, "at last".into());
                }
            }
        }
    }

    fn next_wakeup(&self) -> Option<Instant> {
        Some(self.wake_at)
    }
}

fn mesh(seed: u64) -> Mesh {
    let latency = Latency::Fixed(millis(1));
    Mesh::builder(seed).nodes(3).latency(latency).disk(millis(5)).app(Diary::start).build()
}

fn heard(mesh: &Mesh, node: &str) -> Vec<String> {
    mesh.app::<Diary>(node).expect("it runs").heard.iter().map(|(from, word)| format!("{from}: {word}")).collect()
}

#[test]
fn messages_reach_whom_no_cut_keeps_from_the_sender() {
    let mut mesh = mesh(1);
    mesh.cut_one_way(&["n1"], &["n3"]);
    mesh.tell::<Diary>("n1", "hello").unwrap();
    mesh.tell::<Diary>("n3", "hi").unwrap();
    assert_eq!(heard(&mesh, "n1"), ["n3: hi"]);
    assert_eq!(heard(&mesh, "n2"), ["n1: hello", "n3: hi"]);
    assert_eq!(heard(&mesh, "n3"), [""; 0]);
}

#[test]
fn an_answer_comes_when_what_was_written_before_it_is_on_disk() {
    let mut mesh = mesh(2);
    let ticket = mesh.tell_later::<Diary>("n1", "word").unwrap();
    mesh.run_for(millis(4));
    assert_eq!(mesh.told::<Diary>(ticket), None);
    mesh.run_for(millis(1));
    assert_eq!(mesh.told::<Diary>(ticket).as_deref(), Some("kept word"));
    assert_eq!(mesh.answers::<Diary>().count(), 1);
}

#[test]
fn a_crash_takes_its_memory_and_what_was_not_on_disk_and_a_start_gets_the_rest() {
    let mut mesh = mesh(3);
    mesh.tell::<Diary>("n1", "early").unwrap();
    let late = mesh.tell_later::<Diary>("n1", "late").unwrap();
    mesh.crash("n1");
    assert!(mesh.app::<Diary>("n1").is_none());
    assert!(matches!(mesh.tell::<Diary>("n1", "word"), Err(CommandError::NotRunning(_))));
    mesh.restart("n1");
    mesh.run_for(secs(1));
    let diary = mesh.app::<Diary>("n1").unwrap();
    assert_eq!((diary.run, &diary.kept[..]), (2, &["early".to_owned()][..]));
    assert_eq!(mesh.told::<Diary>(late), None);
}

#[test]
fn it_is_woken_when_it_wants_to_be_and_not_while_its_host_stands_still() {
    let mut mesh = mesh(4);
    mesh.run_for(millis(2_500));
    mesh.pause("n1");
    mesh.tell::<Diary>("n2", "hello").unwrap();
    mesh.run_for(secs(5));
    assert_eq!(mesh.app::<Diary>("n1").unwrap().woken.len(), 2);
    assert_eq!(heard(&mesh, "n1"), [""; 0]);
    mesh.resume("n1");
    mesh.run_for(millis(1));
    assert_eq!(mesh.app::<Diary>("n1").unwrap().woken.len(), 3);
    assert_eq!(heard(&mesh, "n1"), ["n2: hello"]);
}

#[test]
fn it_sees_what_its_heart_shows_and_can_ask_it_for_something() {
    let mut mesh = mesh(5);
    mesh.tell::<Diary>("n1", "register").unwrap();
    mesh.run_for(millis(50));
    assert!(["n1", "n2", "n3"].iter().all(|node| mesh.app::<Diary>(node).unwrap().instances == 1));
}

#[test]
fn an_answer_may_come_later() {
    let mut mesh = mesh(6);
    assert_eq!(mesh.tell::<Diary>("n2", "later").unwrap(), "at last");
}

#[test]
#[should_panic(expected = "runs in this mesh; give it to the builder")]
fn asking_for_a_program_that_is_not_there_says_so() {
    let mesh = Mesh::builder(7).build();
    mesh.app::<Diary>("n1");
}
