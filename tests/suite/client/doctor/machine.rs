//! `latchkey doctor` outside of a cluster.

use super::found;
use crate::client::ended;
use serde_json::Value;
use std::fs;
use std::path::Path;
use testkit::binaries::sibling_binary;
use testkit::machine::{ALICE, MALLORY, Machine, becoming, run_by};
use testkit::sandbox::CANARY;
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::UnixListener;
use tokio::process::Command;

/// The command outside of a cluster, with no variable but PATH and the socket's.
fn doctor_of(uid: u32, socket: &Path, arguments: &[&str]) -> Command {
    let mut command = Command::new("sh");
    command
        .args(["-c", &becoming(uid)])
        .arg(sibling_binary("sandbox-latchkey").expect("the command"))
        .args(["doctor", "--json"])
        .args(arguments)
        .env_clear()
        .env("PATH", "/usr/local/bin:/usr/bin:/bin")
        .env("LATCHKEY_SOCKET", socket);
    command
}

/// Whether a report sends nobody to a cluster that is not there.
#[track_caller]
fn knows_no_cluster(report: &Value) {
    let text = report.to_string();
    for word in [
        "kubectl",
        "pod",
        "node",
        "service account",
        "mounted",
        "0755",
    ] {
        assert!(!text.contains(word), "{word}: {report:#}");
    }
}

#[tokio::test]
async fn outside_of_a_cluster_it_says_what_is_to_be_done_there() {
    needs_workloads!();
    let machine = Machine::start().await.expect("a machine");
    let runtime = machine.home("runtime", ALICE).expect("a directory");
    let secrets = machine.home("secrets", ALICE).expect("a directory");
    fs::write(secrets.join("token"), CANARY).expect("a file");
    let socket = runtime.join("latchkey/agent.sock");

    let nobody = found(doctor_of(ALICE, &socket, &[])).await;
    nobody.is("socket", "agent_down", &["no agent runs on this machine"]);
    assert_eq!(nobody.code, Some(5));
    knows_no_cluster(&nobody.report);
    let long = runtime.join("x".repeat(108));
    let long = found(doctor_of(ALICE, &long, &[])).await;
    long.is("socket", "unreachable", &["at most 107"]);

    let settings = machine.settings_of_user(&runtime, &secrets);
    let settings = settings.expect("settings");
    let agent = run_by(settings, ALICE).start_ready().await;
    let mut agent = agent.expect("an agent");

    let well = ended(doctor_of(ALICE, &socket, &["token"])).await;
    assert_eq!(well.code, Some(0), "{well:?}");
    let report: Value = serde_json::from_str(&well.stdout).expect("JSON");
    knows_no_cluster(&report);
    assert!(well.stdout.contains("uid 41001 is dev/me"), "{report:#}");
    // A folder gives no role.
    assert!(!well.stdout.contains("exchange"), "{report:#}");
    let none = found(doctor_of(ALICE, &socket, &["none"])).await;
    none.is("secret", "no_such_secret", &[]);
    knows_no_cluster(&none.report);
    let other = found(doctor_of(MALLORY, &socket, &[])).await;
    other.is("socket", "no_permission", &["Permission denied"]);
    assert_eq!(other.code, Some(5));
    knows_no_cluster(&other.report);
    assert!(other.report.to_string().contains("uid 41003"), "{other:?}");
    let root = found(doctor_of(0, &socket, &[])).await;
    root.is("attestation", "not_attested", &[]);
    knows_no_cluster(&root.report);
    assert!(root.report.to_string().contains("[[local.workload]]"));

    let pid = nix::unistd::Pid::from_raw(i32::try_from(agent.pid()).expect("a pid"));
    nix::sys::signal::kill(pid, nix::sys::signal::Signal::SIGKILL).expect("a signal");
    agent.until_ended().await.expect("it ends");
    let died = found(doctor_of(ALICE, &socket, &[])).await;
    died.is("socket", "agent_down", &["nobody listens"]);
    knows_no_cluster(&died.report);
}

#[tokio::test]
async fn where_no_agent_is_it_names_each_place_that_was_looked_at() {
    needs_workloads!();
    let program = sibling_binary("sandbox-latchkey").expect("the command");
    let run_after = async |before: &str, variables: &[(&str, &str)], arguments: &str| {
        // Whatever runs on this machine.
        let script = format!("mount -t tmpfs none /run && {before} && exec \"$0\" {arguments}");
        let mut command = Command::new("unshare");
        command
            .args(["--mount", "sh", "-c", &script])
            .arg(&program)
            .env_clear()
            .env("PATH", "/usr/local/bin:/usr/bin:/bin")
            .envs(variables.iter().copied());
        ended(command).await
    };
    let run = async |variables: &[(&str, &str)], arguments: &str| {
        run_after("true", variables, arguments).await
    };
    let (user, pod) = (
        ("XDG_RUNTIME_DIR", "/run/user/7"),
        ("KUBERNETES_SERVICE_HOST", "10.96.0.1"),
    );
    let here = "/run/latchkey/agent.sock";
    let get = run(&[user], "get x").await;
    get.failed(5, here);
    get.failed(5, "/run/user/7/latchkey/agent.sock");
    let doctor = run(&[user], "doctor").await;
    assert!(doctor.stdout.contains("/run/user/7/"), "{doctor:?}");
    run(&[], "get x").await.failed(5, "XDG_RUNTIME_DIR");
    let pod = run(&[pod], "get x").await;
    pod.failed(5, here);
    assert!(!pod.stderr.contains("XDG_RUNTIME_DIR"), "{pod:?}");
    let told = run(&[user], "get x --socket /run/x.sock").await;
    told.failed(5, "/run/x.sock");
    assert!(!told.stderr.contains("/run/user"), "{told:?}");
    // The machine's own socket is asked first, whoever listens there.
    let both = "mkdir -p /run/latchkey /run/user/7/latchkey && \
                touch /run/latchkey/agent.sock /run/user/7/latchkey/agent.sock";
    let hidden = run_after(both, &[user], "doctor").await;
    let told = "LATCHKEY_SOCKET=/run/user/7/latchkey/agent.sock";
    assert!(hidden.stdout.contains(told), "{hidden:?}");
    let broken = run(&[], "get 'x\ny'").await;
    broken.failed(5, "latchkey: x\\ny: ");
}

#[tokio::test]
async fn what_is_there_instead_of_an_agent_is_told_with_what_to_do() {
    let directory = tempfile::tempdir().expect("a directory");
    let at = |name: &str| directory.path().join(name);
    fs::write(at("file"), "").expect("a file");
    let _hangs = UnixListener::bind(at("hangs")).expect("a socket");
    let stranger = UnixListener::bind(at("stranger")).expect("a socket");
    tokio::spawn(async move {
        let answer = b"HTTP/1.1 404 Not Found\r\nContent-Length: 6\r\n\r\n<html>";
        while let Ok((mut stream, _)) = stranger.accept().await {
            let _ = stream.read(&mut [0; 1000]).await;
            let _ = stream.write_all(answer).await;
        }
    });
    let is_elsewhere = "if the agent's socket is elsewhere: --socket PATH";
    for (name, step, cause, text, on_machine, in_pod) in [
        (
            "file",
            "socket",
            "no_socket",
            "is no socket",
            is_elsewhere,
            is_elsewhere,
        ),
        (
            "stranger",
            "agent",
            "not_an_agent",
            "not latchkey: status 404",
            is_elsewhere,
            is_elsewhere,
        ),
        (
            "hangs",
            "agent",
            "no_answer",
            "in time",
            "the agent's stderr",
            "kubectl -n latchkey logs",
        ),
    ] {
        for (variable, next) in [("NOTHING", on_machine), ("KUBERNETES_SERVICE_HOST", in_pod)] {
            let timeout = if name == "hangs" { "1s" } else { "20s" };
            let mut doctor = doctor_of(0, &at(name), &["--timeout", timeout]);
            doctor.env(variable, "10.96.0.1");
            let told = found(doctor).await;
            told.is(step, cause, &[text]);
            assert_eq!(told.code, Some(5), "{name}");
            assert!(told.report.to_string().contains(next), "{told:?}");
        }
    }
}
