//! What manifests need of the command beside secrets: a copy of itself, and a probe.

use super::Client;
use std::fs;
use std::os::unix::fs::PermissionsExt as _;

#[tokio::test]
async fn the_command_copies_itself_whole_to_where_everybody_may_run_it() {
    needs_workloads!();
    let client = Client::start().await;
    let directory = tempfile::tempdir().expect("a directory");
    let path = |name: &str| directory.path().join(name).display().to_string();
    let install = |to: String| {
        let client = &client;
        async move { client.run(&["install", &to]).await }
    };
    let entries = |of: &str| fs::read_dir(of).expect("a directory").count();

    fs::create_dir(path("bin")).expect("a directory");
    for _ in 0..2 {
        // The second time over the first one.
        let ended = install(path("bin")).await;
        assert_eq!((ended.code, &*ended.stderr), (Some(0), ""), "{ended:?}");
    }
    assert_eq!(entries(&path("bin")), 1);
    let copy = path("bin/latchkey");
    let mode = fs::metadata(&copy).expect("the copy").permissions().mode();
    assert_eq!(mode & 0o7777, 0o755);
    let said = client.pod.workload.execute(&copy, &["--version"]).await;
    assert!(said.expect("it runs").stdout.starts_with("latchkey "));

    install(path("none")).await.failed(1, "none/latchkey");
    fs::create_dir_all(path("taken/latchkey")).expect("a directory");
    install(path("taken")).await.failed(1, "taken/latchkey");
    assert_eq!(entries(&path("taken")), 1, "nothing is left behind");
}

#[tokio::test]
async fn a_probe_of_the_proxy_succeeds_when_it_answers() {
    needs_workloads!();
    let client = Client::start().await;
    let pod = client.sandbox.application("test", "proxied").await;
    let pod = pod.expect("a pod").workload;
    let latchkey = testkit::binaries::sibling_binary("sandbox-latchkey").expect("the command");
    let latchkey = latchkey.to_str().expect("a path");
    let probe = ["healthcheck", "--proxy=127.0.0.1:8080"];
    let before = pod.execute(latchkey, &probe).await.expect("it runs");
    assert_eq!(before.code, Some(5), "{before:?}");
    assert!(
        before.stderr.contains("no proxy at 127.0.0.1:8080"),
        "{before:?}"
    );
    assert_eq!(before.stderr.lines().count(), 1, "{before:?}");
    let command = testkit::workload::Command::new(latchkey).args(&["proxy"]);
    let proxy = pod.spawn(command).await.expect("it starts");
    proxy.until("listening").await.expect("it listens");
    let after = pod.execute(latchkey, &probe).await.expect("it runs");
    assert_eq!((after.code, &*after.stderr), (Some(0), ""), "{after:?}");
}
