//! The first step: is the agent's directory here, and does somebody listen in it?

use super::report::Report;
use std::fs;
use std::io::ErrorKind;
use std::os::unix::fs::FileTypeExt as _;
use std::os::unix::net::UnixStream;
use std::path::Path;

const STEP: &str = "socket";

/// How a pod mounts the directory.
const MOUNT: [&str; 3] = [
    "in the pod's spec:      volumes: [{name: latchkey, hostPath: {path: /run/latchkey, type: Directory}}]",
    "in the container:       volumeMounts: [{name: latchkey, mountPath: /run/latchkey, readOnly: true}]",
    "or the CSI volume:      volumes: [{name: latchkey, csi: {driver: csi.latchkey.dev, readOnly: true}}]",
];

/// Looks at the socket. Whether it is worth going on.
pub(super) fn examine(report: &mut Report, socket: &Path) -> bool {
    let shown = socket.display();
    let Some(directory) = socket.parent().filter(|parent| parent.is_dir()) else {
        let directory = socket.parent().unwrap_or(socket).display();
        let finding = report.fail(
            STEP,
            "no_mount",
            format!(
                "{directory} is not there: the agent's directory is not mounted into this container"
            ),
        );
        for line in MOUNT {
            finding.next(line);
        }
        return false;
    };
    let is_mount = is_mount_point(socket);
    let kind = match fs::metadata(socket) {
        Ok(metadata) => metadata.file_type(),
        Err(error) if error.kind() == ErrorKind::NotFound => {
            report
                .fail(
                    STEP,
                    "agent_down",
                    format!("{} is mounted and there is no socket in it: no agent runs on this node, or it is not the node's {}", directory.display(), directory.display()),
                )
                .next("kubectl -n latchkey get pods -l app.kubernetes.io/component=agent -o wide")
                .next(format!("latchkey doctor --pod {}", pod_name()));
            return false;
        }
        Err(error) => {
            report.fail(
                STEP,
                "unreadable",
                format!("cannot look at {shown}: {error}"),
            );
            return false;
        }
    };
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
    match UnixStream::connect(socket) {
        Ok(_) if is_mount => {
            report
                .note(
                    STEP,
                    "file_mount",
                    format!("{shown} answers, and is mounted as a file: after the agent's next restart it will lead nowhere"),
                )
                .next(MOUNT[0])
                .next(MOUNT[1]);
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
                .next("kubectl -n latchkey get pods -l app.kubernetes.io/component=agent -o wide")
                .next("kubectl -n latchkey logs ds/latchkey-agent --previous");
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
    report
        .fail(STEP, "file_mount", text)
        .next("mount the directory, without subPath:")
        .next(MOUNT[0])
        .next(MOUNT[1]);
}

/// Whether something is mounted at just that path (proc_pid_mountinfo(5)).
fn is_mount_point(path: &Path) -> bool {
    let Ok(path) = fs::canonicalize(path) else {
        return false;
    };
    let mounts = fs::read_to_string("/proc/self/mountinfo").unwrap_or_default();
    mounts
        .lines()
        .filter_map(|line| line.split(' ').nth(4))
        .any(|point| unescaped(point).as_deref() == path.to_str())
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
    fn a_mount_point_is_read_as_it_is_written() {
        assert_eq!(
            unescaped("/run/a\\040b\\134c").as_deref(),
            Some("/run/a b\\c")
        );
        assert_eq!(unescaped("/run").as_deref(), Some("/run"));
        assert_eq!(unescaped("/run\\9"), None);
    }
}
