//! The pod's service account: which role it names, and whether that can be one.

use super::super::report::Report;
use super::{Kubectl, Missing, annotation, text};
use crate::cli::failure::Failure;
use serde_json::Value as Json;

/// An annotation that names a role.
struct Naming {
    key: &'static str,
    is_right: fn(&str) -> bool,
    /// What a valid one looks like.
    right: &'static str,
}

const AWS_ROLE: &str = "arn:aws:iam::ACCOUNT:role/NAME";

/// In order of precedence.
const NAMINGS: [Naming; 4] = [
    Naming {
        key: "latchkey.dev/aws-role-arn",
        is_right: is_role_arn,
        right: AWS_ROLE,
    },
    Naming {
        key: "eks.amazonaws.com/role-arn",
        is_right: is_role_arn,
        right: AWS_ROLE,
    },
    Naming {
        key: "iam.gke.io/gcp-service-account",
        is_right: is_gcp_account,
        right: "NAME@PROJECT.iam.gserviceaccount.com",
    },
    Naming {
        key: "azure.workload.identity/client-id",
        is_right: is_uuid,
        right: "client id, which is a UUID",
    },
];

/// The annotations that keep containers of a pod from a role.
const SKIPS: [&str; 2] = [
    "eks.amazonaws.com/skip-containers",
    "azure.workload.identity/skip-containers",
];

pub(super) fn examine(
    report: &mut Report,
    kubectl: &Kubectl<'_>,
    namespace: &str,
    pod: &Json,
) -> Result<(), Failure> {
    let name = match text(pod, "/spec/serviceAccountName") {
        "" => "default",
        name => name,
    };
    for key in SKIPS {
        if let Some(skipped) = annotation(pod, key) {
            report.note(
                "role",
                "exempt_container",
                format!(
                    "the pod's annotation {key} keeps these containers from the role: {skipped}"
                ),
            );
        }
    }
    let account = match kubectl.get(&["serviceaccount", name, "--namespace", namespace])? {
        Ok(account) => account,
        Err(Missing::Object) => {
            report.fail(
                "role",
                "no_account",
                format!("the pod's service account {name} is no more"),
            );
            return Ok(());
        }
        Err(Missing::Failed(words)) => {
            report.note(
                "role",
                "not_looked",
                format!("the service account cannot be looked at: {words}"),
            );
            return Ok(());
        }
    };
    if role(
        report,
        kubectl,
        namespace,
        "service account",
        name,
        &account,
    ) {
        return Ok(());
    }
    match kubectl.get(&["namespace", namespace])? {
        Ok(object) => {
            if role(report, kubectl, namespace, "namespace", namespace, &object) {
                return Ok(());
            }
        }
        Err(Missing::Object) => {}
        Err(Missing::Failed(words)) => {
            report.note(
                "role",
                "not_looked",
                format!("the service account {name} names no role, and its namespace cannot be looked at: {words}"),
            );
            return Ok(());
        }
    }
    // Which backend the pod uses cannot be seen from here, and not every backend needs a role.
    report
        .note(
            "role",
            "no_role",
            format!("neither the service account {name} nor its namespace names a role: AWS and Azure need one, Google Cloud if the account itself may not read"),
        )
        .next(kubectl.line(format_args!(
            "--namespace {namespace} annotate serviceaccount {name} eks.amazonaws.com/role-arn=arn:aws:iam::ACCOUNT:role/ROLE"
        )));
    Ok(())
}

/// Whether the object names a role; reports it, right or wrong.
fn role(
    report: &mut Report,
    kubectl: &Kubectl<'_>,
    namespace: &str,
    kind: &str,
    name: &str,
    object: &Json,
) -> bool {
    let mut named = false;
    for Naming {
        key,
        is_right,
        right,
    } in NAMINGS
    {
        let Some(value) = annotation(object, key) else {
            continue;
        };
        // Of the two for AWS, the first takes precedence.
        if named && key == "eks.amazonaws.com/role-arn" {
            continue;
        }
        named = true;
        if is_right(value) {
            report.ok("role", format!("the {kind} {name} names {value}"));
        } else {
            report
                .fail(
                    "role",
                    "malformed_role",
                    format!("the {kind} {name} names {value:?} in {key}, which is no {right}"),
                )
                .next(kubectl.line(format_args!(
                    "--namespace {namespace} annotate --overwrite {} {name} {key}=…",
                    kind.replace(' ', "")
                )));
        }
    }
    named
}

/// The ARN of an IAM role: `arn:PARTITION:iam::ACCOUNT:role/PATH/NAME`.
fn is_role_arn(text: &str) -> bool {
    let parts: Vec<&str> = text.splitn(6, ':').collect();
    let ["arn", partition, "iam", "", account, role] = parts[..] else {
        return false;
    };
    let is_account = account.len() == 12 && account.bytes().all(|byte| byte.is_ascii_digit());
    let name = role.strip_prefix("role/").unwrap_or_default();
    partition.starts_with("aws")
        && is_account
        && !name.is_empty()
        && !name.ends_with('/')
        && name
            .bytes()
            .all(|byte| byte.is_ascii_alphanumeric() || b"/+=,.@_-".contains(&byte))
}

fn is_gcp_account(text: &str) -> bool {
    text.split_once('@')
        .is_some_and(|(name, host)| !name.is_empty() && host.ends_with(".gserviceaccount.com"))
}

fn is_uuid(text: &str) -> bool {
    let groups: Vec<&str> = text.split('-').collect();
    groups.iter().map(|group| group.len()).eq([8, 4, 4, 4, 12])
        && groups
            .iter()
            .all(|group| group.bytes().all(|byte| byte.is_ascii_hexdigit()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_names_a_role_is_known_from_what_does_not() {
        for right in [
            "arn:aws:iam::111122223333:role/app",
            "arn:aws-cn:iam::111122223333:role/path/app@x",
        ] {
            assert!(is_role_arn(right), "{right}");
        }
        for wrong in [
            "app",
            "arn:aws:iam::1111:role/app",
            "arn:aws:iam::111122223333:user/app",
            "arn:aws:iam::111122223333:role/",
            "arn:aws:iam::111122223333:role/a b",
        ] {
            assert!(!is_role_arn(wrong), "{wrong}");
        }
        assert!(is_uuid("01234567-89ab-cdef-0123-456789abcdef"));
        assert!(!is_uuid("01234567-89ab-cdef-0123"));
        assert!(is_gcp_account("a@p.iam.gserviceaccount.com"));
        assert!(!is_gcp_account("a@example.com"));
    }
}
