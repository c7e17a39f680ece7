//! Whether what Secrets Manager answers is what was asked for.

use super::role;
use crate::backend::Selector;
use crate::role::Role;
use crate::secret::SecretName;
use aws_sdk_secretsmanager::operation::get_secret_value::GetSecretValueOutput;
use aws_sdk_secretsmanager::types::SecretListEntry;

/// Whether the answer is about the secret `id`, a name or an ARN, and the selected version: something between agent and
/// vault may mix up answers. A name is that of a secret in the role's own account and this region; an ARN may be of
/// another's, and may lack the characters that Secrets Manager has appended to the name.
pub(super) fn is_about(
    answer: &GetSecretValueOutput,
    id: &str,
    selector: &Selector,
    role: &Role,
    region: &str,
) -> bool {
    let is_secret = match role::region_of_arn(id) {
        Some(_) => answer.arn().is_some_and(|arn| is_completed(id, arn)),
        None => answer.name() == Some(id) && is_own(answer.arn(), role, region),
    };
    let (version, stage) = (selector.version.as_deref(), selector.stage.as_deref());
    is_secret
        && version.is_none_or(|version| answer.version_id() == Some(version))
        && stage.is_none_or(|stage| answer.version_stages().iter().any(|other| other == stage))
}

/// Returns the name by which an application asks for a listed secret. What cannot be asked for is not shown, nor is
/// what was listed for somebody else.
pub(super) fn listed(secret: &SecretListEntry, role: &Role, region: &str) -> Option<String> {
    let name = secret.name()?.strip_prefix(&*role.prefix)?;
    let name = SecretName::parse(name).ok()?;
    is_own(secret.arn(), role, region).then(|| name.to_string())
}

/// Whether a secret with this ARN is one of the role's own account, in this region.
fn is_own(arn: Option<&str>, role: &Role, region: &str) -> bool {
    // The machine's own credentials do not say which account they are of.
    let own = role::account_of(&role.name);
    arn.is_some_and(|arn| {
        arn.split(':').nth(3) == Some(region) && (own.is_none() || role::account_of(arn) == own)
    })
}

/// Whether `whole` is the ARN `asked`, perhaps with the six characters that Secrets Manager has appended.
fn is_completed(asked: &str, whole: &str) -> bool {
    whole.strip_prefix(asked).is_some_and(|more| {
        more.is_empty()
            || more.strip_prefix('-').is_some_and(|suffix| {
                suffix.len() == 6 && suffix.bytes().all(|b| b.is_ascii_alphanumeric())
            })
    })
}
