//! The vocabulary of trouble: what the world does to a mesh.

use std::time::Duration;

use starling_core::Command;

use crate::ask::{instance_key, named};
use crate::host::State;
use crate::links::{Links, micros};
use crate::mesh::Mesh;
use crate::world::brief;

/// What the world does to it.
impl Mesh {
    /// Cuts all links between two groups, both ways. What is on its way over them is lost.
    #[track_caller]
    pub fn cut(&mut self, these: &[&str], those: &[&str]) {
        self.world.note(format!("cut between {} and {}", brief(these), brief(those)));
        let (these, those) = (self.places(these), self.places(those));
        self.world.close(&these, &those);
        self.world.close(&those, &these);
        self.world.topology_changed(None);
    }

    /// Cuts one direction only: what `from` say no longer reaches `to`.
    #[track_caller]
    pub fn cut_one_way(&mut self, from: &[&str], to: &[&str]) {
        self.world.note(format!("cut from {} to {}, one way", brief(from), brief(to)));
        let (from, to) = (self.places(from), self.places(to));
        self.world.close(&from, &to);
        self.world.topology_changed(None);
    }

    #[track_caller]
    fn places(&self, names: &[&str]) -> Vec<usize> {
        names.iter().map(|name| self.node(name)).collect()
    }

    /// Ends all cuts.
    pub fn heal(&mut self) {
        self.world.note("heal".into());
        self.world.open_all();
        self.world.topology_changed(None);
    }

    /// Ends what is cut between two groups, both ways; other cuts last.
    #[track_caller]
    pub fn heal_between(&mut self, these: &[&str], those: &[&str]) {
        self.world.note(format!("heal between {} and {}", brief(these), brief(those)));
        let (these, those) = (self.places(these), self.places(those));
        self.world.open(&these, &those);
        self.world.open(&those, &these);
        self.world.topology_changed(None);
    }

    /// Changes how all links behave from now on, but for those that zones or pairs have of their own.
    pub fn set_links(&mut self, links: Links) {
        self.world.note(format!("links: {links}"));
        self.world.links.all = links;
    }

    /// Changes how the links from each of these nodes to each of those behave from now on; one direction.
    #[track_caller]
    pub fn set_links_between(&mut self, from: &[&str], to: &[&str], links: Links) {
        self.world.note(format!("links from {} to {}: {links}", brief(from), brief(to)));
        let (from, to) = (self.places(from), self.places(to));
        for (a, b) in from.iter().flat_map(|a| to.iter().map(move |b| (*a, *b))) {
            self.world.links.set_pair(a, b, links);
        }
    }

    /// Kills a node: memory gone, disk kept, nobody told. What was not on its disk yet is lost. Does nothing when it is
    /// down already.
    #[track_caller]
    pub fn crash(&mut self, node: &str) {
        self.kill(node, false);
    }

    /// Kills a node by taking its power: of what was not on its disk yet any part may be there nevertheless, drawn from
    /// the seed. It differs from [`Mesh::crash`] only when disks take time ([`Builder::disk`](crate::Builder::disk),
    /// [`Mesh::slow_disk`]).
    #[track_caller]
    pub fn crash_torn(&mut self, node: &str) {
        self.kill(node, true);
    }

    #[track_caller]
    fn kill(&mut self, node: &str, torn: bool) {
        let at = self.node(node);
        if self.world.hosts[at].is_up() {
            self.world.note(format!("{node} {}", if torn { "loses its power" } else { "crashes" }));
            self.world.crash(at, torn);
        }
    }

    /// Starts a node that crashed or left, with its disk and a newer incarnation. Does nothing when it is up.
    #[track_caller]
    pub fn restart(&mut self, node: &str) {
        let at = self.node(node);
        if !self.world.hosts[at].is_up() {
            self.world.note(format!("{node} starts again"));
            self.world.start(at);
        }
    }

    /// Stops a node cleanly: it says good-bye, and is gone 100 ms later.
    #[track_caller]
    pub fn leave(&mut self, node: &str) {
        self.done(node, Command::Leave);
    }

    /// Stops a node in its tracks, as a suspended machine: it goes on where it was when it is resumed.
    #[track_caller]
    pub fn pause(&mut self, node: &str) {
        let at = self.node(node);
        if self.world.hosts[at].is_running() {
            self.world.note(format!("{node} stands still"));
            self.world.pause(at);
        }
    }

    /// Lets a paused node go on.
    #[track_caller]
    pub fn resume(&mut self, node: &str) {
        let at = self.node(node);
        if self.world.hosts[at].state == State::Paused {
            self.world.note(format!("{node} goes on"));
            self.world.resume(at);
        }
    }

    /// Lets a node take this long over every message and every tick from now on; zero: no time, as at the beginning.
    #[track_caller]
    pub fn slow(&mut self, node: &str, each: Duration) {
        self.world.note(format!("{node} takes {each:?} over every input"));
        let at = self.node(node);
        self.world.hosts[at].slow_us = micros(each);
        self.world.troubled_at = self.world.now;
    }

    /// Lets writes of a node take this long to be on its disk from now on.
    #[track_caller]
    pub fn slow_disk(&mut self, node: &str, latency: Duration) {
        self.world.note(format!("the disk of {node} takes {latency:?}"));
        let at = self.node(node);
        self.world.hosts[at].disk_us = micros(latency);
    }

    /// Mends all that was broken: cuts, links, speeds, disks, clocks and probes are as at the beginning, and every node
    /// runs. From here on a mesh must come to agree.
    pub fn mend(&mut self) {
        self.world.note("all is mended".into());
        self.world.open_all();
        self.world.links = self.world.options.link_table();
        self.world.failing_probes.clear();
        let (disk_us, now) = (micros(self.world.options.disk), self.world.now);
        for at in 0..self.world.hosts.len() {
            self.world.hosts[at].mend(disk_us, now);
            match self.world.hosts[at].state {
                State::Paused => self.world.resume(at),
                State::Crashed | State::Left => self.world.start(at),
                State::Running => {}
            }
        }
        self.world.topology_changed(None);
    }

    /// Sets how far a node's wall clock is off, in milliseconds; negative is behind.
    #[track_caller]
    pub fn skew(&mut self, node: &str, ms: i64) {
        self.world.note(format!("the clock of {node} is off by {ms} ms"));
        let at = self.node(node);
        self.world.hosts[at].skew_ms = ms;
    }

    /// Lets a node's wall clock run faster (or slower) from now on, in parts per million.
    #[track_caller]
    pub fn drift(&mut self, node: &str, ppm: i64) {
        self.world.note(format!("the clock of {node} drifts by {ppm} ppm"));
        let (at, now) = (self.node(node), self.world.now);
        self.world.hosts[at].set_drift(ppm, now);
    }

    /// Scripts what the probes of an instance's check find from now on: good (the default) or bad.
    #[track_caller]
    pub fn probes(&mut self, path: &str, good: bool) {
        let key = named(instance_key(path));
        self.world.note(format!("probes of {path} find it {}", if good { "good" } else { "bad" }));
        if good {
            self.world.failing_probes.remove(&key);
        } else {
            self.world.failing_probes.insert(key);
        }
    }
}
