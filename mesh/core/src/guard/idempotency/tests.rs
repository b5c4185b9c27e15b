use proptest::prelude::*;

use super::*;

const PRINT: Print = Print(0);

fn at(seconds: u64) -> Instant {
    Instant(seconds * 1_000_000)
}

fn key(name: &str) -> KeyId {
    KeyId::new(name.as_bytes(), [])
}

fn node(name: &str) -> NodeId {
    name.parse().unwrap()
}

/// A table with settings.
struct Table(Answers<&'static str>, IdempotencySettings);

fn table() -> Table {
    with(IdempotencySettings::default())
}

fn with(settings: IdempotencySettings) -> Table {
    assert_eq!(settings.check(), Ok(()));
    Table(Answers::default(), settings)
}

impl Table {
    fn begin(&mut self, now: Instant, name: &str) -> Result<Begun<&'static str>, Refusal> {
        self.0.begin(now, &self.1, key(name), PRINT)
    }

    /// The first request with a key, which is carried here.
    fn first(&mut self, now: Instant, name: &str) -> First {
        match self.begin(now, name) {
            Ok(Begun::First(first)) => {
                assert_eq!(self.0.carry(now, &self.1, &first), Ok(()));
                first
            }
            other => panic!("{name} is not the first: {other:?}"),
        }
    }

    fn end(&mut self, now: Instant, first: &First, ended: Ended<&'static str>) {
        self.0.end(now, &self.1, first, ended);
    }

    fn answer(&mut self, now: Instant, first: &First, answer: &'static str) {
        self.end(now, first, Ended::Answered(Arc::new(answer), answer.len() as u64));
    }

    fn repeat(&mut self, now: Instant, name: &str) -> &'static str {
        match self.begin(now, name) {
            Ok(Begun::Repeat(answer)) => *answer,
            other => panic!("{name} is no repeat: {other:?}"),
        }
    }

    fn tell(&mut self, now: Instant, name: &str, asker: &str, me: &str) -> Told<&'static str> {
        self.0.tell(now, &self.1, key(name), PRINT, &node(asker), &node(me))
    }
}

#[test]
fn a_repeat_within_the_window_gets_the_first_answer() {
    let mut table = table();
    let begun = table.first(at(0), "k");
    assert!(matches!(table.begin(at(1), "k"), Ok(Begun::UnderWay)));
    assert!(table.0.is_under_way(at(1), key("k")));
    table.answer(at(2), &begun, "paid");
    assert_eq!(table.repeat(at(601), "k"), "paid");
    let begun = table.first(at(602), "k");
    table.answer(at(603), &begun, "paid again");
    assert_eq!(table.0.snapshot().bytes, 10);
}

#[test]
fn what_failed_may_be_tried_again_and_what_is_lost_is_not_waited_for_for_ever() {
    let mut table = table();
    let begun = table.first(at(0), "k");
    table.end(at(0), &begun, Ended::Failed);
    let lost = table.first(at(0), "k");
    assert!(matches!(table.begin(at(59), "k"), Ok(Begun::UnderWay)));
    let begun = table.first(at(60), "k");
    table.answer(at(61), &lost, "late");
    assert!(table.0.is_under_way(at(61), key("k")), "whoever was held for lost has no say");
    table.answer(at(62), &begun, "good");
    assert_eq!(table.repeat(at(63), "k"), "good");
    assert_eq!((table.0.snapshot().counts.failed, table.0.snapshot().counts.lost), (1, 1));
}

#[test]
fn a_key_of_another_request_is_refused_and_so_is_what_was_not_kept() {
    let mut table = table();
    let _first = table.first(at(0), "k");
    let pay = |body: &str| Print::new("POST", "/pay", body.as_bytes());
    assert_ne!(pay("1"), pay("2"));
    assert_eq!(table.0.begin(at(0), &table.1, key("k"), pay("2")).unwrap_err().reason, MISUSED);
    let begun = table.first(at(0), "huge");
    table.end(at(0), &begun, Ended::TooLarge);
    assert_eq!(table.begin(at(1), "huge").unwrap_err().reason, NOT_KEPT);
}

#[test]
fn keys_of_two_callers_are_two_keys() {
    let caller = |name: &'static str| KeyId::new(b"k", [name.as_bytes()]);
    assert_ne!(caller("shop"), caller("cart"));
    assert_ne!(KeyId::new(b"ab", [&b"c"[..]]), KeyId::new(b"a", [&b"bc"[..]]));
}

#[test]
fn a_full_table_drops_the_oldest_answers_and_says_so_and_never_what_is_under_way() {
    let mut table = with(IdempotencySettings { max_keys: 2, ..IdempotencySettings::default() });
    let (a, _b) = (table.first(at(0), "a"), table.first(at(0), "b"));
    assert!(table.begin(at(0), "c").is_err());
    table.answer(at(0), &a, "a");
    let _c = table.first(at(0), "c");
    assert_eq!((table.0.snapshot().counts.evicted, table.0.snapshot().keys), (1, 2));
    let _a = table.first(at(60), "a"); // b and c are lost by now
    assert!(table.0.snapshot().keys <= 2);
}

#[test]
fn another_node_is_told_what_is_known_and_whom_it_must_wait_for() {
    let mut table = table();
    let begun = table.first(at(0), "k");
    assert_eq!(table.tell(at(1), "k", "b", "a"), Told::UnderWay);
    table.answer(at(2), &begun, "paid");
    assert_eq!(table.tell(at(3), "k", "b", "a"), Told::Answered(Arc::new("paid"), Duration::from_secs(599)));
    assert_eq!(table.0.tell(at(3), &table.1, key("k"), Print(1), &node("b"), &node("a")), Told::Misused);
    assert_eq!(table.0.whom_to_ask(at(3), key("other")), None);
    assert_eq!(table.tell(at(3), "other", "b", "a"), Told::Unknown);
    assert_eq!(table.0.whom_to_ask(at(3), key("other")), Some(&node("b")), "it is about to carry it");
    assert_eq!(table.0.whom_to_ask(at(663), key("other")), None);
}

#[test]
fn what_another_node_tells_is_known_here_too_for_as_long_as_there() {
    let mut table = table();
    let Ok(Begun::First(first)) = table.begin(at(0), "k") else { panic!("it is the first") };
    table.0.learn(at(0), &table.1, &first, Some((Arc::new("paid"), 4)), Duration::from_secs(5));
    assert_eq!(table.repeat(at(4), "k"), "paid");
    let _again = table.first(at(5), "k");
    assert_eq!((table.0.snapshot().counts.fetched, table.0.snapshot().bytes), (1, 0));
}

#[test]
fn when_an_instance_goes_only_its_keys_move_and_each_gets_its_share() {
    let names: Vec<String> = (0..10).map(|name| format!("i{name}")).collect();
    let weight = |name: &str| if name == "i9" { 20 } else { 10 };
    let choose = |key: u64, names: &[String]| {
        let drawn = |name: &&String| weight_for(key, name, weight(name));
        names.iter().max_by(|a, b| drawn(a).total_cmp(&drawn(b))).unwrap().clone()
    };
    let mut counts = BTreeMap::<String, u32>::new();
    for key in 0..11_000 {
        let chosen = choose(key, &names);
        *counts.entry(chosen.clone()).or_default() += 1;
        assert!(chosen == "i0" || chosen == choose(key, &names[1..]));
    }
    assert!(counts.iter().all(|(name, count)| (850..1_150).contains(&(count * 10 / weight(name)))), "{counts:?}");
    assert_eq!(weight_for(7, "none", 0), 0.0);
}

proptest! {
    /// Whatever comes in whatever order: no key is carried twice at once, bytes and keys stay within their limits and
    /// are counted exactly.
    #[test]
    fn bounds_hold_and_nothing_is_carried_twice_at_once(steps in proptest::collection::vec((0u8..5, 0u8..6, 0u64..40, 0u64..2_000), 0..200)) {
        let settings = IdempotencySettings { max_keys: 4, max_bytes: 3_000, window_ms: 60_000, ..IdempotencySettings::default() };
        let mut answers: Answers<u8> = Answers::default();
        let mut now = at(0);
        let mut out: Vec<(u8, First)> = Vec::new();
        for (step, key, wait_s, bytes) in steps {
            now = now + Duration::from_secs(wait_s);
            let id = KeyId::new(&[key], []);
            match step {
                0 | 1 => {
                    if let Ok(Begun::First(first)) = answers.begin(now, &settings, id, PRINT) {
                        prop_assert_eq!(answers.carry(now, &settings, &first), Ok(()));
                        // Another of the same key may be out only if it was held for lost.
                        if answers.counts.lost == 0 {
                            prop_assert!(out.iter().all(|(held, _)| *held != key));
                        }
                        out.push((key, first));
                    }
                }
                4 => _ = answers.tell(now, &settings, id, PRINT, &node("b"), &node("a")),
                _ => {
                    if let Some((key, first)) = out.pop() {
                        let ended = if step == 2 { Ended::Answered(Arc::new(key), bytes) } else { Ended::Failed };
                        answers.end(now, &settings, &first, ended);
                    }
                }
            }
            let held: u64 = answers.known.values().map(|entry| match entry.state {
                State::Answered(_, _, bytes) => bytes,
                _ => 0,
            }).sum();
            prop_assert_eq!(held, answers.bytes);
            prop_assert!(answers.bytes <= 3_000 && answers.known.len() <= 4 && answers.elsewhere.len() <= 4);
            prop_assert!(answers.told.len() <= 200 && answers.ended.len() <= 200);
        }
    }

    /// Three nodes that all ask each other, questions and answers in any order, requests with one key at any of them: it is
    /// never at two applications at once, nor at one after it was answered.
    #[test]
    fn nodes_that_ask_each_other_carry_a_key_once(steps in proptest::collection::vec((0usize..3, 0usize..4), 0..120)) {
        let settings = IdempotencySettings::default();
        let names = ["a", "b", "c"].map(node);
        let mut tables: [Answers<&str>; 3] = Default::default();
        // What each is about: its right, and whom it has heard of so far.
        let mut doing: [Option<(First, Vec<usize>)>; 3] = [None, None, None];
        let mut carried = [false; 3];
        let mut answered = false;
        for (who, what) in steps {
            let now = at(0);
            if what == 3 {
                // Its request comes, or its application answers.
                match doing[who].take() {
                    Some((first, _)) if carried[who] => {
                        tables[who].end(now, &settings, &first, Ended::Answered(Arc::new("done"), 4));
                        (carried[who], answered) = (false, true);
                    }
                    Some(kept) => doing[who] = Some(kept),
                    None => if let Ok(Begun::First(first)) = tables[who].begin(now, &settings, key("k"), PRINT) {
                        doing[who] = Some((first, vec![who]));
                    },
                }
                continue;
            }
            // It asks another, and hears.
            if carried[who] {
                continue;
            }
            let Some((first, mut heard)) = doing[who].take() else { continue };
            if !heard.contains(&what) {
                match tables[what].tell(now, &settings, key("k"), PRINT, &names[who], &names[what]) {
                    Told::Unknown => heard.push(what),
                    Told::Answered(answer, left) => {
                        tables[who].learn(now, &settings, &first, Some((answer, 4)), left);
                        continue;
                    }
                    _ => {
                        tables[who].end(now, &settings, &first, Ended::Failed);
                        continue;
                    }
                }
            }
            if heard.len() == 3 {
                if tables[who].carry(now, &settings, &first).is_ok() {
                    prop_assert!(carried.iter().all(|carries| !carries) && !answered);
                    carried[who] = true;
                } else {
                    continue;
                }
            }
            doing[who] = Some((first, heard));
        }
    }
}
