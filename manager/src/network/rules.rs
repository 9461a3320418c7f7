//! Lists of rules in records: each rule is the text that a user writes.

use sandboxvm_egress_policy::rule::Rule;
use serde::{Deserialize, Deserializer, Serializer, de::Error};

pub(super) fn serialize<S: Serializer>(rules: &[Rule], serializer: S) -> Result<S::Ok, S::Error> {
    serializer.collect_seq(rules.iter().map(ToString::to_string))
}

pub(super) fn deserialize<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Vec<Rule>, D::Error> {
    let texts = Vec::<String>::deserialize(deserializer)?;
    let parse =
        |text: String| text.parse().map_err(|error| D::Error::custom(format_args!("invalid rule {text:?}: {error}")));
    texts.into_iter().map(parse).collect()
}
