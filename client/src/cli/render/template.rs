//! One rendering: the template's language is minijinja's, and `secret()` is ours.

use crate::cli::failure::{Failure, OTHER};
use crate::cli::watch::{Used, Watch};
use crate::{Client, Secret};
use minijinja::value::Kwargs;
use minijinja::{AutoEscape, Environment, Error, ErrorKind, UndefinedBehavior};
use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use tokio::runtime::Handle;
use zeroize::Zeroizing;

/// What came of a template.
#[derive(Debug)]
pub(super) struct Rendered {
    pub(super) text: Zeroizing<String>,
    secrets: BTreeMap<Used, Secret>,
}

/// Reads what a template asks for, each secret once, so that a rendering is of one version of it.
#[derive(Debug)]
struct Reader {
    client: Client,
    runtime: Handle,
    secrets: Mutex<BTreeMap<Used, Secret>>,
    /// How the first secret that could not be read failed.
    failure: Mutex<Option<Failure>>,
}

impl Rendered {
    /// The secrets in it, to be watched.
    pub(super) fn watch(&self) -> Watch {
        let mut watch = Watch::default();
        for (used, secret) in &self.secrets {
            watch.add(used.clone(), secret);
        }
        watch
    }
}

/// Renders `source`, whose file is called `name`.
///
/// # Errors
///
/// Naming file and line.
pub(super) async fn render(
    client: &Client,
    name: &str,
    source: String,
) -> Result<Rendered, Failure> {
    let reader = Arc::new(Reader {
        client: client.clone(),
        runtime: Handle::current(),
        secrets: Mutex::default(),
        failure: Mutex::default(),
    });
    let (asked, called) = (reader.clone(), name.to_owned());
    // A template's functions are no futures: they wait on a thread of their own.
    let outcome = tokio::task::spawn_blocking(move || {
        let mut environment = Environment::new();
        environment.set_auto_escape_callback(|_| AutoEscape::None);
        environment.set_keep_trailing_newline(true);
        environment.set_undefined_behavior(UndefinedBehavior::Strict);
        let secret = move |name: String, options: Kwargs| asked.secret(name, &options);
        environment.add_function("secret", secret);
        environment
            .render_named_str(&called, &source, ())
            .map(Zeroizing::new)
    })
    .await
    .map_err(|_| Failure::other(format!("{name}: the template could not be rendered")))?;
    let failure = reader.failure().take();
    match outcome {
        Ok(text) => Ok(Rendered {
            text,
            secrets: std::mem::take(&mut *reader.secrets()),
        }),
        Err(error) => Err(described(name, &error, failure)),
    }
}

impl Reader {
    fn secret(&self, name: String, options: &Kwargs) -> Result<String, Error> {
        let used = Used {
            name,
            backend: options.get("backend")?,
            stage: options.get("stage")?,
            key: options.get("key")?,
        };
        options.assert_all_used()?;
        let known = self.secrets().get(&used).map(text_of);
        if let Some(known) = known {
            return known;
        }
        let secret = self
            .runtime
            .block_on(self.client.read(&used.ask()))
            .map_err(|error| {
                let failure = Failure::from(error).of(&used.name);
                let failed = Error::new(ErrorKind::InvalidOperation, failure.text().to_owned());
                self.failure().get_or_insert(failure);
                failed
            })?;
        let text = text_of(&secret);
        self.secrets().insert(used, secret);
        text
    }

    fn secrets(&self) -> MutexGuard<'_, BTreeMap<Used, Secret>> {
        self.secrets.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn failure(&self) -> MutexGuard<'_, Option<Failure>> {
        self.failure.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// The value as the template's language has texts. It copies them as it likes, and does not wipe them.
fn text_of(secret: &Secret) -> Result<String, Error> {
    let text = secret.value.expose_text().ok_or_else(|| {
        Error::new(
            ErrorKind::BadSerialization,
            format!(
                "{}: its value is no text: use `latchkey get --out`",
                secret.name
            ),
        )
    })?;
    Ok(text.to_owned())
}

/// What is wrong, and where. A detail may quote a value, so only those are told that come from the template's own text
/// or from us.
fn described(name: &str, error: &Error, failure: Option<Failure>) -> Failure {
    let detail = match (&failure, error.kind()) {
        (Some(failure), _) => Some(failure.text()),
        (
            None,
            ErrorKind::BadSerialization
            | ErrorKind::MissingArgument
            | ErrorKind::SyntaxError
            | ErrorKind::TooManyArguments
            | ErrorKind::UnknownFilter
            | ErrorKind::UnknownFunction
            | ErrorKind::UnknownMethod
            | ErrorKind::UnknownTest,
        ) => error.detail(),
        (None, _) => None,
    };
    let what = match detail {
        Some(detail) => detail.to_owned(),
        None => error.kind().to_string(),
    };
    let place = match error.line() {
        Some(line) => format!("{name}:{line}"),
        None => name.to_owned(),
    };
    let exit = failure.as_ref().map_or(OTHER, |failure| failure.exit);
    Failure::new(exit, format!("{place}: {what}"))
}
