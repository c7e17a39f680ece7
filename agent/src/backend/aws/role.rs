//! What annotations and names mean to AWS: role ARNs, partitions, regions, secret names.

use crate::account::Annotations;
use crate::backend::Selector;
pub(super) use crate::config::aws::partition_of;
use crate::config::aws::{
    PARTITIONS, is_account, is_aws_name_byte, is_aws_prefix, is_region, partition_of_role,
};
use crate::config::{AwsConfig, LocalRole};
use crate::error::RequestError;
pub(super) use crate::role::MACHINE;
use crate::role::{NoRole, PREFIX_KEY, Proof, Role};
use crate::secret::SecretName;
use latchkey_client::protocol::words::{ANNOTATE_WITH, NAMES_NO};

/// The annotations that name the role: ours, for applications whose own SDK uses another role, then IRSA's.
const ROLE_KEYS: [&str; 2] = ["latchkey.dev/aws-role-arn", "eks.amazonaws.com/role-arn"];
const REGION_KEY: &str = "latchkey.dev/aws-region";
const AUDIENCE_KEY: &str = "eks.amazonaws.com/audience";
const REGIONAL_STS_KEY: &str = "eks.amazonaws.com/sts-regional-endpoints";

/// IRSA's default audience.
const DEFAULT_AUDIENCE: &str = "sts.amazonaws.com";

/// The region whose token service is the global one, `sts.amazonaws.com`, in the SDK's endpoint rules.
const GLOBAL_REGION: &str = "aws-global";

/// The regions in whose place the global token service may be used (`UseGlobalEndpoint` in the SDK's endpoint rules).
/// Opt-in regions do not accept its tokens.
const GLOBALLY_SERVED: [&str; 15] = [
    "ap-northeast-1",
    "ap-south-1",
    "ap-southeast-1",
    "ap-southeast-2",
    "ca-central-1",
    "eu-central-1",
    "eu-north-1",
    "eu-west-1",
    "eu-west-2",
    "eu-west-3",
    "sa-east-1",
    "us-east-1",
    "us-east-2",
    "us-west-1",
    "us-west-2",
];

/// The longest secret name of Secrets Manager, in characters.
const NAME_LIMIT: usize = 512;

/// The role that the annotations ask for.
pub(super) fn of(
    annotations: &Annotations,
    settings: &AwsConfig,
    default_region: &str,
) -> Result<Role, NoRole> {
    let (key, arn) = annotations.first_with_key(&ROLE_KEYS)?.ok_or_else(|| {
        annotations.no_role(
            format!("the pod's service account {NAMES_NO} AWS role: {ANNOTATE_WITH}eks.amazonaws.com/role-arn"),
            format!("the sidecar's configuration {NAMES_NO} AWS role: set AWS_ROLE_ARN in the agent's container"),
        )
    })?;
    let partition = partition_of_role(arn).ok_or_else(|| {
        NoRole::new(format!(
            "the annotation {key} of the service account or its namespace is no ARN of an IAM role: {arn:?}"
        ))
    })?;
    let region = match annotations.first(&[REGION_KEY])? {
        Some(region) if partition_of(region) != partition => {
            return Err(NoRole::new(format!(
                "{REGION_KEY} {region:?} is not in the role's partition {partition}"
            )));
        }
        Some(region) if !is_region(region) => {
            return Err(NoRole::new(format!(
                "{REGION_KEY} {region:?} is no AWS region"
            )));
        }
        Some(region) => region,
        None if partition_of(default_region) == partition => default_region,
        None => PARTITIONS
            .iter()
            .find(|(_, name, _)| *name == partition)
            .map_or("us-east-1", |(_, _, region)| region),
    };
    let is_issued = |audience: &str| settings.audiences.iter().any(|other| other == audience);
    let audience = match annotations.first(&[AUDIENCE_KEY])? {
        Some(audience) if is_issued(audience) => audience,
        Some(audience) => {
            return Err(NoRole::new(format!(
                "{AUDIENCE_KEY} {audience:?} is none of the audiences that the agent's configuration allows"
            )));
        }
        None if is_issued(DEFAULT_AUDIENCE) => DEFAULT_AUDIENCE,
        // The configuration has at least one.
        None => &settings.audiences[0],
    };
    let prefix = annotations
        .first(&[PREFIX_KEY])?
        .unwrap_or(&settings.prefix);
    if !is_aws_prefix(prefix) {
        return Err(NoRole::new(format!(
            "{PREFIX_KEY} {prefix:?} is no beginning of an AWS secret name"
        )));
    }
    Ok(Role {
        name: arn.into(),
        proof: Proof::Token(audience.into()),
        prefix: prefix.into(),
        place: region.into(),
        via: (GLOBALLY_SERVED.contains(&region)
            && annotations.first(&[REGIONAL_STS_KEY])? == Some("false"))
        .then(|| GLOBAL_REGION.into()),
    })
}

/// The role of a principal of the machine: one that the machine's credentials may assume, or those credentials' own.
///
/// # Errors
///
/// If the name is not an AWS role's.
pub(super) fn of_machine(
    role: &LocalRole,
    settings: &AwsConfig,
    default_region: &str,
) -> Result<Role, NoRole> {
    let machine = Role {
        name: MACHINE.into(),
        proof: Proof::Machine,
        prefix: settings.prefix.as_str().into(),
        place: default_region.into(),
        via: None,
    };
    let arn = match role {
        LocalRole::None => return Err(NoRole::NONE_WRITTEN),
        LocalRole::Machine => return Ok(machine),
        LocalRole::Named(arn) if partition_of_role(arn).is_some() => arn,
        LocalRole::Named(other) => {
            return Err(NoRole::new(format!("{other:?} is no ARN of an IAM role")));
        }
    };
    let annotations = Annotations::of_account([(ROLE_KEYS[0], arn.as_str())]);
    let role = of(&annotations, settings, default_region)?;
    Ok(Role {
        name: role.name,
        place: role.place,
        ..machine
    })
}

/// Checks that Secrets Manager can hold a secret of this name.
pub(super) fn check_name(
    settings: &AwsConfig,
    role: &Role,
    name: &SecretName,
    selector: &Selector,
) -> Result<(), RequestError> {
    if name.is_arn() {
        if !settings.allow_arns {
            return Err(RequestError::invalid(
                "the agent does not take ARNs: ask for the secret by its name",
            ));
        }
        if !role.prefix.is_empty() {
            return Err(RequestError::invalid(
                "the agent does not take ARNs while a prefix is set: ask for the secret by its name",
            ));
        }
        let partition = name.as_str().split(':').nth(1).unwrap_or_default();
        let right = region_of_arn(name.as_str())
            .is_some_and(|region| is_region(region) && partition_of(region) == partition)
            // The role's region must be in it too.
            && partition_of(&role.place) == partition;
        if !right {
            return Err(RequestError::invalid(
                "that is no ARN of a Secrets Manager secret in the role's partition",
            ));
        }
    } else if let Some(character) = name
        .as_str()
        .chars()
        .find(|c| !u8::try_from(*c).is_ok_and(is_aws_name_byte))
    {
        return Err(RequestError::invalid(format!(
            "an AWS secret name has letters, digits and /_+=.@-! only, not {character:?}"
        )));
    }
    if role.prefix.len() + name.as_str().len() > NAME_LIMIT {
        return Err(RequestError::invalid(format!(
            "with its prefix the name is longer than the {NAME_LIMIT} characters that AWS allows"
        )));
    }
    // The lengths that GetSecretValue allows; AWS only compares the content.
    if selector
        .version
        .as_ref()
        .is_some_and(|id| !(32..=64).contains(&id.len()))
    {
        return Err(RequestError::invalid(
            "an AWS version id has 32 to 64 characters",
        ));
    }
    if selector
        .stage
        .as_ref()
        .is_some_and(|stage| !(1..=256).contains(&stage.len()))
    {
        return Err(RequestError::invalid(
            "an AWS staging label has 1 to 256 characters",
        ));
    }
    Ok(())
}

/// The region in the ARN of a secret: `arn:PARTITION:secretsmanager:REGION:ACCOUNT:secret:NAME`.
pub(super) fn region_of_arn(name: &str) -> Option<&str> {
    let parts: Vec<&str> = name.splitn(7, ':').collect();
    match parts[..] {
        ["arn", _, "secretsmanager", region, account, "secret", name]
            if is_account(account) && !name.is_empty() && name.bytes().all(is_aws_name_byte) =>
        {
            Some(region)
        }
        _ => None,
    }
}

/// The account in an ARN: `arn:PARTITION:SERVICE:REGION:ACCOUNT:RESOURCE`.
pub(super) fn account_of(arn: &str) -> Option<&str> {
    arn.split(':').nth(4)
}

/// The ARN of a session of the role with this ARN: `arn:PARTITION:sts::ACCOUNT:assumed-role/NAME/SESSION`, without the
/// role's path (IAM User Guide, "IAM identifiers").
pub(super) fn session_arn(role: &str, session: &str) -> Option<String> {
    let partition = partition_of_role(role)?;
    let account = account_of(role)?;
    let (_, name) = role.rsplit_once('/')?;
    Some(format!(
        "arn:{partition}:sts::{account}:assumed-role/{name}/{session}"
    ))
}

#[cfg(test)]
mod tests;
