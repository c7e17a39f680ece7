//! `latchkey doctor --pod`: what is missing, by what kubectl shows.

use super::{Ended, ended};
use serde_json::{Value, json};
use std::fs;
use std::os::unix::fs::PermissionsExt as _;
use std::path::Path;
use std::process::Stdio;
use tempfile::TempDir;
use testkit::binaries::sibling_binary;
use tokio::process::Command;

/// Answers from files that are named like its arguments, as kubectl answers from a cluster.
const KUBECTL: &str = r#"#!/bin/sh
answer="$(dirname "$0")/$*"
[ -e "$answer" ] && exec cat "$answer"
case "$*" in *" far-away "*)
  echo "E1129 21:00:00.000000    7 memcache.go:265] \"Unhandled Error\" err=\"dial tcp: no such host\"" >&2
  echo "Unable to connect to the server: dial tcp: no such host" >&2
  exit 1 ;;
esac
[ "$1" = auth ] && { echo "Error from server (Forbidden): cannot impersonate" >&2; exit 1; }
echo "Error from server (NotFound): there is no $*" >&2
exit 1
"#;

/// How kubectl is asked whether the agent may issue the account's tokens.
const TOKEN: &str = "auth can-i create serviceaccounts/app --subresource token --namespace test --as system:serviceaccount:latchkey:latchkey-agent";

/// What kubectl shows: all that a pod needs, until a test takes something away.
struct Cluster {
    directory: TempDir,
    pod: Value,
    account: Value,
    agents: Value,
}

impl Cluster {
    fn new() -> Self {
        let directory = tempfile::tempdir().expect("a directory");
        let kubectl = directory.path().join("kubectl");
        fs::write(&kubectl, KUBECTL).expect("a file");
        fs::set_permissions(&kubectl, fs::Permissions::from_mode(0o755)).expect("its mode");
        Self {
            directory,
            pod: json!({
                "metadata": {"namespace": "test", "name": "web"},
                "spec": {
                    "nodeName": "n1",
                    "serviceAccountName": "app",
                    "containers": [{
                        "name": "app", "image": "app",
                        "volumeMounts": [{"name": "latchkey", "mountPath": "/run/latchkey", "readOnly": true}],
                    }],
                    "volumes": [{"name": "latchkey", "hostPath": {"path": "/run/latchkey/", "type": "Directory"}}],
                },
                "status": {"phase": "Running"},
            }),
            account: json!({"metadata": {
                "name": "app",
                "annotations": {"eks.amazonaws.com/role-arn": "arn:aws:iam::111122223333:role/app"},
            }}),
            agents: json!({"items": [{
                "metadata": {"namespace": "latchkey", "name": "latchkey-agent-x"},
                "spec": {"nodeName": "n1", "serviceAccountName": "latchkey-agent"},
                "status": {"conditions": [{"type": "Ready", "status": "True"}]},
            }]}),
        }
    }

    fn answer(&self, arguments: &str, text: &str) {
        fs::write(self.directory.path().join(arguments), text).expect("a file");
    }

    async fn doctor(&self) -> Ended {
        let json = "--output json";
        for (what, object) in [
            ("pod web --namespace test", &self.pod),
            ("serviceaccount app --namespace test", &self.account),
            (
                "pods --all-namespaces --selector app.kubernetes.io/name=latchkey,app.kubernetes.io/component=agent",
                &self.agents,
            ),
        ] {
            // A name may hold a slash, a file's name none.
            let file = format!("get {what} {json}");
            let path = self.directory.path().join(&file);
            fs::create_dir_all(path.parent().expect("a directory")).expect("a directory");
            fs::write(path, object.to_string()).expect("a file");
        }
        let path = self.directory.path().join(TOKEN);
        fs::create_dir_all(path.parent().expect("a directory")).expect("a directory");
        if !path.exists() {
            fs::write(path, "yes\n").expect("a file");
        }
        run(
            self.directory.path(),
            &["doctor", "--pod", "test/web", "--json"],
        )
        .await
    }

    /// What it finds wrong: the step and cause of each.
    async fn wrong(&self) -> Vec<(String, String)> {
        let ended = self.doctor().await;
        let report: Value =
            serde_json::from_str(&ended.stdout).unwrap_or_else(|_| panic!("{ended:?}"));
        let findings = report["findings"].as_array().expect("findings");
        let word =
            |finding: &Value, key: &str| finding[key].as_str().unwrap_or_default().to_owned();
        let wrong: Vec<_> = findings
            .iter()
            .filter(|finding| finding["verdict"] == "fail")
            .map(|finding| (word(finding, "step"), word(finding, "cause")))
            .collect();
        assert_eq!(ended.code == Some(0), wrong.is_empty(), "{ended:?}");
        wrong
    }
}

async fn run(path: &Path, arguments: &[&str]) -> Ended {
    let mut command = Command::new(sibling_binary("sandbox-latchkey").expect("the command"));
    command
        .args(arguments)
        .env_clear()
        .env("PATH", format!("{}:/usr/bin:/bin", path.display()))
        .stdin(Stdio::null())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped());
    ended(command).await
}

/// A pod with a sidecar, and nothing else that gives it secrets.
fn with_agent_of_its_own() -> Cluster {
    let mut cluster = Cluster::new();
    cluster.account["metadata"]["annotations"] = json!({});
    cluster.agents = json!({"items": []});
    let spec = &mut cluster.pod["spec"];
    spec["volumes"] = json!([{"name": "latchkey", "emptyDir": {}}]);
    spec["initContainers"] = json!([{
        "name": "latchkey",
        "env": [{"name": "LATCHKEY_AGENT__IDENTITY__MODE", "value": "sidecar"}],
    }]);
    cluster
}

fn one(step: &str, cause: &str) -> Vec<(String, String)> {
    vec![(step.to_owned(), cause.to_owned())]
}

#[tokio::test]
async fn a_pod_that_lacks_nothing_is_told_so() {
    let mut cluster = Cluster::new();
    let ended = cluster.doctor().await;
    assert_eq!(ended.code, Some(0), "{ended:?}");
    for text in [
        "latchkey-agent-x is ready",
        "role/app",
        "may issue tokens",
        "kubectl --namespace test exec web",
    ] {
        assert!(ended.stdout.contains(text), "{text}: {}", ended.stdout);
    }
    // The CSI volume will do as well, if the cluster has the driver.
    cluster.pod["spec"]["volumes"] =
        json!([{"name": "latchkey", "csi": {"driver": "csi.latchkey.dev"}}]);
    assert_eq!(cluster.wrong().await, one("volume", "no_driver"));
    cluster.answer("get csidriver csi.latchkey.dev --output json", "{}");
    assert_eq!(cluster.wrong().await, []);
    // It brings the tokens along: the agent needs no right to them.
    cluster.answer(TOKEN, "no\n");
    assert_eq!(cluster.wrong().await, []);
    // An annotation on the namespace stands for its accounts.
    cluster.account = json!({"metadata": {"name": "app"}});
    let role = "arn:aws:iam::111122223333:role/all";
    let namespace = json!({"metadata": {"annotations": {"eks.amazonaws.com/role-arn": role}}});
    cluster.answer("get namespace test --output json", &namespace.to_string());
    assert_eq!(cluster.wrong().await, []);
}

#[tokio::test]
async fn what_is_wrong_with_the_pod_is_named() {
    let wrong = async |change: fn(&mut Value)| {
        let mut cluster = Cluster::new();
        change(&mut cluster.pod);
        cluster.wrong().await
    };
    let no_volume: fn(&mut Value) = |pod| pod["spec"]["volumes"] = json!([]);
    assert_eq!(wrong(no_volume).await, one("volume", "no_mount"));
    let file: fn(&mut Value) = |pod| {
        pod["spec"]["volumes"][0]["hostPath"] =
            json!({"path": "/run/latchkey/agent.sock", "type": "Socket"});
    };
    assert_eq!(wrong(file).await, one("volume", "file_mount"));
    let sub_path: fn(&mut Value) =
        |pod| pod["spec"]["containers"][0]["volumeMounts"][0]["subPath"] = json!("agent.sock");
    assert_eq!(wrong(sub_path).await, one("mount", "file_mount"));
    let unmounted: fn(&mut Value) = |pod| pod["spec"]["containers"][0]["volumeMounts"] = json!([]);
    assert_eq!(wrong(unmounted).await, one("mount", "no_mount"));
    let elsewhere: fn(&mut Value) =
        |pod| pod["spec"]["containers"][0]["volumeMounts"][0]["mountPath"] = json!("/latchkey");
    assert_eq!(wrong(elsewhere).await, one("mount", "other_path"));
    let named: fn(&mut Value) = |pod| {
        let container = &mut pod["spec"]["containers"][0];
        container["volumeMounts"][0]["mountPath"] = json!("/latchkey");
        container["env"] = json!([{"name": "LATCHKEY_SOCKET", "value": "/latchkey/agent.sock"}]);
    };
    assert_eq!(wrong(named).await, []);
    let ended: fn(&mut Value) = |pod| pod["status"]["phase"] = json!("Succeeded");
    assert_eq!(wrong(ended).await, one("pod", "pod_ended"));
    let waiting: fn(&mut Value) = |pod| pod["spec"]["nodeName"] = Value::Null;
    assert_eq!(wrong(waiting).await, one("pod", "not_scheduled"));
    let mirror: fn(&mut Value) =
        |pod| pod["metadata"]["annotations"] = json!({"kubernetes.io/config.mirror": "x"});
    assert_eq!(wrong(mirror).await, one("pod", "static_pod"));
    let proxy: fn(&mut Value) = |pod| {
        pod["spec"]["hostNetwork"] = json!(true);
        pod["spec"]["initContainers"] =
            json!([{"name": "p", "image": "x", "command": ["/latchkey", "proxy"]}]);
    };
    assert_eq!(wrong(proxy).await, one("network", "host_network_proxy"));
    let host: fn(&mut Value) = |pod| {
        pod["spec"]["hostNetwork"] = json!(true);
        pod["spec"]["ephemeralContainers"] = json!([{"name": "debug"}]);
    };
    assert_eq!(wrong(host).await, []);
}

#[tokio::test]
async fn a_pod_with_an_agent_of_its_own_needs_neither_mount_nor_role_nor_an_agent_on_its_node() {
    let cluster = with_agent_of_its_own();
    let ended = cluster.doctor().await;
    assert_eq!(ended.code, Some(0), "{ended:?}");
    for text in [
        "the container latchkey",
        "kubectl --namespace test exec web",
    ] {
        assert!(ended.stdout.contains(text), "{text}: {}", ended.stdout);
    }
}

#[tokio::test]
async fn an_agent_of_the_pods_own_that_is_not_ready_is_named_with_the_reason() {
    let mut cluster = with_agent_of_its_own();
    for statuses in ["containerStatuses", "initContainerStatuses"] {
        let mut status = json!({"name": "latchkey", "ready": true});
        cluster.pod["status"] = json!({"phase": "Running", statuses: [{"name": "app"}, status]});
        assert_eq!(cluster.wrong().await, []);
        status["ready"] = json!(false);
        status["state"] = json!({"waiting": {"reason": "CrashLoopBackOff"}});
        cluster.pod["status"][statuses][1] = status;
        assert_eq!(cluster.wrong().await, one("agent", "agent_not_ready"));
        let told = cluster.doctor().await.stdout;
        for text in [
            "not ready: CrashLoopBackOff",
            "kubectl --namespace test logs web --container latchkey",
        ] {
            assert!(told.contains(text), "{text}: {told}");
        }
        // With its pod it has ended, too, and that is no fault of its own.
        cluster.pod["status"]["phase"] = json!("Succeeded");
        let causes = cluster.wrong().await;
        assert!(
            !causes.contains(&("agent".into(), "agent_not_ready".into())),
            "{causes:?}"
        );
    }
}

#[tokio::test]
async fn what_is_wrong_with_account_and_agent_is_named() {
    let mut cluster = Cluster::new();
    cluster.account["metadata"]["annotations"] = json!({"eks.amazonaws.com/role-arn": "role/app"});
    assert_eq!(cluster.wrong().await, one("role", "malformed_role"));

    let mut cluster = Cluster::new();
    cluster.agents["items"][0]["spec"]["nodeName"] = json!("n2");
    assert_eq!(cluster.wrong().await, one("agent", "agent_absent"));
    cluster.agents = json!({"items": []});
    assert_eq!(cluster.wrong().await, one("agent", "agent_absent"));

    let mut cluster = Cluster::new();
    cluster.agents["items"][0]["status"] = json!({
        "conditions": [{"type": "Ready", "status": "False"}],
        "containerStatuses": [{"state": {"waiting": {"reason": "CrashLoopBackOff"}}}],
    });
    assert_eq!(cluster.wrong().await, one("agent", "agent_not_ready"));
    assert!(cluster.doctor().await.stdout.contains("CrashLoopBackOff"));

    let cluster = Cluster::new();
    cluster.doctor().await;
    for no in ["no\n", "no - no RBAC policy matched\n"] {
        cluster.answer(TOKEN, no);
        assert_eq!(cluster.wrong().await, one("tokens", "token_forbidden"));
    }
}

#[tokio::test]
async fn that_no_role_is_named_is_a_note_and_whether_the_namespace_names_one_may_not_show() {
    let mut cluster = Cluster::new();
    cluster.account["metadata"]["annotations"] = json!({});
    let noted = async |cause: &str| {
        let ended = cluster.doctor().await;
        assert_eq!(ended.code, Some(0), "{ended:?}");
        let report: Value = serde_json::from_str(&ended.stdout).expect("JSON");
        let mut findings = report["findings"].as_array().expect("findings").iter();
        let role = findings.find(|finding| finding["step"] == "role");
        let role = role.expect("it is looked at");
        assert_eq!(
            (&role["verdict"], &role["cause"]),
            (&json!("note"), &json!(cause))
        );
    };
    noted("no_role").await;
    let kubectl = cluster.directory.path().join("kubectl");
    let forbidden =
        "[ \"$2\" = namespace ] && { echo 'Error from server (Forbidden): no' >&2; exit 1; }";
    let script = KUBECTL.replacen('\n', &format!("\n{forbidden}\n"), 1);
    fs::write(kubectl, script).expect("a file");
    noted("not_looked").await;
}

#[tokio::test]
async fn what_to_type_next_is_for_the_cluster_and_the_namespace_that_were_looked_at() {
    // The fake kubectl finds its answers by its other arguments.
    let next = async |change: fn(&mut Cluster)| {
        let mut cluster = Cluster::new();
        let kubectl = cluster.directory.path().join("kubectl");
        let script = KUBECTL.replacen("\n", "\n[ \"$1 $2\" = \"--context far\" ] && shift 2\n", 1);
        fs::write(kubectl, script).expect("a file");
        change(&mut cluster);
        cluster.doctor().await;
        let arguments = ["doctor", "--pod", "test/web", "--context", "far", "--json"];
        let ended = run(cluster.directory.path(), &arguments).await;
        let report: Value =
            serde_json::from_str(&ended.stdout).unwrap_or_else(|_| panic!("{ended:?}"));
        let findings = report["findings"].as_array().expect("findings").clone();
        let next = findings
            .iter()
            .filter_map(|finding| finding["next"].as_array());
        let next = next.flatten().filter_map(Value::as_str);
        let commands = next.filter(|line| line.starts_with("kubectl "));
        commands.map(str::to_owned).collect::<Vec<_>>()
    };
    let malformed = next(|cluster| {
        cluster.account["metadata"]["annotations"] = json!({"eks.amazonaws.com/role-arn": "app"});
    });
    assert_eq!(
        malformed.await,
        [
            "kubectl --context far --namespace test annotate --overwrite serviceaccount app \
             eks.amazonaws.com/role-arn=…"
        ]
    );
    let no_role: fn(&mut Cluster) =
        |cluster| cluster.account["metadata"]["annotations"] = json!({});
    let waiting: fn(&mut Cluster) = |cluster| cluster.pod["spec"]["nodeName"] = Value::Null;
    let absent: fn(&mut Cluster) = |cluster| cluster.agents = json!({"items": []});
    let not_ready: fn(&mut Cluster) = |cluster| {
        cluster.agents["items"][0]["status"] = json!({});
    };
    let nothing: fn(&mut Cluster) = |_| {};
    for (change, count) in [
        (no_role, 2),
        (waiting, 1),
        (absent, 2),
        (not_ready, 2),
        (nothing, 1),
    ] {
        let commands = next(change).await;
        assert_eq!(commands.len(), count, "{commands:?}");
        for command in commands {
            assert!(command.starts_with("kubectl --context far "), "{command}");
        }
    }
}

#[tokio::test]
async fn a_pod_that_is_not_there_and_a_missing_kubectl_are_said_in_one_line() {
    let cluster = Cluster::new();
    let path = cluster.directory.path();
    let ended = run(path, &["doctor", "--pod", "test/none"]).await;
    assert_eq!(ended.code, Some(1), "{ended:?}");
    assert!(
        ended.stdout.contains("there is no pod test/none"),
        "{ended:?}"
    );
    // Its log is not what it says.
    let ended = run(path, &["doctor", "--pod", "test/far-away"]).await;
    let line = "latchkey: kubectl: Unable to connect to the server: dial tcp: no such host\n";
    assert_eq!(ended.stderr, line);
    ended.failed(1, "Unable to connect");
    let nowhere = tempfile::tempdir().expect("a directory");
    let mut command = Command::new(sibling_binary("sandbox-latchkey").expect("the command"));
    command
        .args(["doctor", "--pod", "test/web"])
        .env_clear()
        .env("PATH", nowhere.path());
    super::ended(command)
        .await
        .failed(1, "kubectl is not in PATH");
    run(path, &["doctor", "--pod", "web"]).await.is_usage();
    run(path, &["doctor", "--pod", "test/-n"]).await.is_usage();
}
