//! How much one pod's files and volumes may take, and what is left to the others.

use super::{FILE, PASSWORD, read, until_it_holds};
use crate::csi::{INVALID_ARGUMENT, Node, UNAVAILABLE};
use std::fs;
use std::io::{BufRead, BufReader, Write};
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use testkit::aws::{Behaviour, Fault, Gate, Operation};
use testkit::kubelet::{Status, VolumeSpec};
use testkit::sandbox::password;
use testkit::until;

/// How many volumes with short attributes, or none, one pod may have.
const MOST_VOLUMES: usize = 32;

/// How many full memories of volumes, of 8 MiB each, are more than the node's 32 MiB for files.
const FULL: usize = 5;

/// The same pod's volume of another name.
fn named(volume: &VolumeSpec, name: impl ToString) -> VolumeSpec {
    VolumeSpec {
        name: name.to_string(),
        ..volume.clone()
    }
}

/// How one more volume is refused; nothing may be left of it.
async fn refused(node: &Node, volume: &VolumeSpec) -> Status {
    let left = || {
        let (mut mounts, mut kept) = (node.kubelet.mounts(), node.kubelet.kept());
        mounts.sort();
        kept.sort();
        (mounts, kept)
    };
    let before = left();
    let status = node.publish(volume).await.expect_err("it is too much");
    assert_eq!(left(), before, "something is left of it");
    status
}

/// The directories of the node's volumes, as the agent sees them.
fn memories(node: &Node) -> Vec<PathBuf> {
    let directories = fs::read_dir(node.kubelet.directory().join("run/p"));
    let directories = directories.expect("it can be read").flatten();
    directories.map(|entry| entry.path()).collect()
}

/// Takes what is left of a volume's memory, as large files would.
fn fill_up(directory: &Path) {
    let mut full = fs::File::create(directory.join("full")).expect("a file");
    let end = std::iter::repeat_with(|| full.write_all(&[0; 4096])).find(Result::is_err);
    assert!(end.is_some());
}

#[tokio::test]
async fn the_files_of_one_pods_volumes_leave_room_for_anothers() {
    needs_workloads!();
    let node = Node::start().await;
    node.sandbox.aws_secret("test/large", &"x".repeat(60_000));
    // One read, and as many files as a volume has room for.
    let entries: Vec<_> = (0..16)
        .map(|number| format!(r#"{{"name": "test/large", "file": "{number}"}}"#))
        .collect();
    let (greedy, _) = node.asking("greedy", &format!("[{}]", entries.join(",")));
    for number in 0..4 {
        let volume = named(&greedy, number);
        node.publish(&volume).await.expect("a pod may have four");
    }
    let fifth = named(&greedy, 4);
    let Status { code, message } = refused(&node, &fifth).await;
    assert_eq!(code, INVALID_ARGUMENT, "{message}");
    assert!(
        message.contains("the files of the pod's volumes") && message.contains("more than 4194304"),
        "{message}"
    );
    let (_volume, target) = node.with_files("modest", PASSWORD).await;
    assert_eq!(read(&target.join(FILE)), password("test"));
    // What it has it keeps, and in the place of one volume it may have another.
    let first = named(&greedy, 0);
    node.publish(&first).await.expect("it has it already");
    node.kubelet.unpublish(&first).await.expect("it goes");
    node.publish(&fifth).await.expect("now there is room");
}

#[tokio::test]
async fn files_go_on_being_refreshed_where_the_nodes_memory_for_files_is_full() {
    needs_workloads!();
    let node = Node::refreshing().await;
    node.sandbox.aws_secret("test/own", "before");
    let (_volume, target) = node.with_files("web", r#"["test/own"]"#).await;
    let file = target.join("own");
    for number in 0..FULL {
        node.with_files(&format!("full-{number}"), PASSWORD).await;
    }
    let device = |path: &Path| fs::metadata(path).expect("it is there").dev();
    let others: Vec<_> = memories(&node)
        .into_iter()
        .filter(|directory| device(directory) != device(&target))
        .collect();
    assert_eq!(others.len(), FULL);
    for directory in &others {
        fill_up(directory);
    }
    let (new, _) = node.asking("new", PASSWORD);
    let Status { code, message } = refused(&node, &new).await;
    assert_eq!(code, UNAVAILABLE, "{message}");
    assert!(message.contains("this node's pods"), "{message}");
    // Nothing has changed, and nothing fails: some rounds of all the volumes.
    let count = async |outcome: &str| {
        let metric = format!("latchkey_csi_fillings_total{{outcome=\"{outcome}\"}}");
        node.agent.metric(&metric).await.expect("a metric")
    };
    let (well, ill) = (count("ok").await, count("unavailable").await);
    until("some rounds", async || count("ok").await >= well + 18.0).await;
    assert!(count("unavailable").await < ill + 1.0, "some failed");
    // What takes no more than before follows its secret.
    node.sandbox.aws_secret("test/own", "rotated");
    until_it_holds(&file, "rotated").await;
}

#[tokio::test]
async fn the_records_of_one_pods_volumes_leave_room_for_anothers() {
    needs_workloads!();
    let node = Node::start().await;
    // It says little and is as long as it may be; as JSON a line feed takes two bytes.
    let padding = "\n".repeat(32 * 1024 - PASSWORD.len());
    let padded = PASSWORD.replace('[', &format!("[{padding}"));
    let (greedy, _) = node.asking("greedy", &padded);
    node.publish(&greedy).await.expect("one is no trouble");
    let Status { code, message } = refused(&node, &named(&greedy, "second")).await;
    assert_eq!(code, INVALID_ARGUMENT, "{message}");
    assert!(
        message.contains("the records of the pod's volumes"),
        "{message}"
    );
    let (modest, _) = node.asking("modest", &padded);
    node.publish(&modest).await.expect("it is another pod's");
    // Volumes without attributes are many before they are too much.
    let (many, _) = node.object_of("test", "many");
    for number in 0..MOST_VOLUMES {
        let volume = named(&many, number);
        node.publish(&volume).await.expect("a pod may have so many");
    }
    let last = named(&many, MOST_VOLUMES);
    let Status { code, message } = refused(&node, &last).await;
    assert_eq!(code, INVALID_ARGUMENT, "{message}");
    // Those that it has are published again each minute.
    let first = named(&many, 0);
    node.publish(&first).await.expect("it has it already");
    node.kubelet.unpublish(&first).await.expect("it goes");
    node.publish(&last).await.expect("now there is room");
}

#[tokio::test]
async fn a_volume_of_more_secrets_than_its_pod_may_ask_for_at_once_is_filled_while_the_pod_asks() {
    needs_workloads!();
    let node = Node::start_with(|settings| settings.set("limits.in_flight_per_pod", "1")).await;
    let pod = node.pod("test", "web").await;
    let names: Vec<String> = (0..5).map(|number| format!("test/{number}")).collect();
    for name in names.iter().map(String::as_str).chain(["test/held"]) {
        node.sandbox.aws_secret(name, "x");
    }
    let gate = Gate::new();
    let hold = Fault::on(Operation::GetSecretValue, Behaviour::Hold(gate.clone()));
    let _held = node.sandbox.aws.fault(hold.for_secret("test/held"));
    let mut files = named(&pod.volume, "files");
    files.attributes = vec![("secrets".into(), serde_json::json!(names).to_string())];
    let meanwhile = async {
        gate.reached(1).await;
        node.publish(&files).await.expect("it is filled");
        gate.open();
    };
    let (answer, ()) = tokio::join!(pod.workload.get("/v1/secrets/test/held"), meanwhile);
    answer.expect("an answer").must_be_ok();
}

/// Whoever can open a directory can lock it (flock(2)), and one volume is written at a time.
#[tokio::test]
async fn a_pod_that_locks_its_volumes_keeps_no_file_from_being_renewed() {
    needs_workloads!();
    let node = Node::refreshing().await;
    let (_locked, of_locker) = node.with_files("locker", PASSWORD).await;
    let (_polite, of_polite) = node.with_files("polite", PASSWORD).await;
    let directory = fs::File::open(&of_locker).expect("every pod can");
    directory.lock().expect("every pod can");
    node.sandbox.aws_secret("test/database-password", "rotated");
    for target in [of_polite, of_locker] {
        until_it_holds(&target.join(FILE), "rotated").await;
    }
    let log = node.agent.stderr().concat();
    assert!(!log.contains("somebody holds a lock"), "it was waited for");
}

/// Takes a lease on the file that it is called with, lets nothing break it, and ends with its input.
const LEASE: &str = "
import fcntl, os, signal, sys
signal.signal(signal.SIGIO, signal.SIG_IGN)
file = os.open(sys.argv[1], os.O_RDONLY)
fcntl.fcntl(file, fcntl.F_SETLEASE, fcntl.F_WRLCK)
print('taken', flush=True)
sys.stdin.read()
";

/// Whoever has the uid of a file can take a lease on it (fcntl(2)), and then others wait to open it.
#[tokio::test]
async fn a_pod_that_takes_a_lease_on_its_file_keeps_nobody_waiting() {
    needs_workloads!();
    let node = Node::refreshing().await;
    let (_leased, of_lessee) = node.with_files("lessee", PASSWORD).await;
    let (_polite, of_polite) = node.with_files("polite", PASSWORD).await;
    let mut lessee = Command::new("python3")
        .args(["-c", LEASE])
        .arg(of_lessee.join(FILE))
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .spawn()
        .expect("python");
    let mut taken = String::new();
    let mut output = BufReader::new(lessee.stdout.take().expect("a pipe"));
    output.read_line(&mut taken).expect("it can be read");
    assert_eq!(taken, "taken\n");
    let told = node.agent.until_line("a process of the pod has a lease on");
    told.await.expect("the agent has come to that file");
    node.sandbox.aws_secret("test/database-password", "rotated");
    until_it_holds(&of_polite.join(FILE), "rotated").await;
    drop(lessee.stdin.take());
    lessee.wait().expect("it ends");
    until_it_holds(&of_lessee.join(FILE), "rotated").await;
}
