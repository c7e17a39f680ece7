//! The sections of type `aws`: Secrets Manager and STS, and the syntax of regions, partitions and roles.

use std::time::Duration;

use super::{
    reader::Reader,
    settings::Value,
    value::{self, Wrong},
};

/// The SDK's own variables that choose among a region's endpoints.
const SWITCHES: [&str; 2] = ["AWS_USE_FIPS_ENDPOINT", "AWS_USE_DUALSTACK_ENDPOINT"];

const REGION_REMEDY: &str = "write a region's code such as \"eu-central-1\"";

/// The prefix of each partition's regions, its name, and the region to use there if the configured region is in another
/// partition (AWS General Reference, "Partitions"). Everything else is `aws`.
pub(crate) const PARTITIONS: [(&str, &str, &str); 7] = [
    ("cn-", "aws-cn", "cn-north-1"),
    ("us-gov-", "aws-us-gov", "us-gov-west-1"),
    ("us-iso-", "aws-iso", "us-iso-east-1"),
    ("us-isob-", "aws-iso-b", "us-isob-east-1"),
    ("eu-isoe-", "aws-iso-e", "eu-isoe-west-1"),
    ("us-isof-", "aws-iso-f", "us-isof-south-1"),
    ("eusc-", "aws-eusc", "eusc-de-east-1"),
];

/// AWS Secrets Manager and STS.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct AwsConfig {
    /// The region of roles and secrets; the machine's own if absent.
    pub region: Option<String>,
    /// Regions to try in this order, each only if the previous one cannot be reached.
    pub fallback_regions: Vec<String>,
    /// The audiences that a subject token may have; never empty.
    pub audiences: Vec<String>,
    /// Whether a secret may be named by its ARN.
    pub allow_arns: bool,
    /// Precedes every name at the vault.
    pub prefix: String,
    /// Secrets Manager's URL, if not the region's public one.
    pub endpoint: Option<String>,
    /// STS's URL, if not the region's public one.
    pub sts_endpoint: Option<String>,
    /// The timeout of one call.
    pub timeout: Duration,
}

// === impl AwsConfig ===

impl AwsConfig {
    pub(super) fn read(reader: &mut Reader, section: &str) -> Self {
        let default = Self::default();
        let key = |name: &str| format!("{section}.{name}");
        Self {
            region: reader.optional(&key("region"), &["AWS_REGION"], region),
            fallback_regions: reader.read(
                &key("fallback_regions"),
                regions,
                default.fallback_regions,
            ),
            audiences: reader.read(&key("audiences"), value::audiences, default.audiences),
            allow_arns: reader.read(&key("allow_arns"), value::boolean, default.allow_arns),
            prefix: reader.read(&key("prefix"), prefix, default.prefix),
            endpoint: reader.optional(
                &key("endpoint"),
                &["AWS_ENDPOINT_URL_SECRETS_MANAGER", "AWS_ENDPOINT_URL"],
                value::endpoint,
            ),
            sts_endpoint: reader.optional(
                &key("sts_endpoint"),
                &["AWS_ENDPOINT_URL_STS", "AWS_ENDPOINT_URL"],
                value::endpoint,
            ),
            timeout: reader.read(&key("timeout"), value::call_timeout, default.timeout),
        }
    }

    pub(super) fn check(&self, reader: &mut Reader, section: &str, deadline: Duration) {
        let key = |name: &str| format!("{section}.{name}");
        if !self.fallback_regions.is_empty() && self.timeout * 2 > deadline {
            reader.contradict(&key("timeout"), "limits.request_deadline", || {
                format!(
                    "leaves no time for one of the fallback_regions: at most half of that ({})",
                    value::spell(deadline)
                )
            });
        }
        for (name, endpoint) in [
            ("endpoint", &self.endpoint),
            ("sts_endpoint", &self.sts_endpoint),
        ] {
            for variable in SWITCHES {
                let is_on = reader
                    .variable(variable)
                    .is_some_and(|value| value.eq_ignore_ascii_case("true"));
                if endpoint.is_some() && is_on {
                    let wrong = format!(
                        "is set together with {variable}, and the SDK makes no call with both"
                    );
                    let remedy =
                        format!("unset {variable}, and name the endpoint that is to be used");
                    reader.blame(&key(name), Wrong::new(wrong, remedy));
                }
            }
        }
        if let Some(region) = &self.region
            && self.fallback_regions.contains(region)
        {
            reader.contradict(&key("fallback_regions"), &key("region"), || {
                format!("names that very region ({region})")
            });
        }
    }
}

impl Default for AwsConfig {
    fn default() -> Self {
        Self {
            region: None,
            fallback_regions: Vec::new(),
            audiences: vec!["sts.amazonaws.com".to_owned()],
            allow_arns: false,
            prefix: String::new(),
            endpoint: None,
            sts_endpoint: None,
            timeout: value::CALL_TIMEOUT,
        }
    }
}

/// Checks the SDK's variables. It takes anything but these two words for no choice at all, and whoever asked for FIPS
/// would be given other endpoints.
pub(super) fn check_variables(reader: &mut Reader) {
    for name in SWITCHES {
        let is_word = |value: &str| {
            let mut words = ["true", "false"].iter();
            words.any(|word| value.eq_ignore_ascii_case(word))
        };
        if reader.variable(name).is_some_and(|value| !is_word(value)) {
            let wrong = Wrong::new("is neither true nor false", "write true or false");
            reader.blame_variable(name, wrong);
        }
    }
}

/// A region's code.
fn region(value: &Value) -> Result<String, Wrong> {
    let region = value::text(value, REGION_REMEDY)?;
    check_region(region).map(|()| region.to_owned())
}

fn regions(value: &Value) -> Result<Vec<String>, Wrong> {
    value::list(
        value,
        "write a list of regions, such as [\"eu-west-1\"]",
        check_region,
    )
}

fn check_region(region: &str) -> Result<(), Wrong> {
    if is_region(region) {
        return Ok(());
    }
    let remedy = if region.contains("fips") {
        "write the region itself and set AWS_USE_FIPS_ENDPOINT=true"
    } else {
        REGION_REMEDY
    };
    Err(Wrong::text(region, "no region's code", remedy))
}

/// Whether `text` is the code of an AWS region. It becomes part of a host name, so nothing else may pass, nor a name
/// that only SDKs know, such as `aws-global` and `fips-us-east-1`.
pub(crate) fn is_region(text: &str) -> bool {
    let parts: Vec<&str> = text.split('-').collect();
    let word = |part: &&str| !part.is_empty() && part.bytes().all(|b| b.is_ascii_lowercase());
    let right = match parts.as_slice() {
        [area @ .., number] if area.len() >= 2 => {
            area.iter().all(word)
                && (1..=2).contains(&number.len())
                && number.bytes().all(|b| b.is_ascii_digit())
        }
        _ => false,
    };
    right && text.len() <= 32 && !text.contains("fips")
}

/// The partition that a region belongs to, by the beginning of its name.
pub(crate) fn partition_of(region: &str) -> &'static str {
    PARTITIONS
        .iter()
        .find(|(beginning, _, _)| region.starts_with(beginning))
        .map_or("aws", |(_, partition, _)| partition)
}

/// The partition in the ARN of an IAM role: `arn:PARTITION:iam::ACCOUNT:role/PATH/NAME`.
pub(crate) fn partition_of_role(arn: &str) -> Option<&'static str> {
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

/// Whether `text` is the number of an account.
pub(crate) fn is_account(text: &str) -> bool {
    text.len() == 12 && text.bytes().all(|byte| byte.is_ascii_digit())
}

/// Whether `text` may precede every name: only characters of names, and not first the one that negates a filter of
/// `ListSecrets`.
pub(crate) fn is_aws_prefix(text: &str) -> bool {
    text.bytes().all(is_aws_name_byte) && !text.starts_with('!')
}

/// What precedes every name, in the characters that AWS Secrets Manager allows.
fn prefix(value: &Value) -> Result<String, Wrong> {
    let remedy =
        "write up to 256 of A-Z, a-z, 0-9 and /_+=.@-!, without ! first, and //, . or .. as a part";
    let prefix = value::text(value, remedy)?;
    let parts_right =
        prefix.split('/').all(|part| !matches!(part, "." | "..")) && !prefix.contains("//");
    let right = prefix.len() <= value::MAX_PREFIX && is_aws_prefix(prefix) && parts_right;
    Wrong::unless(right, prefix, "no prefix", remedy)?;
    Ok(prefix.to_owned())
}

/// Whether the name of a secret in AWS Secrets Manager may contain this byte.
pub(crate) fn is_aws_name_byte(byte: u8) -> bool {
    byte.is_ascii_alphanumeric() || b"/_+=.@-!".contains(&byte)
}
