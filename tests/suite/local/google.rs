//! Google Cloud from a machine: Application Default Credentials, and service accounts that they take on.

use super::{read, value_of};
use serde_json::{Value, json};
use std::fs;
use testkit::agent::{AgentProcess, AgentSettings};
use testkit::gcp::{ACCESSOR, FakeGcp, NUMBER, Operation, PROJECT, ProviderSpec};
use testkit::jwt::{Bound, Claims, Issuer};
use testkit::machine::{ALICE, BOB, Machine, with_principal};

const CREATOR: &str = "roles/iam.serviceAccountTokenCreator";

/// A machine before a project with one secret for each of its principals.
struct Scene {
    machine: Machine,
    gcp: FakeGcp,
}

impl Scene {
    async fn set() -> Self {
        let machine = Machine::start().await.expect("a machine");
        let gcp = FakeGcp::start().await.expect("a cloud");
        for name in ["alice", "bob", "machine"] {
            gcp.put_secret(&format!("{name}--token"), value_of(name).as_bytes());
        }
        Self { machine, gcp }
    }

    /// Lets a member read what is one name's.
    fn admit(&self, member: &str, name: &str) {
        let own = format!("resource.name.startsWith('projects/{NUMBER}/secrets/{name}--')");
        self.gcp.bind_project(ACCESSOR, member, Some(&own));
    }

    /// A service account that the machine may take on, and that may read what is its own.
    fn account(&self, name: &str, machine: &str) -> String {
        let email = self.gcp.create_account(name);
        self.admit(&format!("serviceAccount:{email}"), name);
        self.gcp.bind_account(&email, CREATOR, machine);
        email
    }

    /// Writes a file of credentials; gives its path.
    fn file(&self, credentials: &Value) -> String {
        let path = self.machine.directory().join("credentials.json");
        fs::write(&path, credentials.to_string()).expect("a file");
        path.display().to_string()
    }

    /// An agent whose only backend is the project, which therefore needs no name.
    fn settings(&self) -> AgentSettings {
        let endpoint = self.gcp.endpoint();
        let settings = self.machine.settings_without_cloud().expect("settings");
        settings
            .set("backends.gcp.project", PROJECT)
            .set("backends.gcp.endpoint", &endpoint)
            .set("backends.gcp.iam_endpoint", &endpoint)
            // A debug build on a busy machine begins slowly.
            .set("backends.gcp.timeout", "8s")
            .env("HOME", self.machine.directory().display())
    }

    async fn agent(&self, credentials: &Value) -> AgentProcess {
        let settings = self
            .settings()
            .env("GOOGLE_APPLICATION_CREDENTIALS", self.file(credentials));

        with_principal(settings, 0, 0, "me", "machine")
            .start_ready()
            .await
            .expect("an agent")
    }

    async fn is_read(&self, name: &str) {
        let process = self.machine.process(0).await.expect("a process");
        let answer = read(&process, &format!("{name}/token")).await;
        answer.must_be_ok();
        assert_eq!(answer.json()["value"], value_of(name));
    }
}

#[tokio::test]
async fn each_user_reads_what_its_own_service_account_may_and_nothing_else() {
    needs_workloads!();
    let scene = Scene::set().await;
    let machine = scene.gcp.create_account("runner");
    let member = format!("serviceAccount:{machine}");
    scene.admit(&member, "machine");
    let key = scene.gcp.account_key(&machine);
    let mut settings = scene
        .settings()
        .env("GOOGLE_APPLICATION_CREDENTIALS", scene.file(&key));
    for (number, (uid, name)) in [(ALICE, "alice"), (BOB, "bob")].into_iter().enumerate() {
        let account = scene.account(name, &member);
        settings = with_principal(settings, number, uid, name, &account);
    }
    settings = with_principal(settings, 2, 0, "machine", "machine");
    let agent = settings.start_ready().await.expect("an agent");
    for (uid, own, others) in [
        (ALICE, "alice", ["bob", "machine"]),
        (BOB, "bob", ["alice", "machine"]),
        (0, "machine", ["alice", "bob"]),
    ] {
        let process = scene.machine.process(uid).await.expect("a process");
        let answer = read(&process, &format!("{own}/token")).await;
        assert_eq!(answer.status, 200, "{own}: {}", answer.text());
        assert_eq!(answer.json()["value"], value_of(own));
        for other in others {
            let refused = read(&process, &format!("{other}/token")).await;
            refused.must_be_refused(403, "denied");
        }
    }
    // The machine's own bearer was used for nothing but what was asked of it.
    let by_machine = scene.gcp.calls_of(Operation::AccessSecretVersion);
    let mut by_machine = by_machine
        .iter()
        .filter(|call| call.principal.as_deref() == Some(&*machine));
    assert!(
        by_machine.all(|call| call.reason.is_some())
            && scene.gcp.count_of(Operation::GenerateAccessToken) == 2,
        "{:?}",
        scene.gcp.calls()
    );
    assert!(!agent.stderr().join("\n").contains("PRIVATE KEY"));
}

#[tokio::test]
async fn a_developer_is_who_gcloud_has_signed_in() {
    needs_workloads!();
    let scene = Scene::set().await;
    scene.admit("user:me@example.com", "machine");
    // Where gcloud itself writes it.
    let folder = scene.machine.directory().join(".config/gcloud");
    fs::create_dir_all(&folder).expect("a folder");
    let signed_in = scene.gcp.sign_in("me@example.com");
    let path = folder.join("application_default_credentials.json");
    fs::write(&path, signed_in.to_string()).expect("a file");
    let settings = with_principal(scene.settings(), 0, 0, "me", "machine");
    let _agent = settings.start_ready().await.expect("an agent");
    scene.is_read("machine").await;
    let [call] = &*scene.gcp.calls_of(Operation::RefreshToken) else {
        panic!("{:?}", scene.gcp.calls());
    };
    assert_eq!(call.principal.as_deref(), Some("me@example.com"));
}

#[tokio::test]
async fn a_machine_of_google_cloud_is_who_its_metadata_server_says_asked_without_a_proxy() {
    needs_workloads!();
    let scene = Scene::set().await;
    let email = scene.gcp.create_account("vm");
    scene.gcp.run_as(&email);
    scene.admit(&format!("serviceAccount:{email}"), "machine");
    let host = scene.gcp.endpoint();
    let settings = scene
        .settings()
        .env(
            "GCE_METADATA_HOST",
            host.replace("http://127.0.0.1", "localhost"),
        )
        // Nobody listens there; the cloud itself is asked directly, and no variable names the metadata server for that.
        .env("HTTP_PROXY", "http://127.0.0.1:9")
        .env("NO_PROXY", "127.0.0.1");
    let settings = with_principal(settings, 0, 0, "me", "machine");
    let _agent = settings.start_ready().await.expect("an agent");
    scene.is_read("machine").await;
}

#[tokio::test]
async fn a_job_of_a_ci_service_is_who_its_own_token_says() {
    needs_workloads!();
    let scene = Scene::set().await;
    let issuer = Issuer::new("https://ci.example");
    let provider = scene.gcp.provider_name("ci", "jobs");
    let spec = ProviderSpec::new(&provider, issuer.url(), issuer.jwks());
    scene.gcp.add_provider(spec).expect("a provider");
    let pool = provider.split_once("/providers/").expect("a pool").0;
    let job = "system:serviceaccount:ci:build";
    scene.admit(&format!("principal:{pool}/subject/{job}"), "machine");
    let claims = Claims::new(
        issuer.url(),
        "ci",
        Bound::new("build", "uid"),
        None,
        &format!("https:{provider}"),
        600,
    );
    let token = scene.machine.directory().join("token");
    fs::write(&token, issuer.sign(&claims)).expect("a file");
    let _agent = scene
        .agent(&json!({
            "type": "external_account", "audience": provider,
            "subject_token_type": "urn:ietf:params:oauth:token-type:jwt",
            "token_url": format!("{}/v1/token", scene.gcp.endpoint()),
            "credential_source": {"file": token},
        }))
        .await;
    scene.is_read("machine").await;
}

#[tokio::test]
async fn a_machine_whose_google_credentials_are_gone_or_refused_says_what_to_do() {
    needs_workloads!();
    let scene = Scene::set().await;
    let machine = scene.gcp.create_account("runner");
    let key = scene.gcp.account_key(&machine);
    let closed = scene.gcp.create_account("closed");
    let settings = scene
        .settings()
        .env("GOOGLE_APPLICATION_CREDENTIALS", scene.file(&key));
    let settings = with_principal(settings, 0, 0, "me", "machine");
    let settings = with_principal(settings, 1, ALICE, "alice", &closed);
    let agent = settings.start_ready().await.expect("an agent");
    let ask = async |uid| {
        let process = scene.machine.process(uid).await.expect("a process");
        read(&process, "machine/token").await
    };
    let answer = ask(ALICE).await;
    answer.must_be_refused(403, "denied");
    assert!(answer.text().contains(CREATOR), "{}", answer.text());
    let path = scene.machine.directory().join("credentials.json");
    fs::remove_file(path).expect("it was there");
    let answer = ask(0).await;
    answer.must_be_refused(503, "unavailable");
    assert!(
        answer.text().contains("no Google Cloud credentials"),
        "{}",
        answer.text()
    );
    assert_eq!(agent.admin("/readyz").await.expect("an answer").0, 200);
}
