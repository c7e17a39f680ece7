//! Turns: however much one pod requests at once, others are served in between.
//!
//! One thread serves everybody, and ready tasks run in the order in which they became ready. If a pod's sixty
//! connections sent requests at the same moment, all others would wait for sixty answers. So only a few of a kind run
//! in one turn. The rest stand back, in their order, and the runtime first asks the kernel for new events.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use tokio::sync::Semaphore;
use tokio::task::yield_now;

/// Lets `most` tasks pass in one turn, in the order in which they come.
#[derive(Debug)]
pub(crate) struct Turnstile {
    most: usize,
    /// What is left of the turn. Tasks that must stand back wait for a permit.
    places: Semaphore,
    /// How many stand back and have not passed yet.
    waiting: AtomicUsize,
    /// Whether some stand back, and a task begins one turn after the other until none does.
    is_ushered: AtomicBool,
}

/// One that must stand back, until it passes or gives up.
struct Waiting<'a>(&'a AtomicUsize);

impl Turnstile {
    /// A turnstile that lets `most` pass in a turn.
    pub(crate) fn new(most: usize) -> Arc<Self> {
        Arc::new(Self {
            most,
            places: Semaphore::new(most),
            waiting: AtomicUsize::new(0),
            is_ushered: AtomicBool::new(false),
        })
    }

    /// Resolves when it is the caller's turn, usually at once. Needs a single-threaded runtime.
    pub(crate) async fn pass(self: &Arc<Self>) {
        let place = if self.is_ushered.load(Ordering::Relaxed) {
            None
        } else {
            self.places.try_acquire().ok()
        };
        let place = match place {
            Some(place) => Ok(place),
            None => {
                self.usher();
                let _waiting = Waiting::one_of(&self.waiting);
                self.places.acquire().await
            }
        };
        // Nobody closes the semaphore. A place is used up, and comes back with the next turn.
        if let Ok(place) = place {
            place.forget();
        }
    }

    /// Makes sure that there is another turn.
    fn usher(self: &Arc<Self>) {
        if self.is_ushered.swap(true, Ordering::Relaxed) {
            return;
        }
        let turnstile = self.clone();
        tokio::spawn(async move {
            loop {
                // A task that yields runs again once the kernel has been asked for events, after the tasks that these
                // wake (tokio::task::yield_now). However long a turn took, it is not over before that.
                yield_now().await;
                let waiting = turnstile.waiting.load(Ordering::Relaxed);
                let is_over = waiting == 0;
                // No more than are waiting: a task that comes only now would overtake those about to run.
                let places = if is_over {
                    turnstile.most
                } else {
                    waiting.min(turnstile.most)
                };
                let left = turnstile.places.available_permits();
                turnstile.places.add_permits(places.saturating_sub(left));
                if is_over {
                    turnstile.is_ushered.store(false, Ordering::Relaxed);
                    return;
                }
            }
        });
    }
}

impl<'a> Waiting<'a> {
    fn one_of(count: &'a AtomicUsize) -> Self {
        count.fetch_add(1, Ordering::Relaxed);
        Self(count)
    }
}

impl Drop for Waiting<'_> {
    fn drop(&mut self) {
        self.0.fetch_sub(1, Ordering::Relaxed);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::io::Write;
    use std::sync::Mutex;
    use std::thread::sleep;
    use std::time::Duration;
    use tokio::io::AsyncReadExt;
    use tokio::net::UnixStream;
    use tokio::task::JoinSet;

    type Order = Arc<Mutex<Vec<&'static str>>>;

    fn note(order: &Order, who: &'static str) {
        order.lock().expect("nobody panics with it").push(who);
    }

    fn crowd(tasks: &mut JoinSet<()>, turnstile: &Arc<Turnstile>, order: &Order) {
        for who in ["1", "2", "3", "4", "5", "6"] {
            let (turnstile, order) = (turnstile.clone(), order.clone());
            tasks.spawn(async move {
                turnstile.pass().await;
                // The work of each may take its time.
                sleep(Duration::from_millis(2));
                note(&order, who);
            });
        }
    }

    #[tokio::test]
    async fn who_speaks_up_during_a_crowds_turn_is_served_before_its_next_one() {
        let (order, turnstile) = (Order::default(), Turnstile::new(2));
        let (theirs, ours) = std::os::unix::net::UnixStream::pair().expect("a pair");
        ours.set_nonblocking(true).expect("a socket");
        let mut ours = UnixStream::from_std(ours).expect("a socket");
        let mut tasks = JoinSet::new();
        let other = order.clone();
        tasks.spawn(async move {
            ours.read_u8().await.expect("a byte");
            note(&other, "other");
        });
        yield_now().await;
        crowd(&mut tasks, &turnstile, &order);
        (&theirs).write_all(b"x").expect("a byte");
        tasks.join_all().await;
        let order = order.lock().expect("nobody panics with it");
        assert_eq!(*order, ["1", "2", "other", "3", "4", "5", "6"]);
    }

    #[tokio::test]
    async fn after_a_crowd_there_is_a_whole_turn_again() {
        let (order, turnstile) = (Order::default(), Turnstile::new(2));
        for _ in 0..3 {
            let mut tasks = JoinSet::new();
            crowd(&mut tasks, &turnstile, &order);
            tasks.join_all().await;
            assert_eq!(order.lock().expect("nobody panics with it").len(), 6);
            order.lock().expect("nobody panics with it").clear();
        }
        for _ in 0..2 {
            yield_now().await;
        }
        for _ in 0..2 {
            let passed = futures::FutureExt::now_or_never(turnstile.pass());
            assert_eq!(passed, Some(()));
        }
    }

    #[tokio::test]
    async fn nobody_overtakes_whoever_stands_back() {
        for later in 0..6 {
            let (order, turnstile) = (Order::default(), Turnstile::new(2));
            for _ in 0..2 {
                turnstile.pass().await;
            }
            let mut tasks = JoinSet::new();
            for (who, later) in [("first", 0), ("second", later)] {
                let (turnstile, order) = (turnstile.clone(), order.clone());
                tasks.spawn(async move {
                    for _ in 0..later {
                        yield_now().await;
                    }
                    turnstile.pass().await;
                    note(&order, who);
                });
            }
            tasks.join_all().await;
            let order = order.lock().expect("nobody panics with it");
            assert_eq!(*order, ["first", "second"], "{later}");
        }
    }

    #[tokio::test]
    async fn who_gives_up_leaves_a_place_to_the_next() {
        let turnstile = Turnstile::new(1);
        turnstile.pass().await;
        for _ in 0..3 {
            let mut gives_up = Box::pin(turnstile.pass());
            assert_eq!(futures::FutureExt::now_or_never(&mut gives_up), None);
            yield_now().await;
            drop(gives_up);
            turnstile.pass().await;
        }
    }
}
