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

            const BACKEND: Backend = Backend { name: stringify!($backend) };

            // What is lacking, and no row, is a mistake.
            #[deny(unused_macro_rules)]
            macro_rules! row {
                $(($group:ident $lacking) => {};)*
                ($group:ident $row:ident) => {
                    #[tokio::test]
                    async fn $row() {
                        super::$group::$row(&BACKEND).await;
                    }
                };
            }

            conformance! { @rows
                values: found, missing, binary, empty, of_64_kib, non_utf_8, unicode, rotated, version, stage, listed, by_the_readmes_lines;
                whose: denied_by_role, denied_by_secret, told_to_the_cloud, told_by_the_cloud, revoked_role, escaping_names, escaping_prefixes, no_mix_up;
                when_it_fails: throttled, slow, unreachable, silent_issuer, garbage, misdirected, truncated, cut, endless, forgotten, broken, nothing_echoed, expired_session, exchanged_alone, leaves_nothing_behind;
            }
        }
    )* };
    (@rows $($group:ident: $($row:ident),*;)*) => { $($(
        row! { $group $row }
    )*)* };
}

conformance! {
    aws without [];
    azure without [of_64_kib];
    file without [broken, cut, endless, exchanged_alone, expired_session, forgotten, garbage, leaves_nothing_behind, misdirected, nothing_echoed, revoked_role, silent_issuer, slow, throttled, told_by_the_cloud, told_to_the_cloud, truncated, version];
    gcp without [told_by_the_cloud];
    pass without [broken, endless, exchanged_alone, expired_session, forgotten, leaves_nothing_behind, misdirected, nothing_echoed, revoked_role, silent_issuer, throttled, told_by_the_cloud, told_to_the_cloud, version];
}

/// A backend as the list names it.
struct Backend {
    name: &'static str,
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
    /// Starts a node, unless this machine cannot.
    async fn node(&self) -> Option<Node> {
        self.node_with(|settings| settings).await
    }

    async fn node_with(&self, change: impl FnOnce(AgentSettings) -> AgentSettings) -> Option<Node> {
        if !can_run() {
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
