use std::convert::Infallible;
use std::path::Path;

use bytes::Bytes;
use http_body_util::Full;
use hyper::server::conn::http1;
use hyper::service::service_fn;
use hyper_util::rt::TokioIo;
use tempfile::TempDir;
use tokio::net::UnixListener;

use super::*;
use crate::skip::{say_skipped, without_workloads};

const POD: &str = "0d2f7a52-0c9d-4f6c-9f6e-0f3a1c7b9d11";

/// A socket that answers every request with the peer's PID and UID, as reported by the kernel.
struct Server {
    directory: TempDir,
    task: tokio::task::JoinHandle<()>,
}

impl Server {
    fn start() -> Self {
        use std::os::unix::fs::PermissionsExt as _;
        let directory = tempfile::tempdir().expect("a directory");
        fs::set_permissions(directory.path(), fs::Permissions::from_mode(0o755))
            .expect("open to all");
        let path = directory.path().join("agent.sock");
        let listener = UnixListener::bind(&path).expect("a socket");
        fs::set_permissions(path, fs::Permissions::from_mode(0o666)).expect("open to all");
        let task = tokio::spawn(async move {
            while let Ok((stream, _)) = listener.accept().await {
                let peer = stream.peer_cred().expect("credentials");
                let said = format!("{} {}", peer.pid().unwrap_or(0), peer.uid());
                tokio::spawn(http1::Builder::new().serve_connection(
                    TokioIo::new(stream),
                    service_fn(move |_| {
                        let said = Full::new(Bytes::from(said.clone()));
                        async move { Ok::<_, Infallible>(http::Response::new(said)) }
                    }),
                ));
            }
        });
        Self { directory, task }
    }

    fn socket(&self) -> PathBuf {
        self.directory.path().join("agent.sock")
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        self.task.abort();
    }
}

fn container() -> PodCgroup {
    let id = uuid::Uuid::new_v4().simple().to_string().repeat(2);
    PodCgroup::new(&Workload::unique_parent(), POD, &id)
}

async fn start(cgroup: &PodCgroup, socket: &Path) -> Workload {
    Workload::start(WorkloadSpec::pod(cgroup.clone(), socket))
        .await
        .expect("a workload")
}

#[test]
fn paths_are_those_of_the_kubelet_and_the_runtimes() {
    let path = |driver, runtime, qos| {
        let id = "c".repeat(64);
        let cgroup = PodCgroup {
            driver,
            runtime,
            qos,
            ..PodCgroup::new("", POD, &id)
        };
        cgroup
            .path()
            .replace(&id, "ID")
            .replace(POD, "UID")
            .replace(&POD.replace('-', "_"), "U_I_D")
    };
    use Qos::{BestEffort, Burstable, Guaranteed};
    assert_eq!(
        path(Driver::Cgroupfs, Runtime::Containerd, BestEffort),
        "/kubepods/besteffort/podUID/ID"
    );
    assert_eq!(
        path(Driver::Cgroupfs, Runtime::Crio, Guaranteed),
        "/kubepods/podUID/ID"
    );
    assert_eq!(
        path(Driver::Systemd, Runtime::Containerd, Burstable),
        "/kubepods.slice/kubepods-burstable.slice/kubepods-burstable-podU_I_D.slice/cri-containerd-ID.scope"
    );
    assert_eq!(
        path(Driver::Systemd, Runtime::Crio, Guaranteed),
        "/kubepods.slice/kubepods-podU_I_D.slice/crio-ID.scope"
    );
}

#[tokio::test]
async fn each_shape_shows_in_proc_and_is_gone_afterwards() {
    if without_workloads() {
        return;
    }
    let server = Server::start();
    for hierarchies in [Hierarchies::V2, Hierarchies::V1, Hierarchies::Hybrid] {
        for driver in [Driver::Cgroupfs, Driver::Systemd] {
            for qos in [Qos::BestEffort, Qos::Burstable, Qos::Guaranteed] {
                let cgroup = PodCgroup {
                    driver,
                    hierarchies,
                    qos,
                    ..container()
                };
                let started =
                    Workload::start(WorkloadSpec::pod(cgroup.clone(), &server.socket())).await;
                let workload = match started {
                    Err(error)
                        if hierarchies != Hierarchies::V2
                            && error.kind() == io::ErrorKind::Unsupported =>
                    {
                        say_skipped(error);
                        continue;
                    }
                    started => started.expect("a workload"),
                };
                let lines = workload.cgroup_lines().expect("a living process");
                let (unified, v1): (Vec<_>, Vec<_>) =
                    lines.lines().partition(|line| line.starts_with("0::"));
                let path = cgroup.path();
                let in_unified = unified.iter().any(|line| line.ends_with(&path));
                let in_v1 = v1.iter().filter(|line| line.ends_with(&path)).count();
                assert_eq!(in_unified, hierarchies != Hierarchies::V1, "{lines}");
                assert_eq!(in_v1 > 0, hierarchies != Hierarchies::V2, "{lines}");

                let pid = workload.pid();
                let said = workload.get("/").await.expect("a response").text();
                assert_eq!(said, format!("{pid} 0"));
                drop(workload);
                let left = cgroups_named(&cgroup.parent);
                assert!(left.is_empty(), "{left:?}");
                assert!(
                    !Path::new(&format!("/proc/{pid}/exe")).exists(),
                    "{pid} is alive"
                );
            }
        }
    }
}

/// The directories of this name in every hierarchy.
fn cgroups_named(parent: &str) -> Vec<PathBuf> {
    let points = cgroup::v1_mounts().into_iter().flatten();
    let points = points.chain(cgroup::v2_mount());
    let paths = points.map(|point| point.join(parent.trim_start_matches('/')));
    paths.filter(|path| path.exists()).collect()
}

#[tokio::test]
async fn a_workload_sees_a_network_of_its_own_and_the_agents_socket() {
    if without_workloads() {
        return;
    }
    let server = Server::start();
    let workload = start(&container(), &server.socket()).await;
    let status = workload.status().await.expect("a status");
    assert_eq!(status.interfaces, ["lo"]);
    let curled = workload.curl(&["http://localhost/x"]).await.expect("curl");
    assert_eq!(curled.code, Some(0), "{}", curled.stderr);
    assert!(curled.stdout.ends_with(" 0"), "{}", curled.stdout);
    assert_ne!(
        curled.stdout,
        format!("{} 0", workload.pid()),
        "curl is a process of its own"
    );
}

#[tokio::test]
async fn users_pids_and_mounts_can_be_a_workloads_own() {
    if without_workloads() {
        return;
    }
    let server = Server::start();
    let at = PathBuf::from("/run/latchkey-workload-test");
    let spec = WorkloadSpec {
        uid: 10_001,
        gid: 10_001,
        own_users: true,
        own_pids: true,
        volume: Some(Volume {
            directory: server.directory.path().to_owned(),
            at: at.clone(),
        }),
        ..WorkloadSpec::pod(container(), &at.join("agent.sock"))
    };
    let mut workload = Workload::start(spec).await.expect("a workload");
    let status = workload.status().await.expect("a status");
    assert_eq!((status.pid, status.uid), (1, 10_001));
    let said = workload.get("/").await.expect("a response").text();
    assert_eq!(
        said,
        format!("{} 210001", workload.pid()),
        "as the node sees it"
    );
    let write = workload
        .execute("touch", &["/run/latchkey-workload-test/x"])
        .await
        .expect("touch");
    assert!(
        write.code != Some(0) && write.stderr.contains("Read-only"),
        "{write:?}"
    );
    assert!(!at.exists(), "the mount is the workload's own");
    workload.kill().await.expect("killed");
    assert!(!Path::new(&format!("/proc/{}", workload.pid())).exists());
    workload.get("/").await.expect_err("it is dead");
}

#[tokio::test]
async fn an_ordinary_user_reads_and_is_read_like_one() {
    use std::os::unix::fs::MetadataExt as _;
    if without_workloads() {
        return;
    }
    let server = Server::start();
    let spec = WorkloadSpec {
        uid: 10_001,
        gid: 10_001,
        ..WorkloadSpec::pod(container(), &server.socket())
    };
    let workload = Workload::start(spec).await.expect("a workload");
    let said = workload.get("/").await.expect("a response").text();
    assert_eq!(said, format!("{} 10001", workload.pid()));
    let owner = fs::metadata(format!("/proc/{}", workload.pid()))
        .expect("a process")
        .uid();
    assert_eq!(owner, 10_001, "its /proc is its user's, as after any exec");
}

#[tokio::test]
async fn named_connections_stay_and_can_be_passed_on() {
    if without_workloads() {
        return;
    }
    let server = Server::start();
    let first = start(&container(), &server.socket()).await;
    let second = start(&container(), &server.socket()).await;
    first.connect("mine").await.expect("a connection");
    let own = format!("{} 0", first.pid());
    for _ in 0..2 {
        let said = first
            .send_on("mine", Request::get("/"))
            .await
            .expect("a response")
            .text();
        assert_eq!(said, own);
    }
    first.close("mine").await.expect("closed");
    first
        .send_on("mine", Request::get("/"))
        .await
        .expect_err("it is closed");

    first.connect("gift").await.expect("a connection");
    let at = server.directory.path().join("gift.sock");
    let pass = async {
        while !at.exists() {
            tokio::task::yield_now().await;
        }
        first.pass("gift", &at).await
    };
    let (received, passed) = tokio::join!(second.receive("gift", &at), pass);
    passed.expect("passed");
    received.expect("received");
    let said = second
        .send_on("gift", Request::get("/"))
        .await
        .expect("a response")
        .text();
    assert_eq!(said, own, "it speaks for who connected");
}

#[tokio::test]
async fn raw_bytes_descriptors_and_floods_reach_the_server() {
    if without_workloads() {
        return;
    }
    let server = Server::start();
    let workload = start(&container(), &server.socket()).await;
    let text = "GET / HTTP/1.1\r\nhost: x\r\nconnection: close\r\n\r\n";
    for descriptors in [0, 3] {
        let received = workload
            .raw(Raw {
                descriptors,
                ..Raw::new(text)
            })
            .await
            .expect("an answer");
        assert!(
            received.closed && received.bytes.starts_with(b"HTTP/1.1 200"),
            "{received:?}"
        );
    }
    let half = Raw {
        read_millis: 50,
        ..Raw::new("GET / HT")
    };
    assert!(!workload.raw(half).await.expect("silence").closed);
    for reconnect in [false, true] {
        let flood = Flood {
            path: "/".into(),
            connections: 4,
            requests: 10,
            reconnect,
            interval_micros: 0,
            expect: Some(workload.pid().to_string()),
        };
        let flooded = workload.flood(flood).await.expect("done");
        assert_eq!(
            (flooded.count(200), flooded.failures, flooded.wrong),
            (40, 0, 0)
        );
        assert!(flooded.percentile(99) >= flooded.percentile(50));
    }
}

#[tokio::test]
async fn a_workload_can_be_moved_nested_and_joined() {
    if without_workloads() {
        return;
    }
    let server = Server::start();
    let (mine, other) = (container(), container());
    let workload = start(&mine, &server.socket()).await;
    let joined = workload.exec_into().await.expect("a second process");
    assert_ne!(joined.pid(), workload.pid());
    assert!(joined.cgroup_lines().expect("alive").contains(&mine.path()));

    let nested = "kubepods/burstable/pod11111111-2222-3333-4444-555555555555/deadbeef";
    workload.nest(nested).expect("nested");
    assert!(
        workload
            .cgroup_lines()
            .expect("alive")
            .contains(&format!("{}/{nested}", mine.path()))
    );

    let victim = start(&other, &server.socket()).await;
    workload.move_into(&victim).expect("moved");
    assert!(
        workload
            .cgroup_lines()
            .expect("alive")
            .contains(&other.path())
    );
    drop((workload, joined, victim));
    assert!(cgroups_named(&mine.parent).is_empty() && cgroups_named(&other.parent).is_empty());
}

#[tokio::test]
async fn a_process_of_the_node_is_in_no_pod() {
    if without_workloads() {
        return;
    }
    let server = Server::start();
    let workload = Workload::start(WorkloadSpec::host(&server.socket()))
        .await
        .expect("a process");
    let own = fs::read_to_string("/proc/self/cgroup").expect("a cgroup");
    assert_eq!(workload.cgroup_lines().expect("alive"), own);
    assert_eq!(workload.get("/").await.expect("a response").status, 200);
}

#[tokio::test]
async fn without_peerpidfd_the_kernel_says_that_it_does_not_know_the_option() {
    // SOL_SOCKET, SO_PEERPIDFD and, for comparison, SO_PEERCRED.
    let script = "import socket\na, b = socket.socketpair()\nprint(len(a.getsockopt(1, 17, 12)))\na.getsockopt(1, 77)";
    let wrapper = sibling_binary("without").expect("built");
    let output = std::process::Command::new(wrapper)
        .args(["peerpidfd", "python3", "-c", script])
        .output()
        .expect("run");
    let stderr = String::from_utf8_lossy(&output.stderr);
    assert_eq!(String::from_utf8_lossy(&output.stdout), "12\n");
    assert!(stderr.contains("Protocol not available"), "{stderr}");
}

#[tokio::test]
async fn a_program_runs_in_the_container_with_what_it_is_given() {
    if without_workloads() {
        return;
    }
    let server = Server::start();
    let workload = start(&container(), &server.socket()).await;
    let script = r#"cat; echo "$LK_WORD $# $PWD"; cat /proc/self/cgroup >&2; exit 7"#;
    let command = Command::new("/bin/sh")
        .args(&["-c", script, "sh", "one", "two"])
        .bare()
        .env("LK_WORD", "quoted 'so'")
        .directory("/usr")
        .input("given\n");
    let executed = workload.run(command).await.expect("a shell");
    assert_eq!((executed.code, executed.signal), (Some(7), None));
    assert_eq!(executed.stdout, "given\nquoted 'so' 2 /usr\n");
    let own = workload.status().await.expect("a status").cgroup;
    assert_eq!(executed.stderr, own);
}

#[tokio::test]
async fn a_program_is_watched_signalled_and_reaped() {
    if without_workloads() {
        return;
    }
    let server = Server::start();
    let workload = start(&container(), &server.socket()).await;
    let script = "trap 'echo bye; kill -9 $$' TERM; echo ready; while :; do sleep 0.01; done";
    let command = Command::new("sh").args(&["-c", script]);
    let running = workload.spawn(command).await.expect("a shell");
    running.until("ready").await.expect("it says so");
    running.signal(Signal::SIGTERM).await.expect("it runs");
    let ended = running.end().await.expect("its end");
    assert_eq!((ended.code, ended.signal), (None, Some(9)));
    assert_eq!(ended.stdout, "ready\nbye\n");
    running
        .signal(Signal::SIGTERM)
        .await
        .expect_err("its PID may be another's");
    running.until("more").await.expect_err("it is silent");
    workload
        .spawn(Command::new("no-such-program"))
        .await
        .expect_err("there is none");
}
