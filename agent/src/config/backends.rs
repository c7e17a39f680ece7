//! The sections `backends.<name>`.

use std::{collections::BTreeMap, time::Duration};

use super::{
    AwsConfig, BackendConfig, Config,
    reader::Reader,
    value::{self, Wrong},
};

/// The types that a backend can have by the contract but not in this version.
const LATER: [&str; 4] = ["azure", "file", "gcp", "pass"];

/// Reads every section; if there is none, the backend `aws` with all its defaults is in use.
pub(super) fn read(reader: &mut Reader) -> BTreeMap<String, BackendConfig> {
    let mut names = reader.names_in("backends");
    if names.is_empty() {
        names.insert("aws".to_owned(), super::Origin::Default);
    }
    let mut backends = BTreeMap::new();
    for (name, origin) in names {
        let section = format!("backends.{name}");
        if let Err(wrong) = value::name(&value::untyped(&name)) {
            reader.reject(origin, &section, wrong);
            continue;
        }
        let key = format!("{section}.type");
        let written = reader.read(&key, |value| value::string(value).map(Some), None);
        let kind = match &written {
            Some(kind) => kind,
            // A backend that has the name of a type is of that type.
            None if name == "aws" || LATER.contains(&name.as_str()) => &name,
            None => {
                if !reader.has_fault(&key) {
                    let wrong = Wrong::new("is missing", "write type = \"aws\"");
                    reader.reject(origin, &key, wrong);
                }
                reader.close(&section);
                continue;
            }
        };
        if reader.has_fault(&key) {
            reader.close(&section);
        } else if kind == "aws" {
            let aws = AwsConfig::read(reader, &section);
            backends.insert(name, BackendConfig::Aws(aws));
        } else {
            let what = if LATER.contains(&kind.as_str()) {
                "which is not in this version"
            } else {
                "which is no type of backend"
            };
            let wrong = Wrong::new(format!("is {kind:?}, {what}"), "use the type \"aws\"");
            reader.reject(written.map_or(origin, |_| reader.origin(&key)), &key, wrong);
            reader.close(&section);
        }
    }
    backends
}

/// Checks what concerns more than one key.
pub(super) fn check(config: &Config, reader: &mut Reader) {
    let names = &config.backends;
    if !names.contains_key(&config.default_backend) && !reader.has_fault("backends") {
        let known = names
            .keys()
            .map(String::as_str)
            .collect::<Vec<_>>()
            .join(", ");
        reader.blame(
            "default_backend",
            Wrong::new(
                format!(
                    "is {:?}, and no such backend is configured",
                    config.default_backend
                ),
                format!("name one of those that are: {known}"),
            ),
        );
    }
    for (name, backend) in names {
        let BackendConfig::Aws(aws) = backend;
        aws.check(
            reader,
            &format!("backends.{name}"),
            config.limits.request_deadline,
        );
    }
}

// === impl AwsConfig ===

impl AwsConfig {
    fn read(reader: &mut Reader, section: &str) -> Self {
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
            timeout: reader.read(
                &key("timeout"),
                value::duration(Duration::from_millis(10)..=Duration::from_secs(60)),
                default.timeout,
            ),
        }
    }

    fn check(&self, reader: &mut Reader, section: &str, deadline: Duration) {
        let key = |name: &str| format!("{section}.{name}");
        if self.timeout > deadline {
            reader.contradict(&key("timeout"), "limits.request_deadline", || {
                format!("must not be longer than that ({})", value::spell(deadline))
            });
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
