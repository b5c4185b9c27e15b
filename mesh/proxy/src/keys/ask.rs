//! What nodes ask each other of a key that one of them does not know.
//!
//! ```text
//! asks     2 · key (16) · what it asks for (8) · how long it waits, in ms (4)
//! answers  0 nothing is known · 1 it is under way · 3 it was answered, with more than is kept · 4 it is another request's
//!          2 · how long it is kept, in ms (8) · status (2) · bytes of its head (4) and body (4) · head · body
//!          9 it is under way: wait; one of the others follows
//!          5 this node does not answer you
//! ```
//!
//! The 2 is the version, and at the same time what tells such a tunnel from one of HTTP or of bytes. All numbers are
//! big-endian. Only a node that has an instance of the service itself is answered: what is told is what one of its callers
//! was told.

use std::collections::BTreeMap;
use std::future::{Future, poll_fn};
use std::pin::pin;
use std::sync::Arc;
use std::task::Poll;
use std::time::Duration;

use http::StatusCode;
use starling_core::guard::idempotency::{KeyId, Print, Told, weight_for};
use starling_core::id::{InstanceKey, NodeId};
use starling_core::registry::Reach;
use starling_core::view::Usability;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::task::JoinSet;
use tokio::time::{Instant, timeout};

use super::{At, Kept, Keyed};
use crate::client::Client;
use crate::inbound::{Opens, Tunnel};
use crate::mesh::Stream;
use crate::stack::Carrier;

/// How long a question is.
const LENGTH: usize = 1 + 16 + 8 + 4;
/// The longest head of an answer that is read: more than any sidecar's `max_head_bytes` lets pass.
const MAX_HEAD: usize = 1 << 20;
/// The longest that a node waits for another: as long as any policy lets a repeat wait.
const MAX_WAIT: Duration = Duration::from_secs(600);

const UNKNOWN: u8 = 0;
const UNDER_WAY: u8 = 1;
const ANSWERED: u8 = 2;
const NOT_KEPT: u8 = 3;
const MISUSED: u8 = 4;
const NOT_YOU: u8 = 5;
const WAIT: u8 = 9;

/// What is to be asked.
pub(super) struct Question<'a> {
    pub(super) at: &'a At<'a>,
    pub(super) keyed: Keyed,
    /// How long the first request may be waited for.
    pub(super) wait: Duration,
}

/// What came of it.
pub(super) enum Heard {
    /// Nobody knows it.
    Nothing,
    /// Somebody does, and says so.
    Told(Told<Kept>),
    /// Nobody who answered knows it, and somebody did not answer.
    Silence,
}

impl Question<'_> {
    /// Asks those who are the most likely to know: whoever said that it goes on with this key, and those the key is drawn
    /// to the most.
    pub(super) async fn ask(&self, carrier: &Carrier, yielded_to: Option<NodeId>) -> Heard {
        let Some(own) = carrier.own.upgrade() else { return Heard::Silence };
        let table = &self.at.entry.keys;
        let noted = table.lock().whom_to_ask(carrier.clock.now(), self.keyed.id).cloned();
        let mut asking = JoinSet::new();
        for (node, to) in self.whom(carrier, noted.into_iter().chain(yielded_to)) {
            let (own, question, wait) = (own.clone(), self.bytes(), self.wait);
            let patience = Duration::from_millis(self.at.settings.ask_ms);
            let most = self.at.settings.max_answer_bytes;
            asking.spawn(async move { put(&own, &node, &to, &question, patience, wait, most).await });
        }
        let mut heard = Heard::Nothing;
        while let Some(told) = asking.join_next().await {
            match told.ok().flatten() {
                Some(Told::Unknown) => {}
                // Whoever else is asked cannot know better.
                Some(told) => return Heard::Told(told),
                None => {
                    table.lock().not_told();
                    heard = Heard::Silence;
                }
            }
        }
        heard
    }

    fn bytes(&self) -> Vec<u8> {
        let wait_ms = u32::try_from(self.wait.min(MAX_WAIT).as_millis()).unwrap_or(0);
        let mut bytes = Vec::with_capacity(LENGTH);
        bytes.push(Opens::Key as u8);
        bytes.extend_from_slice(&self.keyed.id.0.to_be_bytes());
        bytes.extend_from_slice(&self.keyed.print.0.to_be_bytes());
        bytes.extend_from_slice(&wait_ms.to_be_bytes());
        bytes
    }

    /// The nodes to ask, each with an instance it has, or this one where it has none any more.
    fn whom(&self, carrier: &Carrier, also: impl Iterator<Item = NodeId>) -> BTreeMap<NodeId, InstanceKey> {
        let me = carrier.mesh.me();
        let view = carrier.mesh.view();
        let mut drawn: BTreeMap<&NodeId, (f64, &InstanceKey)> = BTreeMap::new();
        let service = view.service(&self.at.instance.service);
        for instance in service.iter().flat_map(|service| &service.instances) {
            let is_gone = matches!(instance.usability, Usability::OwnerLost | Usability::OwnerLeft);
            if is_gone || instance.owner() == me || instance.instance.reach != Reach::Owner {
                continue;
            }
            // One that is to get nothing now may have got it before.
            let weight = weight_for(self.keyed.steering, instance.key.instance.as_str(), instance.weight().max(1));
            let known = drawn.entry(instance.owner()).or_insert((weight, &instance.key));
            if weight > known.0 {
                *known = (weight, &instance.key);
            }
        }
        let mut ranked: Vec<_> = drawn.iter().collect();
        ranked.sort_by(|(_, one), (_, other)| other.0.total_cmp(&one.0));
        let likely = ranked.iter().take(self.at.settings.ask as usize).map(|(node, _)| (**node).clone());
        let key_at = |node: NodeId| {
            let key = drawn.get(&node).map_or(self.at.instance, |(_, key)| key).clone();
            (node, key)
        };
        likely.chain(also).filter(|node| node != me).map(key_at).collect()
    }
}

/// Asks one node; none if it does not answer.
async fn put(
    carrier: &Carrier,
    node: &NodeId,
    to: &InstanceKey,
    question: &[u8],
    patience: Duration,
    wait: Duration,
    most: u64,
) -> Option<Told<Kept>> {
    let asking = async {
        let mut tunnel = carrier.mesh.open_tunnel(node, to, patience).await.ok()?;
        tunnel.write_all(question).await.ok()?;
        tunnel.flush().await.ok()?;
        let kind = tunnel.read_u8().await.ok()?;
        Some((tunnel, kind))
    };
    let (mut tunnel, mut kind) = timeout(patience, asking).await.ok()??;
    if kind == WAIT {
        kind = timeout(wait + patience, tunnel.read_u8()).await.ok()?.ok()?;
    }
    let reading = async {
        match kind {
            UNKNOWN => Some(Told::Unknown),
            UNDER_WAY => Some(Told::UnderWay),
            NOT_KEPT => Some(Told::NotKept),
            MISUSED => Some(Told::Misused),
            ANSWERED => read_answer(&mut tunnel, most).await,
            _ => None,
        }
    };
    timeout(patience, reading).await.ok()?
}

async fn read_answer<R: Stream>(from: &mut R, most: u64) -> Option<Told<Kept>> {
    let left = Duration::from_millis(from.read_u64().await.ok()?);
    let status = StatusCode::from_u16(from.read_u16().await.ok()?).ok()?;
    let (head, body) = (from.read_u32().await.ok()? as usize, from.read_u32().await.ok()?);
    if head > MAX_HEAD || u64::from(body) > most {
        return Some(Told::NotKept);
    }
    let (mut head, mut body) = (vec![0; head], vec![0; body as usize]);
    from.read_exact(&mut head).await.ok()?;
    from.read_exact(&mut body).await.ok()?;
    Some(Told::Answered(Arc::new(Kept { status, head, body }), left))
}

/// Answers another node's question.
pub(crate) async fn answer<S: Stream>(mut client: Client<S>, carrier: &Carrier, tunnel: &Tunnel) {
    let patience = Duration::from_millis(carrier.settings.header_timeout_ms);
    if let Ok(Some(question)) = timeout(patience, read(&mut client)).await {
        let told = told(&mut client, carrier, tunnel, question).await;
        // Whoever does not hear it is gone already.
        if let Ok(told) = told {
            let _ = timeout(patience, client.io.write_all(&told)).await;
        }
    }
    let _ = client.io.shutdown().await;
}

/// What is asked: the key, what for, and how long the first request is waited for.
async fn read<S: Stream>(client: &mut Client<S>) -> Option<(KeyId, Print, Duration)> {
    while client.buffer.data().len() < LENGTH {
        let filled = poll_fn(|cx| client.buffer.poll_fill(&mut client.io, cx, LENGTH)).await;
        if !matches!(filled, Ok(1..)) {
            return None;
        }
    }
    let (_, rest) = client.buffer.data().split_first()?;
    let (key, rest) = rest.split_first_chunk()?;
    let (print, rest) = rest.split_first_chunk()?;
    let (wait_ms, _) = rest.split_first_chunk()?;
    let wait = Duration::from_millis(u32::from_be_bytes(*wait_ms).into()).min(MAX_WAIT);
    let question = (KeyId(u128::from_be_bytes(*key)), Print(u64::from_be_bytes(*print)), wait);
    client.buffer.consume(LENGTH);
    Some(question)
}

/// The other node is gone.
struct Gone;

async fn told<S: Stream>(
    client: &mut Client<S>,
    carrier: &Carrier,
    tunnel: &Tunnel,
    (key, print, wait): (KeyId, Print, Duration),
) -> Result<Vec<u8>, Gone> {
    let (view, service) = (carrier.mesh.view(), &tunnel.to.service);
    let has_one = |node: &NodeId| view.service(service).is_some_and(|s| s.instances.iter().any(|i| i.owner() == node));
    if !has_one(&tunnel.from) {
        return Ok(vec![NOT_YOU]);
    }
    let entry = carrier.directory.entry(service, &carrier.settings);
    let force = entry.policy.force(service, &view, &carrier.ground, carrier.clock);
    // Its window and bounds; a route's own are at most a few, and only what is remembered of askers goes by them.
    let Some(settings) = force.scopes().find_map(|scope| scope.sections.idempotency.as_ref()) else {
        return Ok(vec![UNKNOWN]);
    };
    entry.keys.lock().asked();
    let until = Instant::now() + wait;
    let mut told_to_wait = false;
    loop {
        let mut ended = pin!(entry.keys.ended.notified());
        ended.as_mut().enable();
        let me = carrier.mesh.me();
        let told = entry.keys.lock().tell(carrier.clock.now(), settings, key, print, &tunnel.from, me);
        if told != Told::UnderWay || Instant::now() >= until {
            return Ok(written(&told));
        }
        if !told_to_wait {
            client.io.write_all(&[WAIT]).await.map_err(|_| Gone)?;
            client.io.flush().await.map_err(|_| Gone)?;
            told_to_wait = true;
        }
        client.alarm.set(until);
        poll_fn(|cx| {
            if ended.as_mut().poll(cx).is_ready() || client.alarm.poll(cx).is_ready() {
                return Poll::Ready(Ok(()));
            }
            client.poll_gone(cx).map(|()| Err(Gone))
        })
        .await?;
    }
}

fn written(told: &Told<Kept>) -> Vec<u8> {
    let (kept, left) = match told {
        Told::Unknown => return vec![UNKNOWN],
        Told::UnderWay => return vec![UNDER_WAY],
        Told::NotKept => return vec![NOT_KEPT],
        Told::Misused => return vec![MISUSED],
        Told::Answered(kept, left) => (kept, left),
    };
    let (Ok(head), Ok(body)) = (u32::try_from(kept.head.len()), u32::try_from(kept.body.len())) else {
        return vec![NOT_KEPT];
    };
    let mut bytes = Vec::with_capacity(32 + kept.head.len() + kept.body.len());
    bytes.push(ANSWERED);
    bytes.extend_from_slice(&(left.as_millis() as u64).to_be_bytes());
    bytes.extend_from_slice(&kept.status.as_u16().to_be_bytes());
    bytes.extend_from_slice(&head.to_be_bytes());
    bytes.extend_from_slice(&body.to_be_bytes());
    bytes.extend_from_slice(&kept.head);
    bytes.extend_from_slice(&kept.body);
    bytes
}
