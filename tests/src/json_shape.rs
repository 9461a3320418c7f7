//! The shape of JSON: which members it has, and their types. Golden files contain examples of every
//! listing. The output of the program has other values, but must have the same shape.

use serde_json::Value;
use std::collections::{BTreeMap, BTreeSet};

/// What the examples of one value have in common.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Shape {
    types: BTreeSet<&'static str>,
    /// Members of the objects among the examples.
    members: BTreeMap<String, Member>,
    /// Number of objects among the examples.
    objects: usize,
    /// The common shape of all elements of arrays among the examples.
    elements: Option<Box<Shape>>,
}

#[derive(Debug, Clone, Default, PartialEq, Eq)]
struct Member {
    shape: Shape,
    /// Number of objects that have this member.
    seen: usize,
}

impl Shape {
    /// Returns the common shape of examples.
    pub fn of<'v>(examples: impl IntoIterator<Item = &'v Value>) -> Self {
        let mut shape = Self::default();
        examples.into_iter().for_each(|example| shape.add(example));
        shape
    }

    fn add(&mut self, value: &Value) {
        self.types.insert(type_of(value));
        match value {
            Value::Object(members) => {
                self.objects += 1;
                for (name, value) in members {
                    let member = self.members.entry(name.clone()).or_default();
                    member.seen += 1;
                    member.shape.add(value);
                }
            }
            Value::Array(elements) => {
                let shape = self.elements.get_or_insert_default();
                elements.iter().for_each(|element| shape.add(element));
            }
            _ => {}
        }
    }

    /// Returns the differences of `value` from this shape, one per line.
    #[must_use]
    pub fn differences(&self, value: &Value) -> Vec<String> {
        let mut differences = Vec::new();
        self.compare(value, "", &mut differences);
        differences
    }

    fn compare(&self, value: &Value, path: &str, into: &mut Vec<String>) {
        let found = type_of(value);
        if !self.types.contains(found) {
            into.push(format!("{}: {found} where the golden file has {:?}", shown(path), self.types));
            return;
        }
        match value {
            Value::Object(members) => {
                for (name, value) in members {
                    let path = below(path, name);
                    match self.members.get(name) {
                        Some(member) => member.shape.compare(value, &path, into),
                        None => into.push(format!("{path}: is not in the golden file")),
                    }
                }
                let always = self.members.iter().filter(|(_, member)| member.seen == self.objects);
                for (name, _) in always.filter(|(name, _)| !members.contains_key(*name)) {
                    into.push(format!("{}: is missing", below(path, name)));
                }
            }
            Value::Array(elements) => {
                let shape = self.elements.as_deref().cloned().unwrap_or_default();
                for element in elements {
                    shape.compare(element, &format!("{path}[]"), into);
                }
            }
            _ => {}
        }
    }

    /// Returns the types of each member by its path, as docs/json.md states them: `string`, `number
    /// or null`, `array of string`.
    #[must_use]
    pub fn described(&self) -> BTreeMap<String, String> {
        let mut described = BTreeMap::new();
        self.describe("", &mut described);
        described
    }

    fn describe(&self, path: &str, into: &mut BTreeMap<String, String>) {
        for (name, member) in &self.members {
            let path = below(path, name);
            let mut types = member.shape.named();
            if member.seen < self.objects {
                types.push_str(", may be missing");
            }
            into.insert(path.clone(), types);
            member.shape.describe(&path, into);
        }
        if let Some(elements) = &self.elements {
            elements.describe(&format!("{path}[]"), into);
        }
    }

    fn named(&self) -> String {
        let mut names: Vec<String> = self
            .types
            .iter()
            .filter(|name| **name != "null")
            .map(|name| match (*name, &self.elements) {
                ("array", Some(elements)) if !elements.types.is_empty() => format!("array of {}", elements.named()),
                _ => (*name).to_owned(),
            })
            .collect();
        if self.types.contains("null") {
            names.push("null".to_owned());
        }
        names.join(" or ")
    }
}

fn type_of(value: &Value) -> &'static str {
    match value {
        Value::Null => "null",
        Value::Bool(_) => "boolean",
        Value::Number(_) => "number",
        Value::String(_) => "string",
        Value::Array(_) => "array",
        Value::Object(_) => "object",
    }
}

fn below(path: &str, name: &str) -> String {
    if path.is_empty() { name.to_owned() } else { format!("{path}.{name}") }
}

fn shown(path: &str) -> &str {
    if path.is_empty() { "all of it" } else { path }
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[test]
    fn differences_of_shape_are_found_and_differences_of_values_ignored() {
        let golden = json!([{"a": 1, "b": null, "c": [{"d": "x"}]}, {"a": 2, "b": "x", "c": []}, {"a": 2, "b": null, "c": [], "e": 1}]);
        let shape = Shape::of([&golden]);
        let same = [
            json!([]),
            json!([{"a": 7, "b": "y", "c": [{"d": ""}, {"d": "z"}]}]),
            json!([{"a": 7, "b": null, "c": [], "e": 3}]),
        ];
        for value in same {
            assert_eq!(shape.differences(&value), Vec::<String>::new(), "{value}");
        }
        for (value, difference) in [
            (json!({}), "all of it: object where"),
            (json!([{"a": "7", "b": null, "c": []}]), "[].a: string where"),
            (json!([{"a": null, "b": null, "c": []}]), "[].a: null where"),
            (json!([{"a": 1, "b": null}]), "[].c: is missing"),
            (json!([{"a": 1, "b": null, "c": [], "f": 1}]), "[].f: is not in"),
            (json!([{"a": 1, "b": null, "c": [{}]}]), "[].c[].d: is missing"),
            (json!([{"a": 1, "b": null, "c": [1]}]), "[].c[]: number where"),
        ] {
            let differences = shape.differences(&value);
            assert!(differences.len() == 1 && differences[0].starts_with(difference), "{value}: {differences:?}");
        }
        let described: Vec<String> =
            shape.described().into_iter().map(|(path, types)| format!("{path} {types}")).collect();
        assert_eq!(
            described,
            [
                "[].a number",
                "[].b string or null",
                "[].c array of object",
                "[].c[].d string",
                "[].e number, may be missing"
            ]
        );
    }
}
