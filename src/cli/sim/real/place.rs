//! The place real nodes play in: a network namespace for each, joined by a bridge in the namespace this process is in.
//!
//! A link is cut in one direction by telling the sender a wrong hardware address for the receiver: what it sends goes to
//! nobody, silently, as over a broken cable. That needs nothing but `ip`, works for every pair and direction by itself,
//! and leaves this process's own way to the nodes' APIs open.
//!
//! Latency and loss need `tc` and a kernel with netem; without them links are as fast as they are, and that is said.

use std::fmt::Write as _;
use std::io::Write as _;
use std::net::Ipv4Addr;
use std::process::{Command, Stdio};
use std::time::Duration;

use starling_sim::{Latency, Links};

/// Nodes beyond this are too many for one machine.
pub(super) const MAX_NODES: usize = 32;
const BRIDGE: &str = "flock";
/// Addresses set aside for tests of network devices (RFC 2544); nothing outside of this namespace sees them.
const NETWORK: [u8; 3] = [198, 18, 0];
const HUB: Ipv4Addr = Ipv4Addr::new(NETWORK[0], NETWORK[1], NETWORK[2], 254);
/// A hardware address nobody has.
const NOBODY: &str = "02:00:00:00:ff:ff";

pub(super) struct Place {
    size: usize,
    /// Which directions are cut, one place per ordered pair.
    closed: Vec<bool>,
}

impl Place {
    /// Makes a namespace for each node, all joined. Everything of it ends with the namespaces this process is in.
    pub(super) fn build(size: usize) -> Result<Self, String> {
        let mut hub = format!("link set lo up\nlink add name {BRIDGE} type bridge\nlink set dev {BRIDGE} up\n");
        let _ = writeln!(hub, "addr add {HUB}/24 dev {BRIDGE}");
        for node in 0..size {
            let (name, mac) = (namespace(node), hardware(node));
            let _ = writeln!(hub, "netns add {name}");
            let _ = writeln!(hub, "link add name v{node} type veth peer name eth0 address {mac} netns {name}");
            let _ = writeln!(hub, "link set dev v{node} master {BRIDGE} up");
        }
        ip(&[], &hub)?;
        for node in 0..size {
            let mut inside = String::from("link set lo up\n");
            let _ = writeln!(inside, "addr add {}/24 dev eth0\nlink set dev eth0 up", address(node));
            let others = (0..size).filter(|other| *other != node);
            others.for_each(|other| _ = writeln!(inside, "{}", neighbour(other, &hardware(other))));
            ip(&["-n", &namespace(node)], &inside)?;
        }
        Ok(Self { size, closed: vec![false; size * size] })
    }

    /// A program that will run in a node's namespace.
    pub(super) fn command(&self, node: usize, program: &std::path::Path) -> Command {
        let mut command = Command::new("ip");
        command.args(["netns", "exec", &namespace(node)]).arg(program);
        command
    }

    /// Cuts, or joins, every direction from one of these to one of those.
    pub(super) fn set(&mut self, from: &[usize], to: &[usize], closed: bool) -> Result<(), String> {
        for node in from {
            let mut lines = String::new();
            for other in to.iter().filter(|other| *other != node) {
                let place = node * self.size + other;
                if std::mem::replace(&mut self.closed[place], closed) != closed {
                    let mac = if closed { NOBODY.to_owned() } else { hardware(*other) };
                    let _ = writeln!(lines, "{}", neighbour(*other, &mac));
                }
            }
            if !lines.is_empty() {
                ip(&["-n", &namespace(*node)], &lines)?;
            }
        }
        Ok(())
    }

    /// Whether what one says reaches the other.
    pub(super) fn is_open(&self, from: usize, to: usize) -> bool {
        !self.closed[from * self.size + to]
    }

    /// Lets what a node sends be late, lost or doubled from now on.
    ///
    /// # Errors
    /// Why not: there is no `tc`, or this kernel has no netem.
    pub(super) fn shape(&self, node: usize, links: &Links) -> Result<(), String> {
        let name = namespace(node);
        let mut arguments = vec!["-n", &name, "qdisc", "replace", "dev", "eth0", "root", "netem"];
        let words = netem(links);
        arguments.extend(words.iter().map(String::as_str));
        run(Command::new("tc").args(arguments), "")
    }
}

/// Where a node is.
pub(super) fn address(node: usize) -> Ipv4Addr {
    Ipv4Addr::new(NETWORK[0], NETWORK[1], NETWORK[2], node as u8 + 1)
}

fn namespace(node: usize) -> String {
    format!("n{node}")
}

fn hardware(node: usize) -> String {
    format!("02:00:00:00:00:{:02x}", node + 1)
}

fn neighbour(node: usize, mac: &str) -> String {
    format!("neigh replace {} lladdr {mac} dev eth0 nud permanent", address(node))
}

/// Links in the words of netem. It has no exponential tail: the mean of the tail is its jitter, either way.
fn netem(links: &Links) -> Vec<String> {
    let us = |time: Duration| format!("{}us", time.as_micros());
    let (delay, jitter) = match links.latency {
        Latency::Fixed(always) => (always, Duration::ZERO),
        Latency::Uniform(least, most) => ((least + most) / 2, most.saturating_sub(least) / 2),
        Latency::Tail { floor, mean } => (floor + mean, mean),
    };
    let mut words = vec!["delay".into(), us(delay)];
    words.extend((!jitter.is_zero()).then(|| us(jitter)));
    for (word, share) in [("loss", links.loss), ("duplicate", links.duplication), ("reorder", links.reordering)] {
        if share > 0.0 {
            words.extend([word.to_owned(), format!("{}%", share * 100.0)]);
        }
    }
    words.extend(links.bytes_per_second.into_iter().flat_map(|rate| ["rate".into(), format!("{}bit", rate * 8)]));
    words
}

/// Runs `ip` over these lines, all in one process.
fn ip(arguments: &[&str], lines: &str) -> Result<(), String> {
    run(Command::new("ip").args(arguments).args(["-batch", "-"]), lines)
}

pub(super) fn run(command: &mut Command, input: &str) -> Result<(), String> {
    let program = command.get_program().to_string_lossy().into_owned();
    let told = |error: std::io::Error| format!("{program}: {error}");
    command.stdin(Stdio::piped()).stdout(Stdio::null()).stderr(Stdio::piped());
    let mut child = command.spawn().map_err(told)?;
    if let Some(mut stdin) = child.stdin.take() {
        let _ = stdin.write_all(input.as_bytes()); // it says itself what it could not read
    }
    let output = child.wait_with_output().map_err(told)?;
    match output.status.success() {
        true => Ok(()),
        false => Err(format!("{program}: {}", String::from_utf8_lossy(&output.stderr).trim())),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn links_are_said_in_the_words_of_netem() {
        let ms = Duration::from_millis;
        let links = Links {
            latency: Latency::Tail { floor: ms(10), mean: ms(2) },
            loss: 0.01,
            bytes_per_second: Some(1_000),
            ..Links::default()
        };
        assert_eq!(netem(&links).join(" "), "delay 12000us 2000us loss 1% rate 8000bit");
        let links = Links { latency: Latency::Uniform(ms(1), ms(3)), duplication: 0.5, ..Links::default() };
        assert_eq!(netem(&links).join(" "), "delay 2000us 1000us duplicate 50%");
        assert_eq!(netem(&Links { latency: Latency::Fixed(ms(1)), ..links }).join(" "), "delay 1000us duplicate 50%");
    }
}
