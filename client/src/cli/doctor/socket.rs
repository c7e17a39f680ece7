//! The first step: is the agent's directory here, and does somebody listen in it?

use super::AGENTS;
use super::report::{Finding, Report};
use std::fs::{self, FileType};
use std::io::ErrorKind;
use std::os::unix::fs::FileTypeExt as _;
use std::path::{Path, PathBuf};
use tokio::net::UnixStream;

const STEP: &str = "socket";

/// How a pod mounts the directory.
const MOUNT: [&str; 3] = [
    "in the pod's spec:      volumes: [{name: latchkey, csi: {driver: csi.latchkey.dev, readOnly: true}}]",
    "or, without the driver: volumes: [{name: latchkey, hostPath: {path: /run/latchkey, type: Directory}}]",
    "in the container:       volumeMounts: [{name: latchkey, mountPath: /run/latchkey, readOnly: true}]",
];

/// Looks at the socket. Whether it is worth going on.
pub(super) async fn examine(report: &mut Report, socket: &Path) -> bool {
    let Some(kind) = kind_of(report, socket) else {
        return false;
    };
    let shown = socket.display();
    let is_mount = is_mount_point(socket);
    if kind.is_dir() || is_mount && !kind.is_socket() {
        mounted_as_file(
            report,
            &format!(
                "{shown} is a mount of its own and no socket: the socket's file was mounted, when it was not there, instead of its directory"
            ),
        );
        return false;
    }
    if !kind.is_socket() {
        report.fail(STEP, "no_socket", format!("{shown} is no socket"));
        return false;
    }
    dial(report, socket, is_mount).await
}

/// What lies where the socket should; none if nothing does or it cannot be told, and then the report says why.
fn kind_of(report: &mut Report, socket: &Path) -> Option<FileType> {
    let Some(directory) = socket.parent().filter(|parent| parent.is_dir()) else {
        let directory = socket.parent().unwrap_or(socket).display();
        let finding = report.fail(
            STEP,
            "no_mount",
            format!(
                "{directory} is not there: the agent's directory is not mounted into this container"
            ),
        );
        mount(finding);
        return None;
    };
    match fs::metadata(socket) {
        Ok(metadata) => Some(metadata.file_type()),
        Err(error) if error.kind() == ErrorKind::NotFound => {
            let is_image = nearest_mount(directory).is_some_and(|mount| mount.is_image());
            let directory = directory.display();
            if is_image {
                mount(report.fail(
                    STEP,
                    "no_mount",
                    format!("{directory} is the image's own, without a socket: the agent's directory is not mounted over it"),
                ));
                return None;
            }
            report
                .fail(
                    STEP,
                    "agent_down",
                    format!("there is no socket in {directory}: no agent runs on this node, or what is mounted there is not its directory"),
                )
                .next(AGENTS)
                .next(format!("latchkey doctor --pod {}", pod_name()));
            None
        }
        Err(error) => {
            report.fail(
                STEP,
                "unreadable",
                format!("cannot look at {}: {error}", socket.display()),
            );
            None
        }
    }
}

/// Connects to the socket, which may be mounted as a file of its own. Whether it is worth going on.
///
/// With tokio, whose sockets do not block: another one would wait in the kernel until a full queue has room.
async fn dial(report: &mut Report, socket: &Path, is_mount: bool) -> bool {
    let shown = socket.display();
    match UnixStream::connect(socket).await {
        Ok(_) if is_mount => {
            mount(report.note(
                STEP,
                "file_mount",
                format!("{shown} answers, and is mounted as a file: after the agent's next restart it will lead nowhere"),
            ));
            true
        }
        Ok(_) => {
            report.ok(STEP, format!("{shown} answers"));
            true
        }
        // Its queue is full: the agent is there, and the next steps say how it is.
        Err(error) if error.kind() == ErrorKind::WouldBlock => {
            report.note(STEP, "queue_full", format!("the queue of {shown} is full"));
            true
        }
        Err(error) if error.kind() == ErrorKind::ConnectionRefused && is_mount => {
            mounted_as_file(
                report,
                &format!(
                    "{shown} is mounted as a file, and nobody listens at the socket that it was: a restarted agent makes a new one"
                ),
            );
            false
        }
        Err(error) if error.kind() == ErrorKind::ConnectionRefused => {
            report
                .fail(
                    STEP,
                    "agent_down",
                    format!("nobody listens at {shown}: the agent of this node has died"),
                )
                .next(AGENTS)
                .next("kubectl -n latchkey logs -c agent --previous POD, which is the one on this pod's node");
            false
        }
        Err(error) if error.kind() == ErrorKind::PermissionDenied => {
            report
                .fail(
                    STEP,
                    "no_permission",
                    format!("this process may not connect to {shown}: {error}"),
                )
                .next("the directory must have mode 0755 and the socket 0666; with SELinux, the label container_file_t");
            false
        }
        Err(error) => {
            report.fail(
                STEP,
                "unreachable",
                format!("cannot connect to {shown}: {error}"),
            );
            false
        }
    }
}

fn mounted_as_file(report: &mut Report, text: &str) {
    mount(
        report
            .fail(STEP, "file_mount", text)
            .next("mount the directory, without subPath:"),
    );
}

/// Says how the directory is mounted.
fn mount(finding: &mut Finding) {
    for line in MOUNT {
        finding.next(line);
    }
}

/// What is mounted, and where.
#[derive(Debug, Eq, PartialEq)]
struct Mount {
    point: PathBuf,
    filesystem: String,
}

impl Mount {
    /// Whether it is what container runtimes make of an image.
    fn is_image(&self) -> bool {
        self.point == Path::new("/") && self.filesystem == "overlay"
    }
}

/// Whether something is mounted at just that path.
fn is_mount_point(path: &Path) -> bool {
    let path = fs::canonicalize(path).ok();
    let mount = path.as_deref().and_then(nearest_mount);
    mount.is_some_and(|mount| Some(mount.point) == path)
}

/// What is mounted at that path, or nearest above it.
fn nearest_mount(path: &Path) -> Option<Mount> {
    let path = fs::canonicalize(path).ok()?;
    nearest_in(&fs::read_to_string("/proc/self/mountinfo").ok()?, &path)
}

/// The same, by what proc_pid_mountinfo(5) tells. Of two at one place the later one covers the other.
fn nearest_in(mounts: &str, path: &Path) -> Option<Mount> {
    let mounts = mounts.lines().filter_map(|line| {
        let (mount, filesystem) = line.split_once(" - ")?;
        Some(Mount {
            point: unescaped(mount.split(' ').nth(4)?)?.into(),
            filesystem: filesystem.split(' ').next()?.to_owned(),
        })
    });
    mounts
        .filter(|mount| path.starts_with(&mount.point))
        .max_by_key(|mount| mount.point.components().count())
}

/// A path as mountinfo writes it: what would end a field is a backslash and three octal digits.
fn unescaped(field: &str) -> Option<String> {
    let mut parts = field.split('\\');
    let mut path = parts.next()?.as_bytes().to_vec();
    for part in parts {
        path.push(u8::from_str_radix(part.get(..3)?, 8).ok()?);
        path.extend_from_slice(part.get(3..)?.as_bytes());
    }
    String::from_utf8(path).ok()
}

/// This pod's name as its container most likely knows it.
fn pod_name() -> String {
    let host = fs::read_to_string("/proc/sys/kernel/hostname").unwrap_or_default();
    format!("NAMESPACE/{}", host.trim())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_directory_of_the_image_is_known_from_one_that_is_mounted() {
        let mounts = "\
            1 0 0:1 / / rw - overlay overlay rw,lowerdir=/l\n\
            2 1 0:2 / /run/latchkey ro master:1 - tmpfs tmpfs rw\n\
            3 1 8:1 /x /var ro - ext4 /dev/sda rw\n\
            4 3 0:3 / /var ro - tmpfs tmpfs rw\n";
        let nearest = |path: &str| {
            let mount = nearest_in(mounts, Path::new(path)).expect("the root");
            (mount.is_image(), mount.filesystem)
        };
        assert_eq!(nearest("/run/latchkey"), (false, "tmpfs".to_owned()));
        assert_eq!(nearest("/run/latchkey-2"), (true, "overlay".to_owned()));
        assert_eq!(nearest("/run"), (true, "overlay".to_owned()));
        assert_eq!(nearest("/var/run"), (false, "tmpfs".to_owned()));
    }

    #[test]
    fn a_mount_point_is_read_as_it_is_written() {
        assert_eq!(
            unescaped("/run/a\\040b\\134c").as_deref(),
            Some("/run/a b\\c")
        );
        assert_eq!(unescaped("/run").as_deref(), Some("/run"));
        assert_eq!(unescaped("/run\\9"), None);
    }
}
