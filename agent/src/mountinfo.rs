//! What is mounted as this process sees it, from the kernel's table (proc_pid_mountinfo(5)).

use std::ffi::OsString;
use std::fs;
use std::io;
use std::os::unix::ffi::OsStringExt;
use std::path::{Path, PathBuf};

/// One mount.
#[derive(Debug, Eq, PartialEq)]
pub(crate) struct Mount {
    /// Which part of its file system is mounted.
    pub(crate) root: PathBuf,
    /// Where it is mounted.
    pub(crate) point: PathBuf,
    /// Its own options, separated by commas.
    pub(crate) options: String,
}

/// Every mount, the oldest first.
///
/// # Errors
///
/// If the table cannot be read.
pub(crate) fn mounts() -> io::Result<Vec<Mount>> {
    Ok(parse(&fs::read("/proc/self/mountinfo")?))
}

/// The mount that `path` is in: among those with the longest mount point the last one, which hides the others.
pub(crate) fn nearest<'a>(mounts: &'a [Mount], path: &Path) -> Option<&'a Mount> {
    let leads_there = mounts.iter().filter(|mount| path.starts_with(&mount.point));
    leads_there.max_by_key(|mount| mount.point.as_os_str().len())
}

/// Each line is `id parent major:minor root point options …`.
fn parse(table: &[u8]) -> Vec<Mount> {
    let lines = table.split(|byte| *byte == b'\n');
    let mount = |line: &[u8]| {
        let mut fields = line.split(|byte| *byte == b' ').skip(3);
        Some(Mount {
            root: unescape(fields.next()?),
            point: unescape(fields.next()?),
            options: String::from_utf8_lossy(fields.next()?).into_owned(),
        })
    };
    lines.filter_map(mount).collect()
}

/// The kernel writes blanks and backslashes as three octal digits after a backslash.
fn unescape(text: &[u8]) -> PathBuf {
    let mut plain = Vec::with_capacity(text.len());
    let mut rest = text;
    while let Some((first, after)) = rest.split_first() {
        let code = after
            .get(..3)
            .filter(|_| *first == b'\\')
            .and_then(|digits| u8::from_str_radix(std::str::from_utf8(digits).ok()?, 8).ok());
        match code {
            Some(byte) => {
                plain.push(byte);
                rest = &after[3..];
            }
            None => {
                plain.push(*first);
                rest = after;
            }
        }
    }
    OsString::from_vec(plain).into()
}

#[cfg(test)]
mod tests {
    use super::*;

    const TABLE: &[u8] = b"22 1 0:20 / /sys rw,nosuid shared:7 - sysfs sysfs rw\n\
        90 1 0:50 /v\\134w/x\\040y /k/a\\040b rw,relatime - ext4 d rw\n\
        91 90 0:51 / /k/a\\040b rw - tmpfs t rw\n\
        92 1 0:52 / /k rw - tmpfs t rw\n\nnonsense\n";

    #[test]
    fn paths_are_read_as_they_are_whatever_is_in_them() {
        let mounts = parse(TABLE);
        assert_eq!(mounts.len(), 4);
        let expected = Mount {
            root: r"/v\w/x y".into(),
            point: "/k/a b".into(),
            options: "rw,relatime".into(),
        };
        assert_eq!(mounts[1], expected);
    }

    #[test]
    fn a_path_is_in_the_last_of_the_mounts_that_are_nearest_to_it() {
        let mounts = parse(TABLE);
        for (path, found) in [
            ("/k/a b/c", Some(2)),
            ("/k/a b", Some(2)),
            ("/k/a", Some(3)),
            ("/sys", Some(0)),
            ("/system", None),
        ] {
            let expected = found.map(|index: usize| &mounts[index]);
            assert_eq!(nearest(&mounts, Path::new(path)), expected, "{path}");
        }
    }
}
