//! Customers: requests at a fixed rate, whatever the shop does, and what became of every one of them.
//!
//! An open loop: each request's time is counted from the moment it was due, so a shop that stalls cannot hide it by
//! being asked less. Nine of ten requests are safe to repeat (GET), every tenth is not (POST), as in a real shop.

use std::collections::{BTreeSet, VecDeque};
use std::net::SocketAddr;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use hyper::Method;
use tokio::task::{JoinHandle, JoinSet};
use tokio::time::{Instant, MissedTickBehavior, interval, timeout};

use super::http::{Answer, Client};
use super::shop::{REASON_HEADER, WAY_HEADER, request};

/// How long a customer waits.
const PATIENCE: Duration = Duration::from_secs(5);
/// The most requests in flight; beyond that customers are turned away, and counted as lost.
const MAX_IN_FLIGHT: usize = 2_000;
/// How many results are kept: many minutes of the usual rate. Only a demo that stays up gets there.
const MAX_SAMPLES: usize = 200_000;
/// Every so many requests one is a POST.
const POST_EVERY: u64 = 10;

/// The load, for as long as this lives.
pub(crate) struct Load {
    shared: Arc<Shared>,
    customers: JoinHandle<()>,
}

struct Shared {
    shop: Client,
    book: Mutex<Book>,
}

#[derive(Default)]
struct Book {
    next: u64,
    in_flight: BTreeSet<u64>,
    samples: VecDeque<Sample>,
}

/// One request's fate.
#[derive(Debug, Clone)]
pub(crate) struct Sample {
    /// When it was due.
    pub(crate) due: Instant,
    /// Whether it may be repeated without asking.
    pub(crate) safe: bool,
    /// From due to answered.
    pub(crate) took: Duration,
    /// The way it went, or why it failed.
    pub(crate) outcome: Result<String, Fault>,
}

/// Why a request failed.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Fault {
    /// In a few words that are the same for the same fault: `502: orders asked for stock: connection_lost`.
    pub(crate) code: String,
    /// In all the words that came with it.
    pub(crate) words: String,
}

/// A stretch of the load.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Window {
    pub(crate) from: Instant,
    pub(crate) until: Instant,
}

impl Load {
    /// Begins: so many requests a second to `web` through this sidecar.
    pub(crate) fn start(sidecar: SocketAddr, per_second: u32) -> Self {
        let shared = Arc::new(Shared { shop: Client::new(sidecar), book: Mutex::default() });
        let customers = tokio::spawn(come(shared.clone(), per_second));
        Self { shared, customers }
    }

    /// The requests that were due in a stretch of time. Waits until the last of them has its answer.
    pub(crate) async fn within(&self, window: Window) -> Vec<Sample> {
        let last = self.shared.book().next;
        let settled = async {
            while self.shared.book().in_flight.first().is_some_and(|oldest| *oldest < last) {
                tokio::time::sleep(Duration::from_millis(5)).await;
            }
        };
        // Every request ends within the customers' patience.
        let _ = timeout(PATIENCE + Duration::from_secs(1), settled).await;
        let book = self.shared.book();
        book.samples.iter().filter(|sample| (window.from..window.until).contains(&sample.due)).cloned().collect()
    }

    /// When a request that was due after `since` came back over this instance for the first time.
    pub(crate) fn first_over(&self, instance: &str, since: Instant) -> Option<Instant> {
        let book = self.shared.book();
        let over = |sample: &&Sample| sample.due >= since && sample.passed(instance);
        book.samples.iter().filter(over).map(|sample| sample.due + sample.took).min()
    }
}

impl Drop for Load {
    fn drop(&mut self) {
        self.customers.abort();
    }
}

impl Shared {
    fn book(&self) -> std::sync::MutexGuard<'_, Book> {
        self.book.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Fault {
    fn read(answer: &Answer) -> Self {
        let status = answer.status.as_u16();
        // The sidecar's own words are in a header, the shop's in the body; both begin with a code.
        let words = match answer.header(REASON_HEADER) {
            "" => answer.excerpt(),
            reason => format!("customer asked for web: {reason}"),
        };
        let code = words.splitn(3, ": ").take(2).collect::<Vec<_>>().join(": ");
        Self { code: format!("{status}, {code}"), words }
    }
}

impl Sample {
    /// Whether it was answered by way of this instance.
    pub(crate) fn passed(&self, instance: &str) -> bool {
        self.outcome.as_ref().is_ok_and(|way| way.split(' ').any(|step| step == instance))
    }
}

/// How many customers a rush has.
pub(crate) const RUSH: usize = 8;

/// Lets customers come as fast as they are served, for a while; how many a second were served.
pub(crate) async fn rush(sidecar: SocketAddr, lasting: Duration) -> Result<u32, String> {
    let shop = Arc::new(Client::new(sidecar));
    let began = Instant::now();
    let mut customers = JoinSet::new();
    for _ in 0..RUSH {
        let shop = shop.clone();
        customers.spawn(async move {
            let mut served = 0;
            while began.elapsed() < lasting {
                match shop.send(request(Method::GET, "web", "/order"), PATIENCE).await {
                    Ok(answer) if answer.status.is_success() => served += 1,
                    Ok(answer) => return Err(format!("the shop answered {}", answer.excerpt())),
                    Err(error) => return Err(error.to_string()),
                }
            }
            Ok(served)
        });
    }
    let mut served = 0;
    while let Some(customer) = customers.join_next().await {
        served += customer.map_err(|error| error.to_string())??;
    }
    Ok((f64::from(served) / began.elapsed().as_secs_f64()) as u32)
}

async fn come(shared: Arc<Shared>, per_second: u32) {
    let mut ticks = interval(Duration::from_secs(1) / per_second.max(1));
    ticks.set_missed_tick_behavior(MissedTickBehavior::Burst);
    loop {
        let due = ticks.tick().await;
        let (number, room) = {
            let mut book = shared.book();
            let number = book.next;
            book.next += 1;
            let room = book.in_flight.len() < MAX_IN_FLIGHT;
            if room {
                book.in_flight.insert(number);
            }
            (number, room)
        };
        let safe = number % POST_EVERY != POST_EVERY - 1;
        if room {
            tokio::spawn(buy(shared.clone(), number, safe, due));
        } else {
            let words = format!("{MAX_IN_FLIGHT} requests were waiting already");
            let outcome = Err(Fault { code: "not sent".into(), words });
            shared.book().keep(Sample { due, safe, took: due.elapsed(), outcome });
        }
    }
}

async fn buy(shared: Arc<Shared>, number: u64, safe: bool, due: Instant) {
    let method = if safe { Method::GET } else { Method::POST };
    let outcome = match shared.shop.send(request(method, "web", "/order"), PATIENCE).await {
        Ok(answer) if answer.status.is_success() => Ok(answer.header(WAY_HEADER).to_owned()),
        Ok(answer) => Err(Fault::read(&answer)),
        Err(error) => Err(Fault { code: "no answer".into(), words: error.to_string() }),
    };
    let mut book = shared.book();
    book.in_flight.remove(&number);
    book.keep(Sample { due, safe, took: due.elapsed(), outcome });
}

impl Book {
    fn keep(&mut self, sample: Sample) {
        if self.samples.len() == MAX_SAMPLES {
            self.samples.pop_front();
        }
        self.samples.push_back(sample);
    }
}

#[cfg(test)]
mod tests {
    use bytes::Bytes;
    use hyper::{HeaderMap, StatusCode};

    use super::*;

    #[test]
    fn the_same_fault_has_the_same_code_whatever_its_details() {
        let body = |words: &str| Answer {
            status: StatusCode::FAILED_DEPENDENCY,
            headers: HeaderMap::new(),
            body: Bytes::from(words.to_owned()),
        };
        let one = Fault::read(&body("orders asked for stock: timed_out: after 5 s; tried stock-ber-1"));
        let other = Fault::read(&body("orders asked for stock: timed_out: after 7 s; tried stock-ber-2"));
        assert_eq!(one.code, "424, orders asked for stock: timed_out");
        assert_eq!(one.code, other.code);
        assert_ne!(one.words, other.words);
    }

    #[test]
    fn a_sidecar_that_answers_by_itself_is_quoted() {
        let mut headers = HeaderMap::new();
        headers.insert(REASON_HEADER, "no_usable_instance: all are down".parse().unwrap());
        let fault = Fault::read(&Answer { status: StatusCode::SERVICE_UNAVAILABLE, headers, body: Bytes::new() });
        assert_eq!(fault.code, "503, customer asked for web: no_usable_instance");
    }
}
