//! Secrets Manager: who may read what, and what the answers look like.

use super::*;

#[tokio::test]
async fn aws_gives_a_value_to_the_role_that_may_read_it() {
    let cloud = Cloud::start().await;
    let version = cloud
        .aws
        .put_secret(REGION, "test/db", SecretInput::text("hunter2"));
    let session = cloud.session().await;
    let client = cloud.reader(REGION, &session);
    let arn = cloud.aws.arn_of(REGION, "test/db").expect("it exists");
    let partial = arn.rsplit_once('-').expect("a suffix").0;
    for id in ["test/db", &arn, partial] {
        let answer = get(&client, id).await.expect("a value");
        assert_eq!(answer.secret_string(), Some("hunter2"));
        assert_eq!(answer.name(), Some("test/db"));
        assert_eq!(answer.arn(), Some(arn.as_str()));
        assert_eq!(answer.version_id(), Some(version.as_str()));
        assert_eq!(answer.version_stages(), ["AWSCURRENT"]);
        let age =
            jiff::Timestamp::now().as_second() - answer.created_date().expect("a date").secs();
        assert!((0..60).contains(&age), "{age}");
    }
    let calls = cloud.aws.calls_of(Operation::GetSecretValue);
    assert_eq!(calls.len(), 3);
    assert_eq!(calls[0].secret.as_deref(), Some("test/db"));
    assert_eq!(calls[0].region.as_deref(), Some(REGION));
    assert_eq!(calls[0].role.as_deref(), Some(cloud.role.as_str()));
    assert_eq!(calls[0].session_name.as_deref(), Some("pod.test.app"));
}

#[tokio::test]
async fn aws_denies_before_it_says_whether_a_secret_exists() {
    let cloud = Cloud::start().await;
    cloud
        .aws
        .put_secret(REGION, "prod/db", SecretInput::text("production"));
    let session = cloud.session().await;
    let denied = |id: &str| {
        format!(
            "AccessDeniedException: User: \
             arn:aws:sts::111122223333:assumed-role/reader/pod.test.app is not authorized to \
             perform: secretsmanager:GetSecretValue on resource: {id} because no identity-based \
             policy allows the secretsmanager:GetSecretValue action"
        )
    };
    let arn = cloud.aws.arn_of(REGION, "prod/db").expect("it exists");
    for id in ["prod/db", "prod/none", &arn] {
        assert_eq!(cloud.read(&session, id).await, Err(denied(id)));
    }
    assert_eq!(
        cloud.read(&session, "test/none").await,
        Err("ResourceNotFoundException: Secrets Manager can't find the specified secret.".into())
    );
    let other_account = "arn:aws:secretsmanager:eu-central-1:999999999999:secret:test/db-AbCdEf";
    assert_eq!(
        code(cloud.read(&session, other_account).await),
        "AccessDeniedException"
    );
    assert_eq!(
        code(cloud.read(&session, "test/ä").await),
        "ValidationException"
    );

    // Even a policy that allows everything reaches no other account, whose secrets have no resource policy.
    cloud
        .aws
        .set_policy(&cloud.role, &read_policy(&["*"]))
        .expect("good policy");
    let value = SecretInput::text("theirs");
    cloud
        .aws
        .put_secret_in_account("999999999999", REGION, "test/db", value);
    let partial = "arn:aws:secretsmanager:eu-central-1:999999999999:secret:test/db";
    let error = cloud
        .read(&session, partial)
        .await
        .expect_err("another account's");
    assert!(error.contains("no resource-based policy"), "{error}");
}

#[tokio::test]
async fn aws_a_policy_change_and_a_denial_hold_at_once() {
    let cloud = Cloud::start().await;
    cloud
        .aws
        .put_secret(REGION, "test/db", SecretInput::text("hunter2"));
    let session = cloud.session().await;
    assert!(cloud.read(&session, "test/db").await.is_ok());
    let policy = json!({"Version": "2012-10-17", "Statement": [
        {"Effect": "Allow", "Action": "secretsmanager:*", "Resource": "*"},
        {"Effect": "Deny", "Action": "secretsmanager:GetSecretValue",
         "Resource": "arn:aws:secretsmanager:*:*:secret:test/*"},
    ]});
    cloud
        .aws
        .set_policy(&cloud.role, &policy)
        .expect("good policy");
    let error = cloud.read(&session, "test/db").await.expect_err("denied");
    assert!(
        error.ends_with("with an explicit deny in an identity-based policy"),
        "{error}"
    );
}

#[tokio::test]
async fn aws_answers_by_version_and_by_stage() {
    let cloud = Cloud::start().await;
    let put = |value: &str| {
        cloud
            .aws
            .put_secret(REGION, "test/db", SecretInput::text(value))
    };
    let (first, second, third) = (put("one"), put("two"), put("three"));
    let pending = cloud.aws.add_version(
        REGION,
        "test/db",
        SecretInput::text("four"),
        &["AWSPENDING"],
    );
    assert!(cloud.aws.move_stage(REGION, "test/db", "blue", &first));
    let session = cloud.session().await;
    let client = cloud.reader(REGION, &session);
    let read = async |version: Option<&str>, stage: Option<&str>| {
        let asked = client
            .get_secret_value()
            .secret_id("test/db")
            .set_version_id(version.map(str::to_owned))
            .set_version_stage(stage.map(str::to_owned));
        let answer = asked.send().await.map_err(|error| said(&error))?;
        Ok::<_, String>(answer.secret_string.expect("text"))
    };
    assert_eq!(read(None, None).await.as_deref(), Ok("three"));
    assert_eq!(read(None, Some("AWSPREVIOUS")).await.as_deref(), Ok("two"));
    assert_eq!(read(None, Some("AWSPENDING")).await.as_deref(), Ok("four"));
    assert_eq!(read(None, Some("blue")).await.as_deref(), Ok("one"));
    assert_eq!(read(Some(&second), None).await.as_deref(), Ok("two"));
    assert_eq!(
        read(Some(&third), Some("AWSCURRENT")).await.as_deref(),
        Ok("three")
    );
    assert_eq!(
        code(read(Some(&pending), Some("AWSCURRENT")).await),
        "InvalidRequestException"
    );
    assert_eq!(
        read(None, Some("green")).await,
        Err(
            "ResourceNotFoundException: Secrets Manager can't find the specified secret value \
             for staging label: green"
                .to_owned()
        )
    );
    let unknown = "00000000-0000-4000-8000-000000000000";
    let error = read(Some(unknown), None)
        .await
        .expect_err("no such version");
    assert!(error.ends_with(&format!("VersionId: {unknown}")), "{error}");
    assert_eq!(code(read(Some("short"), None).await), "ValidationException");
}

#[tokio::test]
async fn aws_gives_binary_values_and_empty_ones() {
    let cloud = Cloud::start().await;
    cloud
        .aws
        .put_secret(REGION, "test/key", SecretInput::binary([0, 159, 146, 150]));
    cloud
        .aws
        .put_secret(REGION, "test/empty", SecretInput::text(""));
    let session = cloud.session().await;
    let answer = get(&cloud.reader(REGION, &session), "test/key")
        .await
        .expect("a value");
    assert_eq!(
        answer.secret_binary().expect("bytes").as_ref(),
        [0, 159, 146, 150]
    );
    assert_eq!(answer.secret_string(), None);
    assert_eq!(cloud.read(&session, "test/empty").await.as_deref(), Ok(""));
}

#[tokio::test]
async fn aws_does_not_give_what_is_to_be_deleted() {
    let cloud = Cloud::start().await;
    cloud
        .aws
        .put_secret(REGION, "test/db", SecretInput::text("hunter2"));
    let session = cloud.session().await;
    assert!(cloud.aws.mark_for_deletion(REGION, "test/db"));
    let error = cloud.read(&session, "test/db").await.expect_err("marked");
    assert!(
        error.starts_with("InvalidRequestException: You can't perform"),
        "{error}"
    );
    assert!(cloud.aws.restore_secret(REGION, "test/db"));
    assert!(cloud.read(&session, "test/db").await.is_ok());
    assert!(cloud.aws.delete_secret(REGION, "test/db"));
    assert_eq!(
        code(cloud.read(&session, "test/db").await),
        "ResourceNotFoundException"
    );
}

#[tokio::test]
async fn aws_lists_by_prefix_page_by_page() {
    let cloud = Cloud::start().await;
    for number in 0..25 {
        let name = format!("test/{number:02}");
        cloud.aws.put_secret(REGION, &name, SecretInput::text("x"));
        cloud
            .aws
            .put_secret(REGION, &format!("prod/{number:02}"), SecretInput::text("x"));
    }
    cloud.aws.mark_for_deletion(REGION, "test/07");
    let session = cloud.session().await;
    let client = cloud.reader(REGION, &session);
    let prefix = Filter::builder()
        .key(FilterNameStringType::Name)
        .values("test/")
        .build();
    let (mut names, mut pages, mut token) = (Vec::new(), 0, None);
    loop {
        let asked = client
            .list_secrets()
            .filters(prefix.clone())
            .max_results(10);
        let page = asked.set_next_token(token).send().await.expect("a page");
        pages += 1;
        names.extend(
            page.secret_list()
                .iter()
                .filter_map(|entry| entry.name().map(str::to_owned)),
        );
        token = page.next_token;
        if token.is_none() {
            break;
        }
    }
    assert_eq!((pages, names.len()), (3, 24));
    assert!(names.is_sorted() && !names.contains(&"test/07".to_owned()));

    let wrong = client.list_secrets().next_token("bogus").send().await;
    assert_eq!(
        wrong.expect_err("no such page").code(),
        Some("InvalidNextTokenException")
    );
    let many = client.list_secrets().max_results(101).send().await;
    assert_eq!(
        many.expect_err("too many").code(),
        Some("ValidationException")
    );

    let only = read_policy(&[secret_arn(REGION, cloud.aws.account(), "test/*")]);
    cloud
        .aws
        .set_policy(&cloud.role, &only)
        .expect("good policy");
    let denied = client
        .list_secrets()
        .send()
        .await
        .expect_err("not allowed to list");
    assert_eq!(denied.code(), Some("AccessDeniedException"));
}

#[tokio::test]
async fn aws_takes_no_signature_but_the_sessions_own() {
    let cloud = Cloud::start().await;
    cloud
        .aws
        .put_secret(REGION, "test/db", SecretInput::text("hunter2"));
    let good = cloud.session().await;
    let other = cloud.session().await;
    let keys = |id: &Credentials, secret: &Credentials, token: Option<&Credentials>| {
        let token = token.map(|session| session.session_token().expect("a token").to_owned());
        Credentials::from_keys(id.access_key_id(), secret.secret_access_key(), token)
    };
    for (what, session, expected) in [
        (
            "another's key",
            keys(&good, &other, Some(&good)),
            "InvalidSignatureException",
        ),
        (
            "another's token",
            keys(&good, &good, Some(&other)),
            "UnrecognizedClientException",
        ),
        (
            "no token",
            keys(&good, &good, None),
            "UnrecognizedClientException",
        ),
        (
            "an unknown key id",
            Credentials::from_keys("ASIAUNKNOWN", "secret", Some("token".into())),
            "UnrecognizedClientException",
        ),
    ] {
        assert_eq!(
            code(cloud.read(&session, "test/db").await),
            expected,
            "{what}"
        );
    }
    let nowhere = cloud.reader("mars-north-1", &good);
    assert_eq!(
        code(get(&nowhere, "test/db").await),
        "InvalidSignatureException"
    );

    let day = SignedDuration::from_hours(24);
    cloud.aws.set_clock_offset(day);
    assert_eq!(
        code(cloud.read(&other, "test/db").await),
        "ExpiredTokenException"
    );
    for offset in [SignedDuration::from_mins(6), SignedDuration::from_mins(-6)] {
        cloud.aws.set_clock_offset(offset);
        assert_eq!(
            code(cloud.read(&good, "test/db").await),
            "InvalidSignatureException"
        );
    }
    cloud.aws.set_clock_offset(SignedDuration::ZERO);
    assert!(cloud.read(&good, "test/db").await.is_ok());
}
