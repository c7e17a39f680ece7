//! When no more threads can be started, as when somebody has used up the node's process numbers.

use crate::reasons;
use std::fs;
use std::os::unix::process::CommandExt;
use std::process::Command;
use std::time::Duration;
use testkit::machine::{Machine, run_by};
use testkit::workload::{Workload, WorkloadSpec};
use tokio::time::sleep;

/// A user with no other process, not even one of a run before, since the limit counts all of a user's.
fn nobody_else() -> u32 {
    50_000 + std::process::id() % 10_000
}

#[tokio::test]
async fn without_a_thread_an_agent_does_not_start_and_one_that_runs_serves_and_leaves() {
    needs_workloads!();
    let machine = Machine::start().await.expect("a machine");
    let uid = nobody_else();
    let runtime = machine.home("runtime", uid).expect("a directory");
    let secrets = machine.home("secrets", uid).expect("a directory");
    fs::write(secrets.join("token"), "hunter2").expect("a file");
    let settings = machine.settings_of_user(&runtime, &secrets);
    let settings = run_by(settings.expect("settings"), uid);
    // Itself alone; then with the thread for blocking work; then with that of the log, but not that of the trail.
    for processes in 1..=3 {
        let limit = format!("--nproc={processes}");
        let limited = settings.clone().wrapped(&["prlimit", &limit]);
        let (status, _, stderr) = limited.run_to_end(&[]).await.expect("it ends");
        assert_eq!(status.code(), Some(69), "{limit}: {stderr}");
        assert_eq!(reasons(&stderr).len(), 1, "{limit}: {stderr}");
        assert!(stderr.contains("raise the limit on processes"), "{stderr}");
    }

    let mut agent = settings.start_ready().await.expect("an agent");
    let pid = agent.pid().to_string();
    // As the user, since the root of a container may not limit what is another's.
    let mut limit = Command::new("prlimit");
    limit.args(["--nproc=1", "--pid", &pid]);
    limit.uid(uid).gid(uid);
    assert!(limit.status().expect("it runs").success());
    // Longer than a thread without work is kept.
    sleep(Duration::from_secs(12)).await;
    let user = WorkloadSpec {
        socket: runtime.join("latchkey/agent.sock"),
        ..machine.process_of(uid)
    };
    let user = Workload::start(user).await.expect("a process");
    // Reading a file is work for another thread.
    let answer = user.get("/v1/secrets/token").await.expect("an answer");
    answer.must_be_ok();
    assert!(agent.stop().await.expect("it leaves").success());
    assert!(!agent.stderr().concat().contains("panicked"));
}
