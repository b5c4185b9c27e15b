//! One sale, seen from a node that had no part in it.

use std::collections::BTreeSet;
use std::time::Duration;

use hyper::Method;
use starling_api::model::{SpanInfo, TraceDetail};
use starling_core::observe::{SpanKind, TraceId};
use tokio::time::{Instant, sleep, timeout};

use super::{Story, Told};
use crate::cli::Tree;
use crate::demo::cast::{ENTRANCE, HOSTS, PLAYERS};
use crate::demo::figure::{Figure, time};
use crate::demo::http::Client;
use crate::demo::screen::Paint;
use crate::demo::shop::{WAY_HEADER, request};
use crate::demo::watch::PATIENCE;

/// One sale makes three calls; the one that changes hosts is seen from both sides.
const MIN_SPANS: usize = 4;
/// How wide a span's bar is.
const BAR: u64 = 28;

pub(super) async fn tell(story: &mut Story) -> Told {
    story.screen.chapter("One request is followed");
    // A caller that traces already: the mesh goes on with its trace.
    let trace = TraceId(u128::from(story.dice.u64(1..)) << 64 | u128::from(story.dice.u64(..)));
    let mut sale = request(Method::GET, "web", "/order");
    let parent = format!("00-{trace}-{:016x}-01", story.dice.u64(1..));
    sale.headers_mut().insert("traceparent", parent.parse().map_err(|error| format!("{error}"))?);
    let sidecar = Client::new(story.stage.addresses(ENTRANCE)?.sidecar);
    let answer = sidecar.send(sale, Duration::from_secs(5)).await.map_err(|error| error.to_string())?;
    let way = answer.header(WAY_HEADER).to_owned();
    story.screen.event("customer", &format!("is served by {}", way.replace(' ', ", ")));

    let took_part: BTreeSet<usize> = PLAYERS
        .iter()
        .filter(|player| way.split(' ').any(|step| step == player.name))
        .map(|player| player.host)
        .collect();
    let Some(outsider) = (0..HOSTS.len()).find(|host| !took_part.contains(host)) else {
        return Err(format!("every node took part in {way}"));
    };
    let began = Instant::now();
    let detail = gathered(story, outsider, trace).await?;
    let took = began.elapsed();
    let words = format!("had no part in it and is asked for trace {trace}");
    story.screen.event(HOSTS[outsider].node, &words);
    draw(story, &detail);

    let nodes: BTreeSet<_> = detail.spans.iter().map(|span| span.node.as_str()).collect();
    let sides = |kind| detail.spans.iter().any(|span| span.kind == kind);
    let whole = nodes.len() == 2 && sides(SpanKind::Client) && sides(SpanKind::Server);
    story.report.figure("trace_spans", Figure::Count(detail.spans.len() as u64));
    story.report.figure("trace_gathered", Figure::Time(took));
    let measured = format!("{} spans of {} nodes in {}", detail.spans.len(), nodes.len(), time(took));
    story.promise(whole, "any node can tell a request's story", &measured);
    Ok(())
}

/// Asks until the answer is whole: the last span ends a moment after the customer has the answer.
async fn gathered(story: &Story, host: usize, trace: TraceId) -> Result<TraceDetail, String> {
    let api = story.api(host)?;
    let asking = async {
        loop {
            let detail = api.trace(trace).await?;
            let shop = |span: &SpanInfo| span.service.ends_with("/stock") && span.kind == SpanKind::Server;
            if detail.spans.len() >= MIN_SPANS && detail.spans.iter().any(shop) {
                return Ok(detail);
            }
            sleep(Duration::from_millis(5)).await;
        }
    };
    timeout(PATIENCE, asking).await.unwrap_or_else(|_| Err(format!("trace {trace} is not whole in time")))
}

/// The calls as a tree, and where the time went.
fn draw(story: &mut Story, detail: &TraceDetail) {
    let tree = Tree::of(&detail.spans);
    story.screen.gap();
    for line in &tree.lines {
        let span = line.span;
        let side = if span.kind == SpanKind::Client { "calls" } else { "is called" };
        let service = span.service.rsplit('/').next().unwrap_or_default();
        let what = match span.kind {
            SpanKind::Client => format!("{}{} {service}", line.branch, span.node),
            SpanKind::Server => format!("{}{} for {service}", line.branch, span.node),
        };
        let took = time(Duration::from_micros(span.duration_us));
        let bar = story.screen.paint(Paint::Accent, tree.bar(line, BAR).trim_end());
        let result = span.status.map_or_else(|| span.error.clone().unwrap_or_default(), |status| status.to_string());
        story.screen.verbatim(&format!("{what:<26}{side:<10}{took:>8} {result:>3}  {bar}"));
    }
    story.screen.gap();
}
