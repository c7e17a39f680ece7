//! Whose token is accepted, and which service account it may act as.

use super::*;

#[tokio::test]
async fn google_believes_the_clusters_tokens_and_says_whose_they_are() {
    let cloud = Cloud::start().await;
    let (status, answer) = cloud.exchange(&cloud.provider, &cloud.token()).await;
    assert_eq!(
        (status, &answer["token_type"], &answer["expires_in"]),
        (200, &"Bearer".into(), &3600.into())
    );
    let [call] = cloud.gcp.calls().try_into().expect("one call");
    assert_eq!(
        (call.operation, call.principal),
        (Operation::ExchangeToken, Some(cloud.principal()))
    );
    assert_eq!(
        call.token.expect("a token").pod,
        Some(("app-1".to_owned(), "0b0e".to_owned()))
    );
}

#[tokio::test]
async fn google_believes_no_token_that_is_forged_foreign_or_out_of_date() {
    let cloud = Cloud::start().await;
    let claims = cloud.claims();
    let sign = |member: &str, value: Value| {
        let mut claims = serde_json::to_value(&claims).expect("claims are JSON");
        claims[member] = value;
        cloud.issuer.sign(&claims)
    };
    let now = Timestamp::now().as_second();
    for (what, token) in [
        ("forged", cloud.issuer.impostor().sign(&claims)),
        (
            "of an unknown key",
            Issuer::new(cloud.issuer.url()).sign(&claims),
        ),
        ("no JWT", "what.ever".to_owned()),
        (
            "of another issuer",
            sign("iss", "https://other.test".into()),
        ),
        (
            "for somebody else",
            sign("aud", json!(["sts.amazonaws.com"])),
        ),
        ("expired", sign("exp", (now - 1).into())),
        ("not valid yet", sign("nbf", (now + 600).into())),
        ("without a subject", sign("sub", "".into())),
        (
            "with a subject that is too long",
            sign("sub", "s".repeat(128).into()),
        ),
    ] {
        let answer = cloud.exchange(&cloud.provider, &token).await;
        assert_eq!(refusal(&answer), (400, "invalid_grant"), "{what}");
    }
    let other = cloud.gcp.provider_name("clusters", "west");
    let answer = cloud.exchange(&other, &cloud.token()).await;
    assert_eq!(refusal(&answer), (400, "invalid_target"));
    let answer = cloud
        .ask(
            Method::POST,
            "/v1/token",
            None,
            "grant_type=password".to_owned(),
        )
        .await;
    assert_eq!(refusal(&answer), (400, "invalid_request"));
    assert!(cloud.gcp.bearers().is_empty());
}

#[tokio::test]
async fn a_provider_may_list_audiences_and_set_a_condition() {
    let cloud = Cloud::start().await;
    let provider = |audiences: &[&str], condition: &str| ProviderSpec {
        allowed_audiences: audiences.iter().map(|one| (*one).to_owned()).collect(),
        condition: Some(condition.to_owned()),
        ..ProviderSpec::new(&cloud.provider, cloud.issuer.url(), cloud.issuer.jwks())
    };
    let of_test = "assertion['kubernetes.io']['namespace'] == 'test'";
    for (audiences, condition, expected) in [
        (&[][..], of_test, (200, "")),
        (&["other"], of_test, (400, "invalid_grant")),
        (
            &[],
            "attribute.namespace == 'prod'",
            (401, "unauthorized_client"),
        ),
        (
            &[],
            "google.subject.startsWith('system:serviceaccount:test:')",
            (200, ""),
        ),
    ] {
        cloud
            .gcp
            .add_provider(provider(audiences, condition))
            .expect("known");
        let answer = cloud.exchange(&cloud.provider, &cloud.token()).await;
        assert_eq!(refusal(&answer), expected, "{audiences:?} {condition}");
    }
    assert!(
        cloud
            .gcp
            .add_provider(provider(&[], "true || true"))
            .is_err()
    );
}

#[tokio::test]
async fn gkes_own_pool_takes_tokens_of_its_clusters_only() {
    let cloud = Cloud::start().await;
    let pool = cloud
        .gcp
        .add_cluster(cloud.issuer.url(), &cloud.issuer.jwks());
    let claims = Claims {
        aud: vec![pool.clone()],
        ..cloud.claims()
    };
    let token = cloud.issuer.sign(&claims);
    let audience = format!("identitynamespace:{pool}:{}", cloud.issuer.url());
    assert_eq!(cloud.exchange(&audience, &token).await.0, 200);
    let principal = cloud.gcp.calls()[0].principal.clone();
    assert_eq!(
        principal.expect("a principal"),
        format!(
            "principal://iam.googleapis.com/projects/{NUMBER}/locations/global/workloadIdentityPools/{pool}/subject/ns/test/sa/app"
        )
    );
    let elsewhere = format!("identitynamespace:{pool}:https://other.test");
    assert_eq!(
        refusal(&cloud.exchange(&elsewhere, &token).await),
        (400, "invalid_target")
    );
    // A token for the provider is not one for the pool.
    assert_eq!(
        refusal(&cloud.exchange(&audience, &cloud.token()).await),
        (400, "invalid_grant")
    );
}

#[tokio::test]
async fn a_service_account_is_taken_on_only_by_whom_it_admits() {
    let cloud = Cloud::start().await;
    let own = cloud.own().await;
    let body =
        json!({"scope": ["https://www.googleapis.com/auth/cloud-platform"], "lifetime": "900s"});
    let denied = (403, "PERMISSION_DENIED");
    assert_eq!(
        refusal(&cloud.impersonate(Some(&own), &cloud.account, &body).await),
        denied
    );
    let user = "roles/iam.workloadIdentityUser";
    cloud
        .gcp
        .bind_account(&cloud.account, user, "principal://iam.googleapis.com/other");
    assert_eq!(
        refusal(&cloud.impersonate(Some(&own), &cloud.account, &body).await),
        denied
    );
    cloud
        .gcp
        .bind_account(&cloud.account, user, &cloud.principal());
    let (status, answer) = cloud.impersonate(Some(&own), &cloud.account, &body).await;
    assert_eq!(status, 200, "{answer}");
    let expires: Timestamp = answer["expireTime"]
        .as_str()
        .expect("a time")
        .parse()
        .expect("a time");
    assert!((898..=900).contains(&(expires.as_second() - Timestamp::now().as_second())));
    for (bearer, account, body, expected) in [
        (
            None,
            &*cloud.account,
            body.clone(),
            (401, "UNAUTHENTICATED"),
        ),
        (
            Some("ya29.guessed"),
            &*cloud.account,
            body.clone(),
            (401, "UNAUTHENTICATED"),
        ),
        (
            Some(&*own),
            "nobody@x.iam.gserviceaccount.com",
            body.clone(),
            denied,
        ),
        (
            Some(&*own),
            &*cloud.account,
            json!({"scope": []}),
            (400, "INVALID_ARGUMENT"),
        ),
        (
            Some(&*own),
            &*cloud.account,
            json!({"scope": ["x"], "lifetime": "3601s"}),
            (400, "INVALID_ARGUMENT"),
        ),
        (
            Some(&*own),
            &*cloud.account,
            json!({"scope": ["x"], "who": "me"}),
            (400, "INVALID_ARGUMENT"),
        ),
    ] {
        let answer = cloud.impersonate(bearer, account, &body).await;
        assert_eq!(refusal(&answer), expected, "{account} {body}");
    }
    cloud.gcp.disable_account(&cloud.account);
    let answer = cloud.impersonate(Some(&own), &cloud.account, &body).await;
    assert_eq!(refusal(&answer), (400, "FAILED_PRECONDITION"));
}

#[tokio::test]
async fn each_delegate_must_be_let_through_by_the_next() {
    let cloud = Cloud::start().await;
    let own = cloud.own().await;
    let between = cloud.gcp.create_account("between");
    let resource = format!("projects/-/serviceAccounts/{between}");
    let body = json!({"scope": ["x"], "delegates": [resource]});
    let denied = (403, "PERMISSION_DENIED");
    let creator = "roles/iam.serviceAccountTokenCreator";
    let ask = async || cloud.impersonate(Some(&own), &cloud.account, &body).await;
    cloud
        .gcp
        .bind_account(&between, creator, &cloud.principal());
    assert_eq!(refusal(&ask().await), denied);
    cloud.gcp.bind_account(
        &cloud.account,
        creator,
        &format!("serviceAccount:{between}"),
    );
    assert_eq!(ask().await.0, 200);
    let direct = cloud
        .impersonate(Some(&own), &cloud.account, &json!({"scope": ["x"]}))
        .await;
    assert_eq!(refusal(&direct), denied);
}
