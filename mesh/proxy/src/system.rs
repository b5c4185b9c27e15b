//! The guard of this host as a whole ([`SystemGuard`]): asked first of all, at both entrances, and fed by a look at
//! `/proc` once a second.
//!
//! It is asked of every request that carries HTTP: of this host's applications once the service is known and before the
//! body is read, of other nodes once their caller may call; and of every connection of bytes, before it leads anywhere. A
//! request is in flight until its response's body has ended; a connection of bytes, and an upgraded one, until it ends, and its
//! time is not counted: it says how long its ends had something to say to each other.
//!
//! What another node refused so has reached no application: the caller's sidecar may try another instance, and its
//! breaker does not hold it against this one.
//!
//! Load and CPU are the host's (`/proc/loadavg`, `/proc/stat`), also within a container: a sidecar's own control group
//! says nothing of its applications'. Where a container's limit is far below the host, limit calls in flight or their
//! time instead. On a system without such files both count as unknown, and refuse nobody.

use std::sync::Arc;
use std::time::Duration;

use starling_core::guard::system::SystemSnapshot;
use starling_core::guard::{Criticality, Outcome, SystemGuard, SystemPermit, SystemSettings};
use starling_core::id::ServiceKey;
use starling_core::observe::Exposition;
use starling_core::time::Instant;

use crate::clock::Clock;
use crate::directory::Entry;
use crate::h1::response::Response;
use crate::reason::{Reason, Refused};
use crate::serve::Lifetime;
use crate::stack::Carrier;

/// How often load and CPU are read; their readings are believed for ten times as long.
const EVERY: Duration = Duration::from_secs(1);
/// What the guard's refusals name as their rule, there being one.
const RULE: &str = "system";

/// This host, where its guard is on.
#[derive(Debug)]
pub(crate) struct Host {
    guard: Arc<SystemGuard>,
    settings: SystemSettings,
    clock: Clock,
}

/// A request in flight on this host; dropped, it has come to nothing.
#[derive(Debug)]
pub(crate) struct Entered(SystemPermit);

impl Host {
    /// None if no limit is set: then nothing is read and nobody asked.
    pub(crate) fn new(settings: &SystemSettings, clock: Clock) -> Option<Self> {
        let on = !settings.is_off();
        on.then(|| Self { guard: Arc::new(SystemGuard::new(settings)), settings: *settings, clock })
    }

    /// Whether requests of this host's own applications are asked about too.
    pub(crate) fn asks_applications(&self) -> bool {
        !self.settings.inbound_only
    }

    /// Lets a request in, or refuses it; how much it matters is asked only where that makes a difference.
    pub(crate) fn admit(
        &self,
        key: &ServiceKey,
        entry: &Entry,
        class: impl FnOnce() -> Criticality,
    ) -> Result<Entered, Refused> {
        let class = if self.settings.spare.is_some() { class() } else { Criticality::default() };
        match self.guard.admit(self.clock.now(), class) {
            Ok(permit) => Ok(Entered(permit)),
            Err(refusal) => {
                entry.refusals.count(refusal.guard.name(), refusal.reason, RULE);
                let why = format!("{} (rule {RULE})", refusal.reason);
                let refused = Refused::new(Reason::Guard(refusal.guard), why);
                Err(refused.told(RULE, refusal.retry_after_s()).of(key))
            }
        }
    }

    pub(crate) fn snapshot(&self) -> SystemSnapshot {
        self.guard.snapshot(self.clock.now())
    }

    /// Shows what the guard goes by.
    pub(crate) fn collect(&self, out: &mut Exposition) {
        let now = self.snapshot();
        let mut gauge = |name, help, value: f64| out.single(name, "gauge", help, value);
        gauge("starling_system_in_flight", "Requests in flight the host's guard has let in.", now.in_flight.into());
        gauge("starling_system_carries", "Requests in flight this host has shown it can carry.", now.carries as f64);
        gauge("starling_system_mean_seconds", "Mean time of the requests it has let in.", now.mean_us as f64 / 1e6);
        // What is not known is not shown: a 0 would look like an idle host.
        if let Some(percent) = now.load_percent {
            gauge(
                "starling_system_load_percent",
                "Load average of a minute for each core, in percent.",
                percent.into(),
            );
        }
        if let Some(percent) = now.cpu_percent {
            gauge("starling_system_cpu_percent", "CPU used on this host, in percent of all cores.", percent.into());
        }
    }
}

impl Entered {
    /// All of the response has gone out.
    pub(crate) fn end(self, response: &Response, now: Instant) {
        let outcome = if response.verdict().is_server_error() { Outcome::Failure } else { Outcome::Success };
        self.0.end(outcome, now);
    }
}

/// Reads load and CPU until the proxy drains, if the guard asks for them.
pub(crate) async fn run(carrier: Arc<Carrier>, mut lifetime: Lifetime) {
    let Some(host) = carrier.host.as_ref().filter(|host| host.settings.wants_readings()) else { return };
    let (mut before, mut is_told) = (None, false);
    loop {
        match read(&mut before) {
            Ok(Some((load, cpu))) => host.guard.read(host.clock.now(), load, cpu),
            Ok(None) => {} // the first look: there is nothing yet to compare with
            Err(problem) if !is_told => {
                tracing::warn!(problem, "load and CPU of this host are not known, and limit nothing");
                is_told = true;
            }
            Err(_) => {}
        }
        tokio::select! {
            () = tokio::time::sleep(EVERY) => {}
            () = lifetime.draining() => return,
        }
    }
}

/// Load and CPU since the last look, in percent. These files are the kernel's memory: reading them waits for no disk.
fn read(before: &mut Option<Cpu>) -> Result<Option<(u32, u32)>, String> {
    let text = |path: &str| std::fs::read_to_string(path).map_err(|error| format!("cannot read {path}: {error}"));
    let cpu = Cpu::parse(&text("/proc/stat")?).ok_or("/proc/stat is not as proc(5) says")?;
    let load = parse_load(&text("/proc/loadavg")?, cpu.cores).ok_or("/proc/loadavg is not as proc(5) says")?;
    let used = before.as_ref().and_then(|before| cpu.used_percent_since(before));
    *before = Some(cpu);
    Ok(used.map(|used| (load, used)))
}

/// What `/proc/stat` says of all cores together since the start of the host, in ticks.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Cpu {
    cores: u32,
    total: u64,
    /// Nothing to do, or nothing but waiting for a disk. What a hypervisor takes away (`steal`) is not idle: it is not
    /// there to be used either.
    idle: u64,
}

impl Cpu {
    fn parse(stat: &str) -> Option<Self> {
        let mut lines = stat.lines();
        let all = lines.next()?.strip_prefix("cpu ")?;
        // user nice system idle iowait irq softirq steal; what guests used is within user and nice.
        let ticks: Vec<u64> = all.split_ascii_whitespace().take(8).map_while(|ticks| ticks.parse().ok()).collect();
        let idle = ticks.get(3)?.saturating_add(ticks.get(4).copied().unwrap_or(0));
        let cores = lines.take_while(|line| line.starts_with("cpu")).count() as u32;
        let total = ticks.iter().fold(0, |sum: u64, ticks| sum.saturating_add(*ticks));
        (cores > 0).then_some(Self { cores, total, idle })
    }

    /// None if no tick has passed.
    fn used_percent_since(&self, before: &Self) -> Option<u32> {
        let passed = self.total.checked_sub(before.total).filter(|passed| *passed > 0)?;
        // The time of waiting for disks may run backwards (proc(5)).
        let idle = self.idle.saturating_sub(before.idle).min(passed);
        Some((u128::from(passed - idle) * 100 / u128::from(passed)) as u32)
    }
}

/// The load average of a minute for each core, in percent.
fn parse_load(loadavg: &str, cores: u32) -> Option<u32> {
    let load: f64 = loadavg.split_ascii_whitespace().next()?.parse().ok()?;
    (load.is_finite() && load >= 0.0).then(|| (load * 100.0 / f64::from(cores.max(1))).round() as u32)
}

#[cfg(test)]
mod tests {
    use super::*;

    const STAT: &str = "cpu  100 0 50 800 50 0 0 0 30 0\ncpu0 50 0 25 400 25 0 0 0 15 0\n\
        cpu1 50 0 25 400 25 0 0 0 15 0\nintr 5 0 0\nctxt 9\ncpufreq 1\n";

    #[test]
    fn cpu_is_what_was_not_idle_between_two_looks() {
        let before = Cpu::parse(STAT).unwrap();
        assert_eq!(before, Cpu { cores: 2, total: 1_000, idle: 850 });
        let later = |ticks: &str| Cpu::parse(&STAT.replacen("100 0 50 800 50 0 0 0", ticks, 1)).unwrap();
        let used = |ticks: &str| later(ticks).used_percent_since(&before);
        assert_eq!(used("150 0 50 820 80 0 0 0"), Some(50), "a disk waited for is not CPU used");
        assert_eq!(used("100 10 60 800 50 10 10 60"), Some(100), "nor is what a hypervisor takes left to use");
        assert_eq!(used("150 0 100 800 40 0 0 0"), Some(100), "iowait may run backwards");
        assert_eq!(used("100 0 50 900 50 0 0 0"), Some(0));
        assert_eq!((used("100 0 50 800 50 0 0 0"), used("0 0 0 1 0 0 0 0")), (None, None), "no time has passed");
    }

    #[test]
    fn load_is_that_of_a_minute_for_each_core() {
        assert_eq!(parse_load("3.00 0.10 0.20 2/345 6789\n", 2), Some(150));
        assert_eq!(parse_load("0.005 9 9 1/1 1", 1), Some(1));
    }

    #[test]
    fn what_is_not_as_it_should_be_is_unknown_rather_than_idle() {
        for stat in ["", "cpu", "cpu  1 2 3", "cpu  a b c d\ncpu0 1 2 3 4\n", "cpu  1 2 3 4\nintr 1\n", "intr 1\n"] {
            assert_eq!(Cpu::parse(stat), None, "{stat:?}");
        }
        for load in ["", "x", "-1", "NaN", "inf"] {
            assert_eq!(parse_load(load, 1), None, "{load:?}");
        }
    }

    #[cfg(target_os = "linux")]
    #[test]
    fn this_host_can_be_read() {
        let mut before = None;
        assert_eq!(read(&mut before), Ok(None));
        assert!(before.is_some_and(|cpu| cpu.cores > 0 && cpu.total > 0));
    }

    #[test]
    fn with_no_limit_there_is_no_guard() {
        assert!(Host::new(&SystemSettings::default(), Clock::start()).is_none());
        let spares = SystemSettings { spare: Some(Criticality::Critical), inbound_only: true, ..Default::default() };
        assert!(Host::new(&spares, Clock::start()).is_none(), "whom to spare is no limit");
        assert!(Host::new(&SystemSettings { max_per_s: 1, ..Default::default() }, Clock::start()).is_some());
    }
}
