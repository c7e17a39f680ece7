//! What annotations and names mean to Azure: clients, tenants, vaults, names of secrets.

use crate::account::Annotations;
use crate::backend::Selector;
use crate::backend::dashes::AZURE;
use crate::config::{AzureConfig, LocalRole, is_client, is_tenant, suffix_of, vault_url};
use crate::error::RequestError;
use crate::role::{MACHINE, NoRole, PREFIX_KEY, Proof, Role};
use crate::secret::SecretName;
use latchkey_client::protocol::words::{ANNOTATE_WITH, NAMES_NO};

/// Annotations that Azure's workload identity webhook reads too.
const CLIENT_KEY: &str = "azure.workload.identity/client-id";
pub(super) const TENANT_KEY: &str = "azure.workload.identity/tenant-id";

pub(super) const VAULT_KEY: &str = "latchkey.dev/azure-vault";

/// The length of a version's id, in hexadecimal digits.
const VERSION_LENGTH: usize = 32;

/// The role that the annotations ask for at the backend `backends.<name>`.
pub(super) fn of(
    annotations: &Annotations,
    settings: &AzureConfig,
    name: &str,
) -> Result<Role, NoRole> {
    let client = annotations.first(&[CLIENT_KEY])?.ok_or_else(|| {
        annotations.no_role(
            format!(
                "the pod's service account {NAMES_NO} Azure client: \
                 {ANNOTATE_WITH}azure.workload.identity/client-id"
            ),
            format!(
                "the sidecar's configuration {NAMES_NO} Azure client: \
                 set AZURE_CLIENT_ID in the agent's container"
            ),
        )
    })?;
    if !is_client(client) {
        return Err(NoRole::new(format!(
            "{CLIENT_KEY} {client:?} is no client id"
        )));
    }
    let tenant = match annotations.first(&[TENANT_KEY])? {
        Some(tenant) if !is_tenant(tenant) => {
            return Err(NoRole::new(format!("{TENANT_KEY} {tenant:?} is no tenant")));
        }
        Some(tenant) => tenant.to_ascii_lowercase(),
        None => settings.tenant.clone().ok_or_else(|| {
            annotations.no_role(
                format!(
                    "the pod's service account {NAMES_NO} Azure tenant: \
                     {ANNOTATE_WITH}{TENANT_KEY}, or set backends.{name}.tenant"
                ),
                format!(
                    "the sidecar's configuration {NAMES_NO} Azure tenant: \
                     set AZURE_TENANT_ID in the agent's container, or backends.{name}.tenant"
                ),
            )
        })?,
    };
    let vault = match annotations.first(&[VAULT_KEY])? {
        Some(vault) => {
            let url = vault_url(vault)
                .ok_or_else(|| NoRole::new(format!("{VAULT_KEY} {vault:?} is no URL of a vault")))?;
            if suffix_of(&url, &settings.vault_suffixes).is_none() {
                return Err(NoRole::new(format!(
                    "{VAULT_KEY} {vault:?} is no name before one of backends.{name}.vault_suffixes"
                )));
            }
            url
        }
        None => settings.vault_url.clone().ok_or_else(|| {
            annotations.no_role(
                format!(
                    "the pod's service account {NAMES_NO} key vault: \
                     {ANNOTATE_WITH}{VAULT_KEY}, or set backends.{name}.vault_url"
                ),
                format!(
                    "the sidecar's configuration {NAMES_NO} key vault: set backends.{name}.vault_url"
                ),
            )
        })?,
    };
    let prefix = annotations
        .first(&[PREFIX_KEY])?
        .unwrap_or(&settings.prefix);
    if !AZURE.takes_prefix(prefix) {
        return Err(NoRole::new(format!(
            "{PREFIX_KEY} {prefix:?} is no beginning of an Azure secret's name"
        )));
    }
    Ok(Role {
        name: client.to_ascii_lowercase().into(),
        proof: Proof::Token(settings.audience.as_str().into()),
        prefix: prefix.into(),
        place: vault.into(),
        via: Some(tenant.into()),
    })
}

/// The role of a principal of the machine at the backend `backends.<name>`: one of the machine's managed identities, or
/// whatever its own credentials are.
///
/// # Errors
///
/// If the name is not a client id, or no vault is configured.
pub(super) fn of_machine(
    role: &LocalRole,
    settings: &AzureConfig,
    name: &str,
) -> Result<Role, NoRole> {
    let client = match role {
        LocalRole::None => return Err(NoRole::NONE_WRITTEN),
        LocalRole::Machine => MACHINE.to_owned(),
        LocalRole::Named(client) if is_client(client) => client.to_ascii_lowercase(),
        LocalRole::Named(other) => {
            return Err(NoRole::new(format!(
                "{other:?} is no client id of a managed identity"
            )));
        }
    };
    let vault = settings.vault_url.as_deref().ok_or_else(|| {
        NoRole::new(format!(
            "there is no key vault: set backends.{name}.vault_url"
        ))
    })?;
    Ok(Role {
        name: client.into(),
        proof: Proof::Machine,
        prefix: settings.prefix.as_str().into(),
        place: vault.into(),
        via: None,
    })
}

/// Checks that Key Vault can hold a secret of this name.
pub(super) fn check_name(
    role: &Role,
    name: &SecretName,
    selector: &Selector,
) -> Result<(), RequestError> {
    written(role, name)?;
    if selector.stage.is_some() {
        return Err(RequestError::invalid(
            "Azure's secrets have versions but no stages: ask for a version",
        ));
    }
    let is_version = |id: &str| {
        id.len() == VERSION_LENGTH
            && id
                .bytes()
                .all(|b| b.is_ascii_digit() || (b'a'..=b'f').contains(&b))
    };
    match &selector.version {
        Some(id) if !is_version(id) => Err(RequestError::invalid(
            "an Azure version id has 32 hexadecimal digits, in small letters",
        )),
        _ => Ok(()),
    }
}

/// Returns the secret's name at the vault. The SDK puts it into the request's path as is, so nothing else may get
/// there.
pub(super) fn written(role: &Role, name: &SecretName) -> Result<String, RequestError> {
    AZURE
        .write(&role.prefix, name)
        .map_err(RequestError::invalid)
}

/// Returns the name by which an application asks for what the vault calls `written`, if there is one.
pub(super) fn read(role: &Role, written: &str) -> Option<SecretName> {
    AZURE.read(&role.prefix, &written.to_ascii_lowercase())
}

#[cfg(test)]
mod tests {
    use super::*;

    const CLIENT: &str = "5d2e1f43-7c5e-4f5b-9d7b-0123456789ab";
    const TENANT: &str = "72f988bf-86f1-41af-91ab-0123456789ab";
    const VAULT: &str = "https://v1.vault.azure.net";

    fn settings() -> AzureConfig {
        AzureConfig {
            tenant: Some(TENANT.to_owned()),
            vault_url: Some(VAULT.to_owned()),
            ..AzureConfig::default()
        }
    }

    fn role(account: &[(&str, &str)]) -> Result<Role, NoRole> {
        of(&Annotations::of(account, &[]), &settings(), "azure")
    }

    fn with(key: &str, value: &str) -> Result<Role, NoRole> {
        role(&[(CLIENT_KEY, CLIENT), (key, value)])
    }

    #[test]
    fn the_client_of_workload_identity_is_used_as_it_is() {
        let role = role(&[(CLIENT_KEY, &CLIENT.to_uppercase())]).expect("a role");
        assert_eq!(&*role.name, CLIENT);
        assert_eq!(
            role.proof,
            Proof::Token("api://AzureADTokenExchange".into())
        );
        assert_eq!(&*role.place, VAULT);
        assert_eq!(role.via.as_deref(), Some(TENANT));
    }

    #[test]
    fn a_principal_of_the_machine_is_one_of_its_identities_or_the_machine_itself() {
        let of = |role: &LocalRole| of_machine(role, &settings(), "azure");
        let own = of(&LocalRole::Machine).expect("a role");
        assert_eq!(
            (&*own.name, &own.proof, &*own.place),
            ("machine", &Proof::Machine, VAULT)
        );
        let named = of(&LocalRole::Named(CLIENT.to_uppercase())).expect("a role");
        assert_eq!(&*named.name, CLIENT);
        assert!(of(&LocalRole::Named("arn:aws:iam::111122223333:role/x".into())).is_err());
        let none = of_machine(&LocalRole::Machine, &AzureConfig::default(), "vaults");
        let none = none.expect_err("no vault").to_string();
        assert!(none.contains("backends.vaults.vault_url"), "{none}");
    }

    #[test]
    fn annotations_go_before_the_nodes_defaults() {
        let role = role(&[
            (CLIENT_KEY, CLIENT),
            (TENANT_KEY, "Contoso.onmicrosoft.com"),
            (VAULT_KEY, "v2.vault.azure.net"),
            (PREFIX_KEY, "team/"),
        ])
        .expect("a role");
        assert_eq!(role.via.as_deref(), Some("contoso.onmicrosoft.com"));
        assert_eq!(&*role.place, "https://v2.vault.azure.net");
        assert_eq!(&*role.prefix, "team/");
    }

    #[test]
    fn without_a_client_a_tenant_or_a_vault_there_is_no_role_and_what_is_missing_is_named() {
        let bare = AzureConfig::default();
        let of = |account: &[(&str, &str)]| {
            let none = of(&Annotations::of(account, &[]), &bare, "vaults").expect_err("no role");
            none.to_string()
        };
        assert!(of(&[]).contains(CLIENT_KEY));
        let missing = of(&[(CLIENT_KEY, CLIENT)]);
        assert!(missing.contains(TENANT_KEY) && missing.contains("backends.vaults.tenant"));
        let missing = of(&[(CLIENT_KEY, CLIENT), (TENANT_KEY, TENANT)]);
        assert!(missing.contains(VAULT_KEY) && missing.contains("backends.vaults.vault_url"));
    }

    #[test]
    fn what_is_wrong_in_an_annotation_is_no_role() {
        for (key, wrong) in [
            (CLIENT_KEY, "test-app"),
            (CLIENT_KEY, "5d2e1f437c5e4f5b9d7b0123456789ab"),
            (TENANT_KEY, "../common"),
            (TENANT_KEY, "common"),
            (VAULT_KEY, "http://v1.vault.azure.net"),
            (VAULT_KEY, "https://v1.vault.azure.net.evil.example"),
            (VAULT_KEY, "https://evilvault.azure.net"),
            (VAULT_KEY, "https://v1.vault.usgovcloudapi.net"),
            (VAULT_KEY, "https://user@v1.vault.azure.net"),
            (PREFIX_KEY, "../"),
            (PREFIX_KEY, "a_b"),
            (PREFIX_KEY, "a?b"),
        ] {
            let none = with(key, wrong).expect_err(wrong).to_string();
            assert!(none.contains(key), "{none}");
        }
    }

    #[test]
    fn only_names_that_key_vault_has_reach_it() {
        let mut role = with(PREFIX_KEY, "team/").expect("a role");
        let check = |role: &Role, name: &str, selector: &Selector| {
            let name = SecretName::parse(name).expect("a name");
            check_name(role, &name, selector).map_err(|error| error.message.into_owned())
        };
        let any = Selector::default();
        assert_eq!(check(&role, "Prod/Database-Password", &any), Ok(()));
        let name = SecretName::parse("Prod/Database-Password").expect("a name");
        assert_eq!(
            written(&role, &name).ok().as_deref(),
            Some("team--prod--database-password")
        );
        for wrong in [
            "a_b", "a.b", "a--b", "-a", "a/b-", "ä", "a?b", "a%2fb", "a b", "a:b",
        ] {
            assert!(check(&role, wrong, &any).is_err(), "{wrong}");
        }
        // With the six of the prefix there are 127.
        assert!(check(&role, &"n".repeat(121), &any).is_ok());
        assert!(check(&role, &"n".repeat(122), &any).is_err());
        role.prefix = "".into();
        assert!(check(&role, &"n".repeat(127), &any).is_ok());
        let version = |id: &str| Selector {
            version: Some(id.into()),
            stage: None,
        };
        assert!(check(&role, "a", &version(&"0a".repeat(16))).is_ok());
        for wrong in [
            "",
            "1",
            &"0A".repeat(16),
            &"0g".repeat(16),
            &"0a".repeat(17),
            "latest",
        ] {
            assert!(check(&role, "a", &version(wrong)).is_err(), "{wrong}");
        }
        let staged = Selector {
            version: None,
            stage: Some("AWSPREVIOUS".into()),
        };
        assert!(check(&role, "a", &staged).is_err());
    }

    #[test]
    fn a_listed_name_is_shown_as_applications_write_it() {
        let role = with(PREFIX_KEY, "team/").expect("a role");
        let shown = |written| read(&role, written).map(|name| name.to_string());
        assert_eq!(shown("Team--Prod--DB").as_deref(), Some("prod/db"));
        for hidden in ["prod--db", "team--", "team---a", "team--a---b", "team"] {
            assert_eq!(shown(hidden), None, "{hidden}");
        }
    }
}
