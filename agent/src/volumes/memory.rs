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

/// What files take now, in bytes as the kernel counts them.
#[derive(Debug, Default)]
struct Taken {
    /// In the volume to be filled.
    here: u64,
    /// In the other volumes of its pod.
    by_pod: u64,
    /// In all other volumes, including those of its pod.
    by_all: u64,
}

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
        let mut taken = Taken {
            here,
            ..Taken::default()
        };
        // The usual case for a refresh: no need to ask what the others take.
        if !taken.grows_to(needed) {
            return Ok(());
        }
        let open = self.open.lock();
        let others = open
            .iter()
            .filter(|(other, open)| *other != key && !matches!(open.filling, Ok(None)))
            // A volume that goes may have lost its tmpfs already, and what the store uses is no pod's.
            .filter(|(other, _)| self.has_memory(other));
        for (other, open) in others {
            let (there, _) = used(&self.store.directory(other));
            taken.by_all += there;
            if open.pod == Some(pod) {
                taken.by_pod += there;
            }
        }
        taken.must_leave(needed)
    }
}

// === impl Taken ===

impl Taken {
    /// Whether files of so many bytes take more than those that are there. If not, they take nothing from anybody.
    fn grows_to(&self, needed: u64) -> bool {
        needed > self.here
    }

    /// Makes sure that files of so many bytes may replace the volume's files.
    ///
    /// During the exchange both sets exist for a moment, in one volume at a time. That is not counted: otherwise
    /// nothing could rotate once most of the memory is taken.
    fn must_leave(&self, needed: u64) -> Result<(), Failure> {
        // So unchanged files never fail.
        if !self.grows_to(needed) {
            return Ok(());
        }
        let of_pod = self.by_pod + needed;
        if of_pod > POD_LIMIT {
            return Err(Failure::new(
                FailureKind::Invalid,
                format!(
                    "the files of the pod's volumes would take {of_pod} bytes of memory together, more than {POD_LIMIT}: \
                     ask for fewer files, or smaller ones"
                ),
            ));
        }
        if self.by_all + needed > NODE_LIMIT {
            return Err(Failure::unavailable(format!(
                "the files of this node's pods would take more than {NODE_LIMIT} bytes together"
            )));
        }
        Ok(())
    }
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

    fn refused(taken: &Taken, needed: u64) -> Failure {
        taken.must_leave(needed).expect_err("there is no room")
    }

    #[test]
    fn a_pod_may_have_four_full_volumes_however_much_room_the_node_has() {
        let three = Taken {
            by_pod: 3 * MIB,
            by_all: 3 * MIB,
            ..Taken::default()
        };
        three.must_leave(MIB).expect("the fourth");
        let failure = refused(&three, MIB + PAGE);
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
        let nearly_full = Taken {
            by_all: NODE_LIMIT - PAGE,
            ..Taken::default()
        };
        nearly_full.must_leave(PAGE).expect("the last page");
        let failure = refused(&nearly_full, 2 * PAGE);
        assert_eq!(failure.kind, FailureKind::Unavailable);
        assert!(failure.text.contains("this node's pods"));
    }

    #[test]
    fn what_is_there_is_not_counted_twice_when_it_is_replaced() {
        // It has one page and gets two; both sets together would be three.
        let growing = Taken {
            here: PAGE,
            by_pod: POD_LIMIT - 2 * PAGE,
            by_all: NODE_LIMIT - 2 * PAGE,
        };
        growing.must_leave(2 * PAGE).expect("just enough");
        refused(&growing, 3 * PAGE);
    }

    #[test]
    fn files_that_take_no_more_than_before_are_never_refused() {
        let over_all_limits = Taken {
            here: 2 * PAGE,
            by_pod: 2 * POD_LIMIT,
            by_all: 2 * NODE_LIMIT,
        };
        for needed in [0, PAGE, 2 * PAGE] {
            over_all_limits.must_leave(needed).expect("no more");
        }
        refused(&over_all_limits, 3 * PAGE);
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
