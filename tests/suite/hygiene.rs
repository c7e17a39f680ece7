//! What must not get out, and what must not get in: the socket's place, the logs, the memory, the disk.

use crate::operations::names;
use crate::{must_meet, reasons, sandbox_with_a_pod};
use nix::fcntl::{AT_FDCWD, RenameFlags, renameat2};
use serde_json::{Value, json};
use std::collections::BTreeSet;
use std::fs::{self, File};
use std::os::unix::fs::{FileExt, PermissionsExt, chown, symlink};
use std::os::unix::net::UnixListener;
use std::os::unix::process::ExitStatusExt;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::{Duration, Instant};
use testkit::agent::AgentSettings;
use testkit::aws::{Behaviour, Fault, Operation};
use testkit::kube::{self, AGENT};
use testkit::sandbox::{CANARY, Sandbox, SandboxPod, password};
use testkit::until;
use testkit::workload::{self, Request, Signal, Workload, WorkloadSpec};
use tokio::time::sleep;

/// Takes all capabilities away, and with them root's power over other processes.
const POWERLESS: [&str; 3] = ["setpriv", "--bounding-set=-all", "--inh-caps=-all"];

/// Lets the program dump core, as a node's defaults may.
const DUMPING: [&str; 4] = ["sh", "-c", "ulimit -c unlimited && exec \"$@\"", "sh"];

/// The most of one mapping that is looked through at once.
const CHUNK: usize = 1 << 20;

async fn read_own(pod: &SandboxPod) {
    let answer = pod
        .secret("test/database-password")
        .await
        .expect("an answer");
    answer.must_be_ok();
    assert_eq!(answer.json()["value"], password("test"));
}

/// How an agent ends that finds the socket's directory, which is there, in this state.
async fn start_at(sandbox: &Sandbox, socket: &Path) -> (Option<i32>, String) {
    let settings = sandbox.settings().expect("settings");
    let settings = settings.set("listen.socket", socket.display());
    let (status, _, stderr) = settings.run_to_end(&[]).await.expect("it ends");
    (status.code(), stderr)
}

/// In how many places of the process's memory `text` stands.
pub(crate) fn copies_in_memory(pid: u32, text: &str) -> usize {
    let of_agent = PathBuf::from(format!("/proc/{pid}"));
    let maps = fs::read_to_string(of_agent.join("maps")).expect("root may read it");
    let memory = File::open(of_agent.join("mem")).expect("root may read it");
    let mut chunk = vec![0; CHUNK + text.len()];
    let mut copies = 0;
    for line in maps.lines().filter(|line| line.contains(" rw")) {
        let (range, _) = line.split_once(' ').expect("a range");
        let (start, end) = range.split_once('-').expect("two addresses");
        let address = |text| u64::from_str_radix(text, 16).expect("an address");
        let (mut at, end) = (address(start), address(end));
        while at < end {
            let left = usize::try_from(end - at).unwrap_or(usize::MAX);
            let size = left.min(chunk.len());
            // Mappings of devices cannot be read.
            let Ok(read) = memory.read_at(&mut chunk[..size], at) else {
                break;
            };
            let found = &chunk[..read];
            copies += found
                .windows(text.len())
                .filter(|window| *window == text.as_bytes())
                .count();
            at += read.clamp(1, CHUNK) as u64;
        }
    }
    copies
}

#[tokio::test]
async fn an_unsafe_place_for_the_socket_is_refused() {
    needs_workloads!();
    let sandbox = Sandbox::start().await.expect("a sandbox");
    let make = |name: &str| {
        let directory = sandbox.directory().join(name);
        fs::create_dir(&directory).expect("a directory");
        directory
    };
    let mode = |directory: &Path, mode| {
        fs::set_permissions(directory, PermissionsExt::from_mode(mode)).expect("ours");
    };
    let real = make("real");
    let linked = sandbox.directory().join("linked");
    symlink(&real, &linked).expect("a link");
    let below = linked.join("below");
    fs::create_dir(&below).expect("a directory behind the link");
    let foreign = make("foreign");
    chown(&foreign, Some(12_345), None).expect("root may");
    let (group, other) = (make("group"), make("other"));
    mode(&group, 0o775);
    mode(&other, 0o1757);
    let sticky = make("sticky");
    mode(&sticky, 0o1777);
    let above = make("above").join("missing/latchkey");
    let closed = make("closed");
    mode(&closed, 0o750);
    let occupied = make("occupied");
    fs::write(occupied.join("agent.sock"), "a file").expect("a file");
    let pointed = make("pointed");
    symlink("/dev/null", pointed.join("agent.sock")).expect("a link");
    for (directory, what) in [
        (&linked, "symbolic link"),
        (&below, "symbolic link"),
        (&foreign, "belongs to uid 12345"),
        (&group, "can be written by others"),
        (&other, "can be written by others"),
        (&sticky, "can be written by others"),
        (&above, "make the one above it"),
        (&closed, "others cannot enter"),
        (&occupied, "is no socket"),
        (&pointed, "is no socket"),
    ] {
        let (code, told) = start_at(&sandbox, &directory.join("agent.sock")).await;
        assert_eq!(code, Some(69), "{}: {told}", directory.display());
        assert!(told.contains(what), "{}: {told}", directory.display());
        // Of a directory that others use, such as /tmp, that would be harm to them.
        assert!(!told.contains("chmod"), "{told}");
        assert_eq!(reasons(&told).len(), 1, "{told}");
    }
    let text = fs::read_to_string(occupied.join("agent.sock")).expect("it is still there");
    assert_eq!(text, "a file");
}

#[tokio::test]
async fn an_abstract_or_relative_socket_is_a_fault_of_the_configuration() {
    let directory = tempfile::tempdir().expect("a directory");
    let file = directory.path().join("config.toml");
    for socket in ["@latchkey", "agent.sock", "\\u0000latchkey"] {
        fs::write(&file, format!("[listen]\nsocket = \"{socket}\"\n")).expect("a file");
        let file = file.display().to_string();
        let agent = AgentSettings::default();
        let (status, _, told) = agent
            .run_to_end(&["--config", &file])
            .await
            .expect("it ends");
        assert_eq!(status.code(), Some(78), "{told}");
        let place = format!("{file}:2:");
        assert!(
            told.contains(&place) && told.contains("listen.socket"),
            "{told}"
        );
    }
}

#[tokio::test]
async fn a_socket_that_disappears_is_bound_again() {
    needs_workloads!();
    let (sandbox, pod) = sandbox_with_a_pod().await;
    let agent = sandbox.agent().await.expect("an agent");
    fs::remove_file(sandbox.socket()).expect("it was there");
    agent
        .until_line("bound it again")
        .await
        .expect("it notices");
    read_own(&pod).await;
    let beside = sandbox.socket().with_extension("dead");
    drop(UnixListener::bind(&beside).expect("a listener"));
    fs::rename(&beside, sandbox.socket()).expect("a dead socket takes the path");
    let is_served = async || pod.secret("test/database-password").await.is_ok();
    until("a socket bound again", is_served).await;
}

#[tokio::test]
async fn while_something_else_is_at_the_path_nothing_is_left_beside_it_and_the_socket_is_ours_again_after_it()
 {
    needs_workloads!();
    let (sandbox, pod) = sandbox_with_a_pod().await;
    let agent = sandbox.agent().await.expect("an agent");
    let reached = async || {
        agent
            .metric("latchkey_socket_reached")
            .await
            .expect("metrics")
    };
    assert_eq!(reached().await, 1.0);
    let aside = sandbox.directory().join("aside");
    fs::create_dir(&aside).expect("a directory");
    // At once, so that the agent never finds nothing there.
    let exchange = || {
        let flags = RenameFlags::RENAME_EXCHANGE;
        renameat2(AT_FDCWD, &aside, AT_FDCWD, &sandbox.socket(), flags).expect("both are there");
    };
    exchange();
    let told = agent.until_line("cannot bind the socket's path again");
    told.await.expect("it notices");
    assert_eq!(reached().await, 0.0);
    // It has tried again by then.
    tokio::time::sleep(Duration::from_secs(2)).await;
    let is_alone = async || names(&sandbox) == ["agent.sock"];
    until("nothing beside it", is_alone).await;
    exchange();
    until("its own socket", async || reached().await == 1.0).await;
    read_own(&pod).await;
    let said = agent.stderr().concat();
    let told = said.matches("cannot bind the socket's path again");
    assert_eq!(told.count(), 1, "{said}");
    assert!(!said.contains("another process answers"), "{said}");
}

#[tokio::test]
async fn where_the_path_is_lost_and_the_file_system_full_the_log_says_where_and_what_to_do() {
    needs_workloads!();
    let sandbox = Sandbox::start().await.expect("a sandbox");
    let directory = tempfile::tempdir().expect("a directory");
    let directory = directory.path().display();
    // Room for itself, the socket and one file, which the agent alone sees.
    let mount = format!("mount -t tmpfs -o nr_inodes=3,mode=0755 none {directory} && exec \"$@\"");
    let wrapper = ["unshare", "--mount", "sh", "-c", &*mount, "sh"];
    let socket = format!("{directory}/agent.sock");
    let change = |settings: AgentSettings| settings.set("listen.socket", &socket).wrapped(&wrapper);
    let agent = sandbox.agent_with(change).await.expect("an agent");
    let inside = PathBuf::from(format!("/proc/{}/root{directory}", agent.pid()));
    fs::write(inside.join("full"), "").expect("the last one");
    fs::rename(inside.join("agent.sock"), inside.join("aside")).expect("it is there");
    let told = agent.until_line("cannot bind the socket's path again");
    let line = told.await.expect("it notices");
    let part = format!("cannot listen beside listen.socket {socket}: ");
    assert!(line.contains(&part), "{line}");
    assert!(line.contains("make room on that file system"), "{line}");
    fs::remove_file(inside.join("full")).expect("it is there");
    let bound = agent.until_line("bound it again").await;
    bound.expect("there is room");
}

/// Listens on a path, and renames that to another one.
const IMPOSTOR: &str = "
import os, socket, sys, time
listener = socket.socket(socket.AF_UNIX)
listener.bind(sys.argv[1])
listener.listen()
os.rename(sys.argv[1], sys.argv[2])
time.sleep(60)
";

#[tokio::test]
async fn a_socket_that_another_process_put_in_its_place_is_told_with_the_process_and_its_pod() {
    needs_workloads!();
    let (sandbox, pod) = sandbox_with_a_pod().await;
    let agent = sandbox.agent().await.expect("an agent");
    let socket = sandbox.socket();
    let beside = socket.with_extension("other");
    let paths = [&beside, &socket].map(|path| path.to_str().expect("UTF-8"));
    let command = workload::Command::new("python3").args(&["-c", IMPOSTOR, paths[0], paths[1]]);
    let impostor = pod.workload.spawn(command).await.expect("python");
    let told = agent.until_line("another process answers on the socket's path");
    let line: Value = serde_json::from_str(&told.await.expect("it notices")).expect("JSON");
    let who = [&line["pid"], &line["pod_uid"]];
    let expected = [&json!(impostor.pid()), &json!(pod.object.uid())];
    assert_eq!(who, expected, "{line}");
    let reached = agent.metric("latchkey_socket_reached").await;
    assert_eq!(reached.expect("metrics"), 0.0);
}

#[tokio::test]
async fn no_secret_no_token_and_no_key_is_in_anything_that_the_agent_says() {
    needs_workloads!();
    let (sandbox, pod) = sandbox_with_a_pod().await;
    sandbox.aws_namespace("prod");
    let json = format!("{{\"user\":\"{CANARY}-user\"}}");
    sandbox.aws_secret("test/json", &json);
    let loud = |settings: AgentSettings| settings.env("RUST_LOG", "trace").set("cache.ttl", "1s");
    let agent = sandbox.agent_with(loud).await.expect("an agent");
    // What goes wrong, on every call that carries something secret, is where others have leaked. First the call for a
    // token, which nobody makes once there is a session.
    for fault in [kube::Fault::Garbage, kube::Fault::Answer(500, None)] {
        let what = format!("{fault:?}");
        let asked = || sandbox.kube.count("create", "serviceaccounts/token");
        let fails = || sandbox.kube.fail("create", "serviceaccounts/token", fault);
        must_meet(&what, (&pod, "test/json"), asked, fails).await;
        sandbox.kube.heal();
    }
    let spoiled = [
        Behaviour::CutBody,
        Behaviour::TruncatedBody,
        Behaviour::Html(200),
        Behaviour::InternalError,
        Behaviour::Disconnect,
        Behaviour::Throttle(None),
    ];
    for operation in [
        Operation::AssumeRoleWithWebIdentity,
        Operation::GetSecretValue,
    ] {
        for behaviour in spoiled.clone() {
            let what = format!("{operation:?} {behaviour:?}");
            let spoilt = || {
                let calls = sandbox.aws.calls_of(operation).into_iter();
                calls.filter(|call| !call.succeeded()).count()
            };
            let fault = || sandbox.aws.fault(Fault::on(operation, behaviour));
            must_meet(&what, (&pod, "test/json"), spoilt, fault).await;
        }
    }
    read_own(&pod).await;
    for path in [
        "/v1/secrets/test/json?key=user",
        "/v1/secrets/test/json?key=nobody",
        "/v1/secrets/test/database-password?key=x",
        "/v1/secrets/prod/database-password",
        "/v1/secrets/test/nothing",
        "/v1/secrets?limit=10",
        "/v1/identity",
        "/secretsmanager/get?secretId=test/database-password",
    ] {
        pod.get(path).await.expect("an answer");
    }
    let batch = Request::new("POST", "/v1/secrets:batchGet");
    let batch = batch.body(r#"{"names":["test/database-password","prod/database-password"]}"#);
    assert_eq!(pod.request(batch).await.expect("an answer").status, 200);
    let host = Workload::start(WorkloadSpec::host(&sandbox.socket()))
        .await
        .expect("a process");
    host.get("/v1/secrets/test/json").await.expect("an answer");
    agent
        .until_audit(|line| line["code"] == "not_attested")
        .await
        .expect("all is in the trail");

    let mut hidden: BTreeSet<String> = sandbox.aws.credentials().into_iter().flatten().collect();
    let tokens = sandbox
        .kube
        .tokens()
        .into_iter()
        .filter_map(|asked| asked.token);
    hidden.extend(tokens);
    assert!(hidden.len() > 3, "no session was given");
    hidden.extend([
        CANARY.to_owned(),
        "eyJ".to_owned(),
        sandbox.kube.bearer(AGENT),
    ]);
    let of_process = |file: &str| {
        let bytes = fs::read(format!("/proc/{}/{file}", agent.pid())).expect("root may read it");
        String::from_utf8_lossy(&bytes).into_owned()
    };
    let stderr = agent.stderr().join("\n");
    assert!(stderr.contains("\"level\":\"DEBUG\""), "it was not loud");
    // What libraries trace may hold what has no name here.
    for line in agent.stderr() {
        let told: serde_json::Value = serde_json::from_str(&line).expect("JSON");
        let target = told["target"].as_str().unwrap_or_default();
        let is_loud = matches!(told["level"].as_str(), Some("DEBUG" | "TRACE"));
        assert!(!is_loud || target.starts_with("latchkey"), "{line}");
    }
    let (_, metrics) = agent.admin("/metrics").await.expect("metrics");
    for (place, text) in [
        ("stderr", &stderr),
        ("the metrics", &metrics),
        ("its arguments", &of_process("cmdline")),
        ("its environment", &of_process("environ")),
    ] {
        for secret in &hidden {
            let line = text.lines().find(|line| line.contains(secret.as_str()));
            assert_eq!(line, None, "{secret} is in {place}");
        }
    }
}

#[tokio::test]
async fn another_process_of_the_same_user_cannot_look_into_the_agent() {
    needs_workloads!();
    let (sandbox, pod) = sandbox_with_a_pod().await;
    let powerless = |settings: AgentSettings| settings.wrapped(&POWERLESS);
    let agent = sandbox.agent_with(powerless).await.expect("an agent");
    read_own(&pod).await;
    let looks = |pid: u32, file: &str| {
        let mut look = Command::new(POWERLESS[0]);
        look.args(&POWERLESS[1..])
            .args(["head", "-c", "1", &format!("/proc/{pid}/{file}")]);
        look.output().expect("it runs").status.success()
    };
    let mut sleeper = Command::new(POWERLESS[0]);
    let sleeper = sleeper.args(&POWERLESS[1..]).args(["sleep", "60"]);
    let mut sleeper = sleeper.spawn().expect("it runs");
    // Until it has become `sleep` it still has the capabilities that it is about to put down.
    let status = format!("/proc/{}/status", sleeper.id());
    let is_powerless = || {
        let status = fs::read_to_string(&status).unwrap_or_default();
        let mut permitted = status
            .lines()
            .filter_map(|line| line.strip_prefix("CapPrm:"));
        permitted.any(|set| set.trim().bytes().all(|digit| digit == b'0'))
    };
    until("a process without capabilities", async || is_powerless()).await;
    let (of_other, of_agent) = (
        looks(sleeper.id(), "environ"),
        ["environ", "maps", "mem"].map(|file| looks(agent.pid(), file)),
    );
    sleeper.kill().expect("it was there");
    sleeper.wait().expect("it ends");
    assert!(
        of_other,
        "the test itself may not look into a process of its own"
    );
    assert_eq!(of_agent, [false; 3]);
}

#[tokio::test]
async fn a_crash_leaves_no_core() {
    needs_workloads!();
    let (sandbox, pod) = sandbox_with_a_pod().await;
    let dumping = |settings: AgentSettings| settings.wrapped(&DUMPING);
    let mut agent = sandbox.agent_with(dumping).await.expect("an agent");
    read_own(&pod).await;
    let limits = fs::read_to_string(format!("/proc/{}/limits", agent.pid())).expect("it runs");
    let core = limits
        .lines()
        .find(|line| line.starts_with("Max core file size"));
    let core: Vec<_> = core
        .expect("a limit")
        .split_whitespace()
        .skip(4)
        .take(2)
        .collect();
    assert_eq!(core, ["0", "0"]);
    agent.signal(Signal::SIGABRT).expect("it was there");
    let ended = agent.until_ended().await.expect("it is ended");
    assert_eq!(ended.signal(), Some(Signal::SIGABRT as i32));
    assert!(!ended.core_dumped());
}

#[tokio::test]
async fn copies_of_a_cached_value_go_from_memory_when_its_pod_is_deleted() {
    needs_workloads!();
    let (sandbox, pod) = sandbox_with_a_pod().await;
    let caching = |settings: AgentSettings| settings.set("cache.ttl", "10m");
    let agent = sandbox.agent_with(caching).await.expect("an agent");
    read_own(&pod).await;
    let cached = copies_in_memory(agent.pid(), &password("test"));
    pod.object.delete();
    // Values of a pod go with it, at the latest at the next round.
    let deadline = Instant::now() + Duration::from_secs(10);
    let mut left = copies_in_memory(agent.pid(), &password("test"));
    while left >= cached && Instant::now() < deadline {
        sleep(Duration::from_millis(100)).await;
        left = copies_in_memory(agent.pid(), &password("test"));
    }
    eprintln!("copies in memory: {cached} while cached, {left} after the pod is gone");
    assert!(left < cached, "{left} of {cached} copies are left");
}

#[tokio::test]
async fn nothing_is_written_to_disk() {
    needs_workloads!();
    let (sandbox, pod) = sandbox_with_a_pod().await;
    let temporary = sandbox.directory().join("tmp");
    fs::create_dir(&temporary).expect("a directory");
    let caching = |settings: AgentSettings| {
        settings
            .set("cache.ttl", "10m")
            .env("TMPDIR", temporary.display())
            .env("HOME", temporary.display())
    };
    let agent = sandbox.agent_with(caching).await.expect("an agent");
    read_own(&pod).await;
    assert_eq!(fs::read_dir(&temporary).expect("it is there").count(), 0);
    let written = fs::read_dir(sandbox.socket().parent().expect("a directory"));
    let written: Vec<_> = written
        .expect("it is there")
        .flatten()
        .map(|e| e.file_name())
        .collect();
    assert_eq!(written, ["agent.sock"]);
    // Nothing is open for writing but stderr, sockets and the like: no file, be it deleted or not.
    let open = fs::read_dir(format!("/proc/{}/fd", agent.pid())).expect("root may read it");
    let files: Vec<_> = open
        .flatten()
        .filter(|fd| fs::metadata(fd.path()).is_ok_and(|file| file.is_file()))
        .filter_map(|fd| fs::read_link(fd.path()).ok())
        .filter(|file| !file.starts_with("/proc"))
        .collect();
    assert_eq!(files, Vec::<PathBuf>::new());
}
