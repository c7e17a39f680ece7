//! What `file` and `pass` have in common: both keep secrets as files in a folder of this machine, where no cloud says
//! who may read what.
//!
//! So the folder itself has to tell principals apart: unless the configuration says otherwise, each namespace reads what
//! lies in the folder of its name. A principal of a machine whose role is `machine` reads all of it.

use super::folder::FolderError;
use super::{BackendError, Fault, Page, Selector};
use crate::account::Annotations;
use crate::config::LocalRole;
use crate::error::RequestError;
use crate::role::{NoRole, PREFIX_KEY, Proof, Role};
use crate::secret::SecretName;
use latchkey_client::protocol::Code;
use std::path::{Path, PathBuf};
use std::time::Duration;
use tokio::sync::Semaphore;
use tokio::time::timeout;

/// The longest value, in bytes; no cloud takes more than 64 KiB.
pub(super) const VALUE_LIMIT: usize = 1 << 20;

/// The longest part of a path, in bytes (NAME_MAX), less the longest ending that a store puts behind it.
const PART_LIMIT: usize = 255 - ".gpg".len();

/// How many threads may wait for file systems.
static PLACES: Semaphore = Semaphore::const_new(16);

/// The role of a pod at a store that gives each namespace the folder of its name, or everybody everything.
pub(super) fn role(
    annotations: &Annotations,
    prefix: &str,
    per_namespace: bool,
) -> Result<Role, NoRole> {
    let prefix = annotations.first(&[PREFIX_KEY])?.unwrap_or(prefix);
    let folder = per_namespace.then(|| annotations.owner().0);
    Ok(role_in(folder, prefix))
}

/// The role of a principal of the machine.
pub(super) fn machine_role(
    role: &LocalRole,
    namespace: &str,
    prefix: &str,
    per_namespace: bool,
) -> Role {
    let all = *role == LocalRole::Machine || !per_namespace;
    role_in((!all).then_some(namespace), prefix)
}

fn role_in(folder: Option<&str>, prefix: &str) -> Role {
    let place = folder.map_or_else(String::new, |folder| format!("{folder}/"));
    Role {
        name: folder
            .map_or_else(
                || "the whole store".to_owned(),
                |_| format!("folder {place}"),
            )
            .into(),
        proof: Proof::None,
        prefix: prefix.into(),
        place: place.into(),
        via: None,
    }
}

/// Checks that a store can have a secret of that name, and that it is in the role's folder.
pub(super) fn check(
    role: &Role,
    name: &SecretName,
    selector: &Selector,
) -> Result<(), RequestError> {
    if selector.version.is_some() || selector.stage.is_some() {
        return Err(RequestError::invalid(
            "this backend keeps one version of a secret, without stages",
        ));
    }
    if name.is_arn() {
        return Err(RequestError::invalid(
            "an ARN names a secret of AWS, and this backend is none of AWS's",
        ));
    }
    let path = format!("{}{name}", role.prefix);
    if path.starts_with('-') {
        return Err(RequestError::invalid(
            "a name here does not begin with a hyphen",
        ));
    }
    for part in path.split('/') {
        // The store's own files, such as .git and .gpg-id, are no secrets. The prefix may be an annotation's.
        if part.is_empty() || part.starts_with('.') {
            return Err(RequestError::invalid(
                "a name here has no part that is empty or begins with a dot, its prefix included",
            ));
        }
        if part.len() > PART_LIMIT {
            return Err(RequestError::invalid(format!(
                "a name here has at most {PART_LIMIT} bytes between two slashes"
            )));
        }
    }
    if path.chars().any(|c| c == '\\' || c.is_control()) {
        return Err(RequestError::invalid(
            "a prefix holds no backslash and no control characters",
        ));
    }
    if !path.starts_with(&*role.place) {
        return Err(RequestError::new(
            Code::Denied,
            format!(
                "this namespace reads only what is in the store's folder {}",
                role.place
            ),
        ));
    }
    Ok(())
}

/// Where a secret's file lies in the folder.
pub(super) fn path_of(role: &Role, name: &SecretName, ending: &str) -> PathBuf {
    format!("{}{name}{ending}", role.prefix).into()
}

/// One page of the names that the role may read, out of what `list` finds below a folder.
pub(super) fn page(
    role: &Role,
    limit: usize,
    cursor: Option<&str>,
    list: impl FnOnce(&Path) -> Result<Vec<String>, FolderError>,
) -> Result<Page, FolderError> {
    // The shorter of folder and prefix says nothing if it is not how the other begins: then there is nothing to read.
    let (folder, prefix) = (&*role.place, &*role.prefix);
    let from = match (prefix.starts_with(folder), folder.starts_with(prefix)) {
        (true, _) => prefix.rsplit_once('/').map_or("", |(folder, _)| folder),
        (false, true) => folder.trim_end_matches('/'),
        (false, false) => return Err(FolderError::Foreign),
    };
    // A prefix may be an annotation's: nothing but a name leads into the folder.
    if from.split('/').any(|part| part.starts_with('.')) {
        return Ok(Page::default());
    }
    let mut names: Vec<String> = list(Path::new(from))?
        .into_iter()
        .filter(|path| path.starts_with(folder))
        .filter_map(|path| Some(path.strip_prefix(prefix)?.to_owned()))
        // A name that cannot be asked for is not shown.
        .filter_map(|name| SecretName::parse(&name).ok())
        .filter(|name| check(role, name, &Selector::default()).is_ok())
        .map(|name| name.to_string())
        .filter(|name| cursor.is_none_or(|cursor| name.as_str() > cursor))
        .collect();
    let more = names.len() > limit;
    names.truncate(limit);
    Ok(Page {
        next: more.then(|| names.last().cloned()).flatten(),
        names,
        more_calls: 0,
    })
}

/// Runs what may wait for a file system, off the agent's one thread and not for ever. The runtime's other threads stay
/// for others, such as the clouds' name resolution: a file system that hangs keeps its threads for itself.
pub(super) async fn off_thread<T: Send + 'static>(
    limit: Duration,
    work: impl FnOnce() -> Result<T, FolderError> + Send + 'static,
) -> Result<T, BackendError> {
    let done = async {
        let place = PLACES.acquire().await;
        let work = move || {
            let _place = place;
            work()
        };
        tokio::task::spawn_blocking(work).await
    };
    match timeout(limit, done).await {
        Ok(Ok(outcome)) => outcome.map_err(|error| failure(&error)),
        Ok(Err(_)) => Err(BackendError::died()),
        Err(elapsed) => Err(BackendError::new(
            Fault::Unreachable,
            RequestError::unavailable("the store's folder does not answer in time; try again")
                .because(&elapsed),
        )),
    }
}

/// What the caller is told about a file that is not read.
fn failure(error: &FolderError) -> BackendError {
    let (fault, told) = match error {
        FolderError::Absent => (
            Fault::Call,
            RequestError::new(Code::NotFound, "there is no such secret"),
        ),
        FolderError::Foreign => (
            Fault::Call,
            RequestError::new(
                Code::Denied,
                "this namespace reads only what is in the store's folder of its name, and its prefix is elsewhere",
            ),
        ),
        FolderError::Outside => (
            Fault::Refused,
            RequestError::new(
                Code::Denied,
                "the secret's file is a link that leads out of the store",
            ),
        ),
        FolderError::Unreadable => (
            Fault::Refused,
            RequestError::new(
                Code::Denied,
                "the agent's user may not read the secret's file",
            ),
        ),
        FolderError::Unsafe => (
            Fault::Refused,
            RequestError::new(
                Code::Denied,
                "the secret's file, or a folder that it lies in, could have been written by others: chown it to \
                 the agent's user or root, and chmod it go-w",
            ),
        ),
        FolderError::TooLarge => (
            Fault::Call,
            RequestError::new(
                Code::TooLarge,
                format!("the secret has more than {VALUE_LIMIT} bytes"),
            ),
        ),
        FolderError::TooMany => (
            Fault::Call,
            RequestError::new(
                Code::TooLarge,
                "the store has too many entries to be listed",
            ),
        ),
        FolderError::Io(_) => (
            Fault::Unreachable,
            RequestError::unavailable("the store's folder cannot be read now; try again"),
        ),
    };
    BackendError::new(fault, told.because(error))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn role_of(namespace: &str, annotated: &[(&str, &str)]) -> Role {
        let annotations = Annotations::of(annotated, &[]).in_namespace(namespace);
        role(&annotations, "", true).expect("a role")
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
        let all = machine_role(&LocalRole::Machine, "dev", "", true);
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
        let all = machine_role(&LocalRole::Machine, "dev", "", true);
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
        let role = machine_role(&named, "dev", "", true);
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
    fn a_folder_that_hangs_leaves_threads_for_others() {
        let runtime = tokio::runtime::Builder::new_current_thread()
            .enable_all()
            .max_blocking_threads(20)
            .build();
        let (release, hangs) = std::sync::mpsc::channel::<()>();
        let hangs = std::sync::Arc::new(std::sync::Mutex::new(hangs));
        runtime.expect("a runtime").block_on(async {
            let reads = (0..40).map(|_| {
                let hangs = hangs.clone();
                off_thread(Duration::from_millis(50), move || {
                    let _ = hangs.lock().map(|hangs| hangs.recv());
                    Ok(())
                })
            });
            for read in futures::future::join_all(reads).await {
                let failed = read.expect_err("it hangs");
                assert_eq!(failed.fault, Fault::Unreachable);
            }
            let other = tokio::task::spawn_blocking(|| ());
            let other = timeout(Duration::from_secs(10), other).await;
            // Before what is asserted, so that a failure does not wait for them.
            drop(release);
            other.expect("a thread is free").expect("it runs");
            let read = off_thread(Duration::from_secs(10), || Ok(()));
            read.await.expect("the folder is there again");
        });
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
        let all = machine_role(&LocalRole::Machine, "dev", "", true);
        assert_eq!(listed(&all, 9, None).0.len(), 5);
    }
}
