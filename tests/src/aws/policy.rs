//! IAM policies: documents as AWS writes them, parsed strictly, and the decisions that follow from them.
//!
//! What this evaluator does not know (an operator, an element, a policy variable) is an error when the policy is set,
//! never a condition that is silently ignored.

use std::collections::BTreeMap;

use serde::Deserialize;
use serde_json::{Value, json};

/// A parsed identity policy or trust policy.
#[derive(Clone, Debug)]
pub(super) struct Policy {
    statements: Vec<Statement>,
}

/// What a policy says about one request.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub(super) enum Decision {
    Allowed,
    ExplicitlyDenied,
    NotAllowed,
}

/// One request, as a policy sees it.
#[derive(Debug)]
pub(super) struct Question<'a> {
    pub(super) action: &'a str,
    /// The requested ARN, or `*` for an action that is not about one resource; ignored in trust policies.
    pub(super) resource: &'a str,
    /// The ARN of the provider or of the caller's role; used only in trust policies.
    pub(super) principal: &'a str,
    /// Condition keys and their values.
    pub(super) context: &'a [(&'a str, &'a str)],
}

/// Why AWS would answer `MalformedPolicyDocument`, or that the document needs more than this evaluator knows.
#[derive(Clone, Debug, Eq, PartialEq)]
pub struct PolicyError(String);

#[derive(Deserialize)]
#[serde(rename_all = "PascalCase", deny_unknown_fields)]
struct Document {
    version: String,
    #[serde(rename = "Id")]
    _id: Option<String>,
    statement: OneOrMany<RawStatement>,
}

#[derive(Deserialize)]
#[serde(rename_all = "PascalCase", deny_unknown_fields)]
struct RawStatement {
    #[serde(rename = "Sid")]
    _sid: Option<String>,
    effect: Effect,
    principal: Option<Principal>,
    action: Option<OneOrMany<String>>,
    not_action: Option<OneOrMany<String>>,
    resource: Option<OneOrMany<String>>,
    not_resource: Option<OneOrMany<String>>,
    #[serde(default)]
    condition: BTreeMap<String, BTreeMap<String, OneOrMany<String>>>,
}

#[derive(Clone, Copy, Debug, Deserialize, Eq, PartialEq)]
enum Effect {
    Allow,
    Deny,
}

#[derive(Deserialize)]
#[serde(rename_all = "PascalCase", deny_unknown_fields)]
struct Principal {
    #[serde(rename = "AWS")]
    aws: Option<OneOrMany<String>>,
    federated: Option<OneOrMany<String>>,
}

#[derive(Deserialize)]
#[serde(untagged)]
enum OneOrMany<T> {
    One(T),
    Many(Vec<T>),
}

#[derive(Clone, Debug)]
struct Statement {
    effect: Effect,
    principals: Option<Vec<String>>,
    action: Patterns,
    resource: Option<Patterns>,
    conditions: Vec<Condition>,
}

/// `Action` and `Resource`, or their `Not` forms.
#[derive(Clone, Debug)]
struct Patterns {
    negated: bool,
    globs: Vec<String>,
}

#[derive(Clone, Debug)]
struct Condition {
    operator: Operator,
    key: String,
    values: Vec<String>,
}

/// The string operators, whose names in a policy begin with `String`.
#[derive(Clone, Copy, Debug)]
enum Operator {
    Equals,
    EqualsIgnoreCase,
    Like,
    NotEquals,
    NotLike,
}

/// The trust policy that lets one role assume another.
#[must_use]
pub fn machine_trust_policy(role_arn: &str) -> Value {
    json!({"Version": "2012-10-17", "Statement": [{
        "Effect": "Allow",
        "Principal": {"AWS": role_arn},
        "Action": "sts:AssumeRole",
    }]})
}

/// The trust policy that lets one service account (`sub`, with `*` as a wildcard) with one audience assume a role.
#[must_use]
pub fn trust_policy(provider_arn: &str, sub: &str, aud: &str) -> Value {
    let host = provider_arn
        .split_once(":oidc-provider/")
        .map_or("", |(_, host)| host);
    let (of_sub, of_aud) = (format!("{host}:sub"), format!("{host}:aud"));
    let condition = if sub.contains(['*', '?']) {
        json!({"StringLike": {of_sub: sub}, "StringEquals": {of_aud: aud}})
    } else {
        json!({"StringEquals": {of_sub: sub, of_aud: aud}})
    };
    json!({"Version": "2012-10-17", "Statement": [{
        "Effect": "Allow",
        "Principal": {"Federated": provider_arn},
        "Action": "sts:AssumeRoleWithWebIdentity",
        "Condition": condition,
    }]})
}

/// The policy that lets a role read the secrets whose ARNs match one of `resources`, and list nothing.
#[must_use]
pub fn read_policy<R: AsRef<str>>(resources: &[R]) -> Value {
    let resources: Vec<&str> = resources.iter().map(AsRef::as_ref).collect();
    json!({"Version": "2012-10-17", "Statement": [{
        "Effect": "Allow", "Action": "secretsmanager:GetSecretValue", "Resource": resources,
    }]})
}

/// [`read_policy`], plus `secretsmanager:ListSecrets`, which AWS allows only on `*`.
#[must_use]
pub fn read_and_list_policy<R: AsRef<str>>(resources: &[R]) -> Value {
    let mut policy = read_policy(resources);
    if let Some(statements) = policy["Statement"].as_array_mut() {
        statements.push(
            json!({"Effect": "Allow", "Action": "secretsmanager:ListSecrets", "Resource": "*"}),
        );
    }
    policy
}

impl Policy {
    /// Parses a role's permissions.
    pub(super) fn identity(document: &Value) -> Result<Self, PolicyError> {
        let policy = Self::parse(document)?;
        for statement in &policy.statements {
            if statement.principals.is_some() {
                return Err(PolicyError::new(
                    "Policy document should not specify a principal.",
                ));
            }
            let Some(resource) = &statement.resource else {
                return Err(PolicyError::new("Policy statement must contain resources."));
            };
            if resource
                .globs
                .iter()
                .any(|glob| glob != "*" && glob.split(':').count() < 6)
            {
                return Err(PolicyError::new("Resource must be in ARN format or \"*\"."));
            }
        }
        Ok(policy)
    }

    /// Parses who may assume a role.
    pub(super) fn trust(document: &Value) -> Result<Self, PolicyError> {
        let policy = Self::parse(document)?;
        for statement in &policy.statements {
            if statement.resource.is_some() {
                return Err(PolicyError::new("Has prohibited field Resource."));
            }
            if statement.principals.is_none() {
                return Err(PolicyError::new("Missing required field Principal."));
            }
        }
        Ok(policy)
    }

    fn parse(document: &Value) -> Result<Self, PolicyError> {
        if document.to_string().contains("${") {
            return Err(PolicyError::new(
                "policy variables are not known to this fake",
            ));
        }
        let document: Document = serde_json::from_value(document.clone())
            .map_err(|error| PolicyError(error.to_string()))?;
        if document.version != "2012-10-17" {
            return Err(PolicyError::new("The policy must have Version 2012-10-17."));
        }
        let statements = document.statement.into_vec();
        if statements.is_empty() {
            return Err(PolicyError::new("Syntax errors in policy: no statement."));
        }
        let statements: Result<_, _> = statements.into_iter().map(Statement::parse).collect();
        Ok(Self {
            statements: statements?,
        })
    }

    /// An explicit denial overrides a permission, and no statement means denial.
    pub(super) fn decide(&self, question: &Question<'_>) -> Decision {
        let mut decision = Decision::NotAllowed;
        for statement in self
            .statements
            .iter()
            .filter(|statement| statement.applies(question))
        {
            match statement.effect {
                Effect::Deny => return Decision::ExplicitlyDenied,
                Effect::Allow => decision = Decision::Allowed,
            }
        }
        decision
    }
}

impl Statement {
    fn parse(raw: RawStatement) -> Result<Self, PolicyError> {
        let Some(action) = Patterns::parse(raw.action, raw.not_action)? else {
            return Err(PolicyError::new("Policy statement must contain actions."));
        };
        let resource = Patterns::parse(raw.resource, raw.not_resource)?;
        let mut conditions = Vec::new();
        for (operator, keys) in raw.condition {
            let operator = Operator::parse(&operator)?;
            for (key, values) in keys {
                conditions.push(Condition {
                    operator,
                    key,
                    values: values.into_vec(),
                });
            }
        }
        let principals = match raw.principal {
            None => None,
            Some(Principal { aws, federated }) => {
                let both = [aws, federated].into_iter().flatten();
                let all: Vec<String> = both.flat_map(OneOrMany::into_vec).collect();
                if all.is_empty() || all.iter().any(|arn| arn.contains('*')) {
                    return Err(PolicyError::new("Invalid principal in policy."));
                }
                Some(all)
            }
        };
        Ok(Self {
            effect: raw.effect,
            principals,
            action,
            resource,
            conditions,
        })
    }

    fn applies(&self, question: &Question<'_>) -> bool {
        self.action.cover(|glob| {
            matches(
                &glob.to_ascii_lowercase(),
                &question.action.to_ascii_lowercase(),
            )
        }) && self
            .resource
            .as_ref()
            .is_none_or(|globs| globs.cover(|glob| matches(glob, question.resource)))
            && self
                .principals
                .as_ref()
                .is_none_or(|arns| arns.iter().any(|arn| arn == question.principal))
            && self
                .conditions
                .iter()
                .all(|condition| condition.holds(question.context))
    }
}

impl Patterns {
    fn parse(
        positive: Option<OneOrMany<String>>,
        negative: Option<OneOrMany<String>>,
    ) -> Result<Option<Self>, PolicyError> {
        match (positive, negative) {
            (None, None) => Ok(None),
            (Some(globs), None) => Ok(Some(Self {
                negated: false,
                globs: globs.into_vec(),
            })),
            (None, Some(globs)) => Ok(Some(Self {
                negated: true,
                globs: globs.into_vec(),
            })),
            (Some(_), Some(_)) => Err(PolicyError::new("an element and its Not form together")),
        }
    }

    fn cover(&self, fits: impl Fn(&str) -> bool) -> bool {
        self.globs.iter().any(|glob| fits(glob)) != self.negated
    }
}

impl Condition {
    /// A key that the request does not have satisfies only the negated operators, as in IAM.
    fn holds(&self, context: &[(&str, &str)]) -> bool {
        let actual = context
            .iter()
            .find(|(key, _)| key.eq_ignore_ascii_case(&self.key));
        let any = |fits: fn(&str, &str) -> bool| {
            actual.is_some_and(|(_, actual)| self.values.iter().any(|value| fits(value, actual)))
        };
        match self.operator {
            Operator::Equals => any(|value, actual| value == actual),
            Operator::EqualsIgnoreCase => any(str::eq_ignore_ascii_case),
            Operator::Like => any(matches),
            Operator::NotEquals => !any(|value, actual| value == actual),
            Operator::NotLike => !any(matches),
        }
    }
}

impl Operator {
    fn parse(name: &str) -> Result<Self, PolicyError> {
        Ok(match name {
            "StringEquals" => Self::Equals,
            "StringEqualsIgnoreCase" => Self::EqualsIgnoreCase,
            "StringLike" => Self::Like,
            "StringNotEquals" => Self::NotEquals,
            "StringNotLike" => Self::NotLike,
            other => {
                return Err(PolicyError(format!(
                    "condition operator {other} is not known here"
                )));
            }
        })
    }
}

impl<T> OneOrMany<T> {
    fn into_vec(self) -> Vec<T> {
        match self {
            Self::One(one) => vec![one],
            Self::Many(many) => many,
        }
    }
}

impl PolicyError {
    fn new(text: &str) -> Self {
        Self(text.to_owned())
    }
}

impl std::fmt::Display for PolicyError {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "malformed policy document: {}", self.0)
    }
}

impl std::error::Error for PolicyError {}

/// Whether `text` matches `glob`: `*` stands for any characters (including `:` and `/`), `?` for one.
fn matches(glob: &str, text: &str) -> bool {
    let (glob, text) = (glob.as_bytes(), text.as_bytes());
    let (mut g, mut t) = (0, 0);
    // Where to resume when what follows the latest star does not fit: that star takes one more byte.
    let mut retry: Option<(usize, usize)> = None;
    while t < text.len() {
        match glob.get(g) {
            Some(b'*') => {
                retry = Some((g + 1, t));
                g += 1;
            }
            Some(&byte) if byte == b'?' || byte == text[t] => {
                g += 1;
                t += 1;
            }
            _ => match retry {
                Some((after, from)) => {
                    retry = Some((after, from + 1));
                    (g, t) = (after, from + 1);
                }
                None => return false,
            },
        }
    }
    glob[g..].iter().all(|&byte| byte == b'*')
}

#[cfg(test)]
mod tests {
    use super::*;

    fn read<'a>(resource: &'a str) -> Question<'a> {
        Question {
            action: "secretsmanager:GetSecretValue",
            resource,
            principal: "",
            context: &[("aws:RequestedRegion", "eu-central-1")],
        }
    }

    #[test]
    fn aws_globs_cross_separators_and_are_anchored() {
        assert!(matches(
            "arn:*:secret:test/*",
            "arn:aws:sm:eu:1:secret:test/a/b-AbCdEf"
        ));
        assert!(matches("*", ""));
        assert!(matches("a?c*", "abc"));
        assert!(matches("*a*b", "xaxbxab"));
        assert!(!matches("test/*", "atest/x"));
        assert!(!matches("a?c", "ac"));
        assert!(!matches("test/db-??????", "test/db-12345"));
    }

    #[test]
    fn aws_denial_wins_over_permission_and_silence_denies() {
        let policy = Policy::identity(&json!({"Version": "2012-10-17", "Statement": [
            {"Effect": "Allow", "Action": "SecretsManager:Get*", "Resource": "*"},
            {"Effect": "Deny", "Action": "*", "Resource": "arn:aws:secretsmanager:*:*:secret:prod/*"},
        ]}))
        .expect("well formed");
        let decide = |arn| policy.decide(&read(arn));
        assert_eq!(
            decide("arn:aws:secretsmanager:r:1:secret:test/x-1"),
            Decision::Allowed
        );
        assert_eq!(
            decide("arn:aws:secretsmanager:r:1:secret:prod/x-1"),
            Decision::ExplicitlyDenied
        );
        let list = Question {
            action: "secretsmanager:ListSecrets",
            ..read("*")
        };
        assert_eq!(policy.decide(&list), Decision::NotAllowed);
    }

    #[test]
    fn aws_an_absent_condition_key_fails_equality_and_passes_inequality() {
        let with = |operator: &str, key: &str, value: &str| {
            let policy = json!({"Version": "2012-10-17", "Statement": {
                "Effect": "Allow", "Action": "*", "Resource": "*",
                "Condition": {operator: {key: value}},
            }});
            Policy::identity(&policy)
                .expect("well formed")
                .decide(&read("*"))
                == Decision::Allowed
        };
        assert!(with("StringEquals", "aws:requestedregion", "eu-central-1"));
        assert!(with("StringLike", "aws:RequestedRegion", "eu-*"));
        assert!(!with("StringEquals", "aws:RequestedRegion", "eu-*"));
        assert!(!with("StringEquals", "aws:Absent", "x"));
        assert!(with("StringNotEquals", "aws:Absent", "x"));
    }

    #[test]
    fn aws_a_policy_with_anything_unknown_is_refused() {
        let base = json!({"Version": "2012-10-17", "Statement": [
            {"Effect": "Allow", "Action": "*", "Resource": "*"},
        ]});
        assert!(Policy::identity(&base).is_ok());
        for (pointer, value) in [
            (
                "/Statement/0/Condition",
                json!({"DateLessThan": {"aws:TokenIssueTime": "x"}}),
            ),
            ("/Statement/0/Resource", json!("test/*")),
            (
                "/Statement/0/Resource",
                json!("arn:aws:x:y:z:${aws:username}"),
            ),
            ("/Statement/0/Principal", json!({"Federated": "x"})),
            ("/Statement/0/Effekt", json!("Deny")),
            ("/Version", json!("2008-10-17")),
        ] {
            let mut policy = base.clone();
            let (parent, member) = pointer.rsplit_once('/').expect("a pointer");
            policy.pointer_mut(parent).expect("there")[member] = value;
            assert!(Policy::identity(&policy).is_err(), "{pointer}");
        }
        assert!(
            Policy::trust(&base).is_err(),
            "a trust policy without a principal"
        );
    }
}
