//! The backend `file`: a folder of secrets, one file each.

use crate::code;
use std::fs;
use std::os::unix::fs::{PermissionsExt, symlink};
use std::path::PathBuf;
use testkit::agent::AgentProcess;
use testkit::sandbox::{Sandbox, SandboxPod};

/// A node whose agent reads files, with a pod in `test`.
struct Scene {
    sandbox: Sandbox,
    _agent: AgentProcess,
    pod: SandboxPod,
}

impl Scene {
    async fn set() -> Self {
        let sandbox = Sandbox::start().await.expect("a sandbox");
        sandbox.aws_namespace("test");
        let folder = sandbox.directory().join("secrets");
        fs::create_dir_all(folder.join("test")).expect("a folder");
        for path in [&folder, &folder.join("test")] {
            fs::set_permissions(path, PermissionsExt::from_mode(0o700)).expect("ours");
        }
        let agent = sandbox
            .agent_with(|settings| {
                settings
                    .set("default_backend", "file")
                    .set("backends.file.path", folder.display())
            })
            .await
            .expect("an agent");
        let pod = sandbox.pod("test", "web").await.expect("a pod");
        Self {
            sandbox,
            _agent: agent,
            pod,
        }
    }

    fn path(&self, name: &str) -> PathBuf {
        self.sandbox.directory().join("secrets").join(name)
    }

    fn write(&self, name: &str, value: &[u8]) {
        fs::write(self.path(name), value).expect("a file");
        fs::set_permissions(self.path(name), PermissionsExt::from_mode(0o600)).expect("ours");
    }

    async fn code_of(&self, name: &str) -> (u16, String) {
        let answer = self.pod.secret(name).await.expect("an answer");
        (answer.status, code(&answer))
    }
}

#[tokio::test]
async fn a_file_is_read_anew_each_time_as_text_or_bytes() {
    needs_workloads!();
    let scene = Scene::set().await;
    let large = "x".repeat(64 * 1024);
    for value in ["hunter2", "", "zwei\nZeilen \u{1f511}", &large] {
        scene.write("test/db", value.as_bytes());
        let answer = scene.pod.secret("test/db").await.expect("an answer");
        answer.must_be_ok();
        assert_eq!(answer.json()["value"], value);
        assert_eq!(answer.json()["backend"], "file");
    }
    scene.write("test/db", b"\xff\x00");
    let answer = scene.pod.secret("test/db").await.expect("an answer").json();
    assert_eq!(answer["value"], "/wA=");
    assert_eq!(answer["encoding"], "base64");
    scene.write("test/db", b"other");
    let rotated = scene.pod.secret("test/db").await.expect("an answer").json();
    assert_ne!(answer["version"], rotated["version"]);
    scene.write("test/db", &vec![b'x'; (1 << 20) + 1]);
    assert_eq!(scene.code_of("test/db").await, (413, "too_large".into()));
}

#[tokio::test]
async fn what_others_may_write_is_refused_until_they_may_not() {
    needs_workloads!();
    let scene = Scene::set().await;
    scene.write("test/db", b"hunter2");
    for (path, mode) in [("test/db", 0o620), ("test/db", 0o602), ("test", 0o770)] {
        let before = fs::metadata(scene.path(path)).expect("there").permissions();
        fs::set_permissions(scene.path(path), PermissionsExt::from_mode(mode)).expect("ours");
        assert_eq!(
            scene.code_of("test/db").await,
            (403, "denied".into()),
            "{path} {mode:o}"
        );
        fs::set_permissions(scene.path(path), before).expect("ours");
        assert_eq!(scene.code_of("test/db").await.0, 200);
    }
    std::os::unix::fs::chown(scene.path("test/db"), Some(41_003), None).expect("root may");
    assert_eq!(scene.code_of("test/db").await, (403, "denied".into()));
}

#[tokio::test]
async fn no_name_and_no_link_leads_out_of_the_folder() {
    needs_workloads!();
    let scene = Scene::set().await;
    fs::write(scene.sandbox.directory().join("outside"), "not ours").expect("a file");
    let outside = scene.sandbox.directory().join("outside");
    symlink(&outside, scene.path("test/absolute")).expect("a link");
    symlink("../../outside", scene.path("test/relative")).expect("a link");
    scene.write("test/db", b"hunter2");
    symlink("db", scene.path("test/inside")).expect("a link");
    for name in ["test/absolute", "test/relative"] {
        assert_eq!(scene.code_of(name).await, (403, "denied".into()), "{name}");
    }
    assert_eq!(scene.code_of("test/inside").await.0, 200);
    for name in [
        "test/..%2F..%2Foutside",
        "..%2Foutside",
        "test/.hidden",
        "test/%2e%2e/outside",
    ] {
        assert_eq!(scene.code_of(name).await.0, 400, "{name}");
    }
    for name in ["test/none", "test/db/x"] {
        assert_eq!(
            scene.code_of(name).await,
            (404, "not_found".into()),
            "{name}"
        );
    }
    let list = scene
        .pod
        .get("/v1/secrets")
        .await
        .expect("an answer")
        .json();
    assert_eq!(
        list["secrets"],
        serde_json::json!(["test/db", "test/inside"])
    );
}

#[tokio::test]
async fn a_pod_reads_the_folder_of_its_namespace_and_no_other() {
    needs_workloads!();
    let scene = Scene::set().await;
    scene.sandbox.aws_namespace("prod");
    fs::create_dir(scene.path("prod")).expect("a folder");
    fs::set_permissions(scene.path("prod"), PermissionsExt::from_mode(0o700)).expect("ours");
    scene.write("prod/db", b"of prod");
    scene.write("common", b"of nobody");
    for name in ["prod/db", "common"] {
        assert_eq!(scene.code_of(name).await, (403, "denied".into()), "{name}");
    }
    let prod = scene.sandbox.pod("prod", "web").await.expect("a pod");
    let answer = prod.secret("prod/db").await.expect("an answer");
    assert_eq!(answer.json()["value"], "of prod");
    // A prefix is the namespace's own word, and leads no further.
    for (namespace, prefix, name, status) in [
        ("thief", "prod/", "db", 403),
        ("climber", "climber/../prod/", "db", 400),
        ("prod-too", "prod", "/db", 400),
        ("prefixed", "prefixed/", "db", 404),
    ] {
        let prefix = [("latchkey.dev/prefix", prefix)];
        scene.sandbox.namespace(namespace, &prefix);
        let pod = scene.sandbox.pod(namespace, "web").await.expect("a pod");
        let answer = pod.secret(name).await.expect("an answer");
        assert_eq!(answer.status, status, "{namespace}: {}", answer.text());
    }
}

#[tokio::test]
async fn a_folder_that_cannot_be_used_stops_the_start_with_its_key() {
    needs_workloads!();
    let sandbox = Sandbox::start().await.expect("a sandbox");
    let folder = sandbox.directory().join("secrets");
    let settings = sandbox.settings().expect("settings");
    let settings = settings
        .set("default_backend", "file")
        .set("backends.file.path", folder.display());
    let (status, _, missing) = settings.run_to_end(&[]).await.expect("it ends");
    assert_eq!(status.code(), Some(69), "{missing}");
    assert!(missing.contains("backends.file.path"), "{missing}");
    fs::create_dir(&folder).expect("a folder");
    fs::set_permissions(&folder, PermissionsExt::from_mode(0o777)).expect("ours");
    let (status, _, open) = settings.run_to_end(&[]).await.expect("it ends");
    assert_eq!(status.code(), Some(69), "{open}");
    assert!(open.contains("chmod it go-w"), "{open}");
}
