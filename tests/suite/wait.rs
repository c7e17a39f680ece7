//! Waiting for a change: an answer that comes when the secret is another, and what a wait may cost.

use crate::code;
use futures::future::join_all;
use std::time::{Duration, Instant};
use testkit::agent::AgentProcess;
use testkit::aws::Operation;
use testkit::sandbox::{REGION, Sandbox, SandboxPod};
use testkit::until;
use testkit::workload::{Raw, Request, Response, Signal, Workload};

const SECRET: &str = "/v1/secrets/test/database-password";

/// How many waits a pod may have.
const WAITS: usize = 16;

struct Waiting {
    sandbox: Sandbox,
    agent: AgentProcess,
    pod: SandboxPod,
    tag: String,
}

impl Waiting {
    async fn start(settings: &[(&str, &str)]) -> Self {
        let sandbox = Sandbox::start().await.expect("a sandbox");
        sandbox.aws_namespace("test");
        let agent = sandbox
            .agent_with(|all| all.set_all(settings))
            .await
            .expect("an agent");
        let pod = sandbox.pod("test", "web").await.expect("a pod");
        let answer = pod.get(SECRET).await.expect("an answer");
        let tag = answer.header("etag").expect("a tag").to_owned();
        Self {
            sandbox,
            agent,
            pod,
            tag,
        }
    }

    fn ask(&self, wait: &str) -> Request {
        Request::get(&format!("{SECRET}?wait={wait}")).header("if-none-match", &self.tag)
    }

    /// How often the vault has been asked for the secret.
    fn reads(&self) -> usize {
        self.sandbox.aws.count_of(Operation::GetSecretValue)
    }

    async fn until_reads(&self, count: usize) {
        until("so many reads", async || self.reads() >= count).await;
    }

    /// So many waits that a process has begun; they go on until it ends.
    async fn begin(&self, workload: &Workload, count: usize) -> Vec<String> {
        let before = self.reads();
        let names: Vec<_> = (0..count).map(|number| format!("w{number}")).collect();
        for name in &names {
            workload.connect(name).await.expect("a connection");
            let text = format!(
                "GET {SECRET}?wait=60s HTTP/1.1\r\nhost: localhost\r\nif-none-match: {}\r\n\r\n",
                self.tag
            );
            let raw = Raw {
                connection: Some(name.clone()),
                read_millis: 0,
                ..Raw::new(text)
            };
            workload.raw(raw).await.expect("it is sent");
        }
        self.until_reads(before + count).await;
        names
    }

    /// One more wait is one too many.
    async fn is_full(&self) {
        let answer = self.ask_once().await;
        assert_eq!(
            (answer.status, &*code(&answer), answer.header("retry-after")),
            (429, "busy", Some("1"))
        );
    }

    /// Asks until there is room for one more wait.
    async fn until_room(&self) {
        until("room again", async || self.ask_once().await.status != 429).await;
    }

    async fn ask_once(&self) -> Response {
        let request = self.ask("10ms");
        self.pod.request(request).await.expect("an answer")
    }
}

#[tokio::test]
async fn a_wait_ends_when_the_secret_is_another_one_and_each_read_has_its_line() {
    needs_workloads!();
    let of = Waiting::start(&[("cache.ttl", "1h")]).await;
    let began = Instant::now();
    let before = of.reads();
    let waiting = of.pod.request(of.ask("30s"));
    of.sandbox.aws_secret("test/gone", "soon");
    let tag = of.pod.secret("test/gone").await.expect("an answer");
    let tag = tag.header("etag").expect("a tag").to_owned();
    let gone = Request::get("/v1/secrets/test/gone?wait=30s").header("if-none-match", &tag);
    let vanishing = of.pod.request(gone);
    let change = async {
        // Both have been asked for once: what happens now is seen by their second read.
        of.until_reads(before + 3).await;
        let version = of.sandbox.aws_secret("test/database-password", "rotated");
        of.sandbox.aws.delete_secret(REGION, "test/gone");
        version
    };
    let (answer, gone, version) = tokio::join!(waiting, vanishing, change);
    let (answer, gone) = (answer.expect("an answer"), gone.expect("an answer"));
    let took = began.elapsed();
    answer.must_be_ok();
    assert_eq!(answer.json()["value"], "rotated");
    assert_eq!(answer.json()["version"], version);
    assert!(answer.header("age").is_none(), "it is not from the cache");
    assert!(took >= Duration::from_secs(10), "{took:?}");
    gone.must_be_refused(404, "not_found");
    let id = answer.header("x-request-id").expect("an id");
    of.agent
        .until_audit(|line| line["request_id"] == id && line["version"] == version)
        .await
        .expect("a line for the read that saw it");
    let lines = of.agent.audit();
    let lines: Vec<_> = lines
        .iter()
        .filter(|line| line["request_id"] == id)
        .collect();
    assert_eq!(lines.len(), 2, "{lines:#?}");
    assert!(
        lines
            .iter()
            .all(|line| line["cloud_request_id"].is_string())
    );
}

#[tokio::test]
async fn a_wait_that_sees_no_change_ends_with_304_and_the_tag() {
    needs_workloads!();
    let of = Waiting::start(&[
        ("limits.request_deadline", "2s"),
        ("limits.attest_wait", "1s"),
        ("backends.aws.timeout", "2s"),
    ])
    .await;
    let (before, began) = (of.reads(), Instant::now());
    let answer = of.pod.request(of.ask("3s")).await.expect("an answer");
    assert_eq!((answer.status, answer.body.len()), (304, 0));
    assert_eq!(answer.header("etag"), Some(&*of.tag));
    // Past the deadline of a request, and no longer than was said.
    assert!(began.elapsed() >= Duration::from_secs(3));
    assert_eq!(of.reads(), before + 1);
    // What has changed before is told at once.
    of.sandbox.aws_secret("test/database-password", "rotated");
    let began = Instant::now();
    let answer = of.pod.request(of.ask("60s")).await.expect("an answer");
    assert_eq!(
        (answer.status, &answer.json()["value"]),
        (200, &"rotated".into())
    );
    assert!(began.elapsed() < Duration::from_secs(10));
}

#[tokio::test]
async fn a_wait_that_could_not_end_is_refused() {
    needs_workloads!();
    let of = Waiting::start(&[]).await;
    let before = of.reads();
    let with = |path: &str, tag: &str| {
        Request::get(&format!("{SECRET}?{path}")).header("if-none-match", tag)
    };
    let version = "version=0123456789abcdef0123456789abcdef";
    for request in [
        Request::get(&format!("{SECRET}?wait=30s")),
        with("wait=30s", "*"),
        with("wait=61s", &of.tag),
        with("wait=0s", &of.tag),
        with("wait=30", &of.tag),
        with("wait=-5s", &of.tag),
        with("wait=soon", &of.tag),
        with(&format!("wait=30s&{version}"), &of.tag),
        Request::get("/v1/secrets?wait=30s").header("if-none-match", &of.tag),
    ] {
        let path = request.path.clone();
        let answer = of.pod.request(request).await.expect("an answer");
        assert_eq!(
            (answer.status, &*code(&answer)),
            (400, "invalid_request"),
            "{path}: {}",
            answer.text()
        );
    }
    assert_eq!(of.reads(), before);
}

#[tokio::test]
async fn a_pod_has_sixteen_waits_and_one_more_is_told_so() {
    needs_workloads!();
    let of = Waiting::start(&[]).await;
    let mut other = of.pod.workload.exec_into().await.expect("a second process");
    let names = of.begin(&other, WAITS).await;
    of.is_full().await;
    // They are no requests in flight, and another pod has waits of its own.
    let read = of.pod.get(SECRET).await.expect("an answer");
    read.must_be_ok();
    let neighbour = of.sandbox.pod("test", "neighbour").await.expect("a pod");
    let answer = neighbour.request(of.ask("10ms")).await.expect("an answer");
    assert_eq!(answer.status, 304, "{}", answer.text());
    // It closes one connection and lives on.
    other.close(&names[0]).await.expect("it is closed");
    of.until_room().await;
    let _one = of.begin(&of.pod.workload, 1).await;
    of.is_full().await;
    // It dies, and all of its waits with it, at once.
    other.kill().await.expect("it is killed");
    let began = Instant::now();
    of.until_room().await;
    assert!(began.elapsed() < Duration::from_secs(8));
}

#[tokio::test]
async fn a_wait_does_not_take_the_place_of_a_request_in_flight() {
    needs_workloads!();
    let of = Waiting::start(&[("limits.in_flight_per_pod", "1")]).await;
    let _one = of.begin(&of.pod.workload, 1).await;
    let lines = of.agent.until_audit(|line| {
        line["secret"] == "test/database-password" && line["seq"].as_u64() >= Some(1)
    });
    lines.await.expect("the line of its first read");
    for _ in 0..3 {
        let read = of.pod.get(SECRET).await.expect("an answer");
        read.must_be_ok();
    }
}

#[tokio::test]
async fn an_agent_that_leaves_ends_waits_with_304() {
    needs_workloads!();
    let mut of = Waiting::start(&[]).await;
    let before = of.reads();
    let waiting = join_all((0..3).map(|_| of.pod.request(of.ask("60s"))));
    let leaving = async {
        of.until_reads(before + 3).await;
        of.agent.signal(Signal::SIGTERM).expect("a signal");
    };
    let began = Instant::now();
    let (answers, ()) = tokio::join!(waiting, leaving);
    for answer in answers {
        let answer = answer.expect("an answer");
        assert_eq!(answer.status, 304, "{}", answer.text());
        assert_eq!(answer.header("connection"), Some("close"));
    }
    assert!(began.elapsed() < Duration::from_secs(9));
    let status = of.agent.until_ended().await.expect("it ends");
    assert!(status.success());
}

#[tokio::test]
async fn an_agent_that_is_replaced_ends_waits_with_304_so_that_they_go_on_at_the_new_one() {
    needs_workloads!();
    let of = Waiting::start(&[]).await;
    let before = of.reads();
    let replaced = async {
        of.until_reads(before + 1).await;
        of.sandbox.agent().await.expect("a new agent")
    };
    let began = Instant::now();
    let (answer, _new) = tokio::join!(of.pod.request(of.ask("60s")), replaced);
    assert!(began.elapsed() < Duration::from_secs(9));
    let answer = answer.expect("an answer");
    assert_eq!(answer.status, 304, "{}", answer.text());
    assert_eq!(answer.header("connection"), Some("close"));
    let answer = of.pod.request(of.ask("10ms")).await.expect("an answer");
    assert_eq!((answer.status, answer.header("connection")), (304, None));
}

#[tokio::test]
async fn each_wait_counts_against_the_pods_rate() {
    needs_workloads!();
    let waiting = Waiting::start(&[("limits.requests_per_second_per_pod", "1")]).await;
    let asks = (0..8).map(|_| waiting.pod.request(waiting.ask("10ms")));
    let answers = join_all(asks).await;
    let codes: Vec<_> = answers
        .into_iter()
        .map(|answer| code(&answer.expect("an answer")))
        .collect();
    let refused = codes.iter().filter(|code| **code == "busy").count();
    // How many depends on how long they take.
    assert!(refused > 0, "{codes:?}");
}
