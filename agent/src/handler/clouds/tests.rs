use super::*;
use crate::attest::cgroup::PodUid;
use crate::attest::pods::{Facts, Pod, Settings};
use crate::backend::Roots;
use crate::config::Config;
use crate::error::RequestError;
use crate::role::Role;
use latchkey_client::protocol::Code;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

/// A backend that gives a session to everyone.
async fn clouds() -> Arc<Clouds> {
    let folder = tempfile::tempdir().expect("a directory");
    let file = folder.path().join("config.toml");
    let text = format!(
        "default_backend = \"file\"\n[backends.file]\ntype = \"file\"\npath = {:?}\n",
        folder.path()
    );
    std::fs::write(&file, text).expect("a file");
    let node = ("NODE_NAME".to_owned(), "node".to_owned());
    let config = Config::load(Some(&file), [node].into_iter(), Vec::new());
    let backends = Backends::open(&config.expect("a configuration"), Roots::none()).await;
    Arc::new(Clouds {
        backends: Arc::new(backends.expect("a folder")),
        tokens: SubjectTokens::None,
        metrics: Arc::new(Metrics::new().expect("metrics")),
        warnings: Warnings::default(),
    })
}

fn workload() -> Workload {
    let facts = Facts::of_principal("test", "app", "web");
    let pod = Pod::new(Some(PodUid::synthetic(1)), facts, &Settings::default());
    Workload::synthetic(pod)
}

fn key(clouds: &Clouds) -> SessionKey {
    SessionKey {
        backend: clouds.backends.find(None).expect("one"),
        role: Arc::new(Role {
            name: "role".into(),
            proof: Proof::None,
            prefix: "".into(),
            place: "".into(),
            via: None,
        }),
        account: "uid".into(),
    }
}

/// Each takes memory for as long as a vault is slow.
#[tokio::test(start_paused = true)]
async fn a_vault_is_called_only_with_one_of_a_bounded_number_of_permits() {
    let clouds = clouds().await;
    let (workload, key) = (workload(), key(&clouds));
    let called = AtomicUsize::new(0);
    let calls = async || {
        let call = |_: Arc<dyn Session>| async {
            called.fetch_add(1, Ordering::Relaxed);
            Ok(())
        };
        let asker = RequestId::new("", 1);
        clouds.call(&workload, &key, asker, "read", call).await
    };
    let mut taken = Vec::new();
    while let Some(permit) = workload.pod().quota.call().await {
        taken.push(permit);
    }
    let crowded = calls().await.expect_err("too many are under way");
    assert!(crowded.fault == Fault::Unreachable && crowded.error.code == Code::Unavailable);
    assert_eq!(called.load(Ordering::Relaxed), 0);
    taken.pop();
    calls().await.expect("one has ended");
    calls().await.expect("it was given back");
    assert_eq!(called.load(Ordering::Relaxed), 2);
}

/// The session may date from before the role got its permission back.
#[tokio::test(start_paused = true)]
async fn a_session_that_is_refused_when_it_is_not_young_is_followed_by_another() {
    let clouds = clouds().await;
    let (workload, key) = (workload(), key(&clouds));
    let is_refused = async || {
        let asker = RequestId::new("", 1);
        let refuse = |_: Arc<dyn Session>| async {
            let error = RequestError::new(Code::Denied, "no");
            Err::<(), _>(BackendError::new(Fault::Refused, error))
        };
        let called = clouds.call(&workload, &key, asker, "read", refuse).await;
        called.is_err_and(|failed| failed.is_refusal())
    };
    let sessions = || workload.pod().sessions.count(key.backend);
    assert!(is_refused().await);
    assert_eq!(sessions(), 1, "it is young");
    tokio::time::advance(Duration::from_secs(30)).await;
    assert!(is_refused().await);
    assert_eq!(sessions(), 0);
}
