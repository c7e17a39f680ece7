//! The backend `azure` as an operator meets it.

use super::*;

/// A valid value for every key, none of them the default.
const RIGHT: &[(&str, &str)] = &[
    ("audience", "\"api://AzureADTokenExchangeUSGov\""),
    ("authority", "\"https://login.microsoftonline.us/\""),
    ("prefix", "\"team-a/\""),
    ("tenant", "\"5d2e1f43-7c5e-4f5b-9d7b-0123456789ab\""),
    ("timeout", "\"2s\""),
    ("vault_suffixes", "[\".vault.local.azurestack.external\"]"),
    ("vault_url", "\"https://v1.vault.azure.net\""),
];

/// Values that each key must refuse.
const WRONG: &[(&str, &[&str])] = &[
    (
        "audience",
        &["\"\"", "\"a b\"", "\"https://kubernetes.default.svc\"", "1"],
    ),
    (
        "authority",
        &[
            "\"http://login.example.com\"",
            "\"login.microsoftonline.com\"",
            "\"https://login.example.com/tenant\"",
            "\"https://user@login.example.com\"",
            "1",
        ],
    ),
    ("prefix", &["\"a_b\"", "\"../\"", "\"/a\"", "\"a//b\"", "1"]),
    (
        "tenant",
        &["\"common\"", "\"a/b\"", "\"..\"", "\"a b\"", "1"],
    ),
    ("timeout", &["\"0s\"", "\"61s\"", "3"]),
    (
        "vault_suffixes",
        &[
            "[]",
            "\"\"",
            "[\"\"]",
            "[\"vault.azure.net\"]",
            "[\".net\"]",
            "[\".\"]",
            "[\".a.b\", \".a.b\"]",
            "[1]",
        ],
    ),
    (
        "vault_url",
        &[
            "\"v1\"",
            "\"http://v1.vault.azure.net\"",
            "\"https://v1.vault.azure.net/secrets\"",
            "\"https://user@v1.vault.azure.net\"",
            "\"https://a.b.vault.azure.net\"",
            "\"https://v1.vault.usgovcloudapi.net\"",
            "1",
        ],
    ),
];

fn with(lines: &str) -> Start {
    with_file(&format!(
        "default_backend = \"azure\"\n[backends.azure]\n{lines}"
    ))
}

fn azure(start: &Start) -> AzureConfig {
    match &start.config().backends["azure"] {
        BackendConfig::Azure(azure) => azure.clone(),
        other => panic!("{other:?}"),
    }
}

#[test]
fn every_key_has_a_default_and_can_be_set() {
    let default = azure(&with(""));
    assert_eq!(default, AzureConfig::default());
    assert_eq!(default.authority, "https://login.microsoftonline.com");
    assert_eq!(default.audience, "api://AzureADTokenExchange");
    assert_eq!(default.vault_suffixes, [".vault.azure.net"]);
    for (key, value) in RIGHT {
        let from_file = azure(&with(&format!("{key} = {value}")));
        assert_ne!(from_file, default, "{key} = {value} changes nothing");
        let variable = variable(&format!("backends.azure.{key}"));
        let from_env = azure(&with("").and_env(&variable, value.trim_matches('"')));
        assert_eq!(from_env, from_file, "{key}");
    }
    let written: Vec<String> = RIGHT
        .iter()
        .map(|(key, _)| format!("backends.azure.{key}"))
        .collect();
    let known: Vec<String> = known("[backends.azure]")
        .into_iter()
        .filter(|key| key.starts_with("backends.azure.") && !key.ends_with(".type"))
        .collect();
    assert_eq!(written, known);
}

#[test]
fn every_key_has_values_that_it_refuses_by_its_name() {
    assert_eq!(WRONG.len(), RIGHT.len());
    for (key, values) in WRONG {
        for value in *values {
            let faults = with(&format!("{key} = {value}")).faults();
            assert_eq!(faults.len(), 1, "{key} = {value}: {faults:?}");
            assert!(
                faults[0].starts_with(&format!("config.toml:3:1: backends.azure.{key} ")),
                "{faults:?}"
            );
        }
    }
}

#[test]
fn the_hosts_of_vaults_end_as_in_the_cloud_of_the_authority() {
    for (authority, suffix) in [
        (
            "https://login.microsoftonline.us",
            ".vault.usgovcloudapi.net",
        ),
        (
            "https://login.partner.microsoftonline.cn/",
            ".vault.azure.cn",
        ),
        ("https://login.chinacloudapi.cn", ".vault.azure.cn"),
        ("https://login.example.com", ".vault.azure.net"),
    ] {
        let found = azure(&with(&format!("authority = \"{authority}\"")));
        assert_eq!(found.vault_suffixes, [suffix], "{authority}");
    }
    // The variable of Azure's own SDK counts if the file says nothing.
    let environment =
        |lines| with(lines).and_env("AZURE_AUTHORITY_HOST", "https://login.microsoftonline.us/");
    let found = azure(&environment(""));
    assert_eq!(found.authority, "https://login.microsoftonline.us");
    assert_eq!(found.vault_suffixes, [".vault.usgovcloudapi.net"]);
    let found = azure(&environment(
        "authority = \"https://login.microsoftonline.com\"",
    ));
    assert_eq!(found.vault_suffixes, [".vault.azure.net"]);
}
