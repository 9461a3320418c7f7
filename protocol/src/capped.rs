//! Lists and texts with a maximum length, for `#[serde(with = "capped::List::<MAX>")]`. A longer
//! value is refused before memory is allocated for it, so a short hostile message cannot become a
//! large value (an empty argument is one byte on the wire and 24 in memory). Only the message types
//! of this crate use it.

use serde::{
    Deserialize, Deserializer, Serialize, Serializer,
    de::{Error as _, SeqAccess, Visitor},
    ser::Error as _,
};
use std::{fmt, marker::PhantomData};

/// A list of at most `MAX` elements. Both sides refuse a longer one.
pub(crate) struct List<const MAX: usize>;

impl<const MAX: usize> List<MAX> {
    pub(crate) fn serialize<T: Serialize, S: Serializer>(list: &[T], serializer: S) -> Result<S::Ok, S::Error> {
        if list.len() > MAX {
            return Err(S::Error::custom(format_args!("a list of {} elements is over the cap of {MAX}", list.len())));
        }
        list.serialize(serializer)
    }

    pub(crate) fn deserialize<'de, T: Deserialize<'de>, D: Deserializer<'de>>(
        deserializer: D,
    ) -> Result<Vec<T>, D::Error> {
        deserializer.deserialize_seq(ListVisitor::<MAX, T>(PhantomData))
    }
}

struct ListVisitor<const MAX: usize, T>(PhantomData<T>);

impl<'de, const MAX: usize, T: Deserialize<'de>> Visitor<'de> for ListVisitor<MAX, T> {
    type Value = Vec<T>;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "a list of at most {MAX} elements")
    }

    fn visit_seq<A: SeqAccess<'de>>(self, mut elements: A) -> Result<Vec<T>, A::Error> {
        // The stated length reserves no memory. The list grows with the elements that arrive.
        let mut list = Vec::new();
        while let Some(element) = elements.next_element()? {
            if list.len() == MAX {
                return Err(A::Error::invalid_length(MAX + 1, &self));
            }
            list.push(element);
        }
        Ok(list)
    }
}

/// A text of at most `MAX` bytes for users. A longer one is cut when sent, and refused when
/// received.
pub(crate) struct Text<const MAX: usize>;

impl<const MAX: usize> Text<MAX> {
    pub(crate) fn serialize<S: Serializer>(text: &str, serializer: S) -> Result<S::Ok, S::Error> {
        let mut end = text.len().min(MAX);
        while !text.is_char_boundary(end) {
            end -= 1;
        }
        serializer.serialize_str(&text[..end])
    }

    pub(crate) fn deserialize<'de, D: Deserializer<'de>>(deserializer: D) -> Result<String, D::Error> {
        deserializer.deserialize_str(TextVisitor::<MAX>)
    }
}

/// A text of at most `MAX` bytes for programs. Both sides refuse a longer one.
pub(crate) struct Line<const MAX: usize>;

impl<const MAX: usize> Line<MAX> {
    pub(crate) fn serialize<S: Serializer>(text: &str, serializer: S) -> Result<S::Ok, S::Error> {
        if text.len() > MAX {
            return Err(S::Error::custom(format_args!("a text of {} bytes is over the cap of {MAX}", text.len())));
        }
        serializer.serialize_str(text)
    }

    pub(crate) fn deserialize<'de, D: Deserializer<'de>>(deserializer: D) -> Result<String, D::Error> {
        deserializer.deserialize_str(TextVisitor::<MAX>)
    }
}

struct TextVisitor<const MAX: usize>;

impl<const MAX: usize> Visitor<'_> for TextVisitor<MAX> {
    type Value = String;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "a text of at most {MAX} bytes")
    }

    fn visit_str<E: serde::de::Error>(self, text: &str) -> Result<String, E> {
        if text.len() > MAX { Err(E::invalid_length(text.len(), &self)) } else { Ok(text.to_owned()) }
    }
}
