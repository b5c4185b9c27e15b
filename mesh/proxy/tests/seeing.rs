//! What can be seen of requests: traces that hang together across nodes, and metrics.

mod support;

use starling_core::observe::SpanKind;
use support::*;

const PARENT: &str = "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01";

#[tokio::test]
async fn a_trace_is_continued_through_both_sidecars_to_the_application() {
    let flock = Flock::default();
    let app = App::answering(|request| async move {
        let header = |name: &str| request.headers().get(name).map_or("none", |v| v.to_str().unwrap()).to_owned();
        text(200, format!("{} {}", header("traceparent"), header("tracestate")))
    })
    .await;
    let a = flock.node("a").await;
    let b = flock.node("b").await;
    flock.register(app.at("orders", "1", "b"));
    let fields = format!("traceparent: {PARENT}\r\ntracestate: k=v\r\n");
    let answer = a.send("GET", "orders.mesh", "/some/path?secret=1", &fields, b"").await;
    assert_eq!(answer.header("x-starling-trace"), Some("0af7651916cd43dd8448eb211c80319c"));

    let client = a.spans_of(&answer, 1).await.remove(0);
    let server = b.spans_of(&answer, 1).await.remove(0);
    assert_eq!((client.kind, server.kind), (SpanKind::Client, SpanKind::Server));
    assert_eq!(client.parent.unwrap().to_string(), "b7ad6b7169203331");
    assert_eq!(server.parent, Some(client.id));
    assert_eq!((client.name.as_str(), client.service.as_str(), client.status), ("GET", "default/orders", Some(200)));
    assert_eq!((client.node.as_str(), server.node.as_str()), ("a", "b"));
    assert_eq!(client.attributes["url.path"], "/some/path");
    assert_eq!(client.attributes["instance"], "1");
    assert_eq!(answer.text(), format!("00-0af7651916cd43dd8448eb211c80319c-{}-01 k=v", server.id));
}

#[tokio::test]
async fn without_a_parent_a_trace_begins_and_foreign_state_is_dropped() {
    let flock = Flock::default();
    let app =
        App::answering(|request| async move { text(200, format!("{}", request.headers().contains_key("tracestate"))) })
            .await;
    let a = flock.node("a").await;
    flock.register(app.at("orders", "1", "a"));
    let answer = a.send("GET", "orders", "/", "traceparent: 00-bad\r\ntracestate: k=v\r\n", b"").await;
    assert_eq!(answer.text(), "false");
    assert_eq!(a.spans_of(&answer, 1).await[0].parent, None);
}

#[tokio::test]
async fn a_repeated_request_reads_as_a_call_with_its_attempts() {
    let flock = Flock::default();
    let lives = App::named("lives").await;
    let a = flock.node("a").await;
    flock.register(Place { service: "orders", id: "1", owner: "a", address: nowhere().await });
    flock.register(lives.at("orders", "2", "a"));
    let answer = eventually("a request that is repeated", || async {
        let answer = a.get("orders", "/").await;
        assert_eq!(answer.text(), "lives");
        (a.spans_of(&answer, 1).await.len() > 1).then_some(answer)
    })
    .await;
    let spans = a.spans_of(&answer, 3).await;
    let root = spans.iter().find(|span| span.parent.is_none()).unwrap();
    let attempts: Vec<_> = spans.iter().filter(|span| span.parent == Some(root.id)).collect();
    assert_eq!((spans.len(), attempts.len(), root.status), (3, 2, Some(200)));
    let failed = attempts.iter().find(|span| span.error.is_some()).unwrap();
    let good = attempts.iter().find(|span| span.error.is_none()).unwrap();
    assert!(failed.error.as_ref().unwrap().contains("no connection to"), "{failed:?}");
    assert_eq!(good.attributes["http.request.resend_count"], "1");
    assert!(root.start_us <= failed.start_us && root.duration_us >= good.duration_us);
}

#[tokio::test]
async fn a_trace_that_is_not_sampled_is_passed_on_but_not_kept() {
    let (flock, app) = (Flock::default(), App::named("ok").await);
    let a = flock.node("a").await;
    flock.register(app.at("orders", "1", "a"));
    let fields = format!("traceparent: {}\r\n", PARENT.replace("-01", "-00"));
    let answer = a.send("GET", "orders", "/", &fields, b"").await;
    assert_eq!(answer.header("x-starling-trace"), Some("0af7651916cd43dd8448eb211c80319c"));
    a.get("orders", "/").await;
    assert!(a.spans_of(&answer, 0).await.is_empty());
}

#[tokio::test]
async fn requests_are_counted_on_both_sides() {
    let (flock, app) = (Flock::default(), App::named("ok").await);
    let a = flock.node("a").await;
    let b = flock.node("b").await;
    flock.register(app.at("orders", "1", "b"));
    for _ in 0..3 {
        a.get("orders.mesh", "/").await;
    }
    let (at_a, at_b) = (a.metrics(), b.metrics());
    let counted = |direction: &str| {
        format!("starling_requests_total{{service=\"default/orders\",direction=\"{direction}\",class=\"2xx\"}} 3\n")
    };
    assert!(at_a.contains(&counted("outbound")), "{at_a}");
    assert!(at_b.contains(&counted("inbound")), "{at_b}");
    let infinity =
        "starling_request_duration_seconds_bucket{service=\"default/orders\",direction=\"outbound\",le=\"+Inf\"} 3\n";
    assert!(at_a.contains(infinity), "{at_a}");
}

#[tokio::test]
async fn a_refused_request_leaves_a_span_that_says_why() {
    let flock = Flock::default();
    let a = flock.node("a").await;
    let answer = a.get("orders", "/").await;
    let span = a.spans_of(&answer, 1).await.remove(0);
    assert_eq!((span.name.as_str(), span.service.as_str()), ("GET", "default/orders"));
    assert_eq!(span.error.as_deref(), Some("no service default/orders is registered"));
}
