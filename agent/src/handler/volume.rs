//! A read for the files of a pod's volume: by the same pipeline as a request of the pod's own, within the same quota,
//! and with a line of its own.

use super::record::{Asker, Record};
use super::{AGAIN, Services};
use crate::attest::Workload;
use crate::backend::Secret;
use crate::error::RequestError;
use crate::request::SecretAsk;
use crate::secret::SecretName;
use latchkey_client::protocol::Code;
use std::sync::Arc;
use tokio::time::{Instant, timeout_at};

impl Services {
    /// The ask for the latest version of a volume's secret. Asks for one secret are equal, however it is written.
    pub(crate) fn ask_for_volume(&self, name: &SecretName, backend: Option<&str>) -> SecretAsk {
        let known = self.backends.find(backend);
        let known = known.map(|id| &**self.backends.name(id));
        let mut ask = SecretAsk {
            backend: known.or(backend).map(str::to_owned),
            fresh: true,
            ..SecretAsk::plain(name.clone())
        };
        self.fold(&mut ask);
        ask
    }

    /// The secret, read in the name of the pod whose volume it is for.
    ///
    /// # Errors
    ///
    /// As a request of the pod's.
    pub(crate) async fn read_for_volume(
        self: &Arc<Self>,
        workload: &Workload,
        volume: &str,
        ask: &SecretAsk,
    ) -> Result<Arc<Secret>, RequestError> {
        let id = self.next_id();
        let began = Instant::now();
        let deadline = began + self.deadline;
        let too_late = |_| RequestError::new(Code::Timeout, AGAIN);
        let quota = &workload.pod().quota;
        // It has time to wait, so it takes none of the pod's requests in flight. First, so that those who wait for
        // it hold no place in the trail.
        let permit = timeout_at(deadline, quota.batched()).await;
        let place = self.audit.reserve(deadline).await?;
        let mut record = Record::new(place, id, Asker::Volume(volume), ask.name.as_str());
        record.began = began;
        record.workload = Some(workload.clone());
        let work = async {
            let _permit = permit.map_err(too_late)??;
            quota.spend(1)?;
            let (read, _) = self.read(id, workload, ask, &mut record).await?;
            Ok(read.secret)
        };
        let outcome = timeout_at(deadline, work)
            .await
            .unwrap_or_else(|elapsed| Err(too_late(elapsed)));
        record.close(outcome.as_ref().err())?;
        outcome
    }
}
