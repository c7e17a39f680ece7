//! Mounter, agent and kubelet are restarted in any order, and what was published works or is made to.

use super::{Node, OWN, reads_own, settings};
use crate::code;
use latchkey_agent::csi::proto::{Empty, NodeInfo};
use nix::mount::{MntFlags, MsFlags, mount, umount2};
use nix::sys::signal::Signal;
use nix::sys::statvfs::statvfs;
use std::fs;
use std::io::Write;
use std::os::unix::fs::MetadataExt;
use std::path::Path;
use std::time::{Duration, Instant};
use testkit::kubelet::{Connection, VolumeSpec};
use testkit::until;
use tokio::io::AsyncReadExt;
use tokio::net::UnixListener;
use tokio::time::{sleep, timeout};

const NONE: Option<&str> = None;

#[tokio::test]
async fn a_mounter_that_is_killed_and_started_again_knows_its_volumes() {
    needs_workloads!();
    let mut node = Node::start().await;
    let pod = node.pod("test", "web").await;
    let mounts = node.kubelet.mounts();
    node.mounter.kill().await.expect("it runs");
    reads_own(&pod.workload).await;
    node.mounter = node.kubelet.mounter().await.expect("a mounter");
    node.kubelet.register().await.expect("it registers again");
    assert_eq!(node.kubelet.mounts(), mounts);
    node.publish(&pod.volume).await.expect("again");
    assert_eq!(node.kubelet.mounts(), mounts);
    reads_own(&pod.workload).await;
    node.kubelet.unpublish(&pod.volume).await.expect("it goes");
    assert_eq!(node.kubelet.kept(), Vec::<String>::new());
}

/// As when an upgrade is taken back: the mounter that started last is the one that goes.
#[tokio::test]
async fn a_mounter_has_its_sockets_back_when_the_one_that_took_them_is_gone() {
    needs_workloads!();
    let node = Node::start().await;
    let pod = node.pod("test", "web").await;
    let mut successor = node.kubelet.mounter().await.expect("a mounter");
    node.publish(&pod.volume).await.expect("by the successor");
    // It would notice within a second, perhaps at once.
    node.mounter.signal(Signal::SIGSTOP).expect("it runs");
    successor.kill().await.expect("it runs");
    node.publish(&pod.volume).await.expect_err("nobody listens");
    node.mounter.signal(Signal::SIGCONT).expect("it is stopped");
    let is_back =
        async || node.publish(&pod.volume).await.is_ok() && node.kubelet.register().await.is_ok();
    until("the first mounter's sockets", is_back).await;
    reads_own(&pod.workload).await;
}

#[tokio::test]
async fn a_new_mounter_gives_the_memory_of_an_earlier_version_its_own_room() {
    needs_workloads!();
    let mut node = Node::start().await;
    let pod = node.pod("test", "web").await;
    let store = node.kubelet.directory().join("run");
    let files = || statvfs(&store).expect("it is mounted").files();
    let room = files();
    node.mounter.kill().await.expect("it runs");
    let smaller = Some("nr_inodes=1000");
    mount(NONE, &store, NONE, MsFlags::MS_REMOUNT, smaller).expect("root may");
    assert!(files() < room);
    node.mounter = node.kubelet.mounter().await.expect("a mounter");
    assert_eq!(files(), room);
    reads_own(&pod.workload).await;
    // One that holds more than this version would let it stays as it is, and serves.
    node.mounter.kill().await.expect("it runs");
    let larger = Some("size=64m");
    mount(NONE, &store, NONE, MsFlags::MS_REMOUNT, larger).expect("root may");
    fs::write(store.join("more"), vec![0; 40 << 20]).expect("there is room");
    node.mounter = node.kubelet.mounter().await.expect("a mounter");
    let kept = "keeps the size that it was mounted with";
    assert!(node.mounter.stderr().iter().any(|line| line.contains(kept)));
    reads_own(&pod.workload).await;
}

/// It would only say so each second, for ever. In a container the directory's mount stays, and leads to nothing.
#[tokio::test]
async fn a_mounter_whose_directory_is_removed_ends_and_says_so() {
    needs_workloads!();
    let mut node = Node::start().await;
    let directory = node.kubelet.directory();
    let unmounted = |path: &Path| umount2(path, MntFlags::MNT_DETACH).expect("root may");
    for is_mount in [false, true] {
        let on_the_node = tempfile::tempdir().expect("a directory");
        let removed = if is_mount {
            node.mounter.kill().await.expect("it runs");
            unmounted(&directory.join("run"));
            mount(
                Some(on_the_node.path()),
                &directory,
                NONE,
                MsFlags::MS_BIND,
                NONE,
            )
            .expect("root may");
            node.mounter = node.kubelet.mounter().await.expect("a mounter");
            on_the_node.path()
        } else {
            &directory
        };
        unmounted(&directory.join("run"));
        fs::remove_dir_all(removed).expect("root may");
        let ended = timeout(Duration::from_secs(10), node.mounter.until_ended()).await;
        let status = ended.expect("in time").expect("it ends");
        assert_eq!(status.code(), Some(69));
        let why = "has been removed";
        assert!(node.mounter.stderr().iter().any(|line| line.contains(why)));
        if is_mount {
            unmounted(&directory);
        }
        node.mounter = node.kubelet.mounter().await.expect("a mounter");
    }
    let (volume, container) = node.object_of("test", "web");
    let published = async || node.publish(&volume).await.is_ok();
    until("a volume that the agent has heard of", published).await;
    reads_own(&node.container(&volume, &container).await).await;
}

/// Pods need what they have, also where there is room for nothing more.
#[tokio::test]
async fn a_volume_is_published_again_where_there_is_no_room_for_another_record() {
    needs_workloads!();
    let node = Node::start().await;
    let pod = node.pod("test", "web").await;
    let run = node.kubelet.directory().join("run");
    let mut full = fs::File::create(run.join("full")).expect("a file");
    let end = std::iter::repeat_with(|| full.write_all(&[0; 4096])).find(Result::is_err);
    assert!(end.is_some());
    node.publish(&pod.volume)
        .await
        .expect("it is there already");
    fs::remove_file(run.join("full")).expect("it is there");
}

/// Mounters once made a volume read-only in their own namespace alone: the node, and so the next mounter, sees another.
#[tokio::test]
async fn a_new_mounter_takes_nothing_from_a_pod_that_runs_while_the_agent_is_away() {
    needs_workloads!();
    let mut node = Node::start().await;
    let pod = node.pod("test", "web").await;
    let mounts = node.kubelet.mounts();
    node.mounter.kill().await.expect("it runs");
    node.kill_agent().await;
    let target = node.kubelet.target(pod.volume.pod.uid(), "latchkey");
    let (none, writable) = (None::<&str>, MsFlags::MS_BIND | MsFlags::MS_REMOUNT);
    mount(none, &target, none, writable, none).expect("root may");
    node.mounter = node.kubelet.mounter().await.expect("a mounter");
    let status = node
        .publish(&pod.volume)
        .await
        .expect_err("nobody is there");
    assert_eq!(status.code, 14, "{status}");
    assert_eq!(node.kubelet.mounts(), mounts);
    node.start_agent().await;
    node.publish(&pod.volume).await.expect("again");
    // By the directory that its container has had from the start.
    reads_own(&pod.workload).await;
    fs::write(target.join("x"), "x").expect_err("it is read-only again");
}

/// As if the memory had been full, or a later version had written it.
#[tokio::test]
async fn a_record_that_makes_no_sense_is_told_once_and_replaced_when_the_kubelet_calls() {
    needs_workloads!();
    let mut node = Node::start().await;
    let pod = node.pod("test", "web").await;
    let record = node.kubelet.of_only_volume("v");
    let mounts = node.kubelet.mounts();
    node.kill_agent().await;
    fs::write(&record, "{").expect("it is there");
    // The pod runs: nothing is taken from it.
    let status = node.publish(&pod.volume).await.expect_err("no agent");
    assert_eq!(status.code, 14, "{status}");
    assert_eq!(node.kubelet.mounts(), mounts);
    fs::write(&record, "{").expect("it is there");
    node.start_agent().await;
    let told = node.agent.until_line("cannot listen").await;
    let key = record.file_name().expect("a name").to_string_lossy();
    assert!(told.expect("it says so").contains(&*key));
    // It looks each second.
    sleep(Duration::from_millis(2500)).await;
    let lines = node.agent.stderr();
    let told = lines.iter().filter(|line| line.contains("cannot listen"));
    assert_eq!(told.count(), 1);
    node.publish(&pod.volume).await.expect("again");
    reads_own(&pod.workload).await;
    node.kubelet.unpublish(&pod.volume).await.expect("it goes");
    assert_eq!(node.kubelet.kept(), Vec::<String>::new());
}

/// The kubelet made one where a container wanted `subPath: agent.sock` and no agent listened.
#[tokio::test]
async fn an_empty_directory_in_the_sockets_place_gives_way_to_it() {
    needs_workloads!();
    let mut node = Node::start().await;
    let pod = node.pod("test", "web").await;
    node.kill_agent().await;
    let socket = node.kubelet.of_only_volume("p").join("agent.sock");
    fs::remove_file(&socket).expect("it is there");
    fs::create_dir(&socket).expect("a directory");
    node.start_agent().await;
    node.publish(&pod.volume).await.expect("again");
    reads_own(&pod.workload).await;
}

#[tokio::test]
async fn an_agent_that_is_killed_listens_again_in_every_volume_and_has_tokens_with_the_next_call() {
    needs_workloads!();
    let mut node = Node::start().await;
    let pod = node.pod("test", "web").await;
    reads_own(&pod.workload).await;
    node.kill_agent().await;
    let status = node
        .publish(&pod.volume)
        .await
        .expect_err("nobody is there");
    assert_eq!(status.code, 14, "{status}");
    // What is mounted stays.
    let target = node.kubelet.target(pod.volume.pod.uid(), "latchkey");
    assert!(target.join("agent.sock").exists());
    node.start_agent().await;
    let answer = pod.workload.get(OWN).await.expect("an answer");
    assert_eq!(
        (answer.status, &*code(&answer)),
        (503, "unavailable"),
        "{}",
        answer.text()
    );
    node.publish(&pod.volume).await.expect("again");
    reads_own(&pod.workload).await;
}

#[tokio::test]
async fn an_agent_that_takes_over_has_the_pods_sockets_and_tokens_at_once() {
    needs_workloads!();
    let mut node = Node::start().await;
    let pod = node.pod("test", "web").await;
    node.until_metric("latchkey_csi_volumes", 1.0).await;
    let next = node.successor(|settings| settings).await;
    // The kubelet's calls go to the new one alone, and by what the old one holds it would seem to miss them.
    for (agent, volumes) in [(&node.agent, 0.0), (&next, 1.0)] {
        let held = agent.metric("latchkey_csi_volumes").await;
        assert!((held.expect("metrics") - volumes).abs() < f64::EPSILON);
    }
    let status = node.agent.stop().await.expect("it ends");
    assert!(status.success(), "{status}");
    // A session of its own, by a token that no kubelet has given to this agent.
    reads_own(&pod.workload).await;
    next.until_audit(|line| line["secret"] == "test/database-password")
        .await
        .expect("by the new one");
    node.publish(&pod.volume).await.expect("again");
}

/// A refusal would be final, and kept.
#[tokio::test]
async fn a_pod_that_comes_to_the_next_agent_before_its_tokens_do_is_told_to_come_back() {
    needs_workloads!();
    let mut node = Node::start().await;
    let pod = node.pod("test", "web").await;
    let target = node.kubelet.target(pod.volume.pod.uid(), "latchkey");
    let inode = || fs::metadata(target.join("agent.sock")).map(|socket| socket.ino());
    let before = inode().expect("the first agent's");
    // It has the tokens, and does not hand them over.
    node.agent.signal(Signal::SIGSTOP).expect("it runs");
    let next = settings(&node.sandbox, &node.kubelet).start().await;
    let next = next.expect("an agent");
    let is_nexts = || inode().is_ok_and(|now| now != before);
    until("the next agent's socket", async || is_nexts()).await;
    let answer = pod.workload.get(OWN).await.expect("an answer");
    answer.must_be_refused(503, "unavailable");
    assert!(answer.text().contains("kubelet"), "{}", answer.text());
    next.until_ready().await.expect("it is ready");
    node.publish(&pod.volume).await.expect("again");
    reads_own(&pod.workload).await;
    node.agent.signal(Signal::SIGCONT).expect("it is stopped");
    node.agent = next;
}

#[tokio::test]
async fn a_volume_that_goes_while_the_agent_is_away_leaves_nothing() {
    needs_workloads!();
    let mut node = Node::start().await;
    let pod = node.pod("test", "web").await;
    node.kill_agent().await;
    drop(pod.workload);
    node.kubelet
        .unpublish(&pod.volume)
        .await
        .expect("it goes all the same");
    assert_eq!(node.kubelet.kept(), Vec::<String>::new());
    node.start_agent().await;
    assert_eq!(node.kubelet.kept(), Vec::<String>::new());
    assert!(
        node.agent
            .metric("latchkey_csi_volumes")
            .await
            .expect("a metric")
            < 1.0
    );
}

/// It looks at the records each second, and where it finds one it listens: in a directory that is just being removed, too.
#[tokio::test]
async fn the_agent_hears_that_a_volume_goes_when_its_record_is_gone_and_its_directory_is_there() {
    needs_workloads!();
    let mut node = Node::start().await;
    let pod = node.pod("test", "web").await;
    drop(pod.workload);
    node.kill_agent().await;
    let run = node.kubelet.directory().join("run");
    // In the agent's place.
    fs::remove_file(run.join("control.sock")).expect("the agent's");
    let listener = UnixListener::bind(run.join("control.sock")).expect("a socket");
    let names = |directory: &str| {
        fs::read_dir(run.join(directory))
            .expect("it is there")
            .count()
    };
    assert_eq!((names("v"), names("p")), (1, 1));
    let heard = async {
        let (mut mounter, _) = listener.accept().await.expect("a connection");
        let length = mounter.read_u32().await.expect("a frame");
        let mut question = vec![0; length as usize];
        mounter.read_exact(&mut question).await.expect("all of it");
        let question = String::from_utf8(question).expect("JSON");
        (question, names("v"), names("p"))
    };
    let heard = timeout(Duration::from_secs(10), heard);
    let (gone, heard) = tokio::join!(node.kubelet.unpublish(&pod.volume), heard);
    let (question, records, directories) = heard.expect("the mounter asks");
    gone.expect("it goes all the same");
    assert!(question.contains("unpublish"), "{question}");
    assert_eq!((records, directories), (0, 1));
    assert_eq!(node.kubelet.kept(), Vec::<String>::new());
}

#[tokio::test]
async fn an_agent_that_is_away_fails_a_new_publish_cleanly_and_the_next_succeeds() {
    needs_workloads!();
    let mut node = Node::start().await;
    node.kill_agent().await;
    let (volume, container) = node.object_of("test", "web");
    let before = node.kubelet.mounts();
    let status = node.publish(&volume).await.expect_err("nobody is there");
    assert_eq!(status.code, 14, "{status}");
    assert!(status.message.contains("agent"), "{status}");
    // No agent counts it, so this is all that the node tells of it.
    let told = node.mounter.until_line("a volume is not published").await;
    told.expect("the mounter's log says so");
    assert_eq!(
        (node.kubelet.mounts(), node.kubelet.kept()),
        (before, Vec::new())
    );
    node.start_agent().await;
    node.publish(&volume).await.expect("now");
    reads_own(&node.container(&volume, &container).await).await;
}

#[tokio::test]
async fn a_mounter_killed_at_any_moment_of_a_publish_is_followed_by_one_that_finishes_it() {
    needs_workloads!();
    let mut node = Node::start().await;
    let before = node.kubelet.mounts();
    for round in 0..12_u64 {
        let (volume, container) = node.object_of("test", &format!("web-{round}"));
        let kill = async {
            // Each time a little later: before, in and after every step of a publish.
            sleep(Duration::from_micros(round * 700)).await;
            node.mounter.kill().await.expect("it runs");
        };
        let published = node.kubelet.publish(&node.sandbox.kube, &volume);
        let (_, ()) = tokio::join!(published, kill);
        node.mounter = node.kubelet.mounter().await.expect("a mounter");
        if round % 2 == 0 {
            node.publish(&volume)
                .await
                .expect("the kubelet tries again");
            reads_own(&node.container(&volume, &container).await).await;
            let target = node.kubelet.target(volume.pod.uid(), "latchkey");
            let here = |point: &&std::path::PathBuf| **point == target;
            assert_eq!(node.kubelet.mounts().iter().filter(here).count(), 1);
        }
        // Or the pod was deleted meanwhile.
        node.kubelet.unpublish(&volume).await.expect("it goes");
        assert!(!node.kubelet.target(volume.pod.uid(), "latchkey").exists());
        assert_eq!(
            (node.kubelet.mounts(), node.kubelet.kept()),
            (before.clone(), Vec::new())
        );
    }
}

#[tokio::test]
async fn a_volume_whose_pod_is_gone_without_a_word_is_removed_when_the_mounter_starts() {
    needs_workloads!();
    let mut node = left_behind(1).await;
    node.mounter = node.kubelet.mounter().await.expect("a mounter");
    until("an empty store", async || node.kubelet.kept().is_empty()).await;
}

#[tokio::test]
async fn a_mounter_starts_and_ends_at_once_though_the_agent_hangs_that_is_to_let_go_of_a_volume() {
    needs_workloads!();
    let mut node = left_behind(10).await;
    node.agent.signal(Signal::SIGSTOP).expect("it runs");
    let begun = Instant::now();
    node.mounter = node.kubelet.mounter().await.expect("a mounter");
    let removing = "a volume whose pod is gone is removed";
    node.mounter.until_line(removing).await.expect("it begins");
    node.mounter.stop().await.expect("it ends");
    // The agent has two seconds for each of them.
    assert!(
        begun.elapsed() < Duration::from_secs(15),
        "{:?}",
        begun.elapsed()
    );
}

#[tokio::test]
async fn a_mounter_that_is_told_to_end_does_not_wait_for_connections_without_a_call() {
    needs_workloads!();
    let mut node = Node::start().await;
    let endpoint = node.kubelet.endpoint();
    let mut idle = Connection::open(&endpoint).await.expect("a connection");
    let asked = idle.call::<NodeInfo>("/csi.v1.Node/NodeGetInfo", &Empty {});
    asked.await.expect("an answer");
    let begun = Instant::now();
    node.mounter.stop().await.expect("it ends");
    assert!(
        begun.elapsed() < Duration::from_secs(5),
        "{:?}",
        begun.elapsed()
    );
}

/// A node whose mounter has ended, and then the pods of so many volumes, without a word.
async fn left_behind(volumes: usize) -> Node {
    let mut node = Node::start().await;
    let mut pods = Vec::new();
    for number in 0..volumes {
        pods.push(node.pod("test", &format!("web-{number}")).await);
    }
    node.mounter.stop().await.expect("it ends");
    for pod in pods {
        drop(pod.workload);
        let target = node.kubelet.target(pod.volume.pod.uid(), "latchkey");
        nix::mount::umount(&target).expect("root may");
        let of_pod = node.kubelet.root().join("pods").join(pod.volume.pod.uid());
        fs::remove_dir_all(of_pod).expect("it is the kubelet's");
    }
    node
}

/// The kubelet was down when they were deleted by force, and keeps their directories, since something is mounted there.
#[tokio::test]
async fn a_volume_goes_once_the_api_server_knows_its_pod_no_longer_and_stays_while_no_agent_says_so()
 {
    needs_workloads!();
    let mut node = Node::start().await;
    let one = node.pod("test", "one").await;
    let two = node.pod("test", "two").await;
    let target = |volume: &VolumeSpec| node.kubelet.target(volume.pod.uid(), &volume.name);
    let (of_one, of_two) = (target(&one.volume), target(&two.volume));
    node.mounter.kill().await.expect("it runs");
    one.volume.pod.delete();
    node.mounter = node.kubelet.mounter().await.expect("a mounter");
    until("no volume of the one", async || {
        !of_one.exists() && node.kubelet.kept().len() == 2
    })
    .await;
    reads_own(&two.workload).await;
    node.mounter.kill().await.expect("it runs");
    node.kill_agent().await;
    two.volume.pod.delete();
    let mounts = node.kubelet.mounts();
    node.mounter = node.kubelet.mounter().await.expect("a mounter");
    sleep(Duration::from_secs(1)).await;
    assert_eq!(node.kubelet.mounts(), mounts);
    assert!(of_two.join("agent.sock").exists());
}

#[tokio::test]
async fn the_agent_waits_for_a_mounter_that_comes_later() {
    needs_workloads!();
    let mut node = Node::start().await;
    node.mounter.kill().await.expect("it runs");
    // As after a start of the node: nothing is mounted.
    let store = node.kubelet.directory().join("run");
    nix::mount::umount2(&store, nix::mount::MntFlags::MNT_DETACH).expect("root may");
    assert!(!Path::new(&store).join("control.sock").exists());
    node.mounter = node.kubelet.mounter().await.expect("a mounter");
    until("a control socket", async || {
        store.join("control.sock").exists()
    })
    .await;
    let pod = node.pod("test", "web").await;
    reads_own(&pod.workload).await;
}
