//! As a sidecar: the agent serves its own pod, with the pod's projected tokens, and asks no cluster.

use std::fs;
use std::path::{Path, PathBuf};
use std::time::Duration;
use testkit::agent::{AgentProcess, AgentSettings, free_address};
use testkit::aws::{Operation, RoleSpec, read_and_list_policy, secret_arn, trust_policy};
use testkit::binaries::sibling_binary;
use testkit::clouds::Cloud as _;
use testkit::clouds::azure::{Azure, TENANT};
use testkit::clouds::gcp::Gcp;
use testkit::gcp::Operation as GcpOperation;
use testkit::sandbox::{REGION, Sandbox, password};
use testkit::workload::{Volume, Workload, WorkloadSpec};
use tokio::process::Command;

const UID: &str = "7d3f1c52-0b1e-4a6d-9f2c-8e5a4b3c2d1f";

/// Where an emptyDir of the pod lies on a node.
fn volume(sandbox: &Sandbox, uid: &str) -> PathBuf {
    let directory = sandbox.directory().join(format!(
        "pods/{uid}/volumes/kubernetes.io~empty-dir/latchkey"
    ));
    fs::create_dir_all(&directory).expect("a directory");
    // As the kubelet makes it.
    fs::set_permissions(
        &directory,
        std::os::unix::fs::PermissionsExt::from_mode(0o777),
    )
    .expect("ours");
    directory
}

/// Starts the agent as the kubelet would: its volume mounted, in PID and mount namespaces of its own.
fn in_a_container(settings: AgentSettings, volume: &Path, at: &Path) -> AgentSettings {
    let [volume, at] = [volume, at].map(|path| path.display().to_string());
    settings.wrapped(&[
        "unshare",
        "--mount",
        "--pid",
        "--fork",
        "--kill-child",
        "--mount-proc",
        "sh",
        "-c",
        "mount --bind \"$1\" \"$2\" && shift 2 && exec \"$@\"",
        "sh",
        &volume,
        &at,
    ])
}

fn token(sandbox: &Sandbox, audience: &str) -> String {
    let now = jiff::Timestamp::now().as_second();
    let issuer = sandbox.kube.issuer();
    issuer.sign(&serde_json::json!({
        "iss": issuer.url(), "sub": "system:serviceaccount:test:app", "aud": [audience],
        "iat": now, "nbf": now, "exp": now + 3600,
    }))
}

/// What the pod's containers are told by the downward API, with `settings` for a cloud.
fn in_the_pod(settings: AgentSettings, sandbox: &Sandbox, volume: &Path) -> AgentSettings {
    let at = sandbox.directory().join("at");
    fs::create_dir_all(&at).expect("a directory");
    let settings = settings
        .set("identity.mode", "sidecar")
        .set("listen.socket", at.join("agent.sock").display())
        .set("listen.admin", free_address().expect("a port"))
        .env("PATH", "/usr/sbin:/usr/bin:/sbin:/bin")
        .env("POD_UID", UID)
        .env("POD_NAME", "web-0")
        .env("POD_NAMESPACE", "test")
        .env("POD_SERVICE_ACCOUNT", "app");
    in_a_container(settings, volume, &at)
}

/// The file of the pod's projected token for that audience.
fn token_file(sandbox: &Sandbox, audience: &str) -> PathBuf {
    let file = sandbox.directory().join("token");
    fs::write(&file, token(sandbox, audience)).expect("a file");
    file
}

fn settings(sandbox: &Sandbox, volume: &Path, role: &str) -> AgentSettings {
    let token = token_file(sandbox, "sts.amazonaws.com");
    let settings = AgentSettings::default()
        .set("backends.aws.region", REGION)
        .set("backends.aws.endpoint", sandbox.aws.endpoint())
        .set("backends.aws.sts_endpoint", sandbox.aws.endpoint())
        .env("AWS_ROLE_ARN", role)
        .env("AWS_WEB_IDENTITY_TOKEN_FILE", token.display());
    in_the_pod(settings, sandbox, volume)
}

/// Starts the agent, and a container that reads its own namespace's secret and not another's.
async fn reads_its_own_alone(settings: AgentSettings, volume: &Path, backend: &str, role: &str) {
    let _agent = started(settings).await;
    let app = process(volume).await;
    let read = async |name: &str| {
        let path = format!("/v1/secrets/{name}/database-password");
        app.get(&path).await.expect("an answer")
    };
    let own = read("test").await;
    own.must_be_ok();
    assert_eq!(own.json()["value"], password("test"));
    assert_eq!(own.json()["backend"], backend);
    let other = read("prod").await;
    other.must_be_refused(403, "denied");
    let identity = app.get("/v1/identity").await.expect("an answer").json();
    assert_eq!(identity["roles"][backend], role);
}

#[tokio::test]
async fn a_sidecar_reads_from_google_cloud_as_its_pod() {
    needs_workloads!();
    let sandbox = Sandbox::start().await.expect("a sandbox");
    let gcp = Gcp::start(&sandbox).await.expect("a cloud");
    for namespace in ["test", "prod"] {
        gcp.namespace(&sandbox, namespace);
    }
    let volume = volume(&sandbox, UID);
    let account = "test-app@acme-prod.iam.gserviceaccount.com";
    let token = token_file(&sandbox, &format!("https:{}", gcp.provider));
    let settings = gcp
        .settings(AgentSettings::default())
        .set("sidecar.tokens", token.display())
        .set("sidecar.gcp_service_account", account);
    let settings = in_the_pod(settings, &sandbox, &volume);
    reads_its_own_alone(settings, &volume, "gcp", account).await;
    // Google's own log knows the pod.
    let reads = gcp.cloud.calls_of(GcpOperation::AccessSecretVersion);
    let reason = reads[0].reason.as_deref().unwrap_or_default();
    assert!(reason.contains(UID), "{reason}");
    assert!(sandbox.kube.tokens().is_empty());
}

#[tokio::test]
async fn a_sidecar_reads_from_azure_as_its_pod() {
    needs_workloads!();
    let sandbox = Sandbox::start().await.expect("a sandbox");
    let azure = Azure::start(&sandbox).await.expect("a cloud");
    for namespace in ["test", "prod"] {
        azure.namespace(&sandbox, namespace);
    }
    let volume = volume(&sandbox, UID);
    let client = azure.client_of("test").expect("it was made");
    let token = token_file(&sandbox, "api://AzureADTokenExchange");
    // As the workload identity webhook does it.
    let settings = azure
        .settings(AgentSettings::default())
        .env("AZURE_CLIENT_ID", &client)
        .env("AZURE_TENANT_ID", TENANT)
        .env("AZURE_FEDERATED_TOKEN_FILE", token.display());
    let settings = in_the_pod(settings, &sandbox, &volume);
    reads_its_own_alone(settings, &volume, "azure", &client).await;
    let uid = UID.replace('-', "");
    let calls = azure.cloud.calls();
    assert!(
        calls.iter().all(|call| call.user_agent.contains(&uid)),
        "{calls:?}"
    );
    assert!(sandbox.kube.tokens().is_empty());
}

async fn started(settings: AgentSettings) -> AgentProcess {
    settings.start_ready().await.expect("an agent")
}

async fn process(volume: &Path) -> Workload {
    let spec = WorkloadSpec {
        volume: Some(Volume {
            directory: volume.to_owned(),
            at: "/mnt".into(),
        }),
        ..WorkloadSpec::host(Path::new("/mnt/agent.sock"))
    };
    Workload::start(spec).await.expect("a process")
}

#[tokio::test]
async fn a_sidecar_reads_as_its_pod_for_containers_whose_processes_it_does_not_see() {
    needs_workloads!();
    let sandbox = Sandbox::start().await.expect("a sandbox");
    let role = sandbox.aws_namespace("test");
    sandbox.aws_namespace("prod");
    let volume = volume(&sandbox, UID);
    let agent = started(settings(&sandbox, &volume, &role)).await;
    let app = process(&volume).await;
    let own = app
        .get("/v1/secrets/test/database-password")
        .await
        .expect("an answer");
    own.must_be_ok();
    assert_eq!(own.json()["value"], password("test"));
    let other = app
        .get("/v1/secrets/prod/database-password")
        .await
        .expect("an answer");
    other.must_be_refused(403, "denied");
    let identity = app.get("/v1/identity").await.expect("an answer").json();
    for (key, value) in [("namespace", "test"), ("pod", "web-0"), ("pod_uid", UID)] {
        assert_eq!(identity[key], value);
    }
    assert_eq!(identity["roles"]["aws"], *role);
    let line = agent
        .until_audit(|line| line["outcome"] == "ok")
        .await
        .expect("a line");
    assert_eq!(line["pid"], 0);
    assert_eq!(line["pod_uid"], UID);
    let exchanges = sandbox.aws.calls_of(Operation::AssumeRoleWithWebIdentity);
    let name = exchanges[0].session_name.clone().expect("a name");
    assert_eq!(name, format!("{}.test.app", UID.replace('-', "")));
    assert!(
        sandbox.kube.tokens().is_empty(),
        "it asked the cluster for a token"
    );
}

#[tokio::test]
async fn a_renewed_token_is_used_for_the_next_exchange() {
    needs_workloads!();
    let sandbox = Sandbox::start().await.expect("a sandbox");
    sandbox.aws_namespace("test");
    let role = sandbox.aws.role_arn("short");
    let resource = secret_arn("*", sandbox.aws.account(), "test/*");
    sandbox
        .aws
        .create_role(RoleSpec {
            sessions_end_after: Some(4),
            ..RoleSpec::new(
                &role,
                trust_policy(
                    sandbox.aws_provider(),
                    "system:serviceaccount:test:app",
                    "sts.amazonaws.com",
                ),
                read_and_list_policy(&[resource]),
            )
        })
        .expect("the policies are well formed");
    let volume = volume(&sandbox, UID);
    let _agent = started(settings(&sandbox, &volume, &role)).await;
    let app = process(&volume).await;
    let read = || async {
        let answer = app.get("/v1/secrets/test/database-password").await;
        answer.expect("an answer").status
    };
    assert_eq!(read().await, 200);
    // What the kubelet does when it renews one; an old one would still be good.
    fs::write(sandbox.directory().join("token"), "no token at all").expect("a file");
    let deadline = std::time::Instant::now() + Duration::from_secs(20);
    while read().await == 200 {
        assert!(
            std::time::Instant::now() < deadline,
            "the old token is kept"
        );
        tokio::time::sleep(Duration::from_millis(100)).await;
    }
    let before = sandbox.aws.count_of(Operation::AssumeRoleWithWebIdentity);
    fs::write(
        sandbox.directory().join("token"),
        token(&sandbox, "sts.amazonaws.com"),
    )
    .expect("a file");
    while read().await != 200 {
        assert!(
            std::time::Instant::now() < deadline,
            "the new token is not read"
        );
        tokio::time::sleep(Duration::from_millis(100)).await;
    }
    assert!(sandbox.aws.count_of(Operation::AssumeRoleWithWebIdentity) > before);
}

#[tokio::test]
async fn a_token_for_the_api_server_is_never_offered_to_a_cloud() {
    needs_workloads!();
    let sandbox = Sandbox::start().await.expect("a sandbox");
    let role = sandbox.aws_namespace("test");
    let volume = volume(&sandbox, UID);
    let settings = settings(&sandbox, &volume, &role);
    let api_server = token(&sandbox, "https://kubernetes.default.svc");
    fs::write(sandbox.directory().join("token"), api_server).expect("a file");
    let _agent = started(settings).await;
    let app = process(&volume).await;
    let answer = app
        .get("/v1/secrets/test/database-password")
        .await
        .expect("an answer");
    answer.must_be_refused(503, "unavailable");
    assert!(
        answer.text().contains("no projected token"),
        "{}",
        answer.text()
    );
    assert_eq!(sandbox.aws.count_calls(|_| true), 0);
}

#[tokio::test]
async fn check_names_a_missing_role_and_a_missing_or_unreadable_token_in_one_line_each() {
    needs_workloads!();
    let sandbox = Sandbox::start().await.expect("a sandbox");
    let volume = volume(&sandbox, UID);
    let token = token_file(&sandbox, "sts.amazonaws.com");
    let provider =
        "//iam.googleapis.com/projects/7/locations/global/workloadIdentityPools/p/providers/east";
    let settings = AgentSettings::default()
        .set("backends.aws.region", REGION)
        .set("backends.gcp.project", "acme-prod")
        .set("backends.gcp.provider", provider)
        .set("backends.azure.vault_url", "https://v1.vault.azure.net")
        .set("sidecar.tokens", token.display());
    let settings = in_the_pod(settings, &sandbox, &volume);
    let (status, found, stderr) = settings.run_to_end(&["check"]).await.expect("it ends");
    assert_eq!(status.code(), Some(69), "{found}{stderr}");
    let missing = |found: &str, subject: &str| {
        let begin = format!("missing  {subject}: ");
        let lines: Vec<_> = found
            .lines()
            .filter_map(|l| l.strip_prefix(&begin))
            .collect();
        assert_eq!(lines.len(), 1, "{subject} is not in:\n{found}");
        lines[0].to_owned()
    };
    // A sidecar reads no annotation.
    assert!(
        missing(&found, "role for aws").contains("set AWS_ROLE_ARN in"),
        "{found}"
    );
    assert!(
        missing(&found, "role for azure").contains("set AZURE_CLIENT_ID in"),
        "{found}"
    );
    assert!(!found.contains("annotate"), "{found}");
    assert!(missing(&found, "token for gcp").contains(provider));
    assert!(
        found.contains("ok       role for gcp: principal://"),
        "{found}"
    );
    fs::write(&token, "no token").expect("a file");
    let (_, found, _) = settings.run_to_end(&["check"]).await.expect("it ends");
    let unreadable = missing(&found, "token for gcp");
    assert!(
        unreadable.ends_with("cannot be read: it is no JWT"),
        "{unreadable}"
    );
}

/// The command as the pod's container runs it.
async fn printed(volume: &Path, arguments: &[&str]) -> String {
    let program = sibling_binary("sandbox-latchkey").expect("the command");
    let mut command = Command::new(program);
    command
        .args(arguments)
        .env_clear()
        .env("KUBERNETES_SERVICE_HOST", "10.96.0.1")
        // The whole path would be too long for a socket.
        .current_dir(volume)
        .env("LATCHKEY_SOCKET", "agent.sock");
    let output = command.output().await.expect("it runs");
    String::from_utf8(output.stdout).expect("text")
}

#[tokio::test]
async fn what_doctor_and_whoami_say_is_for_the_pods_own_agent() {
    needs_workloads!();
    let sandbox = Sandbox::start().await.expect("a sandbox");
    let role = sandbox.aws_namespace("test");
    let volume = volume(&sandbox, UID);
    let absent = printed(&volume, &["doctor"]).await;
    assert!(absent.contains("an agent of its own"), "{absent}");

    let named = settings(&sandbox, &volume, &role);
    let address = free_address().expect("a port");
    let mut unnamed = named.clone().set("listen.admin", address);
    unnamed.environment.remove("AWS_ROLE_ARN");
    let agent = started(named).await;
    let who = printed(&volume, &["whoami"]).await;
    assert!(who.contains("test/web-0") && who.contains(UID), "{who}");
    // What it cannot tell is left out.
    for row in ["network", "node", "container"] {
        assert!(!who.contains(row), "{who}");
    }
    fs::write(sandbox.directory().join("token"), "").expect("a file");
    let told = printed(&volume, &["doctor"]).await;
    assert!(told.contains("service account app\n"), "{told}");
    assert!(
        told.contains("kubectl -n test logs web-0 -c CONTAINER"),
        "{told}"
    );
    assert!(!told.contains("spec.nodeName"), "{told}");
    drop(agent);

    let _agent = started(unnamed).await;
    let told = printed(&volume, &["doctor"]).await;
    assert!(told.contains("set AWS_ROLE_ARN in"), "{told}");
    assert!(
        told.contains("kubectl -n test get pod web-0 -o yaml"),
        "{told}"
    );
    assert!(!told.contains("annotate"), "{told}");
}

#[tokio::test]
async fn a_socket_in_no_volume_of_the_pod_stops_the_start() {
    needs_workloads!();
    let sandbox = Sandbox::start().await.expect("a sandbox");
    let role = sandbox.aws_namespace("test");
    // Another pod's volume, and a directory of the node that many pods mount.
    let foreign = volume(&sandbox, "0b1a7c0e-6a5d-4c3e-9a43-0123456789ab");
    let shared = sandbox.directory().join("shared");
    fs::create_dir(&shared).expect("a directory");
    for directory in [foreign, shared] {
        let settings = settings(&sandbox, &directory, &role);
        let (status, _, stderr) = settings.run_to_end(&[]).await.expect("it ends");
        assert_eq!(status.code(), Some(69), "{stderr}");
        assert!(stderr.contains("is no emptyDir of this pod"), "{stderr}");
    }
}

#[tokio::test]
async fn a_container_that_has_exited_takes_its_requests_with_it() {
    needs_workloads!();
    let sandbox = Sandbox::start().await.expect("a sandbox");
    let role = sandbox.aws_namespace("test");
    let volume = volume(&sandbox, UID);
    let agent = started(settings(&sandbox, &volume, &role)).await;
    let (gate, _held) = sandbox.aws.hold(Operation::GetSecretValue);
    let mut app = process(&volume).await;
    app.connect("kept").await.expect("a connection");
    let request = testkit::workload::Request::get("/v1/secrets/test/database-password");
    let asked = tokio::time::timeout(Duration::from_secs(2), app.send_on("kept", request));
    let (answer, ()) = tokio::join!(asked, gate.reached(1));
    assert!(answer.is_err(), "the vault has not answered");
    app.kill().await.expect("it ends");
    let line = agent
        .until_audit(|line| line["outcome"] == "cancelled")
        .await;
    line.expect("its end ended the request");
    gate.open();
}
