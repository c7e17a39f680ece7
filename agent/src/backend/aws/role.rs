//! What annotations and names mean to AWS: role ARNs, partitions, regions, secret names.

use crate::account::Annotations;
use crate::backend::Selector;
use crate::config::{AwsConfig, LocalRole};
use crate::error::RequestError;
pub(super) use crate::role::MACHINE;
use crate::role::{NoRole, Proof, Role};
use crate::secret::SecretName;

/// Where the role stands: ours for applications whose own SDK is to have another one, else that of IRSA.
const ROLE_KEYS: [&str; 2] = ["latchkey.dev/aws-role-arn", "eks.amazonaws.com/role-arn"];
const REGION_KEY: &str = "latchkey.dev/aws-region";
const PREFIX_KEY: &str = "latchkey.dev/prefix";
const AUDIENCE_KEY: &str = "eks.amazonaws.com/audience";
const REGIONAL_STS_KEY: &str = "eks.amazonaws.com/sts-regional-endpoints";

/// The audience of IRSA where nothing else is said.
const DEFAULT_AUDIENCE: &str = "sts.amazonaws.com";

/// The region whose token service is the global one, `sts.amazonaws.com`, in the SDK's endpoint rules.
const GLOBAL_REGION: &str = "aws-global";

/// The longest secret name of Secrets Manager, in characters.
const NAME_LIMIT: usize = 512;

/// Partitions by the beginning of their regions' names, and the region that stands for one when the configured
/// region is in another (AWS General Reference, "Partitions"). Everything else is `aws`.
const PARTITIONS: [(&str, &str, &str); 7] = [
    ("cn-", "aws-cn", "cn-north-1"),
    ("us-gov-", "aws-us-gov", "us-gov-west-1"),
    ("us-iso-", "aws-iso", "us-iso-east-1"),
    ("us-isob-", "aws-iso-b", "us-isob-east-1"),
    ("eu-isoe-", "aws-iso-e", "eu-isoe-west-1"),
    ("us-isof-", "aws-iso-f", "us-isof-south-1"),
    ("eusc-", "aws-eusc", "eusc-de-east-1"),
];

/// The role that the annotations ask for.
pub(super) fn of(
    annotations: &Annotations,
    settings: &AwsConfig,
    default_region: &str,
) -> Result<Role, NoRole> {
    let arn = annotations.first(&ROLE_KEYS).ok_or(NoRole(
        "the pod's service account names no AWS role: annotate it with eks.amazonaws.com/role-arn"
            .into(),
    ))?;
    let partition = partition_of_role(arn).ok_or_else(|| {
        NoRole(format!("the service account's annotation is no ARN of an IAM role: {arn:?}").into())
    })?;
    let region = match annotations.first(&[REGION_KEY]) {
        Some(region) if partition_of(region) != partition => {
            return Err(NoRole(
                format!("{REGION_KEY} {region:?} is not in the role's partition {partition}")
                    .into(),
            ));
        }
        Some(region) if !is_region(region) => {
            return Err(NoRole(
                format!("{REGION_KEY} {region:?} is no AWS region").into(),
            ));
        }
        Some(region) => region,
        None if partition_of(default_region) == partition => default_region,
        None => PARTITIONS
            .iter()
            .find(|(_, name, _)| *name == partition)
            .map_or("us-east-1", |(_, _, region)| region),
    };
    let audience = match annotations.first(&[AUDIENCE_KEY]) {
        Some(audience) if settings.audiences.iter().any(|allowed| allowed == audience) => audience,
        Some(audience) => {
            return Err(NoRole(
                format!("the agent issues no tokens for the audience {audience:?}").into(),
            ));
        }
        None if settings
            .audiences
            .iter()
            .any(|allowed| allowed == DEFAULT_AUDIENCE) =>
        {
            DEFAULT_AUDIENCE
        }
        None => settings
            .audiences
            .first()
            .map(String::as_str)
            .ok_or(NoRole(
                "the agent's configuration allows no audience for AWS".into(),
            ))?,
    };
    let prefix = annotations.first(&[PREFIX_KEY]).unwrap_or(&settings.prefix);
    if !prefix.bytes().all(is_name_byte) {
        return Err(NoRole(
            format!("{PREFIX_KEY} {prefix:?} holds characters that no AWS secret name has").into(),
        ));
    }
    Ok(Role {
        name: arn.into(),
        proof: Proof::Token(audience.into()),
        prefix: prefix.into(),
        place: region.into(),
        // Only the oldest partition has a global endpoint.
        via: (partition == "aws" && annotations.first(&[REGIONAL_STS_KEY]) == Some("false"))
            .then(|| GLOBAL_REGION.into()),
    })
}

/// The role of a principal of the machine: one that the machine's credentials may take on, or theirs itself.
///
/// # Errors
///
/// If what is named is no AWS role.
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
    let LocalRole::Named(arn) = role else {
        return Ok(machine);
    };
    let annotations = Annotations::of_account([(ROLE_KEYS[0], arn.as_str())]);
    let role = of(&annotations, settings, default_region)?;
    Ok(Role {
        name: role.name,
        place: role.place,
        ..machine
    })
}

/// Whether Secrets Manager can hold a secret of that name.
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
            // Which is that of the role's region too.
            && partition_of(&role.place) == partition;
        if !right {
            return Err(RequestError::invalid(
                "that is no ARN of a Secrets Manager secret in the role's partition",
            ));
        }
    } else if let Some(character) = name
        .as_str()
        .chars()
        .find(|c| !u8::try_from(*c).is_ok_and(is_name_byte))
    {
        return Err(RequestError::invalid(format!(
            "an AWS secret name has letters, digits and /_+=.@- only, not {character:?}"
        )));
    }
    if role.prefix.len() + name.as_str().len() > NAME_LIMIT {
        return Err(RequestError::invalid(format!(
            "with its prefix the name is longer than the {NAME_LIMIT} characters that AWS allows"
        )));
    }
    // The lengths that GetSecretValue allows; what is inside is only compared there.
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

/// The partition that a region belongs to, by the beginning of its name.
pub(super) fn partition_of(region: &str) -> &'static str {
    PARTITIONS
        .iter()
        .find(|(beginning, _, _)| region.starts_with(beginning))
        .map_or("aws", |(_, partition, _)| partition)
}

/// The region in the ARN of a secret: `arn:PARTITION:secretsmanager:REGION:ACCOUNT:secret:NAME`.
pub(super) fn region_of_arn(name: &str) -> Option<&str> {
    let parts: Vec<&str> = name.splitn(7, ':').collect();
    match parts[..] {
        ["arn", _, "secretsmanager", region, account, "secret", name]
            if is_account(account) && !name.is_empty() && name.bytes().all(is_name_byte) =>
        {
            Some(region)
        }
        _ => None,
    }
}

/// The partition in the ARN of an IAM role: `arn:PARTITION:iam::ACCOUNT:role/PATH/NAME`.
fn partition_of_role(arn: &str) -> Option<&'static str> {
    let parts: Vec<&str> = arn.splitn(6, ':').collect();
    let ["arn", partition, "iam", "", account, role] = parts[..] else {
        return None;
    };
    let name = role.strip_prefix("role/")?;
    // IAM's characters for paths and role names.
    let named = !name.is_empty()
        && !name.ends_with('/')
        && name
            .bytes()
            .all(|byte| byte.is_ascii_alphanumeric() || b"/+=,.@_-".contains(&byte));
    if !is_account(account) || !named {
        return None;
    }
    PARTITIONS
        .iter()
        .map(|(_, name, _)| *name)
        .chain(["aws"])
        .find(|name| *name == partition)
}

fn is_account(text: &str) -> bool {
    text.len() == 12 && text.bytes().all(|byte| byte.is_ascii_digit())
}

/// A region becomes part of a host name, so nothing else may stand in it.
fn is_region(text: &str) -> bool {
    (5..=32).contains(&text.len())
        && text.contains('-')
        && !text.starts_with('-')
        && !text.ends_with('-')
        && text
            .bytes()
            .all(|b| b.is_ascii_lowercase() || b.is_ascii_digit() || b == b'-')
}

fn is_name_byte(byte: u8) -> bool {
    byte.is_ascii_alphanumeric() || b"/_+=.@-".contains(&byte)
}

#[cfg(test)]
mod tests {
    use super::*;

    const ARN: &str = "arn:aws:iam::111122223333:role/team/test-reader";

    fn settings() -> AwsConfig {
        AwsConfig {
            audiences: vec![DEFAULT_AUDIENCE.into(), "internal".into()],
            ..AwsConfig::default()
        }
    }

    fn role(account: &[(&str, &str)], namespace: &[(&str, &str)]) -> Result<Role, NoRole> {
        of(
            &Annotations::of(account, namespace),
            &settings(),
            "eu-central-1",
        )
    }

    fn token_for(audience: &str) -> Proof {
        Proof::Token(audience.into())
    }

    #[test]
    fn the_role_of_irsa_is_used_as_it_is() {
        let role = role(&[("eks.amazonaws.com/role-arn", ARN)], &[]).expect("a role");
        assert_eq!(&*role.name, ARN);
        assert_eq!(role.proof, token_for("sts.amazonaws.com"));
        assert_eq!(&*role.place, "eu-central-1");
        assert_eq!(role.via, None);
    }

    #[test]
    fn an_account_without_annotation_has_no_role() {
        assert!(role(&[], &[]).is_err());
        assert!(role(&[("eks.amazonaws.com/role-arn", " ")], &[]).is_err());
    }

    #[test]
    fn the_namespace_stands_in_only_for_an_account_that_has_none() {
        let other = "arn:aws:iam::111122223333:role/namespace";
        let namespace = [("latchkey.dev/aws-role-arn", other)];
        assert_eq!(&*role(&[], &namespace).expect("a role").name, other);
        let own = [("eks.amazonaws.com/role-arn", ARN)];
        assert_eq!(&*role(&own, &namespace).expect("a role").name, ARN);
    }

    #[test]
    fn our_own_annotation_goes_before_that_of_irsa() {
        let ours = "arn:aws:iam::111122223333:role/secrets";
        let both = [
            ("eks.amazonaws.com/role-arn", ARN),
            ("latchkey.dev/aws-role-arn", ours),
        ];
        assert_eq!(&*role(&both, &[]).expect("a role").name, ours);
    }

    #[test]
    fn what_is_no_role_arn_is_no_role() {
        for wrong in [
            "test-reader",
            "arn:aws:iam::1234:role/x",
            "arn:aws:iam::111122223333:user/x",
            "arn:aws:iam::111122223333:role/",
            "arn:aws:iam::111122223333:role/x y",
            "arn:other:iam::111122223333:role/x",
            "arn:aws:sts::111122223333:role/x",
        ] {
            assert!(
                role(&[("eks.amazonaws.com/role-arn", wrong)], &[]).is_err(),
                "{wrong}"
            );
        }
    }

    #[test]
    fn the_region_follows_the_partition_of_the_role() {
        let region = |arn: &str| {
            role(&[("eks.amazonaws.com/role-arn", arn)], &[])
                .expect("a role")
                .place
                .to_string()
        };
        assert_eq!(region("arn:aws-cn:iam::111122223333:role/x"), "cn-north-1");
        assert_eq!(
            region("arn:aws-us-gov:iam::111122223333:role/x"),
            "us-gov-west-1"
        );
        assert_eq!(region(ARN), "eu-central-1");
    }

    #[test]
    fn a_region_outside_the_partition_or_unfit_for_a_host_name_is_refused() {
        for wrong in [
            "cn-north-1",
            "evil.example/",
            "eu_central_1",
            "-eu-1",
            "us-east-1.evil",
        ] {
            let annotations = [("eks.amazonaws.com/role-arn", ARN), (REGION_KEY, wrong)];
            assert!(role(&annotations, &[]).is_err(), "{wrong}");
        }
        let annotations = [
            ("eks.amazonaws.com/role-arn", ARN),
            (REGION_KEY, "ap-southeast-2"),
        ];
        assert_eq!(
            &*role(&annotations, &[]).expect("a role").place,
            "ap-southeast-2"
        );
    }

    #[test]
    fn only_audiences_of_the_configuration_are_asked_for() {
        let with = |audience| {
            role(
                &[
                    ("eks.amazonaws.com/role-arn", ARN),
                    (AUDIENCE_KEY, audience),
                ],
                &[],
            )
        };
        assert_eq!(
            with("internal").expect("a role").proof,
            token_for("internal")
        );
        assert!(with("https://kubernetes.default.svc").is_err());
    }

    #[test]
    fn the_global_token_service_is_used_only_where_it_is_asked_for_and_exists() {
        let with = |arn, value| {
            let annotations = [
                ("eks.amazonaws.com/role-arn", arn),
                (REGIONAL_STS_KEY, value),
            ];
            role(&annotations, &[]).expect("a role").via.is_some()
        };
        assert!(with(ARN, "false"));
        assert!(!with(ARN, "true"));
        assert!(!with("arn:aws-cn:iam::111122223333:role/x", "false"));
    }

    #[test]
    fn an_arn_is_taken_only_when_allowed_and_without_a_prefix() {
        let name = SecretName::parse(
            "arn:aws:secretsmanager:us-east-1:111122223333:secret:prod/db-AbCdEf",
        )
        .expect("a name");
        let mut role = role(&[("eks.amazonaws.com/role-arn", ARN)], &[]).expect("a role");
        let any = Selector::default();
        assert!(check_name(&settings(), &role, &name, &any).is_err());
        let allowing = AwsConfig {
            allow_arns: true,
            ..settings()
        };
        assert!(check_name(&allowing, &role, &name, &any).is_ok());
        role.prefix = "team/".into();
        assert!(check_name(&allowing, &role, &name, &any).is_err());
    }

    #[test]
    fn an_arn_cannot_lead_to_another_host() {
        for wrong in [
            "arn:aws:secretsmanager:evil.example/:111122223333:secret:x",
            "arn:aws:secretsmanager:cn-north-1:111122223333:secret:x",
            "arn:aws:s3:us-east-1:111122223333:secret:x",
        ] {
            let role = role(&[("eks.amazonaws.com/role-arn", ARN)], &[]).expect("a role");
            let allowing = AwsConfig {
                allow_arns: true,
                ..settings()
            };
            if let Ok(name) = SecretName::parse(wrong) {
                assert!(
                    check_name(&allowing, &role, &name, &Selector::default()).is_err(),
                    "{wrong}"
                );
            }
        }
    }

    #[test]
    fn the_length_counts_with_the_prefix() {
        let mut role = role(&[("eks.amazonaws.com/role-arn", ARN)], &[]).expect("a role");
        let name = SecretName::parse(&"n".repeat(510)).expect("a name");
        assert!(check_name(&settings(), &role, &name, &Selector::default()).is_ok());
        role.prefix = "abc".into();
        assert!(check_name(&settings(), &role, &name, &Selector::default()).is_err());
    }

    #[test]
    fn without_the_usual_audience_the_first_that_is_allowed_is_asked_for() {
        let annotations = Annotations::of(&[("eks.amazonaws.com/role-arn", ARN)], &[]);
        let only = AwsConfig {
            audiences: vec!["internal".into(), "other".into()],
            ..AwsConfig::default()
        };
        let asked = of(&annotations, &only, "eu-central-1").expect("a role");
        assert_eq!(asked.proof, token_for("internal"));
        let last = AwsConfig {
            audiences: vec!["internal".into(), DEFAULT_AUDIENCE.into()],
            ..AwsConfig::default()
        };
        let asked = of(&annotations, &last, "eu-central-1").expect("a role");
        assert_eq!(asked.proof, token_for(DEFAULT_AUDIENCE));
    }

    #[test]
    fn names_versions_and_stages_have_the_lengths_and_characters_that_aws_allows() {
        let mut role = role(&[("eks.amazonaws.com/role-arn", ARN)], &[]).expect("a role");
        role.prefix = "ab".into();
        let check = |name: &str, version: Option<usize>, stage: Option<usize>| {
            let selector = Selector {
                version: version.map(|length| "v".repeat(length).into()),
                stage: stage.map(|length| "s".repeat(length).into()),
            };
            let name = SecretName::parse(name).expect("a name");
            check_name(&settings(), &role, &name, &selector).is_ok()
        };
        assert!(check(&"n".repeat(NAME_LIMIT - 2), None, None));
        assert!(!check(&"n".repeat(NAME_LIMIT - 1), None, None));
        assert!(check("a/b_c+d=e.f@g-h", None, None));
        assert!(
            !check("a b", None, None) && !check("a:b", None, None) && !check("\u{e4}", None, None)
        );
        assert!(check("a", Some(32), None) && check("a", Some(64), None));
        assert!(!check("a", Some(31), None) && !check("a", Some(65), None));
        assert!(check("a", None, Some(1)) && check("a", None, Some(256)));
        assert!(!check("a", None, Some(257)));
    }

    #[test]
    fn only_a_whole_arn_of_a_secret_has_a_region() {
        let arn = "arn:aws:secretsmanager:us-east-1:111122223333:secret:prod/db-AbCdEf";
        assert_eq!(region_of_arn(arn), Some("us-east-1"));
        for wrong in [
            "arn:aws:secretsmanager:us-east-1:1111:secret:prod/db",
            "arn:aws:secretsmanager:us-east-1:11112222333x:secret:prod/db",
            "arn:aws:secretsmanager:us-east-1:111122223333:secret:",
            "arn:aws:secretsmanager:us-east-1:111122223333:secret:prod db",
        ] {
            assert_eq!(region_of_arn(wrong), None, "{wrong}");
        }
    }

    #[test]
    fn a_machine_is_its_own_role_or_takes_on_the_one_that_is_named() {
        let machine = |role: &LocalRole| of_machine(role, &AwsConfig::default(), "eu-central-1");
        let own = machine(&LocalRole::Machine).expect("a role");
        assert_eq!((&*own.name, &*own.place), ("machine", "eu-central-1"));
        let named = machine(&LocalRole::Named(ARN.into())).expect("a role");
        assert_eq!((&*named.name, &named.proof), (ARN, &Proof::Machine));
        let china = LocalRole::Named("arn:aws-cn:iam::111122223333:role/x".into());
        assert_eq!(&*machine(&china).expect("a role").place, "cn-north-1");
        for other in [
            "app@project.iam.gserviceaccount.com",
            "arn:aws:iam::111122223333:user/x",
        ] {
            assert!(machine(&LocalRole::Named(other.into())).is_err(), "{other}");
        }
    }
}
