//! Fills a volume's files from the vaults, before the pod starts and then again and again: in the pod's name, with the
//! pod's own role and within its quota.
//!
//! Files stay in place until there is something newer. If a vault is down, or the pod may no longer have a secret,
//! nothing changes in a running pod; the kubelet is told at its next call.

use super::Volumes;
use super::asked::{self, FileAsked};
use super::folder::{FileMade, Folder};
use crate::attest::{AttestError, Workload};
use crate::backend::Secret;
use crate::csi::control::{Failure, FailureKind};
use crate::csi::volume::{Key, Volume};
use crate::error::RequestError;
use crate::handover;
use crate::request::SecretAsk;
use crate::response;
use futures::{StreamExt, stream};
use latchkey_client::protocol::Code;
use nix::fcntl::Flock;
use std::fs::File;
use std::os::fd::OwnedFd;
use std::sync::Arc;
use std::time::Duration;
use tokio::sync::Mutex;
use tokio::time::{sleep, timeout};
use uuid::Uuid;

/// How many secrets of a volume are read at once.
const WIDTH: usize = 8;

/// How long reading all of them may take. The mounter waits a little longer for the agent.
const FILL_TIMEOUT: Duration = Duration::from_secs(15);

/// The most bytes that the files of one volume may have together: as many as a Kubernetes Secret.
const VOLUME_LIMIT: usize = 1 << 20;

/// How long the previous set stays: a process that has followed the link to it can still open its file.
const PASSING: Duration = Duration::from_millis(100);

/// A pause between two fillings is longer by up to this part of it: volumes filled together do not stay in step.
const JITTER_PART: u32 = 8;

/// The files of a volume.
pub(super) struct Filling {
    volume: Volume,
    asked: Vec<FileAsked>,
    /// How this agent's last filling ended, if it has done one.
    last: Mutex<Option<Result<(), Failure>>>,
}

// === impl Filling ===

impl Filling {
    /// The files that a volume should hold, if any.
    ///
    /// # Errors
    ///
    /// If what the pod asks for is wrong.
    pub(super) fn of(volume: &Volume) -> Result<Option<Arc<Self>>, Failure> {
        let Some(files) = &volume.files else {
            return Ok(None);
        };
        Ok(Some(Arc::new(Self {
            volume: volume.clone(),
            asked: asked::parse(&files.secrets)?,
            last: Mutex::default(),
        })))
    }
}

// === impl Volumes ===

impl Volumes {
    /// Fills the volume, unless this agent has already succeeded, or the pod is at its end and keeps the files it has: a
    /// kubelet that was restarted publishes a volume anew before it unpublishes it, and would never let the pod go.
    ///
    /// # Errors
    ///
    /// If it cannot be filled; the text says why.
    pub(super) async fn fill_first(&self, key: &Key, filling: &Filling) -> Result<(), Failure> {
        let may_ask = self.node.of_volume(filling.volume.pod.uid);
        if let Err(AttestError::Denied(_)) = may_ask
            && Folder::of(self.store.directory(key)).is_filled()
        {
            return Ok(());
        }
        let (mut last, has_waited) = match filling.last.try_lock() {
            Ok(last) => (last, false),
            Err(_) => (filling.last.lock().await, true),
        };
        // A call that has waited for a filling takes its outcome: another one might take longer than the mounter waits.
        match &*last {
            Some(Ok(())) => return Ok(()),
            Some(failed) if has_waited => return failed.clone(),
            _ => {}
        }
        let outcome = self.fill(key, filling, last.as_ref()).await;
        *last = Some(outcome.clone());
        outcome
    }

    /// Fills the volume again and again, as long as it is this agent's; empties it while its pod does not exist.
    pub(super) async fn go_on_filling(self: Arc<Self>, key: Key, filling: Arc<Filling>) {
        let pod = &filling.volume.pod;
        loop {
            sleep(self.pause()).await;
            if !self.is_filled_by(&key, &filling) {
                return;
            }
            // Until it has been filled for the first time, nobody has agreed to it.
            if !Folder::of(self.store.directory(&key)).is_filled() {
                continue;
            }
            let mut last = filling.last.lock().await;
            if self.departed(vec![pod.uid]).await.is_empty() {
                *last = Some(self.fill(&key, &filling, last.as_ref()).await);
            } else if let Ok(true) = self.put(&key, &filling, &[]).await {
                // Its volume may never be unpublished (`csi/node.rs: Node::tend`), and nobody needs what it holds.
                tracing::info!(
                    uid = %pod.uid, namespace = pod.namespace, pod = pod.name, volume = filling.volume.name(),
                    "a volume's files are removed, since its pod is gone"
                );
                *last = Some(Err(no_pod(&AttestError::Gone)));
            }
        }
    }

    fn pause(&self) -> Duration {
        let [byte, ..] = Uuid::new_v4().into_bytes();
        self.refresh + self.refresh / JITTER_PART * u32::from(byte) / 256
    }

    async fn fill(
        &self,
        key: &Key,
        filling: &Filling,
        last: Option<&Result<(), Failure>>,
    ) -> Result<(), Failure> {
        let volume = &filling.volume;
        let outcome = match timeout(FILL_TIMEOUT, self.read_all(filling)).await {
            Ok(Ok(files)) => self.put(key, filling, &files).await,
            Ok(Err(failure)) => Err(failure),
            Err(_) => Err(Failure::unavailable(
                "the volume's secrets could not all be read in time",
            )),
        };
        let outcome = outcome.map(|changed| {
            if changed {
                let pod = &volume.pod;
                tracing::info!(
                    uid = %pod.uid, namespace = pod.namespace, pod = pod.name, volume = volume.name(),
                    "a volume's files are in place"
                );
            }
        });
        self.metrics
            .filling(outcome.as_ref().err().map(|failure| failure.kind));
        if let Err(failure) = &outcome {
            // Otherwise the same line would be logged each minute.
            let is_known = matches!(last, Some(Err(before)) if before.text == failure.text);
            if !is_known {
                let (kind, error) = (failure.kind.as_str(), &failure.text);
                let pod = &volume.pod;
                tracing::warn!(
                    uid = %pod.uid, namespace = pod.namespace, pod = pod.name, volume = volume.name(),
                    kind, error, "a volume's files cannot be read"
                );
            }
        }
        outcome
    }

    /// Reads what the files should hold from the vaults.
    async fn read_all(&self, filling: &Filling) -> Result<Vec<FileMade>, Failure> {
        let volume = &filling.volume;
        let workload = self
            .node
            .of_volume(volume.pod.uid)
            .map_err(|error| no_pod(&error))?;
        let (workload, services) = (&workload, &self.server.services);
        // Each secret is read once, so members of one secret are of one version.
        let mut asks: Vec<SecretAsk> = Vec::new();
        let mut places = Vec::new();
        for file in &filling.asked {
            let ask = services.ask_for_volume(&file.secret, file.backend.as_deref());
            let known = asks.iter().position(|known| *known == ask);
            places.push(known.unwrap_or(asks.len()));
            if known.is_none() {
                asks.push(ask);
            }
        }
        let reads: Vec<Result<Arc<Secret>, RequestError>> = stream::iter(asks)
            .map(|ask| async move {
                let read = services.read_for_volume(workload, volume.name(), &ask);
                read.await
            })
            .buffered(WIDTH)
            .collect()
            .await;
        must_be_current(workload)?;
        let mut files = Vec::new();
        for (file, place) in filling.asked.iter().zip(places) {
            let content = match &reads[place] {
                Ok(secret) => response::bare(secret, file.key.as_deref()),
                Err(error) => Err(error.clone()),
            };
            match content {
                Ok(content) => files.push(FileMade {
                    name: file.name.clone(),
                    mode: file.mode,
                    content,
                }),
                Err(error) if file.optional && is_absence(error.code) => {}
                Err(error) => return Err(failed(file, &error)),
            }
        }
        let size: usize = files.iter().map(|file| file.content.len()).sum();
        if size > VOLUME_LIMIT {
            return Err(Failure::new(
                FailureKind::Invalid,
                format!("the volume's files have {size} bytes together, more than {VOLUME_LIMIT}"),
            ));
        }
        Ok(files)
    }

    async fn put(&self, key: &Key, filling: &Filling, files: &[FileMade]) -> Result<bool, Failure> {
        let folder = Folder::of(self.store.directory(key));
        let was_filled = folder.is_filled();
        // Before a pod starts there is no set to exchange.
        let _exchange = match was_filled {
            true => Some(self.exchange.lock().await),
            false => None,
        };
        let mut held = self.lock(key).await;
        // The reads took time: another agent may have put something newer there since.
        if !self.is_filled_by(key, filling) {
            return Err(Failure::unavailable(match self.volume_of(key) {
                Some(_) => "the volume is another agent's by now; it is tried again",
                None => "the volume has been unpublished",
            }));
        }
        // Without the mount, files would be written into the memory that all pods share, not the pod's own.
        if !self.has_memory(key) {
            return Err(Failure::unavailable(
                "the agent does not see the volume's memory: csi.directory needs mountPropagation HostToContainer",
            ));
        }
        // No await from here to the last byte, so no other volume gets a turn: two cannot both take the last room.
        self.must_have_room(key, filling.volume.pod.uid, files)?;
        let unwritten =
            |error| Failure::unavailable(format!("the volume's files cannot be written: {error}"));
        let outcome = folder.put(files).map_err(unwritten);
        // It may have failed once the new set was in place: the previous one goes in any case, or they would pile up.
        if was_filled && !matches!(outcome, Ok(false)) {
            drop(held);
            sleep(PASSING).await;
            held = self.lock(key).await;
        }
        let swept = match self.is_filled_by(key, filling) {
            true => folder.sweep().map_err(unwritten),
            false => Ok(()),
        };
        drop(held);
        let changed = outcome?;
        swept.map(|()| changed)
    }

    /// Keeps another agent from writing the volume's files, in a handover. The lock is on the volume's record: its
    /// directory can be locked by the pod, and all other volumes would have to wait.
    async fn lock(&self, key: &Key) -> Option<Flock<OwnedFd>> {
        let record = self.store.record(key);
        let open = File::open(&record).ok()?;
        handover::lock(open.into(), &record).await
    }
}

/// Whether a file that the pod calls optional may be left out for this error.
fn is_absence(code: Code) -> bool {
    matches!(
        code,
        Code::Denied | Code::NoRole | Code::NotFound | Code::KeyNotFound
    )
}

fn failed(file: &FileAsked, error: &RequestError) -> Failure {
    let kind = match error.code {
        Code::Denied | Code::NoRole | Code::NotAttested => FailureKind::Denied,
        Code::NotFound | Code::KeyNotFound => FailureKind::Missing,
        Code::InvalidRequest | Code::NotJson | Code::TooLarge => FailureKind::Invalid,
        _ => FailureKind::Unavailable,
    };
    let (secret, name, code) = (file.secret.as_str(), &file.name, error.code.as_str());
    Failure::new(
        kind,
        format!("the secret {secret:?} for the file {name:?} cannot be had: {code}: {error}"),
    )
}

fn no_pod(error: &AttestError) -> Failure {
    match error {
        AttestError::NotYet(_) | AttestError::Gone => {
            Failure::unavailable("the pod is not known, or no longer")
        }
        AttestError::Denied(_) => Failure::new(
            FailureKind::Denied,
            "the pod may have no secrets: it is static, has finished, or is being deleted",
        ),
    }
}

/// Makes sure that the pod is not gone: the reads took time.
fn must_be_current(workload: &Workload) -> Result<(), Failure> {
    if workload.pod().is_gone() {
        return Err(no_pod(&AttestError::Gone));
    }
    Ok(())
}
