//! The pod itself: whether it runs, and how it mounts the agent's directory.

use super::super::report::Report;
use super::agent::why;
use super::{DRIVER, Kubectl, annotation, is_of_driver, list, text};
use crate::protocol::DEFAULT_SOCKET;
use serde_json::Value as Json;
use std::iter::once;

/// The agent's directory on a node, and where a container should have it.
const DIRECTORY: &str = "/run/latchkey";

/// The annotation by which a static pod is recognized.
const MIRROR: &str = "kubernetes.io/config.mirror";

/// What a volume has to do with the agent's directory.
enum Kind {
    /// It is the directory.
    Directory,
    /// It is the socket's file.
    File,
    /// It is the directory, and holds secrets as files: whoever reads those need not look for the socket.
    Secrets,
    /// It is something else.
    Other,
}

/// Examines the pod. Returns whether it sends requests: not if it has only secrets as files.
pub(super) fn examine(report: &mut Report, kubectl: &Kubectl<'_>, pod: &Json) -> bool {
    phase(report, kubectl, pod);
    let asks = if let Some(container) = sidecar(pod) {
        own_agent(report, kubectl, pod, container);
        true
    } else {
        let asks = volume(report, pod);
        if asks {
            mounts(report, pod);
        }
        asks
    };
    network(report, pod);
    let ephemeral: Vec<&str> = list(pod, "/spec/ephemeralContainers")
        .map(|container| text(container, "/name"))
        .collect();
    if !ephemeral.is_empty() {
        report.note(
            "containers",
            "ephemeral_container",
            format!(
                "ephemeral containers (kubectl debug) get no secrets: {}",
                ephemeral.join(", ")
            ),
        );
    }
    asks
}

fn phase(report: &mut Report, kubectl: &Kubectl<'_>, pod: &Json) {
    let phase = text(pod, "/status/phase");
    let node = text(pod, "/spec/nodeName");
    if annotation(pod, MIRROR).is_some() {
        report.fail(
            "pod",
            "static_pod",
            "this is a static pod of its node: it has no service account, and gets no secrets",
        );
    } else if has_ended(pod) {
        report.fail(
            "pod",
            "pod_ended",
            format!("the pod has ended: its phase is {phase}"),
        );
    } else if node.is_empty() {
        report
            .fail("pod", "not_scheduled", "the pod has no node yet")
            .next(kubectl.line(format_args!(
                "--namespace {} describe pod {} shows why it is not scheduled",
                text(pod, "/metadata/namespace"),
                text(pod, "/metadata/name")
            )));
    } else {
        report.ok("pod", format!("{}, on node {node}", phase.to_lowercase()));
    }
}

fn has_ended(pod: &Json) -> bool {
    matches!(text(pod, "/status/phase"), "Failed" | "Succeeded")
}

/// Whether the pod has a volume that is the agent's directory.
fn volume(report: &mut Report, pod: &Json) -> bool {
    let (mut file, mut secrets) = (None, None);
    for volume in list(pod, "/spec/volumes") {
        match kind(volume) {
            Kind::Directory => {
                let name = text(volume, "/name");
                let how = if is_of_driver(volume) {
                    "the CSI driver's"
                } else {
                    "a hostPath"
                };
                report.ok("volume", format!("{name} is the agent's directory ({how})"));
                return true;
            }
            Kind::Secrets => secrets = Some(text(volume, "/name")),
            Kind::File => file = Some(text(volume, "/name")),
            Kind::Other => {}
        }
    }
    if let (Some(name), None) = (secrets, file) {
        report.ok(
            "volume",
            format!("{name} has secrets as files (the CSI driver's)"),
        );
        return containers(pod).any(|container| has_directory(pod, container).next().is_some());
    }
    let finding = match file {
        Some(name) => report.fail(
            "volume",
            "file_mount",
            format!("the volume {name} is the socket's file: a restarted agent makes a new socket, and the old one leads nowhere. Mount its directory"),
        ),
        None => report.fail(
            "volume",
            "no_mount",
            format!("no volume of the pod is the agent's directory {DIRECTORY}"),
        ),
    };
    finding
        .next(format!(
            "volumes: [{{name: latchkey, csi: {{driver: {DRIVER}, readOnly: true}}}}]"
        ))
        .next(format!(
            "or, without the driver: volumes: [{{name: latchkey, hostPath: {{path: {DIRECTORY}, type: Directory}}}}]"
        ));
    false
}

fn kind(volume: &Json) -> Kind {
    if is_of_driver(volume) {
        if !text(volume, "/csi/volumeAttributes/secrets").is_empty() {
            return Kind::Secrets;
        }
        return Kind::Directory;
    }
    let path = text(volume, "/hostPath/path").trim_end_matches('/');
    let is_file = matches!(
        text(volume, "/hostPath/type"),
        "File" | "FileOrCreate" | "Socket"
    );
    if path == DIRECTORY && !is_file {
        Kind::Directory
    } else if path
        .strip_prefix(DIRECTORY)
        .is_some_and(|rest| rest.starts_with('/'))
        || path == DIRECTORY
    {
        Kind::File
    } else {
        Kind::Other
    }
}

/// The container's mounts in which its programs may look for the socket.
fn has_directory<'a>(pod: &'a Json, container: &'a Json) -> impl Iterator<Item = &'a Json> {
    let has_variable = variable(container).is_some();
    list(container, "/volumeMounts").filter(move |mount| {
        let name = text(mount, "/name");
        let volume = list(pod, "/spec/volumes").find(|volume| text(volume, "/name") == name);
        match volume.map(kind) {
            Some(Kind::Directory) => true,
            Some(Kind::Secrets) => {
                let path = text(mount, "/mountPath").trim_end_matches('/');
                has_variable || in_run(path) == in_run(DIRECTORY)
            }
            _ => false,
        }
    })
}

/// The variable by which the container's programs are told where the socket is.
fn variable(container: &Json) -> Option<&Json> {
    list(container, "/env")
        .filter(|variable| text(variable, "/name") == "LATCHKEY_SOCKET")
        .last()
}

/// Which containers have the volume, and how.
fn mounts(report: &mut Report, pod: &Json) {
    let (mut any, mut good) = (false, Vec::new());
    for container in containers(pod) {
        let mounts: Vec<&Json> = has_directory(pod, container).collect();
        any |= !mounts.is_empty();
        if !mounts.is_empty() && is_found(report, container, &mounts) {
            good.push(text(container, "/name"));
        }
    }
    if !any {
        let volume = list(pod, "/spec/volumes")
            .find(|volume| matches!(kind(volume), Kind::Directory))
            .map_or("latchkey", |volume| text(volume, "/name"));
        report
            .fail(
                "mount",
                "no_mount",
                "no container of the pod mounts the volume",
            )
            .next(mount_line(volume));
    } else if !good.is_empty() {
        report.ok("mount", format!("in {}", good.join(", ")));
    }
}

/// Whether the container's programs find the socket in what it has of the directory. If not, the report says why.
fn is_found(report: &mut Report, container: &Json, mounts: &[&Json]) -> bool {
    let name = text(container, "/name");
    let is_whole = |mount: &&&Json| {
        text(mount, "/subPath").is_empty() && text(mount, "/subPathExpr").is_empty()
    };
    let places: Vec<&str> = mounts
        .iter()
        .filter(is_whole)
        .map(|mount| text(mount, "/mountPath").trim_end_matches('/'))
        .collect();
    let Some(first) = places.first() else {
        report
            .fail(
                "mount",
                "file_mount",
                format!("the container {name} mounts the volume with subPath: a restarted agent makes a new socket there, which it will not see"),
            )
            .next(mount_line(text(mounts[0], "/name")));
        return false;
    };
    let variable = variable(container);
    let value = variable.map_or("", |variable| text(variable, "/value"));
    let socket = if value.is_empty() {
        DEFAULT_SOCKET
    } else {
        value
    };
    let has_it = |place: &&str| format!("{}/agent.sock", in_run(place)) == in_run(socket);
    let is_elsewhere = variable.is_some_and(|variable| variable.get("valueFrom").is_some());
    if !is_elsewhere && places.iter().any(has_it) {
        return true;
    }
    let places_text = places.join(", ");
    let is_computed = match variable {
        Some(_) => is_elsewhere || value.contains("$("),
        None => list(container, "/envFrom").next().is_some(),
    };
    if is_computed {
        report.note(
            "mount",
            "other_path",
            format!("the container {name} has the directory at {places_text}; whether its LATCHKEY_SOCKET says so does not show from here"),
        );
        return false;
    }
    report
        .fail(
            "mount",
            "other_path",
            format!(
                "the container {name} has the directory at {places_text}, and looks for {socket}"
            ),
        )
        .next(format!(
            "mount it at {DIRECTORY}, or set LATCHKEY_SOCKET={first}/agent.sock"
        ));
    false
}

fn mount_line(volume: &str) -> String {
    format!("volumeMounts: [{{name: {volume}, mountPath: {DIRECTORY}, readOnly: true}}]")
}

/// The same path without /var, if it begins with /var/run: images have that as a link to /run.
fn in_run(path: &str) -> &str {
    path.strip_prefix("/var")
        .filter(|rest| rest.starts_with("/run/"))
        .unwrap_or(path)
}

/// The name of the container that is the pod's own agent, judging by its environment.
pub(super) fn sidecar(pod: &Json) -> Option<&str> {
    let is_sidecar = |container: &&Json| {
        list(container, "/env").any(|variable| {
            text(variable, "/name") == "LATCHKEY_AGENT__IDENTITY__MODE"
                && text(variable, "/value") == "sidecar"
        })
    };
    let container = containers(pod).find(is_sidecar)?;
    Some(text(container, "/name"))
}

/// Checks whether that agent is ready, if the kubelet has reported on it.
fn own_agent(report: &mut Report, kubectl: &Kubectl<'_>, pod: &Json, container: &str) {
    let not_ready = list(pod, "/status/containerStatuses")
        .chain(list(pod, "/status/initContainerStatuses"))
        .find(|status| text(status, "/name") == container && status["ready"] == false);
    let what = format!("the container {container} is an agent of the pod's own (a sidecar)");
    let Some(status) = not_ready.filter(|_| !has_ended(pod)) else {
        report.ok("agent", what);
        return;
    };
    let (namespace, name) = (
        text(pod, "/metadata/namespace"),
        text(pod, "/metadata/name"),
    );
    report
        .fail(
            "agent",
            "agent_not_ready",
            format!("{what}, and is not ready{}", why(once(status))),
        )
        .next(kubectl.line(format_args!(
            "--namespace {namespace} logs {name} --container {container}"
        )))
        .next(kubectl.line(format_args!("--namespace {namespace} describe pod {name}")));
}

fn containers(pod: &Json) -> impl Iterator<Item = &Json> {
    list(pod, "/spec/containers").chain(list(pod, "/spec/initContainers"))
}

/// Checks the network: a proxy on the node's own network does not start.
fn network(report: &mut Report, pod: &Json) {
    if pod.pointer("/spec/hostNetwork") != Some(&Json::Bool(true)) {
        return;
    }
    let proxy = containers(pod).find(|container| is_proxy(container));
    match proxy {
        Some(container) => {
            report
                .fail(
                    "network",
                    "host_network_proxy",
                    format!("the pod uses the node's network (hostNetwork), where `latchkey proxy` of the container {} does not start: every process of the node could ask it", text(container, "/name")),
                )
                .next("use the socket itself, or give the pod a network of its own");
        }
        None => {
            report.note(
                "network",
                "host_network",
                "the pod uses the node's network (hostNetwork): `latchkey proxy` would not start in it",
            );
        }
    }
}

/// Whether a container runs `latchkey proxy`, by its command line.
fn is_proxy(container: &Json) -> bool {
    let words: Vec<&str> = ["/command", "/args"]
        .iter()
        .flat_map(|words| list(container, words))
        .filter_map(Json::as_str)
        .collect();
    let names = |word: &&str| *word == "latchkey" || word.ends_with("/latchkey");
    let in_image = text(container, "/image").contains("latchkey");
    words.contains(&"proxy") && (words.iter().any(names) || in_image)
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[test]
    fn a_pod_with_secrets_as_files_needs_no_socket() {
        let csi = json!({"driver": DRIVER, "volumeAttributes": {"secrets": "[\"a\"]"}});
        let pod = json!({
            "spec": {
                "nodeName": "n1",
                "containers": [{"name": "app", "volumeMounts": [{"name": "s", "mountPath": "/secrets"}]}],
                "volumes": [{"name": "s", "csi": csi}],
            },
            "status": {"phase": "Running"},
        });
        let kubectl = Kubectl { context: None };
        let mut report = Report::default();
        assert!(!examine(&mut report, &kubectl, &pod));
        assert!(!report.has_failed(), "{}", report.json());
        // Its volume has the socket too, for a container that looks for it there, or is told to.
        let mut asks = pod.clone();
        let container = &mut asks["spec"]["containers"][0];
        container["env"] = json!([{"name": "LATCHKEY_SOCKET", "value": "/elsewhere/agent.sock"}]);
        let mut report = Report::default();
        assert!(examine(&mut report, &kubectl, &asks));
        assert!(report.json().contains("other_path"), "{}", report.json());
        let container = &mut asks["spec"]["containers"][0];
        container["env"] = json!([]);
        container["volumeMounts"][0]["mountPath"] = "/run/latchkey".into();
        let mut report = Report::default();
        assert!(examine(&mut report, &kubectl, &asks));
        assert!(!report.has_failed(), "{}", report.json());
        // A pod that also has a volume for the socket alone is treated like any other.
        let mut both = pod;
        let volumes = both["spec"]["volumes"].as_array_mut().expect("volumes");
        volumes.push(json!({"name": "latchkey", "csi": {"driver": DRIVER}}));
        let mut report = Report::default();
        assert!(examine(&mut report, &kubectl, &both));
        assert!(report.json().contains("no container of the pod mounts"));
    }

    /// What is found in a pod whose only container is this, which has the volumes `v` and `w`.
    fn mounted(container: &Json) -> String {
        let volume = |name: &str| json!({"name": name, "csi": {"driver": DRIVER}});
        let pod =
            json!({"spec": {"containers": [container], "volumes": [volume("v"), volume("w")]}});
        let mut report = Report::default();
        mounts(&mut report, &pod);
        report.json()
    }

    #[test]
    fn a_container_finds_the_socket_where_its_mounts_and_its_variable_agree() {
        let at = |paths: &[&str]| {
            let mount = |path: &&str| json!({"name": "v", "mountPath": path});
            Json::from(paths.iter().map(mount).collect::<Vec<_>>())
        };
        let env = |value: &str| json!([{"name": "LATCHKEY_SOCKET", "value": value}]);
        let (run, other) = (at(&["/run/latchkey/"]), at(&["/agent"]));
        let part = json!([{"name": "w", "mountPath": "/x", "subPath": "agent.sock"}]);
        let both = json!([part[0], run[0]]);
        let from = json!([{"name": "LATCHKEY_SOCKET", "valueFrom": {}}]);
        let none = json!([]);
        let all = json!([{"configMapRef": {"name": "c"}}]);
        for (mounts, env, env_from, found) in [
            (&run, &none, &none, "ok"),
            (&run, &env(""), &none, "ok"),
            (&run, &none, &all, "ok"),
            (&at(&["/var/run/latchkey"]), &none, &none, "ok"),
            (&at(&["/agent", "/run/latchkey"]), &none, &none, "ok"),
            (&both, &none, &none, "ok"),
            (&other, &env("/agent/agent.sock"), &none, "ok"),
            (&other, &env("$(AT)/agent.sock"), &none, "note"),
            (&other, &from, &none, "note"),
            (&run, &from, &none, "note"),
            (&other, &none, &all, "note"),
            (&other, &none, &none, "fail"),
            (&other, &env("/agent"), &none, "fail"),
            (&run, &env("/elsewhere/agent.sock"), &none, "fail"),
            (&part, &none, &none, "fail"),
        ] {
            let container =
                json!({"name": "app", "volumeMounts": mounts, "env": env, "envFrom": env_from});
            let report = mounted(&container);
            let verdict = format!("\"verdict\": \"{found}\"");
            assert_eq!(
                report.matches("\"verdict\"").count(),
                1,
                "{container} {report}"
            );
            assert!(report.contains(&verdict), "{container} {report}");
        }
    }
}
