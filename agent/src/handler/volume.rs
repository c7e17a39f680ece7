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
    /// The latest version of the secret, read in the name of the pod whose volume it is for.
    ///
    /// # Errors
    ///
    /// As a request of the pod's.
    pub(crate) async fn read_for_volume(
        self: &Arc<Self>,
        workload: &Workload,
        volume: &str,
        name: &SecretName,
        backend: Option<&str>,
    ) -> Result<Arc<Secret>, RequestError> {
        let id = self.next_id();
        let deadline = Instant::now() + self.deadline;
        let place = self.audit.reserve(deadline).await?;
        let mut ask = SecretAsk {
            backend: backend.map(str::to_owned),
            fresh: true,
            ..SecretAsk::plain(name.clone())
        };
        self.fold(&mut ask);
        let mut record = Record::new(place, id, Asker::Volume(volume), ask.name.as_str());
        record.workload = Some(workload.clone());
        let work = async {
            let _permit = workload.pod().quota.request()?;
            let (read, _) = self.read(id, workload, &ask, &mut record).await?;
            Ok(read.secret)
        };
        let outcome = timeout_at(deadline, work)
            .await
            .unwrap_or_else(|_| Err(RequestError::new(Code::Timeout, AGAIN)));
        record.close(outcome.as_ref().err())?;
        outcome
    }
}
