//! How stale a known account may be, and who waits for the next lookup.

use super::*;
use std::sync::atomic::{AtomicUsize, Ordering};
use tokio::time::advance;

/// An API server that answers or swallows requests. The UID of every account is the number of the answer.
#[derive(Clone, Default)]
struct ApiServer {
    asked: Arc<AtomicUsize>,
    swallows: Arc<std::sync::atomic::AtomicBool>,
}

impl ApiServer {
    fn directory(&self) -> Arc<Directory> {
        let server = self.clone();
        let service = tower::service_fn(move |_: http::Request<kube::client::Body>| {
            let number = server.asked.fetch_add(1, Ordering::SeqCst) + 1;
            let swallows = server.swallows.load(Ordering::SeqCst);
            async move {
                if swallows {
                    std::future::pending::<()>().await;
                }
                let account = serde_json::json!({"metadata": {"uid": number.to_string()}});
                let body = kube::client::Body::from(account.to_string().into_bytes());
                http::Response::builder().body(body)
            }
        });
        let client = kube::Client::new(service, "default");
        let look_up = LookUp {
            client,
            backends: Arc::new(Backends::none()),
            with_namespace: false,
        };
        let failures = IntCounter::new("failures", "As metrics.rs has it.").expect("a name");
        Arc::new(Directory::new(look_up, failures))
    }

    fn asked(&self) -> usize {
        self.asked.load(Ordering::SeqCst)
    }
}

/// An API server that has reported an account and then swallows requests until that has expired: a pod has waited for
/// it in vain.
async fn gone_silent() -> (ApiServer, Arc<Directory>, Arc<Principal>) {
    let server = ApiServer::default();
    let directory = server.directory();
    let principal = directory.principal(&"test".into(), &"app".into());
    ask(&directory, &principal).await;
    server.swallows.store(true, Ordering::SeqCst);
    advance(MUST_REFRESH).await;
    let held_up = ask(&directory, &principal).await;
    assert_eq!(held_up, ("1".to_owned(), LOOKUP_TIMEOUT));
    (server, directory, principal)
}

/// The UID of the account that a pod gets, and how long it waited.
async fn ask(directory: &Arc<Directory>, principal: &Arc<Principal>) -> (String, Duration) {
    let now = Instant::now();
    let account = directory.account(principal, now).await.expect("an account");
    // Lets what runs behind the answer have its turn.
    let waited = now.elapsed();
    for _ in 0..100 {
        tokio::task::yield_now().await;
    }
    (account.uid.to_string(), waited)
}

fn at_once(uid: &str) -> (String, Duration) {
    (uid.to_owned(), Duration::ZERO)
}

#[tokio::test(start_paused = true)]
async fn a_word_is_used_then_refreshed_behind_the_answer_then_before_it() {
    let server = ApiServer::default();
    let directory = server.directory();
    let principal = directory.principal(&"test".into(), &"app".into());
    assert_eq!(ask(&directory, &principal).await, at_once("1"));
    advance(MAY_REFRESH - Duration::from_millis(1)).await;
    assert_eq!(ask(&directory, &principal).await, at_once("1"));
    assert_eq!(server.asked(), 1);
    advance(Duration::from_millis(1)).await;
    assert_eq!(ask(&directory, &principal).await, at_once("1"));
    assert_eq!(ask(&directory, &principal).await, at_once("2"));
    advance(MUST_REFRESH).await;
    assert_eq!(ask(&directory, &principal).await, at_once("3"));
}

#[tokio::test(start_paused = true)]
async fn an_api_server_that_swallows_everything_holds_a_known_pod_up_once_at_most() {
    let (server, directory, principal) = gone_silent().await;
    for _ in 0..100 {
        advance(Duration::from_secs(1)).await;
        assert_eq!(ask(&directory, &principal).await, at_once("1"));
    }
    let lookups = server.asked() - 2;
    assert!((10..=20).contains(&lookups), "{lookups} lookups in 100 s");
    // The last may still be waiting.
    let failures = usize::try_from(directory.failures.get()).expect("few");
    assert!((lookups..=lookups + 1).contains(&failures), "{failures}");
    // It is back: the next lookup, for which nobody waits, brings the current account.
    server.swallows.store(false, Ordering::SeqCst);
    advance(RETRY + LOOKUP_TIMEOUT).await;
    ask(&directory, &principal).await;
    advance(LOOKUP_TIMEOUT).await;
    ask(&directory, &principal).await;
    let (uid, _) = ask(&directory, &principal).await;
    assert_eq!(uid, server.asked().to_string());
}

#[tokio::test(start_paused = true)]
async fn a_failure_of_long_ago_makes_nobody_take_an_old_word() {
    let (server, directory, principal) = gone_silent().await;
    server.swallows.store(false, Ordering::SeqCst);
    advance(MUST_REFRESH).await;
    assert_eq!(ask(&directory, &principal).await, at_once("3"));
}

#[tokio::test(start_paused = true)]
async fn a_look_whose_asker_has_left_is_remembered_all_the_same() {
    let server = ApiServer::default();
    server.swallows.store(true, Ordering::SeqCst);
    let directory = server.directory();
    let principal = directory.principal(&"test".into(), &"app".into());
    for _ in 0..20 {
        let asked = directory.account(&principal, Instant::now());
        timeout(Duration::from_millis(100), asked)
            .await
            .expect_err("it leaves before there is an answer");
    }
    assert_eq!(server.asked(), 1, "one lookup for all who came and left");
    advance(LOOKUP_TIMEOUT).await;
    let told = directory.account(&principal, Instant::now()).await;
    assert_eq!(told.expect_err("it failed").code, Code::Unavailable);
    assert_eq!(server.asked(), 1, "its outcome stands for who comes next");
}
