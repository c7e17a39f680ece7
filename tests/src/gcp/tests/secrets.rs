//! Who reads which secret.

use super::*;

#[tokio::test]
async fn a_secret_is_read_by_whom_a_binding_admits_where_its_condition_holds() {
    let cloud = Cloud::start().await;
    for name in ["test--db", "prod--db", "other"] {
        cloud.gcp.put_secret(name, name.as_bytes());
    }
    let own = cloud.own().await;
    let denied = (403, "PERMISSION_DENIED");
    assert_eq!(
        refusal(&cloud.read(Some(&own), "test--db", "latest").await),
        denied
    );
    let condition = format!("resource.name.startsWith('projects/{NUMBER}/secrets/test--')");
    cloud
        .gcp
        .bind_project(ACCESSOR, &cloud.principal(), Some(&condition));
    let read = cloud.read(Some(&own), "test--db", "latest").await;
    assert_eq!(value(&read), b"test--db");
    assert_eq!(
        read.1["name"],
        format!("projects/{NUMBER}/secrets/test--db/versions/1")
    );
    assert_eq!(
        read.1["payload"]["dataCrc32c"],
        crc32c::crc32c(b"test--db").to_string()
    );
    for name in ["prod--db", "other", "nothing"] {
        assert_eq!(
            refusal(&cloud.read(Some(&own), name, "latest").await),
            denied,
            "{name}"
        );
    }
    assert_eq!(
        refusal(&cloud.read(Some(&own), "test--none", "latest").await),
        (404, "NOT_FOUND")
    );
    cloud.gcp.bind_secret("other", ACCESSOR, &cloud.principal());
    assert_eq!(value(&cloud.read(Some(&own), "other", "1").await), b"other");
    cloud.gcp.unbind(&cloud.principal());
    assert_eq!(refusal(&cloud.read(Some(&own), "other", "1").await), denied);
}

#[tokio::test]
async fn without_a_bearer_of_now_nothing_is_read() {
    let cloud = Cloud::start().await;
    cloud.gcp.put_secret("db", b"x");
    cloud.gcp.bind_secret("db", ACCESSOR, &cloud.principal());
    let own = cloud.own().await;
    assert_eq!(cloud.read(Some(&own), "db", "latest").await.0, 200);
    let refused = (401, "UNAUTHENTICATED");
    assert_eq!(refusal(&cloud.read(None, "db", "latest").await), refused);
    assert_eq!(
        refusal(&cloud.read(Some("ya29.x"), "db", "latest").await),
        refused
    );
    cloud.gcp.set_clock_offset(SignedDuration::from_secs(3600));
    assert_eq!(
        refusal(&cloud.read(Some(&own), "db", "latest").await),
        refused
    );
    cloud.gcp.set_clock_offset(SignedDuration::ZERO);
    assert_eq!(cloud.gcp.expire_bearers(), 1);
    assert_eq!(
        refusal(&cloud.read(Some(&own), "db", "latest").await),
        refused
    );
}

#[tokio::test]
async fn versions_are_numbers_and_only_enabled_ones_are_read() {
    let cloud = Cloud::start().await;
    cloud.gcp.put_secret("db", b"first");
    assert_eq!(cloud.gcp.put_secret("db", b"second"), "2");
    cloud.gcp.bind_secret("db", ACCESSOR, &cloud.principal());
    let own = cloud.own().await;
    let read = async |version: &str| cloud.read(Some(&own), "db", version).await;
    assert_eq!(value(&read("latest").await), b"second");
    assert_eq!(value(&read("1").await), b"first");
    assert_eq!(refusal(&read("3").await), (404, "NOT_FOUND"));
    assert_eq!(refusal(&read("first").await), (400, "INVALID_ARGUMENT"));
    assert!(
        cloud
            .gcp
            .set_version_state("db", "2", VersionState::Disabled)
    );
    assert_eq!(refusal(&read("latest").await), (400, "FAILED_PRECONDITION"));
    assert!(
        cloud
            .gcp
            .set_version_state("db", "1", VersionState::Destroyed)
    );
    assert_eq!(refusal(&read("1").await), (400, "FAILED_PRECONDITION"));
}

#[tokio::test]
async fn a_list_is_the_projects_and_comes_in_pages() {
    let cloud = Cloud::start().await;
    for name in ["test--a", "test--b", "prod--test--c"] {
        cloud.gcp.put_secret(name, b"x");
    }
    let own = cloud.own().await;
    let list = async |query: &str| {
        let path = format!("/v1/projects/{PROJECT}/secrets?{query}");
        cloud
            .ask(Method::GET, &path, Some(&own), String::new())
            .await
    };
    let names = |(status, answer): Answer| -> Vec<String> {
        assert_eq!(status, 200, "{answer}");
        let secrets = answer["secrets"].as_array().expect("secrets").clone();
        let of = |secret: &Value| {
            secret["name"]
                .as_str()
                .map(|name| name.rsplit('/').next().unwrap_or_default().to_owned())
        };
        secrets.iter().filter_map(of).collect()
    };
    assert_eq!(refusal(&list("").await), (403, "PERMISSION_DENIED"));
    // A condition on secrets' names does not hold for the project.
    let viewer = "roles/secretmanager.viewer";
    let condition = format!("resource.name.startsWith('projects/{NUMBER}/secrets/')");
    cloud
        .gcp
        .bind_project(viewer, &cloud.principal(), Some(&condition));
    assert_eq!(refusal(&list("").await), (403, "PERMISSION_DENIED"));
    cloud.gcp.bind_project(viewer, &cloud.principal(), None);
    assert_eq!(
        names(list("").await),
        ["prod--test--c", "test--b", "test--a"]
    );
    // Like the real one, it finds the text anywhere in a name.
    assert_eq!(
        names(list("filter=name%3Atest--&pageSize=2").await),
        ["prod--test--c", "test--b"]
    );
    let first = list("pageSize=2").await;
    let next = first.1["nextPageToken"]
        .as_str()
        .expect("a next page")
        .to_owned();
    assert_eq!(
        names(list(&format!("pageSize=2&pageToken={next}")).await),
        ["test--a"]
    );
    assert_eq!(
        refusal(&list("pageToken=guess").await),
        (400, "INVALID_ARGUMENT")
    );
    assert_eq!(
        refusal(&list("filter=labels.a%3Ab").await),
        (400, "INVALID_ARGUMENT")
    );
}

#[tokio::test]
async fn a_path_that_leads_elsewhere_leads_nowhere() {
    let cloud = Cloud::start().await;
    cloud.gcp.put_secret("db", b"x");
    cloud.gcp.bind_project(ACCESSOR, &cloud.principal(), None);
    let own = cloud.own().await;
    for path in [
        "/v1/projects/acme-prod/versions/latest:access",
        "/v1/projects/acme-prod/secrets/../secrets/db/versions/latest:access",
        "/v1/projects/acme-prod/secrets/%2e%2e/versions/latest:access",
        "/v1/projects/acme-prod/secrets/a%2fdb/versions/latest:access",
        "/v1/projects/acme-prod/secrets/db/versions/latest",
        "/v1/projects/acme-prod/secrets/db/versions/latest:destroy",
        "/v1/projects/nobodys/secrets/db/versions/latest:access",
    ] {
        let (status, answer) = cloud
            .ask(Method::GET, path, Some(&own), String::new())
            .await;
        assert!(
            [400, 403, 404].contains(&status),
            "{path}: {status} {answer}"
        );
    }
    let (status, _) = cloud
        .ask(
            Method::POST,
            "/v1/projects/acme-prod/secrets/db/versions/1:access",
            Some(&own),
            String::new(),
        )
        .await;
    assert_eq!(
        status, 404,
        "nothing can be changed, nor asked for in another way"
    );
}
