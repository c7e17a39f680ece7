//! Turns: however much one pod asks at once, others are served in between.
//!
//! One thread serves everybody, and tasks that are ready run in the order in which they became so. A pod whose sixty
//! connections speak up at the same moment would keep all others waiting for sixty answers. So only a few of a kind
//! run in one turn. The rest stand back, in their order, and the runtime first asks the kernel what else has come.

use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;
use tokio::sync::Semaphore;
use tokio::task::yield_now;
use tokio::time::Instant;

/// After so long a turn is over also if nobody has had to stand back.
const TURN: Duration = Duration::from_millis(1);

/// Lets so many pass in one turn.
#[derive(Debug)]
pub(crate) struct Turnstile {
    most: usize,
    /// What is left of the turn. Those who have to stand back wait for a permit.
    places: Semaphore,
    turn: Mutex<Turn>,
}

#[derive(Debug)]
struct Turn {
    began: Instant,
    /// Somebody stands back, and a task begins one turn after the other until nobody does.
    is_ushered: bool,
}

impl Turnstile {
    /// One that lets `most` pass in a turn.
    pub(crate) fn new(most: usize) -> Arc<Self> {
        Arc::new(Self {
            most,
            places: Semaphore::new(most),
            turn: Mutex::new(Turn {
                began: Instant::now(),
                is_ushered: false,
            }),
        })
    }

    /// Ends when it is one's turn, which it mostly is `now`. Needs a runtime of one thread.
    pub(crate) async fn pass(self: &Arc<Self>, now: Instant) {
        let place = match self.places.try_acquire() {
            Ok(place) => Ok(place),
            Err(_) => {
                self.stand_back(now);
                self.places.acquire().await
            }
        };
        // Nobody closes it. A place is used up, and comes back with the next turn.
        if let Ok(place) = place {
            place.forget();
        }
    }

    /// Sees to it that there is another turn.
    fn stand_back(self: &Arc<Self>, now: Instant) {
        let mut turn = self.turn.lock().unwrap_or_else(PoisonError::into_inner);
        if turn.is_ushered {
            return;
        }
        if now.saturating_duration_since(turn.began) > TURN {
            turn.began = now;
            self.refill();
            return;
        }
        turn.is_ushered = true;
        let turnstile = self.clone();
        tokio::spawn(async move {
            loop {
                // A task that yields runs again when the kernel has been asked for events, after those whom they
                // wake (tokio::task::yield_now).
                yield_now().await;
                if turnstile.next() {
                    return;
                }
            }
        });
    }

    /// Begins a turn; whether nobody stands back any more.
    fn next(&self) -> bool {
        let mut turn = self.turn.lock().unwrap_or_else(PoisonError::into_inner);
        turn.began = Instant::now();
        self.refill();
        turn.is_ushered = self.places.available_permits() == 0;
        !turn.is_ushered
    }

    /// Those who stand back have the places first.
    fn refill(&self) {
        let left = self.places.available_permits();
        self.places.add_permits(self.most.saturating_sub(left));
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::io::Write;
    use tokio::io::AsyncReadExt;
    use tokio::net::UnixStream;
    use tokio::task::JoinSet;
    use tokio::time::advance;

    type Order = Arc<Mutex<Vec<&'static str>>>;

    fn note(order: &Order, who: &'static str) {
        order.lock().expect("nobody panics with it").push(who);
    }

    fn crowd(tasks: &mut JoinSet<()>, turnstile: &Arc<Turnstile>, order: &Order) {
        for who in ["1", "2", "3", "4", "5", "6"] {
            let (turnstile, order) = (turnstile.clone(), order.clone());
            tasks.spawn(async move {
                turnstile.pass(Instant::now()).await;
                note(&order, who);
            });
        }
    }

    #[tokio::test(start_paused = true)]
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

    #[tokio::test(start_paused = true)]
    async fn after_a_crowd_there_is_a_whole_turn_again() {
        let (order, turnstile) = (Order::default(), Turnstile::new(2));
        for _ in 0..3 {
            let mut tasks = JoinSet::new();
            crowd(&mut tasks, &turnstile, &order);
            tasks.join_all().await;
            assert_eq!(order.lock().expect("nobody panics with it").len(), 6);
            order.lock().expect("nobody panics with it").clear();
        }
        advance(TURN * 2).await;
        for _ in 0..2 {
            let now = Instant::now();
            let passed = futures::FutureExt::now_or_never(turnstile.pass(now));
            assert_eq!(passed, Some(()));
        }
    }
}
