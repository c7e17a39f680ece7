//! What one pod may have of the node's agent: over its limit it is told so, and nobody else notices.

mod passed;
mod turns;
mod unread;
mod watched;

use crate::code;
use futures::future::join_all;
use std::process::Command;
use std::time::{Duration, Instant};
use testkit::agent::{AgentProcess, AgentSettings};
use testkit::aws::{Behaviour, Fault, Gate, Operation};
use testkit::sandbox::{Sandbox, SandboxPod, container_id, password};
use testkit::until;
use testkit::workload::{Flood, Hierarchies, Place, Raw, Request, Signal, Workload, WorkloadSpec};
use tokio::net::TcpStream;
use tokio::time::sleep;

/// Two pods of one namespace.
struct Neighbours {
    sandbox: Sandbox,
    agent: AgentProcess,
    noisy: SandboxPod,
    polite: SandboxPod,
}

impl Neighbours {
    async fn start(settings: &[(&str, &str)]) -> Self {
        Self::start_with(|all| all.set_all(settings)).await
    }

    async fn start_with(change: impl FnOnce(AgentSettings) -> AgentSettings) -> Self {
        let sandbox = Sandbox::start().await.expect("a sandbox");
        sandbox.aws_namespace("test");
        let agent = sandbox.agent_with(change).await.expect("an agent");
        let noisy = sandbox.pod("test", "noisy").await.expect("a pod");
        let polite = sandbox.pod("test", "polite").await.expect("a pod");
        for pod in [&noisy, &polite] {
            // Both are known and have their sessions.
            assert_eq!(
                pod.secret("test/database-password")
                    .await
                    .expect("an answer")
                    .status,
                200
            );
        }
        Self {
            sandbox,
            agent,
            noisy,
            polite,
        }
    }

    async fn polite_is_served(&self) {
        let answer = self
            .polite
            .secret("test/database-password")
            .await
            .expect("an answer");
        answer.must_be_ok();
    }

    /// A container of a pod that nobody has heard of.
    async fn unknown(&self) -> Workload {
        let uid = uuid::Uuid::new_v4().to_string();
        let place = self.sandbox.place(&uid, &container_id());
        Workload::start(place).await.expect("a process")
    }
}

/// Whether it does not even get as far as an answer.
async fn is_refused(workload: &Workload) -> bool {
    let bytes = "GET /ping HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n";
    let received = workload.raw(Raw::new(bytes)).await;
    received.map_or(true, |received| received.bytes.is_empty())
}

/// Opens so many connections and leaves them silent; their names.
async fn connect(workload: &Workload, count: usize) -> Vec<String> {
    let names: Vec<_> = (0..count).map(|number| format!("c{number}")).collect();
    for name in &names {
        workload.connect(name).await.expect("a connection");
    }
    names
}

#[tokio::test]
async fn a_pod_with_too_many_connections_is_told_and_another_is_served() {
    needs_workloads!();
    let of = Neighbours::start(&[("limits.connections_per_pod", "3")]).await;
    let kept = connect(&of.noisy.workload, 3).await;
    let answer = of.noisy.get("/v1/identity").await.expect("an answer");
    assert_eq!(
        (answer.status, &*code(&answer), answer.header("retry-after")),
        (429, "busy", Some("1"))
    );
    assert_eq!(answer.header("connection"), Some("close"));
    let answer = of.noisy.secret("test/database-password").await;
    answer.expect("an answer").must_be_refused(429, "busy");
    let line = of.agent.until_audit(|line| line["code"] == "busy").await;
    let line = line.expect("its line");
    assert_eq!(
        (&line["namespace"], &line["pod"]),
        (&"test".into(), &"noisy".into())
    );
    of.polite_is_served().await;
    // Those that were there before are served, and one that goes makes room.
    let answer = of
        .noisy
        .workload
        .send_on(&kept[0], Request::get("/v1/identity"))
        .await
        .expect("an answer");
    answer.must_be_ok();
    of.noisy
        .workload
        .close(&kept[1])
        .await
        .expect("it is closed");
    let ask = async || of.noisy.get("/v1/identity").await.expect("an answer");
    until("room again", async || ask().await.status == 200).await;
}

#[tokio::test]
async fn a_pod_that_has_too_many_connections_when_it_comes_to_be_known_is_told_and_counted() {
    needs_workloads!();
    let of = Neighbours::start(&[("limits.connections_per_pod", "1")]).await;
    of.sandbox.kube.watch_hold();
    let late = of.sandbox.pod("test", "late").await.expect("a pod");
    let counted = "latchkey_attestations_total{outcome=\"busy\"}";
    let before = of.agent.metric(counted).await.expect("the metrics");
    let known = async {
        let open = async || of.agent.metric("latchkey_connections").await;
        let are_here = async || open().await.expect("the metrics") >= 2.0;
        until("two connections", are_here).await;
        of.sandbox.kube.watch_release();
    };
    let ask = || late.secret("test/database-password");
    let (one, other, ()) = tokio::join!(ask(), ask(), known);
    let answers = [one, other].map(|answer| answer.expect("an answer"));
    let mut statuses = answers.map(|answer| answer.status);
    statuses.sort_unstable();
    assert_eq!(statuses, [200, 429]);
    let line = of.agent.until_audit(|line| line["code"] == "busy").await;
    assert_eq!(line.expect("its line")["pod"], "late");
    let after = of.agent.metric(counted).await.expect("the metrics");
    assert!(after >= before + 1.0, "{before} {after}");
}

#[tokio::test]
async fn a_pod_with_too_many_requests_in_flight_is_told_and_another_is_served() {
    needs_workloads!();
    let of = Neighbours::start(&[("limits.in_flight_per_pod", "2")]).await;
    for number in 0..3 {
        of.sandbox.aws_secret(&format!("test/{number}"), "x");
    }
    let gate = Gate::new();
    let faults: Vec<_> = ["test/0", "test/1"]
        .map(|name| {
            let hold = Fault::on(Operation::GetSecretValue, Behaviour::Hold(gate.clone()));
            of.sandbox.aws.fault(hold.for_secret(name))
        })
        .into();
    let held = join_all(["test/0", "test/1"].map(|name| of.noisy.secret(name)));
    let meanwhile = async {
        gate.reached(2).await;
        let answer = of.noisy.secret("test/2").await.expect("an answer");
        assert_eq!(
            (answer.status, &*code(&answer), answer.header("retry-after")),
            (429, "busy", Some("1"))
        );
        of.polite_is_served().await;
        gate.open();
    };
    let (answers, ()) = tokio::join!(held, meanwhile);
    assert!(
        answers
            .into_iter()
            .all(|answer| answer.expect("an answer").status == 200)
    );
    drop(faults);
    assert_eq!(
        of.noisy.secret("test/2").await.expect("an answer").status,
        200
    );
}

#[tokio::test]
async fn a_pods_rate_counts_each_name_of_a_batch() {
    needs_workloads!();
    // A burst of 20, one of which each pod has used.
    let of = Neighbours::start(&[("limits.requests_per_second_per_pod", "10")]).await;
    let batch = |count: usize| {
        let names: Vec<_> = (0..count).map(|number| format!("test/{number}")).collect();
        let body = serde_json::json!({ "names": names }).to_string();
        Request::new("POST", "/v1/secrets:batchGet").body(body)
    };
    assert_eq!(
        of.noisy.request(batch(18)).await.expect("an answer").status,
        200
    );
    let answer = of.noisy.request(batch(18)).await.expect("an answer");
    assert_eq!(
        (answer.status, &*code(&answer), answer.header("retry-after")),
        (429, "busy", Some("1"))
    );
    // More than the burst can never be had at once.
    for count in [21, 30] {
        let answer = of.polite.request(batch(count)).await.expect("an answer");
        assert_eq!(
            (answer.status, &*code(&answer), answer.header("retry-after")),
            (429, "busy", None),
            "{count}"
        );
    }
    of.polite_is_served().await;
    let flood = Flood {
        path: "/v1/identity".into(),
        connections: 2,
        requests: 40,
        reconnect: false,
        interval_micros: 0,
        expect: None,
    };
    let flooded = of.noisy.workload.flood(flood).await.expect("answers");
    // How many depends on how long the rest takes: ten more are to be had each second.
    assert!(flooded.count(429) > 0, "{:?}", flooded.statuses);
    assert_eq!(
        flooded.count(429) + flooded.count(200),
        80,
        "{:?}",
        flooded.statuses
    );
}

/// Otherwise one pod could write the trail faster than anybody keeps it.
#[tokio::test]
async fn a_refusal_is_held_back_on_the_connection_that_asks_and_after_its_end() {
    needs_workloads!();
    let of = Neighbours::start(&[("limits.requests_per_second_per_pod", "1")]).await;
    let flood = Flood {
        path: "/v1/identity".into(),
        connections: 1,
        requests: 8,
        reconnect: false,
        interval_micros: 0,
        expect: None,
    };
    let one = of.noisy.workload.flood(flood.clone()).await;
    let one = one.expect("answers");
    let refused = one.count(429);
    assert!(refused > 0, "{:?}", one.statuses);
    // As many as there were refusals took so long, so none of those was quicker.
    let quickest = one.micros[one.micros.len() - refused];
    assert!(quickest >= 50_000, "{:?}", one.micros);

    let other = of.noisy.workload.exec_into().await.expect("a process");
    let many = Flood {
        connections: 40,
        requests: 1,
        ..flood
    };
    let metric = async |name: &str| of.agent.metric(name).await.expect("a metric");
    const REFUSED: &str = "latchkey_requests_total{code=\"busy\",route=\"identity\"}";
    let (before, open) = (metric(REFUSED).await, metric("latchkey_connections").await);
    let began = Instant::now();
    let dies = async {
        let is_refused = async || metric(REFUSED).await >= before + 30.0;
        until("thirty refusals", is_refused).await;
        other.signal(Signal::SIGKILL).await.expect("it lives");
    };
    let (_killed, ()) = tokio::join!(other.flood(many), dies);
    let has_left = async || metric("latchkey_connections").await <= open;
    until("connections as before", has_left).await;
    // As long as it would have been told to wait, for who was refused more than twenty times in a second.
    let rested = began.elapsed();
    assert!(rested >= Duration::from_secs(1), "{rested:?}");
}

#[tokio::test]
async fn strangers_share_a_small_pool_of_few_places_each() {
    needs_workloads!();
    let of = Neighbours::start(&[("limits.unattested", "6")]).await;
    // A process of the node, and containers of pods that nobody has heard of.
    let host = Workload::start(WorkloadSpec::host(&of.sandbox.socket()))
        .await
        .expect("a process");
    let (one, other) = (of.unknown().await, of.unknown().await);
    connect(&one, 4).await;
    let open = async || {
        let open = of.agent.metric("latchkey_connections").await;
        open.expect("metrics")
    };
    let before = open().await;
    assert!(is_refused(&one).await, "a fifth place");
    assert!(!is_refused(&host).await, "the host has places of its own");
    // Its place is free when its answer is read.
    until("connections as before", async || open().await <= before).await;
    connect(&host, 2).await;
    assert!(is_refused(&other).await, "a seventh place");
    assert!(is_refused(&host).await, "a seventh place");
    // Whoever is known needs none.
    of.polite_is_served().await;
    assert!(
        of.agent
            .metric("latchkey_connections_refused_total{reason=\"unattested_limit\"}")
            .await
            .expect("metrics")
            >= 3.0
    );
}

#[tokio::test]
async fn processes_outside_of_pods_in_many_cgroups_leave_room_for_a_pod_that_is_not_known_yet() {
    needs_workloads!();
    let of = Neighbours::start(&[("limits.unattested", "8")]).await;
    let mut strangers = Vec::new();
    for number in 0..8 {
        let path = format!("{}/system.slice/s{number}.service", of.sandbox.cgroup());
        let spec = WorkloadSpec {
            place: Place::Path(path, Hierarchies::V2),
            ..WorkloadSpec::host(&of.sandbox.socket())
        };
        strangers.push(Workload::start(spec).await.expect("a process"));
    }
    let pod = of.unknown().await;
    for stranger in &strangers {
        connect(stranger, 1).await;
    }
    assert!(!is_refused(&pod).await, "no room for a pod");
    assert!(is_refused(&strangers[7]).await, "room for another stranger");
}

#[tokio::test]
async fn pods_with_too_many_connections_leave_room_for_one_that_is_not_known_yet() {
    needs_workloads!();
    let settings = [
        ("limits.connections_per_pod", "1"),
        ("limits.unattested", "8"),
    ];
    let of = Neighbours::start(&settings).await;
    let pod = of.unknown().await;
    for busy in [&of.noisy, &of.polite] {
        connect(&busy.workload, 5).await;
    }
    assert!(!is_refused(&pod).await, "no room for a pod");
}

#[tokio::test]
async fn a_head_that_does_not_end_is_cut_off_while_others_are_served() {
    needs_workloads!();
    let of = Neighbours::start(&[]).await;
    let slow = async {
        let begun = Instant::now();
        let raw = Raw::new("GET /v1/identity HTTP/1.1\r\nHost: ");
        let received = of.noisy.workload.raw(raw).await.expect("a connection");
        (received, begun.elapsed())
    };
    let others = async {
        for _ in 0..10 {
            of.polite_is_served().await;
        }
    };
    let ((received, took), ()) = tokio::join!(slow, others);
    assert!(received.closed && received.bytes.is_empty());
    assert!((5..12).contains(&took.as_secs()), "{took:?}");
}

#[tokio::test]
async fn an_agent_that_was_stalled_reads_what_came_meanwhile_before_it_calls_anybody_late() {
    needs_workloads!();
    let of = Neighbours::start(&[]).await;
    let pod = &of.polite.workload;
    pod.connect("late").await.expect("a connection");
    let part = |text: &str, read_millis| Raw {
        connection: Some("late".into()),
        read_millis,
        answers: Some(1),
        ..Raw::new(text)
    };
    let begun = part("GET /v1/identity HTTP/1.1\r\nHost: ", 0);
    pod.raw(begun).await.expect("a connection");
    sleep(Duration::from_millis(300)).await;
    of.agent.signal(Signal::SIGSTOP).expect("it runs");
    sleep(Duration::from_secs(6)).await;
    pod.raw(part("a\r\n\r\n", 0)).await.expect("it is written");
    of.agent.signal(Signal::SIGCONT).expect("it goes on");
    let received = pod.raw(part("", 5000)).await;
    let received = received.expect("a connection").bytes;
    let answer = String::from_utf8_lossy(&received);
    assert!(answer.starts_with("HTTP/1.1 200"), "{answer:?}");
}

/// Otherwise each listener would fill the log, with twenty lines a second.
#[tokio::test]
async fn that_no_connection_can_be_accepted_is_said_once_and_whoever_waited_is_served_later() {
    needs_workloads!();
    let of = Neighbours::start(&[]).await;
    let pid = of.agent.pid().to_string();
    let may_have = |descriptors: usize| {
        let soft = format!("--nofile={descriptors}:");
        let ran = Command::new("prlimit")
            .args(["--pid", &pid, &soft])
            .status();
        assert!(ran.expect("prlimit").success());
    };
    may_have(1);
    connect(&of.noisy.workload, 1).await;
    let scraper = TcpStream::connect(of.agent.admin_address()).await;
    let texts = [
        "cannot accept a connection now",
        "cannot accept the operator's connection now",
    ];
    for text in texts {
        of.agent.until_line(text).await.expect("it says so");
    }
    sleep(Duration::from_secs(1)).await;
    let lines = of.agent.stderr();
    for text in texts {
        let said = lines.iter().filter(|line| line.contains(text)).count();
        assert_eq!(said, 1, "{text}");
    }
    drop(scraper);
    may_have(1024);
    of.polite_is_served().await;
}

#[tokio::test]
async fn all_connections_together_have_a_bound_and_the_next_waits_for_its_turn() {
    needs_workloads!();
    let settings = [
        ("limits.connections", "8"),
        ("limits.connections_per_pod", "8"),
        ("limits.unattested", "8"),
    ];
    let of = Neighbours::start(&settings).await;
    let kept = connect(&of.noisy.workload, 8).await;
    let waiting = of.polite.get("/v1/identity");
    tokio::pin!(waiting);
    let early = tokio::time::timeout(Duration::from_millis(300), &mut waiting).await;
    assert!(early.is_err(), "{early:?}");
    of.noisy
        .workload
        .close(&kept[0])
        .await
        .expect("it is closed");
    assert_eq!(waiting.await.expect("an answer").status, 200);
}

#[tokio::test]
async fn a_pod_that_floods_does_not_slow_another_down() {
    needs_workloads!();
    let of = Neighbours::start(&[]).await;
    let steady = Flood {
        path: "/v1/secrets/test/database-password".into(),
        connections: 1,
        requests: 60,
        reconnect: false,
        interval_micros: 10_000,
        expect: Some(password("test")),
    };
    let wild = Flood {
        connections: 48,
        requests: 60,
        interval_micros: 0,
        expect: None,
        ..steady.clone()
    };
    let quiet = of
        .polite
        .workload
        .flood(steady.clone())
        .await
        .expect("answers");
    let (flooded, beside) = tokio::join!(
        of.noisy.workload.flood(wild),
        of.polite.workload.flood(steady)
    );
    let (flooded, beside) = (flooded.expect("answers"), beside.expect("answers"));
    assert!(flooded.count(429) > 0, "{:?}", flooded.statuses);
    assert_eq!(
        (beside.count(200), beside.wrong, beside.failures),
        (60, 0, 0),
        "{:?}",
        beside.statuses
    );
    // The benchmarks measure it; here, beside other tests on a busy machine, it is only not to be starved.
    let bound = quiet.percentile(99) * 2 + 1_500_000;
    assert!(
        beside.percentile(99) <= bound,
        "{} µs against {} µs",
        beside.percentile(99),
        quiet.percentile(99)
    );
}
