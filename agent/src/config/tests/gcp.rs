//! The backend `gcp`.

use super::*;

const PROVIDER: &str =
    "//iam.googleapis.com/projects/7/locations/global/workloadIdentityPools/p/providers/east";

/// A valid file with only a Google Cloud backend, and `more` in its section.
fn gcp_with(more: &str) -> Start {
    with_file(&format!(
        "default_backend = \"gcp\"\n[backends.gcp]\nproject = \"acme-prod\"\nprovider = \"{PROVIDER}\"\n{more}"
    ))
}

fn settings(start: &Start) -> GcpConfig {
    match start.config().backends["gcp"].clone() {
        BackendConfig::Gcp(gcp) => gcp,
        other => panic!("{other:?}"),
    }
}

#[test]
fn project_and_provider_are_enough() {
    let expected = GcpConfig {
        project: "acme-prod".to_owned(),
        provider: Some(GcpProvider::Federation(PROVIDER.to_owned())),
        ..GcpConfig::default()
    };
    assert_eq!(settings(&gcp_with("")), expected);
    let gke = with_file(
        "default_backend = \"gcp\"\n[backends.gcp]\nprovider = \"acme-prod.svc.id.goog\"",
    )
    .and_env("GOOGLE_CLOUD_PROJECT", "acme-test");
    assert_eq!(settings(&gke).project, "acme-test");
    assert_eq!(
        settings(&gke).provider,
        Some(GcpProvider::Gke("acme-prod.svc.id.goog".to_owned()))
    );
}

#[test]
fn what_is_missing_is_named_in_a_line_each() {
    let faults = with_file("default_backend = \"gcp\"\n[backends.gcp]").faults();
    assert_eq!(
        faults,
        [
            "config.toml:2:11: backends.gcp.project is empty and GOOGLE_CLOUD_PROJECT is not set; write the id of the \
             project whose secrets are read, such as \"acme-prod\"",
            "config.toml:2:11: backends.gcp.provider is empty; write PROJECT.svc.id.goog on GKE, elsewhere \
             //iam.googleapis.com/projects/NUMBER/locations/global/workloadIdentityPools/POOL/providers/PROVIDER",
        ]
    );
}

#[test]
fn every_key_can_be_set_by_file_environment_and_flag_and_refuses_what_is_wrong() {
    for (key, right, wrong) in [
        (
            "endpoint",
            "https://secretmanager.example.com",
            &["example.com", "https://u:p@x", "ftp://x"][..],
        ),
        (
            "iam_endpoint",
            "https://iam.example.com",
            &["iam.example.com/v1"],
        ),
        ("prefix", "team/", &["/team", "a//b", "a.b", "a b", "a:b"]),
        (
            "project",
            "acme-test",
            &["Acme", "a/b", "../x", "-a", "a:b:c"],
        ),
        (
            "provider",
            "acme-test.svc.id.goog",
            &[
                "acme",
                ".svc.id.goog",
                "a/b.svc.id.goog",
                "iam.googleapis.com/projects/7/locations/global/workloadIdentityPools/p/providers/east",
                "//iam.googleapis.com/projects/7/locations/global/workloadIdentityPools/p",
                "//iam.googleapis.com/projects/7/locations/global/workloadIdentityPools/p/providers/",
                "//evil.example/projects/7/locations/global/workloadIdentityPools/p/providers/east",
            ],
        ),
        ("sts_endpoint", "http://127.0.0.1:1", &["127.0.0.1:1"]),
        ("timeout", "2s", &["5ms", "61s", "soon"]),
    ] {
        let full = format!("backends.gcp.{key}");
        let by_flag = gcp_with("").and_flag(&full, right).config();
        assert_ne!(by_flag, gcp_with("").config(), "{key} changes nothing");
        assert_eq!(
            gcp_with("").and_env(&variable(&full), right).config(),
            by_flag,
            "{key}"
        );
        for wrong in wrong {
            let faults = gcp_with("").and_flag(&full, wrong).faults();
            assert_eq!(faults.len(), 1, "{faults:?}");
            assert!(faults[0].contains(&full), "{faults:?}");
        }
    }
    let late = gcp_with("timeout = \"11s\"").faults();
    assert!(
        late[0].contains("backends.gcp.timeout contradicts limits.request_deadline"),
        "{late:?}"
    );
}
