//! One rendering: the template language is minijinja's, and `secret()` is ours.

use crate::cli::failure::{Failure, OTHER, UNAVAILABLE};
use crate::cli::watch::{Used, Watch};
use crate::{Client, Secret};
use base64::Engine as _;
use base64::engine::general_purpose::STANDARD as BASE64;
use minijinja::value::Kwargs;
use minijinja::{AutoEscape, Environment, Error, ErrorKind, UndefinedBehavior};
use std::collections::BTreeMap;
use std::thread;
use tokio::sync::{mpsc, oneshot};
use zeroize::Zeroizing;

/// How often to render a template whose secrets change from one read to the next.
const TRIES: usize = 3;

/// A rendered template.
#[derive(Debug)]
pub(super) struct Rendered {
    pub(super) text: Zeroizing<String>,
    secrets: BTreeMap<Used, Secret>,
}

/// What a template asks for, and where to send the answer.
#[derive(Debug)]
struct Asked {
    used: Used,
    answer: oneshot::Sender<Result<String, Error>>,
}

/// Reads what a template asks for: each secret, and each member of one, only once.
#[derive(Debug)]
struct Reader<'a> {
    client: &'a Client,
    secrets: BTreeMap<Used, Secret>,
    /// How the first secret that could not be read has failed.
    failure: Option<Failure>,
}

impl Rendered {
    /// Whether each secret in it is of one version: members are read one by one, and the second may be newer.
    fn is_of_one_version(&self) -> bool {
        let mut versions = BTreeMap::new();
        self.secrets.iter().all(|(used, secret)| {
            let of = (&used.name, &secret.backend, &used.stage);
            *versions.entry(of).or_insert(&secret.version) == &secret.version
        })
    }

    /// The secrets in it, to watch them.
    pub(super) fn watch(&self) -> Watch {
        let mut watch = Watch::default();
        for (used, secret) in &self.secrets {
            watch.add(used.clone(), secret);
        }
        watch
    }
}

/// Renders `source`, whose file is called `name`, with one version of each secret.
///
/// # Errors
///
/// If it cannot be rendered; the text names file and line.
pub(super) async fn render(client: &Client, name: &str, source: &str) -> Result<Rendered, Failure> {
    for _ in 0..TRIES {
        let rendered = render_once(client, name, source).await?;
        if rendered.is_of_one_version() {
            return Ok(rendered);
        }
    }
    let text = format!("{name}: its secrets change while they are read");
    Err(Failure::new(UNAVAILABLE, text))
}

async fn render_once(client: &Client, name: &str, source: &str) -> Result<Rendered, Failure> {
    let (asks, mut asked) = mpsc::channel(1);
    let (called, template) = (name.to_owned(), source.to_owned());
    // A template's functions are not async: they wait on a thread of their own for what is read here. When nobody reads
    // any more, because the command is stopping, they fail.
    let (done, mut rendering) = oneshot::channel();
    let work = move || {
        let mut environment = Environment::new();
        environment.set_auto_escape_callback(|_| AutoEscape::None);
        environment.set_keep_trailing_newline(true);
        environment.set_undefined_behavior(UndefinedBehavior::Strict);
        let secret = move |name: String, options: Kwargs| ask(&asks, name, &options);
        environment.add_function("secret", secret);
        environment.add_filter("b64encode", |text: String| BASE64.encode(text));
        let text = environment.render_named_str(&called, &template, ());
        // Nobody waits for it if the command is stopping.
        let _ = done.send(text.map(Zeroizing::new));
    };
    // Not tokio's, which panics if there can be no more threads.
    thread::Builder::new()
        .spawn(work)
        .map_err(|error| Failure::other(format!("{name}: cannot start a thread: {error}")))?;
    let mut reader = Reader {
        client,
        secrets: BTreeMap::new(),
        failure: None,
    };
    let outcome = loop {
        tokio::select! {
            Some(Asked { used, answer }) = asked.recv() => {
                // The function waits for it, unless its thread has panicked: the next turn shows that.
                let _ = answer.send(reader.text(used).await);
            }
            outcome = &mut rendering => break outcome,
        }
    };
    let outcome = outcome
        .map_err(|_| Failure::other(format!("{name}: the template could not be rendered")))?;
    match outcome {
        Ok(text) => Ok(Rendered {
            text,
            secrets: reader.secrets,
        }),
        Err(error) => Err(described(name, source, &error, reader.failure)),
    }
}

/// The template's function `secret`.
fn ask(asks: &mpsc::Sender<Asked>, name: String, options: &Kwargs) -> Result<String, Error> {
    let wrong = |text: String| Error::new(ErrorKind::BadSerialization, text);
    if name.is_empty() {
        return Err(wrong("a secret's name is missing: secret(NAME)".to_owned()));
    }
    // An empty option would count as none: the whole secret instead of a member.
    let option = |what: &str| match options.get::<Option<String>>(what)? {
        Some(text) if text.is_empty() => Err(wrong(format!("{name}: its {what} is empty"))),
        option => Ok(option),
    };
    let (backend, stage, key) = (option("backend")?, option("stage")?, option("key")?);
    let used = Used {
        name,
        backend,
        stage,
        key,
    };
    options.assert_all_used()?;
    let (answer, answered) = oneshot::channel();
    let nobody = || Error::new(ErrorKind::InvalidOperation, "nobody reads any more");
    asks.blocking_send(Asked { used, answer })
        .map_err(|_| nobody())?;
    answered.blocking_recv().map_err(|_| nobody())?
}

impl Reader<'_> {
    async fn text(&mut self, used: Used) -> Result<String, Error> {
        if let Some(known) = self.secrets.get(&used) {
            return text_of(known);
        }
        match self.client.read(&used.ask()).await {
            Ok(secret) => {
                let text = text_of(&secret);
                self.secrets.insert(used, secret);
                text
            }
            Err(error) => {
                let failure = Failure::from(error).of(&used.name);
                let failed = Error::new(ErrorKind::InvalidOperation, failure.text().to_owned());
                self.failure.get_or_insert(failure);
                Err(failed)
            }
        }
    }
}

/// The value as a text of the template language, which copies texts as it likes, and does not wipe them.
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

/// What is wrong, and where. A detail may quote a value, so only details that come from the template's own text or from
/// us are shown; instead of others, what the template has there.
fn described(name: &str, source: &str, error: &Error, failure: Option<Failure>) -> Failure {
    let kind = error.kind();
    let detail = match (&failure, kind) {
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
    let what = match (detail, tag(source, error)) {
        (Some(detail), _) => detail.to_owned(),
        (None, Some(tag)) => format!("{kind}: {tag}{}", hint(kind, tag)),
        (None, None) => kind.to_string(),
    };
    let place = match error.line() {
        Some(line) => format!("{name}:{line}"),
        None => name.to_owned(),
    };
    let exit = failure.as_ref().map_or(OTHER, |failure| failure.exit);
    Failure::new(exit, format!("{place}: {what}"))
}

/// The tag that an error is in, such as `{{ secret("a") }}`, if it is on one line. The range of the error itself is not
/// always a whole expression.
fn tag<'a>(source: &'a str, error: &Error) -> Option<&'a str> {
    let place = error.range()?;
    let (before, after) = (source.get(..place.start)?, source.get(place.end..)?);
    let begin = ["{{", "{%"].map(|mark| before.rfind(mark));
    let end = ["}}", "%}"].map(|mark| after.find(mark));
    let begin = begin.into_iter().flatten().max()?;
    let end = end.into_iter().flatten().min()? + "}}".len();
    let tag = source.get(begin..place.end + end)?;
    (!tag.contains('\n')).then_some(tag)
}

/// How to write it, if a secret was most likely meant.
fn hint(kind: ErrorKind, tag: &str) -> &'static str {
    match kind {
        ErrorKind::MissingArgument if tag.contains("secret(") => " (a secret is secret(NAME))",
        ErrorKind::UndefinedError if tag.contains(").") => {
            " (a member of a secret is secret(NAME, key=\"password\"))"
        }
        ErrorKind::UndefinedError if tag.contains("secret(") => " (a secret's name is in quotes)",
        _ => "",
    }
}
