//! The first step: is the agent's directory here, and does anybody listen in it?

use super::AGENTS;
use super::place::{ELSEWHERE, Place, START, STDERR, user};
use super::report::{Finding, Report};
use crate::client::{also_looked_at, hidden_by};
use nix::sys::statfs::{OVERLAYFS_SUPER_MAGIC, statfs};
use std::fs::{self, FileType};
use std::io::{self, ErrorKind};
use std::os::unix::fs::{FileTypeExt as _, MetadataExt as _};
use std::path::Path;
use tokio::net::UnixStream;

const STEP: &str = "socket";

/// The longest path that a socket can have, in bytes (unix(7)).
const LONGEST: usize = 107;

/// How a pod mounts the directory.
const MOUNT: [&str; 3] = [
    "in the pod's spec:      volumes: [{name: latchkey, csi: {driver: csi.latchkey.dev, readOnly: true}}]",
    "or, without the driver: volumes: [{name: latchkey, hostPath: {path: /run/latchkey, type: Directory}}]",
    "in the container:       volumeMounts: [{name: latchkey, mountPath: /run/latchkey, readOnly: true}]",
];

/// Where to look if the agent is in the same pod.
const OWN_AGENT: &str =
    "if the pod has an agent of its own, a sidecar: kubectl -n NAMESPACE logs POD -c CONTAINER";

/// Examines the socket. Returns whether it is worth going on.
pub(super) async fn examine(report: &mut Report, place: Place, socket: &Path) -> bool {
    let shown = socket.display();
    let length = socket.as_os_str().len();
    if length > LONGEST {
        report.absent(
            STEP,
            "unreachable",
            format!("{shown} has {length} bytes, and the path of a socket at most {LONGEST}"),
        );
        return false;
    }
    if let Some(own) = hidden_by(socket).filter(|_| place == Place::Machine) {
        report
            .note(
                STEP,
                "own_agent_hidden",
                format!("{shown} is there, so the socket of this user's own agent is not asked"),
            )
            .next(format!(
                "to ask that one: LATCHKEY_SOCKET={}",
                own.display()
            ));
    }
    let Some(kind) = kind_of(report, place, socket) else {
        return false;
    };
    let inside = socket.join("agent.sock");
    if kind.is_dir() && inside.exists() {
        let inside = inside.display();
        report
            .absent(
                STEP,
                "no_socket",
                format!("{shown} is the agent's directory, not its socket"),
            )
            .next(format!("--socket {inside}, or LATCHKEY_SOCKET={inside}"));
        return false;
    }
    let is_mount = is_mount_point(socket);
    if is_mount && !kind.is_socket() && !(kind.is_dir() && has_entries(socket)) {
        mounted_as_file(
            report,
            &format!(
                "{shown} is a mount of its own and no socket: the socket's file was mounted, when it was not there, instead of its directory"
            ),
        );
        return false;
    }
    if !kind.is_socket() {
        report
            .absent(STEP, "no_socket", format!("{shown} is no socket"))
            .next(ELSEWHERE);
        return false;
    }
    dial(report, place, socket, is_mount).await
}

/// What lies where the socket should be. If nothing does, or it cannot be determined, the report says why.
fn kind_of(report: &mut Report, place: Place, socket: &Path) -> Option<FileType> {
    let directory = match socket.parent() {
        Some(parent) if !parent.as_os_str().is_empty() => parent,
        _ => Path::new("."),
    };
    let nothing =
        |error: &io::Error| matches!(error.kind(), ErrorKind::NotFound | ErrorKind::NotADirectory);
    let shown = directory.display();
    let is_directory = match fs::metadata(directory) {
        Err(error) if !nothing(&error) => {
            hidden(report, place, directory, &error);
            return None;
        }
        found => found.is_ok_and(|found| found.is_dir()),
    };
    if !is_directory {
        let text = format!("{shown} is not there");
        match place {
            Place::Pod => mount(report.absent(
                STEP,
                "no_mount",
                format!("{text}: the agent's directory is not mounted into this container"),
            )),
            Place::Machine => no_agent(report, socket, &text),
        }
        return None;
    }
    let error = match fs::metadata(socket) {
        Ok(metadata) => return Some(metadata.file_type()),
        Err(error) => error,
    };
    if !nothing(&error) {
        hidden(report, place, socket, &error);
        return None;
    }
    let text = format!("there is no socket in {shown}");
    match place {
        Place::Machine => no_agent(report, socket, &text),
        Place::Pod if is_of_image(directory) => mount(report.absent(
            STEP,
            "no_mount",
            format!("{shown} is the image's own, without a socket: the agent's directory is not mounted over it"),
        )),
        Place::Pod => {
            report
                .absent(
                    STEP,
                    "agent_down",
                    format!("{text}: no agent runs on this node, or what is mounted there is not its directory"),
                )
                .next(AGENTS)
                .next(OWN_AGENT)
                .next(format!("latchkey doctor --pod {}", pod_name()));
        }
    }
    None
}

/// Reports that nothing is where a machine's agent would be.
fn no_agent(report: &mut Report, socket: &Path, text: &str) {
    let finding = report.absent(
        STEP,
        "agent_down",
        format!("{text}: no agent runs on this machine, or its socket is elsewhere"),
    );
    finding
        .next(START)
        .next("if one runs, its socket: --socket PATH, or LATCHKEY_SOCKET=PATH");
    if let Some(also) = also_looked_at(socket) {
        finding.next(also);
    }
}

/// Reports that it cannot be determined what lies there.
fn hidden(report: &mut Report, place: Place, path: &Path, error: &io::Error) {
    let text = format!("cannot look at {}: {error}", path.display());
    if error.kind() == ErrorKind::PermissionDenied {
        permit(report.absent(STEP, "no_permission", text), place);
    } else {
        report.absent(STEP, "unreadable", text);
    }
}

/// Says whom the agent's directory and socket admit.
fn permit(finding: &mut Finding, place: Place) {
    finding.next(match place {
        Place::Pod => {
            "the directory must have mode 0755 and the socket 0666; with SELinux, the label container_file_t".to_owned()
        }
        Place::Machine => format!(
            "this is {}: an agent that serves only its own user lets no other into its directory; for several users, \
             each has a [[local.workload]]",
            user()
        ),
    });
}

/// Connects to the socket, which may be mounted as a single file. Returns whether it is worth going on.
///
/// With tokio, whose sockets do not block: any other would wait in the kernel until a full queue has room.
async fn dial(report: &mut Report, place: Place, socket: &Path, is_mount: bool) -> bool {
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
        // Its queue is full: the agent is there, and the next steps say how it is doing.
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
            let text = format!("nobody listens at {shown}: the agent of this {place} has died");
            let finding = report.absent(STEP, "agent_down", text);
            match place {
                Place::Pod => finding
                    .next(AGENTS)
                    .next("kubectl -n latchkey logs -c agent --previous POD, which is the one on this pod's node")
                    .next(OWN_AGENT),
                Place::Machine => finding.next(STDERR).next(START),
            };
            false
        }
        Err(error) if error.kind() == ErrorKind::PermissionDenied => {
            let text = format!("this process may not connect to {shown}: {error}");
            permit(report.absent(STEP, "no_permission", text), place);
            false
        }
        Err(error) => {
            let text = format!("cannot connect to {shown}: {error}");
            report.absent(STEP, "unreachable", text);
            false
        }
    }
}

fn mounted_as_file(report: &mut Report, text: &str) {
    mount(
        report
            .absent(STEP, "file_mount", text)
            .next("mount the directory, without subPath:"),
    );
}

/// Says how to mount the directory.
fn mount(finding: &mut Finding) {
    for line in MOUNT {
        finding.next(line);
    }
}

/// Whether it is a directory that is not empty, or may not be.
fn has_entries(path: &Path) -> bool {
    fs::read_dir(path).map_or(true, |mut entries| entries.next().is_some())
}

/// Whether this directory is the image's own: on the root, which container runtimes make of an image's layers.
fn is_of_image(directory: &Path) -> bool {
    let root = Path::new("/");
    are_on_one_device(directory, root)
        && statfs(root).is_ok_and(|root| root.filesystem_type() == OVERLAYFS_SUPER_MAGIC)
}

fn are_on_one_device(one: &Path, other: &Path) -> bool {
    let device = |path: &Path| fs::metadata(path).map(|found| found.dev()).ok();
    device(one).is_some_and(|own| Some(own) == device(other))
}

/// Whether something is mounted at exactly this path (proc_pid_mountinfo(5), which writes a blank as `\040`).
fn is_mount_point(path: &Path) -> bool {
    let mounts = fs::read_to_string("/proc/self/mountinfo").unwrap_or_default();
    let Ok(path) = fs::canonicalize(path) else {
        return false;
    };
    let path = path.to_string_lossy();
    let path = path.replace('\\', r"\134").replace(' ', r"\040");
    mounts
        .lines()
        .any(|mount| mount.split(' ').nth(4) == Some(&*path))
}

/// This pod's name, which its container most likely has as hostname.
fn pod_name() -> String {
    let host = fs::read_to_string("/proc/sys/kernel/hostname").unwrap_or_default();
    format!("NAMESPACE/{}", host.trim())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_mounted_is_no_directory_of_the_image() {
        let mounted = Path::new("/proc");
        assert!(is_mount_point(mounted) && !are_on_one_device(mounted, Path::new("/")));
        assert!(are_on_one_device(mounted, Path::new("/proc/self/fd")));
        assert!(!is_mount_point(Path::new("/proc/self/fd")));
    }
}
