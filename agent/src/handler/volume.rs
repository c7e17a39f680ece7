//! Reads for the files of a pod's volume: through the same pipeline as the pod's own requests, within the same quota,
//! and each with its own line.

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
    /// Returns the ask for the latest version of a volume's secret. Asks for the same secret are equal, however it is
    /// written.
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

    /// Reads the secret on behalf of the pod that has the volume.
    ///
    /// # Errors
    ///
    /// The same as for a request of the pod.
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
        // A volume has time to wait, so it takes none of the pod's requests in flight. Before the record, so that a
        // read that waits for its permit holds no place in the trail.
        let permit = timeout_at(deadline, quota.batched()).await;
        let place = self.audit.reserve(deadline).await?;
        let mut record = Record::new(place, id, Asker::Volume(volume), ask.name.as_str());
        record.began = began;
        record.workload = Some(workload.clone());
        let work = async {
            let _permit = permit.map_err(too_late)??;
            quota.spend()?;
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
