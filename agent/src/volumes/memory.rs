//! The memory that holds files: whether a volume has its own, and whether its files fit in addition to those of the
//! same pod and of all others.
//!
//! The kernel is asked each time what files take, so an agent that was restarted, or has taken over from another,
//! counts what is there. A file takes whole pages, even if it has a single byte.

use super::Volumes;
use super::folder::FileMade;
use crate::attest::cgroup::PodUid;
use crate::csi::control::{Failure, FailureKind};
use crate::csi::volume::{Key, is_tmpfs};
use nix::sys::stat::stat;
use nix::sys::statfs::statfs;
use std::path::Path;

/// The most memory that the files of all pods may take, in bytes. It counts towards the agent's.
const NODE_LIMIT: u64 = 32 << 20;

/// The most memory that the files of one pod's volumes may take together, in bytes: as much as four volumes of the
/// largest size (`VOLUME_LIMIT`), since keys and certificates are small, and an eighth of the node's limit, so that no
/// pod alone keeps the others from theirs.
const POD_LIMIT: u64 = 4 << 20;

// === impl Volumes ===

impl Volumes {
    /// Whether the agent sees a tmpfs of the volume's own, and not just the store that all volumes share.
    pub(super) fn has_memory(&self, key: &Key) -> bool {
        let directory = self.store.directory(key);
        is_tmpfs(&directory) && device(&directory) != device(self.store.root())
    }

    /// Makes sure that there is room for these files in this volume of this pod.
    ///
    /// # Errors
    ///
    /// If the pod, or all pods together, would exceed their limit.
    pub(super) fn must_have_room(
        &self,
        key: &Key,
        pod: PodUid,
        files: &[FileMade],
    ) -> Result<(), Failure> {
        let (here, page) = used(&self.store.directory(key));
        let needed = in_pages(files, page);
        // The usual case for a refresh, so unchanged files never fail: they take nothing more from anybody.
        if needed <= here {
            return Ok(());
        }
        // During the exchange both sets exist for a moment, in one volume at a time. That is not counted: otherwise
        // nothing could rotate once most of the memory is taken.
        let (mut of_pod, mut of_all) = (needed, needed);
        let open = self.open.lock();
        let others = open
            .iter()
            .filter(|(other, open)| *other != key && !matches!(open.filling, Ok(None)))
            // A volume that goes may have lost its tmpfs already, and what the store uses is no pod's.
            .filter(|(other, _)| self.has_memory(other));
        for (other, open) in others {
            let (there, _) = used(&self.store.directory(other));
            of_all += there;
            if open.pod == Some(pod) {
                of_pod += there;
            }
        }
        within_limits(of_pod, of_all)
    }
}

/// Makes sure that the files of one pod, and those of all pods, may take so many bytes.
fn within_limits(of_pod: u64, of_all: u64) -> Result<(), Failure> {
    if of_pod > POD_LIMIT {
        return Err(Failure::new(
            FailureKind::Invalid,
            format!(
                "the files of the pod's volumes would take {of_pod} bytes of memory together, more than {POD_LIMIT}: \
                 ask for fewer files, or smaller ones"
            ),
        ));
    }
    if of_all > NODE_LIMIT {
        return Err(Failure::unavailable(format!(
            "the files of this node's pods would take more than {NODE_LIMIT} bytes together"
        )));
    }
    Ok(())
}

/// How much memory these files take, in bytes.
fn in_pages(files: &[FileMade], page: u64) -> u64 {
    let lengths = files.iter().map(|file| file.content.len() as u64);
    lengths
        .map(|length| length.next_multiple_of(page.max(1)))
        .sum()
}

/// How much of the memory behind a directory is used, and its page size, in bytes.
fn used(directory: &Path) -> (u64, u64) {
    statfs(directory).map_or((0, 1), |statfs| {
        let pages = statfs.blocks().saturating_sub(statfs.blocks_free());
        let page = u64::try_from(statfs.block_size()).unwrap_or(1);
        (pages * page, page)
    })
}

fn device(path: &Path) -> Option<u64> {
    stat(path).ok().map(|stat| stat.st_dev)
}

#[cfg(test)]
mod tests {
    use super::*;
    use bytes::Bytes;

    const MIB: u64 = 1 << 20;

    const PAGE: u64 = 4096;

    #[test]
    fn a_pod_may_have_four_full_volumes_however_much_room_the_node_has() {
        within_limits(4 * MIB, 4 * MIB).expect("the fourth");
        let of_pod = 4 * MIB + PAGE;
        let failure = within_limits(of_pod, of_pod).expect_err("there is no room");
        // The pod asks for too much: retrying does not help.
        assert_eq!(failure.kind, FailureKind::Invalid);
        assert!(
            failure.text.contains("4198400 bytes") && failure.text.contains("fewer files"),
            "{}",
            failure.text
        );
    }

    #[test]
    fn a_pod_that_asks_for_little_is_refused_only_where_the_node_has_no_room() {
        within_limits(PAGE, NODE_LIMIT).expect("the last page");
        let failure = within_limits(2 * PAGE, NODE_LIMIT + PAGE).expect_err("there is no room");
        assert_eq!(failure.kind, FailureKind::Unavailable);
        assert!(failure.text.contains("this node's pods"));
    }

    #[test]
    fn a_file_of_one_byte_takes_a_page_and_an_empty_one_none() {
        let file = |content: &'static str| FileMade {
            name: "a".into(),
            mode: 0o440,
            content: Bytes::from_static(content.as_bytes()),
        };
        let files = [file("1"), file(""), file("22")];
        assert_eq!(in_pages(&files, PAGE), 2 * PAGE);
    }
}
