//! A clock never repeats itself, whatever the machine's clock does and however often the node starts.

use std::collections::BTreeSet;
use std::time::Duration;

use starling_core::id::Incarnation;
use starling_core::time::{HybridClock, WallTime};

use super::*;

/// What happens to a clock.
#[derive(Debug, Clone)]
enum Happens {
    /// The wall clock is set forward or back by so much, in milliseconds.
    Set(i32),
    /// It writes.
    Issue,
    /// It hears of a write so far ahead of the wall clock, in milliseconds.
    Hear(u16),
    /// The node starts again, and remembers the last stamp it used.
    Start,
}

fn lives() -> impl Strategy<Value = Vec<Happens>> {
    let happens = prop_oneof![
        1 => any::<i16>().prop_map(|ms| Happens::Set(ms.into())),
        3 => Just(Happens::Issue),
        2 => (0..10_000_u16).prop_map(Happens::Hear),
        1 => Just(Happens::Start),
    ];
    proptest::collection::vec(happens, 1..60)
}

proptest! {
    #[test]
    fn no_stamp_is_issued_twice_and_each_is_later_than_all_that_was_issued_or_heard(life in lives()) {
        let (skew, node): (_, NodeId) = (Duration::from_millis(5_000), "a".parse().unwrap());
        let (mut wall, mut start) = (1_000_000_i64, 1);
        let mut clock = HybridClock::new(node.clone(), Incarnation(start), HybridTime::default(), skew);
        let (mut issued, mut latest) = (BTreeSet::new(), HybridTime::default());
        for happens in life {
            let now = WallTime(wall as u64);
            match happens {
                Happens::Set(ms) => wall = (wall + i64::from(ms)).max(0),
                Happens::Issue => {
                    let stamp = clock.issue(now);
                    prop_assert!(stamp.time > latest, "{stamp} after {latest:?}");
                    latest = stamp.time;
                    prop_assert!(issued.insert(stamp));
                }
                Happens::Hear(ahead) => {
                    let time = HybridTime::from_wall(WallTime(now.0 + u64::from(ahead)));
                    let heard = Stamp { time, node: "b".parse().unwrap() };
                    if clock.witness(&heard, now).is_ok() {
                        latest = latest.max(time);
                    } else {
                        prop_assert!(u64::from(ahead) > skew.as_millis() as u64, "within the skew allowed");
                    }
                }
                Happens::Start => {
                    start += 1;
                    clock = HybridClock::new(node.clone(), Incarnation(start), clock.last(), skew);
                }
            }
        }
    }

    #[test]
    fn a_stamp_reads_back_what_it_shows(time in 0..1_u64 << 63, name in "[a-z][a-z0-9-]{0,20}[a-z0-9]") {
        let stamp = Stamp { time: HybridTime(time), node: name.parse().unwrap() };
        prop_assert_eq!(stamp.to_string().parse(), Ok(stamp));
    }
}
