//! From inside a pod: follows the path of a request step by step, as far as it gets.

use super::place::{CHECK, ELSEWHERE, Place, STDERR, is_sidecar, user};
use super::report::Report;
use super::{AGENTS, AGENTS_LOG, socket};
use crate::error::{ClientError, Refusal};
use crate::protocol::words::{
    ANNOTATE_WITH, CANNOT_FETCH_KEYS, EPHEMERAL_CONTAINER, EXEMPTS, FOLDER, NAMES_NO,
    NAMESPACE_MUST_ALLOW, NO_SUCH_SECRET_IN, NOT_AT_STAGE_IN, WHOLE_STORE,
};
use crate::protocol::{Code, Identity, Step};
use crate::{Ask, Client, ListAsk};

/// Follows the path of a request.
pub(super) async fn examine(client: &Client, name: Option<&str>, backend: Option<&str>) -> Report {
    let mut report = Report::default();
    let place = Place::of_environment();
    if !socket::examine(&mut report, place, client.socket()).await {
        return report;
    }
    // No retries: they would hide what is looked for.
    let client = client.clone().without_retries();
    let Some(default) = readiness(&mut report, place, &client).await else {
        return report;
    };
    let Some(identity) = identity(&mut report, place, &client).await else {
        return report;
    };
    let backend = backend.unwrap_or(&default);
    if !identity.roles.contains_key(backend) {
        let there: Vec<&str> = identity.roles.keys().map(String::as_str).collect();
        report.misused(
            "role",
            "no_such_backend",
            format!(
                "the agent has no backend {backend}; it has {}",
                there.join(", ")
            ),
        );
        return report;
    }
    let role = identity.roles.get(backend).cloned().flatten();
    if let Some(role) = &role {
        report.ok("role", format!("{backend}: {role}"));
    }
    let case = Case {
        place: Place::of(&identity),
        identity: &identity,
        backend,
        role: role.as_deref(),
        name,
    };
    case.read(&mut report, &client).await;
    report
}

/// What is examined once the identity is known.
struct Case<'a> {
    place: Place,
    identity: &'a Identity,
    backend: &'a str,
    role: Option<&'a str>,
    name: Option<&'a str>,
}

/// Checks whether the agent is ready. Returns the name of its default backend.
async fn readiness(report: &mut Report, place: Place, client: &Client) -> Option<String> {
    match client.readiness().await {
        Ok(health) if health.missing.is_empty() => {
            report.ok("agent", "ready");
            Some(health.backend)
        }
        Ok(health) => {
            let missing = health.missing.join(", ");
            let text = format!("the agent of this {place} is not ready: it waits for {missing}");
            let finding = report.absent("agent", "agent_not_ready", text);
            match place {
                Place::Pod => finding
                    .next(AGENTS)
                    .next(AGENTS_LOG)
                    .next("kubectl -n latchkey exec ds/latchkey-agent -- /usr/bin/latchkey-agent check --config /etc/latchkey/config.toml"),
                Place::Machine => finding.next(STDERR).next(CHECK),
            };
            None
        }
        Err(ClientError::Refused(refusal)) => {
            report
                .refused("agent", "refused", &refusal)
                .next("if a header is required: latchkey --header NAME, or LATCHKEY_HEADER=NAME");
            None
        }
        Err(ClientError::Unreadable(why)) => {
            let socket = client.socket().display();
            let text = format!("what listens at {socket} is not latchkey: {why}");
            let finding = report.absent("agent", "not_an_agent", text);
            finding.next(ELSEWHERE);
            None
        }
        Err(error) => {
            unanswered(report, place, "agent", &error);
            None
        }
    }
}

/// Reports a request without an answer. Why it takes so long, only the agent's log can say.
fn unanswered(report: &mut Report, place: Place, step: &'static str, error: &ClientError) {
    let finding = report.absent(step, "no_answer", error.to_string());
    match (error, place) {
        (ClientError::TimedOut, Place::Pod) => finding.next(AGENTS).next(AGENTS_LOG),
        (ClientError::TimedOut, Place::Machine) => finding.next(STDERR),
        _ => finding,
    };
}

/// Asks the agent who this is.
async fn identity(report: &mut Report, place: Place, client: &Client) -> Option<Identity> {
    let error = match client.identity().await {
        Ok(identity) => {
            let Identity {
                namespace,
                pod,
                service_account,
                node,
                ..
            } = &identity;
            let place = Place::of(&identity);
            let who = match place {
                Place::Pod if is_sidecar(&identity) => {
                    format!("pod {namespace}/{pod}, service account {service_account}")
                }
                Place::Pod => {
                    format!("pod {namespace}/{pod}, service account {service_account}, node {node}")
                }
                Place::Machine => format!("{} is {namespace}/{service_account}", user()),
            };
            report.ok("attestation", who);
            if identity.host_network && place == Place::Pod {
                report
                    .note(
                        "network",
                        "host_network",
                        "this pod uses the node's network (hostNetwork): `latchkey proxy` does not start here, since every process of the node could ask it",
                    )
                    .next("use the socket itself, or give the pod a network of its own");
            }
            return Some(identity);
        }
        Err(error) => error,
    };
    let Some(refusal) = error.refusal() else {
        unanswered(report, place, "attestation", &error);
        return None;
    };
    match refusal.code {
        Code::NotAttested if refusal.message.contains(EPHEMERAL_CONTAINER) => {
            report
                .refused("attestation", "ephemeral_container", refusal)
                .next("kubectl exec -it POD -c CONTAINER -- latchkey doctor");
        }
        Code::NotAttested if place == Place::Machine => {
            report
                .refused("attestation", "not_attested", refusal)
                .next(format!(
                    "{} is in no [[local.workload]] of the agent's configuration; or this is a container or a user \
                     namespace, and the agent is outside of it",
                    user()
                ))
                .next("why exactly is in the agent's log, on its stderr");
        }
        Code::NotAttested => {
            report
                .refused("attestation", "not_attested", refusal)
                .next("this is for containers of this node's pods: not for a shell of the node, a static pod, or a pod that has ended")
                .next("why exactly stands as `reason` in the audit line of the request; the agent's operator can read it");
        }
        Code::Busy => over_limit(report, refusal),
        Code::Unavailable if refusal.step == Some(Step::Role) => {
            report.refused("role", "api_server", refusal);
        }
        Code::Unavailable if place == Place::Machine => {
            report
                .refused("attestation", "refused", refusal)
                .next(STDERR);
        }
        Code::Unavailable => {
            report
                .refused("attestation", "pod_not_known", refusal)
                .next("a pod that has just started is known within seconds; if it lasts, the agent cannot ask the API server")
                .next(AGENTS)
                .next(AGENTS_LOG);
        }
        _ => {
            report.refused("attestation", "refused", refusal);
        }
    }
    None
}

fn over_limit(report: &mut Report, refusal: &Refusal) {
    report
        .refused("limits", "over_limit", refusal)
        .next("keep connections and reuse them; ask for many names with one batchGet; end waits that nobody needs")
        .next("the limits are the agent's: limits.connections_per_pod, limits.in_flight_per_pod, limits.requests_per_second_per_pod");
}

impl Case<'_> {
    /// Reads the secret or, if none is named, tries whether the role can be assumed by listing one name.
    async fn read(&self, report: &mut Report, client: &Client) {
        let outcome = match self.name {
            Some(name) => {
                let ask = Ask {
                    backend: Some(self.backend),
                    fresh: true,
                    ..Ask::latest(name)
                };
                client.read(&ask).await.map(|secret| {
                    format!(
                        "{name} has {} bytes, version {}",
                        secret.value.len(),
                        secret.version
                    )
                })
            }
            None => {
                let ask = ListAsk {
                    backend: Some(self.backend),
                    limit: Some(1),
                    cursor: None,
                };
                let any = client.list(&ask).await;
                any.map(|_| "the role may list names; `latchkey doctor NAME` reads one".to_owned())
            }
        };
        match outcome {
            Ok(text) => {
                self.exchanged(report);
                report.ok("secret", text);
            }
            Err(ClientError::Refused(refusal)) => self.explain(report, &refusal),
            Err(error) => unanswered(report, self.place, "secret", &error),
        }
    }

    fn explain(&self, report: &mut Report, refusal: &Refusal) {
        let Identity {
            namespace,
            service_account,
            ..
        } = self.identity;
        match (refusal.code, refusal.step) {
            (Code::Busy, _) => over_limit(report, refusal),
            // The account may have a role; it is the pod that says to keep it from the container.
            (Code::NoRole, _) if refusal.message.contains(EXEMPTS) => {
                let pod = &self.identity.pod;
                report
                    .refused("role", "exempt_container", refusal)
                    .next(format!(
                        "kubectl -n {namespace} get pod {pod} -o jsonpath='{{.metadata.annotations}}'"
                    ));
            }
            (Code::NoRole, _) => {
                let names_one = !refusal.message.contains(NAMES_NO);
                let cause = if names_one { "wrong_role" } else { "no_role" };
                let finding = report.refused("role", cause, refusal);
                if self.place == Place::Machine {
                    finding.next(format!(
                        "the role of {namespace}/{service_account} is in its [[local.workload]] of the agent's \
                         configuration"
                    ));
                    return;
                }
                if is_sidecar(self.identity) {
                    let pod = &self.identity.pod;
                    finding.next(format!(
                        "kubectl -n {namespace} get pod {pod} -o yaml shows the settings of the agent's container"
                    ));
                    return;
                }
                finding.next(format!(
                    "kubectl -n {namespace} get serviceaccount {service_account} -o yaml"
                ));
                // What is wrong may be its namespace's, which stands in for what the account does not say.
                if names_one {
                    finding.next(format!("kubectl get namespace {namespace} -o yaml"));
                }
                // The agent names the annotation: the backend's name does not say which cloud it is.
                if let Some((_, key)) = refusal.message.split_once(ANNOTATE_WITH) {
                    let key = key.split_once(',').map_or(key, |(key, _)| key);
                    finding.next(format!(
                        "kubectl -n {namespace} annotate --overwrite serviceaccount {service_account} {key}=VALUE"
                    ));
                }
            }
            (_, Some(Step::Attestation)) | (Code::NotAttested, Some(Step::Token)) => {
                report.refused("attestation", "not_attested", refusal);
            }
            (_, Some(Step::Role)) => {
                report.refused("role", "api_server", refusal);
            }
            (Code::Unavailable, Some(Step::Token)) => {
                report
                    .refused("token", "token_unavailable", refusal)
                    .next(self.agents_log());
            }
            (_, Some(Step::Token)) => {
                let finding = report.refused("token", "token_refused", refusal);
                if refusal.message.contains(NAMESPACE_MUST_ALLOW) {
                    finding
                        .next(format!("by a Role in {namespace} with resources: [serviceaccounts/token], resourceNames: [{service_account}], verbs: [create], bound to the agent's account"))
                        .next("or with the CSI volume instead of a hostPath: it brings the tokens along");
                }
            }
            (Code::Throttled, Some(Step::Exchange)) => {
                report.refused("exchange", "throttled", refusal);
            }
            // The agent's text for what each cloud says in this case.
            (Code::Unavailable, Some(Step::Exchange))
                if refusal.message.contains(CANNOT_FETCH_KEYS) =>
            {
                report
                    .refused("exchange", "issuer_unreachable", refusal)
                    .next("kubectl get --raw /.well-known/openid-configuration names the issuer; what it answers there has to be on the public Internet, or with the cloud")
                    .next("if it comes and goes, the issuer is slow: latchkey and its clients try again");
            }
            (Code::Unavailable, Some(Step::Exchange)) => {
                report
                    .refused("exchange", "token_service_unreachable", refusal)
                    .next(match self.place {
                        Place::Pod => {
                            "from the node, not from this pod: its network, DNS, proxy and clock"
                        }
                        Place::Machine => "this machine's network, DNS, proxy and clock",
                    })
                    .next(self.agents_log());
            }
            (_, Some(Step::Exchange)) => {
                let finding = report.refused("exchange", "role_refused", refusal);
                finding.next(match self.place {
                    Place::Pod => format!(
                        "the token says: sub is system:serviceaccount:{namespace}:{service_account}"
                    ),
                    Place::Machine => {
                        "it is taken on with the machine's credentials, which it has to trust"
                            .to_owned()
                    }
                });
                if let Some(role) = self.role.and_then(aws_role_name) {
                    finding
                        .next(format!("aws iam get-role --role-name {role} --query Role.AssumeRolePolicyDocument"))
                        .next(match self.place {
                            Place::Pod => "aws iam list-open-id-connect-providers",
                            Place::Machine => "aws sts get-caller-identity",
                        });
                }
            }
            (code, Some(Step::Secret)) => {
                self.exchanged(report);
                self.explain_secret(report, code, refusal);
            }
            (Code::Timeout, _) => {
                report
                    .refused("secret", "timeout", refusal)
                    .next("the cloud answers too slowly, or not at all")
                    .next(self.agents_log());
            }
            _ => {
                report.refused("secret", "refused", refusal);
            }
        }
    }

    /// Reports that the role has been assumed, if there is one to assume.
    fn exchanged(&self, report: &mut Report) {
        if self.role.is_some_and(|role| !is_of_a_store(role)) {
            report.ok("exchange", "the role is given");
        }
    }

    fn explain_secret(&self, report: &mut Report, code: Code, refusal: &Refusal) {
        let finding = match (code, self.name) {
            // That it may not list is no fault: hardly any role may.
            (Code::Denied | Code::NotFound | Code::InvalidRequest, None) => {
                report
                    .note(
                        "secret",
                        "not_tried",
                        "no name was given, and the role may not list names",
                    )
                    .next("latchkey doctor NAME");
                return;
            }
            (Code::Denied, Some(_)) => report.refused("secret", "secret_refused", refusal),
            (Code::NotFound, Some(_)) => report.refused("secret", "no_such_secret", refusal),
            (Code::Throttled, _) => {
                report.refused("secret", "throttled", refusal);
                return;
            }
            (Code::Unavailable, _) => {
                let finding = report.refused("secret", "vault_unreachable", refusal);
                match self.place {
                    // No network leads to a store: the agent has said what it lacks.
                    _ if self.role.is_some_and(is_of_a_store) => {}
                    Place::Pod => {
                        finding
                            .next("from the node, not from this pod: its network, DNS and proxy");
                    }
                    Place::Machine => {
                        finding.next("this machine's network, DNS and proxy");
                    }
                }
                finding.next(self.agents_log());
                return;
            }
            _ => {
                report.refused("secret", "refused", refusal);
                return;
            }
        };
        let role = self.role.and_then(aws_role_name);
        match (code, role, self.name) {
            (Code::Denied, Some(role), name) => {
                finding
                    .next(format!("aws iam list-role-policies --role-name {role}; aws iam list-attached-role-policies --role-name {role}"));
                if let Some(name) = name {
                    finding.next(format!(
                        "aws secretsmanager describe-secret --secret-id {name} --query KmsKeyId: a key of your own has \
                         to allow the role kms:Decrypt"
                    ));
                }
            }
            (Code::NotFound, Some(_), Some(name)) => {
                let message = &refusal.message;
                let missing_in = message.strip_prefix(NO_SUCH_SECRET_IN);
                // An older agent names no region where there is the secret, but no value.
                let valueless_in = || Some(message.split_once(NOT_AT_STAGE_IN)?.1);
                let region = missing_in.or_else(valueless_in);
                let region = region.map(|region| format!(" --region {region}"));
                let region = region.unwrap_or_default();
                finding.next(format!(
                    "aws secretsmanager describe-secret --secret-id {name}{region}"
                ));
                if missing_in.is_some() {
                    finding.next(match self.place {
                        Place::Pod => "if it is in another region: annotate the service account with latchkey.dev/aws-region",
                        Place::Machine => "if it is in another region: the agent's backends.NAME.region",
                    });
                }
            }
            _ => {}
        }
    }

    /// How to see the log of this node's agent.
    fn agents_log(&self) -> String {
        if self.place == Place::Machine {
            return STDERR.to_owned();
        }
        let Identity {
            namespace,
            pod,
            node,
            ..
        } = self.identity;
        if is_sidecar(self.identity) {
            return format!("kubectl -n {namespace} logs {pod} -c CONTAINER, which is the agent's");
        }
        format!(
            "kubectl -n latchkey logs -c agent \"$(kubectl -n latchkey get pods -o name -l app.kubernetes.io/component=agent --field-selector spec.nodeName={node})\""
        )
    }
}

/// Whether a role is not one to assume, but all or part of a folder or password store.
fn is_of_a_store(role: &str) -> bool {
    role == WHOLE_STORE || role.starts_with(FOLDER)
}

/// The name in the ARN of an IAM role, without its path.
fn aws_role_name(role: &str) -> Option<&str> {
    let (_, path) = role.strip_prefix("arn:")?.split_once(":role/")?;
    path.rsplit('/').next()
}
