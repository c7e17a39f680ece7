mod bounds;

use super::*;
use crate::backend::BackendId;
use crate::error::RequestError;
use crate::role::Proof;
use crate::secret::SecretValue;
use latchkey_client::protocol::Code;
use std::sync::atomic::{AtomicUsize, Ordering};
use tokio::time::{advance, sleep};

const TTL: Duration = Duration::from_secs(60);

/// A vault that counts its reads and answers as it is told to.
#[derive(Clone, Default)]
struct Vault {
    reads: Arc<AtomicUsize>,
    fails_with: Arc<std::sync::Mutex<Option<BackendError>>>,
}

impl Vault {
    fn fail(&self, fault: Fault, code: Code) {
        let error = BackendError::new(fault, RequestError::new(code, "no"));
        *self.fails_with.lock().expect("nobody panicked") = Some(error);
    }

    fn reads(&self) -> usize {
        self.reads.load(Ordering::SeqCst)
    }

    async fn fetch(self) -> Result<Arc<Secret>, BackendError> {
        let number = self.reads.fetch_add(1, Ordering::SeqCst) + 1;
        sleep(Duration::from_millis(10)).await;
        if let Some(error) = &*self.fails_with.lock().expect("nobody panicked") {
            return Err(error.clone());
        }
        let value = SecretValue::from(format!("value {number}"));
        Ok(Arc::new(Secret::new(value, true, number.to_string())))
    }

    /// Reads as a request does.
    async fn ask(
        &self,
        values: &Values,
        key: &ReadKey,
        fresh: bool,
    ) -> Result<Read, (BackendError, CacheUse)> {
        if !fresh && let Some(read) = values.at_hand(key, Instant::now()) {
            return Ok(read);
        }
        let fetch = || self.clone().fetch();
        let outcome = values.read(key, fresh, asker(), fetch).await;
        outcome.map_err(|error| (error, values.without_value(&key.name)))
    }

    async fn read(
        &self,
        values: &Values,
        key: &ReadKey,
        fresh: bool,
    ) -> Result<(String, &'static str), (Code, &'static str)> {
        match self.ask(values, key, fresh).await {
            Ok(read) => Ok((read.secret.version.to_string(), read.cache.as_str())),
            Err((error, cache)) => Err((error.error.code, cache.as_str())),
        }
    }
}

/// Reads a value, which may come from the cache.
async fn get(
    vault: &Vault,
    values: &Values,
    name: &str,
) -> Result<(String, &'static str), (Code, &'static str)> {
    vault.read(values, &key(name), false).await
}

fn asker() -> RequestId {
    RequestId::new("00000000", 1)
}

fn values(change: impl FnOnce(&mut config::Cache)) -> Values {
    let mut settings = config::Cache {
        ttl: TTL,
        ..config::Cache::default()
    };
    change(&mut settings);
    Values::new(Arc::new(settings), &NodesValues::default())
}

fn key(name: &str) -> ReadKey {
    ReadKey {
        session: SessionKey {
            backend: BackendId::synthetic(0),
            role: Arc::new(Role {
                name: "role".into(),
                proof: Proof::Token("sts.amazonaws.com".into()),
                place: "eu-central-1".into(),
                via: None,
                prefix: "".into(),
            }),
            account: "account".into(),
        },
        name: SecretName::parse(name).expect("a name"),
        selector: Selector::default(),
    }
}

fn found(
    version: usize,
    cache: &'static str,
) -> Result<(String, &'static str), (Code, &'static str)> {
    Ok((version.to_string(), cache))
}

#[tokio::test(start_paused = true)]
async fn without_a_ttl_every_read_asks_the_vault() {
    let (vault, values) = (
        Vault::default(),
        values(|settings| settings.ttl = Duration::ZERO),
    );
    assert_eq!(get(&vault, &values, "a").await, found(1, "off"));
    assert_eq!(get(&vault, &values, "a").await, found(2, "off"));
}

#[tokio::test(start_paused = true)]
async fn a_value_serves_until_its_time_is_over_and_says_its_age() {
    let (vault, values) = (Vault::default(), values(|_| {}));
    assert_eq!(get(&vault, &values, "a").await, found(1, "miss"));
    advance(TTL - Duration::from_secs(1)).await;
    let hit = vault.ask(&values, &key("a"), false).await.expect("a hit");
    assert_eq!(hit.cache, CacheUse::Hit);
    // Its age counts from before the vault was asked, ten milliseconds earlier.
    assert_eq!(
        hit.age,
        Some(TTL - Duration::from_secs(1) + Duration::from_millis(10))
    );
    advance(Duration::from_secs(1)).await;
    assert_eq!(get(&vault, &values, "a").await, found(2, "miss"));
}

#[tokio::test(start_paused = true)]
async fn everything_that_changes_what_is_read_is_in_the_key() {
    let (vault, values) = (Vault::default(), values(|_| {}));
    let one = key("a");
    let with = |session| ReadKey {
        session,
        ..one.clone()
    };
    let role = |change: &dyn Fn(&mut Role)| {
        let mut role = (*one.session.role).clone();
        change(&mut role);
        with(SessionKey {
            role: Arc::new(role),
            ..one.session.clone()
        })
    };
    let stage = Selector {
        stage: Some("AWSPREVIOUS".into()),
        ..Selector::default()
    };
    let version = Selector {
        version: Some("1".into()),
        ..Selector::default()
    };
    let keys = [
        one.clone(),
        key("b"),
        with(SessionKey {
            backend: BackendId::synthetic(1),
            ..one.session.clone()
        }),
        with(SessionKey {
            account: "younger".into(),
            ..one.session.clone()
        }),
        ReadKey {
            selector: stage,
            ..one.clone()
        },
        ReadKey {
            selector: version,
            ..one.clone()
        },
        role(&|role| role.name = "other".into()),
        role(&|role| role.place = "us-east-1".into()),
        role(&|role| role.prefix = "team/".into()),
        role(&|role| role.proof = Proof::Token("other".into())),
        role(&|role| role.via = Some("other".into())),
    ];
    for (number, key) in keys.iter().enumerate() {
        assert_eq!(
            vault.read(&values, key, false).await,
            found(number + 1, "miss")
        );
    }
    for (number, key) in keys.iter().enumerate() {
        assert_eq!(
            vault.read(&values, key, false).await,
            found(number + 1, "hit")
        );
    }
}

#[tokio::test(start_paused = true)]
async fn only_names_that_begin_as_configured_are_kept() {
    let values = values(|settings| settings.only = vec!["public/".into()]);
    let vault = Vault::default();
    assert_eq!(get(&vault, &values, "private/a").await, found(1, "off"));
    assert_eq!(get(&vault, &values, "private/a").await, found(2, "off"));
    assert_eq!(get(&vault, &values, "public/a").await, found(3, "miss"));
    assert_eq!(get(&vault, &values, "public/a").await, found(3, "hit"));
}

#[tokio::test(start_paused = true)]
async fn an_ask_for_the_latest_passes_the_cache_and_refreshes_it() {
    let (vault, values) = (Vault::default(), values(|_| {}));
    get(&vault, &values, "a").await.expect("a value");
    assert_eq!(vault.read(&values, &key("a"), true).await, found(2, "miss"));
    assert_eq!(get(&vault, &values, "a").await, found(2, "hit"));
}

#[tokio::test(start_paused = true)]
async fn an_expired_value_stands_in_only_where_allowed_and_only_so_long() {
    let vault = Vault::default();
    let strict = values(|_| {});
    let lenient = values(|settings| settings.stale_if_error = TTL);
    vault
        .read(&strict, &key("a"), false)
        .await
        .expect("a value");
    vault
        .read(&lenient, &key("a"), false)
        .await
        .expect("a value");
    vault.fail(Fault::Unreachable, Code::Unavailable);
    advance(TTL + Duration::from_secs(1)).await;
    let away = Err((Code::Unavailable, "miss"));
    assert_eq!(vault.read(&strict, &key("a"), false).await, away);
    assert_eq!(
        vault.read(&lenient, &key("a"), false).await,
        found(2, "stale")
    );
    // To the moment when that time is over too, ten milliseconds into the read.
    advance(TTL - Duration::from_millis(1_040)).await;
    assert_eq!(vault.read(&lenient, &key("a"), false).await, away);
}

#[tokio::test(start_paused = true)]
async fn after_a_refusal_or_a_deletion_no_older_value_comes_back() {
    for (fault, code) in [
        (Fault::Refused, Code::Denied),
        (Fault::Call, Code::NotFound),
    ] {
        let vault = Vault::default();
        let values = values(|settings| settings.stale_if_error = TTL);
        get(&vault, &values, "a").await.expect("a value");
        vault.fail(fault, code);
        assert_eq!(
            vault.read(&values, &key("a"), true).await,
            Err((code, "miss"))
        );
        vault.fail(Fault::Unreachable, Code::Unavailable);
        let away = Err((Code::Unavailable, "miss"));
        assert_eq!(get(&vault, &values, "a").await, away);
    }
}

#[tokio::test(start_paused = true)]
async fn a_throttled_read_does_not_bring_an_expired_value_back() {
    let vault = Vault::default();
    let values = values(|settings| settings.stale_if_error = TTL);
    get(&vault, &values, "a").await.expect("a value");
    advance(TTL).await;
    vault.fail(Fault::Call, Code::Throttled);
    let throttled = Err((Code::Throttled, "miss"));
    assert_eq!(get(&vault, &values, "a").await, throttled);
}

#[tokio::test(start_paused = true)]
async fn a_refused_role_loses_its_values_and_no_other_does() {
    let (vault, values) = (Vault::default(), values(|_| {}));
    let one = key("a");
    let mut role = (*one.session.role).clone();
    role.name = "other".into();
    let mut moved = (*one.session.role).clone();
    moved.place = "eu-west-1".into();
    moved.prefix = "team/".into();
    let as_role = |role: Role| ReadKey {
        session: SessionKey {
            role: Arc::new(role),
            ..one.session.clone()
        },
        ..one.clone()
    };
    let (other, elsewhere) = (as_role(role), as_role(moved));
    for key in [&one, &other, &elsewhere] {
        vault.read(&values, key, false).await.expect("a value");
    }
    values.forget(&one.session.role);
    assert_eq!(vault.read(&values, &other, false).await, found(2, "hit"));
    assert_eq!(vault.read(&values, &one, false).await, found(4, "miss"));
    let outcome = vault.read(&values, &elsewhere, false).await;
    assert_eq!(outcome, found(5, "miss"));
}

#[tokio::test(start_paused = true)]
async fn equal_reads_share_one_call_and_one_value() {
    let (vault, values) = (
        Vault::default(),
        values(|settings| settings.ttl = Duration::ZERO),
    );
    let one = key("a");
    let reads = (0..64).map(|_| vault.read(&values, &one, false));
    for read in futures::future::join_all(reads).await {
        assert_eq!(read, found(1, "off"));
    }
    assert_eq!(vault.reads(), 1);
}

#[tokio::test(start_paused = true)]
async fn a_read_that_hangs_does_not_decide_for_whoever_asks_a_second_later() {
    let (vault, values) = (Vault::default(), values(|_| {}));
    let key = key("test/a");
    let mut hung = std::pin::pin!(values.read(&key, false, asker(), std::future::pending));
    let early = std::pin::pin!(values.read(&key, false, asker(), || vault.clone().fetch()));
    let both = futures::future::select(&mut hung, early);
    let waited = tokio::time::timeout(SHARED, both).await;
    assert!(waited.is_err() && vault.reads() == 0, "it waits too");
    let late = tokio::time::timeout(SHARED, vault.ask(&values, &key, false)).await;
    assert!(late.is_ok_and(|late| late.is_ok_and(|late| late.shared_with.is_none())));
}

#[tokio::test(start_paused = true)]
async fn whoever_asks_for_the_latest_gets_no_expired_value() {
    let (vault, key) = (Vault::default(), key("prod/db"));
    let values = values(|settings| settings.stale_if_error = TTL);
    vault.read(&values, &key, false).await.expect("a value");
    vault.fail(Fault::Unreachable, Code::Unavailable);
    let latest = vault.read(&values, &key, true).await;
    assert_eq!(latest, Err((Code::Unavailable, "miss")));
}

#[tokio::test(start_paused = true)]
async fn a_slow_read_does_not_put_an_older_value_over_a_newer_one() {
    let (vault, key) = (Vault::default(), key("prod/db"));
    let values = values(|_| {});
    let slow = values.read(&key, false, asker(), || {
        let fetch = vault.clone().fetch();
        async move {
            let found = fetch.await;
            sleep(Duration::from_secs(1)).await;
            found
        }
    });
    let fresh = async {
        sleep(Duration::from_millis(20)).await;
        vault.read(&values, &key, true).await
    };
    let (slow, fresh) = tokio::join!(slow, fresh);
    assert_eq!(&*slow.expect("a value").secret.version, "1");
    assert_eq!(fresh.expect("a value").0, "2");
    let kept = vault.read(&values, &key, false).await.expect("a value");
    assert_eq!(kept, ("2".to_owned(), "hit"));
}

#[tokio::test(start_paused = true)]
async fn values_of_a_vault_that_takes_longer_than_reads_are_joined_are_kept_all_the_same() {
    let (vault, values) = (Vault::default(), values(|cache| cache.ttl = TTL));
    let key = key("test/a");
    let slow = || {
        let fetch = vault.clone().fetch();
        async move {
            sleep(SHARED * 2).await;
            fetch.await
        }
    };
    let reads = (0..5).map(async |number| {
        sleep(SHARED / 2 * number).await;
        values.read(&key, false, asker(), slow).await
    });
    let reads = futures::future::join_all(reads);
    let mut reads = std::pin::pin!(reads);
    let first = tokio::time::timeout(SHARED * 2 + SHARED / 4, &mut reads).await;
    assert!(first.is_err(), "later ones are under way");
    assert!(values.at_hand(&key, Instant::now()).is_some());
    reads.await;
    let kept = values.at_hand(&key, Instant::now()).expect("it is kept");
    assert_eq!(&*kept.secret.version, vault.reads().to_string());
}

#[tokio::test(start_paused = true)]
async fn the_age_of_a_shared_read_counts_from_its_beginning() {
    let (vault, key) = (Vault::default(), key("prod/db"));
    let values = values(|_| {});
    let first = vault.read(&values, &key, false);
    let joined = async {
        sleep(Duration::from_millis(8)).await;
        vault.read(&values, &key, false).await
    };
    let (first, joined) = tokio::join!(first, joined);
    assert_eq!((first.is_ok(), joined.is_ok()), (true, true));
    assert_eq!(vault.reads(), 1);
    let kept = vault.ask(&values, &key, false).await.expect("a value");
    assert_eq!(kept.age, Some(Duration::from_millis(10)));
}

#[tokio::test(start_paused = true)]
async fn what_has_expired_is_let_go_of_without_being_asked_for() {
    let (vault, values) = (Vault::default(), values(|_| {}));
    let kept = vault.ask(&values, &key("a"), false).await.expect("a value");
    let secret = Arc::downgrade(&kept.secret);
    drop(kept);
    advance(TTL - Duration::from_millis(10)).await;
    values.tidy();
    assert!(secret.upgrade().is_some(), "it is still good");
    advance(Duration::from_millis(1)).await;
    values.tidy();
    assert!(secret.upgrade().is_none(), "somebody holds it");
    assert_eq!(values.shelf.lock().size(), (0, 0));
}

/// Reads slowly, and meanwhile does something else.
async fn meanwhile(vault: &Vault, values: &Values, key: &ReadKey, other: impl Future) {
    let slow = values.read(key, false, asker(), || {
        let fetch = vault.clone().fetch();
        async move {
            let found = fetch.await;
            sleep(Duration::from_secs(1)).await;
            found
        }
    });
    let other = async {
        sleep(Duration::from_millis(20)).await;
        other.await
    };
    let (slow, _) = tokio::join!(slow, other);
    slow.expect("it began before");
}

#[tokio::test(start_paused = true)]
async fn a_read_that_began_before_a_refusal_does_not_fill_the_cache_after_it() {
    let (vault, values, key) = (Vault::default(), values(|_| {}), key("a"));
    meanwhile(&vault, &values, &key, async {
        values.forget(&key.session.role)
    })
    .await;
    assert_eq!(vault.read(&values, &key, false).await, found(2, "miss"));
    // A read that begins after the refusal does.
    assert_eq!(vault.read(&values, &key, false).await, found(2, "hit"));
}

#[tokio::test(start_paused = true)]
async fn a_read_that_began_before_a_deletion_does_not_fill_the_cache_after_it() {
    let (vault, values, key) = (Vault::default(), values(|_| {}), key("a"));
    meanwhile(&vault, &values, &key, async {
        vault.fail(Fault::Call, Code::NotFound);
        let gone = vault.read(&values, &key, true).await;
        assert_eq!(gone, Err((Code::NotFound, "miss")));
    })
    .await;
    let gone = vault.read(&values, &key, false).await;
    assert_eq!(gone, Err((Code::NotFound, "miss")));
}

proptest::proptest! {
    #[test]
    fn a_secret_with_its_answer_takes_no_more_than_it_is_reckoned_at(
        value in proptest::collection::vec(proptest::prelude::any::<u8>(), 0..200),
        wild in "[\\x00-\\x1f\"\\\\aé\u{2028}]{0,200}",
    ) {
        for (value, is_text) in [(value, false), (wild.into_bytes(), true)] {
            let secret = Secret::new(SecretValue::from(value), is_text, "v");
            let reckoned = secret.footprint();
            let empty = r#"{"name":"n","value":"","encoding":"base64","version":"v","backend":"b"}"#.len();
            let json = crate::response::secret_json(&secret, "n", "b");
            proptest::prop_assert!(secret.value.expose().len() + json.len() <= reckoned + empty);
        }
    }
}
