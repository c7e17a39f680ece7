//! AWS from a machine: where its own credentials come from, and what is said where they do not do.

use super::{are_gone, read};
use std::fs;
use std::path::Path;
use std::time::{Duration, Instant};
use testkit::agent::AgentSettings;
use testkit::machine::{Machine, with_principal};

/// The settings of an agent to whose environment AWS's credentials have not been given.
fn without_credentials(machine: &Machine) -> AgentSettings {
    let mut settings = machine.settings().expect("settings");
    settings
        .environment
        .retain(|name, _| !name.starts_with("AWS_"));
    settings.env("AWS_EC2_METADATA_DISABLED", "true")
}

/// The same with a profile whose credentials this command prints.
fn by_process(machine: &Machine, program: &str, argument: &Path) -> AgentSettings {
    let config = machine.directory().join("config");
    let command = format!("{program} {}", argument.display());
    let profile = format!("[profile work]\ncredential_process = {command}\n");
    fs::write(&config, profile).expect("a file");
    without_credentials(machine)
        .env("AWS_CONFIG_FILE", config.display())
        .env("AWS_PROFILE", "work")
}

#[tokio::test]
async fn the_machines_own_credentials_come_from_a_credential_process_too() {
    needs_workloads!();
    let machine = Machine::start().await.expect("a machine");
    machine.secret("machine/token", "of the machine");
    let [access_key, secret_key, token] = machine.credentials();
    let answer = serde_json::json!({
        "Version": 1, "AccessKeyId": access_key, "SecretAccessKey": secret_key, "SessionToken": token,
    });
    let at = |name: &str| machine.directory().join(name);
    fs::write(at("credentials.json"), answer.to_string()).expect("a file");
    let settings = by_process(&machine, "cat", &at("credentials.json"));
    let settings = with_principal(settings, 0, 0, "me", "machine");
    let _agent = settings.start_ready().await.expect("an agent");
    let process = machine.process(0).await.expect("a process");
    let answer = read(&process, "machine/token").await;
    answer.must_be_ok();
    assert_eq!(answer.json()["value"], "of the machine");
    let identity = process.get("/v1/identity").await.expect("an answer").json();
    assert_eq!(identity["roles"]["aws"], "machine");
    assert_eq!(identity["pod_uid"], "");
    // What listens on loopback here is everybody's.
    assert_eq!(identity["host_network"], true);
}

#[tokio::test]
async fn credentials_of_the_machine_that_have_expired_are_not_blamed_on_the_clock_alone() {
    needs_workloads!();
    let machine = Machine::start().await.expect("a machine");
    let answer = serde_json::json!({
        "Version": 1, "AccessKeyId": "a", "SecretAccessKey": "b", "SessionToken": "c",
        "Expiration": "2026-01-01T00:00:00Z",
    });
    let file = machine.directory().join("credentials.json");
    fs::write(&file, answer.to_string()).expect("a file");
    let settings = by_process(&machine, "cat", &file);
    let settings = with_principal(settings, 0, 0, "me", "machine");
    let _agent = settings.start_ready().await.expect("an agent");
    let process = machine.process(0).await.expect("a process");
    let answer = read(&process, "machine/token").await;
    answer.must_be_refused(503, "unavailable");
    let told = answer.json()["error"].to_string();
    assert!(
        told.contains("this machine's credentials have expired: sign in again"),
        "{told}"
    );
}

#[tokio::test]
async fn a_credential_process_that_hangs_is_killed_and_the_request_ends_in_time() {
    needs_workloads!();
    let machine = Machine::start().await.expect("a machine");
    let at = |name: &str| machine.directory().join(name);
    let script = format!("sleep 1000 & echo $! $$ >>{}\nwait\n", at("pids").display());
    fs::write(at("hang"), script).expect("a file");
    let settings = by_process(&machine, "sh", &at("hang")).set("backends.aws.timeout", "6s");
    let settings = with_principal(settings, 0, 0, "me", "machine");
    let _agent = settings.start_ready().await.expect("an agent");
    let process = machine.process(0).await.expect("a process");
    let begun = Instant::now();
    let answer = read(&process, "machine/token").await;
    answer.must_be_refused(503, "unavailable");
    assert!(
        begun.elapsed() < Duration::from_secs(9),
        "{:?}",
        begun.elapsed()
    );
    are_gone(&at("pids")).await;
}

#[tokio::test]
async fn a_machine_without_credentials_says_so_and_stays_ready() {
    needs_workloads!();
    let machine = Machine::start().await.expect("a machine");
    let settings = without_credentials(&machine);
    let settings = with_principal(settings, 0, 0, "me", "machine");
    let agent = settings.start_ready().await.expect("an agent");
    let process = machine.process(0).await.expect("a process");
    let answer = read(&process, "machine/token").await;
    answer.must_be_refused(503, "unavailable");
    assert!(
        answer.text().contains("no AWS credentials"),
        "{}",
        answer.text()
    );
    assert_eq!(agent.admin("/readyz").await.expect("an answer").0, 200);
}

#[tokio::test]
async fn a_role_that_does_not_trust_the_machine_is_denied() {
    needs_workloads!();
    let machine = Machine::start().await.expect("a machine");
    let settings = machine.settings().expect("settings");
    let absent = machine.aws.role_arn("absent");
    let settings = with_principal(settings, 0, 0, "me", &absent);
    let _agent = settings.start_ready().await.expect("an agent");
    let process = machine.process(0).await.expect("a process");
    let answer = read(&process, "machine/token").await;
    answer.must_be_refused(403, "denied");
    assert!(
        answer.text().contains("this machine's credentials"),
        "{}",
        answer.text()
    );
}
