//! Answers of applications: what a sidecar makes of one, and what hyper does.

use bytes::Bytes;
use fastrand::Rng;
use http_body_util::Empty;
use hyper::Request;
use hyper_util::rt::TokioIo;
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt, duplex};

use super::drawn;
use super::heard::Heard;
use super::requests::Lane;
use super::support::*;

/// More than any answer here.
const ROOM: usize = 1 << 20;

impl Lane {
    /// Lets an application say these bytes to whatever it is asked, and compares what callers of a sidecar are told with
    /// what hyper reads: how many were asked, and how many had the application's answer. An error is an answer that was
    /// none.
    pub(crate) async fn compare_answers(&mut self, bytes: &[u8], random: &mut Rng) -> Result<(usize, usize), String> {
        let method = if random.u8(..4) == 0 { "HEAD" } else { "GET" };
        let (client, server) = duplex(ROOM);
        let (once, twice) = ([method], [method, method]);
        let (read, ()) = tokio::join!(ask(client, &once), say(server, vec![bytes.to_vec()], true));
        // Who asks twice has the rest of the first answer come with it: what comes later may be taken for the next one by
        // anybody.
        let asks = if random.bool() { &once[..] } else { &twice };
        let pieces = if asks.len() == 1 { drawn::cut(random, bytes) } else { vec![bytes] };
        let pieces: Vec<Vec<u8>> = pieces.into_iter().map(<[u8]>::to_vec).collect();
        let closes = random.bool();
        let app = App::talking(move |stream| say(stream, pieces.clone(), closes)).await;
        self.register(app, random);
        let told = ask(self.connect().await, asks).await;
        let mut passed = 0;
        for (heard, own) in told {
            passed += usize::from(!own);
            if !own && !read.iter().any(|(known, _)| heard.is_left_of(known)) {
                return Err(format!("{heard:?} was told, of {read:?}"));
            }
        }
        Ok((asks.len(), passed))
    }
}

/// Says all of it to whatever it is asked, and then ends, or waits for more.
async fn say(mut io: impl AsyncRead + AsyncWrite + Unpin, pieces: Vec<Vec<u8>>, closes: bool) {
    let (mut heard, mut buffer) = (Vec::new(), [0; 1_024]);
    while let Ok(n @ 1..) = io.read(&mut buffer).await {
        heard.extend_from_slice(&buffer[..n]);
        if !heard.ends_with(b"\r\n\r\n") {
            continue;
        }
        heard.clear();
        for piece in &pieces {
            // Whoever refuses its beginning need not hear the end.
            let _ = io.write_all(piece).await;
            tokio::task::yield_now().await;
        }
        if closes {
            let _ = io.shutdown().await;
            return;
        }
    }
}

/// Asks this, one after the other, while there is an answer: what hyper reads, and whether it is the sidecar's own.
async fn ask<S>(io: S, methods: &[&str]) -> Vec<(Heard, bool)>
where
    S: AsyncRead + AsyncWrite + Unpin + Send + 'static,
{
    let mut told = Vec::new();
    let mut client = hyper::client::conn::http1::Builder::new();
    let Ok((mut sender, connection)) = client.max_headers(200).handshake(TokioIo::new(io)).await else { return told };
    let connection = tokio::spawn(connection);
    for method in methods {
        let request = Request::builder().method(*method).uri("/").header("host", "orders");
        let request = request.body(Empty::<Bytes>::new()).expect("a request");
        if sender.ready().await.is_err() {
            break;
        }
        let answered = tokio::time::timeout(PATIENCE, sender.send_request(request)).await.expect("it ends");
        let Ok(response) = answered else { break };
        let (parts, body) = response.into_parts();
        let own = parts.headers.contains_key("x-starling-reason");
        let reading = Heard::read(parts.status.as_u16().to_string(), &parts.headers, body);
        told.push((tokio::time::timeout(PATIENCE, reading).await.expect("it ends"), own));
    }
    connection.abort();
    told
}
