use std::path::PathBuf;

use super::*;
use crate::skip::without_workloads;
use crate::workload::{PodCgroup, Request, Workload, WorkloadSpec};

fn pod(socket: &Path) -> WorkloadSpec {
    let id = uuid::Uuid::new_v4().simple().to_string().repeat(2);
    let uid = uuid::Uuid::new_v4().to_string();
    WorkloadSpec::pod(
        PodCgroup::new(&Workload::unique_parent(), &uid, &id),
        socket,
    )
}

#[tokio::test]
async fn a_pid_is_given_out_again_to_another_pod_while_a_connection_waits() {
    if without_workloads() {
        return;
    }
    let namespace = PidNamespace::start().await.expect("a namespace");
    let directory = tempfile::tempdir().expect("a directory");
    let socket = directory.path().join("agent.sock");
    // A listener that accepts nothing, like a stopped agent's.
    let listener = std::os::unix::net::UnixListener::bind(&socket).expect("a socket");

    let mut first = Workload::start_in(&namespace, pod(&socket), Some(300))
        .await
        .expect("pod A");
    assert_eq!(first.pid(), 300);
    first
        .connect("waiting")
        .await
        .expect("it waits in the backlog");
    first.kill().await.expect("killed and reaped");
    let second = Workload::start_in(&namespace, pod(&socket), Some(300))
        .await
        .expect("pod B");
    assert_eq!(second.pid(), 300);
    let path = |workload: &Workload| match &workload.spec().place {
        crate::workload::Place::Pod(pod) => pod.path(),
        _ => String::new(),
    };
    let lines = second.cgroup_lines().expect("alive");
    assert!(
        lines.contains(&path(&second)) && !lines.contains(&path(&first)),
        "{lines}"
    );
    drop(listener);
    second
        .request(Request::get("/"))
        .await
        .expect_err("nobody listens any more");
}

#[tokio::test]
async fn a_taken_pid_is_refused() {
    if without_workloads() {
        return;
    }
    let namespace = PidNamespace::start().await.expect("a namespace");
    let _first = Workload::start_in(&namespace, pod(Path::new("/x")), Some(77))
        .await
        .expect("a pod");
    let refused = Workload::start_in(&namespace, pod(Path::new("/x")), Some(77))
        .await
        .expect_err("taken");
    assert!(refused.to_string().contains("77 is taken"), "{refused}");
}

#[tokio::test]
async fn programs_run_stop_and_end_inside() {
    if without_workloads() {
        return;
    }
    let namespace = PidNamespace::start().await.expect("a namespace");
    let directory = tempfile::tempdir().expect("a directory");
    let output = directory.path().join("output");
    let program = Program {
        arguments: vec!["-c".into(), "echo $$ $WORD; exit 3".into()],
        environment: vec![("WORD".into(), "hello".into())],
        output: Some(output.clone()),
        pid: Some(500),
        ..Program::new(&PathBuf::from("/bin/sh"))
    };
    let pid = namespace.spawn(program).await.expect("a shell");
    assert_eq!(namespace.wait(pid).await.expect("its end"), Some(3));
    assert_eq!(
        fs::read_to_string(output).expect("its output"),
        "500 hello\n"
    );

    let sleeper = Program {
        arguments: vec!["1000".into()],
        ..Program::new(Path::new("/bin/sleep"))
    };
    let pid = namespace.spawn(sleeper).await.expect("a sleeper");
    let outside = namespace.inner.init;
    namespace
        .signal(pid, Signal::SIGSTOP)
        .await
        .expect("stopped");
    namespace
        .signal(pid, Signal::SIGKILL)
        .await
        .expect("killed");
    assert_eq!(namespace.wait(pid).await.expect("its end"), None);
    namespace
        .signal(pid, Signal::SIGKILL)
        .await
        .expect_err("it has been reaped");
    let _left_behind = namespace
        .spawn(Program {
            arguments: vec!["1000".into()],
            ..Program::new(Path::new("/bin/sleep"))
        })
        .await;
    drop(namespace);
    while Path::new(&format!("/proc/{outside}/exe")).exists() {
        tokio::time::sleep(LOOK).await;
    }
}
