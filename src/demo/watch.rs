//! Watching what a node knows: by blocking queries, so that a moment is the moment and not the next poll.

use std::future::Future;
use std::sync::Arc;
use std::time::Duration;

use starling_api::model::{ConfigDocument, InstanceList, MemberList};
use starling_core::view::Revision;
use tokio::sync::watch::{self, Receiver};
use tokio::task::JoinHandle;
use tokio::time::{Instant, sleep, timeout};

use super::api::Api;

/// The longest anything is waited for.
pub(crate) const PATIENCE: Duration = Duration::from_secs(20);
/// Between two questions where there is nothing to block on.
const POLL: Duration = Duration::from_millis(5);

/// Something a node tells with a revision.
pub(crate) trait Watched: Send + Sync + 'static + Sized {
    /// The state newer than a revision, or after a wait what there is.
    fn fetch(api: &Api, name: &str, newer: Option<Revision>) -> impl Future<Output = Result<Self, String>> + Send;
    /// The revision to be newer than.
    fn revision(&self) -> Revision;
}

impl Watched for InstanceList {
    async fn fetch(api: &Api, service: &str, newer: Option<Revision>) -> Result<Self, String> {
        api.instances(service, newer).await
    }
    fn revision(&self) -> Revision {
        self.revision
    }
}

impl Watched for MemberList {
    async fn fetch(api: &Api, _: &str, newer: Option<Revision>) -> Result<Self, String> {
        api.members(newer).await
    }
    fn revision(&self) -> Revision {
        self.revision
    }
}

impl Watched for ConfigDocument {
    async fn fetch(api: &Api, name: &str, newer: Option<Revision>) -> Result<Self, String> {
        loop {
            match api.document(name, newer).await? {
                Some(document) => return Ok(document),
                None => sleep(POLL).await,
            }
        }
    }
    fn revision(&self) -> Revision {
        self.revision
    }
}

/// Watches one thing at one node, from the moment it is made until it is dropped.
pub(crate) struct Observer<T> {
    what: String,
    seen: Receiver<Option<Seen<T>>>,
    asking: JoinHandle<()>,
}

type Seen<T> = Result<(Instant, T), String>;

impl<T: Watched> Observer<T> {
    /// Begins to watch, and returns when the first answer is there: from then on it waits at the node.
    pub(crate) async fn new(api: Arc<Api>, name: &str) -> Result<Self, String> {
        let what = format!("{name} as {} sees it", api.address());
        let (tell, mut seen) = watch::channel(None);
        let name = name.to_owned();
        let asking = tokio::spawn(async move {
            let mut newer = None;
            loop {
                let answer = T::fetch(&api, &name, newer).await;
                let answer = answer.map(|state| {
                    newer = Some(state.revision());
                    (Instant::now(), state)
                });
                let failed = answer.is_err();
                if tell.send(Some(answer)).is_err() || failed {
                    return;
                }
            }
        });
        let _ = timeout(PATIENCE, seen.wait_for(Option::is_some)).await;
        Ok(Self { what, seen, asking })
    }

    /// Waits until it is as wanted; says when the answer that shows it came in.
    pub(crate) async fn until(&mut self, wanted: impl Fn(&T) -> bool) -> Result<Instant, String> {
        let enough = |seen: &Option<Seen<T>>| match seen {
            Some(Ok((_, state))) => wanted(state),
            Some(Err(_)) => true,
            None => false,
        };
        let waiting = timeout(PATIENCE, self.seen.wait_for(enough));
        match waiting.await {
            Err(_) => Err(format!("waited {} s in vain for {}", PATIENCE.as_secs(), self.what)),
            Ok(Err(_)) => Err(format!("nobody watches {} any more", self.what)),
            Ok(Ok(seen)) => match &*seen {
                Some(Ok((when, _))) => Ok(*when),
                Some(Err(error)) => Err(format!("{}: {error}", self.what)),
                None => Err(format!("nothing was seen of {}", self.what)),
            },
        }
    }

    /// What was seen last.
    pub(crate) fn latest<R>(&self, look: impl FnOnce(&T) -> R) -> Option<R> {
        match &*self.seen.borrow() {
            Some(Ok((_, state))) => Some(look(state)),
            _ => None,
        }
    }
}

impl<T> Drop for Observer<T> {
    fn drop(&mut self) {
        self.asking.abort();
    }
}

/// One observer per node.
pub(crate) async fn everywhere<T: Watched>(apis: &[Arc<Api>], name: &str) -> Result<Vec<Observer<T>>, String> {
    let mut observers = Vec::new();
    for api in apis {
        observers.push(Observer::new(api.clone(), name).await?);
    }
    Ok(observers)
}

/// Waits until all these nodes see it as wanted; says when the last one did.
pub(crate) async fn all<T: Watched>(
    observers: impl IntoIterator<Item = &mut Observer<T>>,
    wanted: impl Fn(&T) -> bool,
) -> Result<Instant, String> {
    // One after the other is enough: each observer keeps the moment of its own answer.
    let mut last = None;
    for observer in observers {
        last = last.max(Some(observer.until(&wanted).await?));
    }
    last.ok_or_else(|| "there is nobody to watch".into())
}

/// Waits until every node says that all hold the same, and says when the last one did.
pub(crate) async fn agreement(apis: &[Arc<Api>]) -> Result<Instant, String> {
    let asking = async {
        'again: loop {
            for api in apis {
                let status = api.status().await?;
                if !status.agree || status.nodes.len() < apis.len() {
                    sleep(POLL).await;
                    continue 'again;
                }
            }
            return Ok(Instant::now());
        }
    };
    let late = || Err(format!("the nodes do not agree after {} s", PATIENCE.as_secs()));
    timeout(PATIENCE, asking).await.unwrap_or_else(|_| late())
}
