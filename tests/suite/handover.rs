//! One agent follows another on the same socket: nothing is lost, and whoever dies, the socket is served.

use crate::{at_most, sandbox_with_a_pod};
use std::time::{Duration, Instant};
use testkit::PATIENCE;
use testkit::agent::{AgentProcess, AgentSettings, free_address};
use testkit::aws::Operation;
use testkit::sandbox::{Sandbox, SandboxPod};
use testkit::workload::{Flood, Flooded, Request, Signal};
use tokio::net::UnixStream;
use tokio::time::{sleep, timeout};

/// How long a socket may stay unserved after an agent died, on a machine where an agent takes so long to start: two
/// seconds, of which another agent that is there looks once, unless a start alone takes a good part of them.
fn back_within(start: Duration) -> Duration {
    at_most(Duration::from_secs(2), 4, start)
}

/// So many requests on so many connections, at a pace that spreads them over the hand-over.
fn flood(connections: usize, requests: usize, reconnect: bool) -> Flood {
    Flood {
        path: "/v1/secrets/test/database-password".into(),
        connections,
        requests,
        reconnect,
        interval_micros: 2_000,
        expect: Some(testkit::sandbox::password("test")),
    }
}

/// 10,000 requests, half on kept connections and half on new ones, while `meanwhile` happens.
async fn under_load<T>(
    pod: &SandboxPod,
    meanwhile: impl Future<Output = T>,
) -> (Flooded, Flooded, T) {
    let kept = pod.workload.flood(flood(5, 1_000, false));
    let new = pod.workload.flood(flood(5, 1_000, true));
    let (kept, new, outcome) = tokio::join!(kept, new, meanwhile);
    (
        kept.expect("the pod lives"),
        new.expect("the pod lives"),
        outcome,
    )
}

/// An agent that takes a cached value, so that the load is on the socket and not on the fake cloud.
async fn agent(sandbox: &Sandbox) -> AgentProcess {
    let quick = |settings: AgentSettings| {
        settings
            .set("cache.ttl", "5m")
            .set("limits.requests_per_second_per_pod", 100_000)
    };
    sandbox.agent_with(quick).await.expect("an agent")
}

/// An agent, and how long it took until it was ready.
async fn timed_agent(sandbox: &Sandbox) -> (AgentProcess, Duration) {
    let begun = Instant::now();
    let agent = agent(sandbox).await;
    (agent, begun.elapsed())
}

#[tokio::test(flavor = "multi_thread")]
async fn ten_thousand_requests_over_a_hand_over_are_all_answered() {
    needs_workloads!();
    let (sandbox, pod) = sandbox_with_a_pod().await;
    let mut old = agent(&sandbox).await;
    let (kept, new, _successor) = under_load(&pod, async {
        sleep(Duration::from_millis(300)).await;
        let successor = agent(&sandbox).await;
        let ended = old.stop().await.expect("it leaves");
        assert!(ended.success(), "{ended}");
        successor
    })
    .await;
    for flooded in [&kept, &new] {
        assert_eq!(
            flooded.count(200),
            5_000,
            "{:?} {:?}",
            flooded.statuses,
            flooded.errors
        );
        assert_eq!(
            (flooded.failures, flooded.wrong),
            (0, 0),
            "{:?}",
            flooded.errors
        );
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn the_old_agents_crash_in_a_hand_over_answers_nothing_wrongly_and_the_socket_is_back() {
    needs_workloads!();
    let (sandbox, pod) = sandbox_with_a_pod().await;
    let mut old = agent(&sandbox).await;
    let (kept, new, _successor) = under_load(&pod, async {
        sleep(Duration::from_millis(300)).await;
        let successor = agent(&sandbox).await;
        old.kill().await.expect("it was there");
        successor
    })
    .await;
    assert_eq!((kept.wrong, new.wrong), (0, 0));
    // At most what each of the five kept connections had under way.
    assert!(kept.failures <= 5, "{:?}", kept.errors);
    assert!(new.failures <= 5, "{:?}", new.errors);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_killed_agent_that_is_started_again_is_back_at_once() {
    needs_workloads!();
    let (sandbox, pod) = sandbox_with_a_pod().await;
    let (mut old, start) = timed_agent(&sandbox).await;
    let (kept, new, (_again, away)) = under_load(&pod, async {
        sleep(Duration::from_millis(300)).await;
        old.kill().await.expect("it was there");
        let killed = Instant::now();
        let again = agent(&sandbox).await;
        let answer = pod
            .secret("test/database-password")
            .await
            .expect("an answer");
        answer.must_be_ok();
        (again, killed.elapsed())
    })
    .await;
    assert_eq!((kept.wrong, new.wrong), (0, 0));
    let bound = back_within(start);
    assert!(away < bound, "it took {away:?}, not {bound:?}");
}

#[tokio::test]
async fn an_agent_whose_successor_dies_binds_the_path_again() {
    needs_workloads!();
    let (sandbox, pod) = sandbox_with_a_pod().await;
    let (old, start) = timed_agent(&sandbox).await;
    let mut successor = agent(&sandbox).await;
    successor.kill().await.expect("it was there");
    let killed = Instant::now();
    old.until_line("bound it again").await.expect("it notices");
    let answer = pod
        .secret("test/database-password")
        .await
        .expect("an answer");
    answer.must_be_ok();
    let (away, bound) = (killed.elapsed(), back_within(start));
    assert!(away < bound, "it took {away:?}, not {bound:?}");
}

#[tokio::test]
async fn a_replaced_agent_closes_after_its_answers_and_leaves_only_when_told() {
    needs_workloads!();
    let (sandbox, pod) = sandbox_with_a_pod().await;
    let mut old = agent(&sandbox).await;
    pod.workload.connect("kept").await.expect("a connection");
    let request = || Request::get("/v1/secrets/test/database-password");
    let first = pod
        .workload
        .send_on("kept", request())
        .await
        .expect("an answer");
    assert_eq!(first.header("connection"), None);
    let successor = agent(&sandbox).await;
    let took = "took the socket over from another agent";
    successor.until_line(took).await.expect("it says so");
    assert!(!old.stderr().join("").contains(took), "there was nobody");
    let deadline = Instant::now() + PATIENCE;
    loop {
        let answer = pod
            .workload
            .send_on("kept", request())
            .await
            .expect("an answer");
        answer.must_be_ok();
        if answer.header("connection") == Some("close") {
            break;
        }
        assert!(Instant::now() < deadline, "it has not noticed");
        sleep(Duration::from_millis(50)).await;
    }
    assert!(old.signal(Signal::SIGCONT).is_ok(), "it is still there");
    assert!(old.stop().await.expect("it leaves").success());
}

#[tokio::test]
async fn an_agent_that_leaves_before_the_one_that_it_has_replaced_does_not_wait_for_its_looks() {
    needs_workloads!();
    let (sandbox, pod) = sandbox_with_a_pod().await;
    let old = agent(&sandbox).await;
    let mut newer = agent(&sandbox).await;
    let replaced = "another process answers on the socket's path";
    old.until_line(replaced).await.expect("it notices");
    let told = Instant::now();
    assert!(newer.stop().await.expect("it leaves").success());
    let took = told.elapsed();
    // Its drain may take 20 s, and the other looks each second who has the path.
    assert!(took < Duration::from_secs(8), "it took {took:?}");
    old.until_line("bound it again").await.expect("it notices");
    let answer = pod.secret("test/database-password").await;
    answer.expect("an answer").must_be_ok();
}

#[tokio::test]
async fn the_two_agents_of_a_hand_over_have_the_admin_port_together() {
    needs_workloads!();
    let (sandbox, pod) = sandbox_with_a_pod().await;
    let port = free_address().expect("a port");
    let on_it = |settings: AgentSettings| settings.set("listen.admin", port);
    let mut old = sandbox.agent_with(on_it).await.expect("an agent");
    let new = sandbox.agent_with(on_it).await.expect("its successor");
    old.stop().await.expect("it leaves");
    let answer = pod.secret("test/database-password").await;
    assert_eq!(answer.expect("an answer").status, 200);
    let text = new.admin("/metrics").await.expect("metrics").1;
    let read = "latchkey_requests_total{code=\"ok\",route=\"secret\"} 1";
    assert!(text.contains(read), "it is the successor's: {text}");
}

#[tokio::test]
async fn a_stale_socket_is_no_obstacle() {
    needs_workloads!();
    let (sandbox, pod) = sandbox_with_a_pod().await;
    let mut old = agent(&sandbox).await;
    old.kill().await.expect("it was there");
    assert!(sandbox.socket().exists(), "it left its socket behind");
    let _again = agent(&sandbox).await;
    assert_eq!(
        pod.secret("test/database-password")
            .await
            .expect("an answer")
            .status,
        200
    );
}

#[tokio::test]
async fn an_agent_that_is_not_ready_leaves_the_path_to_the_one_that_is() {
    needs_workloads!();
    let (sandbox, pod) = sandbox_with_a_pod().await;
    let (mut old, start) = timed_agent(&sandbox).await;
    assert_eq!(
        pod.secret("test/database-password")
            .await
            .expect("an answer")
            .status,
        200
    );
    sandbox.kube.hang();
    let late = sandbox
        .settings()
        .expect("settings")
        .start()
        .await
        .expect("a process");
    late.until_line("\"message\":\"bound\"")
        .await
        .expect("it starts");
    sleep(Duration::from_secs(2)).await;
    let answer = pod
        .secret("test/database-password")
        .await
        .expect("an answer");
    answer.must_be_ok();
    // When that one dies, there is somebody to wait with.
    old.kill().await.expect("it was there");
    let died = Instant::now();
    while pod.secret("test/database-password").await.is_err() {
        assert!(died.elapsed() < back_within(start), "nobody answers");
        sleep(Duration::from_millis(10)).await;
    }
    sandbox.kube.heal();
    late.until_ready().await.expect("it becomes ready");
    let answer = pod
        .secret("test/database-password")
        .await
        .expect("an answer");
    answer.must_be_ok();
}

#[tokio::test]
async fn an_agent_that_leaves_takes_its_socket_along() {
    needs_workloads!();
    let (sandbox, _pod) = sandbox_with_a_pod().await;
    let mut agent = agent(&sandbox).await;
    assert!(agent.stop().await.expect("it leaves").success());
    let left: Vec<_> = std::fs::read_dir(sandbox.socket().parent().expect("a directory"))
        .expect("it is there")
        .collect();
    assert!(left.is_empty(), "{left:?}");
}

#[tokio::test]
async fn an_agent_that_accepts_no_more_leaves_nobody_waiting_in_its_queue() {
    needs_workloads!();
    let (sandbox, pod) = sandbox_with_a_pod().await;
    let mut agent = agent(&sandbox).await;
    // As a container has it that mounts the socket itself: its name goes, it does not.
    let mounted = sandbox.directory().join("mounted.sock");
    std::fs::hard_link(sandbox.socket(), &mounted).expect("a link");
    let (gate, _held) = sandbox.aws.hold(Operation::GetSecretValue);
    let refused = async {
        gate.reached(1).await;
        agent
            .signal(nix::sys::signal::Signal::SIGTERM)
            .expect("it runs");
        let refused = async {
            // Whoever connects before that is waited for.
            while sandbox.socket().exists() || UnixStream::connect(&mounted).await.is_ok() {
                sleep(Duration::from_millis(50)).await;
            }
        };
        let refused = timeout(Duration::from_secs(4), refused).await;
        gate.open();
        refused.expect("nobody is left to wait");
        agent.until_ended().await.expect("it leaves")
    };
    let (_answer, ended) = tokio::join!(pod.secret("test/database-password"), refused);
    assert!(ended.success());
}

#[tokio::test]
async fn a_lock_that_somebody_sits_on_stops_no_hand_over() {
    needs_workloads!();
    let (sandbox, pod) = sandbox_with_a_pod().await;
    let mut old = agent(&sandbox).await;
    let directory = std::fs::File::open(sandbox.socket().parent().expect("a directory"));
    let _sat_on = nix::fcntl::Flock::lock(
        directory.expect("it is there"),
        nix::fcntl::FlockArg::LockExclusive,
    )
    .expect("a lock");
    let _successor = agent(&sandbox).await;
    assert!(old.stop().await.expect("it leaves").success());
    assert_eq!(
        pod.secret("test/database-password")
            .await
            .expect("an answer")
            .status,
        200
    );
}

#[tokio::test]
async fn an_agent_whose_directory_is_removed_writes_its_trail_and_ends_so_that_it_is_started_anew()
{
    needs_workloads!();
    let (sandbox, pod) = sandbox_with_a_pod().await;
    let mut agent = agent(&sandbox).await;
    // The very first line is written at once, and those after it gather.
    sandbox.aws_secret("test/first", "value");
    let first = pod.secret("test/first").await;
    first.expect("an answer").must_be_ok();
    let (gate, _held) = sandbox.aws.hold(Operation::GetSecretValue);
    let ended = async {
        gate.reached(1).await;
        std::fs::remove_dir_all(sandbox.socket().parent().expect("a directory"))
            .expect("it is there");
        agent.until_ended().await.expect("it ends by itself")
    };
    let (_answer, ended) = tokio::join!(pod.secret("test/database-password"), ended);
    assert_eq!(ended.code(), Some(70));
    // What it was about when it ended has a line, too.
    let line = agent.until_audit(|line| line["outcome"] == "cancelled");
    line.await.expect("its line");
    must_name_its_directory(&sandbox, &agent).await;
}

#[tokio::test]
async fn an_agent_that_finds_another_directory_in_its_directorys_place_ends_too() {
    needs_workloads!();
    let (sandbox, _pod) = sandbox_with_a_pod().await;
    let mut agent = agent(&sandbox).await;
    let socket = sandbox.socket();
    let directory = socket.parent().expect("a directory");
    std::fs::rename(directory, directory.with_extension("aside")).expect("it is there");
    std::fs::create_dir(directory).expect("a new one");
    let ended = agent.until_ended().await.expect("it ends by itself");
    assert_eq!(ended.code(), Some(70));
    must_name_its_directory(&sandbox, &agent).await;
}

/// The agent has said which directory is gone, and what to do.
async fn must_name_its_directory(sandbox: &Sandbox, agent: &AgentProcess) {
    let socket = sandbox.socket();
    let directory = socket.parent().expect("a directory").display();
    let said = agent.until_line("start the agent again").await;
    let said = said.expect("a line");
    assert!(
        said.contains(&format!("the socket's directory {directory} ")),
        "{said}"
    );
}
