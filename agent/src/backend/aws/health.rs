//! Which regions answer, so that not every request waits for one that does not; and whose answer counts.

use crate::backend::{BackendError, Fault, HANGS};
use latchkey_client::protocol::Code;
use parking_lot::Mutex;
use std::sync::Arc;
use std::time::Duration;
use tokio::time::Instant;

/// How long a region that could not be reached is tried after the others.
const DOWN_FOR: Duration = Duration::from_secs(10);

/// The regions that could not be reached recently.
#[derive(Debug, Default)]
pub(super) struct Health(pub(super) Mutex<Vec<(Arc<str>, Instant)>>);

/// A call to a region that has not ended yet.
struct Call<'a> {
    health: &'a Health,
    region: &'a Arc<str>,
    began: Instant,
}

// === impl Health ===

impl Health {
    /// Returns what `call` gives in the first of `regions` that has it; those not reached recently are tried last.
    ///
    /// Only the first of `regions` may say no, because another may not have the secret, or may be closed to the role or
    /// the account. If the first cannot be reached, another's `denied` counts all the same: after that, no old value
    /// may be served.
    pub(super) async fn ask<'a, T, F>(
        &self,
        regions: &'a [Arc<str>],
        call: impl Fn(&'a Arc<str>) -> F,
    ) -> Result<T, BackendError>
    where
        F: Future<Output = Result<T, BackendError>>,
    {
        let mut failed = super::errors::garbage();
        for region in self.ordered(regions) {
            let under_way = Call {
                health: self,
                region,
                began: Instant::now(),
            };
            let outcome = call(region).await;
            drop(under_way);
            let unreachable = matches!(&outcome, Err(error) if error.fault == Fault::Unreachable);
            self.note(region, unreachable);
            let is_own = *region == regions[0];
            match outcome {
                Err(error) if unreachable || !is_own => {
                    if is_denied(&error) || is_own && !is_denied(&failed) {
                        failed = error;
                    }
                }
                said => return said,
            }
        }
        Err(failed)
    }

    /// Returns `regions` in their order, those not reached recently last.
    fn ordered<'a>(&self, regions: &'a [Arc<str>]) -> Vec<&'a Arc<str>> {
        let mut down = self.0.lock();
        down.retain(|(_, since)| since.elapsed() < DOWN_FOR);
        let mut ordered: Vec<_> = regions.iter().collect();
        ordered.sort_by_key(|region| down.iter().any(|(other, _)| other == *region));
        ordered
    }

    /// Notes whether `region` is down.
    fn note(&self, region: &Arc<str>, is_down: bool) {
        let mut down = self.0.lock();
        down.retain(|(other, _)| other != region);
        if is_down {
            down.push((region.clone(), Instant::now()));
        }
    }
}

fn is_denied(failed: &BackendError) -> bool {
    failed.error.code == Code::Denied
}

// === impl Call ===

/// Also runs if the call has ended: its outcome is noted over this.
impl Drop for Call<'_> {
    fn drop(&mut self) {
        if self.began.elapsed() >= HANGS {
            self.health.note(self.region, true);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::error::RequestError;
    use tokio::time::{sleep, timeout};

    /// The role's own region and one to fall back to.
    fn regions() -> [Arc<str>; 2] {
        ["own".into(), "other".into()]
    }

    fn failed(fault: Fault, code: Code) -> Result<u8, BackendError> {
        Err(BackendError::new(fault, RequestError::new(code, "no")))
    }

    fn away() -> Result<u8, BackendError> {
        failed(Fault::Unreachable, Code::Unavailable)
    }

    fn refused() -> Result<u8, BackendError> {
        failed(Fault::Refused, Code::Denied)
    }

    /// Returns the outcome if the regions answer like this, and the regions in the order in which they were asked.
    async fn asked(
        health: &Health,
        own: Result<u8, BackendError>,
        other: Result<u8, BackendError>,
    ) -> (Result<u8, Fault>, Vec<Arc<str>>) {
        let (regions, order) = (regions(), Mutex::default());
        let call = |region: &Arc<str>| {
            let order: &Mutex<Vec<_>> = &order;
            order.lock().push(region.clone());
            let answer = if **region == *"own" { &own } else { &other };
            std::future::ready(answer.clone())
        };
        let outcome = health.ask(&regions, call).await;
        let order = order.lock().clone();
        (outcome.map_err(|failed| failed.fault), order)
    }

    #[tokio::test(start_paused = true)]
    async fn only_the_roles_own_region_may_say_no() {
        let there = [
            (Ok(1), Ok(1)),
            (refused(), Err(Fault::Refused)),
            (failed(Fault::Call, Code::NotFound), Err(Fault::Call)),
            (
                failed(Fault::SessionEnded, Code::Unavailable),
                Err(Fault::SessionEnded),
            ),
        ];
        for (own, expected) in there {
            for other in [
                refused(),
                failed(Fault::Call, Code::NotFound),
                failed(Fault::SessionEnded, Code::Unavailable),
            ] {
                let (health, [own_region, other_region]) = (Health::default(), regions());
                let (outcome, order) = asked(&health, own.clone(), other.clone()).await;
                assert_eq!((outcome, order), (expected, vec![own_region.clone()]));
                health.note(&own_region, true);
                let (outcome, order) = asked(&health, own.clone(), other).await;
                assert_eq!((outcome, order), (expected, vec![other_region, own_region]));
            }
        }
    }

    #[tokio::test(start_paused = true)]
    async fn where_the_own_region_is_away_another_may_give_and_refuse_but_not_say_that_there_is_none()
     {
        for (other, expected) in [
            (Ok(2), Ok(2)),
            (refused(), Err(Fault::Refused)),
            // Such as a disabled key's.
            (failed(Fault::Call, Code::Denied), Err(Fault::Call)),
            (failed(Fault::Call, Code::NotFound), Err(Fault::Unreachable)),
            (
                failed(Fault::SessionEnded, Code::Unavailable),
                Err(Fault::Unreachable),
            ),
            (away(), Err(Fault::Unreachable)),
        ] {
            let health = Health::default();
            // The second time, the role's own region is asked last.
            for _ in 0..2 {
                let (outcome, _) = asked(&health, away(), other.clone()).await;
                assert_eq!(outcome, expected);
            }
        }
    }

    #[tokio::test(start_paused = true)]
    async fn a_region_for_which_nobody_waited_to_the_end_is_asked_last_if_it_took_long() {
        for (patience, order) in [(999, ["own", "other"]), (1000, ["other", "own"])] {
            let (health, regions) = (Health::default(), regions());
            let hang = |_: &Arc<str>| async {
                sleep(Duration::from_secs(60)).await;
                Ok(())
            };
            let patience = Duration::from_millis(patience);
            assert!(timeout(patience, health.ask(&regions, hang)).await.is_err());
            let ordered = health.ordered(&regions);
            assert_eq!(
                ordered
                    .into_iter()
                    .map(|region| &**region)
                    .collect::<Vec<_>>(),
                order
            );
        }
    }
}
