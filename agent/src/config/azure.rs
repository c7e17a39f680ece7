//! The sections of type `azure`: Key Vault and Entra ID, and the syntax of vaults, clients and tenants.

use std::time::Duration;

use reqwest::Url;

use super::{
    reader::Reader,
    settings::Value,
    value::{self, Wrong},
};
use crate::backend::dashes::AZURE;

/// Azure's clouds: Entra ID's authority, and how the hosts of vaults end.
const CLOUDS: [(&str, &str); 4] = [
    ("https://login.microsoftonline.com", ".vault.azure.net"),
    (
        "https://login.microsoftonline.us",
        ".vault.usgovcloudapi.net",
    ),
    (
        "https://login.partner.microsoftonline.cn",
        ".vault.azure.cn",
    ),
    ("https://login.chinacloudapi.cn", ".vault.azure.cn"),
];

/// Azure Key Vault and Entra ID.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct AzureConfig {
    /// The vault of service accounts that name none, in the form that [`vault_url`] returns.
    pub vault_url: Option<String>,
    /// The tenant of service accounts that name none.
    pub tenant: Option<String>,
    /// The URL of Entra ID, without a slash at its end.
    pub authority: String,
    /// The audience of subject tokens, as in federated credentials.
    pub audience: String,
    /// How the hosts of vaults may end, each beginning with a dot; never empty.
    pub vault_suffixes: Vec<String>,
    /// Precedes every name, as applications write names.
    pub prefix: String,
    /// The timeout of one call.
    pub timeout: Duration,
}

// === impl AzureConfig ===

impl AzureConfig {
    pub(super) fn read(reader: &mut Reader, section: &str) -> Self {
        let default = Self::default();
        let key = |name: &str| format!("{section}.{name}");
        let authority = reader
            .optional(&key("authority"), &["AZURE_AUTHORITY_HOST"], authority)
            .unwrap_or(default.authority);
        let suffixes = CLOUDS
            .iter()
            .find(|(cloud, _)| *cloud == authority)
            .map_or(default.vault_suffixes, |(_, suffix)| {
                vec![(*suffix).to_owned()]
            });
        Self {
            vault_url: reader.optional(&key("vault_url"), &[], vault),
            tenant: reader.optional(&key("tenant"), &[], tenant),
            authority,
            audience: reader.read(&key("audience"), value::audience, default.audience),
            vault_suffixes: reader.read(&key("vault_suffixes"), suffix_list, suffixes),
            prefix: reader.read(&key("prefix"), prefix, default.prefix),
            timeout: reader.read(&key("timeout"), value::call_timeout, default.timeout),
        }
    }

    pub(super) fn check(&self, reader: &mut Reader, section: &str) {
        let key = |name: &str| format!("{section}.{name}");
        if let Some(url) = &self.vault_url
            && suffix_of(url, &self.vault_suffixes).is_none()
        {
            reader.contradict(&key("vault_url"), &key("vault_suffixes"), || {
                format!(
                    "is no name before one of those ({})",
                    self.vault_suffixes.join(", ")
                )
            });
        }
    }
}

impl Default for AzureConfig {
    fn default() -> Self {
        let (authority, suffix) = CLOUDS[0];
        Self {
            vault_url: None,
            tenant: None,
            authority: authority.to_owned(),
            audience: "api://AzureADTokenExchange".to_owned(),
            vault_suffixes: vec![suffix.to_owned()],
            prefix: String::new(),
            timeout: value::CALL_TIMEOUT,
        }
    }
}

/// The URL of a vault from what an operator wrote: `https://` may be missing, and a slash may follow.
pub(crate) fn vault_url(text: &str) -> Option<String> {
    let text = text.to_ascii_lowercase();
    let authority = text.strip_prefix("https://").unwrap_or(&text);
    let authority = authority.strip_suffix('/').unwrap_or(authority);
    let (host, port) = match authority.split_once(':') {
        Some((host, port)) => (host, Some(port)),
        None => (authority, None),
    };
    let is_port = |port: &str| {
        port.bytes().all(|b| b.is_ascii_digit()) && port.parse::<u16>().is_ok_and(|port| port > 0)
    };
    let url = format!("https://{authority}");
    // What calls the vault reads a URL as `Url` does, and takes not every domain: "xn--" is followed by Punycode.
    let is_callable = || Url::parse(&url).is_ok_and(|url| url.host_str() == Some(host));
    (is_domain(host) && port.is_none_or(is_port) && is_callable()).then_some(url)
}

/// The one of `suffixes` with which the host of a vault's URL ends, after a single label, the vault's name.
pub(crate) fn suffix_of<'a>(url: &str, suffixes: &'a [String]) -> Option<&'a str> {
    let host = url.strip_prefix("https://")?;
    let host = host.split_once(':').map_or(host, |(host, _)| host);
    let is_vaults = |suffix: &&String| {
        host.strip_suffix(suffix.as_str())
            .is_some_and(|name| !name.is_empty() && !name.contains('.'))
    };
    suffixes.iter().find(is_vaults).map(String::as_str)
}

/// Whether `text` is the id of a client.
pub(crate) fn is_client(text: &str) -> bool {
    text.len() == 36 && uuid::Uuid::try_parse(text).is_ok()
}

/// Whether `text` is a tenant: its id, or one of its domains. It becomes part of a URL's path.
pub(crate) fn is_tenant(text: &str) -> bool {
    let text = text.to_ascii_lowercase();
    is_client(&text) || is_domain(&text)
}

/// Whether `text` is a domain of at least two labels, in lower case.
fn is_domain(text: &str) -> bool {
    text.contains('.')
        && value::is_subdomain(text)
        && text.split('.').all(|label| label.len() <= 63)
}

// --- of one key each ---

fn vault(value: &Value) -> Result<String, Wrong> {
    let remedy = "write the vault's URL, such as \"https://my-vault.vault.azure.net\"";
    let text = value::text(value, remedy)?;
    vault_url(text).ok_or_else(|| Wrong::text(text, "no URL of a vault", remedy))
}

pub(super) fn tenant(value: &Value) -> Result<String, Wrong> {
    let remedy = "write the tenant's id, or one of its domains such as \"contoso.onmicrosoft.com\"";
    let tenant = value::text_that(is_tenant, value, "no tenant", remedy)?;
    Ok(tenant.to_ascii_lowercase())
}

fn authority(value: &Value) -> Result<String, Wrong> {
    let url = value::endpoint(value)?;
    // Pods' tokens are sent there.
    if !url.starts_with("https://") {
        let remedy = "write a URL with https, such as \"https://login.microsoftonline.com\"";
        return Err(Wrong::text(&url, "no URL with https", remedy));
    }
    Ok(url.trim_end_matches('/').to_owned())
}

fn suffix_list(value: &Value) -> Result<Vec<String>, Wrong> {
    let remedy = "write a list of ends of vaults' hosts, such as [\".vault.azure.net\"]";
    let suffixes = value::list(value, remedy, |suffix| {
        // Without the dot, every host whose name merely ends like this would pass.
        let right = suffix.strip_prefix('.').is_some_and(is_domain);
        Wrong::unless(right, suffix, "no end of a vault's host", remedy)
    })?;
    if suffixes.is_empty() {
        return Err(Wrong::new("is empty", remedy));
    }
    Ok(suffixes)
}

fn prefix(value: &Value) -> Result<String, Wrong> {
    let remedy = "write up to 100 of A-Z, a-z, 0-9, - and /, without // or a / at the beginning";
    value::text_that(|text| AZURE.takes_prefix(text), value, "no prefix", remedy)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_vault_may_be_written_with_or_without_its_scheme() {
        for text in [
            "https://v1.vault.azure.net",
            "https://v1.vault.azure.net/",
            "v1.vault.azure.net",
            "HTTPS://V1.Vault.Azure.Net",
        ] {
            let url = vault_url(text);
            assert_eq!(url.as_deref(), Some("https://v1.vault.azure.net"), "{text}");
        }
        assert_eq!(
            vault_url("v1.vault.test:8443").as_deref(),
            Some("https://v1.vault.test:8443")
        );
    }

    #[test]
    fn what_could_lead_to_another_host_is_no_vault() {
        for wrong in [
            "",
            "v1",
            "http://v1.vault.azure.net",
            "https://https://v1.vault.azure.net",
            "v1.vault.azure.net/secrets",
            "v1.vault.azure.net?x",
            "v1.vault.azure.net#x",
            "user@v1.vault.azure.net",
            "v1.vault.azure.net:0",
            "v1.vault.azure.net:+443",
            "v1.vault.azure.net:65536",
            "v1.vault.azure.net:",
            "v1..vault.azure.net",
            "-v1.vault.azure.net",
            "v1.vault.azure.net.",
            "v1 .vault.azure.net",
            "v1.vault.azure.net\\.evil.example",
            "[::1]",
            "xn--v1-0000.vault.azure.net",
            "0x7f.1",
        ] {
            assert_eq!(vault_url(wrong), None, "{wrong}");
        }
    }

    #[test]
    fn a_vault_is_one_name_before_a_suffix() {
        let suffixes = [
            ".vault.azure.net".to_owned(),
            ".vault.example.com".to_owned(),
        ];
        let of = |url| suffix_of(url, &suffixes);
        assert_eq!(of("https://v1.vault.azure.net"), Some(".vault.azure.net"));
        assert_eq!(
            of("https://v1.vault.example.com:8443"),
            Some(".vault.example.com")
        );
        for wrong in [
            "https://.vault.azure.net",
            "https://vault.azure.net",
            "https://evilvault.azure.net",
            "https://a.b.vault.azure.net",
            "https://v1.vault.azure.net.evil.example",
            "v1.vault.azure.net",
        ] {
            assert_eq!(of(wrong), None, "{wrong}");
        }
    }

    #[test]
    fn a_tenant_is_an_id_or_a_domain() {
        for right in [
            "5d2e1f43-7c5e-4f5b-9d7b-0123456789ab",
            "contoso.onmicrosoft.com",
        ] {
            assert!(is_tenant(right), "{right}");
        }
        // The last two are endpoints for people, not tenants.
        for wrong in ["", "..", "a/b", "a..b", "x.com/../y", "common", "consumers"] {
            assert!(!is_tenant(wrong), "{wrong}");
        }
    }
}
