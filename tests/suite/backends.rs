//! One list for every backend: what the contract promises whichever it is. Each row runs for each backend, by itself.

mod several;
mod values;
mod when_it_fails;
mod whose;

use crate::{can_run, code};
use std::any::Any;
use testkit::agent::{AgentProcess, AgentSettings};
use testkit::clouds::{self, Cloud, Forgotten, Trouble};
use testkit::sandbox::{Sandbox, SandboxPod};
use testkit::workload::{Request, Response};

/// Each backend with what it does not have: rows about that are none of its.
macro_rules! conformance {
    ($($backend:ident without [$($lacking:ident),*];)*) => { $(
        mod $backend {
            use super::Backend;

            const BACKEND: Backend = Backend {
                name: stringify!($backend),
                lacks: &[$(stringify!($lacking)),*],
            };

            conformance! { @rows
                values: found, missing, binary, empty, of_64_kib, non_utf_8, unicode, rotated, version, stage, listed, by_the_readmes_lines;
                whose: denied_by_role, denied_by_secret, revoked_role, escaping_names, no_mix_up;
                when_it_fails: throttled, slow, unreachable, silent_issuer, garbage, truncated, cut, endless, forgotten, broken, expired_session, exchanged_alone, leaves_nothing_behind;
            }
        }
    )* };
    (@rows $($group:ident: $($row:ident),*;)*) => { $($(
        #[tokio::test]
        async fn $row() {
            super::$group::$row(&BACKEND).await;
        }
    )*)* };
}

conformance! {
    aws without [];
    azure without [of_64_kib];
    file without [broken, cut, endless, exchanged_alone, expired_session, forgotten, garbage, leaves_nothing_behind, revoked_role, silent_issuer, slow, throttled, truncated, version];
    gcp without [];
    pass without [broken, endless, exchanged_alone, expired_session, forgotten, leaves_nothing_behind, revoked_role, silent_issuer, throttled, version];
}

/// A backend as the list names it.
struct Backend {
    name: &'static str,
    /// What it does not have, by the rows' names.
    lacks: &'static [&'static str],
}

/// A node whose agent serves from that backend, with the namespaces `test` and `prod`, and a pod of `test`.
struct Node {
    sandbox: Sandbox,
    cloud: Box<dyn Cloud>,
    agent: AgentProcess,
    pod: SandboxPod,
}

/// What every namespace has.
const OWN: &str = "test/database-password";
const FOREIGN: &str = "prod/database-password";

impl Backend {
    /// Starts a node, unless this machine cannot or the row is none of this backend's.
    async fn node(&self, row: &str) -> Option<Node> {
        self.node_with(row, |settings| settings).await
    }

    async fn node_with(
        &self,
        row: &str,
        change: impl FnOnce(AgentSettings) -> AgentSettings,
    ) -> Option<Node> {
        if !can_run() || self.lacks.contains(&row) {
            return None;
        }
        let sandbox = Sandbox::start().await.expect("a sandbox");
        let cloud = clouds::start(self.name, &sandbox).await.expect("a backend");
        for namespace in ["test", "prod"] {
            cloud.namespace(&sandbox, namespace);
        }
        let agent = sandbox
            .agent_with(|settings| change(cloud.settings(settings)))
            .await
            .expect("an agent");
        let pod = sandbox.pod("test", "web").await.expect("a pod");
        Some(Node {
            sandbox,
            cloud,
            agent,
            pod,
        })
    }
}

impl Node {
    async fn ask(&self, name: &str) -> Response {
        self.pod.secret(name).await.expect("an answer")
    }

    async fn refused(&self, name: &str, status: u16, word: &str) -> Response {
        let answer = self.ask(name).await;
        let text = answer.text().to_owned();
        assert_eq!(
            (answer.status, &*code(&answer)),
            (status, word),
            "{name}: {text}"
        );
        answer
    }

    /// Asks for bytes, whatever they are.
    async fn bytes(&self, name: &str) -> Vec<u8> {
        let request = Request::get(&format!("/v1/secrets/{name}"))
            .header("accept", "application/octet-stream");
        let answer = self.pod.request(request).await.expect("an answer");
        assert_eq!(answer.status, 200, "{name}: {}", answer.text());
        answer.body
    }

    fn trouble(&self, trouble: Trouble) -> Box<dyn Any + Send> {
        self.cloud
            .trouble(trouble)
            .expect("the row is left out where nothing goes wrong so")
    }
}
