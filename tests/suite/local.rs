//! Outside of a cluster: callers by their uids, on a machine whose own credentials take on each one's role.

mod aws;
mod azure;
mod google;

use crate::code;
use std::fs;
use std::os::unix::fs::{MetadataExt, PermissionsExt};
use std::path::Path;
use std::time::{Duration, Instant};
use testkit::agent::{AgentProcess, AgentSettings};
use testkit::aws::Operation;
use testkit::machine::{ALICE, BOB, MALLORY, Machine, run_by, with_principal};
use testkit::sandbox::container_id;
use testkit::until;
use testkit::workload::{Hierarchies, Place, Request, Response, Workload, WorkloadSpec};

/// The first of the uids that a workload's own user namespace maps to.
const MAPPED: u32 = 200_000;

/// A machine with one secret each for alice and bob, and an agent that serves them.
struct Scene {
    machine: Machine,
    agent: AgentProcess,
}

impl Scene {
    async fn set() -> Self {
        Self::set_with(|settings| settings).await
    }

    async fn set_with(change: impl FnOnce(AgentSettings) -> AgentSettings) -> Self {
        let machine = Machine::start().await.expect("a machine");
        let mut settings = machine.settings().expect("settings");
        for (number, (uid, name)) in [(ALICE, "alice"), (BOB, "bob"), (MAPPED, "mapped")]
            .into_iter()
            .enumerate()
        {
            let role = machine.role(name, &format!("{name}/*"));
            machine.secret(&format!("{name}/token"), &value_of(name));
            settings = with_principal(settings, number, uid, name, &role);
        }
        let agent = change(settings).start_ready().await.expect("an agent");
        Self { machine, agent }
    }

    async fn refusal_of(&self, spec: WorkloadSpec) -> (Response, String) {
        let workload = Workload::start(spec).await.expect("a process");
        let answer = workload.get("/v1/secrets/alice/token").await;
        let answer = answer.expect("an answer");
        let line = self
            .agent
            .until_audit(|line| line["code"] == "not_attested")
            .await
            .expect("why is in the trail");
        (
            answer,
            line["reason"].as_str().unwrap_or_default().to_owned(),
        )
    }
}

fn value_of(name: &str) -> String {
    format!("hunter2-of-{name}")
}

async fn read(workload: &Workload, name: &str) -> Response {
    let path = format!("/v1/secrets/{name}");
    workload.get(&path).await.expect("an answer")
}

/// Waits until the processes whose numbers a program has written into `pids` are no more.
async fn are_gone(pids: &Path) {
    let pids = fs::read_to_string(pids).expect("it was started");
    for pid in pids.split_whitespace() {
        let stat = format!("/proc/{pid}/stat");
        // One that nobody has waited for yet runs no more.
        let runs = || fs::read_to_string(&stat).is_ok_and(|stat| !stat.contains(") Z"));
        until("its end", async || !runs()).await;
    }
}

#[tokio::test]
async fn each_user_reads_what_its_own_role_may_and_nothing_else() {
    needs_workloads!();
    let scene = Scene::set().await;
    for (uid, own, other) in [(ALICE, "alice", "bob"), (BOB, "bob", "alice")] {
        let process = scene.machine.process(uid).await.expect("a process");
        let answer = read(&process, &format!("{own}/token")).await;
        answer.must_be_ok();
        assert_eq!(answer.json()["value"], value_of(own));
        let refused = read(&process, &format!("{other}/token")).await;
        refused.must_be_refused(403, "denied");
        let line = scene
            .agent
            .until_audit(|line| line["secret"] == format!("{own}/token") && line["uid"] == uid)
            .await
            .expect("a line");
        assert_eq!(line["namespace"], "dev");
        assert_eq!(line["service_account"], own);
        assert!(line["pod"].is_null() && line["pod_uid"].is_null(), "{line}");
    }
    let names: Vec<_> = scene
        .machine
        .aws
        .calls_of(Operation::AssumeRole)
        .into_iter()
        .filter_map(|call| call.session_name)
        .collect();
    assert_eq!(names, ["local.dev.alice", "local.dev.bob"]);
}

#[tokio::test]
async fn two_users_read_a_thousand_times_without_one_mix_up() {
    needs_workloads!();
    let scene = Scene::set().await;
    let reads = |uid, own: &'static str| {
        let machine = &scene.machine;
        async move {
            let process = machine.process(uid).await.expect("a process");
            process.connect("kept").await.expect("a connection");
            let path = format!("/v1/secrets/{own}/token");
            for number in 0..500 {
                let answer = process.send_on("kept", Request::get(&path)).await;
                let answer = answer.expect("an answer");
                assert_eq!(
                    answer.json()["value"],
                    value_of(own),
                    "read {number} of {own}"
                );
            }
        }
    };
    tokio::join!(reads(ALICE, "alice"), reads(BOB, "bob"));
}

#[tokio::test]
async fn a_user_who_is_not_in_the_configuration_is_refused() {
    needs_workloads!();
    let scene = Scene::set().await;
    let (answer, reason) = scene.refusal_of(scene.machine.process_of(MALLORY)).await;
    answer.must_be_refused(403, "not_attested");
    assert_eq!(reason, "unmapped_uid");
    // Not even root, who is nobody here.
    let root = scene.machine.process(0).await.expect("a process");
    let answer = read(&root, "alice/token").await;
    answer.must_be_refused(403, "not_attested");
}

#[tokio::test]
async fn a_containers_process_is_nobody_whatever_its_uid_is() {
    needs_workloads!();
    let parent = Workload::unique_parent();
    let id = container_id();
    for (path, reason) in [
        (format!("{parent}/docker/{id}"), "container"),
        (
            format!("{parent}/machine.slice/libpod-{id}.scope"),
            "container",
        ),
        (
            format!(
                "{parent}/kubepods/burstable/pod{}/{id}",
                uuid::Uuid::new_v4()
            ),
            "pod",
        ),
    ] {
        let scene = Scene::set().await;
        let spec = WorkloadSpec {
            place: Place::Path(path.clone(), Hierarchies::V2),
            ..scene.machine.process_of(ALICE)
        };
        let (answer, told) = scene.refusal_of(spec).await;
        assert_eq!(
            (answer.status, &*code(&answer)),
            (403, "not_attested"),
            "{path}"
        );
        assert_eq!(told, reason, "{path}");
        assert!(!answer.text().contains("container"), "{}", answer.text());
    }
}

#[tokio::test]
async fn a_process_of_another_user_namespace_is_nobody_whatever_its_uid_is() {
    needs_workloads!();
    let scene = Scene::set().await;
    let spec = WorkloadSpec {
        own_users: true,
        uid: 0,
        gid: 0,
        ..scene.machine.process_of(MAPPED)
    };
    // Its uid is one that is served, so only the namespace speaks against it.
    let (answer, reason) = scene.refusal_of(spec).await;
    answer.must_be_refused(403, "not_attested");
    assert_eq!(reason, "other_user_namespace");
    let ordinary = scene.machine.process(MAPPED).await.expect("a process");
    assert_eq!(read(&ordinary, "mapped/token").await.status, 200);
}

#[tokio::test]
async fn a_process_of_another_pid_namespace_is_nobody_whatever_its_uid_is() {
    needs_workloads!();
    let scene = Scene::set().await;
    let spec = WorkloadSpec {
        own_pids: true,
        ..scene.machine.process_of(ALICE)
    };
    let (answer, reason) = scene.refusal_of(spec).await;
    answer.must_be_refused(403, "not_attested");
    assert_eq!(reason, "other_pid_namespace");
}

/// To an agent with processes of its own alone, the kernel names everybody else by the number 0.
#[tokio::test]
async fn a_process_that_the_agent_cannot_see_is_nobody_whatever_its_uid_is() {
    needs_workloads!();
    let own_pids = ["unshare", "--pid", "--fork", "--kill-child", "--mount-proc"];
    let scene = Scene::set_with(|settings| settings.wrapped(&own_pids)).await;
    let (answer, reason) = scene.refusal_of(scene.machine.process_of(ALICE)).await;
    answer.must_be_refused(403, "not_attested");
    assert_eq!(reason, "outside_pid_namespace");
}

#[tokio::test]
async fn a_process_that_moves_into_a_container_loses_its_connection() {
    needs_workloads!();
    let scene = Scene::set().await;
    let process = scene.machine.process(ALICE).await.expect("a process");
    process.connect("kept").await.expect("a connection");
    let request = || Request::get("/v1/secrets/alice/token");
    let answer = process.send_on("kept", request()).await.expect("an answer");
    answer.must_be_ok();
    let path = format!("{}/docker/{}", Workload::unique_parent(), container_id());
    process.move_to(&path).expect("root may");
    let deadline = Instant::now() + Duration::from_secs(5);
    while process
        .send_on("kept", request())
        .await
        .expect("an answer")
        .status
        == 200
    {
        assert!(Instant::now() < deadline, "it was not noticed");
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
}

#[tokio::test]
async fn an_ordinary_user_runs_an_agent_that_only_it_can_reach() {
    needs_workloads!();
    let machine = Machine::start().await.expect("a machine");
    let runtime = machine.home("runtime", ALICE).expect("a directory");
    let secrets = machine.home("secrets", ALICE).expect("a directory");
    fs::write(secrets.join("token"), value_of("alice")).expect("a file");
    fs::set_permissions(secrets.join("token"), PermissionsExt::from_mode(0o644)).expect("ours");
    let socket = runtime.join("latchkey/agent.sock");
    let settings = machine.settings_of_user(&runtime, &secrets);
    let settings = settings.expect("settings");
    let _agent = run_by(settings, ALICE)
        .start_ready()
        .await
        .expect("an agent");
    let mode = |path: &std::path::Path| {
        let metadata = fs::metadata(path).expect("it is there");
        (metadata.uid(), metadata.permissions().mode() & 0o777)
    };
    assert_eq!(mode(&socket), (ALICE, 0o600));
    assert_eq!(mode(&runtime.join("latchkey")), (ALICE, 0o700));

    let of = |uid| WorkloadSpec {
        socket: socket.clone(),
        ..machine.process_of(uid)
    };
    let own = Workload::start(of(ALICE)).await.expect("a process");
    let answer = read(&own, "token").await;
    answer.must_be_ok();
    assert_eq!(answer.json()["value"], value_of("alice"));
    let other = Workload::start(of(MALLORY)).await.expect("a process");
    other
        .get("/v1/secrets/token")
        .await
        .expect_err("it cannot connect");
    let root = Workload::start(of(0)).await.expect("a process");
    let answer = read(&root, "token").await;
    answer.must_be_refused(403, "not_attested");
}

/// Users whom no cloud keeps apart: a store does, by their namespaces' folders.
#[tokio::test]
async fn users_who_are_nothing_in_a_cloud_read_their_own_folder_of_a_store() {
    needs_workloads!();
    let machine = Machine::start().await.expect("a machine");
    let secrets = machine.home("secrets", 0).expect("a directory");
    let mut settings = machine.settings().expect("settings");
    settings = settings.set("backends.file.path", secrets.display());
    for (number, (uid, name)) in [(ALICE, "alice"), (BOB, "bob")].into_iter().enumerate() {
        machine.secret(&format!("{name}/token"), &value_of(name));
        fs::create_dir(secrets.join(name)).expect("a folder");
        fs::write(secrets.join(name).join("token"), value_of(name)).expect("a file");
        settings = with_principal(settings, number, uid, "me", "none")
            .set(&format!("local.workload.{number}.namespace"), name);
    }
    let (status, out, stderr) = settings.run_to_end(&["check"]).await.expect("it ends");
    assert!(status.success(), "{out}{stderr}");
    assert!(out.contains("uid 41001: nothing at aws"), "{out}");
    assert!(out.contains("folder alice/ at file"), "{out}");
    let _agent = settings.start_ready().await.expect("an agent");
    for (uid, own, other) in [(ALICE, "alice", "bob"), (BOB, "bob", "alice")] {
        let process = machine.process(uid).await.expect("a process");
        let answer = read(&process, &format!("{own}/token?backend=file")).await;
        answer.must_be_ok();
        assert_eq!(answer.json()["value"], value_of(own));
        let refused = read(&process, &format!("{other}/token?backend=file")).await;
        refused.must_be_refused(403, "denied");
        let refused = read(&process, &format!("{own}/token")).await;
        refused.must_be_refused(403, "no_role");
    }
}

#[tokio::test]
async fn a_socket_directory_that_others_may_enter_is_refused_where_only_the_user_is_served() {
    needs_workloads!();
    let machine = Machine::start().await.expect("a machine");
    let directory = machine.socket().parent().expect("a parent").to_owned();
    fs::create_dir(&directory).expect("a directory");
    fs::set_permissions(&directory, PermissionsExt::from_mode(0o755)).expect("ours");
    let settings = machine.settings().expect("settings");
    let settings = with_principal(settings, 0, 0, "me", "machine");
    let (status, _, stderr) = settings.run_to_end(&[]).await.expect("it ends");
    assert_eq!(status.code(), Some(69), "{stderr}");
    assert!(
        stderr.contains("a directory of its own, mode 0700"),
        "{stderr}"
    );
}

#[tokio::test]
async fn a_socket_directory_that_the_agents_user_may_not_make_or_others_not_enter_is_named() {
    needs_workloads!();
    let machine = Machine::start().await.expect("a machine");
    let closed = machine.home("closed", ALICE).expect("a directory");
    let settings = || {
        let settings = machine.settings().expect("settings");
        with_principal(settings, 0, BOB, "me", "machine")
    };
    let elsewhere = run_by(
        settings().set("listen.socket", "/run/none-of-alices/a.sock"),
        ALICE,
    );
    let (status, _, stderr) = elsewhere.run_to_end(&[]).await.expect("it ends");
    assert_eq!(status.code(), Some(69), "{stderr}");
    assert!(
        stderr.contains("install -d -o 41001 -m 0755 '/run/none-of-alices'"),
        "{stderr}"
    );
    let inside = settings().set("listen.socket", closed.join("run/a.sock").display());
    let (_, out, stderr) = run_by(inside, ALICE)
        .run_to_end(&["check"])
        .await
        .expect("it ends");
    let told = format!("others may not enter {}", closed.display());
    assert!(out.contains(&told), "{out}{stderr}");
}

#[tokio::test]
async fn a_role_that_is_no_backends_stops_the_start() {
    needs_workloads!();
    let machine = Machine::start().await.expect("a machine");
    let settings = machine.settings().expect("settings");
    let settings = with_principal(settings, 0, 0, "me", "arn:aws:iam::1:role/x");
    let (status, _, stderr) = settings.run_to_end(&[]).await.expect("it ends");
    assert_eq!(status.code(), Some(78), "{stderr}");
    assert!(stderr.contains("local.workload.0.role"), "{stderr}");
    assert_eq!(stderr.trim().lines().count(), 1, "{stderr}");
}

#[tokio::test]
async fn check_asks_nothing_of_a_cluster() {
    needs_workloads!();
    let machine = Machine::start().await.expect("a machine");
    let settings = machine.settings().expect("settings");
    let settings = with_principal(settings, 0, 0, "me", "machine");
    let (status, out, stderr) = settings.run_to_end(&["check"]).await.expect("it ends");
    assert!(status.success(), "{out}{stderr}");
    let line = "ok       uid 0: machine at aws";
    assert!(out.lines().any(|other| other == line), "{out}");
    for word in ["kubepods", "API server", "host processes", "missing"] {
        assert!(!out.contains(word), "{out}");
    }
}
