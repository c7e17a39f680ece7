//! Roles, regions and names at AWS.

use super::*;

const ARN: &str = "arn:aws:iam::111122223333:role/team/test-reader";

fn settings() -> AwsConfig {
    AwsConfig {
        audiences: vec![DEFAULT_AUDIENCE.into(), "internal".into()],
        ..AwsConfig::default()
    }
}

fn role(account: &[(&str, &str)], namespace: &[(&str, &str)]) -> Result<Role, NoRole> {
    of(
        &Annotations::of(account, namespace),
        &settings(),
        "eu-central-1",
    )
}

fn token_for(audience: &str) -> Proof {
    Proof::Token(audience.into())
}

#[test]
fn an_annotation_that_is_longer_than_any_name_gives_no_role_and_is_not_quoted() {
    let arn = |length: usize| format!("arn:aws:iam::111122223333:role/{}", "a".repeat(length));
    // The namespace's annotation, if the service account has none with this key.
    let of_two = |key: &str, value: &str| match key {
        "eks.amazonaws.com/role-arn" => role(&[(key, value)], &[]),
        _ => role(&[("eks.amazonaws.com/role-arn", ARN)], &[(key, value)]),
    };
    for key in [
        "eks.amazonaws.com/role-arn",
        "latchkey.dev/prefix",
        "latchkey.dev/aws-region",
    ] {
        let NoRole(text) = of_two(key, &arn(200_000)).expect_err("it is too long");
        assert_eq!(
            text,
            format!("the annotation {key} is longer than 2048 bytes")
        );
    }
    assert!(of_two("latchkey.dev/prefix", &"a".repeat(2048)).is_ok());
}

#[test]
fn the_role_of_irsa_is_used_as_it_is() {
    let role = role(&[("eks.amazonaws.com/role-arn", ARN)], &[]).expect("a role");
    assert_eq!(&*role.name, ARN);
    assert_eq!(role.proof, token_for("sts.amazonaws.com"));
    assert_eq!(&*role.place, "eu-central-1");
    assert_eq!(role.via, None);
}

#[test]
fn an_account_without_annotation_has_no_role() {
    assert!(role(&[], &[]).is_err());
    assert!(role(&[("eks.amazonaws.com/role-arn", " ")], &[]).is_err());
}

#[test]
fn the_namespace_stands_in_only_for_an_account_that_has_none() {
    let other = "arn:aws:iam::111122223333:role/namespace";
    let namespace = [("latchkey.dev/aws-role-arn", other)];
    assert_eq!(&*role(&[], &namespace).expect("a role").name, other);
    let own = [("eks.amazonaws.com/role-arn", ARN)];
    assert_eq!(&*role(&own, &namespace).expect("a role").name, ARN);
}

#[test]
fn our_own_annotation_goes_before_that_of_irsa() {
    let ours = "arn:aws:iam::111122223333:role/secrets";
    let both = [
        ("eks.amazonaws.com/role-arn", ARN),
        ("latchkey.dev/aws-role-arn", ours),
    ];
    assert_eq!(&*role(&both, &[]).expect("a role").name, ours);
}

#[test]
fn what_is_no_role_arn_is_no_role() {
    for wrong in [
        "test-reader",
        "arn:aws:iam::1234:role/x",
        "arn:aws:iam::111122223333:user/x",
        "arn:aws:iam::111122223333:role/",
        "arn:aws:iam::111122223333:role/x y",
        "arn:other:iam::111122223333:role/x",
        "arn:aws:sts::111122223333:role/x",
    ] {
        let annotated = [("eks.amazonaws.com/role-arn", wrong)];
        for (account, namespace) in [(&annotated[..], &[][..]), (&[], &annotated)] {
            assert_eq!(
                role(account, namespace).expect_err(wrong).to_string(),
                format!(
                    "the annotation eks.amazonaws.com/role-arn of the service account or its namespace is no ARN of \
                     an IAM role: {wrong:?}"
                )
            );
        }
    }
}

#[test]
fn the_region_follows_the_partition_of_the_role() {
    let region = |arn: &str| {
        role(&[("eks.amazonaws.com/role-arn", arn)], &[])
            .expect("a role")
            .place
            .to_string()
    };
    assert_eq!(region("arn:aws-cn:iam::111122223333:role/x"), "cn-north-1");
    assert_eq!(
        region("arn:aws-us-gov:iam::111122223333:role/x"),
        "us-gov-west-1"
    );
    assert_eq!(region(ARN), "eu-central-1");
}

#[test]
fn a_region_outside_the_partition_or_unfit_for_a_host_name_is_refused() {
    for wrong in [
        "cn-north-1",
        "evil.example/",
        "eu_central_1",
        "-eu-1",
        "us-east-1.evil",
    ] {
        let annotations = [("eks.amazonaws.com/role-arn", ARN), (REGION_KEY, wrong)];
        assert!(role(&annotations, &[]).is_err(), "{wrong}");
    }
    let annotations = [
        ("eks.amazonaws.com/role-arn", ARN),
        (REGION_KEY, "ap-southeast-2"),
    ];
    assert_eq!(
        &*role(&annotations, &[]).expect("a role").place,
        "ap-southeast-2"
    );
}

#[test]
fn a_region_that_only_an_sdk_knows_gives_no_role() {
    for wrong in ["aws-global", "eu-central-1-fips", "fips-us-east-1"] {
        let annotations = [("eks.amazonaws.com/role-arn", ARN), (REGION_KEY, wrong)];
        assert!(role(&annotations, &[]).is_err(), "{wrong}");
    }
}

#[test]
fn only_audiences_of_the_configuration_are_asked_for() {
    let with = |audience| {
        role(
            &[
                ("eks.amazonaws.com/role-arn", ARN),
                (AUDIENCE_KEY, audience),
            ],
            &[],
        )
    };
    assert_eq!(
        with("internal").expect("a role").proof,
        token_for("internal")
    );
    let none = with("https://kubernetes.default.svc").expect_err("it is not allowed");
    assert_eq!(
        none.to_string(),
        "eks.amazonaws.com/audience \"https://kubernetes.default.svc\" is none of the audiences that the agent's \
         configuration allows"
    );
}

#[test]
fn the_global_token_service_is_used_only_where_it_is_asked_for_and_exists() {
    let with = |arn, region, value| {
        let annotations = [
            ("eks.amazonaws.com/role-arn", arn),
            (REGION_KEY, region),
            (REGIONAL_STS_KEY, value),
        ];
        role(&annotations, &[]).expect("a role").via.is_some()
    };
    assert!(with(ARN, "eu-central-1", "false"));
    assert!(!with(ARN, "eu-central-1", "true"));
    // An opt-in region accepts none of its tokens.
    assert!(!with(ARN, "af-south-1", "false"));
    let china = "arn:aws-cn:iam::111122223333:role/x";
    assert!(!with(china, "cn-north-1", "false"));
}

#[test]
fn an_arn_is_taken_only_when_allowed_and_without_a_prefix() {
    let name =
        SecretName::parse("arn:aws:secretsmanager:us-east-1:111122223333:secret:prod/db-AbCdEf")
            .expect("a name");
    let mut role = role(&[("eks.amazonaws.com/role-arn", ARN)], &[]).expect("a role");
    let any = Selector::default();
    assert!(check_name(&settings(), &role, &name, &any).is_err());
    let allowing = AwsConfig {
        allow_arns: true,
        ..settings()
    };
    assert!(check_name(&allowing, &role, &name, &any).is_ok());
    role.prefix = "team/".into();
    assert!(check_name(&allowing, &role, &name, &any).is_err());
}

#[test]
fn an_arn_cannot_lead_to_another_host() {
    for wrong in [
        "arn:aws:secretsmanager:evil.example/:111122223333:secret:x",
        "arn:aws:secretsmanager:cn-north-1:111122223333:secret:x",
        "arn:aws:s3:us-east-1:111122223333:secret:x",
    ] {
        let role = role(&[("eks.amazonaws.com/role-arn", ARN)], &[]).expect("a role");
        let allowing = AwsConfig {
            allow_arns: true,
            ..settings()
        };
        if let Ok(name) = SecretName::parse(wrong) {
            assert!(
                check_name(&allowing, &role, &name, &Selector::default()).is_err(),
                "{wrong}"
            );
        }
    }
}

#[test]
fn the_length_counts_with_the_prefix() {
    let mut role = role(&[("eks.amazonaws.com/role-arn", ARN)], &[]).expect("a role");
    let name = SecretName::parse(&"n".repeat(510)).expect("a name");
    assert!(check_name(&settings(), &role, &name, &Selector::default()).is_ok());
    role.prefix = "abc".into();
    assert!(check_name(&settings(), &role, &name, &Selector::default()).is_err());
}

#[test]
fn without_the_usual_audience_the_first_that_is_allowed_is_asked_for() {
    let annotations = Annotations::of(&[("eks.amazonaws.com/role-arn", ARN)], &[]);
    let only = AwsConfig {
        audiences: vec!["internal".into(), "other".into()],
        ..AwsConfig::default()
    };
    let asked = of(&annotations, &only, "eu-central-1").expect("a role");
    assert_eq!(asked.proof, token_for("internal"));
    let last = AwsConfig {
        audiences: vec!["internal".into(), DEFAULT_AUDIENCE.into()],
        ..AwsConfig::default()
    };
    let asked = of(&annotations, &last, "eu-central-1").expect("a role");
    assert_eq!(asked.proof, token_for(DEFAULT_AUDIENCE));
}

#[test]
fn names_versions_and_stages_have_the_lengths_and_characters_that_aws_allows() {
    let mut role = role(&[("eks.amazonaws.com/role-arn", ARN)], &[]).expect("a role");
    role.prefix = "ab".into();
    let check = |name: &str, version: Option<usize>, stage: Option<usize>| {
        let selector = Selector {
            version: version.map(|length| "v".repeat(length).into()),
            stage: stage.map(|length| "s".repeat(length).into()),
        };
        let name = SecretName::parse(name).expect("a name");
        check_name(&settings(), &role, &name, &selector).is_ok()
    };
    assert!(check(&"n".repeat(NAME_LIMIT - 2), None, None));
    assert!(!check(&"n".repeat(NAME_LIMIT - 1), None, None));
    assert!(check("a/b_c+d=e.f@g-h!i", None, None));
    assert!(!check("a b", None, None) && !check("a:b", None, None) && !check("\u{e4}", None, None));
    assert!(check("a", Some(32), None) && check("a", Some(64), None));
    assert!(!check("a", Some(31), None) && !check("a", Some(65), None));
    assert!(check("a", None, Some(1)) && check("a", None, Some(256)));
    assert!(!check("a", None, Some(257)));
}

#[test]
fn a_prefix_has_the_characters_of_names_and_does_not_begin_with_what_turns_a_filter_round() {
    let with = |prefix| {
        role(
            &[("eks.amazonaws.com/role-arn", ARN), (PREFIX_KEY, prefix)],
            &[],
        )
    };
    assert_eq!(&*with("rds!").expect("a role").prefix, "rds!");
    assert!(with("!rds").is_err() && with("a b").is_err());
}

#[test]
fn only_a_whole_arn_of_a_secret_has_a_region() {
    for name in ["prod/db-AbCdEf", "rds!cluster-5f1c-AbCdEf"] {
        let arn = format!("arn:aws:secretsmanager:us-east-1:111122223333:secret:{name}");
        assert_eq!(region_of_arn(&arn), Some("us-east-1"));
    }
    for wrong in [
        "arn:aws:secretsmanager:us-east-1:1111:secret:prod/db",
        "arn:aws:secretsmanager:us-east-1:11112222333x:secret:prod/db",
        "arn:aws:secretsmanager:us-east-1:111122223333:secret:",
        "arn:aws:secretsmanager:us-east-1:111122223333:secret:prod db",
    ] {
        assert_eq!(region_of_arn(wrong), None, "{wrong}");
    }
}

#[test]
fn a_machine_is_its_own_role_or_takes_on_the_one_that_is_named() {
    let machine = |role: &LocalRole| of_machine(role, &AwsConfig::default(), "eu-central-1");
    let own = machine(&LocalRole::Machine).expect("a role");
    assert_eq!((&*own.name, &*own.place), ("machine", "eu-central-1"));
    let named = machine(&LocalRole::Named(ARN.into())).expect("a role");
    assert_eq!((&*named.name, &named.proof), (ARN, &Proof::Machine));
    let china = LocalRole::Named("arn:aws-cn:iam::111122223333:role/x".into());
    assert_eq!(&*machine(&china).expect("a role").place, "cn-north-1");
    for other in [
        "app@project.iam.gserviceaccount.com",
        "arn:aws:iam::111122223333:user/x",
    ] {
        let none = machine(&LocalRole::Named(other.into())).expect_err(other);
        assert_eq!(
            none.to_string(),
            format!("{other:?} is no ARN of an IAM role")
        );
    }
}
