use super::*;

const SOME: u64 = 12_345;

fn service(name: &str) -> ServiceKey {
    ServiceKey { namespace: Default::default(), service: name.parse().unwrap() }
}

fn at(ms: u64) -> Instant {
    Instant(ms * 1_000)
}

fn why(counts: bool) -> Failed {
    Failed { why: "it answered 503".into(), counts }
}

/// Lines of parcels that are their own numbers, at one moment.
#[derive(Default)]
struct Lines(Backlog<u64>);

impl Lines {
    fn add(&mut self, name: &str, ms: u64, settings: &FailbackSettings) -> Result<u64, String> {
        let id = self.0.reserve(&service(name), 100, settings, 7)?;
        let expires = WallTime(ms + settings.expire_ms);
        let waiting = Waiting { parcel: id, bytes: 100, queued: WallTime(ms), expires };
        self.0.add(&service(name), id, waiting, settings, at(ms), SOME);
        Ok(id)
    }

    fn begun(&mut self, ms: u64) -> Option<u64> {
        self.0.begin(at(ms)).map(|(_, id, _)| id)
    }

    fn of(&self, name: &str) -> LineSnapshot {
        self.0.snapshot(&service(name), at(0), WallTime(0)).unwrap()
    }
}

#[test]
fn the_settings_defaults_are_within_their_ranges() {
    assert_eq!(FailbackSettings::default().check(), Ok(()));
    let short = FailbackSettings { expire_ms: 10, ..FailbackSettings::default() };
    assert_eq!(short.check().unwrap_err(), "failback.expire_ms is 10, allowed are 1000 to 604800000");
}

#[test]
fn a_line_is_tried_in_its_order_one_at_a_time_and_no_line_waits_for_another() {
    let (mut lines, settings) = (Lines::default(), FailbackSettings::default());
    let ids: Vec<u64> = (0..3).map(|_| lines.add("orders", 0, &settings).unwrap()).collect();
    let other = lines.add("stock", 0, &settings).unwrap();
    assert!(ids.is_sorted() && lines.begun(0).is_none(), "the first wait comes first");
    let mut begun = [lines.begun(1_000).unwrap(), lines.begun(1_000).unwrap()];
    begun.sort_unstable();
    assert_eq!(begun, [ids[0], other]);
    assert_eq!(lines.begun(9_000), None, "each line is at its first");
    assert!(lines.0.delivered(&service("orders"), ids[0], at(1_000)));
    assert_eq!(lines.begun(1_000), Some(ids[1]), "what follows a good answer follows at once");
    assert_eq!(lines.of("orders").counts.delivered, 1);
}

#[test]
fn waits_double_up_to_the_longest_and_half_of_each_is_random() {
    let settings = FailbackSettings::default();
    for (failures, least_ms, most_ms) in [(1, 500, 1_000), (2, 1_000, 2_000), (7, 30_000, 60_000), (99, 30_000, 60_000)]
    {
        let waits: Vec<u64> = (0..200_u64).map(|i| settings.wait(failures, i * 7_919_777).as_millis() as u64).collect();
        let (least, most) = (*waits.iter().min().unwrap(), *waits.iter().max().unwrap());
        assert!(least >= least_ms && most <= most_ms, "{failures}: {least} to {most}");
        assert!(most - least > least_ms / 2, "{failures}: {least} to {most}");
    }
}

#[test]
fn only_attempts_that_reached_an_instance_use_up_a_requests_patience() {
    let settings = FailbackSettings { max_attempts: 2, ..FailbackSettings::default() };
    let mut lines = Lines::default();
    let (one, two) = (lines.add("orders", 0, &settings).unwrap(), lines.add("orders", 0, &settings).unwrap());
    let orders = service("orders");
    let mut now = 0;
    for counts in [false, false, false, true, false] {
        now += 100_000;
        assert_eq!(lines.begun(now), Some(one));
        assert!(!lines.0.failed(&orders, one, &why(counts), &settings, at(now), SOME));
        assert_eq!(lines.begun(now), None, "it waits");
    }
    now += 100_000;
    assert_eq!(lines.begun(now), Some(one));
    assert!(lines.0.failed(&orders, one, &why(true), &settings, at(now), SOME), "the second that counts");
    assert_eq!(lines.begun(now), Some(two), "whoever is behind it has not failed");
    assert!(!lines.0.failed(&orders, two, &why(true), &settings, at(now), SOME), "and has attempts of its own");
    assert_eq!((lines.of("orders").counts.given_up, lines.of("orders").last_error.as_str()), (1, "it answered 503"));
}

#[test]
fn every_bound_holds_before_anything_is_kept_and_room_comes_back() {
    let settings = FailbackSettings { max_entries: 2, ..FailbackSettings::default() };
    let (mut lines, orders) = (Lines::default(), service("orders"));
    let one = lines.add("orders", 0, &settings).unwrap();
    lines.0.reserve(&orders, 100, &settings, 7).unwrap();
    assert!(lines.add("orders", 0, &settings).unwrap_err().starts_with("2 requests of this service"));
    lines.add("stock", 0, &settings).unwrap();
    lines.0.release(&orders, 100);
    lines.add("orders", 0, &settings).unwrap();
    assert_eq!(lines.0.drop_one(one), Some(orders.clone()));
    assert_eq!(lines.0.drop_one(one), None);
    let tight = FailbackSettings { max_bytes: 1_024, ..settings };
    assert!(lines.0.reserve(&orders, 925, &tight, 7).unwrap_err().starts_with("100 bytes of this service"));
    let wide = FailbackSettings { max_bytes: MAX_BYTES, ..settings };
    assert!(lines.0.reserve(&service("a"), MAX_BYTES, &wide, 7).unwrap_err().ends_with("of all services"));
    let counts = lines.of("orders").counts;
    assert_eq!((counts.queued, counts.refused, counts.dropped), (2, 3, 1), "{counts:?}");
}

#[test]
fn what_has_waited_too_long_is_taken_out_but_for_what_is_being_tried() {
    let settings = FailbackSettings { expire_ms: 5_000, ..FailbackSettings::default() };
    let mut lines = Lines::default();
    let (one, two) = (lines.add("orders", 0, &settings).unwrap(), lines.add("orders", 1_000, &settings).unwrap());
    assert_eq!(lines.0.expire(WallTime(4_999)), []);
    assert_eq!(lines.begun(4_999), Some(one));
    assert_eq!(lines.0.expire(WallTime(7_000)), [(service("orders"), two)]);
    lines.0.failed(&service("orders"), one, &why(false), &settings, at(7_000), SOME);
    assert_eq!(lines.0.next(at(7_000), WallTime(7_000)), Some(at(7_000)), "it is due to be taken out");
    assert_eq!(lines.0.expire(WallTime(7_000)), [(service("orders"), one)]);
    assert_eq!((lines.of("orders").waiting, lines.of("orders").bytes), (0, 0));
    assert_eq!(lines.0.next(at(7_000), WallTime(7_000)), None);
}

#[test]
fn what_an_earlier_start_left_is_due_at_once_and_before_what_comes() {
    let (mut lines, settings) = (Lines::default(), FailbackSettings::default());
    let waiting = Waiting { parcel: 90, bytes: 100, queued: WallTime(0), expires: WallTime(1 << 40) };
    lines.0.restore(&service("orders"), 90, waiting);
    assert_eq!(lines.add("orders", 0, &settings), Ok(91), "a clock that was set back uses no number twice");
    assert_eq!(lines.begun(0), Some(90));
}

#[test]
fn a_line_that_rests_is_tried_at_once_when_it_is_told_to() {
    let (mut lines, settings) = (Lines::default(), FailbackSettings::default());
    let id = lines.add("orders", 0, &settings).unwrap();
    assert_eq!(lines.begun(0), None);
    assert_eq!((lines.0.hurry(&service("orders"), at(0)), lines.0.hurry(&service("none"), at(0))), (1, 0));
    assert_eq!(lines.begun(0), Some(id));
}
