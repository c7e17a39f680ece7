use super::*;
use crate::backend::{BackendId, Fault, Page, Secret, Selector};
use crate::error::RequestError;
use crate::role::Proof;
use crate::secret::SecretName;
use async_trait::async_trait;
use std::sync::atomic::{AtomicUsize, Ordering};
use tokio::time::{advance, sleep};

const LIFE: Duration = Duration::from_secs(3600);

#[derive(Debug)]
struct Numbered(usize, Duration);

#[async_trait]
impl Session for Numbered {
    fn lives_for(&self) -> Duration {
        self.1
    }
    async fn read(&self, _: &SecretName, _: &Selector, _: &str) -> Result<Secret, BackendError> {
        Err(BackendError::died())
    }
    async fn list(&self, _: usize, _: Option<String>, _: &str) -> Result<Page, BackendError> {
        Ok(Page {
            more_calls: 0,
            names: vec![self.0.to_string()],
            next: None,
        })
    }
}

/// A token service that counts exchanges, and refuses them when told to.
#[derive(Clone, Default)]
struct Service {
    life: Option<Duration>,
    exchanges: Arc<AtomicUsize>,
    refuses: Arc<std::sync::atomic::AtomicBool>,
    gives_no_token: Arc<std::sync::atomic::AtomicBool>,
    away: Arc<std::sync::atomic::AtomicBool>,
    /// How long it asks to wait while it is away.
    wait: Option<Duration>,
    renewals_failed: Arc<AtomicUsize>,
}

impl Service {
    fn exchanges(&self) -> usize {
        self.exchanges.load(Ordering::SeqCst)
    }

    async fn exchange(self) -> Result<Arc<dyn Session>, BackendError> {
        let number = self.exchanges.fetch_add(1, Ordering::SeqCst) + 1;
        sleep(Duration::from_millis(50)).await;
        if self.refuses.load(Ordering::SeqCst) {
            let error = RequestError::new(Code::Denied, "no");
            return Err(BackendError::new(Fault::Refused, error));
        }
        if self.gives_no_token.load(Ordering::SeqCst) {
            return Err(RequestError::new(Code::Denied, "not the agent's").into());
        }
        if self.away.load(Ordering::SeqCst) {
            let error = RequestError::unavailable("away").retry_after(self.wait);
            return Err(error.into());
        }
        Ok(Arc::new(Numbered(number, self.life.unwrap_or(LIFE))))
    }

    async fn open(&self, sessions: &Sessions, key: &SessionKey) -> Result<usize, BackendError> {
        number(&self.session(sessions, key).await?).await
    }

    async fn session(
        &self,
        sessions: &Sessions,
        key: &SessionKey,
    ) -> Result<Arc<dyn Session>, BackendError> {
        let failed = self.renewals_failed.clone();
        let exchange = || self.clone().exchange();
        let failed = move |_: &BackendError| {
            failed.fetch_add(1, Ordering::SeqCst);
        };
        let asker = RequestId::new("", 1);
        sessions.open(key, asker, exchange, failed).await
    }
}

async fn number(session: &Arc<dyn Session>) -> Result<usize, BackendError> {
    let page = session.list(1, None, "request").await?;
    Ok(page
        .names
        .first()
        .and_then(|name| name.parse().ok())
        .unwrap_or_default())
}

fn key(role: &str) -> SessionKey {
    SessionKey {
        backend: BackendId::synthetic(0),
        role: Arc::new(Role {
            name: role.into(),
            proof: Proof::Token("sts.amazonaws.com".into()),
            place: "eu-central-1".into(),
            via: None,
            prefix: "".into(),
        }),
        account: "account".into(),
    }
}

#[tokio::test(start_paused = true)]
async fn all_who_ask_at_once_share_one_exchange() {
    let (sessions, service, key) = (Sessions::default(), Service::default(), key("role"));
    let asks = (0..32).map(|_| service.open(&sessions, &key));
    for number in futures::future::join_all(asks).await {
        assert_eq!(number.expect("a session"), 1);
    }
    assert_eq!(service.exchanges(), 1);
    assert_eq!(
        (
            sessions.count(BackendId::synthetic(0)),
            sessions.count(BackendId::synthetic(1))
        ),
        (1, 0)
    );
}

#[tokio::test(start_paused = true)]
async fn of_exchanges_that_fail_only_renewals_are_told() {
    for over in [false, true] {
        let (sessions, service, key) = (Sessions::default(), Service::default(), key("role"));
        let fails = Service {
            life: Some(Duration::ZERO),
            ..service.clone()
        };
        service.away.store(!over, Ordering::SeqCst);
        assert!(fails.open(&sessions, &key).await.is_err());
        service.away.store(false, Ordering::SeqCst);
        advance(LIFE / 2).await;
        service.open(&sessions, &key).await.expect("a session");
        assert_eq!(service.renewals_failed.load(Ordering::SeqCst), 0);
        service.away.store(!over, Ordering::SeqCst);
        advance(LIFE * 3 / 4).await;
        fails.open(&sessions, &key).await.expect("the old one");
        sleep(Duration::from_millis(100)).await;
        assert_eq!(service.renewals_failed.load(Ordering::SeqCst), 1, "{over}");
    }
}

#[tokio::test(start_paused = true)]
async fn a_session_is_renewed_at_three_quarters_behind_the_answer() {
    let (sessions, service, key) = (Sessions::default(), Service::default(), key("role"));
    service.open(&sessions, &key).await.expect("a session");
    advance(LIFE * 3 / 4 - Duration::from_secs(1)).await;
    assert_eq!(service.open(&sessions, &key).await.expect("a session"), 1);
    sleep(Duration::from_millis(900)).await;
    assert_eq!(service.exchanges(), 1);
    advance(Duration::from_millis(100)).await;
    assert_eq!(
        service
            .open(&sessions, &key)
            .await
            .expect("the old one still serves"),
        1
    );
    sleep(Duration::from_millis(100)).await;
    assert_eq!(service.open(&sessions, &key).await.expect("the new one"), 2);
    assert_eq!(service.exchanges(), 2);
}

#[tokio::test(start_paused = true)]
async fn a_short_session_is_used_for_seven_eighths_of_its_life() {
    let short = Duration::from_secs(80);
    let (sessions, key) = (Sessions::default(), key("role"));
    let service = Service {
        life: Some(short),
        ..Service::default()
    };
    service.open(&sessions, &key).await.expect("a session");
    service.away.store(true, Ordering::SeqCst);
    advance(short * 7 / 8 - Duration::from_secs(1)).await;
    assert_eq!(service.open(&sessions, &key).await.expect("still good"), 1);
    advance(Duration::from_secs(1)).await;
    service
        .open(&sessions, &key)
        .await
        .expect_err("too close to its end");
}

#[tokio::test(start_paused = true)]
async fn a_session_is_used_for_half_a_day_at_most_whatever_the_cloud_says() {
    let hours = |hours: u64| Duration::from_secs(hours * 3600);
    for (said, renewed) in [
        (hours(11), hours(11) * 3 / 4),
        (hours(1000), hours(9)),
        (Duration::MAX, hours(9)),
    ] {
        let (sessions, key) = (Sessions::default(), key("role"));
        let service = Service {
            life: Some(said),
            ..Service::default()
        };
        service.open(&sessions, &key).await.expect("a session");
        for (passes, exchanges) in [(renewed - LIFE, 1), (LIFE, 2)] {
            advance(passes).await;
            service.open(&sessions, &key).await.expect("a session");
            sleep(Duration::from_millis(100)).await;
            assert_eq!(service.exchanges(), exchanges, "{said:?}");
        }
    }
}

#[tokio::test(start_paused = true)]
async fn a_failed_renewal_is_not_repeated_at_once_and_the_old_session_serves() {
    let (sessions, service, key) = (Sessions::default(), Service::default(), key("role"));
    service.open(&sessions, &key).await.expect("a session");
    advance(LIFE * 3 / 4 + Duration::from_secs(1)).await;
    service.away.store(true, Ordering::SeqCst);
    for _ in 0..10 {
        assert_eq!(service.open(&sessions, &key).await.expect("the old one"), 1);
        sleep(Duration::from_millis(100)).await;
    }
    assert_eq!(service.exchanges(), 2);
    advance(RENEWAL_RETRY).await;
    service.open(&sessions, &key).await.expect("the old one");
    sleep(Duration::from_millis(100)).await;
    assert_eq!(service.exchanges(), 3);
}

#[tokio::test(start_paused = true)]
async fn dying_credentials_are_not_used() {
    let (sessions, service, key) = (Sessions::default(), Service::default(), key("role"));
    service.open(&sessions, &key).await.expect("a session");
    advance(LIFE - UNUSABLE_BEFORE - Duration::from_secs(1)).await;
    assert_eq!(service.open(&sessions, &key).await.expect("still good"), 1);
    let (sessions, service) = (Sessions::default(), Service::default());
    service.open(&sessions, &key).await.expect("a session");
    advance(LIFE - UNUSABLE_BEFORE).await;
    assert_eq!(service.open(&sessions, &key).await.expect("a new one"), 2);
    service.away.store(true, Ordering::SeqCst);
    advance(LIFE).await;
    assert!(service.open(&sessions, &key).await.is_err());
}

#[tokio::test(start_paused = true)]
async fn a_session_that_nobody_uses_any_more_goes_when_it_has_ended() {
    let (sessions, service, key) = (Sessions::default(), Service::default(), key("role"));
    service.open(&sessions, &key).await.expect("a session");
    for (waited, left) in [(LIFE - UNUSABLE_BEFORE * 2, 1), (UNUSABLE_BEFORE, 0)] {
        advance(waited).await;
        sessions.tidy();
        assert_eq!(sessions.count(key.backend), left);
    }
}

#[tokio::test(start_paused = true)]
async fn a_refused_exchange_is_remembered_for_a_moment() {
    let (sessions, service, key) = (Sessions::default(), Service::default(), key("role"));
    service.refuses.store(true, Ordering::SeqCst);
    for _ in 0..5 {
        let refused = service.open(&sessions, &key).await.expect_err("refused");
        assert_eq!(refused.error.code, Code::Denied);
    }
    assert_eq!(service.exchanges(), 1);
    service.refuses.store(false, Ordering::SeqCst);
    advance(REFUSAL_STANDS).await;
    service.open(&sessions, &key).await.expect("a session");
    assert_eq!(service.exchanges(), 2);
}

#[tokio::test(start_paused = true)]
async fn what_is_away_is_asked_again_at_once_but_not_over_and_over() {
    let (sessions, service, key) = (Sessions::default(), Service::default(), key("role"));
    service.away.store(true, Ordering::SeqCst);
    for asked in (1..=10).chain([10, 10]) {
        service.open(&sessions, &key).await.expect_err("it is away");
        assert_eq!(service.exchanges(), asked);
    }
    advance(Duration::from_secs(1)).await;
    service.open(&sessions, &key).await.expect_err("it is away");
    service.open(&sessions, &key).await.expect_err("it is away");
    assert_eq!(service.exchanges(), 11);
    service.away.store(false, Ordering::SeqCst);
    advance(Duration::from_secs(1)).await;
    assert_eq!(service.open(&sessions, &key).await.expect("a session"), 12);
}

#[tokio::test(start_paused = true)]
async fn a_session_that_is_over_when_it_comes_is_none_and_is_not_exchanged_for_every_read() {
    let (sessions, key) = (Sessions::default(), key("role"));
    let service = Service {
        life: Some(Duration::ZERO),
        ..Service::default()
    };
    for _ in 0..20 {
        let failed = service.open(&sessions, &key).await.expect_err("no session");
        assert_eq!(failed.error.code, Code::Unavailable);
        assert!(failed.error.message.contains("clock"), "{failed:?}");
    }
    assert_eq!(service.exchanges(), IN_VAIN as usize);
}

#[tokio::test(start_paused = true)]
async fn what_is_away_and_says_for_how_long_is_left_alone_for_that_time_within_bounds() {
    let (five, hour) = (Duration::from_secs(5), Duration::from_secs(3600));
    for (wait, rest) in [(five, five), (hour, LONGEST_REST)] {
        let (sessions, key) = (Sessions::default(), key("role"));
        let service = Service {
            wait: Some(wait),
            ..Service::default()
        };
        service.away.store(true, Ordering::SeqCst);
        service.open(&sessions, &key).await.expect_err("it is away");
        service.away.store(false, Ordering::SeqCst);
        advance(rest - Duration::from_millis(1)).await;
        service.open(&sessions, &key).await.expect_err("not yet");
        assert_eq!(service.exchanges(), 1);
        advance(Duration::from_millis(1)).await;
        assert_eq!(service.open(&sessions, &key).await.expect("a session"), 2);
    }
}

#[tokio::test(start_paused = true)]
async fn a_role_that_is_refused_at_its_renewal_loses_its_session() {
    let (sessions, service, key) = (Sessions::default(), Service::default(), key("role"));
    service.open(&sessions, &key).await.expect("a session");
    advance(LIFE * 3 / 4 + Duration::from_secs(1)).await;
    service.refuses.store(true, Ordering::SeqCst);
    service
        .open(&sessions, &key)
        .await
        .expect("the old one, for the last time");
    sleep(Duration::from_millis(100)).await;
    service.open(&sessions, &key).await.expect_err("revoked");
}

/// The error of a read.
fn failure(fault: Fault) -> BackendError {
    BackendError::new(fault, RequestError::new(Code::Unavailable, "over"))
}

#[tokio::test(start_paused = true)]
async fn a_session_that_ended_is_put_away_at_once_and_no_other_in_its_place() {
    let (sessions, service, key) = (Sessions::default(), Service::default(), key("role"));
    let open = || service.session(&sessions, &key);
    let ended = failure(Fault::SessionEnded);
    let first = open().await.expect("a session");
    sessions.put_away(&key, &first, &ended, false);
    assert_eq!(sessions.count(BackendId::synthetic(0)), 0);
    let second = open().await.expect("a session");
    sessions.put_away(&key, &first, &ended, true);
    let number = service.open(&sessions, &key).await;
    assert_eq!(number.expect("another's end is not its own"), 2);
    sessions.put_away(&key, &second, &ended, false);
    assert_eq!(service.open(&sessions, &key).await.expect("a new one"), 3);
}

#[tokio::test(start_paused = true)]
async fn a_refused_role_loses_its_sessions_everywhere_once_they_are_not_young_and_no_other_does() {
    let (sessions, service, here) = (Sessions::default(), Service::default(), key("role"));
    let elsewhere = SessionKey {
        backend: BackendId::synthetic(1),
        role: Arc::new(Role {
            place: "eu-west-1".into(),
            prefix: "team/".into(),
            ..(*here.role).clone()
        }),
        ..here.clone()
    };
    let other = key("other");
    for key in [&here, &elsewhere, &other] {
        service.open(&sessions, key).await.expect("a session");
    }
    let counts = || [0, 1].map(|at| sessions.count(BackendId::synthetic(at)));
    sessions.forget(&here.role);
    assert_eq!(counts(), [2, 1]);
    advance(YOUNG).await;
    sessions.forget(&here.role);
    assert_eq!(counts(), [1, 0]);
    let number = service.open(&sessions, &other).await;
    assert_eq!(number.expect("another role's"), 3);
}

#[tokio::test(start_paused = true)]
async fn a_session_that_ends_as_soon_as_it_is_born_is_exchanged_once_more_and_not_for_each_request()
{
    let (sessions, service, key) = (Sessions::default(), Service::default(), key("role"));
    let open = || service.session(&sessions, &key);
    let ended = failure(Fault::SessionEnded);
    for _ in 0..5 {
        for is_second_try in [false, true] {
            if let Ok(session) = open().await {
                sessions.put_away(&key, &session, &ended, is_second_try);
            }
        }
    }
    assert_eq!(service.exchanges(), 2);
    let error = service.open(&sessions, &key).await;
    assert_eq!(error.expect_err("it stands").fault, Fault::SessionEnded);
    advance(REFUSAL_STANDS).await;
    assert_eq!(service.open(&sessions, &key).await.expect("tried again"), 3);
}

#[tokio::test(start_paused = true)]
async fn a_token_that_the_agent_may_not_have_is_not_asked_for_at_each_request() {
    let (sessions, service, key) = (Sessions::default(), Service::default(), key("role"));
    service.gives_no_token.store(true, Ordering::SeqCst);
    for _ in 0..5 {
        service.open(&sessions, &key).await.expect_err("denied");
    }
    assert_eq!(service.exchanges(), 1);
    service.gives_no_token.store(false, Ordering::SeqCst);
    advance(REFUSAL_STANDS).await;
    service.open(&sessions, &key).await.expect("tried again");
    // That says nothing about the role, so the session at hand stays in use.
    service.gives_no_token.store(true, Ordering::SeqCst);
    advance(LIFE * 3 / 4).await;
    service
        .open(&sessions, &key)
        .await
        .expect("the one at hand");
    sleep(Duration::from_secs(1)).await;
    service.open(&sessions, &key).await.expect("still");
    assert_eq!(service.exchanges(), 3);
}

#[tokio::test(start_paused = true)]
async fn another_role_or_another_account_is_another_session() {
    let (sessions, service) = (Sessions::default(), Service::default());
    let one = key("role");
    assert_eq!(service.open(&sessions, &one).await.expect("a session"), 1);
    assert_eq!(
        service
            .open(&sessions, &key("other"))
            .await
            .expect("a session"),
        2
    );
    let recreated = SessionKey {
        account: "younger".into(),
        ..one.clone()
    };
    assert_eq!(
        service
            .open(&sessions, &recreated)
            .await
            .expect("a session"),
        3
    );
    let elsewhere = SessionKey {
        backend: BackendId::synthetic(1),
        ..one.clone()
    };
    assert_eq!(
        service
            .open(&sessions, &elsewhere)
            .await
            .expect("a session"),
        4
    );
    assert_eq!(service.open(&sessions, &one).await.expect("the first"), 1);
}

#[tokio::test(start_paused = true)]
async fn a_pod_keeps_few_sessions_at_each_backend_and_the_oldest_goes() {
    let (sessions, service) = (Sessions::default(), Service::default());
    let elsewhere = |number| SessionKey {
        backend: BackendId::synthetic(number),
        ..key("role")
    };
    for number in 1..=20 {
        let opened = service.open(&sessions, &elsewhere(number)).await;
        opened.expect("a session");
    }
    let service = Service::default();
    for number in 0..=KEPT {
        service
            .open(&sessions, &key(&number.to_string()))
            .await
            .expect("a session");
    }
    assert_eq!(sessions.count(BackendId::synthetic(0)), KEPT);
    assert_eq!(service.open(&sessions, &key("1")).await.expect("kept"), 2);
    assert_eq!(
        service
            .open(&sessions, &key("0"))
            .await
            .expect("exchanged again"),
        KEPT + 2
    );
    for number in 1..=20 {
        assert_eq!(sessions.count(BackendId::synthetic(number)), 1);
    }
}

#[tokio::test(start_paused = true)]
async fn a_token_service_that_asks_to_slow_down_is_left_alone_for_that_time_within_bounds() {
    let hour = Duration::from_secs(3600);
    let five = Duration::from_secs(5);
    for (asked, rest) in [
        (None, REFUSAL_STANDS),
        (Some(Duration::ZERO), REFUSAL_STANDS),
        (Some(five), five),
        (Some(hour), LONGEST_REST),
    ] {
        let (sessions, key, exchanges) = (Sessions::default(), key("role"), AtomicUsize::new(0));
        let slow_down = async || {
            let error = RequestError::new(Code::Throttled, "slow down").retry_after(asked);
            let failed = BackendError::new(Fault::Call, error);
            let exchange = || {
                exchanges.fetch_add(1, Ordering::SeqCst);
                std::future::ready(Err(failed))
            };
            let opened = sessions.open(&key, RequestId::new("", 1), exchange, |_| {});
            opened.await.expect_err("throttled");
            exchanges.load(Ordering::SeqCst)
        };
        assert_eq!(slow_down().await, 1);
        advance(rest - Duration::from_millis(1)).await;
        assert_eq!(slow_down().await, 1);
        advance(Duration::from_millis(1)).await;
        assert_eq!(slow_down().await, 2);
    }
}

#[tokio::test(start_paused = true)]
async fn what_an_exchange_ends_with_is_remembered_though_whoever_asked_has_left() {
    let (service, sessions) = (Service::default(), Sessions::default());
    service.refuses.store(true, Ordering::SeqCst);
    let key = key("test");
    for _ in 0..10 {
        let opens = service.open(&sessions, &key);
        let left = tokio::time::timeout(Duration::from_millis(20), opens).await;
        assert!(left.is_err() || service.exchanges() == 1);
        sleep(Duration::from_millis(100)).await;
    }
    assert_eq!(service.exchanges(), 1);
}
