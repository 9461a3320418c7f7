//! Proto3's JSON, where it is more than serde's: bytes are base64 of either alphabet, numbers may be text.

use base64::{
    Engine, alphabet,
    engine::{DecodePaddingMode, GeneralPurpose, GeneralPurposeConfig},
};
use serde::{Deserialize, Deserializer, Serialize, Serializer, de::Error};
use std::borrow::Cow;

const TOLERANT: GeneralPurposeConfig = GeneralPurposeConfig::new()
    .with_decode_padding_mode(DecodePaddingMode::Indifferent)
    .with_decode_allow_trailing_bits(true);
const STANDARD: GeneralPurpose = GeneralPurpose::new(&alphabet::STANDARD, TOLERANT);
const URL_SAFE: GeneralPurpose = GeneralPurpose::new(&alphabet::URL_SAFE, TOLERANT);

/// Bytes, which JSON has as base64.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(crate) struct Base64(pub(crate) Vec<u8>);

impl Serialize for Base64 {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.serialize_str(&STANDARD.encode(&self.0))
    }
}

impl<'de> Deserialize<'de> for Base64 {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let text = Text::deserialize(deserializer)?.0;
        let engine = if text.contains(['-', '_']) { URL_SAFE } else { STANDARD };
        engine.decode(text.as_bytes()).map(Self).map_err(D::Error::custom)
    }
}

#[derive(Deserialize)]
struct Text<'t>(#[serde(borrow)] Cow<'t, str>);

/// A uint32 or the number of an enumeration.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub(crate) struct Number(pub(crate) u32);

impl<'de> Deserialize<'de> for Number {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        #[derive(Deserialize)]
        #[serde(untagged)]
        enum Written {
            Number(u32),
            Text(String),
        }
        match Written::deserialize(deserializer)? {
            Written::Number(number) => Ok(Self(number)),
            Written::Text(text) => text.parse().map(Self).map_err(D::Error::custom),
        }
    }
}

/// An answer without content.
#[derive(Debug, Serialize)]
pub(in crate::sandbox_plane::envd) struct Empty {}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn bytes_and_numbers_are_read_in_all_their_forms() {
        for text in [r#""+/8=""#, r#""+/8""#, r#""-_8=""#, r#""-_8""#, r#""\u002b/8=""#] {
            assert_eq!(serde_json::from_str::<Base64>(text).unwrap().0, [0xfb, 0xff], "{text}");
        }
        assert_eq!(serde_json::to_string(&Base64(vec![0xfb, 0xff])).unwrap(), r#""+/8=""#);
        assert!(serde_json::from_str::<Base64>(r#""!""#).is_err());
        assert_eq!(serde_json::from_str::<Number>("7").unwrap(), Number(7));
        assert_eq!(serde_json::from_str::<Number>(r#""7""#).unwrap(), Number(7));
        for wrong in ["-1", "4294967296", r#""x""#, "true", "1.5"] {
            assert!(serde_json::from_str::<Number>(wrong).is_err(), "{wrong}");
        }
    }
}
