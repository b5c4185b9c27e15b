//! Asking all members the same question at the same time, with a deadline, and saying who did not answer.

use std::sync::Arc;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use axum::http::StatusCode;
use starling_core::id::NodeId;
use starling_core::view::View;
use starling_core::wire::{Question, Reply};
use tokio::task::JoinSet;
use tokio::time::{Instant, timeout};

use crate::context::Context;
use crate::failure::Failure;
use crate::model::Unanswered;

/// How many members are asked; a cell has at most 500. The others are reported as not asked.
const MAX_ASKED: usize = 512;

/// What came of asking one member.
pub(crate) struct Asked {
    pub(crate) node: NodeId,
    /// Its answer, or why there is none.
    pub(crate) answer: Result<Reply, String>,
    /// How long the answer took.
    pub(crate) took: Duration,
    /// This node's wall clock half-way between question and answer.
    pub(crate) half_way_unix_ms: u64,
}

impl Context {
    /// Asks every alive member of this view, this node included. By name.
    pub(crate) async fn ask_all(&self, view: &View, question: &Question) -> Result<Vec<Asked>, Failure> {
        let _place = self.gatherings.try_acquire().map_err(|_| {
            Failure::new(StatusCode::TOO_MANY_REQUESTS, "several requests are asking all nodes already")
        })?;
        let limit = self.settings.ask_timeout();
        let mut running = JoinSet::new();
        let mut asked = Vec::new();
        for (place, member) in view.alive().enumerate() {
            let node = member.node.clone();
            if place >= MAX_ASKED {
                let answer = Err(format!("not asked: the mesh has more than {MAX_ASKED} members"));
                asked.push(Asked { node, answer, took: Duration::ZERO, half_way_unix_ms: 0 });
                continue;
            }
            let (mesh, question) = (Arc::clone(&self.mesh), question.clone());
            running.spawn(async move {
                let begun = Instant::now();
                // The port is given the same limit; this one holds even if it does not keep it.
                let answer = match timeout(limit + SLACK, mesh.ask(&node, question, limit)).await {
                    Ok(answer) => answer.map_err(|error| error.to_string()),
                    Err(_) => Err(format!("node {node} did not answer within {} ms", limit.as_millis())),
                };
                let took = begun.elapsed();
                let half_way_unix_ms = now_unix_ms().saturating_sub(took.as_millis() as u64 / 2);
                Asked { node, answer, took, half_way_unix_ms }
            });
        }
        while let Some(done) = running.join_next().await {
            match done {
                Ok(one) => asked.push(one),
                Err(error) => tracing::error!(%error, "asking a node failed inside this node"),
            }
        }
        asked.sort_by(|a, b| a.node.cmp(&b.node));
        Ok(asked)
    }
}

/// How much longer than asked for the port may take before it is not waited for any more.
const SLACK: Duration = Duration::from_millis(200);

/// Parts the spans of all answers from the members that gave none.
pub(crate) fn spans(asked: Vec<Asked>) -> (Vec<starling_core::observe::Span>, Vec<Unanswered>) {
    let mut spans = Vec::new();
    let mut unanswered = Vec::new();
    for one in asked {
        match one.answer {
            Ok(Reply::Spans(theirs)) => spans.extend(theirs),
            Ok(_) => unanswered.push(Unanswered { node: one.node, error: "it answered another question".into() }),
            Err(error) => unanswered.push(Unanswered { node: one.node, error }),
        }
    }
    (spans, unanswered)
}

/// The wall clock, only to compare with those of other nodes.
pub(crate) fn now_unix_ms() -> u64 {
    SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |since| since.as_millis() as u64)
}
