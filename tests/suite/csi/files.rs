//! Secrets as files in a volume: read by the agent in the pod's name, never seen by the mounter.

mod refusals;
mod restarts;
mod room;

use super::{CsiPod, Node};
use crate::hygiene::copies_in_memory;
use crate::must_be_loud;
use std::fs;
use std::os::unix::fs::{MetadataExt, PermissionsExt};
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;
use testkit::agent::AgentSettings;
use testkit::aws::Operation;
use testkit::kubelet::VolumeSpec;
use testkit::sandbox::{REGION, password};
use testkit::until;

/// The group of the pods of these tests.
const GROUP: u32 = 2000;

/// What a pod asks for that wants its password, and nothing else.
const PASSWORD: &str = r#"["test/database-password"]"#;

/// The file that it is then in.
const FILE: &str = "database-password";

impl Node {
    /// A node whose agent reads files again each second.
    async fn refreshing() -> Self {
        Self::start_with(refreshing).await
    }

    /// A pod's volume that is to hold these secrets as files.
    fn asking(&self, name: &str, secrets: &str) -> (VolumeSpec, String) {
        let (mut volume, container) = self.object_of("test", name);
        volume.attributes = vec![("secrets".into(), secrets.into())];
        volume.group = Some(GROUP);
        (volume, container)
    }

    /// Publishes such a volume. Gives its directory as the pod sees it.
    async fn with_files(&self, name: &str, secrets: &str) -> (VolumeSpec, PathBuf) {
        let (volume, _) = self.asking(name, secrets);
        self.publish(&volume).await.expect("it is published");
        let target = self.target(&volume);
        (volume, target)
    }

    fn target(&self, volume: &VolumeSpec) -> PathBuf {
        self.kubelet.target(volume.pod.uid(), &volume.name)
    }
}

fn refreshing(settings: AgentSettings) -> AgentSettings {
    settings.set("csi.refresh", "1s")
}

fn read(path: &Path) -> String {
    fs::read_to_string(path).unwrap_or_else(|error| panic!("{}: {error}", path.display()))
}

async fn until_it_holds(path: &Path, text: &str) {
    let holds = async || fs::read_to_string(path).is_ok_and(|held| held == text);
    until("the file with what was rotated", holds).await;
}

#[tokio::test]
async fn a_pods_files_are_there_before_it_starts_for_its_group_alone_and_beside_its_socket() {
    needs_workloads!();
    let node = Node::start().await;
    node.sandbox
        .aws_secret("test/login", r#"{"user": "me", "port": 5432}"#);
    let secrets = r#"[
        "test/database-password",
        {"name": "test/login", "key": "user", "file": "login.user", "mode": "0444"},
        {"name": "test/login", "key": "port", "file": ".port", "mode": "0400"},
        {"name": "test/absent", "optional": true}
    ]"#;
    let (volume, container) = node.asking("web", secrets);
    node.publish(&volume).await.expect("it is published");
    let target = node.target(&volume);
    for (file, content, mode) in [
        (FILE, &*password("test"), 0o440),
        ("login.user", "me", 0o444),
        (".port", "5432", 0o400),
    ] {
        let path = target.join(file);
        assert_eq!(read(&path), content);
        let stat = fs::metadata(&path).expect("it is there");
        let seen = (stat.uid(), stat.gid(), stat.mode() & 0o7777);
        assert_eq!(seen, (0, GROUP, mode), "{file}");
    }
    assert!(fs::symlink_metadata(target.join("absent")).is_err());
    // As the pod's processes see it, whoever they are on the node.
    fs::set_permissions(node.kubelet.root(), fs::Permissions::from_mode(0o755)).expect("a mode");
    let reads = |group: u32| {
        let mut command = Command::new("cat");
        command.arg(target.join(FILE)).uid(10_001).gid(group);
        command.output().expect("cat").status.success()
    };
    assert!(reads(GROUP), "the group cannot read");
    assert!(!reads(GROUP + 1), "another group can read");
    // In memory, off swap where the kernel can do that, bounded, and nobody's to write.
    let mounts = read(Path::new("/proc/self/mountinfo"));
    let line = mounts
        .lines()
        .find(|line| line.contains(&*target.to_string_lossy()))
        .expect("the mount");
    assert!(line.contains(" ro,nosuid,nodev,noexec"), "{line}");
    assert!(
        line.contains(" - tmpfs ") && line.contains("size=8192k"),
        "{line}"
    );
    fs::write(target.join("x"), "x").expect_err("it is read-only");
    super::reads_own(&node.container(&volume, &container).await).await;
    // The reads are in the trail as what they are: nobody's request.
    let line = node
        .agent
        .until_audit(|line| {
            line["volume"] == "latchkey" && line["secret"] == "test/database-password"
        })
        .await
        .expect("a line");
    assert_eq!(
        (&line["pod"], &line["outcome"]),
        (&"web".into(), &"ok".into())
    );
    assert_eq!((&line["pid"], &line["uid"]), (&().into(), &().into()));
    let of_login = |line: &&serde_json::Value| line["secret"] == "test/login";
    let audit = node.agent.audit();
    assert_eq!(
        audit.iter().filter(of_login).count(),
        1,
        "read once for both files"
    );
}

#[tokio::test]
async fn files_follow_a_rotation_and_nobody_ever_reads_half_of_one_or_two_that_do_not_match() {
    needs_workloads!();
    let node = Node::refreshing().await;
    // Long, so that a file that is written in place would be caught in the middle.
    let pair = |letter: char| {
        let half = |end: &str| format!("{}{end}", String::from(letter).repeat(20_000));
        serde_json::json!({"crt": half("crt"), "key": half("key")}).to_string()
    };
    node.sandbox.aws_secret("test/tls", &pair('a'));
    let secrets = r#"[{"name": "test/tls", "key": "crt", "file": "crt"}, {"name": "test/tls", "key": "key", "file": "key"}]"#;
    let (_volume, target) = node.with_files("web", secrets).await;
    let inode = || fs::metadata(target.join("crt")).expect("it is there").ino();
    let before = inode();
    let stop = Arc::new(AtomicBool::new(false));
    let reader = std::thread::spawn({
        let (target, stop) = (target.clone(), stop.clone());
        move || {
            let mut seen = std::collections::BTreeSet::new();
            let mut is_last = false;
            while !is_last {
                // Once more after the last version has come.
                is_last = stop.load(Ordering::Relaxed);
                for file in ["crt", "key"] {
                    let text = read(&target.join(file));
                    let letters = text.strip_suffix(file).expect("it is whole");
                    assert_eq!(letters.len(), 20_000);
                    let first = letters.chars().next().expect("a letter");
                    assert!(
                        letters.chars().all(|letter| letter == first),
                        "two versions in one file"
                    );
                    seen.insert(first);
                }
                // Who wants both of one set holds on to the set.
                let set = target.join(fs::read_link(target.join("..data")).expect("a set"));
                let both = ["crt", "key"].map(|file| fs::read_to_string(set.join(file)));
                if let [Ok(crt), Ok(key)] = both {
                    assert_eq!(crt[..1], key[..1], "two that do not match");
                }
            }
            seen
        }
    });
    // What has not changed is not written again.
    tokio::time::sleep(Duration::from_millis(2500)).await;
    assert_eq!(inode(), before, "written without need");
    for letter in ['b', 'c', 'd'] {
        node.sandbox.aws_secret("test/tls", &pair(letter));
        let begins = || read(&target.join("key")).starts_with(letter);
        until("the new version", async || begins()).await;
    }
    stop.store(true, Ordering::Relaxed);
    let seen = reader.join().expect("no read was half");
    assert_eq!(seen.into_iter().collect::<String>(), "abcd");
    let left = fs::read_dir(&target).expect("it can be read").flatten();
    let mut left: Vec<_> = left
        .filter_map(|entry| entry.file_name().into_string().ok())
        .collect();
    left.retain(|name| !name.starts_with("..") || name == "..data");
    left.sort();
    assert_eq!(left, ["..data", "agent.sock", "crt", "key"]);
    // The set and the link to it. The one before goes after the link has turned to its successor.
    let is_alone = || {
        let entries = fs::read_dir(&target).expect("it can be read").flatten();
        let hidden = entries.filter(|entry| entry.file_name().to_string_lossy().starts_with(".."));
        hidden.count() == 2
    };
    until("no old set", async || is_alone()).await;
}

/// Two reads could be of two versions.
#[tokio::test]
async fn a_secret_is_read_once_whether_its_entries_name_the_backend_or_leave_it_out() {
    needs_workloads!();
    let node = Node::start().await;
    node.sandbox
        .aws_secret("test/tls", r#"{"crt": "c", "key": "k"}"#);
    let secrets = r#"[{"name": "test/tls", "key": "crt", "file": "crt"},
        {"name": "test/tls", "key": "key", "file": "key", "backend": "aws"}]"#;
    let (_volume, target) = node.with_files("web", secrets).await;
    assert_eq!(read(&target.join("key")), "k");
    assert_eq!(node.sandbox.aws.count_of(Operation::GetSecretValue), 1);
}

#[tokio::test]
async fn an_optional_file_comes_and_goes_with_its_secret() {
    needs_workloads!();
    let node = Node::refreshing().await;
    let secrets = r#"["test/database-password", {"name": "test/extra", "optional": true}]"#;
    let (_volume, target) = node.with_files("web", secrets).await;
    let extra = target.join("extra");
    assert!(fs::symlink_metadata(&extra).is_err());
    node.sandbox.aws_secret("test/extra", "more");
    until_it_holds(&extra, "more").await;
    node.sandbox.aws.delete_secret(REGION, "test/extra");
    until("no file", async || fs::symlink_metadata(&extra).is_err()).await;
    assert_eq!(read(&target.join(FILE)), password("test"));
}

#[tokio::test]
async fn files_that_cannot_be_read_again_stay_and_the_log_names_the_pod() {
    needs_workloads!();
    let node = Node::refreshing().await;
    let (_volume, target) = node.with_files("web", PASSWORD).await;
    node.sandbox
        .aws
        .delete_secret(REGION, "test/database-password");
    let told = node.agent.until_line("a volume's files cannot be read");
    let line = told.await.expect("it says so");
    for part in [
        r#""namespace":"test""#,
        r#""pod":"web""#,
        "test/database-password",
    ] {
        assert!(line.contains(part), "{part}: {line}");
    }
    assert_eq!(read(&target.join(FILE)), password("test"));
}

#[tokio::test]
async fn neither_the_mounter_nor_any_log_ever_holds_what_is_in_the_files() {
    needs_workloads!();
    let node = Node::start_with(|settings| refreshing(settings).set("log.level", "trace")).await;
    let (volume, target) = node.with_files("web", PASSWORD).await;
    let secret = password("test");
    assert_eq!(read(&target.join(FILE)), secret);
    for _ in 0..3 {
        node.publish(&volume).await.expect("again");
        assert_eq!(copies_in_memory(node.mounter.pid(), &secret), 0);
    }
    // It is there to be found: this process has it.
    assert!(
        copies_in_memory(std::process::id(), &secret) > 0,
        "the search finds nothing at all"
    );
    must_be_loud(&node.agent, &node.sandbox.socket()).await;
    for line in node.mounter.stderr().into_iter().chain(node.agent.stderr()) {
        assert!(!line.contains(&secret), "{line}");
    }
}

#[tokio::test]
async fn an_unpublished_volume_takes_its_files_and_their_memory_with_it() {
    needs_workloads!();
    let node = Node::refreshing().await;
    let before = node.kubelet.mounts();
    for number in 0..5 {
        let (volume, container) = node.asking(&format!("web-{number}"), PASSWORD);
        node.publish(&volume).await.expect("it is published");
        let CsiPod { volume, workload } = CsiPod {
            workload: node.container(&volume, &container).await,
            volume,
        };
        super::reads_own(&workload).await;
        drop(workload);
        for _ in 0..2 {
            node.kubelet.unpublish(&volume).await.expect("it goes");
        }
        volume.pod.delete();
        assert!(!node.target(&volume).exists());
        assert_eq!(node.kubelet.mounts(), before);
        assert_eq!(node.kubelet.kept(), Vec::<String>::new());
    }
}
