//! The modelled failure detector: what every node believes of every other, and when it changes its mind.
//!
//! Two nodes reach each other when both are running and nothing is cut between them, in either direction. Each observer
//! changes its mind once that has been so (or not so) for long enough, plus up to a quarter: no two observers notice at
//! the same moment. Unlike a gossiped detector this one takes nobody's word for a third node, which makes it the
//! stricter world: a single cut link already makes two nodes lose each other. It ends at the border of a cell.

use std::time::Duration;

use starling_core::PeerEvent;
use starling_core::id::Incarnation;

use crate::host::{Host, State};
use crate::links::{Cuts, micros};

/// What an observer was last told of a subject.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Told {
    Nothing,
    Up(u64),
    Lost,
    Left,
}

#[derive(Debug, Clone, Copy)]
struct Pair {
    /// Whether they reach each other, and since when that is so.
    reach: bool,
    since: u64,
    told: Told,
}

#[derive(Debug)]
pub(crate) struct Detector {
    size: usize,
    /// Which cell each host is of.
    cells: Vec<usize>,
    /// One place per ordered pair (observer, subject).
    pairs: Vec<Pair>,
    lost_after: u64,
    up_after: u64,
    rng: fastrand::Rng,
}

impl Detector {
    /// Nobody reaches anybody yet.
    pub(crate) fn new(cells: Vec<usize>, lost_after: Duration, up_after: Duration, rng: fastrand::Rng) -> Self {
        let size = cells.len();
        let nothing = Pair { reach: false, since: 0, told: Told::Nothing };
        let (lost_after, up_after) = (micros(lost_after), micros(up_after));
        Self { size, cells, pairs: vec![nothing; size * size], lost_after, up_after, rng }
    }

    /// All nodes have known each other since long ago.
    pub(crate) fn acquaint(&mut self, hosts: &[Host]) {
        for observer in 0..self.size {
            for (subject, host) in
                hosts.iter().enumerate().filter(|(subject, _)| self.cells[*subject] == self.cells[observer])
            {
                let told = Told::Up(host.run());
                self.pairs[observer * self.size + subject] = Pair { reach: true, since: 0, told };
            }
        }
    }

    /// A node that has just started believes nothing.
    pub(crate) fn forget_all(&mut self, observer: usize) {
        for pair in &mut self.pairs[observer * self.size..(observer + 1) * self.size] {
            pair.told = Told::Nothing;
        }
    }

    /// Takes note that hosts or links have changed (of one host, or of any), and returns which observers have to look
    /// again, and when.
    pub(crate) fn changed(&mut self, of: Option<usize>, hosts: &[Host], cuts: &Cuts, now: u64) -> Vec<(u64, usize)> {
        let mut looks = Vec::new();
        for observer in 0..self.size {
            let (mut gained, mut missing) = (false, false);
            for subject in 0..self.size {
                let concerns = of.is_none_or(|host| host == observer || host == subject);
                if observer == subject || !concerns || self.cells[observer] != self.cells[subject] {
                    continue;
                }
                let reach = hosts[observer].is_running()
                    && hosts[subject].is_running()
                    && cuts.is_open(observer, subject)
                    && cuts.is_open(subject, observer);
                let pair = &mut self.pairs[observer * self.size + subject];
                // An observer that goes on, or starts, begins to wait for those it does not hear.
                let awoken = of == Some(observer) && hosts[observer].is_running();
                if pair.reach != reach || awoken {
                    (pair.reach, pair.since) = (reach, now);
                }
                let stale = pair.told != Told::Up(hosts[subject].run());
                gained |= reach && (stale || pair.since == now);
                missing |= !reach && pair.since == now;
            }
            if hosts[observer].is_up() {
                looks.extend(gained.then(|| (now + self.late(self.up_after), observer)));
                looks.extend(missing.then(|| (now + self.late(self.lost_after), observer)));
            }
        }
        looks
    }

    /// Since when an observer does not reach a node of its cell, if it does not. One that stood still begins to wait when
    /// it goes on.
    pub(crate) fn unreached_since(&self, observer: usize, subject: usize) -> Option<u64> {
        if self.cells[observer] != self.cells[subject] {
            return None;
        }
        let pair = &self.pairs[observer * self.size + subject];
        (!pair.reach).then_some(pair.since)
    }

    /// What an observer learns when it looks.
    pub(crate) fn look(&mut self, observer: usize, hosts: &[Host], now: u64) -> Vec<(usize, PeerEvent)> {
        let mut events = Vec::new();
        for subject in self.others(observer) {
            let host = &hosts[subject];
            let pair = &mut self.pairs[observer * self.size + subject];
            let lasted = now - pair.since;
            if pair.reach && lasted >= self.up_after && pair.told != Told::Up(host.run()) {
                pair.told = Told::Up(host.run());
                events.push((subject, PeerEvent::Up(host.id.clone(), host.facts.clone())));
            } else if !pair.reach && lasted >= self.lost_after && matches!(pair.told, Told::Up(_)) {
                pair.told = Told::Lost;
                events.push((subject, PeerEvent::Lost(host.id.clone())));
            }
        }
        events
    }

    /// Who hears through membership that a node has stopped cleanly, and when: everybody who reached it.
    pub(crate) fn left(&mut self, subject: usize, hosts: &[Host], cuts: &Cuts, now: u64) -> Vec<(u64, usize)> {
        debug_assert_eq!(hosts[subject].state, State::Left);
        let mut told = Vec::new();
        for observer in self.others(subject) {
            let pair = &mut self.pairs[observer * self.size + subject];
            let open = cuts.is_open(observer, subject) && cuts.is_open(subject, observer);
            if open && matches!(pair.told, Told::Up(_)) && hosts[observer].is_up() {
                pair.told = Told::Left;
                told.push((now + self.late(self.up_after), observer));
            }
        }
        told
    }

    /// The other members of a host's cell.
    fn others(&self, of: usize) -> Vec<usize> {
        (0..self.size).filter(|other| *other != of && self.cells[*other] == self.cells[of]).collect()
    }

    fn late(&mut self, delay: u64) -> u64 {
        delay + self.rng.u64(..=delay / 4)
    }
}

/// The event of a clean stop.
pub(crate) fn left_event(host: &Host, incarnation: u64) -> PeerEvent {
    PeerEvent::Left(host.id.clone(), Incarnation(incarnation))
}
