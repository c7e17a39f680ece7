//! Watches which of the secrets in use have changed.

use super::failure::{Failure, Told};
use crate::protocol::{Code, WAIT_LIMIT};
use crate::{Ask, Client, Secret, Tag};
use std::future::pending;
use std::panic::resume_unwind;
use std::sync::Arc;
use std::time::Duration;
use tokio::sync::Semaphore;
use tokio::task::JoinSet;
use tokio::time::sleep;

/// How many waits are open at once: half of what a pod may have, since other containers of it may wait, too.
const AT_ONCE: usize = 8;

/// How long a wait is if secrets take turns: one check of the agent's.
const TURN: Duration = Duration::from_secs(10);

/// How long to rest before retrying what has failed.
pub(crate) const REST: Duration = Duration::from_secs(10);

/// How long to wait after the first change for others that belong to it: a user's name and its password are two.
pub(crate) const SETTLE: Duration = Duration::from_secs(2);

/// A secret in use.
#[derive(Clone, Debug, Eq, Ord, PartialEq, PartialOrd)]
pub(crate) struct Used {
    pub(crate) name: String,
    pub(crate) backend: Option<String>,
    pub(crate) stage: Option<String>,
    pub(crate) key: Option<String>,
}

/// The secrets in use, each with what is known of it.
#[derive(Debug, Default)]
pub(crate) struct Watch(Vec<Watched>);

#[derive(Clone, Debug)]
struct Watched {
    used: Used,
    version: String,
    tag: Tag,
}

impl Used {
    /// The latest version of a secret.
    pub(crate) fn latest(name: &str) -> Self {
        Self {
            name: name.to_owned(),
            backend: None,
            stage: None,
            key: None,
        }
    }

    pub(crate) fn ask(&self) -> Ask<'_> {
        Ask {
            backend: self.backend.as_deref(),
            stage: self.stage.as_deref(),
            key: self.key.as_deref(),
            ..Ask::latest(&self.name)
        }
    }
}

impl Watch {
    /// Adds a secret, in the version that is in use.
    pub(crate) fn add(&mut self, used: Used, secret: &Secret) {
        self.0.push(Watched {
            used,
            version: secret.version.clone(),
            tag: secret.tag.clone(),
        });
    }

    /// Returns the name of one of them once it has another version. What cannot be read now is retried later: whoever
    /// has the old value goes on with it.
    pub(crate) async fn changed(&self, client: &Client) -> String {
        let turns = Arc::new(Semaphore::new(AT_ONCE));
        let span = if self.0.len() > AT_ONCE {
            TURN
        } else {
            WAIT_LIMIT
        };
        let mut waits = JoinSet::new();
        for watched in &self.0 {
            let (client, watched, turns) = (client.clone(), watched.clone(), turns.clone());
            waits.spawn(async move { watched.changed(&client, &turns, span).await });
        }
        first_of(waits).await
    }
}

/// The name that the first wait to end returns. If a wait has panicked, so does the caller: no secret may drop out of
/// the watch silently.
async fn first_of(mut waits: JoinSet<String>) -> String {
    match waits.join_next().await {
        Some(Ok(name)) => name,
        Some(Err(died)) if died.is_panic() => resume_unwind(died.into_panic()),
        // There is nothing to wait for, or the runtime is ending.
        None | Some(Err(_)) => pending().await,
    }
}

impl Watched {
    async fn changed(mut self, client: &Client, turns: &Semaphore, span: Duration) -> String {
        let mut told = Told::default();
        loop {
            let turn = turns.acquire().await;
            let outcome = client.wait(&self.used.ask(), &self.tag, span).await;
            drop(turn);
            match outcome {
                Ok(None) => told.forget(),
                Ok(Some(secret)) if secret.version != self.version => return self.used.name,
                // The same version under another tag: no reason to act, or to ask again without a rest.
                Ok(Some(secret)) => {
                    self.tag = secret.tag;
                    sleep(REST).await;
                }
                Err(error) => {
                    let name = &self.used.name;
                    told.say(&Failure::other(format!("cannot watch {name}: {error}")));
                    // The pod's other processes have all of its waits, and may keep them: reads remain.
                    if error.code() == Some(Code::Busy)
                        && let Ok(secret) = client.read(&self.used.ask()).await
                        && secret.version != self.version
                    {
                        return self.used.name;
                    }
                    sleep(REST).await;
                }
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::client::tests::{Scripted, answer};
    use tokio::time::timeout;

    #[tokio::test]
    async fn a_change_is_found_although_others_have_all_of_the_pods_waits() {
        let body = |version: u8| {
            format!(r#"{{"name":"n","value":"v","version":"{version}","backend":"aws"}}"#)
        };
        let busy = r#"{"error":"16 waits","code":"busy","request_id":"1-1"}"#;
        let script = vec![
            answer(200, "", &body(1)),
            answer(429, "", busy),
            answer(200, "", &body(2)),
        ];
        let agent = Scripted::start(script).expect("a socket");
        let client = agent.client();
        let secret = client.get("n").await.expect("a secret");
        let mut watch = Watch::default();
        watch.add(Used::latest("n"), &secret);
        let name = timeout(REST / 2, watch.changed(&client)).await;
        assert_eq!(name.expect("a change"), "n");
    }

    #[tokio::test(start_paused = true)]
    #[should_panic(expected = "a bug")]
    async fn a_wait_that_panics_does_not_silence_the_others() {
        let mut waits = JoinSet::new();
        waits.spawn(async {
            sleep(WAIT_LIMIT).await;
            "another".to_owned()
        });
        waits.spawn(async { panic!("a bug") });
        let name = timeout(WAIT_LIMIT * 2, first_of(waits)).await;
        unreachable!("the watch goes on: {name:?}");
    }
}
