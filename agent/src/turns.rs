//! Turns: however much one pod asks at once, others are served in between.
//!
//! One thread serves everybody, and tasks that are ready run in the order in which they became so. A pod whose sixty
//! connections speak up at the same moment would keep all others waiting for sixty answers. So only a few of a kind
//! run in one turn. The rest stand back, in their order, and the runtime first asks the kernel what else has come.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use tokio::sync::Semaphore;
use tokio::task::yield_now;

/// Lets so many pass in one turn, in the order in which they come.
#[derive(Debug)]
pub(crate) struct Turnstile {
    most: usize,
    /// What is left of the turn. Those who have to stand back wait for a permit.
    places: Semaphore,
    /// Who has to stand back and has not passed yet.
    waiting: AtomicUsize,
    /// Somebody stands back, and a task begins one turn after the other until nobody does.
    is_ushered: AtomicBool,
}

/// One who has to stand back, until it passes or gives up.
struct Waiting<'a>(&'a AtomicUsize);

impl Turnstile {
    /// One that lets `most` pass in a turn.
    pub(crate) fn new(most: usize) -> Arc<Self> {
        Arc::new(Self {
            most,
            places: Semaphore::new(most),
            waiting: AtomicUsize::new(0),
            is_ushered: AtomicBool::new(false),
        })
    }

    /// Ends when it is one's turn, which it mostly is now. Needs a runtime of one thread.
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
        // Nobody closes it. A place is used up, and comes back with the next turn.
        if let Ok(place) = place {
            place.forget();
        }
    }

    /// Sees to it that there is another turn.
    fn usher(self: &Arc<Self>) {
        if self.is_ushered.swap(true, Ordering::Relaxed) {
            return;
        }
        let turnstile = self.clone();
        tokio::spawn(async move {
            loop {
                // A task that yields runs again when the kernel has been asked for events, after those whom they
                // wake (tokio::task::yield_now). However long a turn took, it is not over before that.
                yield_now().await;
                let waiting = turnstile.waiting.load(Ordering::Relaxed);
                let is_over = waiting == 0;
                // No more than there are to take them: who comes only now would overtake those who are about to run.
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
                // Whatever it has to do may take its time.
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
