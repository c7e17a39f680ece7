use super::*;
use crate::backend::file::Files;
use crate::config::FileConfig;

/// A store that gives each namespace the folder of its own name.
fn stored() -> Stored<Files> {
    let directory = tempfile::tempdir().expect("a directory");
    let settings = FileConfig {
        path: directory.path().to_owned(),
        per_namespace: true,
        prefix: String::new(),
        timeout: Duration::from_secs(1),
    };
    Files::open("file", &settings).expect("it is ours")
}

fn machine_role(role: &LocalRole) -> Role {
    stored().machine_role(role, "dev").expect("a role")
}

fn role_of(namespace: &str, annotated: &[(&str, &str)]) -> Role {
    let annotations = Annotations::of(annotated, &[]).in_namespace(namespace);
    stored().role(&annotations).expect("a role")
}

fn code(role: &Role, name: &str) -> Option<Code> {
    let name = SecretName::parse(name).expect("a name");
    let error = check(role, &name, &Selector::default()).err();
    error.map(|error| error.code)
}

#[test]
fn a_namespace_reads_its_own_folder_and_nothing_else() {
    let test = role_of("test", &[]);
    assert_eq!(code(&test, "test/db"), None);
    for foreign in ["prod/db", "test", "testing/db", "db"] {
        assert_eq!(code(&test, foreign), Some(Code::Denied), "{foreign}");
    }
}

#[test]
fn a_prefix_is_a_request_and_leads_no_further_than_the_folder() {
    let own = role_of("test", &[(PREFIX_KEY, "test/")]);
    assert_eq!(code(&own, "db"), None);
    for prefix in ["prod/", "../prod/", "test/../prod/", "/", "test/.git/"] {
        assert!(
            code(&role_of("test", &[(PREFIX_KEY, prefix)]), "db").is_some(),
            "{prefix}"
        );
    }
}

#[test]
fn names_of_the_stores_own_files_and_options_are_refused_and_so_are_arns() {
    let all = machine_role(&LocalRole::Machine);
    let arn = "arn:aws:secretsmanager:eu-central-1:111122223333:secret:x";
    for name in [
        arn,
        ".gpg-id",
        "a/.git",
        ".git/config",
        "-c",
        "--help",
        "a/.b/c",
    ] {
        assert_eq!(code(&all, name), Some(Code::InvalidRequest), "{name}");
    }
    assert_eq!(code(&all, "a/-c"), None);
    assert_eq!(code(&all, &"x".repeat(PART_LIMIT)), None);
    let long = code(&all, &"x".repeat(PART_LIMIT + 1));
    assert_eq!(long, Some(Code::InvalidRequest));
}

#[test]
fn a_version_is_refused_since_there_is_but_one() {
    let all = machine_role(&LocalRole::Machine);
    let name = SecretName::parse("a").expect("a name");
    let selector = Selector {
        version: Some("1".into()),
        stage: None,
    };
    assert!(check(&all, &name, &selector).is_err());
}

#[test]
fn a_machines_named_role_is_no_right_to_the_whole_store() {
    let named = LocalRole::Named("arn:aws:iam::111122223333:role/x".into());
    let role = machine_role(&named);
    assert_eq!(code(&role, "dev/db"), None);
    assert_eq!(code(&role, "prod/db"), Some(Code::Denied));
}

#[test]
fn a_principal_of_the_machine_that_is_nothing_in_a_cloud_reads_its_namespaces_folder() {
    let role = machine_role(&LocalRole::None);
    assert_eq!(code(&role, "dev/db"), None);
    assert_eq!(code(&role, "prod/db"), Some(Code::Denied));
}

fn listed(role: &Role, limit: usize, cursor: Option<&str>) -> (Vec<String>, Option<String>) {
    let names = ["prod/a", "test/a", "test/b", "test/c", "testing/a"];
    let page = page(role, limit, cursor, |from| {
        let from = from.to_str().expect("text").to_owned();
        let below = names.into_iter().filter(|name| name.starts_with(&from));
        Ok(below.map(str::to_owned).collect())
    })
    .expect("a page");
    (page.names, page.next)
}

#[test]
fn a_list_shows_what_may_be_asked_for_as_it_is_asked_for_page_by_page() {
    let test = role_of("test", &[]);
    let (names, next) = listed(&test, 2, None);
    assert_eq!(names, ["test/a", "test/b"]);
    let (names, next) = listed(&test, 2, next.as_deref());
    assert_eq!((names, next), (vec!["test/c".to_owned()], None));
    let prefixed = role_of("test", &[(PREFIX_KEY, "test/")]);
    assert_eq!(listed(&prefixed, 9, None).0, ["a", "b", "c"]);
    let foreign = role_of("test", &[(PREFIX_KEY, "prod/")]);
    let outcome = page(&foreign, 9, None, |_| Ok(vec!["prod/a".into()]));
    assert!(matches!(outcome, Err(FolderError::Foreign)), "{outcome:?}");
    let all = machine_role(&LocalRole::Machine);
    assert_eq!(listed(&all, 9, None).0.len(), 5);
}
