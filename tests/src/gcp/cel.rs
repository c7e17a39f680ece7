//! As much of the Common Expression Language as attribute mappings and IAM conditions of a cluster need: paths, calls
//! of `startsWith` and `endsWith`, `==`, and `&&` between them. Anything else is refused, never ignored.

use serde_json::Value;

/// An expression that does not parse, or needs more than the fake knows.
#[derive(Clone, Debug, Eq, PartialEq)]
pub struct ExpressionError(pub String);

/// A condition: all of its terms must hold.
#[derive(Clone, Debug)]
pub(super) struct Condition(Vec<Term>);

/// A path into nested objects: `assertion['kubernetes.io']['namespace']`.
#[derive(Clone, Debug)]
pub(super) struct Path(Vec<String>);

#[derive(Clone, Debug)]
struct Term {
    left: Path,
    verb: Verb,
    right: String,
}

#[derive(Clone, Copy, Debug)]
enum Verb {
    EndsWith,
    Is,
    StartsWith,
}

impl std::fmt::Display for ExpressionError {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "this fake does not know the expression {:?}", self.0)
    }
}

impl std::error::Error for ExpressionError {}

impl Condition {
    pub(super) fn parse(text: &str) -> Result<Self, ExpressionError> {
        text.split("&&")
            .map(Term::parse)
            .collect::<Result<_, _>>()
            .map(Self)
    }

    /// Whether it holds for `context`, whose members are the expression's names. A missing name makes it false.
    pub(super) fn holds(&self, context: &Value) -> bool {
        self.0.iter().all(|term| {
            term.left.of(context).is_some_and(|left| match term.verb {
                Verb::EndsWith => left.ends_with(&term.right),
                Verb::Is => left == term.right,
                Verb::StartsWith => left.starts_with(&term.right),
            })
        })
    }
}

impl Term {
    fn parse(text: &str) -> Result<Self, ExpressionError> {
        let text = text.trim();
        let unknown = || ExpressionError(text.to_owned());
        let (left, verb, right) = if let Some((left, right)) = text.split_once("==") {
            (left, Verb::Is, right)
        } else {
            let inner = text.strip_suffix(')').ok_or_else(unknown)?;
            let called = |name: &str| inner.split_once(&format!(".{name}("));
            let starts = called("startsWith").map(|(left, right)| (left, Verb::StartsWith, right));
            let ends = || called("endsWith").map(|(left, right)| (left, Verb::EndsWith, right));
            starts.or_else(ends).ok_or_else(unknown)?
        };
        Ok(Self {
            left: Path::parse(left)?,
            verb,
            right: quoted(right).ok_or_else(unknown)?,
        })
    }
}

impl Path {
    pub(super) fn parse(text: &str) -> Result<Self, ExpressionError> {
        let unknown = || ExpressionError(text.to_owned());
        let mut rest = text.trim();
        let mut steps = Vec::new();
        while !rest.is_empty() {
            let (step, after) = if let Some(inner) = rest.strip_prefix('[') {
                let (step, after) = inner.split_once(']').ok_or_else(unknown)?;
                (quoted(step).ok_or_else(unknown)?, after)
            } else {
                let name = match rest.strip_prefix('.') {
                    Some(name) if !steps.is_empty() => name,
                    None if steps.is_empty() => rest,
                    _ => return Err(unknown()),
                };
                let end = name.find(['.', '[']).unwrap_or(name.len());
                (name[..end].to_owned(), &name[end..])
            };
            let is_name = |c: char| c.is_ascii_alphanumeric() || "_.-/".contains(c);
            if step.is_empty() || !step.chars().all(is_name) {
                return Err(unknown());
            }
            steps.push(step);
            rest = after;
        }
        if steps.is_empty() {
            Err(unknown())
        } else {
            Ok(Self(steps))
        }
    }

    pub(super) fn of<'a>(&self, context: &'a Value) -> Option<&'a str> {
        let found = self
            .0
            .iter()
            .try_fold(context, |value, step| value.get(step));
        found?.as_str()
    }
}

/// The text between quotes, without anything escaped.
fn quoted(text: &str) -> Option<String> {
    let text = text.trim();
    let inner = ['"', '\''].into_iter().find_map(|quote| {
        let inner = text.strip_prefix(quote)?.strip_suffix(quote)?;
        (!inner.contains([quote, '\\'])).then_some(inner)
    });
    inner.map(str::to_owned)
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[test]
    fn a_condition_holds_only_if_all_of_it_does() {
        let context =
            json!({"resource": {"name": "projects/7/secrets/test--db/versions/1", "type": "t"}});
        let holds = |text| Condition::parse(text).expect("known").holds(&context);
        assert!(holds(
            "resource.name.startsWith('projects/7/secrets/test--')"
        ));
        assert!(holds(
            r#"resource.type == "t" && resource.name.endsWith("/1")"#
        ));
        assert!(!holds(
            "resource.name.startsWith('projects/7/secrets/prod--')"
        ));
        assert!(!holds(
            "resource.type == 't' && resource.name.endsWith('/2')"
        ));
        assert!(!holds("resource.service == 'x'"));
    }

    #[test]
    fn a_path_goes_into_claims_with_dots_in_their_names() {
        let claims = json!({"assertion": {"kubernetes.io": {"namespace": "test"}}});
        let path = Path::parse("assertion['kubernetes.io']['namespace']").expect("a path");
        assert_eq!(path.of(&claims), Some("test"));
    }

    #[test]
    fn what_is_not_known_is_refused() {
        for text in [
            "",
            "true",
            "a || b",
            "resource.name.matches('x')",
            "resource.name.startsWith(x)",
            "!resource.name.startsWith('x')",
            "a == 'b' || c == 'd'",
        ] {
            assert!(Condition::parse(text).is_err(), "{text}");
        }
    }
}
