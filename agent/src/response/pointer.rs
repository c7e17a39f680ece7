//! One value in a JSON text, found in one pass: the author of the text and the caller may make text and pointer long,
//! and one thread serves everyone.

use serde::Deserialize;
use serde::de::{DeserializeSeed, Deserializer, Error, IgnoredAny, MapAccess, SeqAccess, Visitor};
use serde_json::value::RawValue;
use std::fmt;

/// Returns the value that `steps` lead to in the object `text`: names of members, or positions in arrays (RFC 6901,
/// section 4). If several members have the same name, the last one counts.
///
/// # Errors
///
/// If the text is not a JSON object.
pub(super) fn find<'t>(
    text: &'t str,
    steps: &[String],
) -> Result<Option<&'t RawValue>, serde_json::Error> {
    let (step, rest) = steps
        .split_first()
        .ok_or_else(|| serde_json::Error::custom("there are no steps"))?;
    let mut json = serde_json::Deserializer::from_str(text);
    let found = json.deserialize_map(Level { step, rest })?;
    json.end()?;
    Ok(found)
}

/// The steps that remain from a value on.
struct Descent<'s>(&'s [String]);

/// The same, with at least one step left.
struct Level<'s> {
    step: &'s str,
    rest: &'s [String],
}

/// Compares a member's name with this one.
struct Named<'s>(&'s str);

impl<'t> DeserializeSeed<'t> for Descent<'_> {
    type Value = Option<&'t RawValue>;

    fn deserialize<D: Deserializer<'t>>(self, json: D) -> Result<Self::Value, D::Error> {
        match self.0.split_first() {
            None => Deserialize::deserialize(json).map(Some),
            Some((step, rest)) => json.deserialize_any(Level { step, rest }),
        }
    }
}

impl<'t> Visitor<'t> for Level<'_> {
    type Value = Option<&'t RawValue>;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("a JSON value")
    }

    fn visit_map<A: MapAccess<'t>>(self, mut members: A) -> Result<Self::Value, A::Error> {
        let mut found = None;
        while let Some(is_it) = members.next_key_seed(Named(self.step))? {
            if is_it {
                found = members.next_value_seed(Descent(self.rest))?;
            } else {
                members.next_value::<IgnoredAny>()?;
            }
        }
        Ok(found)
    }

    fn visit_seq<A: SeqAccess<'t>>(self, mut elements: A) -> Result<Self::Value, A::Error> {
        // A position has no sign and no leading zero.
        let wanted: Option<usize> = self.step.parse().ok();
        let wanted = wanted.filter(|wanted| wanted.to_string() == self.step);
        for position in 0.. {
            if wanted == Some(position) {
                let Some(found) = elements.next_element_seed(Descent(self.rest))? else {
                    break;
                };
                while elements.next_element::<IgnoredAny>()?.is_some() {}
                return Ok(found);
            }
            if elements.next_element::<IgnoredAny>()?.is_none() {
                break;
            }
        }
        Ok(None)
    }

    fn visit_bool<E>(self, _: bool) -> Result<Self::Value, E> {
        Ok(None)
    }

    fn visit_i64<E>(self, _: i64) -> Result<Self::Value, E> {
        Ok(None)
    }

    fn visit_u64<E>(self, _: u64) -> Result<Self::Value, E> {
        Ok(None)
    }

    fn visit_f64<E>(self, _: f64) -> Result<Self::Value, E> {
        Ok(None)
    }

    fn visit_str<E>(self, _: &str) -> Result<Self::Value, E> {
        Ok(None)
    }

    fn visit_unit<E>(self) -> Result<Self::Value, E> {
        Ok(None)
    }
}

impl<'t> DeserializeSeed<'t> for Named<'_> {
    type Value = bool;

    fn deserialize<D: Deserializer<'t>>(self, json: D) -> Result<bool, D::Error> {
        json.deserialize_str(self)
    }
}

impl Visitor<'_> for Named<'_> {
    type Value = bool;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("a member's name")
    }

    fn visit_str<E>(self, name: &str) -> Result<bool, E> {
        Ok(name == self.0)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::time::{Duration, Instant};

    fn at<'t>(text: &'t str, steps: &[&str]) -> Option<&'t str> {
        let steps: Vec<_> = steps.iter().map(|step| (*step).to_owned()).collect();
        find(text, &steps).expect("JSON").map(RawValue::get)
    }

    #[test]
    fn steps_lead_to_the_value_as_it_is_written() {
        let text = r#" {"a": {"b c": [10, {"d": 1.50, "d": "x\ny"}], "": null}, "u\u00e9": true} "#;
        assert_eq!(at(text, &["a", "b c", "0"]), Some("10"));
        assert_eq!(at(text, &["a", "b c", "1", "d"]), Some(r#""x\ny""#));
        assert_eq!(at(text, &["a", ""]), Some("null"));
        assert_eq!(at(text, &["u\u{e9}"]), Some("true"));
        for nowhere in [
            ["a", "b c", "2"],
            ["a", "b c", "00"],
            ["a", "b c", "-1"],
            ["a", "", "x"],
            ["b c", "0", ""],
        ] {
            assert_eq!(at(text, &nowhere), None, "{nowhere:?}");
        }
        for through in ["true", "-1", "1", "1.5", r#""x\n""#, "null"] {
            let text = format!(r#"{{"a": {through}}}"#);
            assert_eq!(at(&text, &["a", "0"]), None, "{through}");
        }
    }

    /// Returns the shortest of several times: other load on the machine only makes them longer.
    fn quickest(work: impl Fn()) -> Duration {
        let time = || {
            let began = Instant::now();
            work();
            began.elapsed()
        };
        (0..5).map(|_| time()).min().unwrap_or_default()
    }

    #[test]
    fn many_steps_read_a_large_text_no_more_often_than_one_does() {
        // One less than the parser's limit.
        const DEPTH: usize = 126;
        let siblings = format!(r#""b": "{}", "#, "x".repeat(1 << 20));
        let open = r#"{"a": "#.repeat(DEPTH);
        let text = format!("{open}{{{siblings}\"a\": 1}}{}", "}".repeat(DEPTH));
        let steps = vec!["a".to_owned(); DEPTH + 1];
        let found = find(&text, &steps).expect("JSON").map(RawValue::get);
        assert_eq!(found, Some("1"));
        let one_pass = quickest(|| {
            serde_json::from_str::<IgnoredAny>(&text).expect("JSON");
        });
        let all_steps = quickest(|| {
            find(&text, &steps).expect("JSON");
        });
        assert!(all_steps < one_pass * 10, "{all_steps:?} {one_pass:?}");
    }

    #[test]
    fn what_is_no_object_is_an_error_wherever_it_stops_being_one() {
        let steps = ["a".to_owned()];
        for text in [
            "",
            "[1]",
            "1",
            r#""a""#,
            "{",
            r#"{"a": 1"#,
            r#"{"a": 1} x"#,
            r#"{"a": }"#,
        ] {
            assert!(find(text, &steps).is_err(), "{text}");
        }
    }
}
