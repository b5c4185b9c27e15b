//! A connection from an application that speaks HTTP/2: its streams are dealt to lanes, each served as a connection.

use std::pin::pin;
use std::sync::Arc;
use std::task::Poll;
use std::time::Duration;

use bytes::Bytes;
use h2::server::{Builder, Connection, SendResponse};
use http::{HeaderValue, Response, StatusCode};
use tokio::time::{Instant, timeout};

use super::heads::Way;
use super::lane::{Arrival, Desk};
use super::{MAX_OWN_RESETS, MAX_PENDING_RESETS};
use crate::client::Client;
use crate::h1::forwarded::Peer;
use crate::mesh::Stream;
use crate::reason::{self, Reason};
use crate::serve::{self, Door, Entrance, Lifetime};
use crate::settings::ProxySettings;
use crate::stack::Carrier;

/// How long a client with no request under way may take to answer the farewell: as long as one of HTTP/1.1 is given for its
/// last request, and far longer than the way there and back within a host.
const FAREWELL: Duration = Duration::from_secs(1);

/// Answers the requests that come by `io` until it, or the proxy, ends.
pub(crate) async fn serve<S: Stream>(
    io: S,
    peer: Option<Peer>,
    entrance: Entrance,
    carrier: Arc<Carrier>,
    mut lifetime: Lifetime,
) {
    let settings = &carrier.settings;
    let within = Duration::from_millis(settings.header_timeout_ms);
    let mut connection = match timeout(within, builder(settings).handshake::<_, Bytes>(io)).await {
        Ok(Ok(connection)) => connection,
        Ok(Err(error)) => return tracing::debug!(%error, "an application's HTTP/2 connection did not begin"),
        Err(_) => return,
    };
    let desk = Arc::new(Desk::default());
    let others = lifetime.clone();
    let run = |arrival: Arrival| {
        if let Some(lane) = desk.deal(arrival, carrier.settings.max_headers) {
            let (carrier, lifetime) = (carrier.clone(), others.clone());
            let door = Door::Application(entrance.clone());
            let mut client = Client::new(lane);
            client.peer = peer;
            tokio::spawn(async move {
                let inner = serve::serve_http1(client, &carrier, door, lifetime.clone()).await;
                if let Some((client, port)) = inner {
                    // Apart: what only some streams become is no part of all others' memory.
                    Box::pin(serve::serve_inner(client, &carrier, port, lifetime)).await;
                }
            });
        }
    };
    let mut draining = pin!(lifetime.leaving());
    let mut closing = false;
    let patience = settings.http2.idle_timeout();
    let mut idle = pin!(tokio::time::sleep(patience));
    let mut last = Instant::now();
    loop {
        tokio::select! {
            biased;
            accepted = connection.accept() => match accepted {
                Some(Ok((request, respond))) if Way::asked(request.method(), request.extensions().get()).is_err() => {
                    refuse_way(respond);
                }
                Some(Ok(arrival)) => {
                    last = Instant::now();
                    run(arrival);
                }
                Some(Err(error)) => {
                    tracing::debug!(%error, "an application's HTTP/2 connection broke");
                    break;
                }
                None => break,
            },
            () = draining.as_mut(), if !closing => {
                connection.graceful_shutdown();
                (closing, last) = (true, Instant::now());
                idle.as_mut().reset(last + FAREWELL);
            }
            () = idle.as_mut() => {
                let patience = if closing { FAREWELL } else { patience };
                let due = if desk.busy() > 0 { Instant::now() } else { last } + patience;
                if due > Instant::now() {
                    idle.as_mut().reset(due);
                } else if closing {
                    // A client that never answers the farewell (with a PONG, as h2 asks) would be kept for ever.
                    break;
                } else {
                    connection.graceful_shutdown();
                    (closing, last) = (true, Instant::now());
                    idle.as_mut().reset(last + FAREWELL);
                }
            }
        }
    }
    desk.close();
    flush(&mut connection).await;
}

/// Lets a last GOAWAY out, if the socket takes it now.
async fn flush<S: Stream>(connection: &mut Connection<S, Bytes>) {
    std::future::poll_fn(|cx| {
        let _ = connection.poll_closed(cx);
        Poll::Ready(())
    })
    .await;
}

fn builder(settings: &ProxySettings) -> Builder {
    let own = &settings.http2;
    let mut builder = Builder::new();
    builder
        .max_concurrent_streams(own.max_streams)
        .initial_window_size(own.stream_window_bytes)
        .initial_connection_window_size(own.connection_window_bytes)
        .max_send_buffer_size(own.stream_window_bytes as usize)
        .max_header_list_size(settings.max_head_bytes as u32)
        .enable_connect_protocol()
        .max_pending_accept_reset_streams(MAX_PENDING_RESETS)
        .max_local_error_reset_streams(Some(MAX_OWN_RESETS));
    builder
}

/// Nobody here knows the protocol that is asked for (RFC 8441, section 5).
fn refuse_way(mut respond: SendResponse<Bytes>) {
    let mut response = Response::new(());
    *response.status_mut() = StatusCode::NOT_IMPLEMENTED;
    let why = format!("{}: of the protocols of CONNECT only websocket is carried", Reason::Unsupported.code());
    if let Ok(why) = HeaderValue::from_str(&why) {
        response.headers_mut().insert(reason::REASON, why);
    }
    // Fails only on a stream that is reset already.
    let _ = respond.send_response(response, true);
}
