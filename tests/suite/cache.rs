//! Values kept for a while, where the operator wants it, and calls that equal reads share.

use crate::{answer_on, ask_on, code};
use std::time::{Duration, Instant};
use testkit::agent::{AgentProcess, AgentSettings};
use testkit::aws::{Behaviour, Fault, Operation, read_policy, secret_arn};
use testkit::sandbox::{REGION, Sandbox, SandboxPod};
use testkit::until;
use testkit::workload::{Request, Response, Signal};

const NAME: &str = "test/turning";

/// A pod, its agent, and how often the vault was asked.
struct Reader {
    sandbox: Sandbox,
    agent: AgentProcess,
    pod: SandboxPod,
    role: String,
}

impl Reader {
    async fn start(settings: &[(&str, &str)]) -> Self {
        let sandbox = Sandbox::start().await.expect("a sandbox");
        let role = sandbox.aws_namespace("test");
        sandbox.aws_secret(NAME, "first");
        let change = |all: AgentSettings| all.set_all(settings);
        let agent = sandbox.agent_with(change).await.expect("an agent");
        let pod = sandbox.pod("test", "web").await.expect("a pod");
        // The pod is known and has its session before a test counts calls.
        assert_eq!(
            pod.secret("test/database-password")
                .await
                .expect("an answer")
                .status,
            200
        );
        sandbox.aws.clear_calls();
        Self {
            sandbox,
            agent,
            pod,
            role,
        }
    }

    /// Takes from the role all that it may.
    fn may_read_nothing(&self) {
        let nothing = read_policy(&[secret_arn("*", self.sandbox.aws.account(), "nothing")]);
        self.sandbox
            .aws
            .set_policy(&self.role, &nothing)
            .expect("it is well formed");
    }

    async fn read(&self) -> Response {
        self.pod.secret(NAME).await.expect("an answer")
    }

    async fn batch(&self, cache_control: &str) -> Response {
        let request = Request::new("POST", "/v1/secrets:batchGet")
            .header("cache-control", cache_control)
            .body(format!(r#"{{"names":["{NAME}"]}}"#));
        self.pod.request(request).await.expect("an answer")
    }

    async fn latest(&self) -> Response {
        let request = Request::get(&format!("/v1/secrets/{NAME}"))
            .header("cache-control", "max-age=0, no-cache");
        self.pod.request(request).await.expect("an answer")
    }

    fn asked(&self) -> usize {
        self.sandbox.aws.count_of(Operation::GetSecretValue)
    }

    fn breaks(&self, behaviour: Behaviour) -> testkit::aws::FaultGuard {
        self.sandbox
            .aws
            .fault(Fault::on(Operation::GetSecretValue, behaviour))
    }
}

fn value(answer: &Response) -> String {
    answer.json()["value"]
        .as_str()
        .unwrap_or_default()
        .to_owned()
}

#[tokio::test]
async fn without_a_cache_each_read_asks_the_vault() {
    needs_workloads!();
    let reader = Reader::start(&[]).await;
    for turn in 0..3 {
        reader.sandbox.aws_secret(NAME, &turn.to_string());
        let answer = reader.read().await;
        assert_eq!(
            (value(&answer), answer.header("age")),
            (turn.to_string(), None)
        );
    }
    assert_eq!(reader.asked(), 3);
    let line = reader
        .agent
        .until_audit(|line| line["secret"] == NAME)
        .await
        .expect("its line");
    assert_eq!(line["cache"], "off");
}

#[tokio::test]
async fn a_kept_value_says_its_age_and_ends_with_its_time() {
    needs_workloads!();
    let reader = Reader::start(&[("cache.ttl", "4s")]).await;
    let begun = Instant::now();
    let first = reader.read().await;
    assert_eq!((first.status, first.header("age")), (200, None));
    reader.sandbox.aws_secret(NAME, "second");
    let kept = reader.read().await;
    assert_eq!(value(&kept), "first");
    let age: u64 = kept
        .header("age")
        .unwrap_or_default()
        .parse()
        .expect("an age");
    assert!(age <= begun.elapsed().as_secs(), "{age} s");
    assert_eq!(reader.asked(), 1);
    let is_renewed = async || value(&reader.read().await) == "second";
    until("the value's end with its time", is_renewed).await;
    assert!(begun.elapsed() >= Duration::from_secs(4));
    assert_eq!(reader.asked(), 2);
    for word in ["miss", "hit"] {
        reader
            .agent
            .until_audit(|line| line["secret"] == NAME && line["cache"] == word)
            .await
            .expect("its line");
    }
}

#[tokio::test]
async fn only_the_named_prefixes_are_kept_and_each_selector_by_itself() {
    needs_workloads!();
    let reader = Reader::start(&[("cache.ttl", "1h"), ("cache.only", "[\"test/t\"]")]).await;
    let old = reader.sandbox.aws_secret(NAME, r#"{"a":"1","b":"2"}"#);
    reader.sandbox.aws_secret(NAME, r#"{"a":"3","b":"4"}"#);
    let get = async |path: &str| reader.pod.get(path).await.expect("an answer");
    let turns = [
        ("", 1),
        ("?stage=AWSPREVIOUS", 2),
        (&*format!("?version={old}"), 3),
        ("?stage=AWSCURRENT", 4),
        // A member is taken from the kept whole.
        ("?key=a", 4),
        ("?key=b", 4),
        ("?stage=AWSPREVIOUS&key=a", 4),
    ];
    for (query, asked) in turns {
        for _ in 0..2 {
            assert_eq!(
                get(&format!("/v1/secrets/{NAME}{query}")).await.status,
                200,
                "{query}"
            );
        }
        assert_eq!(reader.asked(), asked, "{query}");
    }
    assert_eq!(value(&get(&format!("/v1/secrets/{NAME}?key=b")).await), "4");
    assert_eq!(
        value(&get(&format!("/v1/secrets/{NAME}?stage=AWSPREVIOUS&key=b")).await),
        "2"
    );
    for _ in 0..2 {
        assert_eq!(
            get("/v1/secrets/test/database-password")
                .await
                .header("age"),
            None
        );
    }
    assert_eq!(reader.asked(), 6);
}

#[tokio::test]
async fn no_cache_goes_to_the_vault_and_joins_no_read_that_began_before() {
    needs_workloads!();
    for settings in [&[][..], &[("cache.ttl", "1h")]] {
        let reader = Reader::start(settings).await;
        if !settings.is_empty() {
            assert_eq!(value(&reader.read().await), "first");
            reader.sandbox.aws.clear_calls();
            assert_eq!(reader.asked(), 0);
        }
        let (gate, held) = reader.sandbox.aws.hold(Operation::GetSecretValue);
        let early = async {
            // One that may not be served from the cache either, so that it flies.
            reader.latest().await
        };
        let late = async {
            gate.reached(1).await;
            reader.sandbox.aws_secret(NAME, "second");
            let late = reader.latest();
            let opened = async {
                gate.reached(2).await;
                gate.open();
            };
            tokio::join!(late, opened).0
        };
        let both = async { tokio::join!(early, late) };
        let (_, late) = tokio::time::timeout(Duration::from_secs(8), both)
            .await
            .expect("no read joined the other");
        drop(held);
        assert_eq!(value(&late), "second");
        assert_eq!(reader.asked(), 2);
        // What it found is what is kept from now on.
        assert_eq!(value(&reader.read().await), "second");
        // So it is for the names of a batch.
        reader.sandbox.aws_secret(NAME, "third");
        for (word, kept) in [("no-store", "second"), ("no-cache", "third"), ("", "third")] {
            let expected = if settings.is_empty() { "third" } else { kept };
            let answer = reader.batch(word).await.json();
            assert_eq!(answer["secrets"][0]["value"], expected, "{word:?}");
        }
    }
}

#[tokio::test]
async fn an_expired_value_stands_in_only_for_a_vault_that_cannot_be_reached() {
    needs_workloads!();
    let settings = [
        ("cache.ttl", "100ms"),
        ("cache.stale_if_error", "1h"),
        ("backends.aws.timeout", "1s"),
    ];
    let reader = Reader::start(&settings).await;
    let expired = async || {
        assert_eq!(reader.read().await.status, 200);
        tokio::time::sleep(Duration::from_millis(150)).await;
    };
    for behaviour in [
        Behaviour::InternalError,
        Behaviour::Hang,
        Behaviour::CutBody,
    ] {
        expired().await;
        let fault = reader.breaks(behaviour.clone());
        let answer = reader.read().await;
        assert_eq!(
            (answer.status, value(&answer)),
            (200, "first".into()),
            "{behaviour:?}: {}",
            answer.text()
        );
        assert!(answer.header("age").is_some(), "{behaviour:?}");
        drop(fault);
    }
    reader
        .agent
        .until_audit(|line| line["cache"] == "stale")
        .await
        .expect("its line");
    let text = "an old value is served";
    reader.agent.until_line(text).await.expect("it says so");
    let lines = reader.agent.stderr();
    let said: Vec<_> = lines.iter().filter(|line| line.contains(text)).collect();
    assert_eq!(said.len(), 1, "once a minute: {said:?}");
    for part in [
        "WARN",
        "\"code\":\"unavailable\"",
        "\"error\":",
        "\"cause\":",
    ] {
        assert!(said[0].contains(part), "{part}: {said:?}");
    }
    expired().await;
    let throttled = reader.breaks(Behaviour::Throttle(None));
    assert_eq!(code(&reader.read().await), "throttled");
    drop(throttled);
    // After a word of the vault's the old value never comes back.
    expired().await;
    reader.sandbox.aws.delete_secret(REGION, NAME);
    assert_eq!(code(&reader.read().await), "not_found");
    let fault = reader.breaks(Behaviour::InternalError);
    assert_eq!(code(&reader.read().await), "unavailable");
    drop(fault);
    reader.sandbox.aws_secret(NAME, "again");
    expired().await;
    reader.may_read_nothing();
    assert_eq!(code(&reader.read().await), "denied");
    let _fault = reader.breaks(Behaviour::InternalError);
    assert_eq!(code(&reader.read().await), "unavailable");
}

#[tokio::test]
async fn a_refusal_of_a_list_takes_the_values_of_the_role_with_it() {
    needs_workloads!();
    let reader = Reader::start(&[("cache.ttl", "1h")]).await;
    reader.read().await.must_be_ok();
    reader.may_read_nothing();
    reader.read().await.must_be_ok();
    let listed = reader.pod.get("/v1/secrets").await.expect("an answer");
    listed.must_be_refused(403, "denied");
    reader.read().await.must_be_refused(403, "denied");
}

#[tokio::test]
async fn a_read_that_its_deadline_cuts_has_missed_all_the_same() {
    needs_workloads!();
    let settings = [
        ("cache.ttl", "1h"),
        ("backends.aws.timeout", "1s"),
        ("limits.attest_wait", "1s"),
        ("limits.request_deadline", "1s"),
    ];
    let reader = Reader::start(&settings).await;
    let _fault = reader.breaks(Behaviour::Hang);
    reader.read().await.must_be_refused(504, "timeout");
    let line = reader.agent.until_audit(|line| line["code"] == "timeout");
    assert_eq!(line.await.expect("its line")["cache"], "miss");
}

#[tokio::test]
async fn what_is_kept_has_a_bound() {
    needs_workloads!();
    let reader = Reader::start(&[("cache.ttl", "1h"), ("cache.max_bytes", "64KiB")]).await;
    let big = "b".repeat(20 * 1024);
    for number in 0..6 {
        reader
            .sandbox
            .aws_secret(&format!("test/big/{number}"), &big);
    }
    for _ in 0..2 {
        for number in 0..6 {
            let answer = reader
                .pod
                .secret(&format!("test/big/{number}"))
                .await
                .expect("an answer");
            answer.must_be_ok();
        }
    }
    // Six values of 20 KiB never lie in 64 KiB together.
    assert!(reader.asked() > 6, "{}", reader.asked());
}

#[tokio::test]
async fn equal_reads_at_once_share_one_call_and_say_so() {
    needs_workloads!();
    for settings in [&[][..], &[("cache.ttl", "1h")]] {
        let reader = Reader::start(settings).await;
        let (gate, held) = reader.sandbox.aws.hold(Operation::GetSecretValue);
        // Reads are equal only if they begin within a second: the connections are there and attested before.
        let names = [0, 1, 2, 3, 4, 5, 6, 7].map(|number| format!("c{number}"));
        let workload = &reader.pod.workload;
        for name in &names {
            workload.connect(name).await.expect("a connection");
            let identity = "GET /v1/identity HTTP/1.1\r\nHost: x\r\n\r\n";
            ask_on(workload, name, identity).await;
            assert_eq!(answer_on(workload, name).await.statuses(), [200]);
        }
        // All are there before the agent goes on.
        reader.agent.signal(Signal::SIGSTOP).expect("it runs");
        let read = format!("GET /v1/secrets/{NAME} HTTP/1.1\r\nHost: x\r\n\r\n");
        for name in &names {
            ask_on(workload, name, &read).await;
        }
        reader.agent.signal(Signal::SIGCONT).expect("it is stopped");
        gate.reached(1).await;
        tokio::time::sleep(Duration::from_millis(800)).await;
        gate.open();
        drop(held);
        for name in &names {
            let answer = answer_on(workload, name).await.bytes;
            let text = String::from_utf8_lossy(&answer);
            assert!(text.contains(r#""value":"first""#), "{text}");
        }
        assert_eq!(reader.asked(), 1);
        let of_name = || {
            let lines = reader.agent.audit().into_iter();
            lines
                .filter(|line| line["secret"] == NAME)
                .collect::<Vec<_>>()
        };
        let all = reader.agent.until_audit(|_| of_name().len() == 8).await;
        all.expect("a line for each");
        let lines = of_name();
        let leader = lines
            .iter()
            .find(|line| line["shared_with"].is_null())
            .expect("one made the call");
        let sharing = lines
            .iter()
            .filter(|line| line["shared_with"] == leader["request_id"])
            .count();
        assert_eq!((lines.len(), sharing), (8, 7));
    }
}

#[tokio::test]
async fn who_leaves_takes_nobody_elses_call_along_and_the_last_one_ends_it() {
    needs_workloads!();
    let reader = Reader::start(&[]).await;
    let second = reader.pod.workload.exec_into().await.expect("a process");
    second.connect("kept").await.expect("a connection");
    let attested = second.send_on("kept", Request::get("/v1/identity")).await;
    attested.expect("an answer").must_be_ok();
    let (gate, _held) = reader.sandbox.aws.hold(Operation::GetSecretValue);
    let path = format!("/v1/secrets/{NAME}");
    let mut first = reader.pod.workload.exec_into().await.expect("a process");
    {
        let leaving = first.get(&path);
        tokio::pin!(leaving);
        tokio::select! {
            () = gate.reached(1) => {}
            answer = &mut leaving => panic!("answered too early: {answer:?}"),
        }
    }
    let staying = second.send_on("kept", Request::get(&path));
    tokio::pin!(staying);
    let before = reader.agent.audit().len();
    tokio::select! {
        killed = first.kill() => killed.expect("it is killed"),
        answer = &mut staying => panic!("answered too early: {answer:?}"),
    }
    let cancelled = reader
        .agent
        .until_audit(|line| line["outcome"] == "cancelled");
    tokio::select! {
        line = cancelled => { line.expect("its line"); }
        answer = &mut staying => panic!("answered too early: {answer:?}"),
    }
    assert!(reader.agent.audit().len() > before);
    gate.open();
    let answer = staying.await.expect("an answer");
    assert_eq!(value(&answer), "first");
    assert_eq!(reader.asked(), 1);
}

/// As AWS's own agent has it.
#[tokio::test]
async fn refresh_now_asks_the_vault_whatever_the_cache_holds() {
    needs_workloads!();
    let reader = Reader::start(&[("cache.ttl", "300s")]).await;
    let read = async |refresh: bool| {
        let path = format!("/secretsmanager/get?secretId={NAME}&refreshNow={refresh}");
        let answer = reader.pod.get(&path).await.expect("an answer").json();
        answer["SecretString"].as_str().map(str::to_owned)
    };
    assert_eq!(read(false).await.as_deref(), Some("first"));
    reader.sandbox.aws_secret(NAME, "second");
    assert_eq!(read(false).await.as_deref(), Some("first"));
    assert_eq!(reader.asked(), 1);
    assert_eq!(read(true).await.as_deref(), Some("second"));
    assert_eq!(read(false).await.as_deref(), Some("second"));
    assert_eq!(reader.asked(), 2);
}
