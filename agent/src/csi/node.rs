//! The node service: publishes and unpublishes volumes, however often the kubelet repeats a call.
//!
//! A volume is made in this order: its directory, a tmpfs for files if the pod wants some, its record, the agent's
//! consent (the agent writes the files), the mount. A mounter that is killed in between leaves something that the next
//! call, or [`NodeService::tend`], completes or removes. An error that the kubelet takes as final is returned only
//! before the volume is mounted: a running pod keeps what it has.

use super::control::{Ask, ControlSocket, Failure, FailureKind};
use super::mount;
use super::proto::{Empty, NodePublishVolumeRequest, NodeUnpublishVolumeRequest};
use super::publish::{Publish, Target, volume_id};
use super::volume::{FilesAsked, Key, Store, Volume};
use crate::attest::cgroup::PodUid;
use crate::server::{About, Warnings};
use parking_lot::Mutex;
use std::collections::HashSet;
use std::io;
use std::mem;
use std::path::PathBuf;
use std::time::Duration;
use tokio::time::timeout;
use tonic::Status;

/// How long to wait for the agent to let go of a volume that is removed in any case.
const FAREWELL: Duration = Duration::from_secs(2);

/// The most bytes of the store that the records of one pod's volumes may take together: 32 short ones in pages of
/// 4 KiB, 2 in pages of 64 KiB, or one of a volume with the longest attribute, all of it escaped. The 110 pods that a
/// kubelet runs by default take 14 MiB at most, less than half of the store, which counts against the mounter's memory
/// limit of 32 MiB.
const RECORDS_LIMIT: u64 = 128 << 10;

/// The node service.
#[derive(Debug)]
pub(super) struct NodeService {
    /// The node's name.
    pub(super) name: String,
    kubelet: PathBuf,
    store: Store,
    agent: ControlSocket,
    busy: Mutex<HashSet<Key>>,
    warnings: Warnings,
}

/// The right to work on one volume, until it is dropped.
struct Turn<'a> {
    node: &'a NodeService,
    key: Key,
}

// === impl NodeService ===

impl NodeService {
    pub(super) fn new(name: String, kubelet: PathBuf, store: Store) -> Self {
        Self {
            name,
            kubelet,
            agent: ControlSocket::at(store.control()),
            store,
            busy: Mutex::default(),
            warnings: Warnings::default(),
        }
    }

    /// Publishes a volume.
    ///
    /// # Errors
    ///
    /// As CSI's table of errors for `NodePublishVolume` says.
    pub(super) async fn publish(&self, request: NodePublishVolumeRequest) -> Result<Empty, Status> {
        let Publish {
            mut volume,
            files,
            target,
            tokens,
        } = Publish::parse(request, &self.kubelet)?;
        let turn = self.turn(Key::of(&volume.id))?;
        let known = match self.store.load(&turn.key) {
            // Written anew: the kubelet's call brings all that is in it.
            Err(error) if error.kind() == io::ErrorKind::InvalidData => {
                tracing::warn!(%error, "a volume's record makes no sense, and is replaced");
                None
            }
            outcome => outcome.map_err(|error| broken(&error))?,
        };
        let directory = self.store.directory(&turn.key);
        // If this cannot be determined, assume that it is: the pod keeps what it may be using.
        let was_bound = mount::is_bound(&directory, &target).unwrap_or(true);
        let pod = volume.pod.clone();
        let (uid, namespace, name) = (pod.uid, pod.namespace, pod.name);
        volume.files = match (files, &known) {
            // An older or newer mounter took them for right: a pod's volumes do not change.
            (Err(wrong), Some(known)) if was_bound => {
                if self.warnings.is_due("attributes", Some(About::Pod(uid))) {
                    let error = wrong.message();
                    tracing::warn!(%uid, namespace, name, error, "a volume keeps the attributes that it was published with");
                }
                known.files.clone()
            }
            (files, _) => files?,
        };
        if let Some(known) = &known {
            compatible(known, &volume)?;
        }
        let outcome = self.make(volume, &target, tokens, known.is_some()).await;
        match outcome {
            Ok(()) => {
                if !was_bound {
                    tracing::info!(%uid, namespace, name, "a volume is published");
                }
                Ok(Empty {})
            }
            Err(failure) if was_bound => {
                tracing::warn!(%uid, namespace, name, error = failure.text, "a volume stays as it was");
                Err(Status::unavailable(failure.text))
            }
            Err(failure) => {
                tracing::warn!(%uid, namespace, name, error = failure.text, "a volume is not published");
                let _ = self.withdraw(&turn.key, &target).await;
                Err(status(failure))
            }
        }
    }

    /// Unpublishes a volume, or whatever is left of it.
    ///
    /// # Errors
    ///
    /// `INVALID_ARGUMENT` if the volume's id or path is missing or wrong, `ABORTED` while another call works on it,
    /// `UNAVAILABLE` if the kernel does not unmount it.
    pub(super) async fn unpublish(
        &self,
        request: NodeUnpublishVolumeRequest,
    ) -> Result<Empty, Status> {
        let id = volume_id(request.volume_id)?;
        let target = Target::parse(&request.target_path, &self.kubelet)?;
        let turn = self.turn(Key::of(&id))?;
        self.withdraw(&turn.key, &target)
            .await
            .map_err(|error| Status::unavailable(format!("cannot unmount the volume: {error}")))?;
        tracing::info!(uid = %target.pod, "a volume is unpublished");
        Ok(Empty {})
    }

    /// Removes what nobody will unpublish any more: volumes of pods that are gone, and directories that were made but
    /// never recorded.
    ///
    /// A pod is gone if the kubelet has removed its directory, or if the API server no longer knows it: a kubelet that
    /// was down when a pod was deleted by force may never unpublish the volume, and keeps the directory for as long as
    /// something is mounted in it. `unrecorded` are the directories that had no record when this last looked.
    pub(super) async fn tend(&self, unrecorded: &mut HashSet<Key>) {
        let (Ok(keys), Ok(directories)) = (self.store.keys(), self.store.directories()) else {
            return;
        };
        let mut remaining = Vec::new();
        for key in &keys {
            let Ok(Some(volume)) = self.store.load(key) else {
                continue;
            };
            let pod = self.kubelet.join("pods").join(volume.pod.uid.to_string());
            let is_removed = pod
                .symlink_metadata()
                .is_err_and(|error| error.kind() == io::ErrorKind::NotFound);
            match is_removed {
                true => self.discard(key).await,
                false => remaining.push((key, volume.pod.uid)),
            }
        }
        if !remaining.is_empty() {
            let pods: HashSet<PodUid> = remaining.iter().map(|(_, pod)| *pod).collect();
            // An agent that is away names none.
            let asked = self.agent.departed(pods.into_iter().collect());
            let departed = asked.await.unwrap_or_default();
            for (key, pod) in remaining {
                if departed.contains(&pod) {
                    self.discard(key).await;
                }
            }
        }
        // One being published, by this mounter or another on the node, is recorded long before the next round.
        let still = directories.into_iter().filter(|key| !keys.contains(key));
        let before = mem::replace(unrecorded, still.collect());
        for key in unrecorded.intersection(&before) {
            if let Ok(turn) = self.turn(key.clone())
                && let Ok(None) = self.store.load(&turn.key)
            {
                self.forget(&turn.key);
                self.remove(&turn.key);
            }
        }
    }

    /// Removes a volume whose pod is gone.
    async fn discard(&self, key: &Key) {
        if let Ok(turn) = self.turn(key.clone())
            && let Ok(Some(volume)) = self.store.load(&turn.key)
            && let Ok(target) = Target::parse(&volume.target.to_string_lossy(), &self.kubelet)
        {
            tracing::info!(uid = %target.pod, "a volume whose pod is gone is removed");
            let _ = self.withdraw(&turn.key, &target).await;
        }
    }

    async fn make(
        &self,
        volume: Volume,
        target: &Target,
        tokens: Vec<u8>,
        is_recorded: bool,
    ) -> Result<(), Failure> {
        let key = &Key::of(&volume.id);
        let directory = &self.store.directory(key);
        let failed = |what: &str, error: io::Error| {
            Failure::unavailable(format!("cannot {what} the pod's directory: {error}"))
        };
        if !is_recorded {
            self.must_have_room(&volume)?;
        }
        self.store.make(key).map_err(|e| failed("make", e))?;
        if let Some(files) = &volume.files {
            mount::memory(directory, &options_of(files)).map_err(|e| failed("make", e))?;
        }
        // Only once: saving it again each minute would need room for a second record, which there may not be.
        if !is_recorded {
            self.store.save(&volume).map_err(|e| failed("record", e))?;
        }
        self.agent.ask(Ask::Publish(volume), tokens).await?;
        mount::bind(directory, &self.store.staging(key), target).map_err(|e| failed("mount", e))
    }

    /// Makes sure that the pod's records leave room for this volume's.
    fn must_have_room(&self, volume: &Volume) -> Result<(), Failure> {
        let of_pod = self
            .store
            .taken_by(volume.pod.uid)
            .and_then(|taken| Ok(taken + self.store.size_of(volume)?))
            .map_err(|error| {
                Failure::unavailable(format!("the records of volumes cannot be read: {error}"))
            })?;
        if of_pod > RECORDS_LIMIT {
            return Err(Failure::new(
                FailureKind::Invalid,
                format!(
                    "the records of the pod's volumes would take {of_pod} bytes together, more than {RECORDS_LIMIT}: \
                     give it fewer volumes of this driver, which containers can share, or shorter lists of secrets"
                ),
            ));
        }
        Ok(())
    }

    async fn withdraw(&self, key: &Key, target: &Target) -> io::Result<()> {
        if let Err(error) = mount::release(target) {
            // The record stays, so that this is retried.
            tracing::warn!(uid = %target.pod, %error, "cannot remove a volume's mount");
            return Err(error);
        }
        let recorded = match self.store.load(key) {
            // The key is another volume's, with another target: it is not ours to remove.
            Ok(Some(volume)) if volume.target != target.path => return Ok(()),
            Ok(recorded) => recorded,
            Err(error) => {
                tracing::warn!(%error, "cannot read the record of a volume");
                None
            }
        };
        // Before the agent lets go: it reads the records each second, and would listen in the volume again while its
        // directory is being removed.
        self.forget(key);
        if let Some(volume) = recorded {
            // If this does not reach the agent, it notices that the record is gone.
            let farewell = self.agent.ask(Ask::Unpublish(volume.id), Vec::new());
            let _ = timeout(FAREWELL, farewell).await;
        }
        self.remove(key);
        Ok(())
    }

    fn forget(&self, key: &Key) {
        if let Err(error) = self.store.forget(key) {
            tracing::warn!(%error, "cannot remove the record of a volume");
        }
    }

    fn remove(&self, key: &Key) {
        // A mounter that was killed may have left the volume's memory mounted there too.
        if let Err(error) = mount::clear(&self.store.staging(key)) {
            tracing::warn!(%error, "cannot clear where a volume was staged");
        }
        if let Err(error) = mount::unmount(&self.store.directory(key)) {
            tracing::warn!(%error, "cannot unmount the memory of a volume");
        }
        if let Err(error) = self.store.remove(key) {
            tracing::warn!(%error, "cannot remove the directory of a volume");
        }
    }

    fn turn(&self, key: Key) -> Result<Turn<'_>, Status> {
        if !self.busy.lock().insert(key.clone()) {
            return Err(Status::aborted(
                "another call for this volume is under way; try again",
            ));
        }
        Ok(Turn { node: self, key })
    }
}

impl Drop for Turn<'_> {
    fn drop(&mut self) {
        self.node.busy.lock().remove(&self.key);
    }
}

/// Makes sure that a published volume is published again only as the same one.
fn compatible(known: &Volume, asked: &Volume) -> Result<(), Status> {
    if known == asked {
        Ok(())
    } else if known.target != asked.target {
        Err(Status::failed_precondition(
            "the volume is published at another target_path",
        ))
    } else {
        Err(Status::already_exists(
            "the volume is published for another pod, or with other attributes",
        ))
    }
}

/// The mount options of the tmpfs for a volume's files. Whatever is created in it gets the pod's group by itself
/// (inode(7), "set-group-ID"): the agent, which creates it, has no right to give files to a group.
fn options_of(files: &FilesAsked) -> String {
    let group = files.group.unwrap_or(0);
    format!("mode=2755,gid={group},size=8m,nr_inodes=512")
}

fn status(failure: Failure) -> Status {
    match failure.kind {
        FailureKind::Denied => Status::permission_denied(failure.text),
        FailureKind::Invalid => Status::invalid_argument(failure.text),
        FailureKind::Missing => Status::not_found(failure.text),
        FailureKind::Unavailable => Status::unavailable(failure.text),
    }
}

fn broken(error: &io::Error) -> Status {
    Status::unavailable(format!("the record of the volume cannot be read: {error}"))
}
