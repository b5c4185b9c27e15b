//! Programs that know nothing of the mesh call each other through it.

use std::time::Duration;

use hyper::Method;
use starling_api::model::{InstanceInfo, InstanceList};
use starling_core::view::Usability;
use tokio::time::{Instant, sleep};

use super::{Story, Told};
use crate::demo::cast::{ENTRANCE, PLAYERS, players};
use crate::demo::figure::{Figure, Times, time};
use crate::demo::http::Client;
use crate::demo::load::{self, Load, Sample};
use crate::demo::shop::{Role, request};
use crate::demo::watch;

/// How long one call of the comparison may take.
const CALL_WITHIN: Duration = Duration::from_secs(5);
/// The customers ask for this part of what the machine can carry, so that what is measured is the mesh, and not the
/// queue in front of a machine that is full.
const EASE: u32 = 4;
/// Fewer would show nothing.
const MIN_RATE: u32 = 20;
/// Calls that open connections and are not counted.
const WARM_UP: usize = 10;

pub(super) async fn tell(story: &mut Story) -> Told {
    story.screen.chapter("A shop opens");
    let everybody: Vec<usize> = (0..PLAYERS.len()).collect();
    let began = Instant::now();
    story.stage.start_apps(&everybody).await?;
    let words = format!("{} processes of web, orders and stock; each knows only its host's sidecar", everybody.len());
    story.screen.event("shop", &words);
    let ready = ready_everywhere(story).await?;
    story.report.figure("shop_started_to_ready", Figure::Time(ready - began));
    story.screen.event("mesh", "has checked all of them, and every node knows where they are");
    let sidecar = story.stage.addresses(ENTRANCE)?.sidecar;
    let capacity = load::rush(sidecar, story.plan.rush).await?;
    let rate = story.plan.rate.min(capacity / EASE).max(MIN_RATE);
    story.report.figure("shop_capacity_per_second", Figure::Count(capacity.into()));
    story.report.figure("shop_rate_per_second", Figure::Count(rate.into()));
    let words = format!("{} customers at once are served {capacity} times a second on this machine", load::RUSH);
    story.screen.event("load", &words);
    let words =
        format!("from now on {rate} requests a second, each through web, orders and stock; every tenth is a POST");
    story.screen.event("load", &words);

    let since = Instant::now();
    story.load = Some(Load::start(sidecar, rate));
    sleep(story.plan.watching).await;
    compare(story).await?;
    let samples = story.account("shop", since, "nothing is lost while nothing happens").await?;
    show_balance(story, &samples);
    Ok(())
}

/// Waits until every node would send traffic to every instance.
async fn ready_everywhere(story: &Story) -> Result<Instant, String> {
    let mut last = Instant::now();
    for role in [Role::Web, Role::Orders, Role::Stock] {
        let expected = players(role).count();
        let ready = |list: &InstanceList| list.instances.iter().filter(|it| is_ready(it)).count() == expected;
        let mut observers = watch::everywhere::<InstanceList>(&story.apis()?, role.service()).await?;
        last = last.max(watch::all(&mut observers, ready).await?);
    }
    Ok(last)
}

pub(super) fn is_ready(instance: &InstanceInfo) -> bool {
    instance.usability == Usability::Ready
}

/// The same small answer directly, through one sidecar and through two, in turn while the shop is busy.
async fn compare(story: &mut Story) -> Told {
    let near = players(Role::Orders).find(|at| PLAYERS[*at].host == ENTRANCE).unwrap_or_default();
    let sidecar = story.stage.addresses(ENTRANCE)?.sidecar;
    let (direct, through) = (Client::new(story.stage.app(near)?.1), Client::new(sidecar));
    let ways = [(&direct, Role::Orders), (&through, Role::Orders), (&through, Role::Stock)];
    let mut times = [Times::new(), Times::new(), Times::new()];
    for call in 0..story.plan.calls + WARM_UP {
        for ((client, role), times) in ways.iter().zip(&mut times) {
            let began = Instant::now();
            let answer = client.send(request(Method::GET, role.service(), "/hello"), CALL_WITHIN).await;
            let took = began.elapsed();
            match answer {
                Ok(answer) if answer.status.is_success() => {}
                Ok(answer) => return Err(format!("{} answered {}", role.service(), answer.excerpt())),
                Err(error) => return Err(error.to_string()),
            }
            if call >= WARM_UP {
                times.record(took);
            }
        }
    }
    story.screen.times_heading("one call, while busy");
    let labels = ["direct, no sidecar", "one, same host", "two, another host"];
    let names = ["call_direct", "call_one_sidecar", "call_two_sidecars"];
    for ((label, name), times) in labels.into_iter().zip(names).zip(&times) {
        story.screen.times(label, times);
        story.report.times(name, times);
    }
    let [direct, one, two] = times.map(|times| times.p50());
    let added = |sidecars: Duration| time(sidecars.saturating_sub(direct));
    story.promise(true, "what sidecars add, at the median", &format!("one {}, two {}", added(one), added(two)));
    Ok(())
}

/// How the requests were spread, and whether that is as it should be.
fn show_balance(story: &mut Story, samples: &[Sample]) {
    let served: Times = samples.iter().filter(|sample| sample.outcome.is_ok()).map(|sample| sample.took).collect();
    story.screen.times_heading("customers");
    story.screen.times("web, orders, stock", &served);
    story.report.times("shop_request", &served);
    let mut far = 0;
    let mut spread = Vec::new();
    for role in [Role::Orders, Role::Stock] {
        let counts: Vec<(usize, u64)> = players(role)
            .map(|at| (at, samples.iter().filter(|sample| sample.passed(PLAYERS[at].name)).count() as u64))
            .collect();
        let bars: Vec<_> = counts.iter().map(|(at, count)| (PLAYERS[*at].name.to_owned(), *count)).collect();
        story.screen.remark(match role {
            Role::Orders => "orders, as called by web in amsterdam",
            _ => "stock, as called by orders in amsterdam",
        });
        story.screen.bars(&bars);
        for (at, count) in &counts {
            story.report.figure(&format!("served_by_{}", PLAYERS[*at].name), Figure::Count(*count));
            match role {
                Role::Orders if PLAYERS[*at].host != ENTRANCE => far += count,
                Role::Orders | Role::Web => {}
                Role::Stock => spread.push(*count),
            }
        }
    }
    let measured = format!("{far} of {} calls left it", Figure::Count(served.len()));
    story.promise(far == 0, "callers use their own zone first", &measured);
    let share = |count: Option<u64>| Figure::Share(count.unwrap_or(0) as f64 / served.len().max(1) as f64);
    let measured = format!("{} to {} each", share(spread.iter().min().copied()), share(spread.iter().max().copied()));
    story.promise(!spread.contains(&0), "work is spread over what is equally near", &measured);
}
