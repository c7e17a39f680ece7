//! Azure from a machine: a client secret, a developer's `az`, and the machine's managed identities.

use super::{read, value_of};
use std::time::{Duration, Instant};
use testkit::agent::{AgentProcess, AgentSettings};
use testkit::azure::{Access, FakeAzure, Operation, SecretSpec};
use testkit::clouds::azure::TENANT;
use testkit::machine::{ALICE, BOB, Machine, with_principal};

const DEVELOPER: &str = "5d2e1f43-7c5e-4f5b-9d7b-0123456789ab";
const VAULT: &str = "local-vault";

/// A machine before a vault with one secret for each of its principals.
struct Scene {
    machine: Machine,
    azure: FakeAzure,
}

impl Scene {
    async fn set() -> Self {
        let machine = Machine::start().await.expect("a machine");
        let azure = FakeAzure::start().await.expect("a cloud");
        azure.make_vault(VAULT, TENANT, Access::Roles);
        for name in ["alice", "bob", "machine"] {
            let secret = SecretSpec::text(value_of(name));
            azure.put_secret(VAULT, &format!("{name}--token"), secret);
        }
        Self { machine, azure }
    }

    fn admit(&self, client: &str, name: &str) {
        let secret = format!("{name}--token");
        self.azure.admit(VAULT, client, Some(&secret));
    }

    /// An agent whose only backend is the vault, which therefore needs no name.
    fn settings(&self) -> AgentSettings {
        let settings = self.machine.settings_without_cloud().expect("settings");
        let directory = self.machine.directory();
        self.azure
            .in_reach(settings, directory, &[VAULT])
            .expect("files")
            .set("backends.azure.vault_url", self.azure.vault_url(VAULT))
            // A debug build on a busy machine begins slowly.
            .set("backends.azure.timeout", "8s")
            .env("HOME", directory.display())
    }

    /// The same with the programs of the machine's directory before all others.
    fn with_programs(&self) -> AgentSettings {
        let settings = self.settings();
        let path = &settings.environment["PATH"];
        let path = format!("{}:{path}", self.machine.directory().display());
        settings.env("PATH", path)
    }

    async fn start(&self, settings: AgentSettings) -> AgentProcess {
        settings.start_ready().await.expect("an agent")
    }

    async fn is_read_by(&self, uid: u32, name: &str) {
        let process = self.machine.process(uid).await.expect("a process");
        let answer = read(&process, &format!("{name}/token")).await;
        answer.must_be_ok();
        assert_eq!(answer.json()["value"], value_of(name));
    }
}

#[tokio::test]
async fn a_developer_is_who_az_has_signed_in() {
    needs_workloads!();
    let scene = Scene::set().await;
    let directory = scene.machine.directory();
    let signed_in = scene.azure.sign_in(TENANT, DEVELOPER, directory, "");
    signed_in.expect("a program");
    scene.admit(DEVELOPER, "machine");
    let settings = with_principal(scene.with_programs(), 0, 0, "me", "machine");
    let agent = scene.start(settings).await;
    scene.is_read_by(0, "machine").await;
    let process = scene.machine.process(0).await.expect("a process");
    let refused = read(&process, "alice/token").await;
    refused.must_be_refused(403, "denied");
    for token in scene.azure.access_tokens() {
        assert!(!agent.stderr().join("\n").contains(&token));
    }
}

#[tokio::test]
async fn a_ci_job_is_the_application_whose_secret_is_in_its_environment() {
    needs_workloads!();
    let scene = Scene::set().await;
    let secret = scene.azure.put_secret_app(TENANT, DEVELOPER);
    scene.admit(DEVELOPER, "machine");
    let settings = scene
        .settings()
        .env("AZURE_TENANT_ID", TENANT)
        .env("AZURE_CLIENT_ID", DEVELOPER)
        .env("AZURE_CLIENT_SECRET", &secret);
    let settings = with_principal(settings, 0, 0, "me", "machine");
    let agent = scene.start(settings).await;
    scene.is_read_by(0, "machine").await;
    assert!(!agent.stderr().join("\n").contains(&secret));
}

#[tokio::test]
async fn each_user_reads_what_its_own_managed_identity_may_and_nothing_else() {
    needs_workloads!();
    let scene = Scene::set().await;
    let names = ["machine", "alice", "bob"];
    let clients = names.map(|_| uuid::Uuid::new_v4().to_string());
    let mut settings = scene.settings();
    for (name, client) in names.iter().zip(&clients) {
        scene.admit(client, name);
        for (variable, value) in scene.azure.assign(TENANT, client) {
            settings = settings.env(variable, value);
        }
    }
    settings = with_principal(settings, 0, 0, "machine", "machine");
    settings = with_principal(settings, 1, ALICE, "alice", &clients[1].to_uppercase());
    settings = with_principal(settings, 2, BOB, "bob", &clients[2]);
    let _agent = scene.start(settings).await;
    for (uid, own, other) in [
        (ALICE, "alice", "bob"),
        (BOB, "bob", "alice"),
        (0, "machine", "bob"),
    ] {
        scene.is_read_by(uid, own).await;
        let process = scene.machine.process(uid).await.expect("a process");
        let refused = read(&process, &format!("{other}/token")).await;
        refused.must_be_refused(403, "denied");
    }
    let asked = scene.azure.calls_of(Operation::MachineToken);
    assert_eq!(asked.len(), 3, "{asked:?}");
}

#[tokio::test]
async fn an_az_that_hangs_is_killed_and_the_request_ends_in_time() {
    needs_workloads!();
    let scene = Scene::set().await;
    let directory = scene.machine.directory();
    let pids = directory.join("pids");
    let hang = format!("sleep 1000 & echo $! $$ >>{}\nwait", pids.display());
    let signed_in = scene.azure.sign_in(TENANT, DEVELOPER, directory, &hang);
    signed_in.expect("a program");
    let settings = scene.with_programs().set("backends.azure.timeout", "6s");
    let settings = with_principal(settings, 0, 0, "me", "machine");
    let agent = scene.start(settings).await;
    let process = scene.machine.process(0).await.expect("a process");
    let begun = Instant::now();
    let answer = read(&process, "machine/token").await;
    answer.must_be_refused(503, "unavailable");
    assert!(
        answer.text().contains("no Azure credentials"),
        "{}",
        answer.text()
    );
    assert!(
        begun.elapsed() < Duration::from_secs(9),
        "{:?}",
        begun.elapsed()
    );
    super::are_gone(&pids).await;
    drop(agent);
}
