//! What an operator sees: how the agent starts, what it says is missing, and its admin port.

mod drain;
mod threads;

use crate::{reasons, sandbox_with_a_pod};
use std::fs;
use std::os::unix::net::{UnixListener, UnixStream};
use std::time::{Duration, Instant};
use testkit::agent::AgentSettings;
use testkit::aws::Operation;
use testkit::azure::FakeAzure;
use testkit::kube::{AGENT, PodSpec, Rule};
use testkit::sandbox::{ACCOUNT, Sandbox};
use testkit::workload::Request;

/// How long a start may take on a busy machine; what it takes on an idle one is in the line that says "ready".
const START_WITHIN_MS: f64 = 2_000.0;

/// Starts the agent with nothing but its user id, all else read-only but the socket's directory, `$1`.
const CONFINED: &str = "mount --bind \"$1\" \"$1\" && mount -o remount,bind,ro / && shift && \
     exec setpriv --bounding-set -all --inh-caps -all --no-new-privs \"$@\"";

/// A block of a bundle of certificates that holds none.
const NO_CERTIFICATE: &str = "-----BEGIN CERTIFICATE-----\nMAMCAQE=\n-----END CERTIFICATE-----\n";

/// The names in the socket's directory.
pub(crate) fn names(sandbox: &Sandbox) -> Vec<String> {
    let directory = sandbox.socket().parent().expect("a directory").to_owned();
    let entries = fs::read_dir(directory).expect("it is there");
    entries
        .flatten()
        .map(|entry| entry.file_name().to_string_lossy().into_owned())
        .collect()
}

/// Runs an agent that is not to start: its exit code and the lines on its stderr.
async fn refused(settings: &AgentSettings, arguments: &[&str]) -> (Option<i32>, Vec<String>) {
    let (status, _, stderr) = settings.run_to_end(arguments).await.expect("it ends");
    (status.code(), stderr.lines().map(str::to_owned).collect())
}

#[tokio::test]
async fn a_leaving_agent_removes_no_socket_but_its_own() {
    needs_workloads!();
    let (sandbox, _pod) = sandbox_with_a_pod().await;
    let mut agent = sandbox.agent().await.expect("an agent");
    let beside = sandbox.socket().with_extension("other");
    let _other = UnixListener::bind(&beside).expect("a listener");
    fs::rename(&beside, sandbox.socket()).expect("it takes the path");
    assert!(agent.stop().await.expect("it leaves").success());
    UnixStream::connect(sandbox.socket()).expect("the other still listens on the path");
}

#[tokio::test]
async fn what_dead_agents_left_beside_the_socket_is_removed() {
    needs_workloads!();
    let (sandbox, _pod) = sandbox_with_a_pod().await;
    let directory = sandbox.socket().parent().expect("a directory").to_owned();
    fs::create_dir(&directory).expect("a directory");
    drop(UnixListener::bind(directory.join(".agent.sock.dead")).expect("a listener"));
    let _starting = UnixListener::bind(directory.join(".agent.sock.starting")).expect("a listener");
    let _agent = sandbox.agent().await.expect("an agent");
    let mut left = names(&sandbox);
    left.sort();
    assert_eq!(left, [".agent.sock.starting", "agent.sock"]);
}

#[tokio::test]
async fn a_wrong_configuration_is_told_whole_with_file_line_and_key() {
    let directory = tempfile::tempdir().expect("a directory");
    let file = directory.path().join("config.toml");
    let text = "[listen]\nsocket = \"@latchkey\"\n[limits]\nconections = 5\ndrain = \"soon\"\n\
                [backends.aws]\ntype = \"aws\"\n";
    fs::write(&file, text).expect("a file");
    let file = file.display().to_string();
    let (code, lines) = refused(&AgentSettings::default(), &["--config", &file]).await;
    assert_eq!(code, Some(78), "{lines:#?}");
    for (line, key) in [
        (2, "listen.socket"),
        (4, "limits.conections"),
        (5, "limits.drain"),
    ] {
        let place = format!("{file}:{line}:");
        let told = lines.iter().any(|l| l.contains(&place) && l.contains(key));
        assert!(told, "{place} {key} is not in {lines:#?}");
    }
}

#[tokio::test]
async fn wrong_usage_is_64_and_help_and_version_are_0() {
    let agent = AgentSettings::default();
    for wrong in [&["--unknown"][..], &["serve"], &["--set", "novalue"]] {
        let (code, lines) = refused(&agent, wrong).await;
        assert_eq!(code, Some(64), "{wrong:?}: {lines:#?}");
    }
    let (status, version, _) = agent.run_to_end(&["--version"]).await.expect("it ends");
    assert!(status.success());
    assert!(version.starts_with("latchkey-agent "), "{version}");
    let (status, help, _) = agent.run_to_end(&["--help"]).await.expect("it ends");
    assert!(status.success());
    assert!(
        help.contains("--config") && help.contains("check"),
        "{help}"
    );
}

#[tokio::test]
async fn each_thing_that_is_missing_at_start_is_one_line_and_69() {
    /// With processes of its own, as a pod has them.
    const ALONE: &[&str] = &["unshare", "--pid", "--fork", "--kill-child", "--mount-proc"];
    needs_workloads!();
    let sandbox = Sandbox::start().await.expect("a sandbox");
    let settings = sandbox.settings().expect("settings");
    let taken = std::net::TcpListener::bind(("127.0.0.1", 0)).expect("a port");
    let taken = taken
        .local_addr()
        .map(|address| (address, taken))
        .expect("an address");
    let mut nowhere = settings.clone();
    nowhere.environment.remove("KUBECONFIG");
    let directory = tempfile::tempdir().expect("a directory");
    let bundle = directory.path().join("ca.pem");
    fs::write(&bundle, NO_CERTIFICATE).expect("a file");
    let cases = [
        (
            settings.clone().env("SSL_CERT_FILE", "/dev/null"),
            "no CA roots",
        ),
        (
            settings.clone().env("SSL_CERT_FILE", bundle.display()),
            "no CA roots",
        ),
        (
            settings.clone().env("SSL_CERT_FILE", "/nonexistent/ca.pem"),
            "No such file or directory (os error 2) at '/nonexistent/ca.pem')",
        ),
        (
            settings.clone().set("listen.admin", taken.0),
            "--set listen.admin=127.0.0.1:PORT",
        ),
        (nowhere, "no Kubernetes API server"),
        (
            settings
                .clone()
                .set("backends.aws.region", "")
                .env("AWS_REGION", ""),
            "backends.aws.region is not set",
        ),
        (
            settings
                .clone()
                .set("listen.socket", "/nonexistent/latchkey/agent.sock"),
            "socket's directory",
        ),
        (settings.clone().wrapped(ALONE), "hostPID: true"),
        (
            settings.clone().on_a_machine_without("openat2"),
            "needs Linux 5.6",
        ),
        (
            settings.clone().on_a_machine_without("may_openat2"),
            "an old seccomp profile forbids it",
        ),
        (
            settings.clone().on_a_machine_without("clone3"),
            "an old seccomp profile forbids clone3(2)",
        ),
        (
            settings
                .clone()
                .on_a_machine_without("pidfd_open")
                .on_a_machine_without("peerpidfd"),
            "pidfd_open",
        ),
    ];
    for (settings, what) in cases {
        let (code, lines) = refused(&settings, &[]).await;
        assert_eq!(code, Some(69), "{what}: {lines:#?}");
        let told = lines.join("\n");
        let [reason] = reasons(&told)[..] else {
            panic!("{what}: {told}");
        };
        assert!(reason.contains(what), "{what}: {told}");
    }
}

#[tokio::test]
async fn check_finds_nothing_wrong_in_good_surroundings() {
    needs_workloads!();
    let sandbox = Sandbox::start().await.expect("a sandbox");
    let settings = sandbox.settings().expect("settings");
    let (status, found, stderr) = settings.run_to_end(&["check"]).await.expect("it ends");
    assert_eq!(status.code(), Some(0), "{found}{stderr}");
    assert!(found.lines().all(|line| line.starts_with("ok ")), "{found}");
    assert!(found.contains("right to watch pods"), "{found}");
}

#[tokio::test]
async fn check_says_that_pods_within_their_limits_could_use_up_the_descriptors() {
    needs_workloads!();
    let sandbox = Sandbox::start().await.expect("a sandbox");
    let settings = sandbox.settings().expect("settings");
    let few = &["sh", "-c", "ulimit -n 4096; exec \"$@\"", "sh"];
    let settings = settings.wrapped(few);
    let (status, found, stderr) = settings.run_to_end(&["check"]).await.expect("it ends");
    assert_eq!(status.code(), Some(0), "{found}{stderr}");
    let told = "ok       descriptors: 4096 descriptors are fewer than 9216";
    assert!(found.contains(told), "{found}");
    let more = settings.clone().set("csi.enabled", true);
    let (_, found, _) = more.run_to_end(&["check"]).await.expect("it ends");
    assert!(found.contains("fewer than 19908"), "{found}");
    let enough = settings.set("limits.connections", 1024);
    let (_, found, _) = enough.run_to_end(&["check"]).await.expect("it ends");
    assert!(found.contains("ok       descriptors: enough"), "{found}");
}

/// Otherwise it is ok, and every pod is refused.
#[tokio::test]
async fn check_says_that_no_pod_is_below_the_root_that_it_was_given() {
    needs_workloads!();
    let (sandbox, _pod) = sandbox_with_a_pod().await;
    let settings = sandbox.settings().expect("settings");
    let (_, found, _) = settings.run_to_end(&["check"]).await.expect("it ends");
    let line = |found: &str| {
        let mut lines = found.lines();
        let line = lines.find(|line| line.contains("kubepods root: "));
        line.expect("it looks at it").to_owned()
    };
    assert!(!line(&found).contains("but"), "{found}");
    let settings = settings.set("identity.kubepods_root", "/nonsense/kubepods");
    let (_, found, _) = settings.run_to_end(&["check"]).await.expect("it ends");
    let told =
        "ok       kubepods root: /nonsense/kubepods, but no process is in a pod below it, and ";
    assert!(line(&found).starts_with(told), "{found}");
}

#[tokio::test]
async fn check_says_that_a_certificate_of_the_bundle_cannot_be_used() {
    needs_workloads!();
    let sandbox = Sandbox::start().await.expect("a sandbox");
    let directory = tempfile::tempdir().expect("a directory");
    let cloud = FakeAzure::start().await.expect("a cloud");
    let bundle = cloud.ca_file(directory.path()).expect("a file");
    let good = fs::read_to_string(&bundle).expect("a file");
    fs::write(&bundle, good + NO_CERTIFICATE).expect("a file");
    let settings = sandbox.settings().expect("settings");
    let settings = settings.env("SSL_CERT_FILE", bundle.display());
    let (status, found, stderr) = settings.run_to_end(&["check"]).await.expect("it ends");
    assert_eq!(status.code(), Some(0), "{found}{stderr}");
    let told = "ok       CA roots: found, but 1 of the CA certificates or files cannot be used";
    assert!(found.contains(told), "{found}");
}

#[tokio::test]
async fn check_names_the_accounts_of_the_nodes_pods_that_have_no_role() {
    needs_workloads!();
    let sandbox = Sandbox::start().await.expect("a sandbox");
    sandbox.aws_namespace("test");
    sandbox.kube.create_service_account("test", "bare", &[]);
    for account in [ACCOUNT, "bare"] {
        let pod = sandbox
            .kube
            .create_pod(PodSpec::of("test", account, account));
        // Nor does anything that somebody writes into a pod keep the others from being looked at.
        pod.claim_edit_at("9999-12-31T00:00:00Z");
    }
    let settings = sandbox.settings().expect("settings");
    let (status, found, stderr) = settings.run_to_end(&["check"]).await.expect("it ends");
    assert_eq!(status.code(), Some(0), "{found}{stderr}");
    let mut lines = found.lines().filter(|line| line.contains("roles at aws: "));
    let line = lines.next().expect("a line");
    assert!(line.contains("1 of 2 service accounts"), "{line}");
    assert!(line.contains("test/bare has not"), "{line}");
    assert!(line.contains("eks.amazonaws.com/role-arn"), "{line}");
    assert_eq!(lines.next(), None);
}

#[tokio::test]
async fn check_names_every_right_that_is_missing() {
    needs_workloads!();
    let sandbox = Sandbox::start().await.expect("a sandbox");
    let rules = vec![
        Rule::allow("list", "pods"),
        Rule::allow("get", "namespaces"),
    ];
    sandbox.kube.grant(AGENT, rules);
    let settings = sandbox.settings().expect("settings");
    let (status, found, stderr) = settings.run_to_end(&["check"]).await.expect("it ends");
    assert_eq!(status.code(), Some(69), "{found}{stderr}");
    let missing: Vec<&str> = found
        .lines()
        .filter_map(|line| line.strip_prefix("missing  ")?.split(':').next())
        .collect();
    let rights = [
        "right to watch pods",
        "right to get pods",
        "right to get serviceaccounts",
    ];
    for right in rights {
        assert!(missing.contains(&right), "{right} is not in:\n{found}");
    }
    assert!(!missing.contains(&"right to list pods"), "{found}");
    assert!(!missing.contains(&"right to get namespaces"), "{found}");
}

#[tokio::test]
async fn check_asks_for_no_right_to_namespaces_where_none_is_annotated() {
    needs_workloads!();
    let sandbox = Sandbox::start().await.expect("a sandbox");
    let rules = vec![
        Rule::allow("get list watch", "pods"),
        Rule::allow("get", "serviceaccounts"),
    ];
    sandbox.kube.grant(AGENT, rules);
    let settings = sandbox.settings().expect("settings");
    let (_, found, stderr) = settings.run_to_end(&["check"]).await.expect("it ends");
    let right = "right to get namespaces";
    assert!(
        found.contains(&format!("missing  {right}")),
        "{found}{stderr}"
    );
    let settings = sandbox.settings().expect("settings");
    let settings = settings.env("LATCHKEY_AGENT__IDENTITY__NAMESPACE_ANNOTATIONS", "false");
    let (_, found, stderr) = settings.run_to_end(&["check"]).await.expect("it ends");
    assert!(
        found.contains("right to get serviceaccounts"),
        "{found}{stderr}"
    );
    assert!(!found.contains(right), "{found}{stderr}");
}

#[tokio::test]
async fn check_says_once_that_and_why_the_api_server_cannot_be_asked() {
    needs_workloads!();
    let sandbox = Sandbox::start().await.expect("a sandbox");
    sandbox.kube.stop_listening().await;
    let settings = sandbox.settings().expect("settings");
    let (status, found, stderr) = settings.run_to_end(&["check"]).await.expect("it ends");
    assert_eq!(status.code(), Some(69), "{found}{stderr}");
    let missing: Vec<_> = found
        .lines()
        .filter(|line| line.starts_with("missing"))
        .collect();
    assert_eq!(missing.len(), 1, "{found}");
    assert!(missing[0].contains("API server: "), "{found}");
    assert!(missing[0].contains("Connection refused"), "{found}");
}

#[tokio::test]
async fn check_goes_on_without_roots_to_trust() {
    needs_workloads!();
    let sandbox = Sandbox::start().await.expect("a sandbox");
    let settings = sandbox.settings().expect("settings");
    let settings = settings.env("SSL_CERT_FILE", "/dev/null");
    let (status, found, stderr) = settings.run_to_end(&["check"]).await.expect("it ends");
    assert_eq!(status.code(), Some(69), "{found}{stderr}");
    assert!(found.contains("missing  CA roots: "), "{found}");
    assert!(found.contains("API server: "), "{found}");
}

#[tokio::test]
async fn every_metric_of_the_contract_counts_what_happened() {
    needs_workloads!();
    let (sandbox, pod) = sandbox_with_a_pod().await;
    sandbox.aws_namespace("prod");
    let cached = |settings: AgentSettings| settings.set("cache.ttl", "5m");
    let agent = sandbox.agent_with(cached).await.expect("an agent");
    for _ in 0..2 {
        let own = pod
            .secret("test/database-password")
            .await
            .expect("an answer");
        own.must_be_ok();
    }
    pod.workload.connect("kept").await.expect("a connection");
    let other = Request::get("/v1/secrets/prod/database-password");
    let other = pod
        .workload
        .send_on("kept", other)
        .await
        .expect("an answer");
    assert_eq!(other.status, 403);
    let wanted = [
        "latchkey_requests_total{code=\"ok\",route=\"secret\"} 2",
        "latchkey_requests_total{code=\"denied\",route=\"secret\"} 1",
        "latchkey_request_seconds_count{route=\"secret\"} 3",
        "latchkey_backend_seconds_count{backend=\"aws\",operation=\"read\"} 2",
        "latchkey_backend_seconds_count{backend=\"aws\",operation=\"exchange\"} ",
        "latchkey_backend_errors_total{backend=\"aws\",code=\"denied\"} 1",
        "latchkey_attestations_total{outcome=\"ok\"} 3",
        "latchkey_sessions{backend=\"aws\"} ",
        "latchkey_exchanges_total{backend=\"aws\",outcome=\"ok\"} ",
        "latchkey_cache_total{outcome=\"hit\"} 1",
        "latchkey_cache_total{outcome=\"miss\"} 2",
        "latchkey_connections 1",
        "latchkey_pods 1",
        "latchkey_audit_queue 0",
        "latchkey_build_info{version=\"",
        "process_resident_memory_bytes ",
        "process_open_fds ",
    ];
    // Gauges are set once a second.
    let deadline = Instant::now() + Duration::from_secs(10);
    loop {
        let (_, text) = agent.admin("/metrics").await.expect("metrics");
        let missing: Vec<_> = wanted
            .iter()
            .filter(|line| !text.contains(**line))
            .collect();
        for hidden in ["database-password", pod.object.uid(), "\"test\"", "canary"] {
            assert!(!text.contains(hidden), "{hidden} is in:\n{text}");
        }
        if missing.is_empty() {
            break;
        }
        assert!(
            Instant::now() < deadline,
            "{missing:#?} are not in:\n{text}"
        );
        tokio::time::sleep(Duration::from_millis(100)).await;
    }
}

#[tokio::test]
async fn a_vault_that_hangs_is_counted_even_if_whoever_asks_gives_up_sooner_than_the_agent() {
    needs_workloads!();
    let (sandbox, mut pod) = sandbox_with_a_pod().await;
    let agent = sandbox.agent().await.expect("an agent");
    let (gate, _held) = sandbox.aws.hold(Operation::GetSecretValue);
    tokio::select! {
        answer = pod.secret("test/database-password") => panic!("{answer:?}"),
        () = gate.reached(1) => {}
    }
    tokio::time::sleep(Duration::from_millis(1200)).await;
    pod.workload.kill().await.expect("it was there");
    let told = agent.until_audit(|line| line["outcome"] == "cancelled");
    told.await.expect("its line");
    let series = "latchkey_backend_errors_total{backend=\"aws\",code=\"timeout\"}";
    assert_eq!(agent.metric(series).await.expect("it is counted"), 1.0);
}

/// The batch is answered, whatever its names came to.
#[tokio::test]
async fn a_batch_that_is_answered_is_counted_by_what_became_of_its_names() {
    needs_workloads!();
    let (sandbox, pod) = sandbox_with_a_pod().await;
    let slow = |settings: AgentSettings| settings.set("limits.requests_per_second_per_pod", 2);
    let agent = sandbox.agent_with(slow).await.expect("an agent");
    let batch = |names: &[&str]| {
        let batch = Request::new("POST", "/v1/secrets:batchGet");
        batch.body(serde_json::json!({ "names": names }).to_string())
    };
    let names = [
        "test/database-password",
        "prod/database-password",
        "prod/other",
    ];
    let answer = pod.request(batch(&names)).await.expect("an answer");
    answer.must_be_ok();
    // One that is refused as a whole is a request that was.
    let many = ["a", "b", "c", "d", "e", "f"];
    let answer = pod.request(batch(&many)).await.expect("an answer");
    answer.must_be_refused(429, "busy");
    for counted in [
        "latchkey_batch_failures_total{code=\"denied\"}",
        "latchkey_requests_total{code=\"ok\",route=\"batch\"}",
        "latchkey_requests_total{code=\"busy\",route=\"batch\"}",
    ] {
        let count = agent.metric(counted).await.expect("metrics");
        assert!((count - 1.0).abs() < f64::EPSILON, "{counted} {count}");
    }
    // Why, the log says once for each code, as it does for a read by itself.
    let line = agent.until_line("request refused").await;
    line.expect("it says so");
    let lines = agent.stderr();
    let said: Vec<_> = lines
        .iter()
        .filter(|line| line.contains("request refused"))
        .collect();
    assert_eq!(said.len(), 1, "{said:?}");
    for part in [
        "\"code\":\"denied\"",
        "\"secret\":\"prod/",
        "\"error\":",
        "\"cause\":",
        "\"request_id\":",
    ] {
        assert!(said[0].contains(part), "{part}: {said:?}");
    }
}

#[tokio::test]
async fn an_agent_is_ready_at_once() {
    needs_workloads!();
    let (sandbox, _pod) = sandbox_with_a_pod().await;
    let agent = sandbox.agent().await.expect("an agent");
    let line = agent
        .until_line("\"message\":\"ready\"")
        .await
        .expect("it is ready");
    let line: serde_json::Value = serde_json::from_str(&line).expect("JSON");
    let took = line["took_ms"].as_f64().expect("a number");
    eprintln!("ready after {took} ms");
    assert!(took < START_WITHIN_MS, "it took {took} ms");
}

#[tokio::test]
async fn an_agent_without_capabilities_and_with_a_read_only_root_serves() {
    needs_workloads!();
    let (sandbox, pod) = sandbox_with_a_pod().await;
    let run = sandbox.socket().parent().expect("a directory").to_owned();
    fs::create_dir(&run).expect("a directory");
    let run = run.display().to_string();
    let wrapper = ["unshare", "--mount", "sh", "-c", CONFINED, "sh", &run];
    let confined = |settings: AgentSettings| settings.wrapped(&wrapper);
    let mut agent = sandbox.agent_with(confined).await.expect("an agent");
    let answer = pod
        .secret("test/database-password")
        .await
        .expect("an answer");
    answer.must_be_ok();
    let status = fs::read_to_string(format!("/proc/{}/status", agent.pid())).expect("it runs");
    for line in [
        "CapEff:\t0000000000000000",
        "CapBnd:\t0000000000000000",
        "NoNewPrivs:\t1",
    ] {
        assert!(status.contains(line), "{status}");
    }
    let mounts = fs::read_to_string(format!("/proc/{}/mounts", agent.pid())).expect("it runs");
    let root = mounts
        .lines()
        .rfind(|line| line.split(' ').nth(1) == Some("/"));
    let root = root
        .and_then(|line| line.split(' ').nth(3))
        .expect("a root");
    assert!(root.split(',').any(|option| option == "ro"), "{root}");
    assert!(agent.stop().await.expect("it leaves").success());
}
