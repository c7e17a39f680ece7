//! How much is kept, for one pod and for all.

use super::*;

#[tokio::test(start_paused = true)]
async fn the_cache_holds_no_more_bytes_than_it_may() {
    let room = 10 * shelf::ENTRY_COST as u64;
    let (vault, values) = (
        Vault::default(),
        values(|settings| settings.max_bytes = room),
    );
    for number in 0..100 {
        vault
            .read(&values, &key(&format!("name-{number}")), false)
            .await
            .expect("a value");
    }
    let (kept, bytes) = values.shelf.lock().size();
    assert!(bytes as u64 <= room, "{bytes}");
    assert!(kept > 0);
    // What was read last stays.
    assert_eq!(
        vault.read(&values, &key("name-99"), false).await,
        found(100, "hit")
    );
}

#[tokio::test(start_paused = true)]
async fn a_value_takes_room_for_its_name_too_which_two_places_know() {
    let size_with = async |name: usize| {
        let (vault, values) = (Vault::default(), values(|_| {}));
        let key = key(&"n".repeat(name));
        vault.read(&values, &key, false).await.expect("a value");
        values.shelf.lock().size().1
    };
    let short = size_with(10).await;
    assert!(short > shelf::ENTRY_COST, "{short}");
    assert_eq!(size_with(110).await, short + 2 * 100);
}

#[tokio::test(start_paused = true)]
async fn all_pods_of_a_node_keep_no_more_than_four_may_and_each_keeps_some() {
    let max_bytes = 8 * shelf::OWN_ROOM as u64;
    let settings = Arc::new(config::Cache {
        ttl: 100 * TTL,
        max_bytes,
        ..config::Cache::default()
    });
    let (vault, all) = (Vault::default(), NodesValues::default());
    let pods: Vec<_> = (0..10)
        .map(|_| Values::new(settings.clone(), &all))
        .collect();
    let kept = || {
        pods.iter()
            .map(|pod| pod.shelf.lock().size().1)
            .sum::<usize>()
    };
    let most = 4 * usize::try_from(max_bytes).expect("it fits") + pods.len() * shelf::OWN_ROOM;
    for pod in &pods {
        for number in 0..1_000 {
            let name = key(&format!("name-{number}"));
            vault.read(pod, &name, false).await.expect("a value");
        }
        assert!(kept() <= most, "{}", kept());
    }
    // What others keep leaves room for more than each one's own, up to that bound.
    assert!(kept() as u64 > 3 * max_bytes, "{}", kept());
    for pod in &pods {
        let (_, bytes) = pod.shelf.lock().size();
        assert!(bytes > shelf::OWN_ROOM / 2, "{bytes}");
        let (_, cache) = vault.read(pod, &key("name-999"), false).await.expect("it");
        assert_eq!(cache, "hit", "what was read last");
    }
    // The room of pods that go is free for those that stay.
    let mut pods = pods;
    pods.drain(..9);
    let [last] = &*pods else { panic!("one stays") };
    for number in 0..1_000 {
        let name = key(&format!("more-{number}"));
        vault.read(last, &name, false).await.expect("a value");
    }
    assert!(last.shelf.lock().size().1 > 4 * shelf::OWN_ROOM);
}

#[tokio::test(start_paused = true)]
async fn what_could_not_stay_takes_the_place_of_nothing() {
    let all = NodesValues::default();
    let [mut full @ .., mut shelf] = [(); 5].map(|()| Shelf::new(1 << 18, all.clone()));
    let secret = |bytes| {
        let value = SecretValue::from("x".repeat(bytes));
        Arc::new(Secret::new(value, true, "1"))
    };
    let now = Instant::now();
    for number in 0..100 {
        let key = key(&format!("{number}"));
        for full in &mut full {
            full.put(&key, &secret(10_000), now);
        }
        shelf.put(&key, &secret(10), now);
    }
    let before = shelf.size();
    assert_eq!(before.0, 100, "its own room holds them");
    shelf.put(&key("long"), &secret(40_000), now);
    assert_eq!(shelf.size(), before);
    drop(full);
    shelf.put(&key("long"), &secret(40_000), now);
    assert_eq!(shelf.size().0, 101);
}
