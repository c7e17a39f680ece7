//! The sections of type `aws`: Secrets Manager and the STS before it.

use std::time::Duration;

use super::{
    backends::check_timeout,
    reader::Reader,
    value::{self, Wrong},
};

/// AWS Secrets Manager, and the STS before it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct AwsConfig {
    /// The region of roles and secrets; the machine's own if absent.
    pub region: Option<String>,
    /// Regions asked in this order, each only when the one before cannot be reached.
    pub fallback_regions: Vec<String>,
    /// The audiences that a subject token may be made for; never empty.
    pub audiences: Vec<String>,
    /// Whether a secret may be named by its ARN.
    pub allow_arns: bool,
    /// What stands before every name at the vault.
    pub prefix: String,
    /// Secrets Manager's URL, if it is not the region's public one.
    pub endpoint: Option<String>,
    /// The STS's URL, if it is not the region's public one.
    pub sts_endpoint: Option<String>,
    /// How long one call may take.
    pub timeout: Duration,
}

// === impl AwsConfig ===

impl AwsConfig {
    pub(super) fn read(reader: &mut Reader, section: &str) -> Self {
        let default = Self::default();
        let key = |name: &str| format!("{section}.{name}");
        Self {
            region: reader.read_or(&key("region"), &["AWS_REGION"], value::region, None),
            fallback_regions: reader.read(
                &key("fallback_regions"),
                value::regions,
                default.fallback_regions,
            ),
            audiences: reader.read(&key("audiences"), value::audiences, default.audiences),
            allow_arns: reader.read(&key("allow_arns"), value::boolean, default.allow_arns),
            prefix: reader.read(&key("prefix"), value::aws_prefix, default.prefix),
            endpoint: reader.read_or(
                &key("endpoint"),
                &["AWS_ENDPOINT_URL_SECRETS_MANAGER", "AWS_ENDPOINT_URL"],
                value::endpoint,
                None,
            ),
            sts_endpoint: reader.read_or(
                &key("sts_endpoint"),
                &["AWS_ENDPOINT_URL_STS", "AWS_ENDPOINT_URL"],
                value::endpoint,
                None,
            ),
            timeout: reader.read(&key("timeout"), value::call_timeout, default.timeout),
        }
    }

    pub(super) fn check(&self, reader: &mut Reader, section: &str, deadline: Duration) {
        let key = |name: &str| format!("{section}.{name}");
        check_timeout(reader, section, self.timeout, deadline);
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
            for variable in ["AWS_USE_FIPS_ENDPOINT", "AWS_USE_DUALSTACK_ENDPOINT"] {
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
        match &self.region {
            None if !self.fallback_regions.is_empty() => {
                reader.contradict(&key("fallback_regions"), &key("region"), || {
                    "has no region to fall back from".to_owned()
                });
            }
            Some(region) if self.fallback_regions.contains(region) => {
                reader.contradict(&key("fallback_regions"), &key("region"), || {
                    format!("names that very region ({region})")
                });
            }
            _ => {}
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
