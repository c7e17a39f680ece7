//! `latchkey doctor` where the socket is not there, is not the agent's, or nobody answers on it.

use super::{Found, found};
use crate::client::{Client, command_in, ended};
use serde_json::Value;
use std::fs;
use std::path::Path;
use std::time::{Duration, Instant};
use testkit::binaries::sibling_binary;
use tokio::net::{UnixListener, UnixSocket, UnixStream};
use tokio::process::Command;

#[tokio::test]
async fn a_missing_or_wrong_mount_and_a_missing_agent_are_told_apart() {
    needs_workloads!();
    let mut client = Client::start().await;
    let socket = client.sandbox.socket();
    let doctor = |socket: &Path| command_in(&client.pod, socket, &["doctor", "--json"]);
    let nowhere = client.sandbox.directory().join("nowhere/agent.sock");
    found(doctor(&nowhere))
        .await
        .is("socket", "no_mount", &["not mounted"]);
    // A path that names the directory needs no other mount.
    let directory = socket.parent().expect("a directory");
    let told = found(doctor(directory)).await;
    told.is("socket", "no_socket", &["is the agent's directory"]);
    let next = format!("LATCHKEY_SOCKET={}", socket.display());
    assert!(told.report.to_string().contains(&next), "{:#}", told.report);
    let mounted = client.sandbox.directory().join("mounted");
    let directory = mounted.join("agent.sock");
    fs::create_dir_all(&directory).expect("a directory");
    found(doctor(&directory))
        .await
        .is("socket", "no_socket", &["is no socket"]);
    let over = |what: &Path, place: &Path, json: &'static str| {
        let place = place.display();
        let script = format!(
            "mount --bind {} {place} && exec \"$0\" --socket {place} doctor {json}",
            what.display(),
        );
        let program = sibling_binary("sandbox-latchkey").expect("the command");
        let mut command = client
            .pod
            .workload
            .command(Path::new("unshare"))
            .expect("a cgroup");
        command.args(["--mount", "sh", "-c", &script]).arg(program);
        command
    };
    // What is made on a node where the socket's file was to be mounted, and was not there.
    found(over(&directory, &directory, "--json")).await.is(
        "socket",
        "file_mount",
        &["instead of its directory"],
    );
    // The socket's file is mounted, as a container has it that was given that alone.
    let file = mounted.join("file.sock");
    fs::write(&file, "").expect("a file");
    let old = mounted.join("old.sock");
    fs::hard_link(&socket, &old).expect("another name");
    let over_file = |json| over(&old, &file, json);
    let still_good = ended(over_file("--json")).await;
    assert_eq!(still_good.code, Some(0), "{still_good:?}");
    let report: Value = serde_json::from_str(&still_good.stdout).expect("JSON");
    Found::notes(&report, "file_mount");
    client.agent.stop().await.expect("it ends");
    found(over_file("--json")).await.is(
        "socket",
        "file_mount",
        &["a restarted agent makes a new one"],
    );
    let told = found(doctor(&socket)).await;
    told.is("socket", "agent_down", &["there is no socket in"]);
    assert_eq!(told.code, Some(5));
    let killed = client.sandbox.agent().await.expect("an agent");
    let pid = nix::unistd::Pid::from_raw(i32::try_from(killed.pid()).expect("a pid"));
    let mut killed = killed;
    nix::sys::signal::kill(pid, nix::sys::signal::Signal::SIGKILL).expect("a signal");
    killed.until_ended().await.expect("it ends");
    found(doctor(&socket))
        .await
        .is("socket", "agent_down", &["nobody listens"]);
}

#[tokio::test]
async fn a_queue_that_nobody_takes_from_is_noted_and_not_waited_for() {
    let directory = tempfile::tempdir().expect("a directory");
    let socket = directory.path().join("agent.sock");
    let listener = UnixSocket::new_stream().expect("a socket");
    listener.bind(&socket).expect("its path");
    let _listener = listener.listen(1).expect("a queue");
    let mut queued = Vec::new();
    while let Ok(stream) = UnixStream::connect(&socket).await {
        queued.push(stream);
    }
    let mut command = Command::new(sibling_binary("sandbox-latchkey").expect("the command"));
    command
        .args(["doctor", "--json"])
        .env("LATCHKEY_SOCKET", &socket)
        .kill_on_drop(true);
    let ended = ended(command).await;
    assert_eq!(ended.code, Some(5), "{ended:?}");
    let found = Found::of(&ended);
    Found::notes(&found.report, "queue_full");
    found.is("agent", "no_answer", &["cannot reach the agent"]);
}

#[tokio::test]
async fn an_agent_that_does_not_answer_is_left_after_the_time_that_was_said() {
    needs_workloads!();
    let directory = tempfile::tempdir().expect("a directory");
    let socket = directory.path().join("agent.sock");
    let _agent = UnixListener::bind(&socket).expect("a socket");
    let mut command = Command::new(sibling_binary("sandbox-latchkey").expect("the command"));
    command
        .args(["doctor", "--json", "--timeout", "1s"])
        .env("LATCHKEY_SOCKET", &socket);
    let began = Instant::now();
    found(command).await.is("agent", "no_answer", &["in time"]);
    let took = began.elapsed();
    assert!(took < Duration::from_secs(8), "{took:?}");
}
