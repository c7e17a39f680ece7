//! STS: which token gets a session, and how long the session lasts.

use super::*;

#[tokio::test]
async fn aws_gives_a_session_to_the_trusted_service_account() {
    let cloud = Cloud::start().await;
    let client = sts::Client::from_conf(
        sts::Config::builder()
            .behavior_version(BehaviorVersion::latest())
            .region(Region::new(REGION))
            .endpoint_url(cloud.aws.endpoint())
            .build(),
    );
    let before = jiff::Timestamp::now().as_second();
    let answer = client
        .assume_role_with_web_identity()
        .role_arn(&cloud.role)
        .role_session_name("pod.test.app")
        .web_identity_token(cloud.token())
        .duration_seconds(900)
        .send()
        .await
        .expect("a session");
    assert_eq!(
        answer.subject_from_web_identity_token(),
        Some("system:serviceaccount:test:app")
    );
    assert_eq!(answer.audience(), Some(AUDIENCE));
    let user = answer.assumed_role_user().expect("a user");
    assert_eq!(
        user.arn(),
        "arn:aws:sts::111122223333:assumed-role/reader/pod.test.app"
    );
    assert!(user.assumed_role_id().starts_with("AROA"));
    assert!(user.assumed_role_id().ends_with(":pod.test.app"));
    let session = answer.credentials().expect("credentials");
    assert!(session.access_key_id().starts_with("ASIA"));
    let seconds = session.expiration().secs() - before;
    assert!((899..=902).contains(&seconds), "{seconds}");

    let [call] = cloud.aws.calls().try_into().expect("one call");
    assert!(call.succeeded());
    assert_eq!(call.operation, Operation::AssumeRoleWithWebIdentity);
    assert_eq!(call.session_name.as_deref(), Some("pod.test.app"));
    let token = call.token.expect("a token was seen");
    assert_eq!(token.sub, "system:serviceaccount:test:app");
    assert_eq!(token.aud, [AUDIENCE]);
    assert_eq!(token.pod, Some(("app-1".to_owned(), "0b0e".to_owned())));
}

#[tokio::test]
async fn aws_believes_no_token_that_is_forged_foreign_or_out_of_date() {
    let cloud = Cloud::start().await;
    let claims = cloud.claims();
    let sign = |claims: &Value| cloud.issuer.sign(claims);
    let now = jiff::Timestamp::now().as_second();
    let token = cloud.token();
    let unsigned = format!("{}.", token.rsplit_once('.').expect("a JWT").0);
    let stranger = Issuer::new("https://stranger.test");
    for (what, token, expected) in [
        (
            "forged",
            cloud.issuer.impostor().sign(&claims),
            "InvalidIdentityToken: Token signature",
        ),
        (
            "no signature",
            unsigned,
            "InvalidIdentityToken: Token signature",
        ),
        (
            "no JWT",
            "what.ever".to_owned(),
            "InvalidIdentityToken: The ID Token provided is not",
        ),
        (
            "unknown key",
            Issuer::new(cloud.issuer.url()).sign(&claims),
            "InvalidIdentityToken: Couldn't retrieve verification key",
        ),
        (
            "unknown issuer",
            stranger.sign(&altered(&claims, "iss", json!(stranger.url()))),
            "InvalidIdentityToken: No OpenIDConnect provider found in your account for \
             https://stranger.test",
        ),
        (
            "bad audience",
            sign(&altered(
                &claims,
                "aud",
                json!(["https://kubernetes.default.svc"]),
            )),
            "InvalidIdentityToken: Incorrect token audience",
        ),
        (
            "expired",
            sign(&altered(&claims, "exp", json!(now - 1))),
            "ExpiredTokenException: Token expired",
        ),
        (
            "not yet valid",
            sign(&altered(&claims, "nbf", json!(now + 3600))),
            "InvalidIdentityToken: The token is not valid yet",
        ),
        (
            "no expiry",
            sign(&altered(&claims, "exp", Value::Null)),
            "InvalidIdentityToken: Missing a required claim: exp",
        ),
        (
            "another's subject",
            sign(&altered(
                &claims,
                "sub",
                json!("system:serviceaccount:prod:app"),
            )),
            "AccessDenied: Not authorized to perform sts:AssumeRoleWithWebIdentity",
        ),
    ] {
        let error = cloud.assume(&cloud.role, &token).await.expect_err(what);
        assert!(error.starts_with(expected), "{what}: {error}");
    }
    assert_eq!(cloud.aws.count_calls(Call::succeeded), 0);
}

#[tokio::test]
async fn aws_gives_no_session_for_a_role_that_is_missing_or_does_not_trust() {
    let cloud = Cloud::start().await;
    let denied = "AccessDenied: Not authorized to perform sts:AssumeRoleWithWebIdentity";
    let token = cloud.token();
    let missing = cloud.aws.role_arn("missing");
    assert_eq!(cloud.assume(&missing, &token).await, Err(denied.to_owned()));

    // The provider exists in one account, and a role of another account cannot trust it.
    let elsewhere = "arn:aws:iam::999999999999:role/reader";
    assert_eq!(
        code(cloud.assume(elsewhere, &token).await),
        "InvalidIdentityToken"
    );

    let provider = provider_arn("aws", cloud.aws.account(), cloud.issuer.url());
    let others = trust_policy(&provider, "system:serviceaccount:prod:*", AUDIENCE);
    cloud
        .aws
        .set_trust(&cloud.role, &others)
        .expect("good policy");
    assert_eq!(
        cloud.assume(&cloud.role, &token).await,
        Err(denied.to_owned())
    );

    let wildcard = trust_policy(&provider, "system:serviceaccount:test:*", AUDIENCE);
    cloud
        .aws
        .set_trust(&cloud.role, &wildcard)
        .expect("good policy");
    assert!(cloud.assume(&cloud.role, &token).await.is_ok());

    let mut any_subject = wildcard;
    any_subject["Statement"][0]["Condition"] = json!({});
    cloud
        .aws
        .set_trust(&cloud.role, &any_subject)
        .expect("good policy");
    assert!(cloud.assume(&cloud.role, &token).await.is_ok());
    let stranger = provider_arn("aws", cloud.aws.account(), "https://stranger.test");
    any_subject["Statement"][0]["Principal"] = json!({"Federated": stranger});
    cloud
        .aws
        .set_trust(&cloud.role, &any_subject)
        .expect("good policy");
    assert_eq!(
        cloud.assume(&cloud.role, &token).await,
        Err(denied.to_owned())
    );

    let other_audience = trust_policy(&provider, "system:serviceaccount:test:app", "other");
    cloud
        .aws
        .set_trust(&cloud.role, &other_audience)
        .expect("good policy");
    assert_eq!(
        cloud.assume(&cloud.role, &token).await,
        Err(denied.to_owned())
    );
}

#[tokio::test]
async fn aws_checks_the_parameters_of_a_session() {
    let cloud = Cloud::start().await;
    let client = sts::Client::from_conf(
        sts::Config::builder()
            .behavior_version(BehaviorVersion::latest())
            .region(Region::new(REGION))
            .endpoint_url(cloud.aws.endpoint())
            .retry_config(sts::config::retry::RetryConfig::disabled())
            .build(),
    );
    let good = (cloud.role.as_str(), "pod.test.app", 3600);
    for (what, (role, name, seconds), valid) in [
        ("as it should be", good, true),
        ("too short", (good.0, good.1, 899), false),
        ("longer than the role allows", (good.0, good.1, 3601), false),
        ("longer than anything", (good.0, good.1, 43_201), false),
        ("name of one character", (good.0, "a", 900), false),
        (
            "name of 64 characters",
            (good.0, &"n".repeat(64), 900),
            true,
        ),
        (
            "name of 65 characters",
            (good.0, &"n".repeat(65), 900),
            false,
        ),
        (
            "name with a colon",
            (good.0, "system:serviceaccount", 900),
            false,
        ),
        ("no ARN", ("reader-role-of-mine-here", good.1, 900), false),
        (
            "ARN of a user",
            ("arn:aws:iam::111122223333:user/reader", good.1, 900),
            false,
        ),
        (
            "ARN of no account",
            ("arn:aws:iam::1:role/reader-reader", good.1, 900),
            false,
        ),
    ] {
        let asked = client
            .assume_role_with_web_identity()
            .role_arn(role)
            .role_session_name(name)
            .web_identity_token(cloud.token())
            .duration_seconds(seconds);
        let answer = asked.send().await;
        match answer {
            Ok(_) => assert!(valid, "{what}"),
            Err(error) => {
                assert!(!valid, "{what}: {}", said(&error));
                assert_eq!(error.code(), Some("ValidationError"), "{what}");
            }
        }
    }
}

#[tokio::test]
async fn aws_refuses_sessions_that_expired_were_revoked_or_lost_their_role() {
    let cloud = Cloud::start().await;
    cloud
        .aws
        .put_secret(REGION, "test/db", SecretInput::text("hunter2"));

    let session = cloud.session().await;
    assert!(cloud.read(&session, "test/db").await.is_ok());
    assert_eq!(cloud.aws.expire_role_sessions(&cloud.role), 1);
    assert_eq!(
        code(cloud.read(&session, "test/db").await),
        "ExpiredTokenException"
    );

    let session = cloud.session().await;
    cloud.aws.revoke_role_sessions(&cloud.role);
    let error = cloud.read(&session, "test/db").await.expect_err("revoked");
    assert!(
        error.ends_with("with an explicit deny in an identity-based policy"),
        "{error}"
    );
    assert!(error.starts_with("AccessDeniedException"), "{error}");

    let session = cloud.session().await;
    assert!(cloud.read(&session, "test/db").await.is_ok());
    assert!(cloud.aws.delete_role(&cloud.role));
    assert_eq!(
        code(cloud.read(&session, "test/db").await),
        "UnrecognizedClientException"
    );
    cloud.aws.create_role(cloud.spec()).expect("good policies");
    assert_eq!(
        code(cloud.read(&session, "test/db").await),
        "UnrecognizedClientException"
    );
    assert!(cloud.read(&cloud.session().await, "test/db").await.is_ok());
}

#[tokio::test]
async fn aws_sessions_end_by_the_fakes_clock() {
    let cloud = Cloud::start().await;
    cloud
        .aws
        .put_secret(REGION, "test/db", SecretInput::text("hunter2"));
    let brief = RoleSpec {
        sessions_end_after: Some(2),
        ..cloud.spec()
    };
    cloud.aws.create_role(brief).expect("good policies");
    let session = cloud.session().await;
    assert!(cloud.read(&session, "test/db").await.is_ok());
    cloud.aws.set_clock_offset(SignedDuration::from_secs(3));
    assert_eq!(
        code(cloud.read(&session, "test/db").await),
        "ExpiredTokenException"
    );
}

#[tokio::test]
async fn aws_keeps_partitions_apart_and_knows_its_regions() {
    let cloud = Cloud::start().await;
    let provider = provider_arn("aws-us-gov", "444455556666", cloud.issuer.url());
    cloud
        .aws
        .add_oidc_provider_at(&provider, &[AUDIENCE], &cloud.issuer.jwks());
    let role = "arn:aws-us-gov:iam::444455556666:role/reader";
    let trust = trust_policy(&provider, "system:serviceaccount:test:app", AUDIENCE);
    let arn = secret_arn("us-gov-west-1", "444455556666", "*");
    assert_eq!(
        arn,
        "arn:aws-us-gov:secretsmanager:us-gov-west-1:444455556666:secret:*"
    );
    cloud
        .aws
        .create_role(RoleSpec::new(role, trust, read_policy(&[arn])))
        .expect("good policies");
    let region = "us-gov-west-1";
    let value = SecretInput::text("secret of state");
    cloud
        .aws
        .put_secret_in_account("444455556666", region, "a", value);

    let session = cloud.assume(role, &cloud.token()).await.expect("a session");
    let answer = get(&cloud.reader(region, &session), "a")
        .await
        .expect("a value");
    assert_eq!(answer.secret_string(), Some("secret of state"));
    let abroad = get(&cloud.reader("us-east-1", &session), "a").await;
    assert_eq!(code(abroad), "UnrecognizedClientException");
    let nowhere = get(&cloud.reader("us-gov-north-1", &session), "a").await;
    assert_eq!(code(nowhere), "InvalidSignatureException");
}
