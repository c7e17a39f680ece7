//! From a workstation: examines a pod and what it needs, from what `kubectl get -o json` shows.

mod account;
mod agent;
mod pod;

use super::report::Report;
use crate::cli::failure::Failure;
use serde_json::Value as Json;
use std::ffi::OsStr;
use std::fmt;
use std::io;
use std::process::{Command, Stdio};

/// The CSI driver that mounts the agent's directory.
const DRIVER: &str = "csi.latchkey.dev";

/// A pod by its namespace and name.
#[derive(Clone, Debug)]
pub(super) struct PodName {
    pub(super) namespace: String,
    pub(super) name: String,
}

/// kubectl, with the context to use.
#[derive(Debug)]
struct Kubectl<'a> {
    context: Option<&'a str>,
}

/// Why kubectl gave nothing.
#[derive(Debug)]
enum Missing {
    /// There is no such object.
    Object,
    /// kubectl failed, with this text.
    Failed(String),
}

/// Looks at the pod and what it needs.
pub(super) fn examine(name: &PodName, context: Option<&str>) -> Result<Report, Failure> {
    let kubectl = Kubectl { context };
    let mut report = Report::default();
    let PodName { namespace, name } = name;
    let pod = match kubectl.get(&["pod", name, "--namespace", namespace])? {
        Ok(pod) => pod,
        Err(Missing::Object) => {
            report
                .fail(
                    "pod",
                    "no_such_pod",
                    format!("there is no pod {namespace}/{name}"),
                )
                .next(kubectl.line(format_args!("--namespace {namespace} get pods")));
            return Ok(report);
        }
        Err(Missing::Failed(words)) => return Err(Failure::other(format!("kubectl: {words}"))),
    };
    let asks = pod::examine(&mut report, &kubectl, &pod);
    // A pod with its own agent needs neither a role on the account nor an agent on the node.
    if pod::sidecar(&pod).is_none() {
        account::examine(&mut report, &kubectl, namespace, &pod)?;
        agent::examine(&mut report, &kubectl, &pod)?;
    }
    if !report.has_failed() && !asks {
        report
            .note(
                "events",
                "look_at_events",
                "from here nothing is wrong; if the pod does not start, its events name the secret and the reason",
            )
            .next(kubectl.line(format_args!("--namespace {namespace} describe pod {name}")));
    } else if !report.has_failed() {
        report
            .note(
                "inside",
                "look_inside",
                "from here nothing is wrong; the rest shows inside the pod",
            )
            .next(kubectl.line(format_args!(
                "--namespace {namespace} exec {name} -- latchkey doctor SECRET"
            )));
    }
    Ok(report)
}

// === impl PodName ===

impl PodName {
    pub(super) fn parse(text: &str) -> Result<Self, String> {
        match text.split_once('/') {
            Some((namespace, name))
                if !namespace.is_empty()
                    && !name.is_empty()
                    && !name.contains('/')
                    && !namespace.starts_with('-')
                    && !name.starts_with('-') =>
            {
                Ok(Self {
                    namespace: namespace.to_owned(),
                    name: name.to_owned(),
                })
            }
            _ => Err("write NAMESPACE/NAME".to_owned()),
        }
    }
}

// === impl Kubectl ===

impl Kubectl<'_> {
    /// The object that `kubectl get` prints. If kubectl itself cannot be run, the whole command fails.
    fn get(&self, what: &[&str]) -> Result<Result<Json, Missing>, Failure> {
        let (good, stdout, stderr) = self.run([&["get"], what, &["--output", "json"]].concat())?;
        if !good {
            let missing = if stderr.contains("NotFound") {
                Missing::Object
            } else {
                Missing::Failed(last_line(&stderr).to_owned())
            };
            return Ok(Err(missing));
        }
        let object = serde_json::from_str(&stdout)
            .map_err(|error| Missing::Failed(format!("its answer is no JSON: {error}")));
        Ok(object)
    }

    /// Whether somebody may do something; `None` if that cannot be determined.
    fn may(&self, what: &[&str]) -> Result<Option<bool>, Failure> {
        let (_, stdout, _) = self.run([&["auth", "can-i"], what].concat())?;
        // With a reason, if the cluster's authorizer gives one: `no - REASON`.
        let (answer, _) = stdout.split_once(" - ").unwrap_or((&stdout, ""));
        Ok(match answer.trim() {
            "yes" => Some(true),
            "no" => Some(false),
            _ => None,
        })
    }

    /// A line for a person to type, for the same cluster.
    fn line(&self, arguments: fmt::Arguments<'_>) -> String {
        match self.context {
            Some(context) => format!("kubectl --context {context} {arguments}"),
            None => format!("kubectl {arguments}"),
        }
    }

    fn run(&self, arguments: Vec<&str>) -> Result<(bool, String, String), Failure> {
        let mut command = Command::new("kubectl");
        if let Some(context) = self.context {
            command.args([OsStr::new("--context"), OsStr::new(context)]);
        }
        let output = command
            .args(arguments)
            .stdin(Stdio::null())
            .output()
            .map_err(|error| match error.kind() {
                io::ErrorKind::NotFound => {
                    Failure::other("kubectl is not in PATH: --pod looks at the cluster through it")
                }
                _ => Failure::other(format!("cannot run kubectl: {error}")),
            })?;
        let text = |bytes: &[u8]| String::from_utf8_lossy(bytes).into_owned();
        Ok((
            output.status.success(),
            text(&output.stdout),
            text(&output.stderr),
        ))
    }
}

/// The last line that kubectl writes. The lines before it are its log, one for each attempt.
fn last_line(stderr: &str) -> &str {
    stderr.trim().lines().next_back().unwrap_or_default()
}

/// Whether a pod's volume is mounted by the driver.
fn is_of_driver(volume: &Json) -> bool {
    text(volume, "/csi/driver") == DRIVER
}

/// The text at a pointer (RFC 6901), or `""`.
fn text<'a>(object: &'a Json, pointer: &str) -> &'a str {
    object
        .pointer(pointer)
        .and_then(Json::as_str)
        .unwrap_or_default()
}

/// The elements of the array at a pointer.
fn list<'a>(object: &'a Json, pointer: &str) -> impl Iterator<Item = &'a Json> {
    object
        .pointer(pointer)
        .and_then(Json::as_array)
        .into_iter()
        .flatten()
}

/// The annotation, trimmed, if it is not empty.
fn annotation<'a>(object: &'a Json, key: &str) -> Option<&'a str> {
    let annotations = object.pointer("/metadata/annotations")?;
    let value = annotations.get(key)?.as_str()?.trim();
    (!value.is_empty()).then_some(value)
}
