//! What a command does that is asked to end.

use super::PATIENCE;
use std::fs;
use std::path::Path;
use std::time::Duration;
use testkit::binaries::sibling_binary;
use tokio::process::Command;
use tokio::time::timeout;

/// How long a command may take to end that is asked to: less than it would wait for the agent.
const AT_ONCE: Duration = Duration::from_secs(8);

#[tokio::test]
async fn as_process_1_of_a_container_a_command_that_waits_ends_when_it_is_asked_to() {
    needs_workloads!();
    let directory = tempfile::tempdir().expect("a directory");
    let socket = directory.path().join("agent.sock");
    // It takes connections and never answers.
    let agent = tokio::net::UnixListener::bind(&socket).expect("a socket");
    let marker = directory.path().join("marker");
    let marker = marker.to_str().expect("a path");
    let start = ["test/database-password=DB", "--", "touch", marker];
    let exec = [&["exec"], &start[..]].concat();
    let supervised = [&["exec", "--on-change"], &start[..]].concat();
    let proxy = vec!["proxy", "--listen", "127.0.0.1:0"];
    for (arguments, signal, code) in [
        (&exec, "TERM", 143),
        (&exec, "INT", 130),
        (&supervised, "TERM", 143),
        (&supervised, "INT", 130),
        (&proxy, "TERM", 0),
        (&proxy, "INT", 0),
    ] {
        let program = sibling_binary("sandbox-latchkey").expect("the command is built");
        let mut child = Command::new("unshare")
            .args(["--pid", "--fork", "--kill-child"])
            .arg(program)
            .args(arguments)
            .env("LATCHKEY_SOCKET", &socket)
            .kill_on_drop(true)
            .spawn()
            .expect("it starts");
        let (_asked, _) = timeout(PATIENCE, agent.accept())
            .await
            .expect("it asks")
            .expect("a connection");
        let outer = child.id().expect("a pid");
        let inner = fs::read_to_string(format!("/proc/{outer}/task/{outer}/children"));
        let killed = Command::new("kill")
            .args(["-s", signal, inner.expect("its child").trim()])
            .status();
        assert!(killed.await.expect("kill(1)").success());
        let ended = timeout(AT_ONCE, child.wait()).await;
        let ended = ended.unwrap_or_else(|_| panic!("{signal} does not end {arguments:?}"));
        let ended = ended.expect("a status").code();
        assert_eq!(ended, Some(code), "{signal} to {arguments:?}");
    }
    assert!(!Path::new(marker).exists(), "no program was started");
}
